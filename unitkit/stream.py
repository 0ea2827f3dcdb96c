"""Units as audio arrives: a frame is decided once the audio it needs has come, or as much as one will wait for.

Filterbanks need a few hundredths of a second on either side of a frame, so their streamed units are those of the whole
recording.  Transformers attend to the whole recording and normalise by it: a stream gives them `LEFT_SECONDS` of the
past, half of the look-ahead, and the statistics of all that was heard.  What that changes, `unitkit verify` measures.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from unitkit.encoders import Encoder
from unitkit.encoders.running import Running
from unitkit.encoders.transformer import TransformerEncoder
from unitkit.units import Units, UnitsHeader

LEFT_SECONDS = 4.0  # past audio that a transformer sees: what its windows see beyond their joints as well
MOST_FRAMES = 1000  # decided in one call of the encoder, however much was pushed
LOOKAHEAD_SECONDS = 1.0  # by default: half is context to the right, half is gathered to be encoded in one call


class Stream:
    """Samples in, units out; all units together are as many as the whole recording gives.

    `lookahead` is the most seconds of audio, from the end of a frame's hop on, that must arrive before its unit is
    given; samples pushed in one call count as arriving at once.
    """

    def __init__(
        self,
        encoder: Encoder,
        assign: Callable[[Tensor], Tensor],
        header: UnitsHeader,
        *,
        rate: int | None = None,
        lookahead: float | None = None,
    ) -> None:
        """`assign` gives units of features (frames, dim); `rate` is that of the samples, by default the encoder's."""
        self._encoder, self._assign, self._header = encoder, assign, header
        self.rate = encoder.sample_rate if rate is None else rate
        self._hop = round(encoder.sample_rate / encoder.rate_hz)
        self._resampler = _resampler(self.rate, encoder.sample_rate)
        self._finished = False
        self._plan(lookahead)
        self._held = np.zeros(0, np.float32)  # samples from frame `_first` on
        self._first = self._done = 0  # first frame whose samples are held; frames given

    def push(self, samples: np.ndarray) -> Units:
        """Take in samples (n,) float, of any number, and give the units decided by them, often none."""
        self._take(_checked(samples, self.rate), last=False)
        heard = self._first * self._hop + len(self._held)
        ready = min(self._available, (heard - self._reach) // self._hop)
        return self._units(ready if ready - self._done >= self._step else self._done)

    def finish(self) -> Units:
        """The units left once the audio has ended; a stream shorter than one frame gives none."""
        self._take(np.zeros(0, np.float32), last=True)
        self._finished = True
        return self._units(self._available)

    def _plan(self, lookahead: float | None) -> None:
        """How far a frame sees: by the encoder's own reach, or by what one will wait for."""
        encoder, hop, delay = self._encoder, self._hop, _delay(self.rate, self._encoder.sample_rate)
        self._step = 1  # frames encoded at a time, at least
        self._running: Running | None = None
        if encoder.exact_context is not None:
            self._reach = encoder.exact_context  # samples needed beyond the end of a frame's hop
            self._left = -(-self._reach // hop)  # frames of past audio
        elif not isinstance(encoder, TransformerEncoder):
            raise ValueError(f"{type(encoder).__name__} can only encode whole recordings")
        else:
            self._running = Running(encoder)
            self._left = round(LEFT_SECONDS * encoder.rate_hz)
            self._reach = max(0, encoder.min_samples - hop)
            wanted = LOOKAHEAD_SECONDS if lookahead is None else lookahead
            frames = math.floor((wanted - delay - self._reach / encoder.sample_rate) * encoder.rate_hz + 1e-6)
            if frames > 0:
                self._step += frames // 2
                self._reach += (frames - frames // 2) * hop
        self.lookahead = (self._reach + (self._step - 1) * hop) / encoder.sample_rate + delay
        if lookahead is not None and lookahead < self.lookahead - 1e-6:
            raise ValueError(f"a look-ahead of {lookahead} s is too short: this stream needs {self.lookahead:.3f} s")

    def _take(self, samples: np.ndarray, *, last: bool) -> None:
        if self._finished:
            raise ValueError("this stream is finished; start another one")
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        if self._running is not None:
            self._running.add(samples)
        self._held = np.concatenate([self._held, samples])

    @property
    def _available(self) -> int:
        """Frames that the samples so far give."""
        return self._first + self._encoder.n_frames(len(self._held))

    def _units(self, stop: int) -> Units:
        """Units of the frames not yet given, up to `stop`."""
        parts = [np.zeros((0, self._header.codebooks), np.int64)]
        while self._done < stop:
            parts.append(self._decide(min(stop, self._done + MOST_FRAMES)).reshape(-1, self._header.codebooks))
        return self._header.units(np.concatenate(parts), "")

    def _decide(self, stop: int) -> np.ndarray:
        """Units (frames,) or (frames, codebooks) of the next frames up to `stop`; then the past is dropped."""
        start, held = self._done - self._first, self._held
        encode = self._encoder if self._running is None else self._running.features
        # Of a long push, no more than these frames would have seen of many short ones.
        features = encode(held[: (stop - self._first) * self._hop + self._reach])[start : stop - self._first]
        self._done = stop
        first = max(0, stop - self._left)
        self._held, self._first = self._held[(first - self._first) * self._hop :].copy(), first
        return self._assign(features).cpu().numpy()


def _checked(samples: np.ndarray, rate: int) -> np.ndarray:
    data = np.asarray(samples)
    if data.ndim != 1 or data.dtype.kind != "f":
        raise ValueError(f"a stream takes float samples (n,) in -1..1, mono, not {data.dtype} of shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"the samples at {rate} Hz hold NaN or infinity")
    return np.ascontiguousarray(data, dtype=np.float32)


def _resampler(source: int, target: int) -> Any:
    if source <= 0:
        raise ValueError(f"the samples' rate must be a positive number of Hz, not {source}")
    if source == target:
        return None
    import soxr

    return soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")


@lru_cache(maxsize=16)
def _delay(source: int, target: int) -> float:
    """The most seconds that soxr's output lags behind its input, tried on two seconds of silence in 10 ms steps."""
    if source == target:
        return 0.0
    stream = _resampler(source, target)
    step, given, worst = max(1, source // 100), 0, 0.0
    for count in range(1, 201):
        given += len(stream.resample_chunk(np.zeros(step, np.float32)))
        worst = max(worst, count * step / source - given / target)
    return worst

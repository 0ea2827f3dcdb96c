"""Recordings of any length on their way to an encoder: blocks that can be gone through again, in bounded memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from unitkit import audio
from unitkit.encoders import Encoder
from unitkit.manifest import Utterance

BLOCK_SECONDS = 30.0
HELD_BLOCKS = 4  # of a recording, kept in memory; those of a longer one are read as they are needed
GROUP_SECONDS = 600.0  # audio that is held for one call of the encoder's batch, which cuts it by length again


class Recording:
    """A wav as blocks (samples,) that can be gone through again; `n_samples` is known after the first time."""

    def __init__(self, blocks: Callable[[], Iterator[np.ndarray]], *, name: str, label: str = "") -> None:
        """`blocks` opens the wav; `name` is for errors, `label` becomes the id of the units."""
        self._open, self.name, self.label = blocks, name, label
        self.n_samples = 0
        self._held: list[np.ndarray] | None = None

    def __call__(self) -> Iterator[np.ndarray]:
        """The blocks, from the start."""
        n_samples = 0
        for block in self._open() if self._held is None else self._held:
            n_samples += len(block)
            yield block
        self.n_samples = n_samples

    def hold(self, encoder: Encoder) -> bool:
        """Keep a short wav in memory and raise AudioError if it gives no frame; False for one too long to keep."""
        if self._held is None:
            head = list(islice(self._open(), HELD_BLOCKS + 1))
            if len(head) > HELD_BLOCKS:
                return False
            self.n_samples = sum(map(len, head))
            _check_length(encoder, self.n_samples, self.name)
            self._held = head
        return True

    def release(self) -> None:
        """Forget the samples."""
        self._held = None

    @property
    def wav(self) -> np.ndarray | None:
        """The samples (samples,) of a wav that is held, else None."""
        return None if self._held is None else np.concatenate(self._held)

    def features(self, encoder: Encoder) -> Iterator[Tensor]:
        """Features in pieces (frames, dim), together bit for bit those of the whole wav."""
        self.hold(encoder)
        return encoder.pieces(self)


def of_utterance(utterance: Utterance, rate: int, *, seconds: float = BLOCK_SECONDS) -> Recording:
    """The recording of an utterance at `rate` Hz, its part of the file or all of it, in blocks of `seconds`."""
    start, duration = _part(utterance)
    return Recording(
        lambda: audio.blocks(utterance.audio, rate, start=start, duration=duration, seconds=seconds),
        name=utterance.audio,
        label=utterance.id,
    )


def read_speech(utterance: Utterance, rate: int) -> np.ndarray:
    """The wav (samples,) of an utterance at `rate` Hz: its part of the file if it has a `start`, else all of it."""
    start, duration = _part(utterance)
    return audio.read(utterance.audio, rate, start=start, duration=duration)


def checked_wav(wav: np.ndarray | Tensor, rate: int, wanted: int) -> np.ndarray:
    """A wav given in Python, float32 (samples,) at the `wanted` rate; finite ones are asked for later, as of files."""
    data = wav.detach().cpu().numpy() if isinstance(wav, Tensor) else wav
    if data.ndim != 1 or data.dtype.kind != "f":
        raise ValueError(f"a wav is float (samples,) in -1..1, mono, not {data.dtype} of shape {data.shape}")
    data = data.astype(np.float32, copy=False)
    return data if rate == wanted else audio.resample(data, rate, wanted)


def groups(recordings: Sequence[Recording], encoder: Encoder) -> Iterator[list[Recording]]:
    """Runs of recordings with about GROUP_SECONDS held in memory; a long one keeps its place but is not held."""
    group: list[Recording] = []
    seconds = 0.0
    for recording in recordings:
        group.append(recording)
        if recording.hold(encoder):
            seconds += recording.n_samples / encoder.sample_rate
        if seconds >= GROUP_SECONDS:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group


def stream_features(
    encoder: Encoder,
    utterances: Iterable[Utterance],
    *,
    on_error: Callable[[Utterance, Exception], None] | None,
    progress: Callable[[Utterance], None] | None,
    tally: dict[str, Any],
) -> Iterator[np.ndarray]:
    """Features (frames, dim) of one utterance after the other, long ones in pieces; counts them in `tally`."""
    for utterance in utterances:
        recording = of_utterance(utterance, encoder.sample_rate)
        try:
            if not recording.hold(encoder):
                for _ in recording():  # read through first: a file that breaks off at its end gives no frames at all
                    pass
        except (audio.AudioError, OSError) as error:
            if on_error is None:
                raise
            on_error(utterance, error)
            tally["skipped"] += 1
        else:
            for piece in recording.features(encoder):
                yield piece.cpu().numpy()
            tally["utterances"] += 1
            tally["seconds"] += recording.n_samples / encoder.sample_rate
        if progress is not None:
            progress(utterance)


def _part(utterance: Utterance) -> tuple[float, float | None]:
    if utterance.start is None:  # `duration` then only describes the file, perhaps rounded: it cuts nothing off
        return 0.0, None
    return utterance.start, utterance.duration


def _check_length(encoder: Encoder, n_samples: int, name: str | os.PathLike[str]) -> None:
    if n_samples < encoder.min_samples:
        found, needed = n_samples / encoder.sample_rate, encoder.min_samples / encoder.sample_rate
        raise audio.AudioError(name, f"too short: {found:.4f} s, but one frame takes at least {needed:.4f} s")

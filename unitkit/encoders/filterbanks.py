"""Spectral features: Kaldi log-mels and MFCCs, Whisper's log-mels, and what all encoders do with a wav first."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import lru_cache
from itertools import count
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from unitkit import audio
from unitkit.encoders.blocks import CHUNK_SAMPLES, chunks, padded, slices, with_context

Wav: TypeAlias = np.ndarray | Tensor  # float samples (samples,)
OpenWav: TypeAlias = Callable[[], Iterable[Wav]]  # gives a recording's blocks from the start each time it is called
JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None

FILTERBANKS = {"mfcc": ("mfcc", 50), "mfcc@100": ("mfcc", 100), "logmel": ("logmel", 50), "logmel@100": ("logmel", 100)}

FIELD, HOP, N_FFT = 400, 160, 512  # Kaldi analysis at 16 kHz: 25 ms windows every 10 ms
BLOCK_FRAMES = 3000  # filterbank frames computed at a time
DELTA_CONTEXT = 4  # analysis frames on either side that deltas of deltas reach for
EPSILON = float(np.finfo(np.float32).eps)  # Kaldi's floor under a mel energy


class WavEncoder:
    """The shared way in: check, float32, blocks of one size whatever came in, no gradients."""

    sample_rate: int = 16000
    hop: int  # samples between frames
    dim: int
    min_samples: int
    name: str
    paddings: tuple[str, ...] = ("none",)
    exact_context: int | None = None
    device: torch.device = torch.device("cpu")
    codebooks: Tensor | None = None

    @property
    def rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    def __call__(self, wav: Wav) -> Tensor:
        """Wav (samples,) to features (frames, dim) float32."""
        pieces = list(self.pieces(lambda: [wav]))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def batch(self, wavs: Sequence[Wav], *, max_frames: int | None = None) -> list[Tensor]:
        """Features of several wavs, in their order; here one at a time, so `max_frames` has nothing to bound."""
        return [self(wav) for wav in wavs]

    def pieces(self, open_wav: OpenWav) -> Iterator[Tensor]:
        """Features of a recording given in blocks, piece by piece; together the same bits as of one block.

        `open_wav` may be called several times; it starts the blocks (samples,) anew each time. Raises ValueError for
        blocks that are no float samples and for recordings too short for a frame.
        """
        stream = self._stream(open_wav)
        while True:
            with self._computing():  # not around the yield, where it would reach into the caller's code
                piece = next(stream, None)
            if piece is None:
                return
            yield piece.clone()  # leaves inference mode, so that a model may be trained on it

    def _computing(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_exact_convolutions(self.device))
        return stack

    def _stream(self, open_wav: OpenWav) -> Iterator[Tensor]:
        raise NotImplementedError

    def _samples(self, open_wav: OpenWav) -> Iterator[Tensor]:
        """The recording, checked, as float32 on the CPU, in chunks of CHUNK_SAMPLES."""
        total = 0
        for chunk in chunks(map(_checked, open_wav()), CHUNK_SAMPLES):
            total += len(chunk)
            yield chunk
        if total < self.min_samples:
            seconds = self.min_samples / self.sample_rate
            raise ValueError(
                f"wav of {total} samples is too short for {self.name}: "
                f"at least {self.min_samples} samples ({seconds:g} s at {self.sample_rate} Hz) are needed"
            )

    def _known_padding(self, padding: str) -> str:
        if padding not in self.paddings:
            raise ValueError(f"{self.name} cannot take padding {padding!r}; known: {', '.join(self.paddings)}")
        return padding


def _checked(wav: Wav) -> Tensor:
    block = torch.as_tensor(wav)
    if block.ndim != 1 or not block.is_floating_point():
        raise ValueError(f"expected float samples of shape (samples,), got {block.dtype} {tuple(block.shape)}")
    if not torch.isfinite(block).all():
        raise ValueError("wav holds NaN or infinite samples")
    return block.to(device="cpu", dtype=torch.float32)


def log_mel_blocks(samples: Iterable[Tensor], *, n_mels: int) -> Iterator[Tensor]:
    """Kaldi filterbank: samples at 16 kHz to natural log mel energies (frames, n_mels) float64 (float32 on MPS).

    Blocks of BLOCK_FRAMES frames counted from the start, so that no bit depends on how the samples come.
    """
    step = BLOCK_FRAMES * HOP
    spans = ((first, first + step + FIELD - HOP) for first in count(0, step))
    for span in slices(samples, spans):
        if len(span) < FIELD:
            return
        yield _log_mels(span.unfold(0, FIELD, HOP), n_mels=n_mels)


def _log_mels(frames: Tensor, *, n_mels: int) -> Tensor:
    """Analysis frames (frames, field) to log mel energies (frames, n_mels)."""
    # Double precision keeps the log of near-silent bins, and so the units, independent of rounding.
    dtype = torch.float32 if frames.device.type == "mps" else torch.float64
    window = torch.hann_window(FIELD, periodic=False, dtype=dtype, device=frames.device) ** 0.85  # "povey"
    filters = _kaldi_filters(n_mels).to(device=frames.device, dtype=dtype)
    centred = frames.to(dtype)
    centred = centred - centred.mean(dim=1, keepdim=True)
    previous = torch.cat([centred[:, :1], centred[:, :-1]], dim=1)
    power = torch.fft.rfft((centred - 0.97 * previous) * window, n=N_FFT).abs() ** 2
    return (power @ filters).clamp_min(EPSILON).log()


def cepstra(log_mels: Tensor, *, n_ceps: int = 13, lifter: float = 22.0) -> Tensor:
    """Orthonormal DCT-II of log mel energies (frames, n_mels), liftered: (frames, n_ceps), C0 first."""
    n_mels = log_mels.shape[1]
    order = torch.arange(n_ceps, dtype=log_mels.dtype, device=log_mels.device)
    position = torch.arange(n_mels, dtype=log_mels.dtype, device=log_mels.device) + 0.5
    basis = torch.cos(math.pi / n_mels * position[:, None] * order) * math.sqrt(2 / n_mels)
    basis[:, 0] = math.sqrt(1 / n_mels)
    return log_mels @ (basis * (1 + lifter / 2 * torch.sin(math.pi * order / lifter)))


def deltas(features: Tensor) -> Tensor:
    """Regression slope over 5 frames, the ends repeated: (frames, dim) to (frames, dim)."""
    padded = torch.cat([features[:1]] * 2 + [features] + [features[-1:]] * 2)
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


@lru_cache(maxsize=4)
def _kaldi_filters(n_mels: int) -> Tensor:
    """Triangles on Kaldi's mel scale from 20 Hz to 8 kHz: (n_fft // 2 + 1, n_mels) float64."""
    edges = torch.linspace(_kaldi_mel(20.0), _kaldi_mel(8000.0), n_mels + 2, dtype=torch.float64)
    hertz = np.arange(N_FFT // 2 + 1) * 16000 / N_FFT
    mels = torch.from_numpy(1127 * np.log1p(hertz / 700))[:, None]
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0)


def _kaldi_mel(hertz: float) -> float:
    return 1127 * math.log1p(hertz / 700)


class FilterbankEncoder(WavEncoder):
    """MFCC with two orders of deltas (39-d) or Kaldi log-mel (80-d), at 100 or 50 Hz.

    At 50 Hz MFCCs are every second frame; log-mel frames are stacked in pairs (160-d) and an odd last one is dropped.
    The MFCCs are those of HuBERT's first iteration: torchaudio's Kaldi MFCC of the -1..1 wav without energy.
    """

    paddings = ("none", "center")

    def __init__(self, kind: str, rate_hz: int, *, padding: str = "none") -> None:
        """`kind` is "mfcc" or "logmel", `rate_hz` 100 or 50."""
        self.kind = kind
        self.name = kind if rate_hz == 50 else f"{kind}@{rate_hz}"
        self.padding = self._known_padding(padding)
        self.hop = 16000 // rate_hz
        self.stride = self.hop // HOP  # analysis frames per feature frame
        self.dim = 39 if kind == "mfcc" else 80 * self.stride
        field = FIELD + (self.stride - 1) * HOP if kind == "logmel" else FIELD
        self.pad = (field - self.hop) // 2 if padding == "center" else 0
        self.min_samples = field - 2 * self.pad
        reach = DELTA_CONTEXT * HOP if kind == "mfcc" else 0
        # Frame k reaches from k * hop - pad - reach on, and up to k * hop - pad + field + reach.
        self.exact_context = reach + max(self.pad, field - self.hop - self.pad)

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        if n_samples < self.min_samples:
            return 0
        analysed = (n_samples + 2 * self.pad - FIELD) // HOP + 1
        return -(-analysed // self.stride) if self.kind == "mfcc" else analysed // self.stride

    def settings(self) -> dict[str, JSON]:
        """Everything that changes the features."""
        return {
            "features": self.name,
            "sample_rate": self.sample_rate,
            "rate_hz": self.rate_hz,
            "padding": self.padding,
            "analysis": f"kaldi {FIELD}/{HOP} povey preemphasis 0.97, "
            + ("23 mels, 13 cepstra, lifter 22, 2 deltas" if self.kind == "mfcc" else "80 mels, natural log"),
        }

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Nothing to write: the settings say it all."""

    def to(self, device: str | torch.device) -> Self:
        """Move to a device and return the encoder."""
        self.device = torch.device(device)
        return self

    def _stream(self, open_wav: OpenWav) -> Iterator[Tensor]:
        samples = padded((chunk.to(self.device) for chunk in self._samples(open_wav)), self.pad)
        if self.kind == "logmel":
            for mels in chunks(log_mel_blocks(samples, n_mels=80), BLOCK_FRAMES * self.stride):
                if whole := len(mels) // self.stride:
                    yield mels[: whole * self.stride].reshape(whole, self.dim).float()
            return
        static = (cepstra(mels) for mels in log_mel_blocks(samples, n_mels=23))
        done = 0  # analysis frames
        for rows, first, stop in with_context(static, DELTA_CONTEXT):
            once = deltas(rows)
            full = torch.cat([rows, once, deltas(once)], dim=1)[first:stop]
            yield full[-done % self.stride :: self.stride].float()
            done += stop - first


def whisper_log_mels(signal: Tensor, *, n_mels: int) -> Tensor:
    """Whisper's input: (samples,) to (n_mels, samples // 160) log10 mel power, floored 8 below the peak, scaled."""
    window = torch.hann_window(400, device=signal.device)
    spectrum = torch.stft(signal, 400, 160, window=window, return_complex=True)[:, :-1]
    filters = torch.from_numpy(audio.mel_filters(16000, n_fft=400, n_mels=n_mels)).to(signal.device)
    mels = (filters @ (spectrum.abs() ** 2)).clamp_min(1e-10).log10()
    return (torch.maximum(mels, mels.max() - 8) + 4) / 4


def _exact_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Full float32 in cuDNN, which would round convolutions to TF32 by default."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)

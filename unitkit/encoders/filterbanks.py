"""Spectral features: Kaldi log-mels and MFCCs, Whisper's log-mels, and what all encoders do with a wav first."""

import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from unitkit import audio

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None

FILTERBANKS = {"mfcc": ("mfcc", 50), "mfcc@100": ("mfcc", 100), "logmel": ("logmel", 50), "logmel@100": ("logmel", 100)}

FIELD, HOP, N_FFT = 400, 160, 512  # Kaldi analysis at 16 kHz: 25 ms windows every 10 ms
BLOCK_FRAMES = 3000  # filterbank frames computed at a time
EPSILON = float(np.finfo(np.float32).eps)  # Kaldi's floor under a mel energy


class WavEncoder:
    """The shared way in: check, float32, one file at a time, no gradients."""

    sample_rate: int = 16000
    hop: int  # samples between frames
    dim: int
    min_samples: int
    name: str
    paddings: tuple[str, ...] = ("none",)
    device: torch.device = torch.device("cpu")

    @property
    def rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    def __call__(self, wav: np.ndarray | Tensor) -> Tensor:
        """Wav (samples,) to features (frames, dim) float32."""
        with torch.inference_mode(), _exact_convolutions(self.device):
            features = self._encode(self._checked(wav))
        return features.clone()  # leaves inference mode, so that a model may be trained on it

    def _checked(self, wav: np.ndarray | Tensor) -> Tensor:
        signal = torch.as_tensor(wav)
        if signal.ndim != 1 or not signal.is_floating_point():
            raise ValueError(f"expected float samples of shape (samples,), got {signal.dtype} {tuple(signal.shape)}")
        if len(signal) < self.min_samples:
            seconds = self.min_samples / self.sample_rate
            raise ValueError(
                f"wav of {len(signal)} samples is too short for {self.name}: "
                f"at least {self.min_samples} samples ({seconds:g} s at {self.sample_rate} Hz) are needed"
            )
        if not torch.isfinite(signal).all():
            raise ValueError("wav holds NaN or infinite samples")
        return signal.to(device=self.device, dtype=torch.float32)

    def _encode(self, signal: Tensor) -> Tensor:
        raise NotImplementedError

    def _known_padding(self, padding: str) -> str:
        if padding not in self.paddings:
            raise ValueError(f"{self.name} cannot take padding {padding!r}; known: {', '.join(self.paddings)}")
        return padding


def log_mel_energies(signal: Tensor, *, n_mels: int) -> Tensor:
    """Kaldi filterbank: (samples,) at 16 kHz to natural log mel energies (frames, n_mels) float64 (float32 on MPS)."""
    # Double precision keeps the log of near-silent bins, and so the units, independent of how frames are blocked.
    dtype = torch.float32 if signal.device.type == "mps" else torch.float64
    window = torch.hann_window(FIELD, periodic=False, dtype=dtype, device=signal.device) ** 0.85  # "povey"
    filters = _kaldi_filters(n_mels).to(device=signal.device, dtype=dtype)
    frames = signal.unfold(0, FIELD, HOP)  # (frames, field), a view
    blocks = []
    for block in frames.split(BLOCK_FRAMES):
        centred = block.to(dtype)
        centred = centred - centred.mean(dim=1, keepdim=True)
        previous = torch.cat([centred[:, :1], centred[:, :-1]], dim=1)
        power = torch.fft.rfft((centred - 0.97 * previous) * window, n=N_FFT).abs() ** 2
        blocks.append((power @ filters).clamp_min(EPSILON).log())
    return torch.cat(blocks)


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

    def _encode(self, signal: Tensor) -> Tensor:
        padded = nn.functional.pad(signal, (self.pad, self.pad))
        if self.kind == "mfcc":
            static = cepstra(log_mel_energies(padded, n_mels=23))
            first = deltas(static)
            return torch.cat([static, first, deltas(first)], dim=1)[:: self.stride].float()
        mels = log_mel_energies(padded, n_mels=80)
        whole = len(mels) // self.stride
        return mels[: whole * self.stride].reshape(whole, self.dim).float()


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

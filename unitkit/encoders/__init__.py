"""Encoders: wav (samples,) to features (frames, dim). MFCC, log-mel, and any transformers speech model up to one layer.

Conventions, all recorded in `settings()` and so in the tokenizer's fingerprint:
- Frame k of a filterbank or convolutional encoder starts at sample k * hop and spans the receptive field: only frames
  that lie wholly inside the wav count (Kaldi's snip_edges=True). padding="center" adds (field - hop) / 2 zeros on
  either side first, so that there are n_samples // hop frames.
- Layer L is the output of transformer layer L, counted from 1, after its residual connection and, in post-norm models,
  its norm; 0 is the input of the first layer. The final norm of pre-norm models is never applied, not even at the last
  layer. Layers above L are neither loaded nor run.
- Waveforms are scaled to zero mean and unit variance where the checkpoint's preprocessor_config.json says so; without
  that file, where the model's convolutions use layer norm.
- Recordings longer than a window (60 s; Whisper 30 s) are encoded in overlapping windows, so that memory is bounded;
  elsewhere features are those of the whole recording.
"""

import os
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from unitkit.encoders.checkpoints import MODELS, load_transformer
from unitkit.encoders.filterbanks import FILTERBANKS, JSON, FilterbankEncoder

__all__ = ["FILTERBANKS", "JSON", "MODELS", "Encoder", "load_encoder"]


class Encoder(Protocol):
    """What a tokenizer needs of its features; dim is their size, rate_hz frames per second."""

    sample_rate: int
    dim: int
    min_samples: int

    @property
    def rate_hz(self) -> float:
        """Frames per second."""

    def __call__(self, wav: np.ndarray | Tensor) -> Tensor:
        """(samples,) at sample_rate to (frames, dim) float32 on the encoder's device."""

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives; 0 below min_samples."""

    def settings(self) -> dict[str, JSON]:
        """Everything that changes the features, the sha256 of the weights included; not where they came from."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the weights, if any, so that load_encoder(directory) gives the same features and settings."""

    def to(self, device: str | torch.device) -> Self:
        """Move to a device and return the encoder."""


def load_encoder(
    features: str | os.PathLike[str], *, layer: int | None = None, padding: str = "none", device: str = "cpu"
) -> Encoder:
    """Encoder by name ("mfcc", "logmel", a key of MODELS), hub id or local directory.

    `layer` counts from 1 (0 = input of the first layer); by default the layer a saved encoder was cut at, else the
    middle one, where phone information peaks in most models. `padding`: "none", "center" (see above) or, for Whisper,
    "full".
    """
    name = os.fspath(features)
    if name in FILTERBANKS:
        if layer is not None:
            raise ValueError(f"{name} has no layers, but layer={layer} was asked for; leave it out")
        kind, rate_hz = FILTERBANKS[name]
        return FilterbankEncoder(kind, rate_hz, padding=padding).to(device)
    return load_transformer(name, layer=layer, padding=padding).to(device)

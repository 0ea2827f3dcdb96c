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
- Recordings longer than a window (60 s; Whisper 30 s) are encoded in overlapping windows, so that memory is bounded.
  Normalisations of the input and the group norm of the first convolution take their statistics from the whole
  recording, in a first pass, so that windows differ from the whole only through attention (Whisper: through its peak
  and positions as well). Filterbanks have no such limit: their frames are those of the whole.
- A recording gives the same bits in one array or in blocks, however they are cut; in a padded batch, features within
  1e-5 of their length.
- float32 gives the same units on every engine and leaves no trace in the settings. Another precision makes another
  tokenizer, named by engine and precision ("arithmetic").
"""

import os
from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from unitkit.encoders.checkpoints import MODELS, load_transformer
from unitkit.encoders.convolutional import is_objective, load_convolutions
from unitkit.encoders.engines import FLOAT32, Arithmetic
from unitkit.encoders.filterbanks import FILTERBANKS, JSON, FilterbankEncoder, OpenWav, Wav

__all__ = ["FILTERBANKS", "JSON", "MODELS", "Encoder", "load_encoder"]


class Encoder(Protocol):
    """What a tokenizer needs of its features; dim is their size, rate_hz frames per second.

    `exact_context`: a frame depends on no sample further than this from its own hop; None where it depends on all.
    `codebooks` (codebooks, n_units, dim): units learned with the features, each codebook of its part of them, or None.
    """

    sample_rate: int
    dim: int
    min_samples: int
    exact_context: int | None
    codebooks: Tensor | None

    @property
    def rate_hz(self) -> float:
        """Frames per second."""

    def __call__(self, wav: Wav) -> Tensor:
        """(samples,) at sample_rate to (frames, dim) float32 on the encoder's device."""

    def batch(self, wavs: Sequence[Wav], *, max_frames: int | None = None) -> list[Tensor]:
        """Features of several wavs in their order, in padded batches of `max_frames` frames at most where it helps."""

    def pieces(self, open_wav: OpenWav) -> Iterator[Tensor]:
        """Features of a recording of any length, given in blocks that `open_wav()` starts anew, in bounded memory."""

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives; 0 below min_samples."""

    def settings(self) -> dict[str, JSON]:
        """Everything that changes the features, the sha256 of the weights included; not where they came from."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the weights, if any, so that load_encoder(directory) gives the same features and settings."""

    def to(self, device: str | torch.device) -> Self:
        """Move to a device and return the encoder."""


def load_encoder(
    features: str | os.PathLike[str],
    *,
    layer: int | None = None,
    padding: str = "none",
    device: str = "cpu",
    precision: str = "float32",
    engine: str = "auto",
    half: bool = False,
) -> Encoder:
    """Encoder by name ("mfcc", "logmel", a key of MODELS), hub id or local directory, vq-wav2vec's among them.

    `layer` counts from 1 (0 = input of the first layer); by default the layer a saved encoder was cut at, else the
    middle one, where phone information peaks in most models. `padding`: "none", "center" (see above) or, for Whisper,
    "full". `precision`: "float32", "bfloat16" or, on OpenVINO, "int8". `engine`: "plain" (transformers' own modules),
    "fast" or "openvino" (waveform models on a CPU; the weights are held twice), or "auto", the fast one where it
    covers the model. `half` rounds the weights to what float16 holds, so that `save` writes half the bytes; arithmetic
    stays as it is. Raises ValueError for what is unknown or does not go together.
    """
    name = os.fspath(features)
    arithmetic = Arithmetic(precision, engine)
    if name in FILTERBANKS:
        if layer is not None:
            raise ValueError(f"{name} has no layers, but layer={layer} was asked for; leave it out")
        if arithmetic not in (FLOAT32, Arithmetic(engine="plain")):
            raise ValueError(
                f"{name} has no model to run in {precision} on engine {engine!r}; leave precision and engine out"
            )
        if half:
            raise ValueError(f"{name} has no weights to be rounded to half precision; leave half (--half) out")
        kind, rate_hz = FILTERBANKS[name]
        return FilterbankEncoder(kind, rate_hz, padding=padding).to(device)
    load = load_convolutions if is_objective(name) else load_transformer
    return load(name, layer=layer, padding=padding, arithmetic=arithmetic, half=half).to(device)

"""vq-wav2vec's convolutions as an encoder: what its quantizer sees, at 100 Hz, for recordings of any length.

Every convolution is followed by a norm over all channels and the whole recording, so a frame depends on every sample
through the moments of each layer.  Those are taken first, layer by layer, and then each layer is only a scale and a
shift: in blocks of any number the features are those of the whole, and there are no windows.  Of a recording too long
to hold, the layers below are computed once more for each norm.

The quantizer was learned together with the convolutions.  With "kmeans" the features are the projection that is
compared with the codes; with "gumbel" they are the logits of the codes, of which the unit is the largest, and that is
the nearest of the unit vectors.  Either way `codebooks` makes the quantizer of a tokenizer.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unitkit import config as configs
from unitkit.encoders.blocks import Moments, hop_and_field, slices
from unitkit.encoders.engines import FLOAT32, Arithmetic
from unitkit.encoders.filterbanks import JSON, OpenWav, WavEncoder
from unitkit.encoders.weights import digest, round_to_half, write_weights

CONFIG, WEIGHTS = "objective.yaml", "objective.safetensors"  # what a pre-training objective is saved in
CODEBOOK = "quantizer.centroids"
QUANTIZERS = ("kmeans", "gumbel")
CHUNK_FRAMES = 4096  # frames of a layer computed at a time, counted from the start of the recording
HELD_BYTES = 200_000_000  # most of a layer that is kept for the next one; of longer recordings it is computed again
EPSILON = 1e-5  # of the norms: torch's default

Rows = Callable[[], Iterator[Tensor]]  # blocks (frames, channels), from the start each time


@dataclass(frozen=True)
class ConvConfig:
    """Convolutions and quantizer; the defaults are the small size, at 100 Hz from 16 kHz."""

    quantizer: str = "kmeans"  # kmeans | gumbel
    dim: int = 64
    kernels: tuple[int, ...] = (10, 8, 4, 4, 4)
    strides: tuple[int, ...] = (5, 4, 2, 2, 2)
    groups: int = 2
    codes: int = 32  # of each group; the groups share one codebook

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.quantizer not in QUANTIZERS:
            raise ValueError(f"quantizer {self.quantizer!r} is unknown; known: {', '.join(QUANTIZERS)}")
        if self.dim % self.groups or len(self.kernels) != len(self.strides):
            raise ValueError(
                f"dim {self.dim} must be a multiple of groups {self.groups}, with a stride for each kernel"
            )


@dataclass(frozen=True)
class _Layer:
    """A convolution, the norm after it, over `norms` groups of channels, and what is done then."""

    weight: Tensor  # (out, in / groups, kernel)
    scale: Tensor  # (out,) of the norm
    shift: Tensor
    stride: int = 1
    groups: int = 1
    norms: int = 1
    activation: Callable[[Tensor], Tensor] = F.relu

    def convolved(self, source: Rows) -> Iterator[Tensor]:
        """Blocks (frames, in) to blocks (CHUNK_FRAMES, out), the last one shorter, whatever blocks the source has."""
        kernel, step = self.weight.shape[2], CHUNK_FRAMES * self.stride
        spans = ((first, first + step + kernel - self.stride) for first in count(0, step))
        for rows in slices(source(), spans):
            if len(rows) < kernel:
                return
            yield F.conv1d(rows.T[None], self.weight, stride=self.stride, groups=self.groups)[0].T.contiguous()

    def norm(self, blocks: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """Scale and shift (out,) float32 that the norm of these blocks (frames, out) amounts to."""
        moments = Moments()
        for block in blocks:
            moments.add(block.cpu().unflatten(1, (self.norms, -1)).transpose(1, 2).flatten(0, 1))
        width = len(self.scale) // self.norms
        deviation = torch.sqrt(moments.variance(unbiased=False) + EPSILON).repeat_interleave(width)
        scale = self.scale.cpu().double() / deviation
        shift = self.shift.cpu().double() - scale * moments.mean.repeat_interleave(width)
        return scale.float().to(self.scale.device), shift.float().to(self.scale.device)

    def finished(self, source: Rows, norm: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
        """Blocks of the convolution, normalised."""
        for block in source():
            yield self.activation(block * norm[0] + norm[1])


def _normalised(layer: _Layer, source: Rows, *, held: bool) -> Rows:
    """The blocks of a layer; where they are not held, each pass computes them from the samples on."""
    convolved = partial(layer.convolved, source)
    blocks: Rows = partial(iter, list(convolved())) if held else convolved
    return partial(layer.finished, blocks, layer.norm(blocks()))


def _compressed(x: Tensor) -> Tensor:
    return torch.log1p(F.relu(x))


class ConvEncoder(WavEncoder):
    """Wav to the features that vq-wav2vec's quantizer decides by: (frames, dim), or (frames, groups * codes)."""

    name = "vq-wav2vec"

    def __init__(self, config: ConvConfig, weights: Mapping[str, Tensor], *, source: str = "vq-wav2vec") -> None:
        """`weights` are named as in the objective; raises ValueError for one that is missing or does not fit."""
        self.config = config
        self.hop, self.field = hop_and_field(config.kernels, config.strides)
        self.min_samples = self.field
        self.dim = config.dim if config.quantizer == "kmeans" else config.groups * config.codes
        self.tensors = _chosen(config, weights, source)
        self.codebooks = _codebooks(config, weights)
        self.device = next(iter(self.tensors.values())).device

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        return max(0, (n_samples - self.field) // self.hop + 1)

    def settings(self) -> dict[str, JSON]:
        """Everything that changes the features; "weights" is the sha256 of the parameters used."""
        return {
            "features": self.name,
            "quantizer": self.config.quantizer,
            "padding": "none",
            "sample_rate": self.sample_rate,
            "rate_hz": self.rate_hz,
            "statistics": "recording",
            "architecture": {"conv_kernel": list(self.config.kernels), "conv_stride": list(self.config.strides)},
            "groups": self.config.groups,
            "weights": self.weights,
        }

    @cached_property
    def weights(self) -> str:
        """sha256 over name, shape and float32 bytes of every parameter used."""
        return digest(self.tensors)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the layers and their configuration, without the codes and what only training needs."""
        configs.save(self.config, Path(directory, CONFIG))
        write_weights(self.tensors, Path(directory, WEIGHTS))

    def to(self, device: str | torch.device) -> Self:
        """Move to a device and return the encoder."""
        self.device = torch.device(device)
        self.tensors = {name: tensor.to(self.device) for name, tensor in self.tensors.items()}
        return self

    def _stream(self, open_wav: OpenWav) -> Iterator[Tensor]:
        samples, held = self._held(open_wav)
        rows: Rows = partial(self._columns, samples)
        for layer in self._layers():
            rows = _normalised(layer, rows, held=held)
        for block in rows():
            yield self._logits(block) if self.config.quantizer == "gumbel" else block

    def _held(self, open_wav: OpenWav) -> tuple[Callable[[], Iterator[Tensor]], bool]:
        """The chunks of a recording, and whether its layers can be held; longer recordings are read for each pass."""
        limit = HELD_BYTES // (4 * self.config.dim) * self.config.strides[0]
        chunks: list[Tensor] = []
        total = 0
        for chunk in self._samples(open_wav):
            chunks.append(chunk)
            total += len(chunk)
            if total > limit:
                return partial(self._samples, open_wav), False
        return partial(iter, chunks), True

    def _columns(self, samples: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
        """Chunks (samples,) as rows of one channel."""
        for chunk in samples():
            yield chunk.to(self.device)[:, None]

    def _layers(self) -> list[_Layer]:
        tensors, c = self.tensors, self.config
        made = []
        for number, stride in enumerate(c.strides):
            weight, norm = f"encoder.layers.{4 * number}.weight", f"encoder.layers.{4 * number + 2}."
            activation = _compressed if number == len(c.strides) - 1 else F.relu
            affine = tensors[f"{norm}weight"], tensors[f"{norm}bias"]
            made.append(_Layer(tensors[weight], *affine, stride=stride, activation=activation))
        if c.quantizer == "kmeans":
            affine = tensors["quantizer.projection.1.weight"], tensors["quantizer.projection.1.bias"]
            weight, keep = tensors["quantizer.projection.0.weight"], torch.clone
            made.append(_Layer(weight, *affine, groups=c.groups, norms=c.groups, activation=keep))
        return made

    def _logits(self, rows: Tensor) -> Tensor:
        """Logits (frames, groups * codes) of the Gumbel quantizer."""
        first, second = (
            (self.tensors[f"quantizer.logits.{number}.weight"], self.tensors[f"quantizer.logits.{number}.bias"])
            for number in (0, 2)
        )
        return F.linear(F.relu(F.linear(rows, *first)), *second)


# ------------------------------------------------------------------------------------------------------------- files


def is_objective(name: str) -> bool:
    """Whether a directory holds an objective whose encoder is not in a layout of transformers."""
    return Path(name, CONFIG).is_file() and not Path(name, "config.json").is_file()


def load_convolutions(
    directory: str, *, layer: int | None, padding: str, arithmetic: Arithmetic, half: bool = False
) -> ConvEncoder:
    """The encoder of a saved vq-wav2vec, or of a tokenizer made with one; see `load_encoder`."""
    if layer is not None:
        raise ValueError(f"{directory} is a vq-wav2vec, which has no layers, but layer={layer} was asked for")
    if arithmetic not in (FLOAT32, Arithmetic(engine="plain")):
        asked = f"{arithmetic.precision} on engine {arithmetic.engine!r}"
        raise ValueError(f"{directory} is a vq-wav2vec, which runs in float32 only, not in {asked}")
    path = Path(directory, WEIGHTS)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    weights = {name: tensor.float() for name, tensor in weights.items()}
    encoder = ConvEncoder(_read_config(Path(directory, CONFIG)), weights, source=directory)
    encoder._known_padding(padding)
    if half:
        round_to_half(encoder.tensors, directory)
    return encoder


def _read_config(path: Path) -> ConvConfig:
    """What an encoder needs of an objective's settings."""
    known = [field.name for field in fields(ConvConfig)]
    try:
        values: Any = OmegaConf.load(path)
        if missing := [name for name in known if name not in values]:
            raise ValueError(f"not of a vq-wav2vec: it lacks {', '.join(missing)}")
        typed = OmegaConf.merge(OmegaConf.structured(ConvConfig), {name: values[name] for name in known})
        plain: Any = OmegaConf.to_container(typed, resolve=True)
        found: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in plain.items()}
        return ConvConfig(**found)
    except Exception as error:  # PyYAML and OmegaConf have a dozen exception types; all of them mean a bad file
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _shapes(config: ConvConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that features are computed with."""
    c, shapes, channels = config, dict[str, tuple[int, ...]](), 1
    for number, kernel in enumerate(c.kernels):
        shapes[f"encoder.layers.{4 * number}.weight"] = (c.dim, channels, kernel)
        shapes |= {f"encoder.layers.{4 * number + 2}.{name}": (c.dim,) for name in ("weight", "bias")}
        channels = c.dim
    if c.quantizer == "kmeans":
        shapes["quantizer.projection.0.weight"] = (c.dim, c.dim // c.groups, 1)
        return shapes | {f"quantizer.projection.1.{name}": (c.dim,) for name in ("weight", "bias")}
    for number, out, into in ((0, 2 * c.dim, c.dim), (2, c.groups * c.codes, 2 * c.dim)):
        shapes |= {f"quantizer.logits.{number}.weight": (out, into), f"quantizer.logits.{number}.bias": (out,)}
    return shapes


def _chosen(config: ConvConfig, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    for name, shape in _shapes(config).items():
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found != shape:
            raise ValueError(f"{source}: {name} should be {shape}, as {CONFIG} says, but there is {found}")
    return {name: weights[name] for name in _shapes(config)}


def _codebooks(config: ConvConfig, weights: Mapping[str, Tensor]) -> Tensor | None:
    if CODEBOOK not in weights:
        return None
    centroids = weights[CODEBOOK]
    book = centroids if config.quantizer == "kmeans" else torch.eye(config.codes, device=centroids.device)
    return book.expand(config.groups, -1, -1).contiguous()

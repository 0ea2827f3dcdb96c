"""Several layers of one encoder from one run of the deepest, bit for bit those of encoders cut at each.

The layers lie side by side in one array (frames, layers * dim), so whatever cuts, streams or samples features does so
for all of them alike.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitkit.encoders import FILTERBANKS, Encoder, load_encoder
from unitkit.encoders.checkpoints import FAMILIES, MODELS
from unitkit.encoders.fast import FastWaveform
from unitkit.encoders.transformer import Survey, TransformerEncoder
from unitkit.sweep.specs import EncoderSpec, SweepError

Layer = int | None  # None: an encoder without layers


class Layers:
    """`encoder` gives the features of `layers`, in rising order and each once, side by side; each has `dim` columns."""

    def __init__(self, features: str, layers: Sequence[Layer], *, device: str = "cpu") -> None:
        numbers = sorted({layer for layer in layers if layer is not None})
        self.encoder: Encoder = load_encoder(features, layer=numbers[-1] if numbers else None, device=device)
        self.layers: tuple[Layer, ...] = tuple(numbers) or (None,)
        self.dim = self.encoder.dim
        if len(numbers) > 1:
            if not isinstance(self.encoder, TransformerEncoder):
                raise SweepError(f"{features!r} has no layers to choose from; leave out {numbers}")
            _widen(self.encoder, numbers)

    def split(self, features: np.ndarray) -> Iterator[tuple[Layer, np.ndarray]]:
        """Each layer with its columns of `features`, copied."""
        for place, layer in enumerate(self.layers):
            yield layer, np.ascontiguousarray(features[:, place * self.dim : (place + 1) * self.dim])


def layers_of(spec: EncoderSpec) -> list[Layer]:
    """The layers that a spec names; of an encoder with layers for which none is named, the one in the middle."""
    if spec.features in FILTERBANKS:
        if spec.layers or spec.every:
            raise SweepError(f"{spec.features} has no layers; write --encoder {spec.features}")
        return [None]
    if spec.layers:
        return list(spec.layers)
    encoder = load_encoder(spec.features, layer=0 if spec.every else None)
    if not isinstance(encoder, TransformerEncoder):
        if spec.every:
            raise SweepError(f"{spec.features!r} has no layers to go over; write it without ':all'")
        return [None]
    return list(range(1, _depth(spec.features) + 1)) if spec.every else [encoder.layer]


def _depth(features: str) -> int:
    """How many layers a checkpoint has."""
    from transformers import AutoConfig

    source = features if os.path.isdir(features) else MODELS.get(features, features)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return int(getattr(config, FAMILIES[config.model_type].layers))


def _widen(encoder: TransformerEncoder, layers: Sequence[int]) -> None:
    """Make an encoder give the outputs of several layers, the last its own, for every window that it runs."""
    caught: dict[int, Tensor] = {}
    if encoder.engine == "fast":
        _listen_fast(encoder, caught)
    else:
        _listen_plain(encoder, caught)
    run = encoder._run

    def wide(rows: Tensor, n_frames: int, survey: Survey) -> Tensor:
        caught[encoder.layer] = run(rows, n_frames, survey)
        found = torch.cat([caught[layer][:n_frames] for layer in layers], dim=1)
        caught.clear()
        return found

    # The one step of a window that sees a layer: before it nothing depends on layers, after it only rows are cut.
    encoder._run = wide  # type: ignore[method-assign]


def _listen_plain(encoder: TransformerEncoder, caught: dict[int, Tensor]) -> None:
    """Catch the input of the first layer and the output of each as transformers' own modules pass them on."""
    model = encoder.model
    layers = model.layers if hasattr(model, "layers") else model.encoder.layers

    def keep(number: int, hidden: Any) -> None:
        caught[number] = (hidden[0] if isinstance(hidden, tuple) else hidden)[0].float()

    layers[0].register_forward_pre_hook(lambda _, given: keep(0, given[0]))
    for number, layer in enumerate(layers, 1):
        layer.register_forward_hook(lambda _, given, found, number=number: keep(number, found))


def _listen_fast(encoder: Any, caught: dict[int, Tensor]) -> None:
    """The same on the engine for the CPU, whose layers are plain functions of (frames, dim)."""
    engine = FastWaveform(encoder.model, layer=encoder.layer)
    layers: list[Any] = list(engine.layers)

    def heard(number: int, layer: Callable[[Tensor, Tensor | None], Tensor]) -> Callable[..., Tensor]:
        def call(hidden: Tensor, bias: Tensor | None) -> Tensor:
            caught[number - 1] = hidden
            return layer(hidden, bias)

        return call

    engine.layers = [heard(number, layer) for number, layer in enumerate(layers, 1)]  # type: ignore[misc]
    encoder._built = engine

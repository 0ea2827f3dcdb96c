"""What computes a transformers model, and in which precision: transformers' modules, our CPU path, or OpenVINO."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16", "int8")
ENGINES = {"plain": ("float32", "bfloat16"), "fast": ("float32", "bfloat16"), "openvino": PRECISIONS}
WAVEFORM = ("hubert", "wav2vec2", "wavlm", "data2vec-audio")  # families whose engine can be chosen


class Engine(Protocol):
    """A model on an engine of its own, one file at a time."""

    def hidden(self, signal: Tensor, norm: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Samples (samples,) as the model takes them to layer output (frames, dim) float32."""


@dataclass(frozen=True)
class Arithmetic:
    """Precision and engine asked for; "auto" is fast on a CPU where it covers the model, plain elsewhere."""

    precision: str = "float32"
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what no engine does."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.engine != "auto" and self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}; known: auto, {', '.join(ENGINES)}")
        if self.engine != "auto" and self.precision not in ENGINES[self.engine]:
            able = [name for name, precisions in ENGINES.items() if self.precision in precisions]
            raise ValueError(f"engine {self.engine!r} does not do {self.precision}; use {' or '.join(able)}")


FLOAT32 = Arithmetic()


def resolve(arithmetic: Arithmetic, config: Any, device: torch.device) -> str:
    """The engine for a model on a device; raises ValueError where the one asked for cannot run it."""
    engine = arithmetic.engine
    if engine == "auto":
        if arithmetic.precision == "int8":
            engine = "openvino"
        else:
            return "fast" if device.type == "cpu" and _covers("fast", config) else "plain"
    if engine == "plain":
        return engine
    if not _covers(engine, config):
        families = ", ".join(WAVEFORM)
        raise ValueError(
            f"engine {engine!r} ({arithmetic.precision}) does not cover this {config.model_type} model; "
            f"it is for {families} with GELU and without adapters. Use engine='plain' with float32 or bfloat16"
        )
    if device.type != "cpu":
        raise ValueError(f"engine {engine!r} runs on the CPU, not on {device}; use engine='plain' or device='cpu'")
    return engine


def _covers(engine: str, config: Any) -> bool:
    if config.model_type not in WAVEFORM:
        return False
    if engine == "fast":
        import unitkit.encoders.fast as fast

        return fast.supports(config)
    return True


def build(engine: str, model: Any, *, layer: int, precision: str) -> Engine:
    """The model on the "fast" or "openvino" engine; the weights are held a second time."""
    if engine == "fast":
        from unitkit.encoders.fast import FastWaveform

        return FastWaveform(model, layer=layer, precision=precision)
    from unitkit.encoders.openvino import OpenVinoWaveform

    return OpenVinoWaveform(model, layer=layer, precision=precision)

"""HuBERT, wav2vec 2.0, WavLM and data2vec-audio run by OpenVINO on a CPU, one file at a time: bfloat16 and int8.

The extra `openvino`. The graph is that of transformers, cut at the layer, converted when the encoder is made.
int8 is post-training quantization by NNCF, calibrated on the half minute of speech in unitkit/bundled.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitkit.audio import read
from unitkit.encoders.fast import MODEL_TYPES, Norm, check_layer, check_precision, field_and_hop, group_norm_of

PRECISIONS = ("float32", "bfloat16", "int8")
CALIBRATION = Path(__file__).parents[1] / "bundled" / "calibration.flac"
CALIBRATION_SECONDS = 4  # of one piece; about the length of an utterance
RATE = 16000


class OpenVinoWaveform:
    """The output of layer `layer` of a waveform model, after the residual; 0 is the input of the first layer."""

    def __init__(self, model: Any, *, layer: int, precision: str = "bfloat16") -> None:
        """Convert a transformers `model`; raises ImportError without the extra, ValueError where it cannot run."""
        openvino = _openvino()
        check_precision(precision, PRECISIONS)
        check_layer(model, layer)
        if model.config.model_type not in MODEL_TYPES:
            raise ValueError(f"no OpenVINO for {model.config.model_type!r} models; known: {', '.join(MODEL_TYPES)}")
        core = openvino.Core()
        if precision != "float32" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError(f"this processor has no bfloat16, so no {precision} in OpenVINO; use precision='float32'")
        self.layer, self.precision = layer, precision
        first = model.feature_extractor.conv_layers[0]
        self.grouped = first if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm) else None
        self.field, _ = field_and_hop(model.feature_extractor)
        graph = _graph(openvino, _Cut(model, layer), self._inputs(torch.ones(RATE), None))
        if precision == "int8":
            graph = _quantized(graph, [self._inputs(piece, None) for piece in _pieces(normalize=self.grouped is None)])
        self.compiled = core.compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,  # several processes would share one core
            },
        )
        # OpenVINO 2026.4 gives wrong results from the second call on if the first was of a single frame.
        self.hidden(torch.zeros(RATE))

    def hidden(self, signal: Tensor, norm: Norm | None = None) -> Tensor:
        """Layer output (frames, dim) float32 of a signal (samples,), normalised and padded as the model wants it.

        `norm` is (scale, shift) of the first group norm from the statistics of a longer recording that the signal is
        cut from; by default they are taken from the signal. Raises ValueError if the signal has not one frame.
        """
        if len(signal) < self.field:
            raise ValueError(f"{len(signal)} samples give no frame; at least {self.field} are needed")
        result = self.compiled([value.numpy() for value in self._inputs(signal.detach().float(), norm)])[0]
        return torch.from_numpy(result[0].copy())

    def _inputs(self, signal: Tensor, norm: Norm | None) -> tuple[Tensor, ...]:
        """What goes into the graph: the signal (1, samples), and scale and shift in base style."""
        if self.grouped is None:
            return (signal[None],)
        scale, shift = norm or group_norm_of(self.grouped, signal)
        return signal[None], scale.float(), shift.float()


class _Cut(nn.Module):
    """The model up to a layer, without the final norm, and with the first group norm as an input."""

    def __init__(self, model: Any, layer: int) -> None:
        super().__init__()
        self.extractor, self.projection = model.feature_extractor, model.feature_projection
        # A copy of the shell alone: the model given is left as it is, and weights are shared.
        self.encoder = copy.copy(model.encoder)
        self.encoder._modules = dict(model.encoder._modules)
        self.encoder.layers = model.encoder.layers[:layer]
        if getattr(model.config, "do_stable_layer_norm", False):
            self.encoder.layer_norm = nn.Identity()

    def forward(self, signal: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """(1, samples) to (1, frames, dim)."""
        first, *rest = self.extractor.conv_layers
        hidden = signal[:, None]
        if scale is None or shift is None:
            hidden = first(hidden)
        else:  # the norm takes the bias of the convolution out, so it is left out
            hidden = nn.functional.conv1d(hidden, first.conv.weight, stride=first.conv.stride)
            hidden = first.activation(hidden * scale[:, None] + shift[:, None])
        for layer in rest:
            hidden = layer(hidden)
        projected = self.projection(hidden.transpose(1, 2))  # some families also return what they projected
        projected = projected[0] if isinstance(projected, tuple) else projected
        return self.encoder(projected).last_hidden_state


def _graph(openvino: Any, cut: _Cut, inputs: tuple[Tensor, ...]) -> Any:
    """The OpenVINO graph of a model, for signals of any length."""
    with torch.no_grad(), warnings.catch_warnings():
        # transformers asks whether there is more than one frame; the answer is the same on every path taken here.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return openvino.convert_model(cut.eval(), example_input=inputs)


def _quantized(graph: Any, samples: list[tuple[Tensor, ...]]) -> Any:
    """The graph with int8 products in the transformer layers; the convolutions stay in bfloat16.

    HuBERT-base size, layer 6, random weights: error .033 of the features' standard deviation. With the convolutions in
    int8 as well it is .40, for 1.3 times the speed: loud and soft speech do not fit one scale before the first norm.
    """
    import nncf

    data = nncf.Dataset([[value.numpy() for value in sample] for sample in samples])
    left = nncf.IgnoredScope(types=["Convolution", "GroupConvolution"], validate=False)
    with _quiet(nncf):
        return nncf.quantize(
            graph,
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=left,
        )


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """NNCF without its progress bars, and without its reports of what was left out on purpose."""
    level = nncf.nncf_logger.level
    nncf.set_log_level(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        nncf.set_log_level(level)


def _pieces(*, normalize: bool) -> Iterator[Tensor]:
    """The calibration speech in pieces (samples,), with zero mean and unit variance for large-style models."""
    wav = torch.from_numpy(read(CALIBRATION, RATE))
    for piece in wav.split(CALIBRATION_SECONDS * RATE):
        yield (piece - piece.mean()) / piece.std() if normalize else piece


def _openvino() -> Any:
    try:
        import nncf  # noqa: F401
        import openvino
    except ImportError as error:
        raise ImportError(f"the OpenVINO engine needs the extra: pip install 'unitkit[openvino]' ({error})") from error
    return openvino

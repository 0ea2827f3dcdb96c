"""HuBERT, wav2vec 2.0, WavLM and data2vec-audio on a CPU, one file at a time: the layers asked for, no padding.

The numbers are those of transformers to float32 rounding; only the way there is shorter. Every product of matrices is
one call of oneDNN on weights packed once, with bias and GELU inside the call. So the weights are held a second time.
"""

from collections.abc import Collection
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.encoders.group_norm import WindowSums

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODEL_TYPES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio")
CHUNK_FRAMES = 64  # frames that go through the convolutions together: what they need stays in the cache
CHUNK_QUERIES = 512  # rows of the attention that hold a position bias at once
FFT_KERNEL = 32  # from this length on, the positional convolution is faster by FFT

Norm = tuple[Tensor, Tensor]  # (scale, shift) per channel


def supports(config: Any) -> bool:
    """Whether `FastWaveform` covers models of this transformers config; what it does not cover runs in transformers."""
    activations = {getattr(config, "hidden_act", None), getattr(config, "feat_extract_activation", None)}
    # Each of these adds a computation that is not done here.
    extras = ("conv_pos_batch_norm", "add_adapter", "adapter_attn_dim")
    return (
        getattr(config, "model_type", None) in MODEL_TYPES
        and activations == {"gelu"}
        and getattr(config, "feat_extract_norm", "layer") in ("group", "layer")
        and not any(getattr(config, name, None) for name in extras)
    )


class FastWaveform:
    """The output of layer `layer` of a waveform model, after the residual; 0 is the input of the first layer.

    bfloat16 is for the products alone: the first convolution, norms, the positional convolution and the sum that runs
    through the layers stay in float32, which costs next to nothing and keeps half of the error away.
    """

    def __init__(self, model: Any, *, layer: int, precision: str = "float32") -> None:
        """Pack the weights of a transformers `model`; raises ValueError where it is not covered."""
        check_precision(precision, PRECISIONS)
        config, dtype = model.config, PRECISIONS[precision]
        if not supports(config):
            raise ValueError(f"the fast engine does not cover this {config.model_type!r} model; use engine='plain'")
        check_layer(model, layer)
        self.config, self.layer, self.precision = config, layer, precision
        self.pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self.front = _FrontEnd(model.feature_extractor, dtype)
        self.feature_norm = _LayerNorm.of(getattr(model.feature_projection, "layer_norm", None))
        self.projection = _Linear.of(model.feature_projection.projection, dtype)
        self.position = _Positions(model.encoder.pos_conv_embed)
        self.first_norm = None if self.pre_norm else _LayerNorm.of(model.encoder.layer_norm)
        layers = model.encoder.layers[:layer]
        self.bias = _RelativeBias(layers[0].attention) if config.model_type == "wavlm" and layer else None
        self.layers = [_Layer(one, config, dtype) for one in layers]

    @torch.no_grad()
    def hidden(self, signal: Tensor, norm: Norm | None = None) -> Tensor:
        """Layer output (frames, dim) float32 of a signal (samples,), normalised and padded as the model wants it.

        `norm` is (scale, shift) of the first group norm from the statistics of a longer recording that the signal is
        cut from; by default they are taken from the signal. Raises ValueError if the signal has not one frame.
        """
        features = self.front(signal.detach().float().contiguous(), norm)
        if self.feature_norm is not None:
            features = self.feature_norm(features)
        hidden = self.projection(features).float()
        hidden = hidden + self.position(hidden)
        if self.first_norm is not None:
            hidden = self.first_norm(hidden)
        bias = None if self.bias is None else self.bias(len(hidden))
        for layer in self.layers:
            hidden = layer(hidden, bias)
        return hidden


def check_precision(precision: str, known: Collection[str]) -> None:
    """Raise ValueError unless `precision` is among the `known` ones."""
    if precision not in known:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(known)}")


def check_layer(model: Any, layer: int) -> None:
    """Raise ValueError unless the model has this layer."""
    if not 0 <= layer <= len(model.encoder.layers):
        raise ValueError(f"no layer {layer}; known: 0 (input of the first layer) to {len(model.encoder.layers)}")


def field_and_hop(extractor: Any) -> tuple[int, int]:
    """Samples that one frame sees, and samples from frame to frame, of a stack of convolutions."""
    field, hop = 1, 1
    for layer in extractor.conv_layers:
        field += (layer.conv.kernel_size[0] - 1) * hop
        hop *= layer.conv.stride[0]
    return field, hop


def group_norm_of(layer: Any, signal: Tensor) -> Norm:
    """(scale, shift) float64 of the group norm after the first convolution, `layer`, from all windows of the signal."""
    sums = WindowSums(layer.conv.kernel_size[0], layer.conv.stride[0])
    sums.add(signal)
    norm = layer.layer_norm
    return sums.affine(layer.conv.weight, norm.weight, norm.bias, norm.eps)


class _Linear:
    """x @ weight.T + bias, then GELU if asked for, in `dtype`.

    oneDNN with packed weights is up to 2.3 times as fast as F.linear in float32 (MKL holds back on AMD); it also adds
    the bias and takes the GELU before results leave the registers, in bfloat16 before they are rounded.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, gelu: bool = False) -> None:
        weight = weight.detach().to(dtype).contiguous()
        self.dtype, self.gelu = dtype, gelu
        self.packed = _has_onednn(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        self.bias = None if bias is None else bias.detach().to(dtype)

    @classmethod
    def of(cls, linear: nn.Linear, dtype: torch.dtype, *, gelu: bool = False) -> "_Linear":
        return cls(linear.weight, linear.bias, dtype=dtype, gelu=gelu)

    def __call__(self, x: Tensor) -> Tensor:
        return _linear(x.to(self.dtype), self.weight, self.bias, gelu=self.gelu)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    if _has_onednn(x.dtype):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build and this processor have the calls we use (ARM and macOS builds do not)."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "none")
    except (AttributeError, RuntimeError):
        return False
    return bool((y == 3).all())


class _LayerNorm:
    """Layer norm over the last axis, in float32 whatever comes in."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight = None if norm.weight is None else norm.weight.detach().float()
        self.bias = None if norm.bias is None else norm.bias.detach().float()

    @classmethod
    def of(cls, norm: Any) -> "_LayerNorm | None":
        return None if norm is None else cls(norm)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.shape, self.weight, self.bias, self.eps)


class _Convolution:
    """One convolution of the front end as one matrix product over its windows, which overlap in memory.

    Frames are rows and channels lie side by side, so a window is a contiguous run of memory and needs no im2col.
    """

    def __init__(self, conv: nn.Conv1d, norm: _LayerNorm | None, dtype: torch.dtype) -> None:
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        weight = conv.weight.permute(0, 2, 1).flatten(1)  # (out, kernel · in)
        self.norm = norm
        self.linear = _Linear(weight, conv.bias, dtype=dtype, gelu=norm is None)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.linear(_windows(x.to(self.linear.dtype), self.kernel, self.stride))
        return y if self.norm is None else F.gelu(self.norm(y))


class _NormedConvolution:
    """The first convolution with its group norm folded into weight and bias: no pass over its large output.

    The bias of the convolution has no say, the norm takes it out. Always float32: its share of the work is 0.3 %,
    and a rounded waveform would be the largest error of all.
    """

    def __init__(self, layer: Any, norm: Norm) -> None:
        scale, shift = (value.double() for value in norm)
        self.kernel, self.stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self.weight = (layer.conv.weight.detach()[:, 0].double() * scale[:, None]).float()
        self.bias = shift.float()

    def __call__(self, x: Tensor) -> Tensor:
        return _linear(_windows(x, self.kernel, self.stride), self.weight, self.bias, gelu=True)


def _windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(rows, channels) as overlapping windows (windows, kernel · channels), a view."""
    rows, channels = x.shape
    return x.as_strided(((rows - kernel) // stride + 1, kernel * channels), (stride * channels, 1))


class _FrontEnd:
    """The convolutions on the waveform, of base style (one group norm) or large style (layer norms).

    A few frames at a time go through all of them: the first two write 3200 and 1600 rows per second of audio, and
    chunks keep those in the cache. The rows that neighbouring chunks share are computed twice (under 1 %).
    """

    def __init__(self, extractor: Any, dtype: torch.dtype) -> None:
        first, *rest = extractor.conv_layers
        self.field, self.hop = field_and_hop(extractor)
        self.grouped = first if isinstance(first.layer_norm, nn.GroupNorm) else None
        self.convolutions = [
            _Convolution(layer.conv, _LayerNorm.of(getattr(layer, "layer_norm", None)), dtype) for layer in rest
        ]
        if self.grouped is None:
            self.convolutions.insert(0, _Convolution(first.conv, _LayerNorm.of(first.layer_norm), torch.float32))

    def __call__(self, signal: Tensor, norm: Norm | None) -> Tensor:
        frames = (len(signal) - self.field) // self.hop + 1
        if frames < 1:
            raise ValueError(f"{len(signal)} samples give no frame; at least {self.field} are needed")
        chain: list[_Convolution | _NormedConvolution] = [*self.convolutions]
        if self.grouped is not None:
            chain.insert(0, _NormedConvolution(self.grouped, norm or group_norm_of(self.grouped, signal)))
        return torch.cat([self._chunk(signal, chain, start, frames) for start in range(0, frames, CHUNK_FRAMES)])

    def _chunk(self, signal: Tensor, chain: list[Any], start: int, frames: int) -> Tensor:
        last = min(start + CHUNK_FRAMES, frames) - 1
        x = signal[start * self.hop : last * self.hop + self.field, None]
        for convolution in chain:
            x = convolution(x)
        return x


class _GroupedConvolution:
    """A convolution over frames that keeps their number, in float32; long kernels by FFT in overlapping blocks.

    The FFT needs 25 times fewer operations at HuBERT's 128 taps and is as exact. Weight norm is folded.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        self.groups, self.kernel = conv.groups, conv.kernel_size[0]
        self.weight = conv.weight.detach().float().contiguous()  # (out, in / groups, kernel)
        self.bias = 0 if conv.bias is None else conv.bias.detach().float()
        self.block = 2 ** (2 * self.kernel - 1).bit_length() if self.kernel >= FFT_KERNEL else 0
        if self.block:
            spectra = torch.fft.rfft(self.weight.flip(-1), self.block)  # flipped: a convolution layer correlates
            spectra = spectra.unflatten(0, (self.groups, -1))  # (groups, out, in, frequencies)
            self.weight = spectra.permute(3, 0, 2, 1).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(frames, dim) to (frames, dim): zeros on both sides; an even kernel has one more of them before."""
        before, after = self.kernel // 2, (self.kernel - 1) // 2
        if not self.block:
            return F.conv1d(F.pad(x.T, (before, after)), self.weight, groups=self.groups).T + self.bias
        step = self.block - self.kernel + 1
        blocks = -(-len(x) // step)
        padded = F.pad(x, (0, 0, before, after + blocks * step - len(x)))
        spectra = torch.fft.rfft(padded.unfold(0, self.block, step))  # (blocks, dim, frequencies)
        spectra = spectra.unflatten(1, (self.groups, -1)).permute(3, 1, 0, 2)  # (frequencies, groups, blocks, in)
        spectra = torch.matmul(spectra, self.weight).permute(2, 1, 3, 0).flatten(1, 2)  # (blocks, dim, frequencies)
        y = torch.fft.irfft(spectra, self.block)[..., self.kernel - 1 :]  # the samples that did not wrap around
        return y.transpose(1, 2).flatten(0, 1)[: len(x)] + self.bias


class _Positions:
    """What is added to the projected features: convolution, norm (data2vec) and GELU, once or several times over."""

    def __init__(self, module: Any) -> None:
        parts = getattr(module, "layers", [module])  # data2vec has a stack of them
        self.steps = [(_GroupedConvolution(p.conv), _LayerNorm.of(getattr(p, "layer_norm", None))) for p in parts]

    def __call__(self, x: Tensor) -> Tensor:
        for convolution, norm in self.steps:
            x = convolution(x)
            x = F.gelu(x if norm is None else norm(x))
        return x


class _Layer:
    """One transformer layer, with its norms after (base) or before (large) attention and feed-forward."""

    def __init__(self, layer: Any, config: Any, dtype: torch.dtype) -> None:
        self.pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self.attention = _Attention(layer.attention, dtype)
        self.up = _Linear.of(layer.feed_forward.intermediate_dense, dtype, gelu=True)
        self.down = _Linear.of(layer.feed_forward.output_dense, dtype)
        self.norm, self.final_norm = _LayerNorm(layer.layer_norm), _LayerNorm(layer.final_layer_norm)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.pre_norm:
            x = x + self.attention(self.norm(x), bias)
            return x + self.down(self.up(self.final_norm(x)))
        x = self.norm(x + self.attention(x, bias))
        return self.final_norm(x + self.down(self.up(x)))


class _Attention:
    """Self-attention with one product for queries, keys and values; WavLM adds a gated position bias."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        self.heads = attention.num_heads
        self.qkv = _Linear(weight, bias, dtype=dtype)
        self.out = _Linear.of(attention.out_proj, dtype)
        self.gate = _Gate(attention) if hasattr(attention, "gru_rel_pos_linear") else None

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).view(1, len(x), 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (1, heads, frames, dim)
        if self.gate is None or bias is None:
            return self.out(_joined(F.scaled_dot_product_attention(q, k, v)))
        gate = self.gate(x)
        parts = []
        # The gate differs by row, so the bias must be written out: (heads, rows, frames), not all rows at once.
        for start in range(0, len(x), CHUNK_QUERIES):
            rows = slice(start, min(start + CHUNK_QUERIES, len(x)))
            mask = (gate[:, rows] * bias[:, len(x) - rows.stop : len(x) - rows.start].flip(1)).to(q.dtype)
            parts.append(_joined(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask[None])))
        return self.out(torch.cat(parts))


def _joined(heads: Tensor) -> Tensor:
    """(1, heads, frames, head dim) as (frames, dim)."""
    return heads[0].transpose(0, 1).flatten(1)


class _Gate:
    """How much each query of a layer of WavLM heeds the position bias: (heads, frames, 1), from its input."""

    def __init__(self, attention: Any) -> None:
        linear = attention.gru_rel_pos_linear
        self.weight, self.bias = linear.weight.detach().float(), linear.bias.detach().float()
        self.constant = attention.gru_rel_pos_const.detach().float().view(-1, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        by_head = x.unflatten(1, (len(self.constant), -1)).transpose(0, 1)  # (heads, frames, head dim)
        a, b = F.linear(by_head, self.weight, self.bias).unflatten(2, (2, 4)).sum(3).sigmoid().chunk(2, dim=2)
        return a * (b * self.constant - 1) + 2


class _RelativeBias:
    """WavLM's position bias (heads, frames, frames), shared by all layers: row -1 is that of query 0, and so on back.

    There is a value per head and distance, so the rows are a view of those, each row one place on. Backwards, because
    the distance of a key falls from query to query and strides cannot be negative.
    """

    def __init__(self, attention: Any) -> None:
        self.bucket_of = attention._relative_positions_bucket
        self.table = attention.rel_attn_embed.weight.detach().float().T  # (heads, buckets)

    def __call__(self, frames: int) -> Tensor:
        distances = torch.arange(1 - frames, frames)  # of a key from a query
        return self.table[:, self.bucket_of(distances)].contiguous().unfold(1, frames, 1)

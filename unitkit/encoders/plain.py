"""Transformers' own modules on padded batches, so that each row comes out as it would alone.

What transformers lets see padding is mended here: statistics of the first group norm are given from outside, and the
positional convolutions find zeros beyond a row's end, as they do at the end of a wav.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

Norm = tuple[Tensor, Tensor]  # (scale, shift), each (batch, channels): the first group norm of each row


def row_mask(lengths: list[int], width: int, device: torch.device) -> Tensor | None:
    """(batch, width) bool, True inside each row's length; None where every row is full."""
    if min(lengths) == width:
        return None
    return torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]


def waveform_hidden(model: Any, signals: Tensor, lengths: list[int], norm: Norm | None) -> Tensor:
    """HuBERT, wav2vec 2.0, WavLM, data2vec: signals (batch, samples) to hidden states (batch, frames, dim).

    `lengths` are the rows' own frames; what lies beyond them is of no meaning.
    """
    hidden = model.feature_projection(_convolve(model.feature_extractor, signals, norm).transpose(1, 2))
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    mask = row_mask(lengths, hidden.shape[1], hidden.device)
    encoder = model.encoder
    hidden = _masked(hidden, mask)
    hidden = hidden + _positions(encoder.pos_conv_embed, hidden, mask)
    if not getattr(model.config, "do_stable_layer_norm", False):
        hidden = encoder.layer_norm(hidden)
    if model.config.model_type == "wavlm":
        return _wavlm_layers(encoder.layers, hidden, mask)
    keys = _attention_mask(model.config, mask, hidden.dtype)
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask=keys)
    return hidden


def _wavlm_layers(layers: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    bias = None
    with warnings.catch_warnings():  # the model gives torch its two masks in two types
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
        for layer in layers:
            hidden, bias = layer(hidden, attention_mask=mask, position_bias=bias)
    return hidden


def whisper_hidden(model: Any, mels: Tensor, lengths: list[int]) -> Tensor:
    """Whisper's encoder: log-mels (batch, n_mels, 2 * frames), zero beyond each row, to (batch, frames, dim)."""
    hidden = nn.functional.gelu(model.conv1(mels))
    # No zeros are needed here: rows are of even length, so at stride 2 the last window of each ends with it.
    hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)  # (batch, frames, dim)
    hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
    keys = _attention_mask(model.config, row_mask(lengths, hidden.shape[1], hidden.device), hidden.dtype)
    for layer in model.layers:
        output = layer(hidden, keys)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def _convolve(extractor: Any, signals: Tensor, norm: Norm | None) -> Tensor:
    """(batch, samples) to (batch, channels, frames); `norm` stands for the group norm of base models."""
    hidden = signals[:, None]
    first, *rest = extractor.conv_layers
    if norm is None:
        hidden = first(hidden)
    else:
        scale, shift = (part.float().unsqueeze(2) for part in norm)
        # Without the bias: the norm takes it out. In place: this is the largest tensor of all.
        hidden = nn.functional.conv1d(hidden, first.conv.weight, stride=first.conv.stride).float()
        hidden = first.activation(hidden.mul_(scale).add_(shift))
    for layer in rest:
        hidden = layer(hidden)
    return hidden


def _positions(module: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Positional convolution, or data2vec's stack of them, none of which sees past a row's end."""
    if layers := getattr(module, "layers", None):
        for layer in layers:
            hidden = layer(_masked(hidden, mask).transpose(1, 2)).transpose(1, 2)
        return hidden
    if (norm := getattr(module, "batch_norm", None)) is not None:  # makes something of nothing
        hidden = _masked(norm(hidden.transpose(1, 2)).transpose(1, 2), mask)
    return module.activation(module.padding(module.conv(hidden.transpose(1, 2)))).transpose(1, 2)


def _masked(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden if mask is None else hidden.masked_fill(~mask.unsqueeze(2), 0)


def _attention_mask(config: Any, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(batch, 1, 1, frames): bool for sdpa, added to the scores where attention is eager."""
    if mask is None:
        return None
    keys = mask[:, None, None]
    if config._attn_implementation != "eager":
        return keys
    return torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill(~keys, torch.finfo(dtype).min)

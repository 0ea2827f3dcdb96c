"""Side heads: what else a layer of an encoder or decoder is asked to know, by attention or CTC; and where it looks."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.front import inside

TARGETS = ("source_text", "target_text", "source_units")
PAD, BOS, EOS = 0, 1, 2  # of letters and of units


@dataclass(frozen=True)
class HeadConfig:
    """One head: where it sits, what it predicts, and how much that counts."""

    kind: str = "attention"  # attention: a small decoder | ctc: a linear layer
    at: str = "encoder"  # encoder | decoder
    layer: int = 1  # whose output it reads, from 1
    target: str = "target_text"  # source_text | target_text | source_units
    weight: float = 1.0
    final_weight: float = -1.0  # reached linearly at the end of training; -1: the weight stays
    layers: int = 2
    dim: int = 256
    attention_heads: int = 4
    hidden: int = 2048
    dropout: float = 0.3
    label_smoothing: float = 0.2

    def __post_init__(self) -> None:
        for name, known in (("kind", ("attention", "ctc")), ("at", ("encoder", "decoder")), ("target", TARGETS)):
            if getattr(self, name) not in known:
                raise ValueError(f"a head's {name} {getattr(self, name)!r}: known are {', '.join(known)}")

    def weight_at(self, progress: float) -> float:
        """The weight at a share 0..1 of training."""
        return self.weight if self.final_weight < 0 else self.weight + (self.final_weight - self.weight) * progress


class SideHead(nn.Module):
    """A head of `size` tokens on hidden states (batch, positions, dim)."""

    def __init__(self, config: HeadConfig, size: int, dim: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(dim)  # layers of pre-norm models are not normalised
        if config.kind == "ctc":
            self.output = nn.Linear(dim, size)
        else:
            self.project = nn.Linear(dim, config.dim) if dim != config.dim else nn.Identity()
            self.decoder: Any = _decoder(config, size)

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Loss of predicting `target` (batch, n), padded with 0, from the positions where `mask` is true."""
        x = self.norm(hidden)
        if self.config.kind == "ctc":
            return ctc_loss(self.output(x), mask.sum(1), target)
        labels = F.pad(target, (0, 1)).scatter(1, (target != PAD).sum(1, keepdim=True), EOS)
        found = self.decoder(
            input_ids=F.pad(labels[:, :-1], (1, 0), value=BOS),
            encoder_hidden_states=self.project(x),
            encoder_attention_mask=mask.long(),
            use_cache=False,
        )
        return smoothed(found.logits, labels, smoothing=self.config.label_smoothing if self.training else 0.0)

    def greedy(self, hidden: Tensor) -> list[int]:
        """Tokens that a CTC head reads in (positions, dim)."""
        best = self.output(self.norm(hidden)).argmax(-1)
        return [int(token) for token in torch.unique_consecutive(best) if token != PAD]


def _decoder(config: HeadConfig, size: int) -> nn.Module:
    import transformers

    return transformers.MBartForCausalLM(
        transformers.MBartConfig(
            vocab_size=size,
            d_model=config.dim,
            decoder_layers=config.layers,
            decoder_attention_heads=config.attention_heads,
            decoder_ffn_dim=config.hidden,
            dropout=config.dropout,
            attention_dropout=0.0,
            activation_function="relu",
            max_position_embeddings=1024,
            scale_embedding=True,
            init_std=config.dim**-0.5,
            pad_token_id=PAD,
            is_decoder=True,
            add_cross_attention=True,
        )
    )


def ctc_loss(logits: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """CTC over (batch, positions, tokens) with pad as blank, by the target's length; what cannot fit counts nothing."""
    logs = logits.float().log_softmax(-1).transpose(0, 1)  # (positions, batch, tokens)
    wanted = (target != PAD).sum(1)
    return F.ctc_loss(logs, target, lengths, wanted.clamp(min=1), blank=PAD, zero_infinity=True)


def smoothed(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Cross entropy by token with label smoothing; pads count nothing."""
    flat = logits.float().flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=PAD, label_smoothing=smoothing)


def diagonal_loss(attentions: Tensor, steps: Tensor, positions: Tensor, *, width: float = 0.2) -> Tensor:
    """Mean attention (batch, heads, m, n) that lies off the diagonal, by a Gaussian of `width` of the whole.

    What is said follows roughly in the order in which it was said; a model with few data finds out sooner where it is
    told.  Guided attention of Tachibana et al. 2017 (1710.08969).
    """
    m, n = attentions.shape[2:]
    rows = torch.arange(m, device=steps.device)[None] / steps[:, None]
    columns = torch.arange(n, device=steps.device)[None] / positions[:, None]
    off = 1 - torch.exp(-((rows[:, :, None] - columns[:, None]) ** 2) / (2 * width**2))  # (batch, m, n)
    lost = (attentions.float() * off[:, None]).sum(3).mean(1)
    kept = inside(steps, m)
    return (lost * kept).sum() / kept.sum()

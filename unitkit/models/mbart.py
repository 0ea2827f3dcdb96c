"""What Seq2Seq takes from transformers, MBart, and what stands around its decoder."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.front import sinusoids
from unitkit.models.seq2seq_config import Seq2SeqConfig
from unitkit.units import Vocab


def mbart(config: Seq2SeqConfig) -> Any:
    """transformers' MBart of a config, its positions replaced by sinusoids where wanted."""
    import transformers

    inner = transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(
            vocab_size=len(Vocab(config.n_targets)),
            d_model=config.dim,
            encoder_layers=config.encoder_layers if config.blocks == "transformer" else 0,
            decoder_layers=config.decoder_layers if config.ctc < 1 else 0,
            encoder_attention_heads=config.attention_heads,
            decoder_attention_heads=config.attention_heads,
            encoder_ffn_dim=config.hidden,
            decoder_ffn_dim=config.decoder_hidden or config.hidden,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            activation_function="relu",
            max_position_embeddings=config.max_positions,
            scale_embedding=True,
            init_std=config.dim**-0.5,  # theirs, 0.02, is for 1024 dimensions: in fewer attention stays flat for long
            pad_token_id=Vocab.pad,
            bos_token_id=Vocab.bos,
            eos_token_id=Vocab.eos,
            decoder_start_token_id=Vocab.bos,
            forced_eos_token_id=None,
        )
    )
    if config.positions == "sinusoidal":
        for half in (inner.model.encoder, inner.model.decoder):
            half.embed_positions.requires_grad_(False).weight.copy_(sinusoids(config.max_positions + 2, config.dim))
    return inner


class Stack(nn.Module):
    """r units in one step: their embeddings side by side to one vector, and one vector to r of them."""

    def __init__(self, r: int, inner: Any, dim: int) -> None:
        super().__init__()
        self.r = r
        self.down = nn.Linear(r * dim, dim, bias=False)
        self.up = nn.Linear(dim, r * dim)
        self._inner = (inner,)  # in a tuple, so that its weights are not ours as well

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (..., r) to (..., dim)."""
        return self.down(self._inner[0].model.decoder.embed_tokens(tokens).flatten(-2))

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder output (..., dim) to (..., r, vocabulary)."""
        inner = self._inner[0]
        return inner.lm_head(self.up(hidden).unflatten(-1, (self.r, -1))) + inner.final_logits_bias


def with_eos(target: Tensor) -> Tensor:
    """Targets (batch, m), padded with 0, to labels (batch, m + 1) with an eos after each row."""
    labels = F.pad(target, (0, 1))
    ends = (target != Vocab.pad).sum(1, keepdim=True)
    return labels.scatter(1, ends, Vocab.eos)


def stacked(labels: Tensor, r: int) -> Tensor:
    """Labels (batch, m) to steps (batch, steps, r), padded at the end."""
    return F.pad(labels, (0, -labels.shape[1] % r)).unflatten(1, (-1, r))

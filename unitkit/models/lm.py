"""BERT on units: predict masked spans of unit sequences (vq-wav2vec's second stage), with transformers' BERT inside."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.encoders.transformer import quiet_transformers
from unitkit.models.ssl.blocks import IGNORED, Losses, SslError, majority, scored, span_mask
from unitkit.models.ssl.storage import Stored
from unitkit.units import Vocab


@dataclass(frozen=True)
class BertConfig:
    """BERT over frames of units; the defaults are small."""

    tokenizer: str = ""  # fingerprint of the units
    n_units: int = 0
    codebooks: int = 1
    dim: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 1024
    dropout: float = 0.1
    max_frames: int = 512
    mask_starts: float = 0.05  # share of frames at which a span begins
    mask_span: int = 10
    kept: float = 0.1  # of the masked frames: left as they are
    replaced: float = 0.1  # of the masked frames: other units, at random

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.dim % self.heads:
            raise SslError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if not 0 <= self.kept + self.replaced <= 1:
            raise SslError(f"kept {self.kept} and replaced {self.replaced} are shares of the masked frames")


PAPER = BertConfig(dim=768, layers=12, heads=12, hidden=3072, max_frames=2048)
PAPER_SMALL = BertConfig(dim=512, layers=12, heads=8, hidden=2048, dropout=0.05, max_frames=2048)


def joint_units(ids: np.ndarray, n_units: int) -> np.ndarray:
    """Units (frames, codebooks) to one number per frame (frames,), the first codebook counting most."""
    out = np.zeros(len(ids), np.int64)
    for column in np.asarray(ids, np.int64).T:
        out = out * n_units + column
    return out


def split_units(joint: np.ndarray, n_units: int, codebooks: int) -> np.ndarray:
    """The inverse of `joint_units`."""
    shares = n_units ** np.arange(codebooks - 1, -1, -1)
    return np.asarray(joint, np.int64)[:, None] // shares % n_units


class _Bert(nn.Module):
    """transformers' BertModel over embeddings, saved in its own layout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        import transformers

        self.vocab = Vocab(config.n_units, config.codebooks)
        self.mask_token = len(self.vocab)  # behind the units
        inner = transformers.BertConfig(
            vocab_size=len(self.vocab) + 1,
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.max_frames,
            type_vocab_size=1,
            pad_token_id=self.vocab.pad,
        )
        self.model: Any = transformers.BertModel(inner, add_pooling_layer=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        embedded = self.model.embeddings.word_embeddings(tokens).sum(2)
        found = self.model(inputs_embeds=embedded, attention_mask=mask.long(), output_hidden_states=True)
        return list(found.hidden_states)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes config.json and model.safetensors."""
        with quiet_transformers(local=True):
            self.model.save_pretrained(directory)
        Path(directory, "model.safetensors").chmod(0o644)  # made so that only its owner may read

    def restore(self, directory: str | os.PathLike[str]) -> Self:
        """Takes the weights that `save` wrote."""
        with quiet_transformers(local=True):
            self.model = type(self.model).from_pretrained(
                os.fspath(directory), add_pooling_layer=False, use_safetensors=True
            )
        return self


class UnitBert(Stored[BertConfig]):
    """Masked prediction of units from their surroundings; the codebooks of a frame are summed and masked together."""

    schema = BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if config.n_units < 2:
            raise SslError(f"n_units {config.n_units}: a sequence needs at least 2 units")
        self.codes = (config.n_units,) * config.codebooks
        self.backbone = _Bert(config)
        self.transform = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), nn.LayerNorm(config.dim))
        self.bias = nn.Parameter(torch.zeros(config.codebooks, config.n_units))
        first = Vocab.first + config.n_units * torch.arange(config.codebooks)
        self.register_buffer("first", first, persistent=False)  # token of unit 0 of each codebook

    def advance(self, step: int) -> None:
        """Nothing here depends on the number of the step."""

    def forward(self, units: Tensor, lengths: Tensor) -> tuple[Losses, Tensor]:
        """Units (batch, frames, codebooks), padded to `lengths` (batch,), to losses and counts of predicted units."""
        c = self.config
        inside = torch.arange(units.shape[1], device=units.device) < lengths[:, None]
        mask = span_mask(lengths, units.shape[1], probability=c.mask_starts, span=c.mask_span)
        hidden = self.transform(self.backbone(self.disturbed(units, mask), inside)[-1][mask])
        losses, accuracies, chances, counts = [], [], [], []
        for book in range(c.codebooks):
            targets = units[..., book][mask]
            score = scored(self.logits(hidden, book), targets)
            losses.append(score.loss)
            accuracies.append(score.accuracy)
            chances.append(majority(targets))
            counts.append(score.counts)
        logs = {"accuracy": torch.stack(accuracies).mean(), "chance": torch.stack(chances).mean()}
        return {"loss": torch.stack(losses).mean(), **logs}, torch.stack(counts)

    def logits(self, hidden: Tensor, book: int) -> Tensor:
        """Hidden states (frames, dim) to scores of a codebook's units, whose embeddings are those of the input."""
        table = self.backbone.model.embeddings.word_embeddings.weight
        start = Vocab.first + book * self.config.n_units
        return F.linear(hidden, table[start : start + self.config.n_units], self.bias[book])

    def disturbed(self, units: Tensor, mask: Tensor) -> Tensor:
        """Tokens (batch, frames, codebooks) with the masked frames hidden, but for those kept or replaced."""
        c = self.config
        tokens = units.clamp(min=0) + self.first
        fate = torch.rand(mask.shape, device=units.device)
        hidden = mask & (fate >= c.kept + c.replaced)
        other = mask & (fate >= c.kept) & ~hidden
        drawn = torch.randint(0, c.n_units, units.shape, device=units.device) + self.first
        tokens = torch.where(other[:, :, None], drawn, tokens)
        return torch.where(hidden[:, :, None], self.backbone.mask_token, tokens)

    @torch.inference_mode()
    def features(self, ids: np.ndarray, *, layer: int) -> Tensor:
        """Units (frames,) or (frames, codebooks) to the output of a layer (frames, dim); 0 is the embedding."""
        rows = torch.as_tensor(ids).long().reshape(len(ids), -1)[None].to(self.first.device)
        if rows.shape[1] > self.config.max_frames or rows.shape[2] != self.config.codebooks:
            raise SslError(
                f"units of shape {tuple(rows.shape[1:])}: this model takes (frames, {self.config.codebooks}), "
                f"{self.config.max_frames} frames at most"
            )
        mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        return self.backbone(rows + self.first, mask)[layer][0]


def pad_units(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Units (frames, codebooks) each to (batch, frames, codebooks), padded with IGNORED, and lengths (batch,)."""
    tensors = [torch.from_numpy(np.ascontiguousarray(row, np.int64)) for row in rows]
    padded = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IGNORED)
    return padded, torch.tensor([len(row) for row in rows])

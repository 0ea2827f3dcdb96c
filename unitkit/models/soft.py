"""Soft units: a head on a speech model that says how near each frame is to every discrete unit, and its projection.

The logits are cosines between the projection of a frame and an embedding of each unit, over a temperature; the target
is the frame's discrete unit.  The projection is the soft unit: it keeps what the discrete one has to give up, and loses
most of the speaker (van Niekerk et al. 2022, 2111.02392).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.front import inside
from unitkit.models.layers import ConvNorm
from unitkit.models.storage import read_model, save_model


class SoftError(ValueError):
    """A soft unit model that cannot be built, loaded or fed."""


@dataclass(frozen=True)
class SoftConfig:
    """The head; what the units and features say about themselves is filled in by the recipe."""

    tokenizer: str = ""  # fingerprint of the discrete units that teach it
    n_units: int = 0
    rate_hz: float = 50.0
    features: str = ""  # what is heard, for people to read
    features_dim: int = 0
    dim: int = 256  # numbers in a soft unit
    hidden: int = 256
    blocks: int = 2  # convolutions below the projection; 0, as in the paper, where the whole speech model learns
    dropout: float = 0.1
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.dim < 1 or self.blocks < 0:
            raise SoftError(
                f"temperature {self.temperature} and dim {self.dim} are above 0, blocks {self.blocks} 0 or more"
            )


# HuBERT base, all of which learns, and one linear layer: 256 numbers in place of 100 units.
PAPER = SoftConfig(blocks=0, dropout=0.0)


@dataclass(frozen=True)
class Frames:
    """A batch: `source` features (batch, frames, dim) or wavs (batch, samples), padded to `lengths`; units as `target`.

    Targets are (batch, frames), -1 where there is nothing to learn.
    """

    source: Tensor
    lengths: Tensor
    target: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Frames":
        """The same batch on `device`."""
        return Frames(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))


class SoftHead(nn.Module):
    """Features to soft units; `forward` trains."""

    def __init__(self, config: SoftConfig) -> None:
        super().__init__()
        if config.n_units < 2 or config.features_dim < 1:
            raise SoftError(f"n_units {config.n_units} (2 or more) and features_dim {config.features_dim} are not set")
        self.config = config
        width = config.hidden if config.blocks else config.features_dim
        self.enter = (
            nn.Sequential(nn.LayerNorm(config.features_dim), nn.Linear(config.features_dim, width))
            if config.blocks
            else nn.Identity()
        )
        self.blocks = nn.ModuleList(ConvNorm(width, depth=i, dropout=config.dropout) for i in range(config.blocks))
        self.project = nn.Linear(width, config.dim)
        self.labels = nn.Embedding(config.n_units, config.dim)

    def soft(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Features (batch, frames, features_dim), padded to lengths, to soft units (batch, frames, dim)."""
        x, mask = self.enter(features.to(self.labels.weight.dtype)), inside(lengths, features.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        return self.project(x)

    def logits(self, soft: Tensor) -> Tensor:
        """Soft units (..., dim) to scores of the discrete ones (..., n_units)."""
        labels = F.normalize(self.labels.weight, dim=1)
        return F.normalize(soft, dim=-1) @ labels.T / self.config.temperature

    def forward(self, batch: Frames) -> dict[str, Tensor]:
        """`loss`, nats a frame, and `accuracy` of the nearest unit."""
        logits = self.logits(self.soft(batch.source, batch.lengths)).float()
        # a frame more or less at the end: the units may have been made with another padding
        n = min(logits.shape[1], batch.target.shape[1])
        kept = inside(batch.lengths, logits.shape[1])[:, :n] & (batch.target[:, :n] >= 0)
        logits, target = logits[:, :n][kept], batch.target[:, :n][kept]
        return {"loss": F.cross_entropy(logits, target), "accuracy": (logits.argmax(1) == target).float().mean()}

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors and card.md; the listener beside them is the recipe's business."""
        text = card or f"# Soft units\n\nTaught by tokenizer `{self.config.tokenizer}`\n"
        save_model(directory, self.config, self.state_dict(), kind="soft", card=text)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Loads a model directory, ready for use."""
        config, weights = read_model(directory, SoftConfig, what="a soft tokenizer", error=SoftError)
        model = cls(config)
        model.load_state_dict(weights)
        return model.to(device).eval()


def pad_frames(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Frames:
    """Features or wavs, and units (frames,), to a batch."""
    padded = nn.utils.rnn.pad_sequence([torch.from_numpy(s) for s in sources], batch_first=True)
    target = nn.utils.rnn.pad_sequence([torch.from_numpy(t).long() for t in targets], True, -1.0)
    return Frames(padded, torch.tensor([len(s) for s in sources]), target)

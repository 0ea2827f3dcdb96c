"""Units, or soft units, of anybody to the mels of one voice: what conversion to one speaker needs beside a vocoder.

An encoder of convolutions brings the units to the rate of the mels, a decoder of recurrent layers writes the mel frame
by frame, each after the one before.  The acoustic model of van Niekerk et al. 2022 (2111.02392).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from unitkit.audio import Mel
from unitkit.models.front import inside
from unitkit.models.storage import checksum, read_model, save_model


class AcousticError(ValueError):
    """An acoustic model that cannot be built, loaded or fed."""


@dataclass(frozen=True)
class AcousticConfig:
    """The model; what the units say about themselves is filled in by the recipe.  The defaults are small."""

    tokenizer: str = ""  # fingerprint of the units, or of the soft tokenizer
    rate_hz: float = 50.0
    n_units: int = 100
    features_dim: int = 0  # > 0: soft units (frames, dim) instead of ids
    mel: Mel = field(default_factory=lambda: Mel(hop=160))
    dim: int = 64  # of a unit, and of the layers that lead into encoder and decoder
    encoder: int = 128  # channels
    decoder: int = 192  # numbers in a recurrent layer
    layers: int = 2  # recurrent ones
    dropout: float = 0.5  # in the layers that lead into encoder and decoder

    def __post_init__(self) -> None:
        exact = self.mel.rate_hz / self.rate_hz
        if exact < 1 or abs(exact - round(exact)) > 1e-6:
            raise AcousticError(
                f"mels of {self.mel.rate_hz:g} frames a second for {self.rate_hz:g} units: choose mel.hop so that the "
                f"one is a whole multiple of the other, such as {round(self.mel.sample_rate / self.rate_hz / 2)}"
            )
        if self.layers < 1:
            raise AcousticError(f"layers {self.layers}: at least 1")

    @property
    def ratio(self) -> int:
        """Mel frames a unit."""
        return round(self.mel.rate_hz / self.rate_hz)


# The paper's model for 100 units; 256 numbers (features_dim) in the soft ones.
PAPER = AcousticConfig(mel=Mel(hop=160, n_mels=128), dim=256, encoder=512, decoder=768, layers=3)


@dataclass(frozen=True)
class AcousticBatch:
    """Units (batch, n) or soft units (batch, n, dim), and mels (batch, n × ratio, n_mels) of `lengths` units a row."""

    source: Tensor
    lengths: Tensor
    mel: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AcousticBatch":
        """The same batch on `device`."""
        return AcousticBatch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))


class RowNorm(nn.Module):
    """Each channel of a row to mean 0 and deviation 1 over the frames that are the row's own."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, channels, frames) and a mask (batch, 1, frames) to the same shape, zero outside."""
        n = mask.sum(2, keepdim=True).clamp(min=1)
        mean = (x * mask).sum(2, keepdim=True) / n
        variance = ((x - mean).square() * mask).sum(2, keepdim=True) / n
        return (x - mean) * (variance + 1e-5).rsqrt() * mask


class AcousticModel(nn.Module):
    """Units to mels; `forward` trains with the true frames before, `generate` goes on from its own."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        self.config = c = config
        width = c.features_dim or c.dim
        self.units = None if c.features_dim else nn.Embedding(c.n_units, c.dim)
        self.enter = _lead_in(width, c.dim, dropout=c.dropout)
        self.convs = nn.ModuleList(nn.Conv1d(c.dim if i == 0 else c.encoder, c.encoder, 5, padding=2) for i in range(3))
        self.wider = nn.ConvTranspose1d(c.encoder, c.encoder, c.ratio + 2 * (c.ratio // 2), c.ratio, c.ratio // 2)
        self.norm = RowNorm()
        self.before = _lead_in(c.mel.n_mels, c.dim, dropout=c.dropout)
        self.cells = nn.ModuleList(
            nn.LSTM(c.dim + c.encoder if i == 0 else c.decoder, c.decoder, batch_first=True) for i in range(c.layers)
        )
        self.leave = nn.Linear(c.decoder, c.mel.n_mels, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.leave.weight.device

    def encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        """Units (batch, n[, dim]) to (batch, n × ratio, encoder)."""
        x = source if self.units is None else self.units(source)
        mask = inside(lengths, source.shape[1])[:, None].to(x.dtype)
        x = self.enter(x).transpose(1, 2)
        for place, conv in enumerate(self.convs):
            x = self.norm(torch.relu(conv(x * mask)), mask)
            if place == 0:  # the other convolutions see frames of the mel
                x, mask = self.wider(x), mask.repeat_interleave(self.config.ratio, 2)
        return x.transpose(1, 2)

    def decode(self, encoded: Tensor, before: Tensor, states: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Mels (batch, m, n_mels) after the frames `before` each of them; `states` go in and are replaced."""
        x = torch.cat([self.before(before), encoded], dim=2)
        for place, cell in enumerate(self.cells):
            y, state = cell(x, None if states is None or len(states) <= place else states[place])
            if states is not None:
                states[place : place + 1] = [state]
            x = y if place == 0 else x + y
        return self.leave(x)

    def forward(self, batch: AcousticBatch) -> dict[str, Tensor]:
        """`loss`: L1 of the natural-log mels a value, each row counted alike however long it is."""
        before = torch.cat([torch.zeros_like(batch.mel[:, :1]), batch.mel[:, :-1]], dim=1)
        made = self.decode(self.encode(batch.source, batch.lengths), before)
        mask = inside(batch.lengths * self.config.ratio, batch.mel.shape[1])
        error = (made.float() - batch.mel.float()).abs().mean(2)
        return {"loss": ((error * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()}

    @torch.inference_mode()
    def generate(self, sources: Sequence[Tensor | np.ndarray]) -> list[np.ndarray]:
        """Mels (n × ratio, n_mels) float32 of units (n,) or soft units (n, dim), each as it would be alone."""
        lengths = torch.tensor([len(one) for one in sources], device=self.device)
        rows = [torch.as_tensor(one).to(self.device) for one in sources]
        if any(row.ndim != 1 + bool(self.config.features_dim) for row in rows):
            raise AcousticError(
                "this model takes " + ("soft units" if self.config.features_dim else "ids, not vectors")
            )
        encoded = self.encode(nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)
        frame = encoded.new_zeros(len(rows), 1, self.config.mel.n_mels)
        made, states = [], list[tuple[Tensor, Tensor]]()
        for step in range(encoded.shape[1]):
            frame = self.decode(encoded[:, step : step + 1], frame, states)
            made.append(frame)
        mels = torch.cat(made, dim=1).float().cpu().numpy() if made else np.zeros((len(rows), 0, 0), np.float32)
        return [mel[: int(n) * self.config.ratio] for mel, n in zip(mels, lengths, strict=True)]

    def checksum(self) -> str:
        """12 hex digits that change with the config or any weight."""
        return checksum(self.config, self.state_dict())

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors and card.md."""
        text = card or f"# Acoustic model\n\nTokenizer: `{self.config.tokenizer}`\n"
        save_model(directory, self.config, self.state_dict(), kind="acoustic", card=text)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Loads a model directory, ready for use."""
        config, weights = read_model(directory, AcousticConfig, what="an acoustic model", error=AcousticError)
        model = cls(config)
        model.load_state_dict(weights)
        return model.to(device).eval()


def _lead_in(width: int, dim: int, *, dropout: float) -> nn.Sequential:
    """Two layers that forget much, so that the decoder leans on the units and not on the frame before."""
    parts = [nn.Linear(width, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts)


def pad_acoustic(items: Sequence[tuple[np.ndarray, np.ndarray]]) -> AcousticBatch:
    """Units (n[, dim]) with their mels (n × ratio, n_mels) to a batch."""
    sources, mels = zip(*items, strict=True)
    source, mel = (
        nn.utils.rnn.pad_sequence([torch.from_numpy(np.ascontiguousarray(x)) for x in some], batch_first=True)
        for some in (sources, mels)
    )
    return AcousticBatch(source, torch.tensor([len(x) for x in sources]), mel.float())

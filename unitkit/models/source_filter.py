"""Source and filter: a mel as the sum of what units and voice say, what F0 and voice say, and a level."""

import torch
from torch import Tensor, nn

from unitkit.models.hearing import OFFSET, SCALE
from unitkit.models.layers import ConvNorm, VariancePredictor


class Generator(nn.Module):
    """Frames of units to mel frames (batch, m, n_mels): blocks, each frame repeated as often as it takes, blocks."""

    def __init__(self, dim: int, layers: int, n_mels: int, dropout: float) -> None:
        super().__init__()
        self.before, self.after = (
            nn.ModuleList(ConvNorm(dim, depth=i, dropout=dropout) for i in range(layers)) for _ in range(2)
        )
        self.leave = nn.Linear(dim, n_mels)

    def forward(self, x: Tensor, mask: Tensor, index: Tensor, mel_mask: Tensor) -> Tensor:
        """`index` (m,) says which unit frame each mel frame takes."""
        for block in self.before:
            x = block(x, mask)
        x = x[:, index]
        for block in self.after:
            x = block(x, mel_mask)
        return self.leave(x)


class Synthesiser(nn.Module):
    """Units, F0, energy and voices to a mel: a filter of units and voice, a source of F0 and voice, and a level."""

    def __init__(
        self, dim: int, n_mels: int, *, layers: int, voice_dim: int, f0_bins: int, energy_bins: int, dropout: float
    ) -> None:
        super().__init__()
        self.f0 = nn.Parameter(torch.randn(f0_bins, dim) * 0.02)
        self.energy = nn.Parameter(torch.randn(energy_bins, dim) * 0.02)
        self.unvoiced = nn.Parameter(torch.randn(dim) * 0.02)
        self.units_voice, self.f0_voice = (nn.Linear(dim + voice_dim, dim) for _ in range(2))
        self.filter, self.source = (Generator(dim, layers, n_mels, dropout) for _ in range(2))
        self.level = VariancePredictor(dim, dim, layers=max(1, layers // 2), dropout=dropout)

    def forward(
        self,
        units: Tensor,
        f0: Tensor,
        voiced: Tensor,
        energy: Tensor,
        *,
        voices: tuple[Tensor, Tensor],
        mask: Tensor,
        index: Tensor,
        mel_mask: Tensor,
    ) -> Tensor:
        """Embedded units (batch, n, dim), bins and voicing of F0, bins of energy (batch, m, bins) to a natural log-mel.

        `voices` are the vectors (batch, vector_dim) for the units and for F0.
        """
        source = torch.where(voiced[:, :, None], embedded(f0, self.f0), self.unvoiced.to(self.f0.dtype))
        parts = [
            generator(linear(_beside(x, voice)), mask, index, mel_mask)
            for generator, linear, x, voice in (
                (self.filter, self.units_voice, units, voices[0]),
                (self.source, self.f0_voice, source, voices[1]),
            )
        ]
        level = self.level(embedded(energy, self.energy), mel_mask)
        return OFFSET + SCALE * (parts[0] + parts[1] + level[:, :, None]).float()


def embedded(bins: Tensor, table: Tensor) -> Tensor:
    """Soft bins (..., bins) to the mean (..., dim) of the rows of a table (bins, dim) that they weigh."""
    return (bins / (bins.sum(-1, keepdim=True) + 1e-5)).to(table.dtype) @ table


def _beside(x: Tensor, vector: Tensor) -> Tensor:
    return torch.cat([x, vector[:, None].expand(-1, x.shape[1], -1).to(x.dtype)], dim=2)

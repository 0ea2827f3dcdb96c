"""What stands before an encoder: convolutions that shorten features, or an embedding of tokens; and its positions."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Subsampler(nn.Module):
    """Convolutions of stride 2 with gated linear units; a padded row comes out as it would alone."""

    def __init__(
        self, features_dim: int, dim: int, *, channels: int, kernels: Sequence[int], norm: bool = False
    ) -> None:
        super().__init__()
        last = len(kernels) - 1
        self.norm = nn.LayerNorm(features_dim) if norm else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv1d(
                features_dim if i == 0 else channels // 2,
                2 * dim if i == last else channels,
                kernel,
                stride=2,
                padding=kernel // 2,
            )
            for i, kernel in enumerate(kernels)
        )
        self.project = nn.Identity() if self.convs else nn.Linear(features_dim, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, features_dim) to (batch, positions, dim) and lengths."""
        x = self.project(self.norm(features))
        for conv in self.convs:
            x = x * inside(lengths, x.shape[1])[:, :, None]
            x = F.glu(conv(x.transpose(1, 2)), dim=1).transpose(1, 2)
            lengths = (lengths - 1) // 2 + 1
        return x, lengths


class TokenEmbedding(nn.Module):
    """Letters or units to vectors, scaled as the decoder's are; those of several codebooks are added up.

    With `inner` the table has vectors of that size, which a linear layer brings to `dim`: the size of centroids, if
    they are to begin it (`begin_with`).  With `kernels` convolutions follow, each of which halves the length.
    """

    def __init__(
        self, size: int, dim: int, *, inner: int = 0, channels: int = 0, kernels: Sequence[int] = (), first: int = 3
    ) -> None:
        super().__init__()
        width = inner or dim
        self.table = nn.Embedding(size, width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.table.weight.data[0] = 0.0  # pad adds nothing, where rows have several tokens
        self.scale, self.first = math.sqrt(width), first
        self.project = nn.Linear(inner, dim) if inner else nn.Identity()
        if inner:
            nn.init.normal_(self.project.weight, std=inner**-0.5)
        self.shorten = Subsampler(dim, dim, channels=channels, kernels=kernels) if kernels else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, n) or (batch, n, codebooks) to (batch, positions, dim) and lengths."""
        x = self.table(tokens) * self.scale
        x = self.project(x.sum(2) if tokens.ndim == 3 else x)
        return (x, lengths) if self.shorten is None else self.shorten(x, lengths)

    @torch.no_grad()
    def begin_with(self, vectors: Tensor) -> None:
        """The first tokens behind the special ones take `vectors` (n, inner), brought to mean 0 and variance 1."""
        variance, mean = torch.var_mean(vectors.float(), correction=0)
        width = self.table.weight.shape[1]
        if vectors.shape[1] != width or self.first + len(vectors) > len(self.table.weight):
            raise ValueError(
                f"vectors {tuple(vectors.shape)} for a table of {len(self.table.weight)} tokens of {width} dimensions"
            )
        rows = (vectors - mean) / torch.sqrt(variance + 1e-8) / self.scale
        self.table.weight[self.first : self.first + len(rows)] = rows


def inside(lengths: Tensor, width: int) -> Tensor:
    """(batch, width) bool, true inside each row."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def sinusoids(n: int, dim: int) -> Tensor:
    """Sines and cosines (n, dim) of positions, as in the first Transformer."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(dim // 2) / max(1, dim // 2 - 1))
    angles = torch.arange(n)[:, None] * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))

"""An encoder whose blocks look far by attention and near by gated convolutions, side by side: E-Branchformer.

Kim et al. 2022 (2210.00077); positions are sinusoids added at the input, where the paper has relative ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.front import sinusoids


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, dim: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.enter, self.leave = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, positions, dim) to the same shape; `mask` (batch, positions) is true inside."""
        q, k, v = self.enter(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (batch, heads, n, size) each
        keys, dropout = mask[:, None, None], self.dropout if self.training else 0.0
        if x.is_cuda:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)
        else:  # step by step: the gradients of the fused one take twice the time on a CPU
            scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(~keys, float("-inf"))
            out = F.dropout(scores.softmax(3), dropout) @ v
        return self.leave(out.transpose(1, 2).flatten(2))


class NearConv(nn.Module):
    """A convolution of each dimension by itself, padding counted as zero."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, positions, dim) to the same shape."""
        return self.conv((x * mask[:, :, None]).transpose(1, 2)).transpose(1, 2)


class Gated(nn.Module):
    """Two halves, of which a convolution of one gates the other; the gates begin open, as in gMLP."""

    def __init__(self, dim: int, hidden: int, *, kernel: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(dim, hidden), nn.Linear(hidden // 2, dim)
        self.norm, self.near, self.dropout = (
            nn.LayerNorm(hidden // 2),
            NearConv(hidden // 2, kernel),
            nn.Dropout(dropout),
        )
        nn.init.normal_(self.near.conv.weight, std=1e-6)
        nn.init.ones_(self.near.conv.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, positions, dim) to the same shape."""
        kept, gate = F.gelu(self.enter(x)).chunk(2, dim=2)
        return self.leave(self.dropout(kept * self.near(self.norm(gate), mask)))


class Block(nn.Module):
    """Half a feed-forward, both branches merged, another half, each added to what comes in."""

    def __init__(
        self, dim: int, heads: int, *, hidden: int, gated: int, kernel: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()

        def forward_net() -> nn.Sequential:
            return nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
            )

        self.before, self.after = forward_net(), forward_net()
        self.far_norm, self.far = nn.LayerNorm(dim), Attention(dim, heads, dropout=attention_dropout)
        self.near_norm, self.near = nn.LayerNorm(dim), Gated(dim, gated, kernel=kernel, dropout=dropout)
        self.mix, self.merge = NearConv(2 * dim, kernel), nn.Linear(2 * dim, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, positions, dim) to the same shape."""
        x = x + 0.5 * self.dropout(self.before(x))
        far = self.dropout(self.far(self.far_norm(x), mask))
        near = self.dropout(self.near(self.near_norm(x), mask))
        both = torch.cat([far, near], dim=2)
        x = x + self.dropout(self.merge(both + self.mix(both, mask)))
        return self.norm(x + 0.5 * self.dropout(self.after(x)))


class Branchformer(nn.Module):
    """Positions, then blocks; a padded row comes out as it would alone."""

    def __init__(
        self,
        dim: int,
        *,
        layers: int,
        heads: int,
        hidden: int,
        gated: int,
        kernel: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or gated % 2:
            raise ValueError(f"branch_kernel {kernel} is odd, branch_hidden {gated} is even")
        self.enter, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                hidden=hidden,
                gated=gated,
                kernel=kernel,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(batch, positions, dim) and a mask, true inside, to the output and what each block gave, the input first."""
        x = self.dropout(self.enter(x + sinusoids(x.shape[1], x.shape[2]).to(x)))
        outputs = [x]
        for block in self.blocks:
            outputs.append(block(outputs[-1], mask))
        return self.norm(outputs[-1]), tuple(outputs)

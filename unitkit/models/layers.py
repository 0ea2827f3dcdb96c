"""Blocks that models share: residual convolutions, attention, vectors of utterances, predictors, and lengths."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.front import inside, sinusoids

BLOCKS = ("conv", "fft")


class ConvNorm(nn.Module):
    """A residual pair of convolutions, then a layer norm: x + conv1(relu(conv3(x))), dilated by 2 × depth + 1.

    Padding counts as zero for the convolution, so a padded row comes out as it would alone.
    """

    def __init__(self, dim: int, *, depth: int = 0, kernel: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        dilation = 2 * depth + 1
        self.wide = nn.Conv1d(dim, dim, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.narrow = nn.Conv1d(dim, dim, 1)
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, steps, dim) to the same shape; `mask` (batch, steps) is true inside."""
        hidden = (x * mask[:, :, None]).transpose(1, 2)
        return self.norm(x + self.dropout(self.narrow(F.relu(self.wide(hidden))).transpose(1, 2)))


class FftBlock(nn.Module):
    """Attention, then a wide convolution and a narrow one, each residual and followed by a layer norm."""

    def __init__(self, dim: int, heads: int, hidden: int, *, kernel: int = 9, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide = nn.Conv1d(dim, hidden, kernel, padding=kernel // 2)
        self.narrow = nn.Conv1d(hidden, dim, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, steps, dim) to the same shape; `mask` (batch, steps) is true inside."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Step by step: on a CPU the gradients of torch's fused attention take twice the time.
        scores = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).masked_fill(~mask[:, None, None], -torch.inf)
        heard = (scores.softmax(3) @ v).transpose(1, 2).flatten(2)  # (batch, heads, steps, part) to (batch, steps, dim)
        x = self.norms[0](x + self.dropout(self.out(heard)))
        hidden = F.relu(self.wide((x * mask[:, :, None]).transpose(1, 2)))
        return self.norms[1](x + self.dropout(self.narrow(hidden).transpose(1, 2)))


class Stack(nn.Module):
    """Blocks one after the other: residual convolutions (conv), or attention and convolutions as in FastSpeech (fft).

    The latter stand behind positions, which they cannot tell by themselves.
    """

    def __init__(
        self, blocks: str, dim: int, layers: int, *, kernel: int, heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor(1.0)) if blocks == "fft" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            FftBlock(dim, heads, hidden, kernel=kernel, dropout=dropout)
            if blocks == "fft"
            else ConvNorm(dim, depth=i, kernel=kernel, dropout=dropout)
            for i in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, steps, dim) to the same shape; `mask` (batch, steps) is true inside."""
        if self.place is not None:
            x = x + self.place * sinusoids(x.shape[1], x.shape[2]).to(x)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class UtteranceEncoder(nn.Module):
    """Frames of an utterance to one vector: convolutions at half the rate, then mean and deviation over its frames."""

    def __init__(self, features_dim: int, hidden: int, dim: int, *, layers: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.enter = nn.Conv1d(features_dim, hidden, 5, stride=2, padding=2)
        self.norm = nn.LayerNorm(hidden)
        self.blocks = nn.ModuleList(ConvNorm(hidden, depth=i, dropout=dropout) for i in range(layers))
        self.leave = nn.Linear(2 * hidden, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, features_dim) and (batch,) to (batch, dim); what is behind a row's end changes nothing."""
        x = features * inside(lengths, features.shape[1])[:, :, None]
        x = self.norm(F.relu(self.enter(x.transpose(1, 2)).transpose(1, 2)))
        lengths = (lengths - 1) // 2 + 1
        mask = inside(lengths, x.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(pooled(x, mask))


def pooled(x: Tensor, mask: Tensor) -> Tensor:
    """Mean and standard deviation over each row's steps: (batch, steps, dim) to (batch, 2 dim), float32."""
    x, keep = x.float(), mask[:, :, None].float()
    n = keep.sum(1).clamp(min=1)
    mean = (x * keep).sum(1) / n
    variance = ((x - mean[:, None]).square() * keep).sum(1) / n
    return torch.cat([mean, variance.clamp(min=1e-5).sqrt()], dim=1)


class VariancePredictor(nn.Module):
    """One value, or the logits of `out` bins, of each step, given a vector of the whole utterance as well.

    `hidden` of the last call's layers feed a second predictor where one stands on another (energy on F0 in UUVC).
    """

    def __init__(
        self, dim: int, hidden: int, *, layers: int = 2, out: int = 1, condition: int = 0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(dim + condition, hidden)
        self.blocks = nn.ModuleList(ConvNorm(hidden, depth=i, dropout=dropout) for i in range(layers))
        self.leave = nn.Linear(hidden, out)

    def hidden(self, x: Tensor, mask: Tensor, condition: Tensor | None = None) -> Tensor:
        """(batch, steps, dim) and (batch, condition) to (batch, steps, hidden)."""
        if condition is not None:
            x = torch.cat([x, condition[:, None].expand(-1, x.shape[1], -1)], dim=2)
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def forward(self, x: Tensor, mask: Tensor, condition: Tensor | None = None) -> Tensor:
        """(batch, steps, dim) and (batch, condition) to (batch, steps) or (batch, steps, out)."""
        found = self.leave(self.hidden(x, mask, condition))
        return found.squeeze(2) if found.shape[2] == 1 else found


def regulate(x: Tensor, durations: Tensor) -> tuple[Tensor, Tensor]:
    """Each step repeated: (batch, steps, dim) and whole frames (batch, steps) to (batch, frames, dim) and lengths.

    Frames behind a row's end are zero.
    """
    ends = durations.cumsum(1)
    lengths = ends[:, -1]
    frames = torch.arange(int(lengths.max()), device=x.device).expand(len(x), -1).contiguous()
    index = torch.searchsorted(ends, frames, right=True).clamp(max=x.shape[1] - 1)
    out = x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
    return out * inside(lengths, out.shape[1])[:, :, None], lengths


def soft_bins(values: Tensor, *, low: float, high: float, bins: int, sigma: float) -> Tensor:
    """Values (...) to targets (..., bins): a Gaussian of `sigma` bins, 1 at the value; the ends take the rest."""
    place = ((values - low) / (high - low) * (bins - 1)).clamp(0, bins - 1)
    apart = torch.arange(bins, device=values.device) - place[..., None]
    return torch.exp(-0.5 * (apart / sigma) ** 2)


def expected_value(logits: Tensor, *, low: float, high: float) -> Tensor:
    """The value (...) that bins (..., bins) speak for: their probabilities' mean near the most likely one."""
    bins = logits.shape[-1]
    probability = logits.sigmoid()
    best = probability.argmax(-1, keepdim=True)
    at = torch.arange(bins, device=logits.device)
    near = probability * ((at - best).abs() <= max(2, bins // 32))
    return low + (near * at).sum(-1) / near.sum(-1).clamp(min=1e-6) * (high - low) / (bins - 1)

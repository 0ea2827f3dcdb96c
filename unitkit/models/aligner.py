"""Which token each frame says, learned from no more than that both come in the same order.

Tokens (keys) and frames (queries) meet in one space by convolutions; what lies near belongs together.  Training sums
over all monotonic alignments, as CTC does; `monotonic_durations` then takes the best one.  Badlani et al. 2021
(2108.10447), as in ZMM-TTS (2312.14398).
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.front import inside

BLANK = -1.0  # logit of CTC's blank, which lets a frame belong to no token while training
NEVER = -1e4  # log probability of what is no token or frame; finite, so that gradients are


class AlignerError(ValueError):
    """Lengths that no monotonic alignment fits."""


class Aligner(nn.Module):
    """Scores of every frame for every token: near ones in the space where both are brought by convolutions."""

    def __init__(self, key_dim: int, query_dim: int, dim: int, *, temperature: float = 5e-4) -> None:
        super().__init__()
        self.temperature = temperature
        self.keys = _projection((key_dim, 2 * key_dim, dim))
        self.queries = _projection((query_dim, 2 * query_dim, query_dim, dim))

    def forward(self, keys: Tensor, queries: Tensor, key_lengths: Tensor, query_lengths: Tensor) -> Tensor:
        """Keys (batch, tokens, key_dim), queries (batch, frames, query_dim) to (batch, frames, tokens).

        Log probabilities that a frame says a token, times the prior; behind the ends of a row they are NEVER.
        """
        key_mask, query_mask = inside(key_lengths, keys.shape[1]), inside(query_lengths, queries.shape[1])
        near = [
            _through(net, x, mask)
            for net, x, mask in ((self.keys, keys, key_mask), (self.queries, queries, query_mask))
        ]
        with torch.autocast(keys.device.type, enabled=False):  # differences of large numbers, times a small one
            k, q = near[0].float(), near[1].float()
            square = q.square().sum(2)[:, :, None] + k.square().sum(2)[:, None] - 2 * q @ k.transpose(1, 2)
            scores = (-self.temperature * square).masked_fill(~key_mask[:, None], NEVER).log_softmax(2)
            scores = scores + beta_binomial(key_lengths, query_lengths, keys.shape[1], queries.shape[1])
            return scores.masked_fill(~(query_mask[:, :, None] & key_mask[:, None]), NEVER)


def _projection(dims: tuple[int, ...]) -> nn.ModuleList:
    """Convolutions: one over three steps, then over one."""
    return nn.ModuleList(
        nn.Conv1d(a, b, 3 if i == 0 else 1, padding=int(i == 0)) for i, (a, b) in enumerate(pairwise(dims))
    )


def _through(convs: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    """(batch, steps, dim) through convolutions with rectifiers between; padding counts as zero."""
    x = (x * mask[:, :, None]).transpose(1, 2)
    for index, conv in enumerate(convs):
        x = conv(F.relu(x) if index else x)
    return x.transpose(1, 2)


def beta_binomial(key_lengths: Tensor, query_lengths: Tensor, keys: int, queries: int) -> Tensor:
    """Log prior (batch, queries, keys): a cigar along the diagonal, narrow at both ends.

    Frame f (from 1) of F says token k (from 0) of n + 1 with the beta-binomial probability of k, n, f, F + 1 - f.
    """
    n, total = (key_lengths - 1)[:, None, None], query_lengths[:, None, None]
    k = torch.arange(keys, device=key_lengths.device)[None, None].clamp(max=n)
    f = torch.arange(1, queries + 1, device=key_lengths.device)[None, :, None].clamp(max=total)
    # log x! for all x that occur: looked up, where the gamma function would take longer than the model.
    log = torch.lgamma(torch.arange(1, keys + queries + 2, device=key_lengths.device, dtype=torch.float64))

    def beta(a: Tensor, b: Tensor) -> Tensor:
        return log[a - 1] + log[b - 1] - log[a + b - 1]

    choose = log[n] - log[k] - log[n - k]
    return (choose + beta(k + f, n - k + total + 1 - f) - beta(f, total + 1 - f)).float()


def forward_sum(scores: Tensor, key_lengths: Tensor, query_lengths: Tensor, *, blank: float = BLANK) -> Tensor:
    """Minus log of the sum over all monotonic alignments, nats per token: CTC with the tokens 1, 2, … as targets.

    `scores` (batch, frames, tokens) as an `Aligner` gives them.  Utterances with fewer frames than tokens count as 0.
    """
    batch, _, tokens = scores.shape
    classes = F.pad(scores.float(), (1, 0), value=blank)
    known = F.pad(inside(key_lengths, tokens), (1, 0), value=True)
    losses = F.ctc_loss(
        classes.masked_fill(~known[:, None], NEVER).log_softmax(2).transpose(0, 1),
        torch.arange(1, tokens + 1, device=scores.device).expand(batch, -1),
        query_lengths,
        key_lengths,
        reduction="none",
        zero_infinity=True,
    )
    return (losses / key_lengths).mean()


def binarisation(scores: Tensor, durations: Tensor) -> Tensor:
    """How far the soft alignment is from the hard one, nats a frame: minus log probability of each frame's own token.

    `scores` (batch, frames, tokens) as an `Aligner` gives them, `durations` (batch, tokens) frames of each token.
    """
    ends = durations.cumsum(1)
    frames = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1).contiguous()
    own = torch.searchsorted(ends, frames, right=True).clamp(max=scores.shape[2] - 1)
    soft = scores.float().log_softmax(2).gather(2, own[:, :, None]).squeeze(2)
    said = inside(ends[:, -1], scores.shape[1])
    return -(soft * said).sum() / said.sum().clamp(min=1)


def monotonic_durations(scores: Tensor, key_lengths: Tensor, query_lengths: Tensor) -> Tensor:
    """Frames of each token (batch, tokens) int64 in the best monotonic alignment, in which each has one at least.

    `scores` (batch, frames, tokens) are log probabilities.  The search goes frame by frame for all rows at once.
    """
    most, frames = key_lengths.cpu().numpy(), query_lengths.cpu().numpy()
    if (bad := np.flatnonzero(most > frames)).size:
        raise AlignerError(f"{frames[bad[0]]} frames for {most[bad[0]]} tokens: each token needs one at least")
    given = scores.detach().float().cpu().numpy()
    rows, n_frames, n_keys = given.shape
    best = np.full((rows, n_keys), -np.inf, np.float32)
    best[:, 0] = given[:, 0, 0]
    moved = np.zeros((n_frames, rows, n_keys), bool)  # whether the best way here comes from the token before
    before = np.full_like(best, -np.inf)
    for f in range(1, n_frames):
        before[:, 1:] = best[:, :-1]
        moved[f] = before > best
        best = np.maximum(best, before) + given[:, f]
    durations, at, row = np.zeros((rows, n_keys), np.int64), most - 1, np.arange(rows)
    for f in range(n_frames - 1, -1, -1):
        said = f < frames
        durations[row, at] += said
        at = at - (said & moved[f, row, at])
    return torch.from_numpy(durations).to(scores.device)

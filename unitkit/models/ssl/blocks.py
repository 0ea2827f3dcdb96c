"""What the objectives share: span masks, units at the model's frame rate, masked scores, code use, gradient scaling."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -1  # the target of a frame that has no unit
Losses = dict[str, Tensor]  # scalars; "loss" is the one to be minimised


class SslError(ValueError):
    """A pre-training setting or input that cannot be; the text says which and what can."""


class Objective(Protocol):
    """What a pre-training step needs of an objective, which is an nn.Module."""

    codes: tuple[int, ...]  # size of each codebook that is watched for collapse
    hop: int  # samples from one frame to the next
    field: int  # samples that a frame sees

    def __call__(self, wav: Tensor, targets: Tensor) -> tuple[Losses, Tensor]:
        """Losses, and how often each code was used (heads, codes), of wavs of one length (batch, samples)."""

    def advance(self, step: int) -> None:
        """To be called before each optimizer step: what depends on its number, such as the teacher, moves on."""


def span_mask(lengths: Tensor, width: int, *, probability: float, span: int, minimum: int = 1) -> Tensor:
    """(batch, width) bool: spans of `span` frames that lie within each row's length, as in wav2vec 2.0 and HuBERT.

    `probability` is the share of frames at which a span starts: that many starts, rounded up or down at random, at
    least `minimum`, without replacement.  Spans may overlap.  A row no longer than a span stays as it is, since
    nothing of it would be left to predict from.
    """
    places = torch.where(lengths > span, lengths - span + 1, torch.zeros_like(lengths))
    share = torch.rand(len(lengths), device=lengths.device)
    wanted = torch.minimum((probability * lengths + share).floor().long().clamp(min=minimum), places)
    scores = torch.rand(len(lengths), width, device=lengths.device)
    scores = scores.masked_fill(torch.arange(width, device=lengths.device) >= places[:, None], -1.0)
    begins = scores.argsort(1, descending=True).argsort(1) < wanted[:, None]
    return F.max_pool1d(F.pad(begins.float()[:, None], (span - 1, 0)), span, stride=1)[:, 0] > 0


def full_lengths(x: Tensor) -> Tensor:
    """(batch,) of x.shape[1]: the lengths of rows without padding."""
    return torch.full((x.shape[0],), x.shape[1], device=x.device)


def units_at(ids: np.ndarray, start: int, n_frames: int, *, ratio: float) -> np.ndarray:
    """Units of model frames start .. start + n_frames: (n_frames, codebooks) int64, IGNORED beyond the last unit.

    `ratio` is unit frames per model frame.  Model frame k takes the unit whose frame starts where it does or just
    before: of 100 Hz units every second one, of 25 Hz units each twice.
    """
    rows = ids[:, None] if ids.ndim == 1 else ids
    index = np.floor((start + np.arange(n_frames)) * ratio + 1e-6).astype(np.int64)
    inside = index < len(rows)
    out = np.full((n_frames, rows.shape[1]), IGNORED, np.int64)
    out[inside] = rows[index[inside]]
    return out


@dataclass(frozen=True)
class Scored:
    """Cross entropy and accuracy over some frames, and how often each class was predicted (classes,)."""

    loss: Tensor
    accuracy: Tensor
    counts: Tensor


def scored(logits: Tensor, targets: Tensor) -> Scored:
    """Scores logits (frames, classes) against targets (frames,), in which IGNORED does not count."""
    known = targets != IGNORED
    total = known.sum().clamp(min=1)
    loss = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum") / total
    chosen = logits.argmax(1)
    hits = ((chosen == targets) & known).sum() / total
    return Scored(loss, hits, torch.bincount(chosen[known], minlength=logits.shape[1]))


def majority(targets: Tensor) -> Tensor:
    """Share of the most frequent target: what an accuracy has to beat."""
    known = targets[targets != IGNORED]
    return torch.bincount(known).max() / len(known) if len(known) else torch.zeros((), device=targets.device)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself; its gradient times `scale`."""
    return x if scale == 1.0 else _ScaleGradient.apply(x, scale)


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient going to x as if it were x."""
    return value.detach() + (x - x.detach())


@torch.no_grad()
def blend(old: nn.Module, new: nn.Module, keep: float, *, copied: Sequence[str] = ()) -> None:
    """old = keep * old + (1 - keep) * new, parameter by parameter; those whose names start with `copied` are copied."""
    source = dict(new.named_parameters())
    for name, parameter in old.named_parameters():
        share = 0.0 if name.startswith(tuple(copied)) else keep
        parameter.copy_(share * parameter + (1 - share) * source[name]) if share else parameter.copy_(source[name])
    for before, after in zip(old.buffers(), new.buffers(), strict=True):
        before.copy_(after)


def perplexity(counts: Tensor) -> Tensor:
    """(heads, codes) of counts to (heads,): 2 ** entropy, between 1 (one code) and the number of codes (all alike)."""
    shares = counts.float() / counts.sum(1, keepdim=True).clamp(min=1)
    return torch.exp(-torch.xlogy(shares, shares).sum(1))


class CodeUse:
    """How the codes of each head were used over the last steps, and whether they collapsed.

    Collapsed: after `grace` steps the perplexity of some head is below `bound` times its number of codes.
    """

    def __init__(self, codes: Sequence[int], *, bound: float = 0.1, grace: int = 1000, window: int = 100) -> None:
        self.codes, self.bound, self.grace = tuple(codes), bound, grace
        self.recent: deque[Tensor] = deque(maxlen=window)
        self._alarmed = False

    def add(self, counts: Tensor) -> Losses:
        """Takes the counts of a step (heads, codes); returns the lowest perplexity and share of codes in use."""
        self.recent.append(counts.detach().cpu())
        total = torch.stack(tuple(self.recent)).sum(0)
        sizes = torch.tensor(self.codes)
        self.perplexities = perplexity(total)
        self.used = (total > 0).sum(1) / sizes
        self.low = self.perplexities < self.bound * sizes
        return {"perplexity": self.perplexities.min(), "used": self.used.min(), "collapsed": self.low.any().float()}

    def alarm(self, step: int) -> str | None:
        """The warning to print at `step`, once each time that codes begin to collapse."""
        low = bool(self.low.any()) and step >= self.grace
        begins, self._alarmed = low and not self._alarmed, low
        if not begins:
            return None
        head = int((self.perplexities / torch.tensor(self.codes)).argmin())
        size = self.codes[head]
        return (
            f"warning: step {step}: codes collapse: perplexity {self.perplexities[head]:.1f} of codebook {head} is "
            f"below {self.bound * size:g} ({self.bound:g} of its {size} codes), {self.used[head]:.0%} of them in use"
        )

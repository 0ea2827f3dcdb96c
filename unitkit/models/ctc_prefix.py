"""CTC in a beam search that grows token by token: how probable is it that the whole begins with a prefix.

Of a prefix two rows are kept: the log probability that the first t frames say it and end in its last token, and that
they end in a blank.  The probability that what is said begins with the prefix and then c is a sum over the frames at
which c may begin (Watanabe et al. 2017, "Hybrid CTC/attention architecture"): over all c, one matrix product.  The rows
of the chosen prefixes are recurrences, x(t) = (x(t-1) + a(t-1)) p(t), solved at once by cumulative sums of logarithms;
in float64, as these run to thousands.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLANK, EOS = 0, 2  # blank is where pad is
NEVER = -1e4  # the log probability of what cannot be: finite, so that differences of it are
LEAST = 1e-300


class CtcPrefix:
    """Scores of the beams' next tokens by CTC, joined with a decoder's: (1 - weight) of that and `weight` of these."""

    def __init__(self, logs: Sequence[Tensor], *, weight: float, beam: int) -> None:
        """`logs` (positions, vocabulary) are each utterance's log probabilities, blank at 0."""
        if not 0 < weight <= 1:
            raise ValueError(f"weight {weight}: a CTC score counts more than 0 and at most 1")
        self.weight, self.beam = weight, beam
        longest = max(len(one) for one in logs)
        # Behind the end of an utterance there is nothing but blank, which changes nothing.
        frames = logs[0].new_full((len(logs), longest, logs[0].shape[1]), NEVER, dtype=torch.float64)
        frames[:, :, BLANK] = 0.0
        for row, one in zip(frames, logs, strict=True):
            row[: len(one)] = one.double().clamp(min=NEVER)
        self.frames = frames  # (batch, T, vocabulary)
        self.chances = frames.exp()
        blank = torch.nn.functional.pad(frames[:, :, BLANK].cumsum(1), (1, 0))
        self.in_blank = blank[:, None].expand(-1, beam, -1)  # (batch, beam, T + 1)
        self.in_token = torch.full_like(self.in_blank, NEVER * 10)
        self.last = torch.zeros(len(logs), beam, dtype=torch.long, device=frames.device)  # of each prefix; 0: none yet
        self.before = torch.zeros(len(logs), beam, dtype=torch.float64, device=frames.device)  # log p of each prefix
        self.found = self.before[:, :, None]

    def join(self, gains: Tensor) -> Tensor:
        """The decoder's log probabilities (batch, beam, vocabulary) of the next tokens to joint ones."""
        self.found = self._prefixes()
        more = (self.found - self.before[:, :, None]).clamp(max=0).to(gains.dtype)  # above 0 by rounding only
        return more if self.weight == 1 else (1 - self.weight) * gains + self.weight * more

    def _prefixes(self) -> Tensor:
        """Log probabilities (batch, beam, vocabulary) that the whole begins with a prefix and a token; eos: is it."""
        either = torch.logaddexp(self.in_blank, self.in_token)  # (batch, beam, T + 1)
        found = self._begin(either[:, :, :-1], self.chances)
        # The same token again begins only after a blank.
        same = self.chances.gather(2, self.last[:, None].expand(-1, self.frames.shape[1], -1)).transpose(1, 2)
        start = self.in_blank[:, :, :-1]
        top = start.amax(2, keepdim=True)
        again = ((start - top).exp() * same).sum(2).clamp(min=LEAST).log() + top[:, :, 0]
        found = found.scatter(2, self.last[:, :, None], again[:, :, None])
        found[:, :, : EOS + 1] = NEVER * 10  # no text says these
        found[:, :, EOS] = either[:, :, -1]
        return found

    @staticmethod
    def _begin(either: Tensor, chances: Tensor) -> Tensor:
        top = either.amax(2, keepdim=True)
        return ((either - top).exp() @ chances).clamp(min=LEAST).log() + top

    def follow(self, parents: Tensor, tokens: Tensor) -> None:
        """Beams become children of `parents` (batch, beam), longer by `tokens` (batch, beam)."""
        index = parents[:, :, None].expand(-1, -1, self.in_blank.shape[2])
        in_blank, in_token = self.in_blank.gather(1, index), self.in_token.gather(1, index)
        last = self.last.gather(1, parents)
        self.before = self.found[torch.arange(len(parents), device=parents.device)[:, None], parents, tokens]
        begin = torch.where((tokens == last)[:, :, None], in_blank, torch.logaddexp(in_blank, in_token))[:, :, :-1]
        said = self.frames.gather(2, tokens[:, None].expand(-1, self.frames.shape[1], -1)).transpose(1, 2)
        self.in_token = _recurrence(begin, said)
        silent = self.frames[:, None, :, BLANK].expand_as(said)
        self.in_blank = _recurrence(self.in_token[:, :, :-1], silent)
        self.last = tokens

    def keep(self, left: Tensor) -> None:
        """Of the batch, the utterances `left` only."""
        for name in ("frames", "chances", "in_blank", "in_token", "last", "before", "found"):
            setattr(self, name, getattr(self, name)[left])


def _recurrence(added: Tensor, factor: Tensor) -> Tensor:
    """Logs of x(t) = (x(t-1) + added(t-1)) factor(t), x(0) = 0: (..., T) each to (..., T + 1)."""
    total = factor.cumsum(-1)
    sums = torch.logcumsumexp(added - total + factor, dim=-1) + total
    return torch.nn.functional.pad(sums, (1, 0), value=NEVER * 10)

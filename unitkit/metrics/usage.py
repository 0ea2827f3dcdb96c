"""Are the units used?  Perplexity, share of units in use, share of the commonest one.

Over all frames of a corpus, each codebook by itself: perplexity 2^H with H the entropy in bits of the units' shares,
K where all are equally frequent, 1 where one takes all.  A perplexity below K/10 is the alarm for collapsed codebooks.
Bitrates are `unitkit.units.bitrate`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from unitkit.metrics.base import Measure, Unavailable, signature, spread
from unitkit.metrics.phones import entropy
from unitkit.units import Units

METRICS = ("perplexity", "used", "top_share")
ALARM = 10  # perplexity below K / ALARM


@dataclass(frozen=True)
class UnitUse:
    """Of one codebook: number of units, perplexity, units that occur, share of frames with the commonest, frames."""

    n_units: int
    perplexity: float
    active: int
    top_share: float
    n_frames: int

    @property
    def used(self) -> float:
        """Share of the units that occur at all."""
        return self.active / self.n_units

    @property
    def dead(self) -> float:
        """Share of the units that never occur."""
        return 1 - self.used

    @property
    def collapsed(self) -> bool:
        """Whether the perplexity is below a tenth of the number of units."""
        return self.perplexity < self.n_units / ALARM


def unit_use(counts: np.ndarray) -> UnitUse:
    """Use of the units of one codebook from their frequencies (n_units,)."""
    total = counts.sum()
    if total <= 0:
        raise Unavailable("no frames, so no unit is used")
    shares = counts / total
    return UnitUse(len(counts), 2 ** entropy(shares), int((counts > 0).sum()), float(shares.max()), round(float(total)))


@dataclass(frozen=True)
class _Frames:
    """All frames of a corpus: rows (frames, codebooks) and the number of the utterance each is of (frames,)."""

    rows: np.ndarray
    utterances: np.ndarray
    n_units: int

    @classmethod
    def of(cls, corpus: Sequence[Units]) -> "_Frames":
        rows = np.concatenate([one.ids.reshape(len(one), one.codebooks) for one in corpus])
        return cls(rows, np.repeat(np.arange(len(corpus)), [len(one) for one in corpus]), corpus[0].n_units)

    def use(self, weights: np.ndarray) -> list[UnitUse]:
        """Use of each codebook, utterances counted with `weights` (utterances,)."""
        each = weights[self.utterances]
        return [unit_use(np.bincount(column, weights=each, minlength=self.n_units)) for column in self.rows.T]


def corpus_use(units: Iterable[Units]) -> list[UnitUse]:
    """Use of each codebook over a corpus of one tokenizer's units."""
    corpus = list(units)
    if not corpus:
        raise Unavailable("no units")
    return _Frames.of(corpus).use(np.ones(len(corpus)))


def usage_measures(units: Mapping[str, Units]) -> dict[str, Measure]:
    """Perplexity, used share and top share, averaged over codebooks, with intervals over utterances."""
    corpus = list(units.values())
    if not corpus:
        raise Unavailable("no units")
    first, frames = corpus[0], _Frames.of(corpus)
    facts: dict[str, str | int] = {
        "tokenizer": first.tokenizer,
        "K": first.n_units,
        "codebooks": first.codebooks,
        "level": "frame",
    }

    def value(metric: str, weights: np.ndarray) -> float:
        return float(np.mean([getattr(one, metric) for one in frames.use(weights)]))

    return {metric: spread(partial(value, metric), len(corpus), name=signature(metric, facts)) for metric in METRICS}

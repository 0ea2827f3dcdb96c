"""How much units say about phones: PNMI, phone purity, cluster purity, beside the same scores of shuffled units.

With p(y, z) the share of frames with phone y and unit z:
    phone purity    sum over z of max over y of p(y, z)    frames whose phone is the commonest of their unit
    cluster purity  sum over y of max over z of p(y, z)    frames whose unit is the commonest of their phone
    PNMI            I(y; z) / H(y)                         the part of the phones' entropy that the units tell
as in Hsu et al., "HuBERT", 2021 (fairseq's measure_teacher_quality: "ref pur", "hyp pur", "MI/H(ref)").  PNMI is
scikit-learn's homogeneity_score.

Frames get their phone by their centre, (i + 0.5)/R seconds (see `alignments`).  Frames that no phone covers are left
out, silence counts as a phone unless `silence` is off.  With several codebooks the whole row is the unit.

All three rise with the number of units whether or not these mean anything: with as many units as frames, PNMI and phone
purity are 1.  So each stands beside its control, the same units dealt out anew over all frames of the corpus, and none
may be compared across numbers of units.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unitkit.metrics.alignments import NO_PHONE, Alignments, Inventory
from unitkit.metrics.base import Measure, Unavailable, signature, spread
from unitkit.units import Units

METRICS = ("pnmi", "phone_purity", "cluster_purity")


@dataclass(frozen=True)
class PhoneScores:
    """Scores of one table of counts: three fractions, entropies in bits, frames, phones and units that occur."""

    pnmi: float
    phone_purity: float
    cluster_purity: float
    phone_entropy: float
    unit_entropy: float
    n_frames: int
    n_phones: int
    n_units: int


@dataclass(frozen=True)
class LabelledFrames:
    """Frames with a phone and a unit: `phones`, `units`, `utterances` (frames,) are numbers from 0.

    `n_units` counts the different units that occur, `aligned` the utterances with an alignment.
    """

    phones: np.ndarray
    units: np.ndarray
    utterances: np.ndarray
    n_phones: int
    n_units: int
    aligned: int

    def counts(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(phones, units) frames of each pair; `weights` (utterances,) counts an utterance several times or never."""
        each = None if weights is None else weights[self.utterances]
        size = self.n_phones * self.n_units
        pairs = np.bincount(self.phones * self.n_units + self.units, weights=each, minlength=size)
        return pairs.reshape(self.n_phones, self.n_units)

    def shuffled(self, seed: int) -> "LabelledFrames":
        """The control: the same units in random order over all these frames."""
        units = np.random.default_rng(seed).permutation(self.units)
        return LabelledFrames(self.phones, units, self.utterances, self.n_phones, self.n_units, self.aligned)


def label_frames(units: Mapping[str, Units], alignments: Alignments, *, silence: bool = True) -> LabelledFrames:
    """Lay phones over the units of every utterance that has an alignment; frames without a phone are left out."""
    shared = [id_ for id_ in units if alignments.get(id_)]
    if not shared:
        raise Unavailable("none of the utterances has a phone alignment")
    inventory = Inventory.of({id_: alignments[id_] for id_ in shared}, silence=silence)
    phones = [inventory.frames(alignments[id_], len(units[id_]), rate_hz=units[id_].rate_hz) for id_ in shared]
    labels = np.concatenate(phones)
    rows = np.concatenate([units[id_].ids.reshape(len(units[id_]), units[id_].codebooks) for id_ in shared])
    kept = labels != NO_PHONE
    if not kept.any():
        raise Unavailable("no frame has a phone: the alignments' times lie outside the utterances")
    _, numbers = np.unique(rows[kept], axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)
    utterances = np.repeat(np.arange(len(shared)), [len(one) for one in phones])[kept]
    return LabelledFrames(
        labels[kept], numbers, utterances, len(inventory.labels), int(numbers.max()) + 1, aligned=len(shared)
    )


def phone_scores(counts: np.ndarray) -> PhoneScores:
    """Scores of a (phones, units) table of frame counts."""
    total = counts.sum()
    if total <= 0:
        raise Unavailable("no frame has a phone and a unit")
    by_phone, by_unit, joint = counts.sum(axis=1) / total, counts.sum(axis=0) / total, counts / total
    phone_entropy, unit_entropy = entropy(by_phone), entropy(by_unit)
    told = phone_entropy + unit_entropy - entropy(joint)
    return PhoneScores(
        pnmi=min(max(told / phone_entropy, 0.0), 1.0) if phone_entropy > 0 else 1.0,  # one phone: nothing to tell
        phone_purity=float(joint.max(axis=0).sum()),
        cluster_purity=float(joint.max(axis=1).sum()),
        phone_entropy=phone_entropy,
        unit_entropy=unit_entropy,
        n_frames=round(float(total)),
        n_phones=int((by_phone > 0).sum()),
        n_units=int((by_unit > 0).sum()),
    )


def entropy(shares: np.ndarray) -> float:
    """Entropy in bits of shares that sum to 1, of any shape."""
    positive = shares[shares > 0]
    return max(0.0, float(-(positive * np.log2(positive)).sum()))


def score_phones(frames: LabelledFrames, *, seed: int = 0) -> tuple[PhoneScores, PhoneScores]:
    """Scores of labelled frames, and of the shuffled control."""
    return phone_scores(frames.counts()), phone_scores(frames.shuffled(seed).counts())


def phone_measures(
    units: Mapping[str, Units], alignments: Alignments, *, silence: bool = True, seed: int = 0
) -> dict[str, tuple[Measure, float]]:
    """(measure, control) of each of `METRICS`, with intervals over utterances; signatures name K and the labels."""
    frames = label_frames(units, alignments, silence=silence)
    first = next(iter(units.values()))
    facts: dict[str, str | int] = {
        "tokenizer": first.tokenizer,
        "K": first.n_units,
        "codebooks": first.codebooks,
        "rate": f"{first.rate_hz:g}",
        "label": "frame-centre",
        "phones": frames.n_phones,
        "sil": "phone" if silence else "left-out",
        "frames": len(frames.phones),
        "control": f"shuffled-over-corpus,seed{seed}",
    }
    chance = phone_scores(frames.shuffled(seed).counts())
    return {metric: (_measure(frames, metric, facts), float(getattr(chance, metric))) for metric in METRICS}


def _measure(frames: LabelledFrames, metric: str, facts: Mapping[str, str | int]) -> Measure:
    def value(weights: np.ndarray) -> float:
        return float(getattr(phone_scores(frames.counts(weights)), metric))

    return spread(value, frames.aligned, name=signature(metric, facts))

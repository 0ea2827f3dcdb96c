"""Do units change where phones change?  Precision, recall, F1, over-segmentation and R-value of unit boundaries.

A unit boundary lies at i/R seconds wherever the units of frames i-1 and i differ; a phone boundary where one phone ends
and the next starts, silence being a phone.  The start and end of the aligned stretch are no boundaries on either side,
and unit boundaries outside it are not judged.

Hits are pairs, one to one: a boundary counts once, however many of the other side lie near it.  The number of hits is
the largest possible at that tolerance (|difference| <= 20 ms, ends included).  With P = hits / unit boundaries and
R = hits / phone boundaries over the whole corpus:
    F1 = 2PR / (P + R);  over-segmentation OS = R/P - 1 = unit boundaries / phone boundaries - 1;
    R-value = 1 - (sqrt((1 - R)^2 + OS^2) + |R - 1 - OS| / sqrt(2)) / 2,
the last from Räsänen, Laine and Altosaar, "An improved speech segmentation quality measure: the R-value", 2009: near
chance for the many boundaries that give a high recall at no cost, 1 only where all are found and none is too many.

The control keeps each utterance's runs of equal units but in random order: as many boundaries, elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unitkit.metrics.alignments import Alignments, phone_boundaries
from unitkit.metrics.base import Measure, Unavailable, signature, spread
from unitkit.units import Units

TOLERANCE = 0.02  # s
METRICS = ("boundary_precision", "boundary_recall", "boundary_f1", "boundary_os", "boundary_r")


@dataclass(frozen=True)
class BoundaryCounts:
    """Of one utterance: boundaries matched, boundaries of the units, boundaries of the phones."""

    hits: int
    found: int
    wanted: int


def unit_boundaries(units: Units) -> np.ndarray:
    """Times (boundaries,) in seconds at which the units change; with several codebooks, at which any of them does."""
    rows = units.ids.reshape(len(units), units.codebooks)
    return (np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1) / units.rate_hz


def count_hits(found: np.ndarray, wanted: np.ndarray, *, tolerance: float = TOLERANCE) -> int:
    """Most pairs that can be made of two sorted lists of times (seconds), each time used once, within `tolerance`.

    Left to right, the first two unused times that lie near enough are a pair: with one tolerance for all no other
    choice gives more.  Times are compared in whole microseconds.
    """
    ours, theirs = (np.rint(np.asarray(times) * 1e6).astype(np.int64).tolist() for times in (found, wanted))
    limit = round(tolerance * 1e6)
    hits = i = j = 0
    while i < len(ours) and j < len(theirs):
        if abs(ours[i] - theirs[j]) <= limit:
            hits, i, j = hits + 1, i + 1, j + 1
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return hits


def boundary_scores(hits: float, found: float, wanted: float) -> dict[str, float]:
    """Precision, recall, F1, over-segmentation and R-value (fractions) from counts over a corpus."""
    if wanted <= 0:
        raise Unavailable("no phone boundary to find: each alignment is a single phone")
    recall, over = hits / wanted, found / wanted - 1  # OS = R/P - 1, also where nothing is hit
    distance = np.hypot(1 - recall, over)
    values = (
        hits / found if found else 0.0,
        recall,
        2 * hits / (found + wanted),
        over,
        1 - (distance + abs(recall - 1 - over) / np.sqrt(2)) / 2,
    )
    return dict(zip(METRICS, map(float, values), strict=True))


def utterance_counts(found: np.ndarray, phones: Alignments, id_: str, *, tolerance: float) -> BoundaryCounts:
    """Counts of one utterance; times outside the aligned stretch are left out."""
    rows = phones[id_]
    inside = found[(found > rows[0].start) & (found < rows[-1].end)]
    wanted = phone_boundaries(rows)
    return BoundaryCounts(count_hits(inside, wanted, tolerance=tolerance), len(inside), len(wanted))


def boundary_measures(
    units: Mapping[str, Units], alignments: Alignments, *, tolerance: float = TOLERANCE, seed: int = 0
) -> dict[str, tuple[Measure, float]]:
    """(measure, control) of each of `METRICS` over the utterances in both; signatures name tolerance and matching."""
    shared = [id_ for id_ in units if alignments.get(id_)]
    if not shared:
        raise Unavailable("none of the utterances has a phone alignment")
    generator = np.random.default_rng(seed)
    own, control = [], []
    for id_ in shared:
        moved = _runs_shuffled(units[id_], generator)
        own.append(utterance_counts(unit_boundaries(units[id_]), alignments, id_, tolerance=tolerance))
        control.append(utterance_counts(moved, alignments, id_, tolerance=tolerance))
    first = units[shared[0]]
    facts: dict[str, str | int] = {
        "tokenizer": first.tokenizer,
        "K": first.n_units,
        "codebooks": first.codebooks,
        "rate": f"{first.rate_hz:g}",
        "tolerance": f"{tolerance * 1000:g}ms",
        "match": "one-to-one",
        "sil": "phone",
        "control": f"runs-shuffled,seed{seed}",
    }
    table, moved_table = _table(own), _table(control)
    chance = boundary_scores(*moved_table.sum(axis=0))
    return {name: (_measure(table, name, facts), chance[name]) for name in METRICS}


def _runs_shuffled(units: Units, generator: np.random.Generator) -> np.ndarray:
    """The boundaries (seconds) of the same runs in random order."""
    lengths = units.dedup()[1] if len(units) else np.zeros(0, np.int64)
    return np.cumsum(generator.permutation(lengths))[:-1] / units.rate_hz


def _table(counts: list[BoundaryCounts]) -> np.ndarray:
    """(utterances, 3): hits, found, wanted."""
    return np.array([(one.hits, one.found, one.wanted) for one in counts], dtype=np.float64)


def _measure(table: np.ndarray, metric: str, facts: Mapping[str, str | int]) -> Measure:
    def value(weights: np.ndarray) -> float:
        return boundary_scores(*(weights @ table))[metric]

    return spread(value, len(table), name=signature(metric, facts))

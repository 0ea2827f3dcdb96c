"""How far a conversion went: F0, energy, tempo and durations of what was made, between its source and its reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from unitkit.metrics.base import Measure, Unavailable, ratio, spread

SPAN = (10, 90)  # percentiles of F0 or energy between which its range is taken: single wrong octaves change nothing
FRAME, DEPTH = 0.025, 40.0  # energy: of frames of so many seconds, no further below the loudest than so many dB


@dataclass(frozen=True)
class Pitch:
    """Of one recording: mean of voiced frames' F0 in semitones above 1 Hz, and the span of its middle 80 %."""

    mean: float
    span: float


def pitch(hertz: np.ndarray) -> Pitch | None:
    """F0 (frames,) in Hz, 0 unvoiced; None where no frame is voiced."""
    voiced = hertz[hertz > 0].astype(np.float64)
    if not len(voiced):
        return None
    semitones = 12 * np.log2(voiced)
    low, high = np.percentile(semitones, SPAN)
    return Pitch(float(semitones.mean()), float(high - low))


def energy_span(wav: np.ndarray, rate: int) -> float | None:
    """Decibels that the middle 80 % of a recording's (samples,) frames span, pauses left out; None of silence."""
    size = round(FRAME * rate)
    frames = np.pad(np.asarray(wav, np.float64), (0, -len(wav) % size)).reshape(-1, size)
    power = (frames**2).mean(axis=1)
    if not (power > 0).any():
        return None
    level = 10 * np.log10(np.maximum(power, power.max() * 10 ** (-DEPTH / 10 - 1)))
    low, high = np.percentile(level[level > level.max() - DEPTH], SPAN)
    return float(high - low)


def moved(
    made: Sequence[float], source: Sequence[float], reference: Sequence[float], start: Sequence[float], *, name: str
) -> Measure:
    """Percent of the way from source to reference that something went from `start`, over all pairs.

    0: it stayed where it was, 100: it went as far as the reference lies from the source.  The least-squares share:
    pairs whose ends lie far apart count more.
    """
    way = np.subtract(reference, source, dtype=np.float64)
    if not (way**2).sum() > 0:
        raise Unavailable("sources and references do not differ in this: there is no way to go")
    return ratio(list(np.subtract(made, start) * way), list(way**2), name=name, scale=100.0)


def runs(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame-level units (frames,) to the units of their runs (runs,) and the runs' lengths in frames."""
    starts = np.flatnonzero(np.r_[len(units) > 0, units[1:] != units[:-1]])
    return units[starts], np.diff(np.r_[starts, len(units)])


def tempo(units: np.ndarray, rate_hz: float) -> float:
    """Natural log of runs a second, of frame-level units (frames,)."""
    return float(np.log(len(runs(units)[0]) * rate_hz / len(units)))


def shared_durations(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Log lengths (n, 2) of the runs that two recordings of the same words share, in order."""
    (a, lengths), (b, others) = runs(ours), runs(theirs)
    blocks = SequenceMatcher(None, a.tolist(), b.tolist(), autojunk=False).get_matching_blocks()
    pairs = [(lengths[i + k], others[j + k]) for i, j, n in blocks for k in range(n)]
    return np.log(np.asarray(pairs, np.float64).reshape(-1, 2))


def shared_profile(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Mean log lengths (n, 2) of each unit that both recordings have, whatever is said in them."""
    means = []
    for units in (ours, theirs):
        names, lengths = runs(units)
        means.append({int(u): float(np.log(lengths[names == u]).mean()) for u in np.unique(names)})
    both = sorted(means[0].keys() & means[1].keys())
    return np.asarray([(means[0][u], means[1][u]) for u in both], np.float64).reshape(-1, 2)


def usual_durations(units: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Log lengths (n, 2) of each utterance's runs: those usual for their units in the other utterances, and their own.

    The control of durations: what the unit alone tells.  Runs of units that no other utterance has are left out.
    """
    found = [runs(one) for one in units]
    totals: dict[int, np.ndarray] = {}
    own = [_totals(names, lengths) for names, lengths in found]
    for one in own:
        for unit, total in one.items():
            totals[unit] = totals.get(unit, np.zeros(2)) + total
    out = []
    for (names, lengths), mine in zip(found, own, strict=True):
        others = {unit: totals[unit] - total for unit, total in mine.items()}
        rows = [
            (others[int(u)][0] / others[int(u)][1], np.log(length))
            for u, length in zip(names, lengths, strict=True)
            if others[int(u)][1] > 0
        ]
        out.append(np.asarray(rows, np.float64).reshape(-1, 2))
    return out


def _totals(names: np.ndarray, lengths: np.ndarray) -> dict[int, np.ndarray]:
    """Sum of log lengths, and how many there are, of each unit."""
    return {int(u): np.array([np.log(lengths[names == u]).sum(), (names == u).sum()]) for u in np.unique(names)}


def correlation(pairs: Sequence[np.ndarray], *, name: str) -> Measure:
    """Pearson's correlation over all rows of the pairs (n, 2) of utterances; the interval is over utterances."""
    sums = np.array([_sums(one) for one in pairs], np.float64).reshape(-1, 6)

    def statistic(weights: np.ndarray) -> float:
        n, x, y, xx, yy, xy = weights @ sums
        between = (xx - x * x / n) * (yy - y * y / n) if n else 0.0
        if between <= 1e-12:
            raise Unavailable("durations that do not vary have no correlation")
        return float((xy - x * y / n) / np.sqrt(between))

    return spread(statistic, len(sums), name=name)


def _sums(pairs: np.ndarray) -> tuple[float, ...]:
    x, y = pairs[:, 0], pairs[:, 1]
    return len(pairs), x.sum(), y.sum(), x @ x, y @ y, x @ y

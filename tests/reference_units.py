"""Slow and obvious versions of what units.py and quantizers.py do."""

import math
from collections import Counter
from fractions import Fraction
from itertools import groupby

import numpy as np


def runs(rows: list) -> list[tuple]:
    """(value, length) of each run of equal values."""
    return [(value, len(list(group))) for value, group in groupby(rows)]


def entropy(symbols: list) -> float:
    """Empirical entropy in bits."""
    total = len(symbols)
    return sum(n / total * math.log2(total / n) for n in Counter(symbols).values())


def bitrates(utterances: list[list[int]], *, n_units: int, rate_hz: float) -> dict[str, float]:
    """Corpus-level bitrates of one-codebook units."""
    frames = [unit for units in utterances for unit in units]
    merged = [run for units in utterances for run in runs(units)]
    seconds = len(frames) / rate_hz
    return {
        "bits_per_second": len(frames) * math.log2(n_units) / seconds,
        "entropy_bps": len(frames) * entropy(frames) / seconds,
        "dedup_bps": len(merged) * math.log2(n_units) / seconds,
        "dedup_entropy_bps": len(merged) * entropy([value for value, _ in merged]) / seconds,
        "duration_bps": len(merged) * entropy([length for _, length in merged]) / seconds,
        "seconds": seconds,
        "n_units_used": len(set(frames)),
    }


def nearest_float64(z: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Nearest centroid (rows,) by differences in float64."""
    return np.array([np.square(row.astype(np.float64) - centroids.astype(np.float64)).sum(1).argmin() for row in z])


def nearest_exact(z: np.ndarray, centroids: np.ndarray) -> list[int]:
    """Nearest centroid (rows,) in rational arithmetic: no rounding at all, ties to the lowest."""
    exact = [[Fraction(float(c)) for c in centroid] for centroid in centroids]
    result = []
    for row in z:
        point = [Fraction(float(x)) for x in row]
        distances = [sum((a - b) ** 2 for a, b in zip(point, centroid, strict=True)) for centroid in exact]
        result.append(distances.index(min(distances)))
    return result

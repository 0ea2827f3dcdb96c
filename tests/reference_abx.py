"""ABX the slow way: one pair of tokens at a time, one triplet at a time, in plain Python."""

import math
from fractions import Fraction
from itertools import product

import numpy as np


def warped(table: np.ndarray) -> float:
    """Fill the cost table, walk back from the end (diagonal, then along the second, then along the first), divide."""
    n, m = table.shape
    cost = np.zeros((n, m), np.float32)
    for i, j in product(range(n), range(m)):
        ways = [cost[i - a, j - b] for a, b in ((1, 1), (0, 1), (1, 0)) if i >= a and j >= b]
        cost[i, j] = table[i, j] + (min(ways) if ways else np.float32(0))
    i, j, steps = n - 1, m - 1, 1
    while i or j:
        ways = [(cost[i - a, j - b], k, a, b) for k, (a, b) in enumerate(((1, 1), (0, 1), (1, 0))) if i >= a and j >= b]
        _, _, a, b = min(ways)
        i, j, steps = i - a, j - b, steps + 1
    return float(np.float32(cost[-1, -1]) / np.float32(steps))


def cheapest(table: np.ndarray) -> float:
    """Least sum over all monotone paths, by trying them all."""
    n, m = table.shape

    def best(i: int, j: int) -> float:
        if i == n - 1 and j == m - 1:
            return float(table[i, j])
        steps = [(i + a, j + b) for a, b in ((1, 1), (0, 1), (1, 0)) if i + a < n and j + b < m]
        return float(table[i, j]) + min(best(*step) for step in steps)

    return best(0, 0)


def apart(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    """Distance between two frames."""
    if kind == "identical":
        return float(np.mean(a != b))
    if kind == "euclidean":
        return math.dist(a, b)
    if not a.any() or not b.any():
        return 0.0 if not a.any() and not b.any() else 1.0
    return math.acos(max(-1.0, min(1.0, float(a @ b / np.sqrt((a @ a) * (b @ b)))))) / math.pi


def between(x: np.ndarray, y: np.ndarray, kind: str) -> float:
    """Distance between two tokens (frames, dim)."""
    return warped(np.array([[apart(a, b, kind) for b in y] for a in x], np.float32))


def inside(onset: str, offset: str, rate: int, n_frames: int) -> list[int]:
    """Frames whose centre lies in [onset, offset], in exact fractions."""
    centres = [Fraction(2 * i + 1, 2 * rate) for i in range(n_frames)]
    return [i for i, t in enumerate(centres) if Fraction(onset) <= t <= Fraction(offset)]


def abx_error(
    tokens: list[tuple[np.ndarray, str, tuple[str, str], str]], *, across: bool, context: bool, kind: str
) -> float:
    """Error in percent over all triplets of (frames, phone, context, speaker) tokens, averaged in ZeroSpeech order."""
    cells: dict[tuple[str, str, str, tuple[str, str], str], list[float]] = {}
    numbers = range(len(tokens))
    for a, b, x in product(numbers, numbers, numbers):
        (fa, pa, ca, sa), (fb, pb, cb, sb), (fx, px, cx, sx) = tokens[a], tokens[b], tokens[x]
        if a == x or pa != px or pa == pb or sa != sb or (sa == sx) == across:
            continue
        if context and not ca == cb == cx:
            continue
        # A token is compared with another of its own group in one direction only: the earlier one first.
        near = between(fx, fa, kind) if across or x < a else between(fa, fx, kind)
        far = between(fx, fb, kind)
        error = 1.0 if near > far else 0.5 if near == far else 0.0
        cells.setdefault((pa, pb, sa, ca if context else ("", ""), sx), []).append(error)
    speakers: dict[tuple[str, str, str], list[float]] = {}
    for (pa, pb, sa, _, _), errors in cells.items():
        speakers.setdefault((pa, pb, sa), []).append(float(np.mean(errors)))
    pairs: dict[tuple[str, str], list[float]] = {}
    for (pa, pb, _), means in speakers.items():
        pairs.setdefault((pa, pb), []).append(float(np.mean(means)))
    return 100 * float(np.mean([np.mean(means) for means in pairs.values()]))

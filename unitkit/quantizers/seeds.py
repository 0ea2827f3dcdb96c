"""First centroids for k-means: random frames, k-means++ and k-means‖."""

import numpy as np
import torch

from unitkit.quantizers.products import Affine

CELLS = 1 << 19  # rows × candidates compared at once


def random(z: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (n_units, dim) of `z` (rows, dim), each at most once."""
    return z[rng.choice(len(z), n_units, replace=False)]


def plus_plus(z: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (n_units, dim) on a random subset of at most 20 frames a unit (at least 20,000)."""
    subset = z[rng.permutation(len(z))[: max(20 * n_units, 20_000)]]
    return _by_distance(subset, np.ones(len(subset)), n_units, rng)


def parallel(z: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """k-means‖ (n_units, dim): five rounds each draw about n_units far frames, then k-means++ on what was drawn."""
    drawn = z[rng.integers(len(z), size=1)]
    nearest = np.zeros(len(z), np.int64)
    squares = _nearest(z, drawn)[1]
    for _ in range(5):
        if not (total := squares.sum(dtype=np.float64)):
            break
        fresh = z[rng.random(len(z)) < n_units * squares / total]
        if len(fresh):
            index, found = _nearest(z, fresh)
            nearest = np.where(found < squares, index + len(drawn), nearest)
            squares, drawn = np.minimum(found, squares), np.concatenate([drawn, fresh])
    if len(drawn) < n_units:  # few frames, or few distinct ones: dead clusters are repaired afterwards
        return np.concatenate([drawn, random(z, n_units - len(drawn), rng)])
    return _by_distance(drawn, np.bincount(nearest, minlength=len(drawn)), n_units, rng)


def _by_distance(z: np.ndarray, weights: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """Weighted k-means++: each next centroid is a frame drawn in proportion to weight × squared distance."""
    norms = np.square(z).sum(1)
    chosen, squares = np.empty(n_units, np.int64), np.ones(len(z))
    for i in range(n_units):
        cumulated = np.cumsum(weights * squares)
        drawn = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
        chosen[i] = one = min(drawn, len(z) - 1)
        fresh = np.maximum(norms - 2 * (z @ z[one]) + norms[one], 0)
        squares = fresh.astype(np.float64) if i == 0 else np.minimum(squares, fresh)
    return z[chosen]


def _nearest(z: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and squared distance (rows,) of the nearest candidate, up to float32 rounding: enough to start from."""
    scores, index, lowest = Affine.scores(torch.from_numpy(candidates)), [], []
    for rows in torch.from_numpy(z).split(max(1, CELLS // len(candidates))):
        found = scores(rows).numpy()
        index.append(found.argmin(1))
        lowest.append(np.take_along_axis(found, index[-1][:, None], 1)[:, 0])
    return np.concatenate(index), np.maximum(np.square(z).sum(1) + 2 * np.concatenate(lowest), 0)


INITS = {"k-means||": parallel, "k-means++": plus_plus, "random": random}

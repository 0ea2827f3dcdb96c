"""Duration-penalised segmentation: units that stay, where a switch costs more than it brings (DPDP, dusted)."""

import numpy as np

from unitkit.units import UnitsError


def segment(costs: np.ndarray, gamma: float) -> np.ndarray:
    """The units (frames,) int64 that minimise Σ costs[t, unit_t] + gamma × segments, of `costs` (frames, n_units).

    A segment is a run of equal units.  dusted and DPDP write the same thing as a reward of gamma × (length − 1) for
    each segment: the sum of that is gamma × (frames − segments), so the two differ by the constant gamma × frames and
    have the same solutions.  What costs are is the caller's choice, and so is the scale of gamma: dusted takes
    Euclidean distances, DPDP squared ones.

    The optimum is exact, in O(frames × n_units) time: at each frame one either stays, or pays gamma and comes from the
    best unit of the frame before.  Sums are in float64.  On a tie staying wins over switching, and the lowest unit over
    the others; gamma = 0 gives the nearest unit, ties to the lowest.  Raises `UnitsError` unless costs are finite and
    (frames, n_units), and gamma is finite and not negative.
    """
    costs = np.asarray(costs, np.float64)
    if costs.ndim != 2 or not costs.shape[1]:
        raise UnitsError(f"costs must be (frames, n_units), not of shape {costs.shape}")
    if not (gamma >= 0 and np.isfinite(gamma)):
        raise UnitsError(f"gamma must be a finite number from 0, not {gamma!r}")
    if not np.isfinite(costs).all():
        raise UnitsError(
            f"costs must be finite; frame {int(np.argwhere(~np.isfinite(costs))[0, 0])} has one that is not"
        )
    if gamma == 0 or len(costs) == 0:
        return costs.argmin(axis=1)  # nothing is gained by staying
    return _filled(*_paths(costs, gamma))


def boundaries(units: np.ndarray) -> np.ndarray:
    """First frame of each segment of units (frames,), then the number of frames: (segments + 1,), as dusted has it."""
    changes = np.flatnonzero(units[1:] != units[:-1]) + 1
    return np.concatenate([[0], changes, [len(units)]]) if len(units) else np.zeros(1, np.int64)


def _paths(costs: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the best path that ends at each frame: its unit there, and the frame that unit's segment begins at."""
    frames, n_units = costs.shape
    unit, start = np.empty(frames, np.int64), np.empty(frames, np.int64)
    since = np.zeros(n_units, np.int64)  # where the segment of each unit begins, if a path ends in that unit
    over = costs[0].copy()  # how much worse that path is than the best one: no sum grows with the frames
    anew = np.empty(n_units, np.bool_)
    for t in range(frames):
        if t:
            np.greater(over, gamma, out=anew)  # the best path so far and a switch cost gamma
            since[anew] = t
            np.minimum(over, gamma, out=over)
            over += costs[t]
        best = over.argmin()
        over -= over[best]
        unit[t], start[t] = best, since[best]
    return unit, start


def _filled(unit: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Backwards from the last frame, segment by segment."""
    units = np.empty_like(unit)
    end = len(unit)
    while end:
        first = start[end - 1]
        units[first:end] = unit[end - 1]
        end = first
    return units

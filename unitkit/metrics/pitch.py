"""Pitch: F0 error where both recordings are voiced, and how often their voicing differs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unitkit.metrics.base import Measure, ratio, signature

FRAME_ALIGNED_WITHIN = 0.05  # s: a resynthesis that differs less in length (edge frames) keeps its time axis


@dataclass(frozen=True)
class PitchErrors:
    """Sums over the aligned frames of one pair, to be pooled over a corpus."""

    squared_hz: float
    squared_cents: float
    both_voiced: int
    voicing_differs: int
    frames: int


def pitch_errors(ours: np.ndarray, theirs: np.ndarray, *, path: np.ndarray | None = None) -> PitchErrors:
    """Compare two F0 tracks (frames,) in Hz, 0 = unvoiced: frame by frame, or along a DTW path (steps, 2)."""
    if len(ours) == 0 or len(theirs) == 0:
        raise ValueError(f"cannot compare F0 tracks of {len(ours)} and {len(theirs)} frames: both need at least one")
    if path is None:
        n = min(len(ours), len(theirs))
        ours, theirs = ours[:n], theirs[:n]
    else:  # trackers may give a frame less than the spectrum that was aligned
        ours, theirs = ours[np.minimum(path[:, 0], len(ours) - 1)], theirs[np.minimum(path[:, 1], len(theirs) - 1)]
    both = (ours > 0) & (theirs > 0)
    hz = ours[both].astype(np.float64) - theirs[both]
    cents = 1200 * np.log2(ours[both].astype(np.float64) / theirs[both])
    return PitchErrors(
        squared_hz=float(hz @ hz),
        squared_cents=float(cents @ cents),
        both_voiced=int(both.sum()),
        voicing_differs=int(((ours > 0) != (theirs > 0)).sum()),
        frames=len(ours),
    )


def f0_rmse_hz(pairs: Sequence[PitchErrors], *, align: str, tracker: str = "swift-f0") -> Measure:
    """Root mean squared F0 error in Hz over all frames of the corpus voiced in both recordings."""
    name = signature("f0_rmse", {"unit": "Hz", "f0": tracker, "hop": "10ms", "align": align})
    return ratio([p.squared_hz for p in pairs], [p.both_voiced for p in pairs], name=name, power=0.5)


def f0_rmse_cents(pairs: Sequence[PitchErrors], *, align: str, tracker: str = "swift-f0") -> Measure:
    """Root mean squared F0 error in cents, over the same frames."""
    name = signature("f0_cents", {"unit": "cent", "f0": tracker, "hop": "10ms", "align": align})
    return ratio([p.squared_cents for p in pairs], [p.both_voiced for p in pairs], name=name, power=0.5)


def voicing_error(pairs: Sequence[PitchErrors], *, align: str, tracker: str = "swift-f0") -> Measure:
    """Percent of aligned frames voiced in one recording and unvoiced in the other."""
    name = signature("voicing", {"unit": "%", "f0": tracker, "hop": "10ms", "align": align})
    return ratio([p.voicing_differs for p in pairs], [p.frames for p in pairs], name=name, scale=100.0)

"""Duration-penalised segmentation against every way to cut."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_segments import dusted_price, least_price, price

from unitkit.segments import boundaries, segment
from unitkit.units import UnitsError

SHAPES = st.tuples(st.integers(1, 14), st.integers(1, 5))
WHOLE = arrays(np.float64, SHAPES, elements=st.integers(0, 6).map(float))  # many ties, and exact sums
REAL = arrays(np.float64, SHAPES, elements=st.floats(-1e6, 1e6))


@settings(max_examples=300)
@given(WHOLE, st.integers(0, 9).map(float))
def test_the_optimum_is_that_of_all_segmentations(costs: np.ndarray, gamma: float) -> None:
    units = segment(costs, gamma)
    assert units.shape == (len(costs),) and units.dtype == np.int64
    assert price(costs, units, gamma) == least_price(costs, gamma)
    assert least_price(costs, gamma) - gamma * len(costs) == dusted_price(costs, gamma)  # equal up to a constant


@given(REAL, st.floats(0, 1e6))
def test_the_optimum_in_floating_point(costs: np.ndarray, gamma: float) -> None:
    assert price(costs, segment(costs, gamma), gamma) == pytest.approx(least_price(costs, gamma), rel=1e-12, abs=1e-6)


@given(WHOLE)
def test_no_penalty_is_the_nearest_unit_with_ties_to_the_lowest(costs: np.ndarray) -> None:
    assert segment(costs, 0.0).tolist() == [row.index(min(row)) for row in costs.tolist()]


@given(WHOLE, st.lists(st.integers(0, 30), min_size=2, max_size=6, unique=True))
def test_a_larger_penalty_never_gives_more_segments(costs: np.ndarray, gammas: list[int]) -> None:
    counts = [len(boundaries(segment(costs, gamma))) for gamma in sorted(gammas)]
    assert counts == sorted(counts, reverse=True)


@given(WHOLE)
def test_a_huge_penalty_gives_one_segment_of_the_best_unit(costs: np.ndarray) -> None:
    assert segment(costs, 1e9).tolist() == [int(costs.sum(axis=0).argmin())] * len(costs)


def test_by_hand() -> None:
    costs = np.array([[0, 2], [0, 2], [1, 0], [0, 2], [3, 0], [3, 0]], float)
    assert segment(costs, 0.0).tolist() == [0, 0, 1, 0, 1, 1]
    assert segment(costs, 1.0).tolist() == [0, 0, 0, 0, 1, 1]  # the stray frame costs 1 where it stays, 2 to leave
    assert segment(costs, 6.0).tolist() == [1] * 6  # 6 + 6, against 1 + 12 for two segments and 7 + 6 for unit 0
    assert segment(costs, 4.0).tolist() == [0, 0, 0, 0, 1, 1]


def test_sums_do_not_grow_stale_over_long_recordings() -> None:
    """With an offset of 1e6 on every frame, plain sums lose the small differences that decide; ours do not."""
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 50, (20_000, 7)) / 64.0  # exact in binary, with the offset as well
    assert np.array_equal(segment(costs, 0.75), segment(costs + 2.0**30, 0.75))


def test_boundaries_are_those_of_the_runs() -> None:
    assert boundaries(np.array([3, 3, 1, 1, 1, 3])).tolist() == [0, 2, 5, 6]
    assert boundaries(np.array([], np.int64)).tolist() == [0]
    assert segment(np.zeros((0, 4)), 1.0).shape == (0,)


@pytest.mark.parametrize(
    ("costs", "gamma", "message"),
    [
        (np.zeros(3), 1.0, "frames, n_units"),
        (np.zeros((3, 0)), 1.0, "frames, n_units"),
        (np.zeros((3, 2)), -1.0, "gamma"),
        (np.zeros((3, 2)), float("nan"), "gamma"),
        (np.zeros((3, 2)), float("inf"), "gamma"),
        (np.array([[0, 1], [0, np.inf]]), 1.0, "frame 1"),
        (np.array([[0, np.nan]]), 0.0, "frame 0"),
    ],
)
def test_bad_input_is_named(costs: np.ndarray, gamma: float, message: str) -> None:
    with pytest.raises(UnitsError, match=message):
        segment(costs, gamma)


def test_time_grows_with_the_frames_not_their_square() -> None:
    def seconds(frames: int) -> float:
        costs = np.random.default_rng(1).random((frames, 20))
        spent = []
        for _ in range(3):
            start = time.process_time()
            segment(costs, 0.2)
            spent.append(time.process_time() - start)
        return min(spent)

    seconds(100)
    assert seconds(40_000) < 8 * seconds(10_000)  # 4 if linear, 16 if quadratic

"""Boundaries: matching, scores and controls, by hand and against the best assignment there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.metrics.alignments import Phone, phone_boundaries
from unitkit.metrics.base import Unavailable
from unitkit.metrics.boundaries import METRICS, boundary_measures, boundary_scores, count_hits, unit_boundaries
from unitkit.units import Units

TIMES = st.lists(st.integers(0, 60), max_size=12, unique=True).map(lambda ms: np.array(sorted(ms)) / 100)


def units(ids: object, *, rate: float = 50.0) -> Units:
    return Units(np.asarray(ids), rate, 10, "0123456789ab", "u")


@settings(max_examples=300, deadline=None)
@given(TIMES, TIMES)
def test_no_matching_has_more_hits(found: np.ndarray, wanted: np.ndarray) -> None:
    from scipy.optimize import linear_sum_assignment

    near = np.abs(np.rint(found * 100)[:, None] - np.rint(wanted * 100)[None]) <= 2
    rows, columns = linear_sum_assignment(-near.astype(int)) if near.size else ([], [])
    assert count_hits(found, wanted) == sum(near[row, column] for row, column in zip(rows, columns, strict=True))


def test_a_boundary_counts_once() -> None:
    assert count_hits(np.array([0.09, 0.10, 0.11]), np.array([0.10])) == 1
    assert count_hits(np.array([0.10]), np.array([0.09, 0.11])) == 1
    assert count_hits(np.array([0.10, 0.12]), np.array([0.08, 0.10])) == 2  # the first takes .08, though .10 is nearer


def test_the_tolerance_is_met_exactly() -> None:
    assert count_hits(np.array([0.12]), np.array([0.10])) == 1  # 0.12 - 0.10 > 0.02 in floating point
    assert count_hits(np.array([0.121]), np.array([0.10])) == 0
    assert count_hits(np.array([0.14]), np.array([0.10]), tolerance=0.05) == 1


def test_unit_boundaries_are_where_units_change() -> None:
    assert unit_boundaries(units([3, 3, 4, 4, 3])).tolist() == [0.04, 0.08]
    assert unit_boundaries(units([[1, 1], [1, 2], [1, 2]])).tolist() == [0.02]
    assert unit_boundaries(units([])).tolist() == [] and unit_boundaries(units([5])).tolist() == []


def test_phone_boundaries_have_no_outer_ends_and_gaps_have_two() -> None:
    phones = [Phone(0.1, 0.2, "a"), Phone(0.2, 0.3, "b"), Phone(0.35, 0.4, "c")]
    assert phone_boundaries(phones).tolist() == [0.2, 0.3, 0.35]
    assert phone_boundaries(phones[:1]).tolist() == []


def test_scores_by_hand() -> None:
    """6 found, 4 wanted, 3 hit: P .5, R .75, OS .5; R-value from the definition."""
    found = boundary_scores(3, 6, 4)
    assert found["boundary_precision"] == 0.5 and found["boundary_recall"] == 0.75
    assert found["boundary_f1"] == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert found["boundary_os"] == pytest.approx(0.75 / 0.5 - 1)
    first, second = np.sqrt(0.25**2 + 0.5**2), (-0.5 + 0.75 - 1) / np.sqrt(2)
    assert found["boundary_r"] == pytest.approx(1 - (abs(first) + abs(second)) / 2)


def test_scores_at_the_ends() -> None:
    assert boundary_scores(4, 4, 4) == dict(zip(METRICS, (1, 1, 1, 0, 1), strict=True))
    nothing = boundary_scores(0, 0, 4)
    assert nothing["boundary_f1"] == 0 and nothing["boundary_os"] == -1 and nothing["boundary_recall"] == 0
    assert boundary_scores(4, 40, 4)["boundary_r"] < 0 < boundary_scores(4, 40, 4)["boundary_f1"]
    with pytest.raises(Unavailable):
        boundary_scores(0, 3, 0)


def test_a_corpus_is_counted_at_once_beside_its_control() -> None:
    phones = [Phone(0.04 * n, 0.04 * (n + 1), "ab"[n % 2]) for n in range(8)]
    exact, blind = units(np.repeat([1, 2] * 4, 2)), units([5] * 16)
    found = boundary_measures({"exact": exact, "blind": blind, "other": exact}, {"exact": phones, "blind": phones})
    assert found["boundary_recall"][0].value == pytest.approx(7 / 14) and found["boundary_precision"][0].value == 1
    measure, control = found["boundary_f1"]
    assert measure.n == 2 and control == measure.value  # runs of equal length: in any order the same boundaries
    assert measure.signature == (
        "boundary_f1|tokenizer:0123456789ab|K:10|codebooks:1|rate:50|tolerance:20ms|match:one-to-one|sil:phone|"
        "control:runs-shuffled,seed0|v:0.1"
    )


def test_the_control_is_lower_where_boundaries_mean_something() -> None:
    lengths = np.random.default_rng(0).integers(2, 12, 60)
    ends = np.cumsum(lengths) / 50
    phones = [Phone(float(end - n / 50), float(end), "ab"[k % 2]) for k, (end, n) in enumerate(zip(ends, lengths))]  # noqa: B905
    found = boundary_measures({"u": units(np.repeat(np.arange(60) % 2, lengths))}, {"u": phones})
    measure, control = found["boundary_r"]
    assert measure.value == pytest.approx(1) and control < 0.8


def test_outside_the_aligned_stretch_nothing_is_judged() -> None:
    phones = [Phone(0.1, 0.2, "a"), Phone(0.2, 0.3, "b")]
    found = boundary_measures({"u": units([1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 1, 2, 3])}, {"u": phones})
    assert found["boundary_precision"][0].value == 1 and found["boundary_recall"][0].value == 1
    with pytest.raises(Unavailable, match="no.* alignment"):
        boundary_measures({"u": units([1, 2])}, {})

"""Unit edit distance: pairs, sums and controls, against a slow Levenshtein."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.manifest import Utterance
from unitkit.metrics.base import Unavailable
from unitkit.metrics.ued import Pair, control_pairs, speaker_pairs, unit_edit_distance, unit_edits
from unitkit.units import FingerprintError, Units

pytest.importorskip("rapidfuzz")
IDS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def units(ids: object, id_: str = "u", *, tokenizer: str = "0123456789ab") -> Units:
    return Units(np.asarray(ids), 50.0, 10, tokenizer, id_)


def slow_levenshtein(a: list[int], b: list[int]) -> int:
    table = [[i + j if not (i and j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


def collapsed(ids: list[int]) -> list[int]:
    return [unit for n, unit in enumerate(ids) if n == 0 or unit != ids[n - 1]]


@settings(max_examples=200, deadline=None)
@given(IDS, IDS)
def test_edits_are_those_of_the_slow_reference(clean: list[int], changed: list[int]) -> None:
    edits = unit_edits(units(clean), units(changed))
    assert edits.distance == slow_levenshtein(collapsed(clean), collapsed(changed))
    assert edits.length == len(collapsed(clean))


def test_sums_come_before_the_ratio() -> None:
    """2 edits of 8 and 1 of 1: 100 * 3 / 9, where the mean over utterances would be 62.5."""
    clean = {"long": units([0, 1, 2, 3, 4, 5, 6, 7], "long"), "short": units([1, 1, 1], "short")}
    changed = {"long": units([0, 0, 1, 2, 3, 4, 5, 9, 8], "long"), "short": units([2, 2], "short")}
    pairs = [Pair(id_, id_, id_) for id_ in clean]
    found = unit_edit_distance(clean, pairs, changed=changed, between="noise")
    assert found.value == pytest.approx(100 * 3 / 9) and found.n == 2
    assert found.signature.startswith(
        "ued|between:noise|tokenizer:0123456789ab|K:10|codebooks:1|level:dedup|norm:clean-length|average:micro|rapidfuzz:"
    )


def test_runs_and_speed_cost_nothing() -> None:
    corpus = {"slow": units([1, 1, 1, 2, 2], "slow"), "fast": units([1, 2], "fast")}
    assert unit_edit_distance(corpus, [Pair("slow", "fast", "s")]).value == 0


def test_speakers_meet_in_both_orders_over_one_text() -> None:
    rows = [("a", "ann", "Hello  there"), ("b", "bob", "hello there"), ("c", "bob", "Hello there"), ("d", "bob", "no"),
            ("e", None, "hello there"), ("f", "cat", None)]  # fmt: skip
    found = speaker_pairs(Utterance(id_, "x.wav", speaker=who, text=text) for id_, who, text in rows)
    assert sorted((pair.clean, pair.changed) for pair in found) == [("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")]
    other = [
        Utterance("a", "x", speaker="ann", text="no", lang="en"),
        Utterance("b", "x", speaker="b", text="no", lang="it"),
    ]
    assert speaker_pairs(other) == []


def test_the_control_takes_another_sentence_of_the_same_speaker() -> None:
    speakers = {f"{who}{n}": who for who in "ab" for n in range(4)}
    pairs = [Pair(f"{x}{n}", f"{y}{n}", str(n)) for n in range(4) for x, y in ("ab", "ba")]
    found = control_pairs(pairs, speakers)
    assert len(found) == len(pairs) and control_pairs(pairs, speakers) == found
    for pair, control in zip(pairs, found, strict=True):
        assert (
            control.clean == pair.clean and control.changed[0] == pair.changed[0] and control.changed[1] != pair.group
        )
    assert control_pairs(pairs[:2], speakers) == []  # one sentence: there is no other


def test_the_interval_is_over_sentences() -> None:
    corpus = {
        f"{who}{n}": units(np.random.default_rng(n).integers(0, 9, 20), f"{who}{n}") for who in "ab" for n in range(9)
    }
    pairs = [Pair(f"a{n}", f"b{n}", str(n)) for n in range(9)]
    same = unit_edit_distance(corpus, pairs)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    mixed = unit_edit_distance(corpus, [Pair(f"a{n}", f"b{(n * 4 + 1) % 9}", str(n)) for n in range(9)])
    assert 0 < mixed.low < mixed.value < mixed.high


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(FingerprintError, match="ffffffffffff"):
        unit_edits(units([1]), units([1], tokenizer="f" * 12))
    with pytest.raises(ValueError, match="no units for 1 pairs, the first 'a' and 'b'"):
        unit_edit_distance({"a": units([1])}, [Pair("a", "b", "s")])
    with pytest.raises(Unavailable, match="two speakers"):
        unit_edit_distance({"a": units([1])}, [])

"""Error rates of texts and units, intervals and signatures."""

import re
from pathlib import Path

import numpy as np
import pytest

from unitkit.metrics import base, text
from unitkit.metrics.units import unit_error_rate, unit_errors
from unitkit.units import FingerprintError, Units, UnitsHeader, write_units

jiwer = pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer.english")


def test_wer_is_pooled_over_the_corpus_after_normalisation() -> None:
    references = ["Please enter your password.", "twenty-one", "Dr. Smith's colour"]
    heard = ["please enter the password", "21", "doctor smith's color please"]
    found = text.word_error_rate(references, heard)
    assert found.value == pytest.approx(100 * 2 / 9)  # "your" -> "the", "please" too many; 4 + 1 + 4 words
    assert found.n == 3
    assert found.low <= found.value <= found.high


def test_cer_counts_characters_and_no_outer_spaces() -> None:
    assert text.word_error_rate(["This message lasts ... ", "…to exit"], ["this message lasts", "to exit"]).value == 0
    assert text.character_error_rate(["... abc"], ["abc"]).value == 0
    assert text.character_error_rate(["abcd"], ["abxd"]).value == pytest.approx(25)


def test_accents_are_stripped_on_both_sides_outside_english() -> None:
    assert text.word_error_rate(["¿Cuál es su número?"], ["cual es su numero"], langs="es").value == 0
    assert text.word_error_rate(["été"], ["ete"], langs="fr").value == 0


def test_words_of_unspaced_languages_are_characters() -> None:
    assert text.word_error_rate(["你好吗"], ["你好"], langs="zh").value == pytest.approx(100 / 3)


def test_languages_may_differ_within_a_corpus() -> None:
    found = text.word_error_rate(["twenty one", "número"], ["21", "numero"], langs=["en", "es"])
    assert found.value == 0
    assert "lang:en+es" in found.signature and "whisper-basic-noaccent+whisper-en," in found.signature


def test_nothing_said_but_something_heard_counts_as_insertions() -> None:
    assert text.word_error_rate(["hello there", "..."], ["hello there", "thank you"]).value == pytest.approx(100)


def test_only_empty_references_cannot_be_scored() -> None:
    with pytest.raises(base.Unavailable, match="empty"):
        text.word_error_rate(["..."], ["thank you"])


def test_lists_must_agree() -> None:
    with pytest.raises(ValueError, match="1 references, 2 hypotheses"):
        text.word_error_rate(["a"], ["a", "b"])
    with pytest.raises(TypeError, match="lists of texts"):
        text.word_error_rate("a", "a")


def test_signature_says_what_a_reader_needs() -> None:
    judge = "whisper-base.ct2@905e5bf8|beam:5|compute:float32"
    found = text.word_error_rate(["a"], ["a"], recognizer=judge)
    pattern = rf"wer\|asr:{re.escape(judge)}\|lang:en\|norm:whisper-en,no-ellipsis\|jiwer:[\d.]+\|v:[\d.]+"
    assert re.fullmatch(pattern, found.signature)


def test_interval_is_seeded_covers_the_value_and_narrows_with_more_data() -> None:
    errors = np.random.default_rng(0).integers(0, 3, size=40)
    few, again = (base.ratio(errors, [5] * 40, name="x", scale=100) for _ in range(2))
    many = base.ratio(np.tile(errors, 25), [5] * 1000, name="x", scale=100)
    assert (few.low, few.high) == (again.low, again.high)
    assert few.low < few.value < few.high
    assert many.value == pytest.approx(few.value) and many.high - many.low < (few.high - few.low) / 3


def test_root_is_taken_after_pooling() -> None:
    assert base.ratio([9, 16], [1, 1], name="x", power=0.5).value == pytest.approx(np.sqrt(12.5))


def test_a_missing_package_names_the_command() -> None:
    with pytest.raises(base.Unavailable, match=r"no_such_thing is not installed; pip install nothing"):
        base.require("no_such_thing", package="nothing")


# ------------------------------------------------------------------------------------------------------- units


def units_of(ids: list[int] | list[list[int]], *, name: str = "a") -> Units:
    return Units(np.array(ids), rate_hz=50.0, n_units=10, tokenizer="abc", id=name)


def slow_edit_distance(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row, above = [i], row
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def test_unit_errors_match_a_slow_edit_distance() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.integers(0, 4, size=rng.integers(1, 30)).tolist() for _ in range(2))
        assert unit_errors(units_of(a), units_of(b), dedup=False) == (slow_edit_distance(a, b), len(b))


def test_dedup_forgives_durations_only() -> None:
    ours, theirs = units_of([1, 2, 2, 2, 3]), units_of([1, 1, 2, 3, 3])
    assert unit_errors(ours, theirs) == (0, 3)
    assert unit_errors(ours, theirs, dedup=False)[0] > 0


def test_codebooks_are_summed() -> None:
    assert unit_errors(units_of([[1, 5], [2, 5]]), units_of([[1, 6], [3, 6]]), dedup=False) == (3, 4)


def test_unit_error_rate_of_files(tmp_path: Path) -> None:
    header = UnitsHeader("abc", 50.0, 10)
    write_units(tmp_path / "ref.jsonl", header, [units_of([1, 1, 2, 3]), units_of([4, 5], name="b")])
    write_units(tmp_path / "syn.jsonl", header, [units_of([4, 6], name="b"), units_of([1, 2, 2, 3])])
    found = unit_error_rate(tmp_path / "syn.jsonl", tmp_path / "ref.jsonl")
    assert found.value == pytest.approx(100 * 1 / 5) and found.n == 2
    assert "tokenizer:abc" in found.signature and "level:dedup" in found.signature
    assert unit_error_rate(tmp_path / "syn.jsonl", tmp_path / "ref.jsonl", dedup=False).value == pytest.approx(200 / 6)
    assert unit_error_rate(tmp_path / "syn.jsonl", tmp_path / "ref.jsonl", ids={"a"}).value == 0


def test_unit_files_must_belong_together(tmp_path: Path) -> None:
    write_units(tmp_path / "ref.jsonl", UnitsHeader("abc", 50.0, 10), [units_of([1]), units_of([2], name="b")])
    write_units(tmp_path / "few.jsonl", UnitsHeader("abc", 50.0, 10), [units_of([1])])
    write_units(tmp_path / "other.jsonl", UnitsHeader("xyz", 50.0, 10), [])
    with pytest.raises(ValueError, match=r"1 missing \['b'\]"):
        unit_error_rate(tmp_path / "few.jsonl", tmp_path / "ref.jsonl")
    with pytest.raises(FingerprintError, match="xyz"):
        unit_error_rate(tmp_path / "other.jsonl", tmp_path / "ref.jsonl")

"""Phone alignments: tables, labels of frames, and the recipe that makes them."""

import importlib.util
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit import audio
from unitkit.manifest import read_manifest
from unitkit.metrics.alignments import AlignmentError, Inventory, Phone, read_alignments, write_alignments

ROOT = Path(__file__).resolve().parents[1]
HEADER = "id\tstart\tend\tphone\n"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("align_prompts", ROOT / "recipes" / "align_prompts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_tables_round_trip(tmp_path: Path) -> None:
    rows = {"en/a b": [Phone(0, 0.1, "SIL"), Phone(0.1, 0.235, "AE")], "é": [Phone(0.5, 1, "x")]}
    assert write_alignments(tmp_path / "p.tsv", rows.items()) == 2
    assert read_alignments(tmp_path / "p.tsv") == rows
    assert (tmp_path / "p.tsv").read_text().splitlines()[2] == "en/a b\t0.100\t0.235\tAE"


def test_columns_are_found_by_name_and_ids_prefixed(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("\ufeffword\tphone\tend\tstart\tid\nhi\tHH\t0.2\t0.1\tx\n", encoding="utf-8")
    assert read_alignments(tmp_path / "p.tsv", prefix="en/") == {"en/x": [Phone(0.1, 0.2, "HH")]}


def test_silence_that_never_was_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text(HEADER + "x\t0.00\t-0.07\tSIL\nx\t0.00\t0.02\tDH\n")
    assert read_alignments(tmp_path / "p.tsv") == {"x": [Phone(0, 0.02, "DH")]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("x\t0\t1\n", ":2: 3 columns"),
        ("x\tzero\t1\ta\n", ":2: .*'zero'"),
        ("x\t1\t1\ta\n", ":2: a phone from 1 to 1 s"),
        ("x\t-1\t1\tSIL\n", ":2: a phone from -1"),
        ("x\t0\tinf\ta\n", ":2: a phone from 0 to inf"),
        ("x\t0\t1\ta\nx\t0.5\t2\tb\n", ":3: 'x': b starts at 0.5 s, before the phone above ends"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "p.tsv").write_text(HEADER + rows)
    with pytest.raises(AlignmentError, match=message):
        read_alignments(tmp_path / "p.tsv")


def test_a_table_needs_its_header(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("x\t0\t1\ta\n")
    with pytest.raises(AlignmentError, match=":1: no column id, start, end, phone"):
        read_alignments(tmp_path / "p.tsv")
    with pytest.raises(AlignmentError, match="tabs"):
        write_alignments(tmp_path / "q.tsv", [("a\tb", [Phone(0, 1, "x")])])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True).map(sorted), st.sampled_from([25, 50, 100]))
def test_each_frame_has_the_phone_at_its_centre(cuts: list[int], rate: int) -> None:
    """Against exact fractions, with boundaries in whole hundredths, many of them on centres."""
    phones = [Phone(a / 100, b / 100, f"p{n}") for n, (a, b) in enumerate(pairwise(cuts))]
    inventory = Inventory.of({"x": phones})
    found = inventory.frames(phones, rate, rate_hz=float(rate))
    for frame, label in enumerate(found):
        centre = Fraction(2 * frame + 1, 2 * rate)
        spans = pairwise(cuts)
        wanted = [f"p{n}" for n, (a, b) in enumerate(spans) if Fraction(a, 100) <= centre < Fraction(b, 100)]
        assert ([inventory.labels[label]] if label >= 0 else []) == wanted


def test_the_inventory_may_leave_out_silence() -> None:
    phones = [Phone(0, 0.1, "SIL"), Phone(0.1, 0.2, "b"), Phone(0.2, 0.3, "a"), Phone(0.3, 0.4, "")]
    assert Inventory.of({"x": phones}).labels == ("", "SIL", "a", "b")
    quiet = Inventory.of({"x": phones}, silence=False)
    assert quiet.labels == ("a", "b") and quiet.frames(phones, 4, rate_hz=10).tolist() == [-1, 1, 0, -1]


# ---------------------------------------------------------------------------------------------------- the recipe


def test_texts_become_words_of_the_dictionary(recipe: ModuleType) -> None:
    assert recipe.words("Press 1 -- don’t wait, 'now' ... #") == ["press", "one", "don't", "wait", "now", "pound"]
    assert " ".join(recipe.words("Use the 7 key; non-administrator *")) == "use the seven key non administrator star"
    assert recipe.words("3D") == ["three", "d"] and recipe.words("...") == []
    with pytest.raises(recipe.AlignError, match=r"the number 28\.8"):
        recipe.words("at least 28.8 kilobit")


def test_words_given_by_hand_use_the_phones_of_the_model(recipe: ModuleType) -> None:
    vowels = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}
    known = vowels | set("BDFGKLMNPRSTVWYZ") | {"CH", "DH", "HH", "JH", "NG", "SH", "TH", "ZH"}
    assert all(
        set(spelling.split()) <= known and recipe.words(word) == [word] for word, spelling in recipe.WORDS.items()
    )


def test_without_pocketsphinx_the_mend_is_named(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    manifest = ROOT / "samples" / "en" / "test.jsonl"
    assert recipe.main([str(manifest), str(tmp_path / "out.tsv")]) == 2
    assert "pip install 'unitkit[align]'" in capsys.readouterr().err and not (tmp_path / "out.tsv").exists()


def test_prompts_are_aligned(recipe: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    utterances = [one for one in read_manifest(ROOT / "samples" / "en" / "test.jsonl") if one.text][:4]
    report = recipe.Report()
    found = dict(recipe.aligned(utterances, report))
    assert not report.failed and list(found) == [one.id for one in utterances]
    for one in utterances:
        phones = found[one.id]
        assert all(a.end == pytest.approx(b.start) for a, b in pairwise(phones))
        assert phones[-1].end == pytest.approx(audio.info(one.audio).duration, abs=0.06)
        voiced = [phone for phone in phones if not phone.silent]
        assert len(voiced) >= len(recipe.words(one.text or "")) and np.mean([p.end - p.start for p in voiced]) < 0.2

"""Scores of small syntheses of real recordings: joins, controls, skips, files and tables."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics import families
from unitkit.metrics.recognise import Recognizer
from unitkit.metrics.score import (
    METRICS,
    ScoreError,
    ScoreRow,
    System,
    markdown,
    read_scores,
    score,
    score_directories,
    score_systems,
    table,
    write_scores,
)
from unitkit.units import Units, UnitsHeader, write_units

SAMPLES = Path(__file__).parent.parent / "samples/en/test.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four originals, a noisy copy ("noisy"), and frames in random order ("shuffled")."""
    root = tmp_path_factory.mktemp("score")
    originals = list(read_manifest(SAMPLES))[:4]
    write_manifest(root / "originals.jsonl", originals)
    rng = np.random.default_rng(0)

    def noisy(wav: np.ndarray) -> np.ndarray:
        return wav + 0.01 * rng.normal(size=len(wav)).astype(np.float32)

    def shuffled(wav: np.ndarray) -> np.ndarray:
        frames = wav[: len(wav) // 320 * 320].reshape(-1, 320)
        return rng.permutation(frames).ravel()

    synthesise(root / "noisy", originals, noisy)
    synthesise(root / "shuffled", originals, shuffled)
    return root


def synthesise(out: Path, originals: list[Utterance], change: Callable[[np.ndarray], np.ndarray]) -> None:
    out.mkdir()
    rows = []
    for index, row in enumerate(originals):
        audio.write(out / f"{index}.wav", change(audio.read(row.audio, 16_000)), 16_000)
        rows.append(replace(row, audio=str(out / f"{index}.wav"), start=None, duration=None))
    write_manifest(out / "manifest.jsonl", rows[::-1])  # joined by id, whatever the order


class Heard:
    """Stands in for a recogniser: remembers how often it was asked, answers by the length of the recording."""

    name, languages, signature = "heard", ("en",), "heard|beam:1"

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts, self.asked = texts, 0

    def __call__(self, wav: np.ndarray, *, lang: str) -> str:
        self.asked += 1
        return self.texts[len(wav)]


def heard_right(manifest: Path) -> Heard:
    return Heard({len(audio.read(row.audio, 16_000)): row.text or "" for row in read_manifest(manifest)})


def test_distances_order_copy_noise_and_shuffle(folder: Path) -> None:
    pytest.importorskip("swift_f0")
    rows = score_systems(
        [System("noisy", folder / "noisy/manifest.jsonl", control=folder / "shuffled/manifest.jsonl")],
        folder / "originals.jsonl",
        metrics=["mel", "mcd", "f0_rmse", "f0_cents", "voicing"],
    )
    assert [row.metric for row in rows] == ["mel", "mcd", "f0_rmse", "f0_cents", "voicing"]
    for row in rows:
        assert row.n == 4 and row.reference is None and row.note is None
        assert row.value is not None and row.low is not None and row.high is not None
        assert row.value > 0 and row.low <= row.value <= row.high
    for row in (rows[0], rows[1], rows[4]):  # of the shuffled frames too few are voiced to compare pitch
        assert row.control is not None and row.value is not None and row.control > 1.3 * row.value
    assert "align:frames" in rows[2].signature


def test_originals_against_themselves_are_perfect(folder: Path) -> None:
    pytest.importorskip("swift_f0")
    names = ["mel", "mcd", "f0_rmse", "voicing"]
    rows = score(folder / "originals.jsonl", folder / "originals.jsonl", metrics=names)
    assert [row.value for row in rows] == [0, 0, 0, 0]


def test_a_stretched_synthesis_is_aligned(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("swift_f0")
    originals = list(read_manifest(folder / "originals.jsonl"))[:1]

    def slower(wav: np.ndarray) -> np.ndarray:
        frames = np.repeat(wav[: len(wav) // 800 * 800].reshape(-1, 800), 2, axis=0)
        return frames.ravel()

    synthesise(tmp_path / "slow", originals, slower)
    (row,) = score(tmp_path / "slow/manifest.jsonl", folder / "originals.jsonl", metrics=["f0_cents"], partial=True)
    assert "align:dtw" in row.signature
    assert row.value is not None and row.value < 400
    assert row.note is not None and "scored without 3 (" in row.note


def test_wer_beside_original_and_control_and_nothing_is_heard_twice(folder: Path) -> None:
    pytest.importorskip("whisper_normalizer.english")
    judge = heard_right(folder / "originals.jsonl")
    shuffled = {
        len(audio.read(row.audio, 16_000)): "noise" for row in read_manifest(folder / "shuffled/manifest.jsonl")
    }
    judge.texts = shuffled | judge.texts
    noisy = System("a", folder / "noisy/manifest.jsonl", control=folder / "shuffled/manifest.jsonl")
    rows = score_systems(
        [noisy, replace(noisy, name="b")], folder / "originals.jsonl", metrics="wer,cer", recognizer=as_judge(judge)
    )
    assert [(row.system, row.metric) for row in rows] == [("a", "wer"), ("a", "cer"), ("b", "wer"), ("b", "cer")]
    assert judge.asked == 12  # 4 originals, 4 noisy, 4 shuffled; WER and CER, "a" and "b" share them
    assert rows[0].value == rows[0].reference == 0
    assert rows[0].control is not None and rows[0].control > 50
    assert "asr:heard|beam:1" in rows[0].signature


def as_judge(judge: Heard) -> Recognizer:
    """`judge` as the recogniser of a context."""
    return judge  # type: ignore[return-value]


def test_without_transcripts_wer_is_left_out_and_says_why(folder: Path, tmp_path: Path) -> None:
    write_manifest(
        tmp_path / "bare.jsonl", (replace(row, text=None) for row in read_manifest(folder / "originals.jsonl"))
    )
    rows = score(folder / "noisy/manifest.jsonl", tmp_path / "bare.jsonl", metrics=["wer", "mel"])
    assert rows[0].value is None and rows[0].n == 0
    assert rows[0].note == "left out: no transcripts in the reference manifest"
    assert rows[1].value is not None


def test_a_language_the_recogniser_lacks_is_left_out(folder: Path, tmp_path: Path) -> None:
    write_manifest(
        tmp_path / "fr.jsonl", (replace(row, lang="fr_CA") for row in read_manifest(folder / "originals.jsonl"))
    )
    (row,) = score(
        folder / "noisy/manifest.jsonl", tmp_path / "fr.jsonl", metrics=["wer"], recognizer=as_judge(Heard({}))
    )
    assert row.note is not None and "does not know fr" in row.note


def test_ids_must_match_and_are_named(folder: Path, tmp_path: Path) -> None:
    originals = list(read_manifest(folder / "originals.jsonl"))
    write_manifest(tmp_path / "few.jsonl", originals[:3])
    write_manifest(tmp_path / "more.jsonl", [*originals, replace(originals[0], id="stranger")])
    with pytest.raises(ScoreError, match=originals[3].id):
        score(tmp_path / "few.jsonl", folder / "originals.jsonl", metrics=["mel"])
    with pytest.raises(ScoreError, match=r"1 \(stranger\) unknown"):
        score(tmp_path / "more.jsonl", folder / "originals.jsonl", metrics=["mel"])
    with pytest.raises(ScoreError, match=originals[3].id):
        score(
            folder / "noisy/manifest.jsonl", folder / "originals.jsonl", metrics=["mel"], control=tmp_path / "few.jsonl"
        )
    (row,) = score(tmp_path / "few.jsonl", folder / "originals.jsonl", metrics=["mel"], partial=True)
    assert row.n == 3 and row.note is not None and originals[3].id in row.note


def test_an_unknown_metric_names_the_known_ones(folder: Path) -> None:
    with pytest.raises(ScoreError, match=r"unknown metric bleu; known: all, wer, cer"):
        score(folder / "noisy/manifest.jsonl", folder / "originals.jsonl", metrics="wer,bleu")


def test_unit_error_rate_from_directories(folder: Path, tmp_path: Path) -> None:
    ids = [row.id for row in read_manifest(folder / "originals.jsonl")]
    header = UnitsHeader("abc", 50.0, 9)

    def write(path: Path, first: int) -> None:
        write_units(path, header, [Units(np.array([first, 2, 3]), 50.0, 9, "abc", id=name) for name in ids])

    write(tmp_path / "ref.jsonl", 1)
    write(folder / "noisy/units.jsonl", 4)
    write(folder / "shuffled/units.jsonl", 2)
    rows = score_directories(
        [folder / "noisy"],
        folder / "originals.jsonl",
        control=folder / "shuffled",
        reference_units=tmp_path / "ref.jsonl",
        metrics="uer",
        out=tmp_path / "scores.jsonl",
    )
    assert rows[0].system == "noisy" and rows[0].value == pytest.approx(100 / 3)
    assert rows[0].control == pytest.approx(100 / 3)
    assert read_scores(tmp_path / "scores.jsonl") == rows
    (row,) = score(folder / "noisy/manifest.jsonl", folder / "originals.jsonl", metrics="uer")
    assert row.note is not None and "needs the units" in row.note


def test_speaker_of_noise_differs_more(folder: Path) -> None:
    pytest.importorskip("resemblyzer")
    (row,) = score(
        folder / "noisy/manifest.jsonl",
        folder / "originals.jsonl",
        metrics=["speaker"],
        control=folder / "shuffled/manifest.jsonl",
    )
    assert row.value is not None and row.control is not None and row.reference is not None
    assert row.control < row.value <= 1 and row.control < row.reference


def test_silence_has_no_speaker(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("resemblyzer")
    pytest.importorskip("swift_f0")
    synthesise(tmp_path / "silent", list(read_manifest(folder / "originals.jsonl")), np.zeros_like)
    rows = score(
        tmp_path / "silent/manifest.jsonl", folder / "originals.jsonl", metrics=["speaker", "f0_rmse", "voicing", "mcd"]
    )
    assert rows[0].value == 0
    assert rows[1].value is None and rows[1].note is not None and "voiced" in rows[1].note
    assert rows[2].value is not None and rows[2].value > 20
    assert rows[3].value is not None and np.isfinite(rows[3].value)


@pytest.mark.parametrize("metric", ["dnsmos", "distillmos"])
def test_predicted_opinion_prefers_the_original(folder: Path, tmp_path: Path, metric: str) -> None:
    module = {"dnsmos": "speechmos.dnsmos", "distillmos": "distillmos"}[metric]
    pytest.importorskip(module, exc_type=Exception)  # type: ignore[arg-type]
    for name in ("originals", "shuffled/manifest"):  # one short recording
        rows = sorted(read_manifest(folder / f"{name}.jsonl"), key=lambda row: audio.info(row.audio).duration)
        write_manifest(tmp_path / f"{Path(name).parent.name or name}.jsonl", rows[:1])
    (row,) = score(tmp_path / "shuffled.jsonl", tmp_path / "originals.jsonl", metrics=[metric])
    assert row.value is not None and row.reference is not None
    assert 1 <= row.value < row.reference <= 5


# ------------------------------------------------------------------------------------------------ rows and tables


def row_of(system: str, metric: str, value: float | None, *, note: str | None = None) -> ScoreRow:
    return ScoreRow(system, "test", metric, value, 5, f"{metric}|v:1", control=90.5, reference=4.25, note=note)


def test_rows_are_replaced_by_name_and_kept_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.jsonl"
    assert write_scores(path, [row_of("a", "wer", 10.0), row_of("a", "cer", 5.0)]) == 2
    assert write_scores(path, [row_of("b", "wer", 20.0), row_of("a", "wer", 11.0)]) == 3
    assert [(row.system, row.metric, row.value) for row in read_scores(path)] == [
        ("a", "wer", 11.0),
        ("a", "cer", 5.0),
        ("b", "wer", 20.0),
    ]
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"system": "a", "split": "test", "metric": "wer", "value": 11.0, "n": 5, "signature": "wer|v:1",
                     "control": 90.5, "reference": 4.25}  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["scores.jsonl"]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text('{"system": "a"}\n')
    with pytest.raises(ScoreError, match=r"scores\.jsonl:1"):
        read_scores(tmp_path / "scores.jsonl")


def test_tables_show_original_and_control_and_why_something_is_missing() -> None:
    from rich.console import Console

    rows = [
        row_of("istft [k=100]", "wer", 12.34),
        row_of("istft [k=100]", "dnsmos", None, note="left out: no speechmos"),
    ]
    text = markdown(rows)
    assert "| istft [k=100] | test | WER % ↓ | 12.3 | – | 4.2 | 90.5 | 5 |" in text
    assert "- istft [k=100]/dnsmos: left out: no speechmos" in text
    assert "- `wer|v:1`" in text and "`dnsmos|v:1`" not in text
    out = io.StringIO()
    Console(file=out, width=140).print(table(rows))
    for piece in ("istft [k=100]", "12.3", "90.5", "left out: no speechmos"):
        assert piece in out.getvalue()


def test_every_metric_has_a_family() -> None:
    assert sorted(METRICS) == sorted(name for family in families.FAMILIES for name in family.metrics)

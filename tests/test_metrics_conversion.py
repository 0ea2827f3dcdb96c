"""Scores of conversions: pure functions against slow ones, and a directory where it is known what moved."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit import audio
from unitkit.manifest import Utterance, write_manifest
from unitkit.metrics import conversion, families, score_conversion
from unitkit.metrics.base import Unavailable
from unitkit.metrics.rows import CONVERSION_METRICS, ScoreError, read_scores
from unitkit.metrics.score_conversion import score_conversions
from unitkit.units import UnitsHeader, write_units

HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, 20)


def test_the_pitch_of_a_recording() -> None:
    hertz = np.concatenate([np.zeros(10), np.repeat([100.0, 200.0], 50)])
    found = conversion.pitch(hertz)
    assert found is not None and found.mean == pytest.approx(12 * np.log2(100) + 6) and found.span == pytest.approx(12)
    wild = hertz.copy()
    wild[10:13] = 800  # an octave error in three frames
    assert conversion.pitch(wild).span == pytest.approx(12)
    assert conversion.pitch(np.zeros(5)) is None


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9), st.floats(-1, 2))
@settings(max_examples=60, deadline=None)
def test_the_share_of_the_way(ends: list[tuple[float, float]], share: float) -> None:
    source, reference = (np.array(side) for side in zip(*ends, strict=True))
    if np.square(reference - source).sum() < 1e-6:
        return
    start = source[::-1] + 1
    made = start + share * (reference - source)
    found = conversion.moved(made, source, reference, start, name="x")
    assert found.value == pytest.approx(100 * share, abs=1e-6)


def test_nowhere_to_go() -> None:
    with pytest.raises(Unavailable, match="there is no way to go"):
        conversion.moved([1.0], [2.0], [2.0], [2.0], name="x")


def test_the_energy_span_of_a_recording() -> None:
    loud, soft = tone(200, 1.0), 0.1 * tone(200, 1.0)
    both = np.concatenate([loud, soft, np.zeros(16000, np.float32)])
    assert conversion.energy_span(both, 16000) == pytest.approx(20, abs=0.1)  # the pause is left out
    assert conversion.energy_span(0.5 * both, 16000) == pytest.approx(20, abs=0.1)
    assert conversion.energy_span(loud[:160], 16000) == pytest.approx(0)
    assert conversion.energy_span(np.zeros(160, np.float32), 16000) is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_runs_and_tempo(units: list[int]) -> None:
    names, lengths = conversion.runs(np.array(units))
    assert np.repeat(names, lengths).tolist() == units and (names[1:] != names[:-1]).all()
    slow = 1 + sum(a != b for a, b in pairwise(units))
    assert conversion.tempo(np.array(units), 50.0) == pytest.approx(np.log(slow * 50 / len(units)))


def test_durations_that_two_recordings_share() -> None:
    ours, theirs = np.repeat([1, 2, 3, 4], [2, 3, 4, 5]), np.repeat([1, 9, 3, 4], [4, 1, 8, 10])
    assert np.allclose(np.exp(conversion.shared_durations(ours, theirs)), [(2, 4), (4, 8), (5, 10)])
    assert conversion.shared_durations(ours, np.array([7, 7])).shape == (0, 2)
    profile = conversion.shared_profile(np.repeat([1, 2, 1], [2, 5, 8]), np.repeat([3, 1], [2, 6]))
    assert np.allclose(np.exp(profile), [(4, 6)])  # unit 1: the geometric mean of 2 and 8


def test_what_the_unit_alone_tells() -> None:
    units = [np.repeat([1, 2], [2, 3]), np.repeat([1, 3, 1], [4, 1, 9])]
    first, second = conversion.usual_durations(units)
    assert np.allclose(np.exp(first), [(6, 2)])  # unit 1 elsewhere: the geometric mean of 4 and 9; 2 is nowhere else
    assert np.allclose(np.exp(second), [(2, 4), (2, 9)])


def test_correlation_is_pearsons_over_all_rows() -> None:
    draw = np.random.default_rng(0)
    pairs = [draw.standard_normal((n, 2)) @ np.array([[1, 0.7], [0, 0.7]]) for n in (5, 0, 9, 12)]
    rows = np.concatenate(pairs)
    found = conversion.correlation(pairs, name="r")
    assert found.value == pytest.approx(np.corrcoef(rows.T)[0, 1]) and found.low < found.value < found.high
    with pytest.raises(Unavailable, match="do not vary"):
        conversion.correlation([np.ones((4, 2))], name="r")


# ------------------------------------------------------------------------------------------------ a directory


def tone(hertz: float, seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16000)) / 16000)).astype(np.float32)


VOICES = {"ann": (200.0, [2, 2, 2, 2]), "bob": (100.0, [5, 2, 4, 5])}  # F0, frames of units 0 to 3


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two pairs, ann into bob.  In "speaker" only F0 moved, three quarters of the way; in "rhythm" only durations."""

    def track(wav: np.ndarray, rate: int, *, hop_samples: int) -> np.ndarray:
        spectrum = np.abs(np.fft.rfft(wav, 1 << 16))
        return np.full(len(wav) // hop_samples, spectrum.argmax() * rate / (1 << 16), np.float32)

    def embedding(wav: np.ndarray) -> np.ndarray:
        angle = track(wav, 16000, hop_samples=160)[0] / 200 * np.pi / 2
        return np.array([np.cos(angle), np.sin(angle)])

    monkeypatch.setattr(audio, "f0", track)
    monkeypatch.setattr(score_conversion.speaker, "embed", embedding)
    monkeypatch.setattr(score_conversion.speaker, "speaker_signature", lambda compared: f"speaker|compared:{compared}")
    monkeypatch.setattr(families.speaker, "embed", embedding)

    def recording(name: str, hertz: float) -> str:
        path = tmp_path / "wav" / f"{name}.wav"
        audio.write(path, tone(hertz, 0.5), 16000)
        return str(path)

    def spoken(words: list[int], frames: list[int]) -> np.ndarray:
        return np.repeat(words, [frames[w] for w in words])

    words = {"a": [0, 1, 2, 3, 1, 0], "b": [3, 0, 2, 1, 0, 2]}
    said = {"a": [2, 0, 3, 1], "b": [0, 3, 2]}  # by the references
    ann, bob = VOICES["ann"], VOICES["bob"]
    sources = [Utterance(i, recording(f"s{i}", ann[0]), 0.5, None, "ann", "en", "word") for i in words]
    references = [Utterance(i, recording(f"r{i}", bob[0]), 0.5, None, "bob", "en", "other") for i in words]
    units = {
        "source": [HEADER.units(spoken(words[i], ann[1]), i) for i in words],
        "reference": [HEADER.units(spoken(said[i], bob[1]), i) for i in words],
    }
    for side, rows in units.items():
        write_units(tmp_path / f"{side}.units", HEADER, rows)
    for name, hertz, frames in (("speaker", 200 * 2**-0.75, ann[1]), ("rhythm", 200.0, bob[1])):
        folder = tmp_path / name
        folder.mkdir()
        rows = [replace(s, audio=recording(f"{name}{s.id}", hertz)) for s in sources]
        for file, some in (("manifest", rows), ("source", sources), ("reference", references)):
            write_manifest(folder / f"{file}.jsonl", some)
        write_units(folder / "units.jsonl", HEADER, [HEADER.units(spoken(words[i], frames), i) for i in words])
    return {name: tmp_path / name for name in ("speaker", "rhythm", "source.units", "reference.units")}


@pytest.mark.parametrize("baseline", ["speaker", "rhythm"])
def test_what_moved_is_counted_from_a_baseline(made: dict[str, Path], baseline: str) -> None:
    found, plain = scores(made, baseline=made[baseline]), scores(made)
    for system in ("speaker", "rhythm"):
        for metric in ("f0_mean_moved", "tempo_moved"):
            own, start = plain[system, metric].value, plain[baseline, metric].value
            assert found[system, metric].value == pytest.approx(own - start, abs=0.1)
            assert f"from:{baseline}" in found[system, metric].signature
            assert "from:source" in plain[system, metric].signature
        assert found[system, "f0_mean"].value == plain[system, "f0_mean"].value
    whole = made[baseline] / "manifest.jsonl"
    whole.write_text(whole.read_text().splitlines()[0] + "\n")
    other = "rhythm" if baseline == "speaker" else "speaker"
    with pytest.raises(ScoreError, match="lacks 1 of the pairs of .*, such as b"):
        score_conversions([made[other]], metrics="f0_mean_moved", baseline=made[baseline])


SOUND = "speaker_target,speaker_source,f0_mean,f0_mean_moved,f0_span,tempo_moved,duration_source,duration_reference"


def scores(
    made: dict[str, Path], out: Path | None = None, baseline: Path | None = None
) -> dict[tuple[str, str], object]:
    rows = score_conversions(
        [made["speaker"], made["rhythm"]],
        source_units=made["source.units"],
        reference_units=made["reference.units"],
        baseline=baseline,
        metrics=SOUND,
        out=out,
    )
    return {(row.system, row.metric): row for row in rows}


def test_each_mode_is_seen_to_move_what_it_moved(made: dict[str, Path], tmp_path: Path) -> None:
    found = scores(made, tmp_path / "scores.jsonl")
    mean = found["speaker", "f0_mean"]
    assert mean.value == pytest.approx(3, abs=0.05) and mean.reference == pytest.approx(12, abs=0.05)
    assert mean.control == pytest.approx(0, abs=0.05) and mean.n == 2  # another recording of bob
    assert found["speaker", "f0_mean_moved"].value == pytest.approx(75, abs=0.5)
    assert found["rhythm", "f0_mean_moved"].value == pytest.approx(0, abs=0.5)
    target, source = found["speaker", "speaker_target"], found["speaker", "speaker_source"]
    assert target.reference < target.value < target.control == pytest.approx(1, abs=1e-3)
    assert source.control == pytest.approx(target.reference) and source.control < source.value < 1
    assert found["speaker", "tempo_moved"].value == pytest.approx(0) and found["rhythm", "tempo_moved"].value > 60
    assert found["speaker", "duration_source"].note == "left out: durations that do not vary have no correlation"
    beside = found["rhythm", "duration_reference"]
    assert beside.value == pytest.approx(1) and beside.control == pytest.approx(1) and beside.reference is None
    assert [row.key for row in read_scores(tmp_path / "scores.jsonl")] == [
        (system, "test", metric) for system in ("speaker", "rhythm") for metric in SOUND.split(",")
    ]
    assert "compared:reference" in target.signature and "units:as-spoken" in beside.signature


def test_words_are_those_of_the_source(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    def recognition(context, side) -> dict[str, object]:
        heard.append([(a.audio, b.text) for a, b in side.pairs])
        return {name: conversion.ratio([len(heard)], [10.0], name=name, scale=100) for name in ("wer", "cer")}

    monkeypatch.setattr(score_conversion, "recognition", recognition)
    (wer,) = score_conversions([made["speaker"]], metrics="wer")
    assert (wer.value, wer.reference, wer.control) == (10, 20, None)
    assert [len(rows) for rows in heard] == [2, 2] and {text for rows in heard for _, text in rows} == {"word"}


def test_what_is_missing_is_said(made: dict[str, Path], tmp_path: Path) -> None:
    (row,) = score_conversions([made["rhythm"]], metrics="tempo_moved")
    assert row.value is None and "no units of the sources: encode them and give --source-units" in row.note
    with pytest.raises(ScoreError, match=f"unknown metric f0; known: all, {', '.join(CONVERSION_METRICS)}"):
        score_conversions([made["rhythm"]], metrics="f0")
    (made["rhythm"] / "reference.jsonl").unlink()
    with pytest.raises(ScoreError, match=r"reference\.jsonl is not there: score directories that `unitkit convert`"):
        score_conversions([made["rhythm"]], metrics="f0_mean")
    other = UnitsHeader("0b0b0b0b0b0b", 50.0, 20)
    write_units(tmp_path / "other", other, [other.units([1, 2], i) for i in "ab"])
    with pytest.raises(ScoreError, match="units of tokenizer 0b0b0b0b0b0b, the conversions' are of 5a5a5a5a5a5a"):
        score_conversions([made["speaker"]], metrics="tempo_moved", source_units=tmp_path / "other",
                          reference_units=made["reference.units"])  # fmt: skip
    write_units(tmp_path / "few", HEADER, [HEADER.units([1, 2], "a")])
    with pytest.raises(ScoreError, match="--source-units lacks 1 of its ids, such as b"):
        score_conversions([made["speaker"]], metrics="tempo_moved", source_units=tmp_path / "few",
                          reference_units=made["reference.units"])  # fmt: skip


def test_rows_are_json(made: dict[str, Path], tmp_path: Path) -> None:
    scores(made, tmp_path / "s.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert all(line["value"] is None or np.isfinite(line["value"]) for line in lines) and len(lines) == 16

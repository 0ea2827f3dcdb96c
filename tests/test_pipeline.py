"""Whole systems: a vocoder that speaks units, bulk synthesis that goes on where it stopped, and `info`."""

import json
from pathlib import Path

import numpy as np
import pytest

from unitkit import audio
from unitkit.manifest import read_manifest, write_manifest
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.pipeline import Vocoder, describe, header_of, synthesise
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, Units, read_units, write_units
from unitkit.voices import Voices, VoicesError

ROOT = Path(__file__).resolve().parents[1]
TINY = IstftConfig(dim=16, blocks=1, hidden=32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load("prompts-mfcc100", device="cpu")


@pytest.fixture(scope="module")
def units_file(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("units") / "units.jsonl"
    rows = list(read_manifest(ROOT / "samples" / "en" / "dev.jsonl"))[:3]
    write_units(path, tokenizer.header(), (tokenizer.encode(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def vocoder_dir(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocoder") / "model"
    config = VocoderConfig(tokenizer.fingerprint, n_units=100, istft=TINY, speakers=("allison", "june"))
    UnitVocoder(config).save(path)
    return path


def test_speaks_frame_level_and_reduced_units(vocoder_dir: Path, units_file: Path) -> None:
    vocoder = Vocoder.load(vocoder_dir, device="cpu")
    units = next(iter(read_units(units_file)))
    wav = vocoder(units, speaker="allison")
    assert wav.dtype == np.float32 and len(wav) == units.n_frames * 320
    short, durations = units.dedup()
    assert np.array_equal(vocoder(short, speaker="allison", durations=durations), wav)
    predicted = vocoder(short, speaker="allison")
    assert len(predicted) >= short.n_frames * 320
    assert np.array_equal(vocoder(units, speaker="allison", durations="predicted"), predicted)
    assert not np.array_equal(vocoder(units, speaker="june"), wav)


def test_wrong_conditions_are_named(vocoder_dir: Path, units_file: Path) -> None:
    vocoder = Vocoder.load(vocoder_dir, device="cpu")
    units = next(iter(read_units(units_file)))
    foreign = Units(units.ids, units.rate_hz, units.n_units, "0123456789ab", units.id)
    with pytest.raises(FingerprintError, match="0123456789ab"):
        vocoder(foreign, speaker="allison")
    with pytest.raises(ValueError, match="allison, june"):
        vocoder(units, speaker="carlo")
    with pytest.raises(ValueError, match="predicted"):
        vocoder(units, speaker="allison", durations="guessed")


def test_synthesis_is_a_manifest_again_and_resumes(vocoder_dir: Path, units_file: Path, tmp_path: Path) -> None:
    vocoder, out = Vocoder.load(vocoder_dir, device="cpu"), tmp_path / "synth"
    like = tmp_path / "like.jsonl"
    write_manifest(like, read_manifest(ROOT / "samples" / "en" / "dev.jsonl"))
    assert synthesise(vocoder, units_file, out, like=like) == 3
    rows = list(read_manifest(out / "manifest.jsonl"))
    for row, units in zip(rows, read_units(units_file), strict=True):
        assert row.id == units.id and row.text and row.speaker == "allison"
        assert audio.info(row.audio).n_samples == units.n_frames * 320
    first, second = Path(rows[0].audio), Path(rows[1].audio)
    stamp = first.stat().st_mtime_ns
    second.unlink()
    synthesise(vocoder, units_file, out, like=like)
    assert first.stat().st_mtime_ns == stamp and second.exists()
    synthesise(vocoder, units_file, out, like=like, shuffle=0)
    assert first.stat().st_mtime_ns != stamp
    assert json.loads((out / "synthesis.json").read_text())["shuffle"] == 0


def test_a_vocoder_with_f0_takes_it_from_the_originals(tokenizer: Tokenizer, units_file: Path, tmp_path: Path) -> None:
    config = VocoderConfig(tokenizer.fingerprint, n_units=100, istft=TINY, f0=True, energy=True)
    UnitVocoder(config).save(tmp_path / "model")
    vocoder = Vocoder.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="--like"):
        synthesise(vocoder, units_file, tmp_path / "a")
    like = ROOT / "samples" / "en" / "dev.jsonl"
    assert synthesise(vocoder, units_file, tmp_path / "b", like=like) == 3
    with pytest.raises(ValueError, match="frames"):
        synthesise(vocoder, units_file, tmp_path / "c", like=like, durations="predicted")


def test_describe_tells_things_apart(vocoder_dir: Path, units_file: Path) -> None:
    samples = ROOT / "samples" / "en"
    recording = next(read_manifest(samples / "dev.jsonl")).audio
    found = {str(p): describe(str(p))[0] for p in (vocoder_dir, units_file, samples / "dev.jsonl", recording)}
    assert list(found.values()) == ["vocoder", "units", "manifest", "audio"]
    assert describe("prompts-mfcc100")[1]["fingerprint"] == Tokenizer.load("prompts-mfcc100", device="cpu").fingerprint


def test_header_of_a_bare_fingerprint_needs_the_number_of_units(tokenizer: Tokenizer) -> None:
    assert header_of("prompts-mfcc100") == tokenizer.header()
    assert header_of("0123456789ab", n_units=50, rate_hz=25.0).n_units == 50
    with pytest.raises(ValueError, match="--units"):
        header_of("0123456789ab")


def test_units_are_spoken_in_the_voices_of_a_file(tokenizer: Tokenizer, units_file: Path, tmp_path: Path) -> None:
    """By the utterance's id, else by its speaker; a speaker asked for comes first."""
    config = VocoderConfig(tokenizer.fingerprint, n_units=100, istft=TINY, speaker_vector_dim=3, speaker_encoder="cafe")
    UnitVocoder(config).save(tmp_path / "model")
    vocoder, like = Vocoder.load(tmp_path / "model", device="cpu"), ROOT / "samples" / "en" / "dev.jsonl"
    units = list(read_units(units_file))
    draw = np.random.default_rng(0)
    voices = Voices.of({name: draw.standard_normal(3) for name in ("allison", units[0].id, "eve")}, encoder="cafe")
    for name, speaker, wanted in (("own", None, (units[0].id, "allison")), ("eve", "eve", ("eve", "eve"))):
        out = tmp_path / name
        assert synthesise(vocoder, units_file, out, like=like, voices=voices, speaker=speaker) == 3
        for row, one, who in zip(read_manifest(out / "manifest.jsonl"), units, wanted, strict=False):
            wav = vocoder(one, vector=voices[who])
            assert np.abs(audio.read(row.audio, 16000) - wav.clip(-1, 1)).max() < 1e-3
    noted = json.loads((tmp_path / "own" / "synthesis.json").read_text())
    assert noted["voices"] == voices.checksum()
    with pytest.raises(ValueError, match="--voices"):
        synthesise(vocoder, units_file, tmp_path / "none")
    with pytest.raises(VoicesError, match="'other'.*'cafe'"):
        synthesise(vocoder, units_file, tmp_path / "none", voices=Voices(voices.names, voices.vectors, "other"))

"""Conversion with one call and from the command line: a small untrained model whose parts belong together."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_files import recipe

from unitkit import VoiceConverter, audio, cli
from unitkit.audio import AudioError, Mel
from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest
from unitkit.models.frame import Bins, FrameConfig, FrameError, FrameModel, Size
from unitkit.models.speaker import SpeakerConfig, SpeakerEncoder, SpeakerNet
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.pipeline import Step, convert, describe
from unitkit.tokenizer import BUNDLED, Tokenizer, bundled_as
from unitkit.units import FingerprintError, read_header, read_units

ROOT = Path(__file__).resolve().parents[1]
ROWS = list(read_manifest(ROOT / "samples" / "en" / "dev.jsonl"))[:4]
TOKENIZER = "prompts-mfcc100"  # the lightest of the bundled ones
torch.set_num_threads(1)


def frame_model(tokenizer: Tokenizer, **more: object) -> FrameModel:
    torch.manual_seed(0)
    settings = {
        "tokenizer": tokenizer.fingerprint, "n_units": tokenizer.n_units, "mel": Mel(n_mels=20), "dim": 16, "layers": 1,
        "vector_dim": 8, "hearing_hidden": 8, "hearing_layers": 1, "f0": Bins(-12.0, 12.0, 16, 2.0),
        "energy": Bins(-6.0, 6.0, 16, 1.0), "durations": Size(8), "voicing": Size(8), "f0_size": Size(8),
        "energy_size": Size(8),
    }  # fmt: skip
    model = FrameModel(FrameConfig(**(settings | more))).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.durations.leave.bias.fill_(1.2)
        model.durations.leave.weight.mul_(4)
    return model


def vocoder(model: FrameModel, **more: object) -> UnitVocoder:
    torch.manual_seed(1)
    mel = model.config.mel
    settings = {
        "tokenizer": mel.fingerprint, "rate_hz": mel.rate_hz, "n_units": 1, "features_dim": mel.n_mels, "unit_dim": 8,
        "sample_rate": mel.sample_rate, "istft": IstftConfig(dim=16, blocks=1, hidden=16),
    }  # fmt: skip
    return UnitVocoder(VocoderConfig(**(settings | more))).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER, device="cpu")


@pytest.fixture(scope="module", params=["learned", "given"])
def bundle(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converter as the recipes leave it, which hears voices itself or by a speaker encoder."""
    path = tmp_path_factory.mktemp("vc") / "converter"
    more: dict[str, object] = {}
    if request.param == "given":
        speaker = SpeakerEncoder(SpeakerNet(SpeakerConfig(hidden=8, layers=1, dim=6)))
        speaker.save(path / "speaker")
        more = {"speaker_dim": 6, "speaker_encoder": speaker.checksum()}
    model = frame_model(tokenizer, **more)
    model.save(path)
    vocoder(model).save(path / "vocoder")
    return path


@pytest.fixture(scope="module")
def converter(bundle: Path) -> VoiceConverter:
    return VoiceConverter.load(bundle, device="cpu")


def steady(wav: np.ndarray, rate: int, *, hop_samples: int) -> np.ndarray:
    """F0 in place of the tracker, which is an extra."""
    return np.full(len(wav) // hop_samples, 150.0, np.float32)


def test_a_conversion_is_a_wav_as_long_and_as_loud_as_it_should_be(converter: VoiceConverter) -> None:
    source, reference = ROWS[0].audio, ROWS[1].audio
    wav = audio.read(source, 16000)
    units = converter.tokenizer.encode(wav, rate=16000)
    made = converter(source, reference, mode="speaker")
    assert made.dtype == np.float32 and converter.sample_rate == 16000
    assert len(made) == converter.model.config.mel_frames(len(units)) * 200
    assert np.sqrt(np.mean(made**2)) == pytest.approx(np.sqrt(np.mean(wav**2)), rel=1e-3) or np.abs(made).max() > 0.99
    same = converter(source, source, mode="speaker")
    assert np.array_equal(same, converter(source, reference, mode="copy")) and not np.array_equal(made, same)
    frames, spoken = converter.convert(source, reference, mode="rhythm")
    assert spoken.dedup()[0].ids.tolist() == units.dedup()[0].ids.tolist() and spoken.id == ROWS[0].id.split("/")[-1]
    assert len(converter(source, reference, mode="rhythm")) == len(frames.mel) * 200
    assert len(spoken) == int(frames.durations.sum()) != len(units)


def test_paths_utterances_wavs_and_lists_are_the_same(converter: VoiceConverter) -> None:
    path, wav, other = ROWS[0].audio, audio.read(ROWS[0].audio, 16000), audio.read(ROWS[1].audio, 16000)
    found = [
        converter(one, two)
        for one, two in ((path, ROWS[1].audio), (Path(path), ROWS[1]), (wav, other), (torch.from_numpy(wav), other))
    ]
    assert all(np.array_equal(found[0], one) for one in found[1:])
    alone = [converter(row, ROWS[1]) for row in ROWS]
    for made in (converter(ROWS, ROWS[1]), converter(tuple(ROWS), [ROWS[1]] * 4)):
        assert isinstance(made, list) and all(np.array_equal(a, b) for a, b in zip(alone, made, strict=True))
    low, lower = (audio.resample(x, 16000, 8000) for x in (wav, other))
    assert np.array_equal(
        converter(low, lower, rate=8000),
        converter(audio.resample(low, 8000, 16000), audio.resample(lower, 8000, 16000)),
    )
    with pytest.raises(ValueError, match="2 references for 4 sources: give one, or as many"):
        converter(ROWS, ROWS[:2])


def test_exact_pitch_keeps_the_sources(converter: VoiceConverter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "f0", steady)
    free, exact = (converter.convert(ROWS[0], ROWS[1], exact_pitch=flag)[0] for flag in (False, True))
    assert (
        exact.voiced.all() and (exact.f0.argmax(1) == exact.f0.argmax(1)[0]).all()
    )  # always 150 Hz: never off its mean
    assert exact.durations.equal(free.durations) and not torch.allclose(exact.mel, free.mel)
    with pytest.raises(FrameError, match="mode 'all' changes prosody"):
        converter(ROWS[0], ROWS[1], mode="all", exact_pitch=True)


def test_mels_of_another_rate_are_heard_as_in_training(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of the recording itself: not by way of the tokenizer's 16 kHz, which know nothing above 8 kHz."""
    model = frame_model(tokenizer, mel=Mel(22050, 256, 20))
    model.save(tmp_path / "c")
    vocoder(model).save(tmp_path / "c" / "vocoder")
    noise = np.random.default_rng(0).normal(0, 0.1, 22050).astype(np.float32)
    audio.write(tmp_path / "noise.wav", noise, 22050)
    found, heard = VoiceConverter.load(tmp_path / "c", device="cpu"), []
    spy = replace(found, model=found.model)
    found.model.hear = lambda wav: heard.append(wav) or FrameModel.hear(found.model, wav)  # type: ignore[method-assign]
    spy.convert(tmp_path / "noise.wav", tmp_path / "noise.wav")
    spy.convert(noise, noise, rate=22050)
    assert len(heard) == 4 and all(np.allclose(one, noise, atol=1e-4) for one in heard)


def test_only_the_first_half_minute_of_a_reference_is_heard(converter: VoiceConverter) -> None:
    wav = np.tile(audio.read(ROWS[1].audio, 16000), 40)[: 31 * 16000]
    long, cut = converter(ROWS[0], wav), converter(ROWS[0], wav[: 30 * 16000])
    assert np.array_equal(long, cut) and not np.array_equal(cut, converter(ROWS[0], wav[: 20 * 16000]))


def test_bad_speech_is_named(converter: VoiceConverter, tmp_path: Path) -> None:
    silent, short = tmp_path / "silent.wav", tmp_path / "short.wav"
    audio.write(silent, np.zeros(16000, np.float32), 16000)
    audio.write(short, np.ones(50, np.float32), 16000)
    with pytest.raises(AudioError, match=r"silent\.wav: silent or too short: it has no voice"):
        converter(ROWS[0], silent)
    with pytest.raises(AudioError, match=r"short\.wav: 50 samples are too short for a unit"):
        converter(short, ROWS[0])
    with pytest.raises(AudioError, match="gone"):
        converter(tmp_path / "gone.wav", ROWS[0])
    with pytest.raises(AudioError, match="NaN"):
        converter(np.full(9000, np.nan, np.float32), ROWS[0])
    with pytest.raises(FrameError, match="mode 'sing': known are copy, rhythm"):
        converter(ROWS[0], ROWS[1], mode="sing")


def test_parts_that_do_not_belong_together_are_refused(
    bundle: Path, converter: VoiceConverter, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert bundled_as(tokenizer.fingerprint) == TOKENIZER and bundled_as("000000000000") is None
    with pytest.raises(FingerprintError, match=rf"{Tokenizer.load('mini-100').fingerprint}.*{tokenizer.fingerprint}"):
        VoiceConverter.load(bundle, tokenizer="mini-100", device="cpu")
    model = converter.model
    vocoder(model, tokenizer="feedfeedfeed").save(tmp_path / "other")
    with pytest.raises(FingerprintError, match=f"feedfeedfeed.*{model.config.mel.fingerprint}"):
        VoiceConverter.load(bundle, vocoder=tmp_path / "other", device="cpu")
    vocoder(model, speakers=("ann", "bob")).save(tmp_path / "names")
    with pytest.raises(ValueError, match="wants more than mels: train one with data.names=false"):
        VoiceConverter.load(bundle, vocoder=tmp_path / "names", device="cpu")
    with pytest.raises(ValueError, match="they do not belong together"):
        replace(converter, speaker=SpeakerEncoder(SpeakerNet(SpeakerConfig(hidden=8, layers=1, dim=7))))
    stranger = SpeakerEncoder(SpeakerNet(SpeakerConfig(hidden=8, layers=1, dim=6)))  # of the same size
    with pytest.raises(ValueError, match=f"{model.config.speaker_encoder}.*{stranger.checksum()}"):
        replace(converter, speaker=stranger)
    FrameModel(replace(model.config, tokenizer="0b0b0b0b0b0b", speaker_dim=0, speaker_encoder="")).save(
        tmp_path / "strange" / "model"
    )
    if not (BUNDLED / "converter").exists():
        with pytest.raises(ValueError, match="converter: no such directory, and no bundled model of that name"):
            VoiceConverter.load(device="cpu")
    with pytest.raises(ValueError, match="no vocoder there"):
        VoiceConverter.load(tmp_path / "strange" / "model")
    vocoder(model).save(tmp_path / "strange" / "vocoder")  # beside the model
    with pytest.raises(FingerprintError, match="0b0b0b0b0b0b.*neither in its tokenizer/ nor bundled"):
        VoiceConverter.load(tmp_path / "strange" / "model")


def test_best_finds_what_lies_beside_it(bundle: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "c")
    shutil.copytree(bundle, tmp_path / "c" / "best", ignore=shutil.ignore_patterns("vocoder"))
    best = VoiceConverter.load(tmp_path / "c" / "best", device="cpu")
    assert best.settings() == VoiceConverter.load(tmp_path / "c", device="cpu").settings()
    tokenizer.save(tmp_path / "c" / "tokenizer")
    assert VoiceConverter.load(tmp_path / "c", device="cpu").tokenizer.fingerprint == tokenizer.fingerprint


# --------------------------------------------------------------------------------------------- many recordings


def test_a_directory_goes_on_where_it_stopped(converter: VoiceConverter, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    def stop(step: Step) -> None:
        seen.append(step.source.id)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(converter, ROWS[:3], ROWS[3:], out, mode="all", on_progress=stop)
    assert not (out / "manifest.jsonl").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "wav").iterdir()}
    assert len(stamps) == 2 and seen == [row.id for row in ROWS[:2]]
    done = convert(converter, ROWS[:3], ROWS[3:], out, mode="all")
    assert (done.made, done.kept, done.bad) == (1, 2, []) and done.seconds > 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    rows, units = list(read_manifest(out / "manifest.jsonl")), list(read_units(out / "units.jsonl"))
    references = list(read_manifest(out / "reference.jsonl"))
    assert [r.id for r in rows] == [u.id for u in units] == [r.id for r in references] == [r.id for r in ROWS[:3]]
    assert {r.audio for r in references} == {ROWS[3].audio}
    assert read_header(out / "units.jsonl") == converter.tokenizer.header()
    for row, source, one in zip(rows, ROWS, units, strict=False):
        made, spoken = converter.convert(source, ROWS[3], mode="all")
        assert np.array_equal(spoken.ids, one.ids) and (row.text, row.lang) == (source.text, source.lang)
        kept, wav = audio.read(row.audio, 16000), converter.say(made, audio.read(source.audio, 16000))
        assert np.abs(kept - wav).max() < 1e-4 and row.duration == pytest.approx(one.duration)
    assert rows[0].speaker == ROWS[3].speaker


def test_what_has_changed_is_made_again(converter: VoiceConverter, tmp_path: Path) -> None:
    one, other, out = tmp_path / "a.flac", tmp_path / "b.flac", tmp_path / "out"
    shutil.copy(ROWS[0].audio, one)
    shutil.copy(ROWS[1].audio, other)
    rows, references = [Utterance("a", str(one)), replace(ROWS[2], id="c")], [Utterance("b", str(other))]
    counts = []
    for change in ("nothing", "nothing", "reference", "another", "mode"):
        if change == "reference":
            later = (out / "wav" / "a.wav").stat().st_mtime + 5
            os.utime(other, (later, later))
        if change == "another":
            references = [ROWS[3]]
        done = convert(converter, rows, references, out, mode="copy" if change == "mode" else "speaker")
        counts.append((done.made, done.kept))
    assert counts == [(2, 0), (0, 2), (2, 0), (2, 0), (2, 0)]


def test_each_source_takes_the_reference_with_its_id(converter: VoiceConverter, tmp_path: Path) -> None:
    sources = [replace(ROWS[0], id="x"), replace(ROWS[1], id="y", speaker="ann")]
    references = [replace(ROWS[3], id="y", speaker="bob"), replace(ROWS[2], id="x", speaker="carl")]
    convert(converter, sources, references, tmp_path / "out", mode="speaker")
    rows = list(read_manifest(tmp_path / "out" / "manifest.jsonl"))
    assert [r.speaker for r in rows] == ["carl", "bob"]
    made = converter(sources[1], references[0])
    assert np.abs(audio.read(rows[1].audio, 16000) - made).max() < 1e-4
    convert(converter, sources, references, tmp_path / "prosody", mode="prosody")
    assert [r.speaker for r in read_manifest(tmp_path / "prosody" / "manifest.jsonl")] == [ROWS[0].speaker, "ann"]
    with pytest.raises(ManifestError, match=r"1 sources have no reference with their id \(z\)"):
        convert(converter, [replace(ROWS[0], id="z")], references, tmp_path / "z")
    with pytest.raises(ValueError, match="mode 'x': known are"):
        convert(converter, sources, references, tmp_path / "z", mode="x")


@pytest.fixture
def unitkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `unitkit ARGS` here (a process of its own would import torch each time): exit status and all it printed."""

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["unitkit", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return run


def test_the_command_on_a_folder(bundle: Path, tmp_path: Path, unitkit: Callable[..., tuple[int, str]]) -> None:
    spoken, out = tmp_path / "in", tmp_path / "out"
    spoken.mkdir()
    for i, row in enumerate(ROWS[:2]):
        shutil.copy(row.audio, spoken / f"{i}.flac")
    (spoken / "corrupt.flac").write_bytes((spoken / "0.flac").read_bytes()[:100])
    words = ("convert", spoken, ROWS[2].audio, "-m", bundle, "-o", out, "--mode", "rhythm", "--device", "cpu")
    status, said = unitkit(*words)
    assert status == 1 and "1 bad file(s), skipped" in said and str(spoken / "corrupt.flac") in said, said
    assert "2 converted, 0 kept, 1 bad" in said
    assert [r.id for r in read_manifest(out / "manifest.jsonl")] == ["0", "1"]
    assert json.loads((out / "manifest.rejects.jsonl").read_text())["id"] == "corrupt"
    (spoken / "corrupt.flac").unlink()
    status, said = unitkit(*words)
    assert status == 0 and "0 converted, 2 kept, 0 bad" in said, said
    write_manifest(tmp_path / "s.jsonl", [replace(row, id=str(i)) for i, row in enumerate(ROWS[:2])])
    write_manifest(tmp_path / "r.jsonl", [replace(row, id=str(i)) for i, row in enumerate(ROWS[2:])])
    status, said = unitkit(
        "convert", tmp_path / "s.jsonl", tmp_path / "r.jsonl", "-m", bundle, "-o", tmp_path / "pairs", "--device", "cpu"
    )
    assert status == 0 and "2 converted" in said
    pairs = [r.audio for r in read_manifest(tmp_path / "pairs" / "reference.jsonl")]
    assert pairs == [row.audio for row in ROWS[2:]]


def test_the_command_on_one_file(
    bundle: Path, converter: VoiceConverter, tmp_path: Path, unitkit: Callable[..., tuple[int, str]]
) -> None:
    source, reference, wav = ROWS[0].audio, ROWS[1].audio, tmp_path / "out.wav"
    tail = ("-m", bundle, "-o", wav, "--device", "cpu")
    status, said = unitkit("convert", source, reference, *tail, "--mode", "prosody")
    assert status == 0 and "mode prosody" in said, said
    assert np.abs(audio.read(wav, 16000) - converter(source, reference, mode="prosody")).max() < 1e-4
    status, said = unitkit("convert", source, reference, *tail, "--mode", "sing")
    assert status == 2 and "known are copy, rhythm, pitch-energy" in said and "Traceback" not in said
    status, said = unitkit("convert", ROOT / "samples" / "en" / "dev.jsonl", reference, *tail)
    assert status == 2 and "give -o a directory" in said
    status, said = unitkit("convert", ROOT / "pyproject.toml", reference, *tail)
    assert status == 1 and "pyproject.toml" in said
    status, said = unitkit("convert", "--help")
    assert status == 0 and "unitkit convert source.wav reference.wav" in said


def test_info_tells_converters(bundle: Path) -> None:
    title, facts = describe(str(bundle))
    assert title == "converter" and "vocoder" in str(facts["beside it"]) and facts["tokenizer"]


def test_mels_for_a_vocoder(bundle: Path, converter: VoiceConverter, tmp_path: Path, monkeypatch, capsys) -> None:
    """Of recordings, and of what the converter makes of them, under the name of the mels, frame by frame."""
    monkeypatch.setattr(audio, "f0", steady)
    module = recipe("mels")
    rows = [*ROWS[:2], Utterance("gone", str(tmp_path / "gone.wav"), 1.0)]
    write_manifest(tmp_path / "m.jsonl", rows)
    out = tmp_path / "mels"
    assert module.main([str(tmp_path / "m.jsonl"), "-o", str(out), "--n-mels", "20"]) == 1
    assert "left out: gone" in capsys.readouterr().err
    header = read_header(out / "units.jsonl")
    mel = converter.model.config.mel
    assert (header.tokenizer, header.rate_hz, header.n_units) == (mel.fingerprint, 80.0, 1)
    wav = audio.read(ROWS[0].audio, 16000)
    stored = np.load(out / f"{ROWS[0].id}.npy")
    assert np.allclose(stored, audio.spectra(wav, mel)[0], atol=0.02)
    assert next(len(u) for u in read_units(out / "units.jsonl")) == len(stored) == len(wav) // 200
    stamp = (out / f"{ROWS[0].id}.npy").stat().st_mtime_ns
    module.main([str(tmp_path / "m.jsonl"), "-o", str(out), "--n-mels", "20"])
    assert (out / f"{ROWS[0].id}.npy").stat().st_mtime_ns == stamp
    module.main([str(tmp_path / "m.jsonl"), "-o", str(out), "--converter", str(bundle)])
    made, _ = converter.convert(ROWS[0], ROWS[0], mode="copy", exact_pitch=True)
    assert np.allclose(np.load(out / f"{ROWS[0].id}.npy"), made.mel.numpy(), atol=0.02)
    assert abs(len(made.mel) - len(stored)) <= 4

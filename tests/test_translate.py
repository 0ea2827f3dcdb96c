"""Speech to speech with one call and from the command line: a small model trained for a moment, kept as a bundle."""

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
from torch import nn

from unitkit import audio, cli
from unitkit.audio import AudioError
from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest
from unitkit.models.heads import HeadConfig
from unitkit.models.listen import Listener
from unitkit.models.seq2seq import Hypothesis, Pairs, Seq2Seq, Seq2SeqConfig
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.pipeline import Step, Translator, describe, translate
from unitkit.text import Letters
from unitkit.units import FingerprintError, read_header, read_units

ROOT = Path(__file__).resolve().parents[1]
ROWS = list(read_manifest(ROOT / "samples" / "en" / "dev.jsonl"))[:6]
LETTERS = "abcdef"
N_UNITS = 12
TEXT = {"text": HeadConfig(kind="ctc", at="decoder", layer=1, target="target_text")}
SMALL = Seq2SeqConfig(
    tokenizer="0123456789ab",
    n_units=N_UNITS,
    features="logmel@100",
    features_dim=80,
    target_letters=LETTERS,
    target_lang="en",
    dim=32,
    encoder_layers=1,
    decoder_layers=2,
    attention_heads=2,
    hidden=64,
    conv_channels=32,
    dropout=0.0,
    label_smoothing=0.0,
    heads=TEXT,
)
torch.set_num_threads(1)


def targets() -> list[np.ndarray]:
    """Reduced units for each row, of different lengths."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, N_UNITS, n) for n in (9, 4, 12, 6, 7, 5)]
    return [row[np.r_[True, row[1:] != row[:-1]]] for row in rows]


def trained(listener: Listener) -> Seq2Seq:
    """A model that has almost learnt what the six rows are: hypotheses differ, and so do their lengths."""
    torch.manual_seed(0)
    model = Seq2Seq(SMALL).train()
    features = [listener(audio.read(row.audio, 16000)) for row in ROWS]
    texts = [Letters(LETTERS).encode(LETTERS[i] + LETTERS[5 - i]) for i in range(6)]
    batch = Pairs(
        nn.utils.rnn.pad_sequence(features, batch_first=True),
        torch.tensor([len(f) for f in features]),
        nn.utils.rnn.pad_sequence([torch.from_numpy(t + 3) for t in targets()], batch_first=True),
        {"target_text": nn.utils.rnn.pad_sequence([torch.from_numpy(t) for t in texts], batch_first=True)},
    )
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(40):
        adam.zero_grad()
        model(batch)["loss"].backward()
        adam.step()
    return model.eval()


def vocoder(**more: object) -> UnitVocoder:
    """Small, untrained, with durations of a few frames."""
    torch.manual_seed(1)
    settings = {"tokenizer": SMALL.tokenizer, "n_units": N_UNITS, "istft": IstftConfig(dim=16, blocks=1, hidden=16)}
    model = UnitVocoder(VocoderConfig(**(settings | {"unit_dim": 8, "duration_dim": 8} | more))).eval()  # type: ignore[arg-type]
    if model.durations is not None:
        nn.init.constant_(model.durations.out.bias, 1.5)
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator as the recipe leaves it: model, listener/ and vocoder/."""
    path, listener = tmp_path_factory.mktemp("s2ut") / "model", Listener.make("logmel@100")
    trained(listener).save(path)
    listener.save(path / "listener")
    vocoder().save(path / "vocoder")
    return path


@pytest.fixture(scope="module")
def translator(bundle: Path) -> Translator:
    return Translator.load(bundle, device="cpu")


def test_a_translation_is_wav_units_and_text(translator: Translator) -> None:
    made = translator(ROWS[2], beam=3)
    assert made.units.reduced and made.units.id == ROWS[2].id and made.units.tokenizer == SMALL.tokenizer
    assert len(made.units) > 3 and (made.units.ids[1:] != made.units.ids[:-1]).all()
    assert made.wav.dtype == np.float32 and made.sample_rate == 16000
    assert len(made.wav) == made.durations.sum() * 320 and made.wav.std() > 0
    assert made.frames.dedup()[0] == made.units and made.frames.n_frames == made.durations.sum()
    assert made.text and set(made.text) <= set(LETTERS) and made.score < 0
    (best,) = translator.model.generate([translator.listener(audio.read(ROWS[2].audio, 16000))], beam=3)
    assert made.text == best.texts["target_text"] and made.score == best.score


def test_a_list_gives_what_each_gives_alone_in_order(translator: Translator) -> None:
    alone = [translator(row, beam=4) for row in ROWS]
    assert len({tuple(one.units.ids) for one in alone}) >= 4  # varied output, or this shows nothing
    assert len({len(one.units) for one in alone}) >= 3
    for batch in (1, 2, 6):
        together = translator(ROWS, beam=4, batch=batch)
        for one, other in zip(alone, together, strict=True):
            assert one.units == other.units and one.text == other.text
            assert np.array_equal(one.durations, other.durations) and np.array_equal(one.wav, other.wav)
            assert one.score == pytest.approx(other.score, abs=1e-4)
    assert translator([]) == []


def test_a_path_an_utterance_and_a_wav_are_the_same(translator: Translator) -> None:
    path, wav = ROWS[0].audio, audio.read(ROWS[0].audio, 16000)
    found = [translator(x, beam=2) for x in (path, Path(path), ROWS[0], wav, torch.from_numpy(wav))]
    assert all(np.array_equal(found[0].wav, other.wav) for other in found[1:])
    low = audio.resample(wav, 16000, 8000)
    assert np.array_equal(
        translator(low, rate=8000, beam=2).wav, translator(audio.resample(low, 8000, 16000), beam=2).wav
    )


def test_the_stream_is_the_wav(translator: Translator) -> None:
    whole = translator(ROWS[2], beam=3).wav
    pieces = list(translator.stream(ROWS[2], beam=3, seconds=0.1))
    assert len(pieces) == -(-len(whole) // 1600) > 2
    assert np.abs(np.concatenate(pieces) - whole).max() < 1e-5


def test_units_said_twice_are_one_run(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Hypothesis(np.array([3, 3, 5, 5, 5, 3]), -1.0, {})
    monkeypatch.setattr(translator.model, "generate", lambda sources, **_: [said for _ in sources])
    made = translator(ROWS[0])
    assert made.units.ids.tolist() == [3, 5, 3] and made.text is None
    nothing = Hypothesis(np.zeros(0, np.int64), 0.0, {"target_text": ""})
    monkeypatch.setattr(translator.model, "generate", lambda sources, **_: [nothing for _ in sources])
    empty = translator(ROWS[0])
    assert len(empty.wav) == 0 and len(empty.units) == 0 and empty.text == ""
    assert list(translator.stream(ROWS[0])) == []


def test_units_at_frame_level_keep_their_durations(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = Hypothesis(np.array([3, 3, 5, 5, 5, 3]), -1.0, {})
    model = Seq2Seq(replace(SMALL, reduced=False)).eval()
    monkeypatch.setattr(model, "generate", lambda sources, **_: [frames for _ in sources])
    made = replace(translator, model=model)(ROWS[0])
    assert made.durations.tolist() == [2, 3, 1] and len(made.wav) == 6 * 320


def test_bad_speech_is_named(translator: Translator, tmp_path: Path) -> None:
    import soundfile

    audio.write(tmp_path / "short.wav", np.zeros(100), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello " * 100)
    audio.write(tmp_path / "long.wav", np.zeros(16000 * 83), 16000)
    for name, words in [
        ("short.wav", "too short"),
        ("nan.wav", "NaN"),
        ("empty.wav", ""),
        ("text.wav", ""),
        ("long.wav", r"83\.0 s, but this model takes 81\.9 s"),
        ("gone.wav", ""),
    ]:
        with pytest.raises((AudioError, OSError), match=rf"{name}.*{words}"):
            translator([ROWS[0], tmp_path / name], beam=1)
    for wav, words in [
        (np.zeros(10, np.float32), "the wav: too short"),
        (np.full(16000, np.nan, np.float32), "NaN"),
        (np.zeros((2, 16000), np.float32), r"\(2, 16000\)"),
        (np.zeros(16000, np.int16), "int16"),
    ]:
        with pytest.raises(ValueError, match=words):
            translator(wav)
    for wrong in ({"beam": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            translator(ROWS[0], **wrong)  # type: ignore[call-overload]


def test_parts_that_do_not_belong_together_are_refused(bundle: Path, tmp_path: Path) -> None:
    def refuse(words: str, error: type[Exception] = ValueError, **more: object) -> None:
        shutil.rmtree(tmp_path / "voice", ignore_errors=True)
        vocoder(**more).save(tmp_path / "voice")
        with pytest.raises(error, match=words):
            Translator.load(bundle, vocoder=tmp_path / "voice", device="cpu")

    refuse("ba9876543210.*0123456789ab", FingerprintError, tokenizer="ba9876543210")
    refuse("durations=true", durations=False)
    refuse("f0=false", f0=True)
    deaf = tmp_path / "deaf"
    shutil.copytree(bundle, deaf)
    shutil.rmtree(deaf / "listener")
    with pytest.raises(ValueError, match="no listener/"):
        Translator.load(deaf, device="cpu")
    shutil.copytree(bundle / "listener", deaf / "listener")
    shutil.rmtree(deaf / "vocoder")
    with pytest.raises(ValueError, match="vocoder: no vocoder there.*--vocoder"):
        Translator.load(deaf, device="cpu")
    settings = Translator.load(deaf, vocoder=bundle / "vocoder", device="cpu").settings()
    shutil.copytree(bundle / "vocoder", tmp_path / "vocoder")
    assert Translator.load(deaf, device="cpu").settings() == settings  # the vocoder beside it
    shutil.rmtree(tmp_path / "vocoder")
    with pytest.raises(ValueError, match="not a seq2seq model"):
        Translator.load(tmp_path / "nowhere", device="cpu")
    shutil.rmtree(deaf / "listener")
    Listener.make("mfcc").save(deaf / "listener")
    with pytest.raises(ValueError, match="do not belong together"):
        Translator.load(deaf, vocoder=bundle / "vocoder", device="cpu")


def test_a_model_of_text_speaks_what_rows_say(bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    Seq2Seq(replace(SMALL, source="text", source_letters=LETTERS, heads={})).save(tmp_path / "t2u")
    speaks = Translator.load(tmp_path / "t2u", vocoder=bundle / "vocoder", device="cpu")
    rows = [replace(row, text=text) for row, text in zip(ROWS, ("abc", "fed", None, "???"), strict=False)]
    done = translate(speaks, rows, tmp_path / "out", beam=2)
    assert (done.made, [row.id for row, _ in done.bad]) == (2, [rows[2].id, rows[3].id])
    assert "reads text" in done.bad[0][1] and "no letter" in done.bad[1][1]
    (first, _) = read_units(tmp_path / "out" / "units.jsonl")
    assert np.array_equal(first.ids, speaks(rows[0], beam=2).frames.ids)
    rows[0] = replace(rows[0], text="cab")
    assert translate(speaks, rows[:2], tmp_path / "out", beam=2).kept == 1
    with pytest.raises(ValueError, match="reads text"):
        speaks("abc")


def test_the_voice_is_asked_for_or_the_sources(translator: Translator, tmp_path: Path) -> None:
    speaker = str(ROWS[0].speaker)
    vocoder(speakers=(speaker, "june"), speaker_dim=4, langs=("es", "en"), lang_dim=4).save(tmp_path / "voice")
    two = replace(translator, vocoder=translator.vocoder.load(tmp_path / "voice", device="cpu"))
    with pytest.raises(ValueError, match=f"None: this vocoder knows {speaker}, june"):
        two(ROWS[0])
    with pytest.raises(ValueError, match="'carlo'.*--speaker"):
        translate(two, ROWS, tmp_path / "out", speaker="carlo")
    first, second = (two(ROWS[0], beam=1, speaker=name).wav for name in (speaker, "june"))
    assert first.shape == second.shape and not np.array_equal(first, second)
    translate(two, ROWS[:1], tmp_path / "out", beam=1)
    (row,) = read_manifest(tmp_path / "out" / "manifest.jsonl")
    kept = audio.read(row.audio, 16000)
    assert np.abs(kept - np.clip(first, -1, 1)).max() < 1e-4


def test_a_directory_goes_on_where_it_stopped(translator: Translator, tmp_path: Path) -> None:
    rows, out, seen = ROWS[:3], tmp_path / "out", []

    def stop(step: Step) -> None:
        seen.append(step.source.id)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translate(translator, rows, out, beam=2, batch=1, on_progress=stop)
    assert not (out / "manifest.jsonl").exists()
    with open(out / "manifest.jsonl.partial", "a") as file:
        file.write('{"source": {"id": "torn')
    stamps = {path: path.stat().st_mtime_ns for path in (out / "wav").iterdir()}
    assert len(stamps) == 2 and seen == [row.id for row in rows[:2]]
    done = translate(translator, rows, out, beam=2, batch=3)
    assert (done.made, done.kept, done.bad) == (1, 2, [])
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    whole = tmp_path / "whole"
    translate(translator, rows, whole, beam=2)
    for name in ("manifest.jsonl", "units.jsonl", "synthesis.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert [r.id for r in read_manifest(out / "source.jsonl")] == [r.id for r in rows]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_what_has_changed_is_made_again(translator: Translator, tmp_path: Path) -> None:
    source, out = tmp_path / "a.flac", tmp_path / "out"
    shutil.copy(ROWS[0].audio, source)
    rows = [Utterance("a", str(source)), replace(ROWS[1], id="b")]
    counts = []
    for change in ("nothing", "nothing", "recording", "path", "beam", "fewer"):
        if change == "recording":
            shutil.copyfile(ROWS[2].audio, source)
            os.utime(source, (later := (out / "wav" / "a.wav").stat().st_mtime + 5, later))
            os.utime(out / "wav" / "b.wav", (later, later))
        if change == "path":
            os.utime(out / "wav" / "a.wav", (later + 1, later + 1))
            rows[1] = replace(ROWS[3], id="b")
        if change == "fewer":
            os.utime(out / "wav" / "a.wav", (later + 1, later + 1))
            rows = rows[:1]
        done = translate(translator, rows, out, beam=1 if change in ("beam", "fewer") else 2)
        counts.append((done.made, done.kept))
    assert counts == [(2, 0), (0, 2), (1, 1), (1, 1), (2, 0), (0, 1)]
    assert [r.id for r in read_manifest(out / "manifest.jsonl")] == ["a"]


def test_folders_and_inputs_that_would_be_lost_are_refused(translator: Translator, tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    mine = shutil.copy(ROWS[0].audio, tmp_path / "wav" / "mine.wav")
    with pytest.raises(ValueError, match=r"mine\.wav was not made by synthesis"):
        translate(translator, ROWS[:1], tmp_path)
    assert Path(mine).exists()
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other" / "manifest.jsonl", ROWS)
    with pytest.raises(ValueError, match="give a directory of its own"):
        translate(translator, ROWS[:1], tmp_path / "other")
    with pytest.raises(ManifestError, match="share the id"):
        translate(translator, [ROWS[0], ROWS[0]], tmp_path / "twice")


@pytest.fixture
def unitkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `unitkit ARGS` here (a process of its own would import torch each time): exit status and all it printed."""

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["unitkit", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return run


def test_the_command_on_a_folder(
    bundle: Path, translator: Translator, tmp_path: Path, unitkit: Callable[..., tuple[int, str]]
) -> None:
    spoken, out = tmp_path / "in", tmp_path / "out"
    spoken.mkdir()
    for i, row in enumerate(ROWS[:2]):
        shutil.copy(row.audio, spoken / f"{i}.flac")
    (spoken / "corrupt.flac").write_bytes((spoken / "0.flac").read_bytes()[:100])
    words = ("translate", spoken, "-m", bundle, "-o", out, "--beam", 3, "--device", "cpu")
    status, said = unitkit(*words, "--verbose")
    assert status == 1, said
    assert "1 bad file(s), skipped" in said and str(spoken / "corrupt.flac") in said
    assert "2 translated, 0 kept, 1 bad" in said
    rows, units = list(read_manifest(out / "manifest.jsonl")), list(read_units(out / "units.jsonl"))
    assert [r.id for r in rows] == [u.id for u in units] == ["0", "1"]
    header = read_header(out / "units.jsonl")
    assert (header.tokenizer, header.n_units, header.rate_hz) == (SMALL.tokenizer, N_UNITS, 50.0)
    for row, one, source in zip(rows, units, ROWS, strict=False):
        made = translator(source.audio, beam=3)
        assert np.array_equal(one.ids, made.frames.ids) and row.text == made.text and row.lang == "en"
        assert audio.info(row.audio).n_samples == made.durations.sum() * 320
        assert row.duration == pytest.approx(made.durations.sum() * 0.02)
        assert f"{row.id}: {row.duration:.2f} s: {made.text}" in said
    rejected = json.loads((out / "manifest.rejects.jsonl").read_text())
    assert rejected["id"] == "corrupt"
    stamps = [Path(row.audio).stat().st_mtime_ns for row in rows]
    (spoken / "corrupt.flac").unlink()
    status, said = unitkit(*words)
    assert status == 0 and "0 translated, 2 kept, 0 bad" in said, said
    assert [Path(row.audio).stat().st_mtime_ns for row in rows] == stamps
    assert not (out / "manifest.rejects.jsonl").exists()


def test_the_command_on_one_file(
    bundle: Path, translator: Translator, tmp_path: Path, unitkit: Callable[..., tuple[int, str]]
) -> None:
    made, wav = translator(ROWS[0], beam=2), tmp_path / "en.wav"
    tail = ("-m", bundle, "--beam", 2, "--device", "cpu")
    status, said = unitkit("translate", ROWS[0].audio, "-o", wav, *tail)
    assert status == 0 and made.text and made.text in said, said
    assert audio.info(wav).n_samples == len(made.wav) and list(tmp_path.iterdir()) == [wav]
    status, said = unitkit("translate", ROWS[0].audio, ROWS[1].audio, "-o", wav, *tail)
    assert status == 2 and "give -o a directory" in said
    status, said = unitkit("translate", ROOT / "pyproject.toml", "-o", tmp_path / "no.wav", *tail)
    assert status == 1 and "pyproject.toml" in said and not (tmp_path / "no.wav").exists()
    status, said = unitkit("translate", ROWS[0].audio, "-o", wav, "-m", bundle / "vocoder")
    assert status == 2 and "Traceback" not in said, said
    status, said = unitkit("translate", "--help")
    assert status == 0 and "unitkit translate es.wav" in said


def test_info_tells_translators_and_vocoders(bundle: Path, tmp_path: Path) -> None:
    title, facts = describe(str(bundle))
    size = sum(p.numel() for p in Seq2Seq.load(bundle).parameters() if p.requires_grad) / 1e6
    assert title == "translator" and facts["parameters"] == f"{size:.2f} M"
    assert facts["tokenizer"] == SMALL.tokenizer and facts["beside it"] == "listener, vocoder"
    title, facts = describe(str(bundle / "vocoder"))
    assert title == "vocoder" and facts["n_units"] == N_UNITS
    Seq2Seq(replace(SMALL, heads={})).save(tmp_path / "bare")
    assert describe(str(tmp_path / "bare"))[0] == "seq2seq"

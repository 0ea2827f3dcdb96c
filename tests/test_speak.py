"""Text to speech with one call and from the command line, on small untrained models kept as a bundle."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stand_ins
import torch
from torch import nn

from unitkit import audio, cli
from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest
from unitkit.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unitkit.models.tts import TextToUnits, TtsConfig
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.pipeline import TTS, Step, describe, given, speak
from unitkit.pipeline.tts import Voice
from unitkit.units import FingerprintError, read_header, read_units
from unitkit.voices import Voices, VoicesError

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
RECORDING = next(read_manifest(ROOT / "samples" / "en" / "dev.jsonl"))
ENCODER = stand_ins.SpeakerEncoder()
SMALL = TtsConfig(
    tokenizer="0123456789ab",
    n_units=12,
    codebooks=2,
    symbols=" .abcdefgh",
    longest=14,
    langs=("en", "es"),
    speakers={"bob": ["es", "en"], "ann": ["en"], "cid": ["en", "es"]},
    speaker_vector_dim=stand_ins.DIM,
    speaker_encoder=ENCODER.checksum(),
    dim=16,
    encoder_layers=1,
    decoder_layers=1,
    lang_dim=4,
    aligner_dim=8,
    duration_dim=8,
)
VOICE = {
    "tokenizer": SMALL.tokenizer,
    "n_units": 12,
    "codebooks": 2,
    "istft": IstftConfig(dim=16, blocks=1, hidden=16),
    "unit_dim": 8,
    "speaker_dim": 8,
    "speaker_vector_dim": stand_ins.DIM,
    "speaker_encoder": ENCODER.checksum(),
}


def loud(model: nn.Module) -> nn.Module:
    """Weights large enough for every input to change the output."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval()


def text_model(**more: object) -> TextToUnits:
    torch.manual_seed(0)
    model = TextToUnits(replace(SMALL, **more))  # type: ignore[arg-type]
    loud(model)
    nn.init.constant_(model.durations.leave.bias, 1.5)
    return model


def vocoder(**more: object) -> UnitVocoder:
    torch.manual_seed(1)
    model = UnitVocoder(VocoderConfig(**(VOICE | more)))  # type: ignore[arg-type]
    loud(model)
    if model.durations is not None:
        nn.init.constant_(model.durations.out.bias, 1.5)
    return model


@pytest.fixture(autouse=True)
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.install(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A model as the recipe leaves it: voices.safetensors, speaker/, and a vocoder/ beside."""
    path, draw = tmp_path / "tts" / "model", np.random.default_rng(0)
    text_model().save(path)
    Voices.of({name: draw.random(4) for name in ("cid", "bob", "ann")}, encoder=ENCODER.checksum()).save(
        path / "voices.safetensors"
    )
    ENCODER.save(path / "speaker")
    vocoder().save(path / "vocoder")
    return path


@pytest.fixture
def tts(bundle: Path) -> TTS:
    return TTS.load(bundle, device="cpu")


@pytest.fixture
def autoregressive(tmp_path: Path) -> Path:
    """A model of recipes/train_s2ut.py with model.source=text, and its vocoder."""
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        tokenizer=SMALL.tokenizer, n_units=12, source="text", source_letters=" abcdefgh", source_lang="en", dim=16,
        encoder_layers=1, decoder_layers=1, attention_heads=2, hidden=16, dropout=0.0,
    )  # fmt: skip
    loud(Seq2Seq(config)).save(tmp_path / "ar")  # type: ignore[operator]
    vocoder(codebooks=1, speaker_vector_dim=0, speaker_encoder="", duration_dim=8).save(tmp_path / "ar" / "vocoder")
    return tmp_path / "ar"


def test_a_text_becomes_a_wav(tts: TTS) -> None:
    wav = tts("Bad cab.", speaker="ann", language="en")
    assert wav.dtype == np.float32 and wav.ndim == 1 and wav.std() > 0
    (made,) = tts.say([tts.line("Bad cab.", tts.voice("ann"), language="en", label="x")])
    assert np.array_equal(wav, made.wav) and len(wav) == made.units.n_frames * 320 and made.units.id == "x"
    assert made.units.codebooks == 2 and made.units.tokenizer == SMALL.tokenizer and made.sample_rate == 16000
    assert not np.array_equal(wav, tts("Bad cab.", speaker="bob", language="en"))
    other = tts("Bad cab.", speaker="ann", language="es")
    assert len(other) != len(wav) or not np.array_equal(wav, other)


def test_a_list_gives_what_each_gives_alone(tts: TTS) -> None:
    texts = ["A bad cab had a head. Add a bag, dad.", "a", "face", "had he. " * 6]
    together = tts(texts, speaker="bob")
    assert len({len(one) for one in together}) >= 3
    for text, wav in zip(texts, together, strict=True):
        assert np.abs(tts(text, speaker="bob") - wav).max() < 1e-5
    assert tts([], speaker="bob") == []


def test_long_texts_are_spoken_in_parts(tts: TTS, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    generate = tts.model.generate

    def spy(tokens: list[np.ndarray], **more: object) -> object:
        asked.extend(len(one) for one in tokens)
        return generate(tokens, **more)

    monkeypatch.setattr(tts.model, "generate", spy)
    text = "A bad cab. Had a bag. A face, dad."
    whole = tts(text, speaker="ann")
    assert len(asked) > 2 and max(asked) <= SMALL.longest
    parts = tts.line(text, tts.voice("ann")).parts
    assert sorted(asked) == sorted(map(len, parts))
    frames = [generate([part], langs=["en"], vectors=tts.voice("ann").vector[None])[0][0] for part in parts]
    assert len(whole) == 320 * sum(len(one) for one in frames)


def test_whose_voice(tts: TTS, tmp_path: Path) -> None:
    assert tts.speakers == ("bob", "ann", "cid") and tts.takes_vectors  # the most heard first
    default = tts("cab", language="es")
    assert np.array_equal(default, tts("cab", speaker="bob", language="es"))
    # Of those who speak mostly English the most heard one; bob is heard more, but in Spanish.
    assert np.array_equal(tts("cab"), tts("cab", speaker="ann", language="en"))
    # Who speaks several languages is taken to speak the model's first of them; who speaks one, that.
    assert np.array_equal(tts("cab", speaker="bob"), tts("cab", speaker="bob", language="en"))
    assert not np.array_equal(tts("cab", speaker="bob"), default)
    assert tts.language(None, Voice("eva", langs=("es",))) == "es"
    wav = audio.read(RECORDING.audio, 16000)
    found = [
        tts("cab", speaker=x)
        for x in (
            RECORDING.audio,
            Path(RECORDING.audio),
            RECORDING,
            wav,
            torch.from_numpy(wav),
            ENCODER(wav),
            3 * ENCODER(wav),
        )
    ]
    assert all(np.abs(found[0] - other).max() < 1e-5 for other in found[1:])
    low = audio.resample(wav, 16000, 8000)
    assert np.array_equal(tts("cab", speaker=low, rate=8000), tts("cab", speaker=audio.resample(low, 8000, 16000)))
    assert not np.array_equal(found[0], tts("cab", speaker="ann"))


def test_a_file_of_more_voices(bundle: Path, tmp_path: Path) -> None:
    Voices.of({"eve": np.array([0, 0, 1.0, 0])}, encoder=ENCODER.checksum()).save(tmp_path / "more.safetensors")
    tts = TTS.load(bundle, voices=tmp_path / "more.safetensors", device="cpu")
    assert tts.speakers == ("bob", "ann", "cid", "eve")
    assert np.array_equal(tts("cab", speaker="eve"), tts("cab", speaker=np.array([0, 0, 2.0, 0])))
    Voices.of({"eve": np.ones(4)}, encoder="other").save(tmp_path / "more.safetensors")
    with pytest.raises(VoicesError, match=r"'other'.*'000000000000'"):
        TTS.load(bundle, voices=tmp_path / "more.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("text", "more", "error"),
    [
        ("cab", {"speaker": "eve"}, "'eve' is neither a known voice nor a recording; known voices: bob, ann, cid"),
        ("cab", {"speaker": np.zeros((2, 9), np.float32)}, r"\(2, 9\)"),
        ("cab", {"speaker": np.zeros(9000, np.int16)}, "int16"),
        ("cab", {"speaker": np.zeros(9000, np.float32)}, "silent"),
        ("cab", {"speaker": np.full(9000, np.nan, np.float32)}, "the wav: holds NaN or infinity"),
        ("cab", {"language": "fr"}, "'fr': this model speaks en, es"),
        ("cab", {"speed": 0}, "between 0.1 and 10"),
        ("cab", {"speed": float("nan")}, "between 0.1 and 10"),
        ("cab", {"beam": 0}, "at least 1"),
        ("zz!", {}, "'zz!': nothing in this text that the model can say; it knows ' .abcdefgh'"),
        (" ", {}, "nothing in this text"),
        (5, {}, "a text is a string, not int"),
    ],
)
def test_what_cannot_be_is_named(tts: TTS, text: str, more: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        tts(text, **more)


def test_a_recording_without_a_voice_is_named(tts: TTS, tmp_path: Path) -> None:
    audio.write(tmp_path / "quiet.wav", np.zeros(9000, np.float32), 16000)
    with pytest.raises(ValueError, match=r"quiet\.wav: .*silent"):
        tts("cab", speaker=tmp_path / "quiet.wav")


def test_speed_and_symbols_left_out(tts: TTS) -> None:
    slow, plain, fast = (len(tts("a bad cab", speaker="ann", speed=speed)) for speed in (0.5, 1.0, 2.0))
    assert slow > plain > fast
    assert tts.line("cab 9 ñ", tts.voice("ann")).left_out == "9ñ"


def test_parts_that_do_not_belong_together_are_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(words: str, error: type[Exception] = ValueError, **more: object) -> None:
        shutil.rmtree(tmp_path / "v", ignore_errors=True)
        vocoder(**more).save(tmp_path / "v")
        with pytest.raises(error, match=words):
            TTS.load(bundle, vocoder=tmp_path / "v", device="cpu")

    refuse("ba9876543210.*0123456789ab", FingerprintError, tokenizer="ba9876543210")
    refuse("'000000000000'.*'00000000000b'", speaker_encoder="00000000000b")
    refuse("f0=false", f0=True)
    stand_ins.SpeakerEncoder(3).save(bundle / "speaker")
    with pytest.raises(ValueError, match="'000000000003'.*'000000000000'"):
        TTS.load(bundle, device="cpu")
    shutil.rmtree(bundle / "speaker")
    with pytest.raises(ValueError, match="no speaker/ to hear new voices with; known voices: bob, ann, cid"):
        TTS.load(bundle, device="cpu")("cab", speaker=RECORDING.audio)
    (bundle / "voices.safetensors").unlink()
    with pytest.raises(ValueError, match="no voice of its own"):
        TTS.load(bundle, device="cpu")("cab")
    shutil.move(bundle / "vocoder", bundle.parent / "vocoder")  # beside it is as good
    assert TTS.load(bundle, device="cpu").speakers == ()
    shutil.rmtree(bundle.parent / "vocoder")
    with pytest.raises(ValueError, match="no vocoder there.*--vocoder"):
        TTS.load(bundle, device="cpu")
    monkeypatch.setattr(given, "BUNDLED", tmp_path / "bundled")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled" / "tts").mkdir(parents=True)
    (tmp_path / "bundled" / "tts" / "config.yaml").touch()
    assert (tmp_path / "tts").is_dir()  # a folder of that name hides no bundled model
    assert given.model_folder("tts") == tmp_path / "bundled" / "tts" and given.model_folder("./tts") == Path("tts")
    assert given.model_folder(Path("tts")) == Path("tts")  # so that a part of the model in "." is found
    for name, words in (
        ("nowhere", "no such directory, and no bundled model"),
        (tmp_path / "x", "not a text-to-units model"),
    ):
        with pytest.raises(ValueError, match=words):
            TTS.load(name)


def test_a_model_with_one_voice(tmp_path: Path) -> None:
    text_model(speaker_vector_dim=0, speaker_encoder="", speakers={}, langs=("en",)).save(tmp_path)
    vocoder(speaker_vector_dim=0, speaker_encoder="").save(tmp_path / "vocoder")
    tts = TTS.load(tmp_path, device="cpu")
    assert tts("cab").size and tts.languages == ("en",) and tts.speakers == ()
    with pytest.raises(ValueError, match="'ann': this model has one voice without a name"):
        tts("cab", speaker="ann")
    vocoder(speaker_vector_dim=0, speaker_encoder="", speakers=("ann", "bob")).save(tmp_path / "vocoder")
    two = TTS.load(tmp_path, device="cpu")
    assert not np.array_equal(two("cab", speaker="ann"), two("cab", speaker="bob"))
    with pytest.raises(ValueError, match="None: this model has ann, bob; choose"):
        two("cab")


def test_a_model_that_goes_unit_by_unit(autoregressive: Path) -> None:
    tts = TTS.load(autoregressive, device="cpu")
    (made,) = tts.say([tts.line("a cab!", tts.voice(), label="x")], beam=2)
    assert np.array_equal(tts("A cab", beam=2), made.wav) and len(made.wav) == 320 * made.units.n_frames > 0
    (found,) = tts.model.generate([torch.tensor([4, 3, 6, 4, 5])], beam=2)
    units = made.units.dedup()[0].ids
    assert np.array_equal(units, found.units[np.r_[True, found.units[1:] != found.units[:-1]]])
    slow = tts("A cab", beam=2, speed=0.5)
    assert abs(len(slow) - 2 * len(made.wav)) <= 320 * len(units)
    assert len(tts.line("a bad cab. " * 30, tts.voice()).parts) == 3  # 120 characters at once
    with pytest.raises(ValueError, match="'es': this model speaks en"):
        tts("cab", language="es")
    config = replace(tts.model.config, source="units", source_units=5, source_tokenizer="x")
    Seq2Seq(config).save(autoregressive)
    with pytest.raises(ValueError, match="reads units, not text"):
        TTS.load(autoregressive)


# ------------------------------------------------------------------------------------------------------ many texts

SCRIPT = [
    Utterance("a/1", "x.wav", text="a bad cab.", speaker="ann", lang="en"),
    Utterance("a/2", "x.wav", text="face.", speaker="bob", lang="es"),
    Utterance("a/3", "x.wav", text="had he. " * 4, speaker="bob", lang="en"),
]


def test_a_directory_goes_on_where_it_stopped(tts: TTS, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    def stop(step: Step) -> None:
        seen.append(step.source.id)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak(tts, SCRIPT, out, batch=1, on_progress=stop)
    assert not (out / "manifest.jsonl").exists() and len(seen) == 2
    done = speak(tts, SCRIPT, out)
    assert (done.made, done.kept, done.bad) == (1, 2, [])
    speak(tts, SCRIPT, tmp_path / "whole")
    for name in ("manifest.jsonl", "units.jsonl", "source.jsonl", "synthesis.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    header = read_header(out / "units.jsonl")
    assert (header.tokenizer, header.n_units, header.codebooks) == (SMALL.tokenizer, 12, 2)
    for row, one, source in zip(
        read_manifest(out / "manifest.jsonl"), read_units(out / "units.jsonl"), SCRIPT, strict=True
    ):
        assert (row.id, row.text, row.speaker, row.lang) == (source.id, source.text, source.speaker, source.lang)
        wav = tts(source.text, speaker=source.speaker, language=source.lang)
        assert one.n_frames * 320 == audio.info(row.audio).n_samples == len(wav)
        assert np.abs(audio.read(row.audio, 16000) - wav.clip(-1, 1)).max() < 1e-3


def test_what_has_changed_is_spoken_again(tts: TTS, tmp_path: Path) -> None:
    counts = []
    for rows, more in (
        (SCRIPT, {}),
        (SCRIPT, {}),
        ([replace(SCRIPT[0], text="a"), *SCRIPT[1:]], {}),
        ([replace(SCRIPT[0], text="a"), replace(SCRIPT[1], speaker="ann"), SCRIPT[2]], {}),
        (SCRIPT, {"speed": 2.0}),
        (SCRIPT, {"speed": 2.0, "speaker": "ann"}),
    ):
        done = speak(tts, rows, tmp_path / "out", **more)
        counts.append((done.made, done.kept))
    assert counts == [(3, 0), (0, 3), (1, 2), (1, 2), (3, 0), (3, 0)]
    assert {row.speaker for row in read_manifest(tmp_path / "out" / "manifest.jsonl")} == {"ann"}


def test_texts_that_cannot_be_spoken_are_listed(tts: TTS, tmp_path: Path) -> None:
    bad = [
        replace(SCRIPT[0], id="no-text", text=None),
        replace(SCRIPT[0], id="no-letter", text="zz"),
        replace(SCRIPT[0], id="no-voice", speaker="eve"),
        replace(SCRIPT[0], id="no-lang", lang="fr"),
    ]
    done = speak(tts, [*bad[:2], SCRIPT[0], *bad[2:]], tmp_path / "out")
    assert done.made == 1 and [row.id for row, _ in done.bad] == [row.id for row in bad]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "manifest.rejects.jsonl").read_text().splitlines()]
    for row, words in zip(
        rejected, ("no text", "it knows", "'eve' is unknown; known voices: bob, ann, cid", "'fr'"), strict=True
    ):
        assert words in row["reason"]
    with pytest.raises(ManifestError, match="share the id"):
        speak(tts, [SCRIPT[0], SCRIPT[0]], tmp_path / "twice")


@pytest.fixture
def unitkit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run `unitkit ARGS` here (a process of its own would import torch each time): exit status and all it printed."""

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["unitkit", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), "".join(capsys.readouterr())

    yield run


def test_the_command_on_one_text(
    bundle: Path, tts: TTS, tmp_path: Path, unitkit: Callable[..., tuple[int, str]]
) -> None:
    out, tail = tmp_path / "a.wav", ("-m", bundle, "--device", "cpu")
    status, said = unitkit("speak", "A bad cab 9.", "-o", out, *tail, "--speaker", "bob", "-l", "es", "--speed", 1.5)
    assert status == 0 and "bob, es" in said and "left out, for the model does not know them: 9" in said
    assert audio.info(out).n_samples == len(tts("A bad cab 9.", speaker="bob", language="es", speed=1.5))
    status, said = unitkit("speak", "A bad cab.", "-o", out, *tail, "--speaker", RECORDING.audio)
    assert status == 0 and audio.info(out).n_samples == len(tts("A bad cab.", speaker=RECORDING.audio))
    for words, text in (
        (("zz", "-o", out), "nothing in this text"),
        (("cab", "-o", tmp_path / "folder"), "one text goes to one file"),
        (("gone.jsonl", "-o", tmp_path / "folder"), "gone.jsonl: no such file"),
        (("cab", "-o", out, "--speaker", "eve"), "known voices: bob, ann, cid"),
    ):
        status, said = unitkit("speak", *words, *tail)
        assert status == 2 and text in said and "Traceback" not in said, said
    status, said = unitkit("speak", "--help")
    assert status == 0 and "Thank you for calling." in said


def test_the_command_on_many_texts(bundle: Path, tmp_path: Path, unitkit: Callable[..., tuple[int, str]]) -> None:
    write_manifest(tmp_path / "m.jsonl", [*SCRIPT, replace(SCRIPT[0], id="bad", text="zz")])
    words = ("speak", tmp_path / "m.jsonl", "-m", bundle, "-o", tmp_path / "out", "--device", "cpu")
    status, said = unitkit(*words)
    assert status == 1 and "3 spoken, 0 kept, 1 bad" in said and "bad: " in said
    assert "3 kept" in unitkit(*words)[1]
    (tmp_path / "lines.txt").write_text("a bad cab\n\nface\n")
    status, said = unitkit("speak", tmp_path / "lines.txt", "-m", bundle, "-o", tmp_path / "read", "--device", "cpu")
    assert status == 0, said
    assert [row.id for row in read_manifest(tmp_path / "read" / "manifest.jsonl")] == ["lines-0001", "lines-0003"]
    status, said = unitkit(*words[:2], "-o", tmp_path / "one.wav", "-m", bundle)
    assert status == 2 and "give -o a directory" in said


def test_info_tells_what_is_beside_it(bundle: Path) -> None:
    title, facts = describe(str(bundle))
    assert title == "tts" and facts["beside it"] == "voices.safetensors, speaker, vocoder"

"""Models that the package ships: how they get there; those that are there do what their commands promise."""

import shutil
from pathlib import Path
from types import ModuleType

import jiwer
import numpy as np
import pytest
import tiny_models
import torch
from recipe_files import ROOT, load_file
from safetensors.torch import load_file as load_weights
from test_speak import RECORDING

from unitkit import audio
from unitkit.audio import resample
from unitkit.manifest import read_manifest
from unitkit.metrics import weights
from unitkit.metrics.recognise import Recognizer as Whisper
from unitkit.pipeline import TTS, Recognizer, Vocoder, VoiceConverter, given
from unitkit.text import plain
from unitkit.tokenizer import BUNDLED, Tokenizer

TOK = Tokenizer.load("mini", device="cpu")
SHIPPED = [BUNDLED / name for name in load_file(ROOT / "tools" / "bundle.py").NAMES]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/bundle.py on a package of its own."""
    module = load_file(ROOT / "tools" / "bundle.py")
    monkeypatch.setattr(module, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(given, "BUNDLED", tmp_path / "bundled")
    return module


def test_models_are_bundled_and_found_by_name(tool: ModuleType, tmp_path: Path) -> None:
    made = tiny_models.all_of(tmp_path / "exp", "mini")
    for name in ("state", "best", "tensorboard"):
        (made["tts"] / name).mkdir()
    shutil.move(made["tts"] / "vocoder", made["tts"].parent / "vocoder_of_tts")
    shutil.rmtree(made["vocoder"])
    (made["tts"].parent / "vocoder_of_tts").rename(made["vocoder"])  # beside it, as the recipe leaves it
    words = [f"{name}={made[name]}" for name in tool.NAMES]
    out = tmp_path / "bundled"
    assert tool.main(words) == 0
    (out / "tts" / "card.md").write_text("by hand")
    assert tool.main(words) == 0 and (out / "tts" / "card.md").read_text() == "by hand"
    assert (out / "converter" / "card.md").read_text() == (made["converter"] / "card.md").read_text()
    assert {path.name for path in out.iterdir()} == set(tool.NAMES)
    assert not any(name in path.parts for path in out.rglob("*") for name in tool.TRAINING)
    for folder in ("tts", "tts/vocoder", "converter", "recognizer"):
        source = made["vocoder"] if folder == "tts/vocoder" else made[folder]
        before, after = (load_weights(path / "model.safetensors") for path in (source, out / folder))
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert after[key].dtype == (torch.float16 if value.ndim > 1 else torch.float32)
            torch.testing.assert_close(after[key].float(), value, rtol=1e-3, atol=1e-6)
    speech = TTS.load(device="cpu")
    assert speech.encoder is not None and speech("a bad cab", speaker=RECORDING.audio).size
    assert VoiceConverter.load(device="cpu")(RECORDING.audio, RECORDING.audio, mode="rhythm").size
    asr, bundled = Recognizer.load(made["recognizer"], device="cpu"), Recognizer.load(device="cpu")
    assert asr(RECORDING.audio) == bundled(RECORDING.audio)
    units, voice = TOK.encode(RECORDING.audio), np.full(6, 0.5, np.float32)
    full, half = (Vocoder.load(path, device="cpu")(units, vector=voice) for path in (made["vocoder"], out / "vocoder"))
    assert full.shape == half.shape and np.abs(full - half).max() < 0.02 * np.abs(full).max()


def test_what_cannot_be_bundled(tool: ModuleType, tmp_path: Path) -> None:
    made = tiny_models.all_of(tmp_path / "exp", "mini")
    for word, error in (("speech=x", "names: vocoder, conv"), ("tts", "NAME=DIR"), (f"tts={tmp_path}", "not the dir")):
        with pytest.raises(SystemExit, match=error):
            tool.main([word])
    shutil.move(made["converter"], tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "vocoder")
    with pytest.raises(SystemExit, match="no vocoder in it"):
        tool.main([f"converter={tmp_path / 'alone'}"])
    tool.LIMIT_MB, limit = 0.01, tool.LIMIT_MB
    assert tool.main([f"vocoder={made['vocoder']}"]) == 1  # too much to ship
    tool.LIMIT_MB = limit


# ------------------------------------------------------------------------------------------------- what is shipped


def test_shipped_models_are_small_and_say_what_they_are() -> None:
    sizes = [path.stat().st_size for folder in SHIPPED for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 40e6
    for folder in SHIPPED:
        card = (folder / "card.md").read_text()
        for part in ("**Data.**", "**Licence.**", "**How.**", "**Scores**", "egs/prompts/"):
            assert part in card, f"{folder.name}: {part}"


@pytest.mark.skipif(not weights.installed("whisper-base"), reason="not installed: whisper-base")
def test_the_shipped_voice_is_understood_and_so_is_what_becomes_of_it() -> None:
    """Whisper writes down what was to be said, spoken and then converted into the voice of a Spanish prompt."""
    judge, tts, converter = Whisper.load("whisper-base"), TTS.load(device="cpu"), VoiceConverter.load(device="cpu")
    text = "Thank you for calling."
    said = tts(text)
    reference = next(read_manifest(ROOT / "samples" / "es" / "test.jsonl")).audio
    other = converter(said, reference, mode="speaker", rate=tts.sample_rate)
    for wav, rate in ((said, tts.sample_rate), (other, converter.sample_rate)):
        assert plain(judge(wav, lang="en", rate=rate)) == plain(text)


def test_the_shipped_converter_moves_a_voice() -> None:
    source, reference = (next(read_manifest(ROOT / "samples" / lang / "test.jsonl")).audio for lang in ("en", "es"))
    converter = VoiceConverter.load(device="cpu")
    assert converter.speaker is not None
    wav = converter(source, reference, mode="speaker")
    hear = converter.speaker
    made, own, other = (
        hear(resample(x, converter.sample_rate, hear.sample_rate))
        for x in (wav, audio.read(source, converter.sample_rate), audio.read(reference, converter.sample_rate))
    )
    assert made @ other > made @ own and made @ other > own @ other


def test_the_shipped_vocoder_says_the_words() -> None:
    """The units of what it says are far nearer to the recording's than those of another recording."""
    one, other = (TOK.encode(row.audio) for row in list(read_manifest(ROOT / "samples" / "en" / "test.jsonl"))[:2])
    again = TOK.encode(Vocoder.load(device="cpu")(one), rate=16000)
    apart = [jiwer.wer(*(" ".join(map(str, u.dedup()[0].ids)) for u in (one, x))) for x in (again, other)]
    assert apart[0] < 0.6 * apart[1], apart


def test_the_shipped_recogniser_writes_what_is_said() -> None:
    """Its texts of prompts it never heard are far nearer to their own texts than to each other's."""
    rows = [row for lang in ("en", "es") for row in read_manifest(ROOT / "samples" / lang / "test.jsonl")]
    recognizer = Recognizer.load(device="cpu")
    said, texts = recognizer([row.audio for row in rows], batch=4), [plain(row.text or "") for row in rows]
    own, other = (jiwer.cer(given, said) for given in (texts, texts[1:] + texts[:1]))
    assert own < 0.5 * other, (own, other)

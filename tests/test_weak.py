"""Weak supervision: which translations are doubted, and that a stopped run goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
from recipe_files import recipe as recipe_file
from rich.console import Console

from unitkit.audio import AudioError
from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[1]


weak = recipe_file("weak")


def row(name: str, *, text: str | None = None, seconds: float = 2.0, lang: str = "es") -> Utterance:
    return Utterance(f"{lang}/{name}", f"/a/{name}.flac", seconds, None, "v", lang, text)


@pytest.mark.parametrize(
    ("own", "seconds", "said", "doubt"),
    [
        ("Hola amigo.", 2.0, "Hello, friend.", ""),
        (None, 2.0, "Hello, friend.", ""),
        ("Hola.", 2.0, " ... ", "nothing said"),
        ("uno dos tres cuatro cinco", 9.0, "thank you thank you thank you thank you", "over and over"),
        ("no, no y no", 2.0, "No, no and no.", ""),
        ("Hola.", 2.0, "Hello, my dear friend.", "2.5 times"),
        ("Hola, mi querido amigo de siempre.", 2.0, "Hello.", "2.5 times"),
        (None, 10.0, "Hello, friend.", "letters a second"),
        (None, 0.2, "Hello, friend.", "letters a second"),
    ],
)
def test_doubt(own: str | None, seconds: float, said: str, doubt: str) -> None:
    found = weak.doubt(row("a", text=own, seconds=seconds), said, weak.Limits())
    assert doubt in found and bool(found) == bool(doubt)


def test_texts_to_say_are_named_as_pair_names_them() -> None:
    rows = [row("digits/1", text="uno  y dos"), *(row(f"n{i}") for i in range(4)), row("lost")]
    heard = {"es/digits/1": "one  and two", **{f"es/n{i}": "Thanks for watching!" for i in range(4)}}
    kept, left = weak.texts_to_say(rows, heard, "en", weak.Limits())
    assert kept == [{"id": "digits.1", "es": "uno y dos", "en": "one and two"}]
    assert left == {"the same text for over 3 recordings": 4, "no translation": 1}
    assert len(weak.texts_to_say(rows, heard, "en", weak.Limits(most_same=4))[0]) == 5
    with pytest.raises(ManifestError, match="es/digits/1 is of the target language es already"):
        weak.texts_to_say(rows, heard, "es", weak.Limits())


def test_a_stopped_run_goes_on_and_bad_files_are_named(tmp_path: Path) -> None:
    rows, log = [row(name) for name in "abc"], tmp_path / "deep" / "heard"
    asked: list[str] = []

    def translate(one: Utterance) -> str:
        asked.append(one.id)
        if one.id == "es/b" and len(asked) == 2:
            raise KeyboardInterrupt
        if one.id == "es/c":
            raise AudioError(one.audio, "is not audio")
        return f"said {one.id}"

    console = Console(stderr=True)
    with pytest.raises(KeyboardInterrupt):
        weak.heard(rows, translate, log, console)
    with console.capture() as shown:
        found = weak.heard(rows, translate, log, console)
    assert found == {"es/a": "said es/a", "es/b": "said es/b"} == weak.read_texts(log)
    assert asked == ["es/a", "es/b", "es/b", "es/c"] and "c.flac: is not audio" in shown.get()


def test_the_program_with_translations_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_manifest(tmp_path / "es.jsonl", [row("a", text="dos"), row("b", text="dos gatos"), row("c")])
    texts = tmp_path / "mt.jsonl"
    texts.write_text('{"id": "es/a", "text": "two"}\n\n{"id": "es/b", "text": null}\n')
    words = [str(tmp_path / "es.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--target", "fr", "--texts", str(texts)]
    assert weak.main(words) == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").open()] == [{"id": "a", "es": "dos", "fr": "two"}]
    said = capsys.readouterr().err
    assert "1 of 3" in said and "nothing said: 1" in said and "no translation: 1" in said
    assert weak.main(words[:-2]) == 2 and "Whisper translates into en only" in capsys.readouterr().err
    texts.write_text("[1]\n")
    assert weak.main(words) == 2 and "mt.jsonl:1: expected a row" in capsys.readouterr().err


def test_whisper_hears_the_recording_in_its_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recogniser itself is tested with real weights in test_baselines; here it only says what it was given."""
    one = next(read_manifest(ROOT / "samples/es/test.jsonl"))
    write_manifest(tmp_path / "es.jsonl", [one])
    asked = []

    def judge(wav: np.ndarray, *, lang: str, task: str) -> str:
        asked.append((len(wav), lang, task))
        return f"{one.text} in English"

    monkeypatch.setattr(weak.Recognizer, "load", lambda name, threads: judge)
    words = [str(tmp_path / "es.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--target", "en", "--ratio", "9"]
    assert weak.main(words) == 0 and weak.main(words) == 0  # the second time nothing is heard again
    (kept,) = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert kept["en"] == f"{one.text} in English" and kept["es"] == one.text
    assert asked == [(pytest.approx(16_000 * (one.duration or 0), abs=2), "es", "translate")]
    assert (tmp_path / "out.jsonl.whisper-base.heard").exists()

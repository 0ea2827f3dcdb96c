"""The table of translations in words."""

from pathlib import Path

import numpy as np
import pytest
from recipe_files import recipe as recipe_file

from unitkit import audio
from unitkit.manifest import Utterance, write_manifest

read_back = recipe_file("read_back")


class Ear:
    """Hears how long a recording is."""

    def __call__(self, recording: str, *, lang: str | None = None) -> str:
        return f"{audio.info(recording).duration:g} s of {lang}"


def test_rows_are_spread_and_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back.Recognizer, "load", lambda name: Ear())
    texts = ["one", "a b c d", "two words", "e f g h", "i j k l m"]
    for side, lang in (("source", "es"), ("target", "en")):
        rows = [Utterance(f"u{i}", "x.wav", lang=lang, text=f"{text} {lang}") for i, text in enumerate(texts)]
        write_manifest(tmp_path / f"{side}.jsonl", rows)
    audio.write(tmp_path / "a.wav", np.zeros(8000, np.float32), 16000)
    made = [Utterance(f"u{i}", str(tmp_path / "a.wav"), text=None if i == 3 else "made") for i in range(4)]
    write_manifest(tmp_path / "manifest.jsonl", made)
    words = ["--source", str(tmp_path / "source.jsonl"), "--target", str(tmp_path / "target.jsonl"), "--n", "2"]
    found = read_back.table(tmp_path, tmp_path / "source.jsonl", tmp_path / "target.jsonl", n=2, recognizer="auto")
    assert found.splitlines()[2:] == [
        "| a b c d es | a b c d en | made | 0.5 s of en |",
        "| e f g h es | e f g h en | – | 0.5 s of en |",
    ]
    assert read_back.main([str(tmp_path), *words]) == 0
    assert read_back.main([str(tmp_path / "nowhere"), *words]) == 2

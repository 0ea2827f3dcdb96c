"""Texts to tokens: characters, bytes, and phonemes by a program that stands in for espeak-ng."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitkit.frontends import PLACE, Espeak, FrontEnd, FrontEndError, write

# Answers every paragraph in capitals between the language's brackets, and logs how it was called.
STAND_IN = """#!{python}
import sys
voice = sys.argv[sys.argv.index("-v") + 1]
open("{log}", "a").write(" ".join(sys.argv[1:]) + "\\n")
for part in sys.stdin.read().strip("\\n").split("\\n\\n"):
    print(f"({{voice}})" + part.upper().strip(",.?!"), end="\\n\\n")
"""


@pytest.fixture
def espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's log; the program is named in the environment."""
    program, log = tmp_path / "espeak", tmp_path / "log"
    program.write_text(STAND_IN.format(python=sys.executable, log=log))
    program.chmod(0o755)
    monkeypatch.setenv(PLACE, str(program))
    return log


def test_characters_from_texts_to_tokens() -> None:
    texts = write("characters", ["Añb, a!", "?"], ["es", "es"])
    assert texts == ["añb, a!", ""]
    front = FrontEnd.of("characters", texts)
    assert front.symbols == " !,abñ" and len(front) == 9
    assert front.encode("ba").tolist() == [1, 7, 6, 2] and front.encode("").tolist() == [1, 2]
    assert front.encode("b9a").tolist() == [1, 7, 6, 2] and front.unknown("9b9x") == "9x"


@given(st.text())
def test_bytes_say_any_text(text: str) -> None:
    (written,) = write("bytes", [text], [""])
    front = FrontEnd.of("bytes", [])
    ids = front.encode(written)
    assert len(front) == 259 and front == FrontEnd("bytes") and front.unknown(written) == ""
    assert bytes((ids[1:-1] - 3).tolist()).decode() == written and ids.dtype == np.int64


def test_phonemes_keep_marks_order_and_languages(espeak: Path) -> None:
    texts = ["Ab, cd ef?", "gh.", "...", "i! j", "¿k?"]
    found = write("phonemes", texts, ["en", "es", "en", "en", "es"])
    assert found == ["AB, CD EF?", "GH.", "", "I! J", "¿K?"]
    calls = espeak.read_text().splitlines()
    assert len(calls) == 2 and "-v en-us" in calls[0] and "-v es-419" in calls[1]  # one run a language
    assert FrontEnd.of("phonemes", found).encode("AB").size == 4


def test_no_program_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PLACE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FrontEndError, match=f"apt-get install espeak-ng.*{PLACE}.*front=characters"):
        write("phonemes", ["a"], ["en"])
    monkeypatch.setenv(PLACE, str(tmp_path))
    with pytest.raises(FrontEndError, match="no espeak-ng was unpacked there"):
        write("phonemes", ["a"], ["en"])


def test_a_program_that_says_too_little_is_an_error() -> None:
    with pytest.raises(FrontEndError, match="1 phrases for 2"):
        Espeak((sys.executable, "-c", "print('a')"))(["a", "b"], "en")


def test_an_unpacked_tree_brings_its_data(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/here/espeak-ng-data").mkdir(parents=True)
    found = Espeak.of_tree(tmp_path)
    assert found.command == (str(tmp_path / "usr/bin/espeak-ng"), f"--path={tmp_path / 'usr/lib/here'}")
    assert found.env == {"LD_LIBRARY_PATH": str(tmp_path / "usr/lib/here")}
    (tmp_path / "usr/lib/here/inner").mkdir()
    (tmp_path / "usr/lib/here/inner/libcommon.so.1").touch()
    here = tmp_path / "usr/lib/here"
    assert Espeak.of_tree(tmp_path).env == {"LD_LIBRARY_PATH": f"{here}:{here / 'inner'}"}


def test_unknown_kinds_are_refused() -> None:
    for call in (lambda: write("runes", [], []), lambda: FrontEnd("runes")):
        with pytest.raises(FrontEndError, match="'runes': known are characters, bytes, phonemes"):
            call()
    with pytest.raises(FrontEndError, match="twice"):
        FrontEnd("characters", "aba")

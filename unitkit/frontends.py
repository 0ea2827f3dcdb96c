"""Texts as tokens to speak from: characters, bytes, or phonemes by the program espeak-ng where there is one."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from unitkit.text import MARKS, Letters, marked

PLACE = "UNITKIT_ESPEAK"  # names the program, or a folder into which Debian's packages were unpacked
VOICES = {"en": "en-us", "es": "es-419", "fr": "fr-fr"}  # languages that go by another name there
BYTES = 256
_CLAUSE = re.compile(r"([,.?!;:…]+(?:\s+|$))")
_NOT_SAID = re.compile(r"\([a-z0-9-]+\)|-")  # espeak's "(en)football(it)" and its "də-"


class FrontEndError(ValueError):
    """A front end that is unknown or cannot run here; the text says what there is and what to do."""


@dataclass(frozen=True)
class FrontEnd:
    """Written symbols as token ids: pad 0, bos 1, eos 2, then the 256 bytes, or the symbols in their order."""

    kind: str = "characters"  # characters | bytes | phonemes
    symbols: str = ""  # all that the training texts have; bytes need none

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        _check_kind(self.kind)
        if len(set(self.symbols)) < len(self.symbols):
            raise FrontEndError(f"a symbol stands twice in {self.symbols!r}")

    @classmethod
    def of(cls, kind: str, texts: Iterable[str]) -> "FrontEnd":
        """With the symbols of texts as `write` gives them, sorted."""
        return cls(kind, "" if kind == "bytes" else "".join(sorted(set("".join(texts)))))

    def __len__(self) -> int:
        return Letters.first + (BYTES if self.kind == "bytes" else len(self.symbols))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols, Letters.first)}

    def encode(self, written: str) -> np.ndarray:
        """Token ids (n,) from bos to eos, between which what comes before and after the speech is; unknown left out."""
        if self.kind == "bytes":
            said = [Letters.first + byte for byte in written.encode()]
        else:
            said = [self._ids[symbol] for symbol in written if symbol in self._ids]
        return np.array([Letters.bos, *said, Letters.eos], np.int64)

    def unknown(self, written: str) -> str:
        """The symbols that are left out, each once."""
        return "" if self.kind == "bytes" else "".join(dict.fromkeys(s for s in written if s not in self._ids))


def write(kind: str, texts: Sequence[str], langs: Sequence[str]) -> list[str]:
    """Texts as their front end has them: lower case with marks, or phonemes; `langs` has each one's language."""
    return list(FRONT_ENDS[_check_kind(kind)](texts, langs))


def _check_kind(kind: str) -> str:
    if kind not in FRONT_ENDS:
        raise FrontEndError(f"front end {kind!r}: known are {', '.join(FRONT_ENDS)}")
    return kind


def _characters(texts: Sequence[str], langs: Sequence[str]) -> list[str]:
    return [marked(text) for text in texts]


def _phonemes(texts: Sequence[str], langs: Sequence[str]) -> list[str]:
    """Clause by clause, for espeak drops the marks between them; one run of the program for each language."""
    clauses = [[part for part in _CLAUSE.split(text) if part.strip()] for text in texts]
    out = [""] * len(texts)
    espeak = Espeak.find()
    for lang in sorted(set(langs)):
        own = [i for i, one in enumerate(langs) if one == lang]
        said = [part for i in own for part in clauses[i] if marked(part)]
        spoken = iter(espeak(said, VOICES.get(lang, lang)))
        for i in own:
            for part in clauses[i]:
                if marked(part):
                    out[i] = f"{out[i]} {_NOT_SAID.sub('', next(spoken))}".strip()
                elif out[i] and (mark := next((sign for sign in part if sign in MARKS), "")):
                    out[i] += mark
    return out


@dataclass(frozen=True)
class Espeak:
    """The program espeak-ng (GPL-3, only run, never linked)."""

    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls) -> "Espeak":
        """The one that UNITKIT_ESPEAK names, or the installed one."""
        if place := os.environ.get(PLACE):
            return cls.of_tree(Path(place)) if os.path.isdir(place) else cls((place,))
        if installed := shutil.which("espeak-ng"):
            return cls((installed,))
        raise FrontEndError(
            "phonemes need the program espeak-ng: install it (apt-get install espeak-ng), or name it, or a folder with "
            f"Debian's packages unpacked, in {PLACE}; without it take front=characters or front=bytes"
        )

    @classmethod
    def of_tree(cls, tree: Path) -> "Espeak":
        """In a folder into which Debian's packages were unpacked."""
        data = next(tree.glob("usr/lib/*/espeak-ng-data"), None)
        if data is None:
            raise FrontEndError(f"{tree}: no usr/lib/*/espeak-ng-data, so no espeak-ng was unpacked there")
        libraries = dict.fromkeys([data.parent, *sorted(path.parent for path in data.parent.glob("*/lib*.so*"))])
        env = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
        return cls((str(tree / "usr/bin/espeak-ng"), f"--path={data.parent}"), env)

    def __call__(self, pieces: Sequence[str], voice: str, *, tie: str = "") -> list[str]:
        """IPA of each piece, from one run of the program; `tie` joins the letters of one sound."""
        if not pieces:
            return []
        command = [*self.command, "-q", "--ipa", *([f"--tie={tie}"] if tie else []), "-v", voice]
        fed = "\n\n".join(" ".join(piece.split()) for piece in pieces) + "\n"
        env = {**os.environ, **self.env}
        done = subprocess.run(command, input=fed, capture_output=True, text=True, env=env, check=False)
        found = [" ".join(block.split()) for block in re.split(r"\n\s*\n", done.stdout.strip("\n"))]
        if done.returncode or len(found) != len(pieces):
            raise FrontEndError(
                f"espeak-ng gave {len(found)} phrases for {len(pieces)} (voice {voice}): {done.stderr.strip()[-300:]}"
            )
        return found


FRONT_ENDS: dict[str, Callable[[Sequence[str], Sequence[str]], list[str]]] = {
    "characters": _characters,
    "bytes": _characters,
    "phonemes": _phonemes,
}

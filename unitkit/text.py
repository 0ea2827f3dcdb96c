"""Text as tokens: plain lower-case letters, numbered after the special ids that units have as well."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MARKS = ",.?!;:"
_NOT_SAID = re.compile(r"[^\w']|_")
_TAIL = re.compile(r"[\W_]*$")
_ENDS = (r"(?<=[.?!…])\s+", r"(?<=[,;:])\s+", r"\s+")  # of sentences, of clauses, of words


def plain(text: str) -> str:
    """Lower case, accents kept, punctuation but the apostrophe gone, one space between words."""
    text = unicodedata.normalize("NFC", text.lower().replace("’", "'"))
    return " ".join(word.strip("'") for word in _NOT_SAID.sub(" ", text).split() if word.strip("'"))


def marked(text: str) -> str:
    """As `plain`, with the marks that say how to speak: , . ? ! ; : behind words, one at a time, then a space."""
    words: list[str] = []
    for word in text.replace("…", ".").split():
        tail = _TAIL.search(word)
        mark = next((sign for sign in (tail[0] if tail else "") if sign in MARKS), "")
        if said := plain(word):
            words.append(said + mark)
        elif words and words[-1][-1] not in MARKS:
            words[-1] += mark
    return " ".join(words)


def sentences(text: str, *, longest: int) -> list[str]:
    """A text in pieces of at most `longest` characters: whole sentences, as many as fit.

    A sentence that is longer by itself is cut at its clauses, then between words, and shares no piece with another; a
    word is never cut.
    """
    return _pieces(" ".join(text.split()), longest, _ENDS)


def _pieces(text: str, longest: int, ends: tuple[str, ...]) -> list[str]:
    """Whole parts are joined as long as they fit; what had to be cut stands alone."""
    if len(text) <= longest or not ends:
        return [text] if text else []
    out: list[str] = []
    open_end = False  # whether the last piece is a whole part, or several
    for part in re.split(ends[0], text):
        found = _pieces(part, longest, ends[1:])
        whole = len(found) == 1
        if whole and open_end and len(out[-1]) + 1 + len(part) <= longest:
            out[-1] += f" {part}"
        else:
            out.extend(found)
        open_end = whole
    return out


@dataclass(frozen=True)
class Letters:
    """Letters as token ids: pad 0, bos 1, eos 2, then the letters in their order."""

    letters: str

    pad = 0
    bos = 1
    eos = 2
    first = 3

    def __post_init__(self) -> None:
        if len(set(self.letters)) < len(self.letters):
            raise ValueError(f"a letter stands twice in {self.letters!r}")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Letters":
        """The letters of some texts, sorted."""
        return cls("".join(sorted({letter for text in texts for letter in plain(text)})))

    def __len__(self) -> int:
        return self.first + len(self.letters)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {letter: number for number, letter in enumerate(self.letters, self.first)}

    @property
    def space(self) -> np.ndarray:
        """The token between words (1,), none where texts have one word each."""
        return np.array([self._ids[" "]] if " " in self._ids else [], np.int64)

    def encode(self, text: str, *, eos: bool = False) -> np.ndarray:
        """Token ids (letters [+ eos],) of the plain text; letters that are unknown are left out."""
        ids = [self._ids[letter] for letter in plain(text) if letter in self._ids]
        return np.array(ids + [self.eos] * eos, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids up to the first eos; pad and bos are left out."""
        out = []
        for number in map(int, ids):
            if number == self.eos:
                break
            if number >= self.first:
                out.append(self.letters[number - self.first])
        return "".join(out)

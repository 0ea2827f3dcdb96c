"""Text as pieces, letters or strings of them, by sentencepiece; numbered after the special ids, as units are."""

import hashlib
import io
import os
import random
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unitkit.bpe import merged

KINDS = ("bpe", "char")
SPACE = "▁"  # sentencepiece's mark of where a word begins
MODEL = "text.model"


class PiecesError(ValueError):
    """Pieces that cannot be learnt, read or used; the text names the value and what is known."""


@dataclass(frozen=True)
class Pieces:
    """Text as token ids: pad 0, bos 1, eos 2, then the pieces of a sentencepiece model, then a token a language.

    `langs`: where there are any, a text begins with the token of its language.
    """

    model: bytes
    langs: tuple[str, ...] = ()

    pad = 0
    bos = 1
    eos = 2
    first = 3

    @classmethod
    def train(cls, texts: Iterable[str], size: int, *, kind: str = "bpe", langs: Iterable[str] = ()) -> "Pieces":
        """Learn at most `size` pieces of `kind` "bpe", or, of "char", one a letter; texts are taken as they are.

        Nothing is random: the same texts give the same pieces.  Fewer pieces come out where texts have no more pairs.
        """
        if kind not in KINDS:
            raise PiecesError(f"kind {kind!r}: known are {', '.join(KINDS)}")
        lines = [line for line in map(_spaced, texts) if line]
        letters = {letter for line in lines for letter in line} | {SPACE}
        if not lines:
            raise PiecesError("no text to learn pieces of: the manifest's rows have none")
        if kind == "bpe" and size < len(letters):
            raise PiecesError(f"size {size} has no room for the {len(letters)} letters of these texts")
        wanted = size if kind == "bpe" else len(letters)
        return cls(_trained(iter(lines), wanted, kind), tuple(langs))

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change with any piece or language."""
        return hashlib.sha256(self.model + "\0".join(self.langs).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return self.first + self.n_pieces + len(self.langs)

    @property
    def n_pieces(self) -> int:
        """Pieces, the unknown one among them."""
        return int(self._processor.get_piece_size())

    def encode(
        self, text: str, *, lang: str | None = None, dropout: float = 0.0, seed: int | None = None
    ) -> np.ndarray:
        """Token ids ([language +] pieces,) of a text; letters that are unknown are left out.

        With `dropout` each merge is left out with that probability (BPE-dropout), the same `seed` always giving the
        same pieces; all decode to the same text.
        """
        if not 0 <= dropout <= 1:
            raise PiecesError(f"dropout must be a probability, not {dropout!r}")
        known = "".join(letter for letter in _spaced(text) if letter == " " or letter in self._ranks)
        known = _spaced(known)
        if dropout and known:
            marked = SPACE + known.replace(" ", SPACE)
            ids = merged(marked, self._ranks, dropout, random.Random(seed))
        else:
            ids = self._processor.encode(known)
        start = [self.token_of(lang)] if self.langs else []
        return np.array([*start, *(number + self.first for number in ids)], np.int64)

    def token_of(self, lang: str | None) -> int:
        """The token of a language; an error names those that are known."""
        if lang not in self.langs:
            known = ", ".join(self.langs) or "none: this model was trained without languages"
            raise PiecesError(f"language {lang!r}: known are {known}")
        return self.first + self.n_pieces + self.langs.index(lang)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids up to the first eos; special ids and languages are left out."""
        unknown, end = self.first, self.first + self.n_pieces
        return str(self._processor.decode([n - self.first for n in self._before_eos(ids) if unknown < n < end]))

    def lang_of(self, ids: Iterable[int]) -> str | None:
        """The first language among token ids."""
        start = self.first + self.n_pieces
        return next((self.langs[number - start] for number in self._before_eos(ids) if number >= start), None)

    def _before_eos(self, ids: Iterable[int]) -> Iterator[int]:
        for number in map(int, ids):
            if number == self.eos:
                return
            yield number

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `text.model`, as sentencepiece reads it; the languages are the model's to remember."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".{MODEL}.{os.getpid()}"
        scratch.write_bytes(self.model)
        os.replace(scratch, folder / MODEL)

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], *, langs: Iterable[str] = (), fingerprint: str | None = None
    ) -> "Pieces":
        """Read what `save` wrote; with `fingerprint`, other pieces are an error."""
        path = Path(directory) / MODEL
        if not path.is_file():
            raise PiecesError(f"{path.parent} has no {MODEL}: models that write text have their pieces beside them")
        found = cls(path.read_bytes(), tuple(langs))
        if fingerprint not in (None, found.fingerprint):
            raise PiecesError(
                f"{path}: these pieces are {found.fingerprint!r}, the model beside them writes {fingerprint!r}: "
                f"put back the {MODEL} that it was trained with"
            )
        return found

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise PiecesError(f"not a sentencepiece model: {error}") from error

    @cached_property
    def _ranks(self) -> dict[str, int]:
        """Each piece but the unknown one, and its number: pieces made first have the lowest, and are merged first."""
        return {self._processor.id_to_piece(number): number for number in range(1, self.n_pieces)}


def _spaced(text: str) -> str:
    """Composed letters with one space between words and none of sentencepiece's marks."""
    return " ".join(unicodedata.normalize("NFC", text).replace(SPACE, " ").split())


def _trained(lines: Iterator[str], size: int, kind: str) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type=kind,
            vocab_size=size + 1,  # and the unknown piece
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise PiecesError(f"sentencepiece: {error}") from error
    return model.getvalue()

"""Byte-pair encoding over units: frequent strings of units become one piece, and every string of units comes back."""

import hashlib
import heapq
import io
import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unitkit.units import FingerprintError, Units, UnitsError, check_fingerprint

PLANE = 0xFFFE  # characters in a private-use plane: its last two code points are none
FIRST = 0xF0000  # units become characters of planes 15 and 16, which no normalisation touches and no text has
MAX_UNITS = 2 * PLANE
SENTENCE = 1000  # units a training sentence: sentencepiece leaves out those over 4192 bytes, and 4 bytes are a unit
MODEL, CARD = "bpe.model", "bpe.json"


@dataclass(frozen=True)
class UnitBPE:
    """Lossless BPE over the units of one tokenizer.  `pieces` are ids 0..len-1; every single unit is one of them.

    `reduced` says whether it was trained on deduplicated units; it takes and gives units of that kind only.  Units of
    another tokenizer raise `FingerprintError`.  Up to 131,068 units: so many private-use characters there are.
    """

    model: bytes
    tokenizer: str
    rate_hz: float
    n_units: int
    reduced: bool = False

    @classmethod
    def train(cls, units: Iterable[Units], vocab_size: int, *, longest: int = 16) -> "UnitBPE":
        """Learn at most `vocab_size` pieces, each of at most `longest` units; fewer if the units have no more pairs.

        All units must be of one tokenizer with one codebook, and all frame-level or all reduced.  Nothing is random:
        the same units give the same pieces.  Utterances are cut every 1000 units, for training only.
        """
        stream = iter(units)
        if (first := next(stream, None)) is None:
            raise UnitsError("a BPE of no units at all")
        if first.n_units > MAX_UNITS:
            raise UnitsError(f"{first.n_units} units, but there are only {MAX_UNITS} private-use characters for them")
        if first.codebooks > 1:
            raise UnitsError(f"a BPE takes one codebook, not {first.codebooks}: encode each codebook by itself")
        if vocab_size < first.n_units:
            raise UnitsError(f"vocab_size {vocab_size} has no room for the {first.n_units} single units")
        if not 1 <= longest <= 512:
            raise UnitsError(f"longest must be 1 to 512 units, not {longest}")
        empty = cls(b"", first.tokenizer, first.rate_hz, first.n_units, first.reduced)
        trained = cls(_trained(empty._sentences(first, stream), vocab_size, longest), *list(asdict(empty).values())[1:])
        if trained._unknown():
            raise UnitsError("sentencepiece left single units out of its vocabulary; this is a fault of its version")
        return trained

    def _sentences(self, first: Units, others: Iterator[Units]) -> Iterator[str]:
        yield from _text(np.arange(self.n_units))  # each unit alone: in the vocabulary, and no pair of another's
        yield from _cut(self._text_of(first))
        for one in others:
            yield from _cut(self._text_of(one))

    def encode(self, units: Units, *, dropout: float = 0.0, seed: int | None = None) -> np.ndarray:
        """Pieces (pieces,) int64 of units.  With `dropout`, each merge is left out with that probability (BPE-dropout).

        A candidate is drawn for once, as in sentencepiece.  The same `seed` gives the same pieces in any process, which
        sentencepiece's own sampling does not; no seed gives other pieces each time.  All decode to the same units.
        """
        text = self._text_of(units)
        if not 0 <= dropout <= 1:
            raise UnitsError(f"dropout must be a probability, not {dropout!r}")
        ids = merged(text, self._ranks, dropout, random.Random(seed)) if dropout else self._processor.encode(text)
        return np.asarray(ids, np.int64) - 1  # sentencepiece wants an unknown piece, its 0; nothing is unknown here

    def decode(self, pieces: np.ndarray | list[int], *, id: str = "") -> Units:
        """The units of pieces (pieces,), under this BPE's tokenizer, reduced if it was trained so."""
        found = np.asarray(pieces)
        found = found if found.size else found.astype(np.int64)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise UnitsError(f"pieces are whole numbers (pieces,), not {found.dtype} of shape {found.shape}")
        if found.size and (found.min() < 0 or found.max() >= len(self)):
            raise UnitsError(f"piece {found[(found < 0) | (found >= len(self))][0]} is outside 0..{len(self) - 1}")
        parts = [self._pieces[piece] for piece in found.tolist()]
        ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return Units(ids, self.rate_hz, self.n_units, self.tokenizer, id, self.reduced)

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change with any piece, and with whose units they are."""
        return hashlib.sha256(f"{self.tokenizer} {self.reduced} ".encode() + self.model).hexdigest()[:12]

    def __len__(self) -> int:
        return int(self._processor.get_piece_size()) - 1

    def save(self, directory: str | Path) -> None:
        """Write `bpe.model`, as sentencepiece reads it, and `bpe.json`, which says what its units are."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        card = {key: value for key, value in asdict(self).items() if key != "model"}
        card |= {"unitkit_bpe": 1, "sha256": hashlib.sha256(self.model).hexdigest()}
        for name, content in ((MODEL, self.model), (CARD, json.dumps(card, indent=1).encode() + b"\n")):
            scratch = folder / f".{name}.{os.getpid()}"
            scratch.write_bytes(content)
            os.replace(scratch, folder / name)

    @classmethod
    def load(cls, directory: str | Path, *, tokenizer: str | None = None) -> "UnitBPE":
        """Read what `save` wrote; with `tokenizer`, a BPE for another one raises `FingerprintError`."""
        folder = Path(directory)
        try:
            card = json.loads((folder / CARD).read_bytes())
            model = (folder / MODEL).read_bytes()
            version, digest = card.pop("unitkit_bpe"), card.pop("sha256")
            loaded = cls(model, **{name: kind(card[name]) for name, kind in CARD_FIELDS.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnitsError(f"{folder} holds no unit BPE ({MODEL}, {CARD}): {error!r}") from error
        if version != 1 or digest != hashlib.sha256(model).hexdigest():
            raise UnitsError(
                f"{folder}: {CARD} does not belong to this {MODEL}, or is of a later version; save it again"
            )
        if tokenizer is not None:
            check_fingerprint(tokenizer, loaded.tokenizer, what=str(folder))
        if loaded._unknown():
            raise UnitsError(f"{folder / MODEL} does not have every unit of 0..{loaded.n_units - 1}")
        return loaded

    def _text_of(self, units: Units) -> str:
        check_fingerprint(self.tokenizer, units.tokenizer, what=f"BPE of {units.id!r}")
        if (units.n_units, units.codebooks) != (self.n_units, 1):
            raise FingerprintError(
                f"{units.id!r} has {units.codebooks} × {units.n_units} units, not 1 × {self.n_units}"
            )
        if units.reduced != self.reduced:
            kinds = {True: "reduced", False: "frame-level"}
            raise UnitsError(
                f"{units.id!r} is {kinds[units.reduced]}, but this BPE is of {kinds[self.reduced]} units: "
                f"{'dedup() them first' if self.reduced else 'expand(durations) them first'}"
            )
        return _text(units.ids)

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise UnitsError(f"not a sentencepiece model: {error}") from error

    @cached_property
    def _pieces(self) -> list[np.ndarray]:
        """The units of each piece."""
        return [_units(self._processor.id_to_piece(number + 1)) for number in range(len(self))]

    @cached_property
    def _ranks(self) -> dict[str, int]:
        """Each piece and its id: pieces made first have the lowest, and are merged first."""
        return {self._processor.id_to_piece(number): number for number in range(1, len(self) + 1)}

    def _unknown(self) -> bool:
        return any(not self._processor.piece_to_id(character) for character in _text(np.arange(self.n_units)))


CARD_FIELDS = {"tokenizer": str, "rate_hz": float, "n_units": int, "reduced": bool}


def _text(ids: np.ndarray) -> str:
    codes = FIRST + ids + 2 * (ids >= PLANE)
    return codes.astype("<u4").tobytes().decode("utf-32-le")


def _units(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64) - FIRST
    return codes - 2 * (codes > PLANE)


def _cut(text: str) -> Iterator[str]:
    for start in range(0, len(text), SENTENCE):
        yield text[start : start + SENTENCE]


def merged(text: str, ranks: dict[str, int], dropout: float, draw: random.Random) -> list[int]:
    """Merge neighbours, lowest rank and then leftmost first, as sentencepiece does; each candidate may be dropped."""
    pieces: list[str] = list(text)  # "" once merged into the left neighbour
    size = len(pieces)
    after, before = list(range(1, size + 1)), list(range(-1, size - 1))

    def candidates(left: int, right: int) -> Iterator[tuple[int, int, int, int]]:
        if left >= 0 and right < size and (rank := ranks.get(pieces[left] + pieces[right])) is not None:
            yield rank, left, right, len(pieces[left]) + len(pieces[right])

    heap = [found for left in range(size - 1) for found in candidates(left, left + 1)]
    heapq.heapify(heap)
    while heap:
        _, left, right, length = heapq.heappop(heap)
        if not (pieces[left] and pieces[right]) or len(pieces[left]) + len(pieces[right]) != length:
            continue  # one of the two has been merged with another since
        if draw.random() < dropout:
            continue
        pieces[left], pieces[right] = pieces[left] + pieces[right], ""
        after[left] = after[right]
        if after[right] < size:
            before[after[right]] = left
        for found in (*candidates(before[left], left), *candidates(left, after[left])):
            heapq.heappush(heap, found)
    return [ranks[piece] for piece in pieces if piece]


def _trained(sentences: Iterator[str], vocab_size: int, longest: int) -> bytes:
    """The model; an error in what the sentences are made of comes out as itself, not as sentencepiece's."""
    import sentencepiece

    model = io.BytesIO()
    fault: list[Exception] = []

    def guarded() -> Iterator[str]:
        try:
            yield from sentences
        except Exception as error:
            fault.append(error)
            raise

    try:
        _fit(sentencepiece, guarded(), model, vocab_size, longest)
    except RuntimeError as error:
        raise (fault[0] if fault else UnitsError(f"sentencepiece: {error}")) from error
    return model.getvalue()


def _fit(sentencepiece: Any, sentences: Iterator[str], model: io.BytesIO, vocab_size: int, longest: int) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size + 1,  # and the unknown piece
        hard_vocab_limit=False,
        max_sentencepiece_length=longest,
        character_coverage=1.0,
        byte_fallback=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_whitespace=False,
        split_by_number=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )

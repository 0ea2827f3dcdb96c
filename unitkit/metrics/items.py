"""ABX item files: what is compared with what.

The form of the ZeroSpeech challenges: text, columns separated by white space, a header line
    #file onset offset #phone prev-phone next-phone speaker
then one row an item: utterance id, start and end in seconds, phone, the phones before and after, speaker.  Columns are
found by name; others are passed over.

`alignment_items` makes items from phone alignments.  A "phoneme" item is the phone itself; a "triphone" item runs from
the start of the phone before to the end of the phone after.  Silence is never the phone; it may be the neighbour of a
phoneme (written SIL, as are the ends of the utterance), but not of a triphone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from unitkit.manifest import atomic_text
from unitkit.metrics.alignments import AlignmentError, Alignments, Phone

COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
KINDS = ("phoneme", "triphone")
QUIET = "SIL"


class Item(NamedTuple):
    """One stretch of one utterance: id, start and end in seconds, phone, the phones before and after, speaker."""

    file: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str

    @property
    def context(self) -> tuple[str, str]:
        """The phones before and after."""
        return self.before, self.after


def read_items(path: str | Path) -> list[Item]:
    """All items of a file."""
    with open(path, encoding="utf-8-sig") as file:
        header = file.readline().split()
        if missing := [name for name in COLUMNS if name not in header]:
            raise AlignmentError(
                f"{path}:1: no column {', '.join(missing)}; an item file starts with the line {' '.join(COLUMNS)!r}"
            )
        places = [header.index(name) for name in COLUMNS]
        rows = enumerate(file, 2)
        return [_item(line.split(), places, len(header), f"{path}:{number}") for number, line in rows if line.strip()]


def _item(cells: Sequence[str], places: Sequence[int], width: int, place: str) -> Item:
    if len(cells) != width:
        raise AlignmentError(f"{place}: {len(cells)} columns, the header has {width}")
    file, onset, offset, *labels = (cells[index] for index in places)
    try:
        start, end = float(onset), float(offset)
    except ValueError as error:
        raise AlignmentError(f"{place}: onset and offset are seconds, not {onset!r} and {offset!r}") from error
    if not (isfinite(start) and isfinite(end) and 0 <= start < end):
        raise AlignmentError(f"{place}: an item from {onset} to {offset} s; 0 <= onset < offset is needed")
    return Item(file, start, end, *labels)


def write_items(path: str | Path, items: Iterable[Item]) -> int:
    """Write an item file in one step, times to a tenth of a millisecond; returns the number of items."""
    written = 0
    with atomic_text(path) as file:
        file.write(" ".join(COLUMNS) + "\n")
        for item in items:
            texts = (item.file, *item[3:])
            if bad := [text for text in texts if not text or text.split() != [text]]:
                raise AlignmentError(f"{bad[0]!r} cannot stand in an item file: columns are separated by white space")
            file.write(f"{item.file} {item.onset:.4f} {item.offset:.4f} {' '.join(item[3:])}\n")
            written += 1
    return written


def alignment_items(
    alignments: Alignments, speakers: Mapping[str, str | None], *, kind: str = "phoneme"
) -> Iterator[Item]:
    """Items of all phones of the aligned utterances with a speaker; `kind` is "phoneme" or "triphone"."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of item {kind!r}; known: {', '.join(KINDS)}")
    for id_, phones in alignments.items():
        if speaker := speakers.get(id_):
            for index, phone in enumerate(phones):
                before = phones[index - 1] if index else None
                after = phones[index + 1] if index + 1 < len(phones) else None
                yield from _of_phone(before, phone, after, id_, speaker, triphone=kind == "triphone")


def _of_phone(
    before: Phone | None, phone: Phone, after: Phone | None, id_: str, speaker: str, *, triphone: bool
) -> Iterator[Item]:
    """The item of one phone, if it gives one; a neighbour across a gap of over 1 ms is silence."""
    left = before.label if before and not before.silent and phone.start - before.end <= 1e-3 else QUIET
    right = after.label if after and not after.silent and after.start - phone.end <= 1e-3 else QUIET
    if phone.silent or (triphone and QUIET in (left, right)):
        return
    onset = before.start if triphone and before else phone.start
    offset = after.end if triphone and after else phone.end
    yield Item(id_, onset, offset, phone.label, left, right, speaker)

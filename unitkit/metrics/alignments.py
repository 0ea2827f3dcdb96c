"""Phone alignments: who says which phone when; read from and written to a table, laid over frames.

The table is UTF-8 text, tab-separated, with a header that names its columns; `id`, `start`, `end` and `phone` must be
there, in any order, others (`word`, ...) are passed over.  Times are seconds from the start of the utterance, rows of
an utterance stand in time order and do not overlap.  A silence that ends before it starts is how some aligners
(pocketsphinx) say that there is none: it is passed over.  `recipes/align_prompts.py` makes such a table.

Frames and times: frame i of units or features at R Hz stands for the time [i/R, (i+1)/R), its centre is (i + 0.5)/R.
This is the rule of ABXpy, ZeroSpeech and fastabx; an encoder's own window may be centred some milliseconds off.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unitkit.manifest import atomic_text

COLUMNS = ("id", "start", "end", "phone")
SILENCE = frozenset({"", "SIL", "sil", "sp", "spn", "SPN", "<eps>", "+NSN+", "+SPN+"})
NO_PHONE = -1  # the label of frames that no phone covers


class AlignmentError(ValueError):
    """An alignment or item table that is not what it claims to be; the message names the place."""


class Phone(NamedTuple):
    """One phone: start and end in seconds, label."""

    start: float
    end: float
    label: str

    @property
    def silent(self) -> bool:
        """Whether the label stands for silence."""
        return self.label in SILENCE


Alignments = Mapping[str, Sequence[Phone]]  # by utterance id


def read_alignments(path: str | Path, *, prefix: str = "") -> dict[str, list[Phone]]:
    """Phones by utterance id, in the file's order; `prefix` is put before every id ("en/", where manifests have it)."""
    found: dict[str, list[Phone]] = {}
    with open(path, encoding="utf-8-sig") as file:
        header = file.readline().rstrip("\r\n").split("\t")
        if missing := [name for name in COLUMNS if name not in header]:
            raise AlignmentError(
                f"{path}:1: no column {', '.join(missing)}; the first line must name the columns, "
                f"tab-separated, {', '.join(COLUMNS)} among them"
            )
        places = [header.index(name) for name in COLUMNS]
        for number, line in enumerate(file, 2):
            if line.strip():
                id_, phone = _row(line, places, f"{path}:{number}")
                if phone.silent and phone.end <= phone.start:
                    continue
                rows = found.setdefault(prefix + id_, [])
                if rows and phone.start < rows[-1].end - 1e-9:
                    raise AlignmentError(
                        f"{path}:{number}: {id_!r}: {phone.label} starts at {phone.start:g} s, before the phone "
                        f"above ends ({rows[-1].end:g} s)"
                    )
                rows.append(phone)
    return found


def _row(line: str, places: Sequence[int], place: str) -> tuple[str, Phone]:
    cells = line.rstrip("\r\n").split("\t")
    if len(cells) <= max(places):
        raise AlignmentError(f"{place}: {len(cells)} columns, the header has more")
    id_, start, end, label = (cells[index] for index in places)
    try:
        phone = Phone(float(start), float(end), label)
    except ValueError as error:
        raise AlignmentError(f"{place}: start and end are seconds, not {start!r} and {end!r}") from error
    lasts = phone.start < phone.end or phone.silent
    if not (isfinite(phone.start) and isfinite(phone.end) and phone.start >= 0 and lasts):
        raise AlignmentError(f"{place}: a phone from {start} to {end} s; 0 <= start < end is needed")
    return id_, phone


def write_alignments(path: str | Path, alignments: Iterable[tuple[str, Sequence[Phone]]]) -> int:
    """Write (id, phones) rows as a table in one step; times to the millisecond.  Returns the number of utterances."""
    written = 0
    with atomic_text(path) as file:
        file.write("\t".join(COLUMNS) + "\n")
        for id_, phones in alignments:
            if any(mark in text for text in (id_, *(phone.label for phone in phones)) for mark in "\t\n\r"):
                raise AlignmentError(f"{id_!r}: ids and labels cannot hold tabs or line breaks")
            file.writelines(f"{id_}\t{phone.start:.3f}\t{phone.end:.3f}\t{phone.label}\n" for phone in phones)
            written += 1
    return written


def first_frame(time: float, rate_hz: float) -> int:
    """The first frame whose centre is at `time` (seconds) or later."""
    return ceil(_centres(time, rate_hz))


def last_frame(time: float, rate_hz: float) -> int:
    """The last frame whose centre is at `time` (seconds) or earlier; -1 if there is none."""
    return floor(_centres(time, rate_hz))


def _centres(time: float, rate_hz: float) -> float:
    """`time` on the axis where frame i's centre is i.

    Boundaries often lie exactly on a centre (0.19 s at 50 Hz); rounding to a millionth of a frame keeps such ties out
    of the hands of floating point.
    """
    return round(time * rate_hz - 0.5, 6)


@dataclass(frozen=True)
class Inventory:
    """The phone labels of a set of alignments, sorted; a label's number is its place."""

    labels: tuple[str, ...]

    @classmethod
    def of(cls, alignments: Alignments, *, silence: bool = True) -> "Inventory":
        """All labels in the alignments; without `silence`, those of silence are left out."""
        labels = {phone.label for phones in alignments.values() for phone in phones if silence or not phone.silent}
        return cls(tuple(sorted(labels)))

    def frames(self, phones: Sequence[Phone], n_frames: int, *, rate_hz: float) -> np.ndarray:
        """(n_frames,) label numbers: of each frame the phone with start <= centre < end, else -1 (`NO_PHONE`)."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        found = np.full(n_frames, NO_PHONE, dtype=np.int64)
        for phone in phones:
            span = slice(first_frame(phone.start, rate_hz), first_frame(phone.end, rate_hz))
            found[span] = numbers.get(phone.label, NO_PHONE)
        return found


def phone_boundaries(phones: Sequence[Phone]) -> np.ndarray:
    """Times (boundaries,) in seconds at which one phone ends and another starts, the outer ends left out.

    A gap between two phones has two: its start and its end.
    """
    times = {time for one, other in pairwise(phones) for time in (round(one.end, 6), round(other.start, 6))}
    return np.array(sorted(times), dtype=np.float64)

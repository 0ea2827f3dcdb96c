"""What the readers and writers of foreign unit files have in common: rows, listings of speech, safe text."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from unitkit.manifest import AUDIO_SUFFIXES, Utterance, read_fairseq_tsv, read_manifest
from unitkit.units import Units, UnitsError, UnitsHeader

CHANNEL = re.compile(r"(.+)-channel[12]", re.DOTALL)  # GSLM's name of one channel of a stereo recording


@dataclass(frozen=True)
class Row:
    """One utterance of a foreign file: where it stands there, its id, its unit ids, and what else the file says of it.

    `durations` in frames, where the file has them, `seconds` of its audio.
    """

    where: str
    id: str
    ids: Any
    durations: Any = None
    seconds: float | None = None


@dataclass(frozen=True)
class Listing:
    """The manifest that belongs to a foreign file: its utterances by id, in order, and where they come from."""

    path: Path
    utterances: dict[str, Utterance]

    @classmethod
    def read(cls, path: Path) -> "Listing":
        """Read a JSONL manifest or a fairseq tsv."""
        read = read_fairseq_tsv if path.suffix == ".tsv" else read_manifest
        return cls(path, {utterance.id: utterance for utterance in read(path)})

    def get(self, id: str) -> Utterance | None:
        """The utterance of an id; of `x-channel1`, where the listing does not have it, the recording `x`."""
        channel = CHANNEL.fullmatch(id)
        return self.utterances.get(id) or (self.utterances.get(channel[1]) if channel else None)

    @cached_property
    def _by_audio(self) -> dict[str, str | None]:
        table: dict[str, str | None] = {}
        for utterance in self.utterances.values():
            audio = os.path.abspath(utterance.audio)
            table[audio] = None if audio in table else utterance.id
        return table

    def id_of(self, audio: str) -> str | None:
        """The id of the one utterance that is the whole of an audio file, or None."""
        return self._by_audio.get(os.path.abspath(audio))


Reader = Callable[[Path, Listing | None], Iterator[Row]]
Writer = Callable[[Path, UnitsHeader, Iterable[Units], Listing | None], None]


@dataclass(frozen=True)
class Format:
    """How a foreign format is read and written.

    `several` codebooks fit in; `reduced` writes deduplicated units with durations; `beside` is the suffix of the
    listing that names the lines of a file without ids; `own_header` finds the header inside files that have one.
    """

    read: Reader
    write: Writer
    several: bool = False
    reduced: Writer | None = None
    beside: str | None = None
    own_header: Callable[[Path], UnitsHeader | None] | None = None


# ---------------------------------------------------------------------------------------------------------- files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path that becomes `path` if all goes well, and nothing if not."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file for writing that takes its name only when complete; names that are not UTF-8 keep their bytes."""
    with (
        replacing(path) as scratch,
        open(scratch, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        yield file


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Place (path:number) and text of each line; only newlines end lines, whatever else Unicode has."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            yield f"{path}:{number}", line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def with_durations(write: Writer) -> Writer:
    """A writer of merged runs of equal units; their durations go to `<out>.durations` as `id|3 1 2`."""

    def write_reduced(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
        with text_file(out.with_name(out.name + ".durations")) as file:

            def merged() -> Iterator[Units]:
                for one in units:
                    short, durations = one.dedup()
                    file.write(f"{plain(one.id, 'durations', refused='|' + chr(9))}|{joined(durations)}\n")
                    yield short

            write(out, header, merged(), listing)

    return write_reduced


# ----------------------------------------------------------------------------------------------------------- text


def parsed(text: str, where: str) -> list[int]:
    """The units of `1 2 3`."""
    if not re.fullmatch(r"[0-9 ]*", text):
        bad = next(token for token in text.split(" ") if not re.fullmatch(r"[0-9]*", token))
        raise UnitsError(f"{where}: {bad!r} is not a unit; units are whole numbers with spaces between")
    try:
        return [int(token) for token in text.split()]
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise UnitsError(f"{where}: {error}") from error


def joined(ids: np.ndarray) -> str:
    """`1 2 3` of units."""
    return " ".join(map(str, ids.tolist()))


def plain(text: str, format: str, *, refused: str = "\t") -> str:
    """`text` itself, unless it would break a line of `format` or has one of the `refused` characters."""
    if text.splitlines() != [text] or any(character in text for character in refused):
        raise UnitsError(
            f"{text!r} cannot be written as {format}: it has a line break or one of {refused!r}: rename it"
        )
    if not encodable(text, "surrogateescape"):
        raise UnitsError(f"{text!r} cannot be written as {format}: it is not valid Unicode: rename it")
    return text


def encodable(text: str, errors: str = "strict") -> bool:
    """Whether a text that is not empty can be written as UTF-8."""
    try:
        return bool(text.encode("utf-8", errors))
    except UnicodeEncodeError:
        return False


def header_from(text: str | bytes, path: Path) -> UnitsHeader:
    """The header in a foreign file that unitkit wrote."""
    try:
        row = json.loads(text)
        return UnitsHeader(row["tokenizer"], float(row["rate_hz"]), int(row["n_units"]), int(row["codebooks"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UnitsError(f"{path}: bad header: {error!r}") from error


# ---------------------------------------------------------------------------------------------------------- names


def needed(listing: Listing | None, format: str) -> Listing:
    """The listing, or an error where a format cannot be written without one."""
    if listing is None:
        raise UnitsError(f"{format} names audio files: give the manifest of these utterances")
    return listing


def whole_file(id: str, listing: Listing, format: str) -> Utterance:
    """The utterance of an id, for a format that names whole audio files."""
    utterance = listing.utterances.get(id)
    if utterance is None:
        raise UnitsError(f"{id!r} is not in the manifest {listing.path}")
    if utterance.start is not None:
        raise UnitsError(f"{id!r} starts inside a file; {format} names whole files only: cut the audio first")
    if listing.id_of(utterance.audio) != id:
        raise UnitsError(f"{id!r}: two utterances of the manifest are of {utterance.audio}; {format} cannot tell them")
    return utterance


def stem(audio: str) -> str:
    """A path without its audio suffix; any other ending stays (`rstrip`, as GSLM does it, eats letters)."""
    base, suffix = os.path.splitext(audio)
    return base if suffix.lower() in AUDIO_SUFFIXES else audio


def id_of_audio(audio: str, listing: Listing | None) -> str:
    """The id of a row that names its audio: the manifest's for that file, else the path without audio suffix."""
    known = listing.id_of(audio) if listing is not None else None
    return known if known is not None else stem(audio)


def audio_of_id(id: str, listing: Listing | None, format: str) -> str:
    """What a format writes for the audio of an id: the manifest's path, else the id, if that reads back as itself."""
    if listing is not None:
        return whole_file(id, listing, format).audio
    if stem(id) != id:
        raise UnitsError(f"{id!r} ends like an audio file, which {format} would cut off: give the manifest, or rename")
    return id

"""Text, one utterance a line: GSLM, fairseq's `.km` and `.unit` with their tsv, textlesslib, Kaldi."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from unitkit.formats.base import (
    Format,
    Listing,
    Reader,
    Row,
    Writer,
    joined,
    lines_of,
    needed,
    parsed,
    plain,
    replacing,
    text_file,
    with_durations,
)
from unitkit.manifest import write_fairseq_tsv
from unitkit.units import Units, UnitsError, UnitsHeader

DECODED = re.compile(r"(.*?) ?\(None-([0-9]{1,9})\)")  # a line of fairseq's decoder: units, then the row of the tsv

# ----------------------------------------------------------------------------------------------------------- GSLM


def read_gslm(path: Path, listing: Listing | None) -> Iterator[Row]:
    """`id|1 2 3`.  S2UT splits at the first bar, unit2speech at every one: a second bar is refused, also on writing."""
    for where, line in lines_of(path):
        name, bar, text = line.partition("|")
        if not bar:
            raise UnitsError(f"{where}: expected 'id|1 2 3', found {line[:60]!r}")
        yield Row(where, name, parsed(text, where))


def write_gslm(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """`id|1 2 3`; channels of stereo recordings are rows of their own with ids `name-channel1`, `name-channel2`."""
    with text_file(out) as file:
        for one in units:
            file.write(f"{plain(one.id, 'gslm', refused='|' + chr(9))}|{joined(one.ids)}\n")


# ----------------------------------------------------------------------------------------- bare lines with a list


def listed_lines(path: Path, listing: Listing | None) -> Iterator[tuple[str, str, str]]:
    """Place, id and text of each line of a file without ids, line by line with its listing."""
    if listing is None:
        raise UnitsError(
            f"{path} has no ids: give the manifest its lines belong to ({path.with_suffix('.tsv')} is not there)"
        )
    names = iter(listing.utterances)
    lines = 0
    for where, line in lines_of(path):
        lines += 1
        if (name := next(names, None)) is None:
            raise UnitsError(
                f"{where}: {listing.path} has only {lines - 1} utterances; lines and utterances must pair up"
            )
        yield where, name, line
    if rest := sum(1 for _ in names):
        raise UnitsError(f"{path}:{lines}: ends here, but {listing.path} has {lines + rest} utterances")


def read_km(path: Path, listing: Listing | None) -> Iterator[Row]:
    """Bare lines of units, in the order of the tsv beside them or of the manifest given."""
    for where, name, line in listed_lines(path, listing):
        yield Row(where, name, parsed(line, where))


def writer_of_lines(format: str) -> Writer:
    """A writer of bare lines and, beside them, of the fairseq tsv that names them."""

    def write(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
        known, listed = needed(listing, format), []
        if out.suffix == ".tsv":
            raise UnitsError(f"{out}: .tsv is the name of the list beside a .{format}; name the units .{format}")
        with replacing(out.with_suffix(".tsv")) as names, text_file(out) as file:
            for one in units:
                file.write(joined(one.ids) + "\n")
                listed.append(known.utterances[one.id])
            write_fairseq_tsv(names, listed)

    return write


def read_unit(path: Path, listing: Listing | None) -> Iterator[Row]:
    """The speech normaliser's: bare lines, or its decoder's output, where `(None-12)` says which row of the tsv."""
    first = next(lines_of(path), ("", ""))[1]
    if not DECODED.fullmatch(first):
        yield from read_km(path, listing)
        return
    names = list(needed(listing, "unit").utterances)
    for where, line in lines_of(path):
        if not (match := DECODED.fullmatch(line)):
            raise UnitsError(f"{where}: expected '1 2 3 (None-12)', found {line[-60:]!r}")
        if int(match[2]) >= len(names):
            raise UnitsError(f"{where}: row {match[2]} of a listing of {len(names)} utterances")
        yield Row(where, names[int(match[2])], parsed(match[1], where))


# ----------------------------------------------------------------------------------------------------- textlesslib


def read_textless(path: Path, listing: Listing | None) -> Iterator[Row]:
    r"""`<out>.units`, of bare lines or of `name\t1 2 3`; `<out>.durations` beside it gives the frames back.

    A third file, `<out>.f0s`, is passed over: pitch is not units, and unitkit measures it from the audio.
    """
    for parts in zip(*_streams(path, listing), strict=True):
        (where, name, text), *others = parts
        if any(other[1] != name for other in others):
            raise UnitsError(f"{where}: this is {name!r}, but the same line of the durations is {others[0][1]!r}")
        durations = parsed(others[0][2], others[0][0]) if others else None
        yield Row(where, name, parsed(text, where), durations)


def _streams(path: Path, listing: Listing | None) -> list[Iterator[tuple[str, str, str]]]:
    spans = path.with_suffix(".durations")
    files = [path, spans] if spans.exists() and spans != path else [path]
    named = "\t" in next(lines_of(path), ("", ""))[1]
    split: Callable[[Path], Iterator[tuple[str, str, str]]] = (
        _named_lines if named else (lambda one: listed_lines(one, listing))
    )
    counts = [sum(1 for _ in lines_of(file)) for file in files]
    if len(set(counts)) > 1:
        raise UnitsError(f"{files[0]} has {counts[0]} lines, {files[1]} has {counts[1]}: they must pair up")
    return [split(file) for file in files]


def _named_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    for where, line in lines_of(path):
        name, tab, text = line.partition("\t")
        if not tab:
            raise UnitsError(f"{where}: expected 'name<TAB>1 2 3', found {line[:60]!r}")
        yield where, name, text


def _check_suffix(out: Path) -> None:
    if out.suffix != ".units":
        raise UnitsError(f"{out}: textlesslib's files end in .units (and .durations); name it {out.stem}.units")


def _write_textless(out: Path, units: Iterable[Units], *, reduced: bool) -> None:
    with ExitStack() as stack:
        file = stack.enter_context(text_file(out))
        spans = stack.enter_context(text_file(out.with_suffix(".durations"))) if reduced else None
        for one in units:
            name = plain(one.id, "textless")
            short, durations = one.dedup()
            file.write(f"{name}\t{joined(short.ids if reduced else one.ids)}\n")
            if spans is not None:
                spans.write(f"{name}\t{joined(durations)}\n")


def write_textless(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    r"""`name\t1 2 3`, as `--preserve_name` writes it: without names the order of a parallel run is lost."""
    _check_suffix(out)
    if (spans := out.with_suffix(".durations")).exists():
        raise UnitsError(f"{spans} would be read as the durations of {out.name}: remove it, or name another file")
    _write_textless(out, units, reduced=False)


def write_textless_reduced(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """The same of deduplicated units, with `<out>.durations`, as `--deduplicate --durations` writes them."""
    _check_suffix(out)
    _write_textless(out, units, reduced=True)


# ---------------------------------------------------------------------------------------------------------- Kaldi


def read_kaldi(path: Path, listing: Listing | None) -> Iterator[Row]:
    """`id 1 2 3`, a Kaldi text file of units."""
    for where, line in lines_of(path):
        name, *rest = re.split(r"[ \t]+", line.strip(" \t"), maxsplit=1)
        yield Row(where, name, parsed(rest[0] if rest else "", where))


def write_kaldi(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """`id 1 2 3`, in the order of the units (Kaldi's own tools want it sorted in the C locale)."""
    with text_file(out) as file:
        for one in units:
            if re.search(r"\s", one.id):
                raise UnitsError(f"{one.id!r} has a space, which Kaldi takes for the end of the id: rename it")
            file.write(f"{plain(one.id, 'kaldi')} {joined(one.ids)}".rstrip(" ") + "\n")


def _bare(format: str, read: Reader = read_km, *, reduced: bool = False) -> Format:
    write = writer_of_lines(format)
    return Format(read, write, reduced=with_durations(write) if reduced else None, beside=".tsv")


FORMATS = {
    "gslm": Format(read_gslm, write_gslm, reduced=with_durations(write_gslm)),
    "bare": _bare("bare"),
    "km": _bare("km"),
    "unit": _bare("unit", read_unit, reduced=True),
    "textless": Format(read_textless, write_textless, reduced=write_textless_reduced, beside=".tsv"),
    "kaldi": Format(read_kaldi, write_kaldi),
}

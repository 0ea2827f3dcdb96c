"""Unit files of other toolkits, in and out.

Only npz and parquet have room for the fingerprint; units from the other formats get it from the header given by hand.
Most formats hold one codebook.  Frame-level units are what is written and read.  Deduplicated ones go out on request,
with their durations inside the format (slamkit, textless, dusted) or else beside it in `<out>.durations`, and come in
only together with durations.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from unitkit.formats import arrays, dicts, lines, records, tables
from unitkit.formats.base import Format, Listing, Row
from unitkit.formats.detect import detect
from unitkit.formats.lines import read_gslm
from unitkit.units import Units, UnitsError, UnitsHeader, read_header, read_units, write_units

FRAMES_TO_JUDGE = 100  # so many frames without one repeated unit are taken for deduplicated ones
MAX_FRAMES = 10**8  # 23 days at 50 Hz; a damaged duration must not fill the memory
FORMATS: dict[str, Format] = (
    lines.FORMATS | tables.FORMATS | dicts.FORMATS | records.FORMATS | arrays.FORMATS  # in the order they are listed in
)

__all__ = ["FORMATS", "detect", "export_units", "import_units"]


def export_units(
    units: str | Path, out: str | Path, *, format: str, manifest: str | Path | None = None, reduced: bool = False
) -> int:
    """Write a unit file in a foreign format, rows in the same order; returns their number.

    Formats that name audio files (km, s2ut, resynthesis, ...) need the manifest of the utterances.  With `reduced`,
    runs of equal units are merged, for the formats that are used so: the units alone no longer say when they are
    spoken, so the durations in frames are written too, to where the format has them or to `<out>.durations` as
    `id|3 1 2`; import both together to get the frames back.
    """
    chosen, header, out = _format(format), read_header(units), Path(out)
    if header.codebooks > 1 and not chosen.several:
        fitting = ", ".join(name for name, one in FORMATS.items() if one.several)
        raise UnitsError(f"{units} has {header.codebooks} codebooks; {format} holds one: export {fitting}")
    if reduced and chosen.reduced is None:
        fitting = ", ".join(name for name, one in FORMATS.items() if one.reduced)
        raise UnitsError(f"{format} is written at frame level only; reduced units go to {fitting}")
    listing = Listing.read(Path(manifest)) if manifest is not None else None
    count = 0

    def rows() -> Iterator[Units]:
        nonlocal count
        for one in read_units(units):
            if listing is not None and listing.get(one.id) is None:
                raise UnitsError(f"{units}: {one.id!r} is not in the manifest {manifest}")
            count += 1
            yield one

    out.parent.mkdir(parents=True, exist_ok=True)
    write = chosen.reduced if reduced and chosen.reduced else chosen.write
    write(out, header, rows(), listing)
    return count


def import_units(
    path: str | Path,
    out: str | Path,
    *,
    format: str,
    header: UnitsHeader | None = None,
    manifest: str | Path | None = None,
    durations: str | Path | None = None,
    frame_level: bool = False,
) -> int:
    """Turn a foreign file into a unit file; returns the number of rows.  Nothing is written unless all of it is sound.

    `format` is a name in `FORMATS`, or "auto" for what `detect` finds.  `header` says which tokenizer made the units
    (npz and parquet from unitkit bring it along).  `manifest`, JSONL or fairseq tsv, of the speech the units are of,
    names bare lines (default: the `.tsv` beside them, its paths without suffix being the ids) and gives rows that name
    audio files their ids; everywhere it checks ids and lengths.
    Deduplicated units are refused, unless the format has durations, or `durations`, a file of `id|3 1 2` in frames,
    restores the frames.  They are recognised by a hundred frames in which no unit ever repeats, and by the length of
    the speech where it is known; `frame_level` vouches that such units are not reduced.
    """
    path = Path(path)
    format = detect(path) if format == "auto" else format
    chosen = _format(format)
    header = _agreed_header(path, chosen, header)
    if header.codebooks > 1 and not chosen.several:
        raise UnitsError(f"{format} holds one codebook, the header says {header.codebooks}")
    given = Path(manifest) if manifest is not None else None
    listing = Listing.read(given) if given else _beside(path, chosen)
    spans = {row.id: row for row in read_gslm(Path(durations), None)} if durations is not None else None
    own = chosen.own_header is not None and chosen.own_header(path) is not None
    judge = _Judge(path, listing, trusted=frame_level or own)
    rows = chosen.read(path, listing)
    return write_units(out, header, judge.passed(_checked(rows, header, listing if given else None, spans)))


# -------------------------------------------------------------------------------------------------------- checking


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UnitsError(f"unknown unit format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _beside(path: Path, chosen: Format) -> Listing | None:
    listing = path.with_suffix(chosen.beside) if chosen.beside else path
    return Listing.read(listing) if listing != path and listing.exists() else None


def _agreed_header(path: Path, chosen: Format, given: UnitsHeader | None) -> UnitsHeader:
    own = chosen.own_header(path) if chosen.own_header else None
    if own is not None and given is not None:
        given.check_same(own, what=str(path))
    if own is None and given is None:
        raise UnitsError(
            f"{path} does not say which tokenizer made its units: give the header (tokenizer, rate, units)"
        )
    header = own or given
    assert header is not None
    return header


def _checked(
    rows: Iterator[Row], header: UnitsHeader, listing: Listing | None, spans: dict[str, Row] | None
) -> Iterator[tuple[Row, Units]]:
    """Rows that may stand in a unit file, each with its units at frame level."""
    seen: set[str] = set()
    for row in rows:
        if not row.id or row.id in seen:
            raise UnitsError(f"{row.where}: {f'a second row with id {row.id!r}' if row.id else 'an empty id'}")
        seen.add(row.id)
        if listing is not None and listing.get(row.id) is None:
            raise UnitsError(f"{row.where}: {row.id!r} is not in the manifest {listing.path}")
        try:
            if spans is not None:
                row = replace(row, durations=_durations(row, spans))
            units = header.units(row.ids, row.id)
            yield row, units if row.durations is None else _expanded(units, row.durations)
        except UnitsError as error:
            raise UnitsError(f"{row.where}: {error}") from error


def _expanded(units: Units, durations: list[int]) -> Units:
    if sum(map(int, durations)) > MAX_FRAMES:
        raise UnitsError(f"{units.id!r}: durations of over {MAX_FRAMES} frames are not of a recording")
    return replace(units, reduced=True).expand(durations)


def _durations(row: Row, spans: dict[str, Row]) -> list[int]:
    if row.durations is not None:
        raise UnitsError("this file has durations of its own; leave out durations=")
    if row.id not in spans:
        raise UnitsError(f"no durations for {row.id!r}")
    return list(spans[row.id].ids)


class _Judge:
    """Passes units on; at the end refuses them if they cannot be frame-level units of the header's rate."""

    def __init__(self, path: Path, listing: Listing | None, *, trusted: bool) -> None:
        self.path, self.listing, self.trusted = path, listing, trusted
        self.frames, self.runs, self.seconds, self.expected = 0, 0, 0.0, 0.0

    def passed(self, rows: Iterator[tuple[Row, Units]]) -> Iterator[Units]:
        for row, units in rows:
            self._count(row, units)
            yield units
        if not self.trusted:
            self._decide()

    def _count(self, row: Row, units: Units) -> None:
        if row.durations is None:
            self.frames, self.runs = self.frames + len(units), self.runs + len(units.dedup()[0])
        utterance = self.listing.get(row.id) if self.listing is not None else None
        known = utterance.duration if utterance is not None else None
        known = row.seconds if known is None else known
        if known is not None:
            self.seconds, self.expected = self.seconds + units.duration, self.expected + known

    def _decide(self) -> None:
        if self.frames >= FRAMES_TO_JUDGE and self.runs == self.frames:
            raise UnitsError(
                f"{self.path}: no unit ever repeats in {self.frames} frames, so these look deduplicated; unit files "
                "hold frames. Give durations=, or frame_level=True if they really are frames"
            )
        if self.expected > 2 and not 0.8 < self.seconds / self.expected < 1.25:
            raise UnitsError(
                f"{self.path}: units last {self.seconds:.1f} s, but their audio {self.expected:.1f} s: they are "
                "deduplicated (give durations=), or the header's rate_hz or the manifest is wrong; frame_level=True "
                "skips this check"
            )

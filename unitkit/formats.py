"""Unit files of other toolkits, in and out.

Only npz and parquet have room for the fingerprint; units from the other formats get it from the header given by hand.
Those formats hold one codebook.  Frame-level units are what is written and read; deduplicated ones go out on request
(GSLM, S2UT), with their durations beside them in `<out>.durations`, and come in only together with durations.
"""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from unitkit.manifest import Utterance, read_fairseq_tsv, read_manifest, write_fairseq_tsv
from unitkit.units import Units, UnitsError, UnitsHeader, read_header, read_units, write_units

S2UT_COLUMNS = ("id", "src_audio", "src_n_frames", "tgt_audio", "tgt_n_frames")
HEADER_KEY = "unitkit"  # parquet schema metadata, and the npz member that holds the header
FRAMES_TO_JUDGE = 100  # so many frames without one repeated unit are taken for deduplicated ones
PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Row:
    """One utterance of a foreign file: where it stands there, its id, and its unit ids."""

    where: str
    id: str
    ids: Any


Manifest = dict[str, Utterance]
Reader = Callable[[Path, Path | None], Iterator[Row]]
Writer = Callable[[Path, UnitsHeader, Iterable[Units], Manifest | None], None]


@dataclass(frozen=True)
class Format:
    """How a foreign format is read and written; `several` codebooks fit in, `reduced` units may be written."""

    read: Reader
    write: Writer
    several: bool = False
    reduced: bool = False


def export_units(
    units: str | Path, out: str | Path, *, format: str, manifest: str | Path | None = None, reduced: bool = False
) -> int:
    """Write a unit file in a foreign format, rows in the same order; returns their number.

    `km` and `s2ut` need the manifest of the utterances for the audio paths.  With `reduced` (GSLM and S2UT only) runs
    of equal units are merged: that file alone no longer says when a unit is spoken, so the durations in frames are
    written beside it, to `<out>.durations` as `id|3 1 2`; import both together to get the frames back.
    """
    chosen, header, out = _format(format), read_header(units), Path(out)
    if header.codebooks > 1 and not chosen.several:
        raise UnitsError(f"{units} has {header.codebooks} codebooks; {format} holds one: export npz or parquet")
    if reduced and not chosen.reduced:
        raise UnitsError(f"{format} is written at frame level only; reduced units go to {_names('reduced')}")
    utterances = _utterances(Path(manifest)) if manifest is not None else None
    count = 0

    def rows() -> Iterator[Units]:
        nonlocal count
        for one in read_units(units):
            if utterances is not None and one.id not in utterances:
                raise UnitsError(f"{units}: {one.id!r} is not in the manifest {manifest}")
            count += 1
            yield one

    out.parent.mkdir(parents=True, exist_ok=True)
    if reduced:
        _write_reduced(chosen, out, header, rows(), utterances)
    else:
        chosen.write(out, header, rows(), utterances)
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

    `header` says which tokenizer made the units (npz and parquet from unitkit bring it along).  `manifest`, JSONL or
    fairseq tsv, of the speech the units are of, names the lines of a `.km` (default: the `.tsv` beside it, its paths
    without suffix being the ids); everywhere it checks ids and lengths.
    Deduplicated units are refused, unless `durations`, a file of `id|3 1 2` in frames, restores the frames.  They are
    recognised by a hundred frames in which no unit ever repeats; `frame_level` vouches that such units are not reduced.
    """
    chosen, path = _format(format), Path(path)
    header = _agreed_header(path, format, header)
    if header.codebooks > 1 and not chosen.several:
        raise UnitsError(f"{format} holds one codebook, the header says {header.codebooks}")
    listed = Path(manifest) if manifest is not None else None
    utterances = _utterances(listed) if listed is not None else None
    spans = {row.id: row for row in _read_gslm(Path(durations), None)} if durations is not None else None
    units = _checked(chosen.read(path, listed), header, utterances, spans)
    trusted = frame_level or spans is not None or _own_header(path, format) is not None
    return write_units(out, header, _judged(units, path, utterances, trusted))


# ------------------------------------------------------------------------------------------------------ checking


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UnitsError(f"unknown unit format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _names(ability: str) -> str:
    return " or ".join(name for name, one in FORMATS.items() if getattr(one, ability))


def _utterances(path: Path) -> Manifest:
    read = read_fairseq_tsv if path.suffix == ".tsv" else read_manifest
    return {utterance.id: utterance for utterance in read(path)}


def _own_header(path: Path, format: str) -> UnitsHeader | None:
    find = {"npz": _npz_header, "parquet": _parquet_header}.get(format)
    return find(path) if find else None


def _agreed_header(path: Path, format: str, given: UnitsHeader | None) -> UnitsHeader:
    own = _own_header(path, format)
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
    rows: Iterator[Row], header: UnitsHeader, utterances: Manifest | None, spans: dict[str, Row] | None
) -> Iterator[Units]:
    seen: set[str] = set()
    for row in rows:
        if not row.id or row.id in seen:
            raise UnitsError(f"{row.where}: {f'a second row with id {row.id!r}' if row.id else 'an empty id'}")
        seen.add(row.id)
        if utterances is not None and row.id not in utterances:
            raise UnitsError(f"{row.where}: {row.id!r} is not in the manifest")
        try:
            units = header.units(row.ids, row.id)
            yield units if spans is None else _expanded(units, spans)
        except UnitsError as error:
            raise UnitsError(f"{row.where}: {error}") from error


def _expanded(units: Units, spans: dict[str, Row]) -> Units:
    if units.id not in spans:
        raise UnitsError(f"no durations for {units.id!r}")
    return replace(units, reduced=True).expand(spans[units.id].ids)


def _judged(units: Iterator[Units], path: Path, utterances: Manifest | None, trusted: bool) -> Iterator[Units]:
    """Pass units on; at the end refuse them if they cannot be frame-level units of the header's rate."""
    frames, runs, seconds, expected = 0, 0, 0.0, 0.0
    for one in units:
        frames, runs = frames + len(one), runs + len(one.dedup()[0])
        known = utterances[one.id].duration if utterances is not None else None
        if known is not None:
            seconds, expected = seconds + one.duration, expected + known
        yield one
    if not trusted and frames >= FRAMES_TO_JUDGE and runs == frames:
        raise UnitsError(
            f"{path}: no unit ever repeats in {frames} frames, so these look deduplicated; unit files hold frames. "
            "Give durations=, or frame_level=True if they really are frames"
        )
    if not trusted and expected > 2 and not 0.8 < seconds / expected < 1.25:
        raise UnitsError(
            f"{path}: units last {seconds:.1f} s, but the manifest says {expected:.1f} s: they are deduplicated (give "
            "durations=), or the header's rate_hz or the manifest is wrong; frame_level=True skips this check"
        )


def _header_from(text: str | bytes, path: Path) -> UnitsHeader:
    try:
        row = json.loads(text)
        return UnitsHeader(row["tokenizer"], float(row["rate_hz"]), int(row["n_units"]), int(row["codebooks"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UnitsError(f"{path}: bad header: {error!r}") from error


# ------------------------------------------------------------------------------------------------- text in common


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A scratch path that becomes `path` if all goes well, and nothing if not."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    with (
        _replacing(path) as scratch,
        open(scratch, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        yield file


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Place (path:number) and text of each line; only newlines end lines, whatever else Unicode has."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            yield f"{path}:{number}", line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def _parsed(text: str, where: str) -> list[int]:
    if not re.fullmatch(r"[0-9 ]*", text):
        bad = next(token for token in text.split(" ") if not re.fullmatch(r"[0-9]*", token))
        raise UnitsError(f"{where}: {bad!r} is not a unit; units are whole numbers with spaces between")
    return [int(token) for token in text.split()]


def _joined(ids: np.ndarray) -> str:
    return " ".join(map(str, ids.tolist()))


def _plain(text: str, format: str, *, refused: str = "\t") -> str:
    if text.splitlines() != [text] or any(character in text for character in refused):
        raise UnitsError(
            f"{text!r} cannot be written as {format}: it has a line break or one of {refused!r}: rename it"
        )
    if not _encodable(text, "surrogateescape"):
        raise UnitsError(f"{text!r} cannot be written as {format}: it is not valid Unicode: rename it")
    return text


def _needed(utterances: Manifest | None, format: str) -> Manifest:
    if utterances is None:
        raise UnitsError(f"{format} names audio files: give the manifest of these utterances")
    return utterances


def _write_reduced(
    chosen: Format, out: Path, header: UnitsHeader, units: Iterator[Units], utterances: Manifest | None
) -> None:
    with _text(out.with_name(out.name + ".durations")) as file:

        def merged() -> Iterator[Units]:
            for one in units:
                short, durations = one.dedup()
                file.write(f"{_plain(one.id, 'durations', refused='|' + chr(9))}|{_joined(durations)}\n")
                yield short

        chosen.write(out, header, merged(), utterances)


# --------------------------------------------------------------------------------------------------------- GSLM


def _read_gslm(path: Path, manifest: Path | None) -> Iterator[Row]:
    for where, line in _lines(path):
        name, bar, text = line.partition("|")
        if not bar:
            raise UnitsError(f"{where}: expected 'id|1 2 3', found {line[:60]!r}")
        yield Row(where, name, _parsed(text, where))


def _write_gslm(out: Path, header: UnitsHeader, units: Iterable[Units], utterances: Manifest | None) -> None:
    with _text(out) as file:
        for one in units:
            file.write(f"{_plain(one.id, 'gslm', refused='|' + chr(9))}|{_joined(one.ids)}\n")


# ----------------------------------------------------------------------------------------------------- .km + .tsv


def _read_km(path: Path, manifest: Path | None) -> Iterator[Row]:
    listing = manifest or path.with_suffix(".tsv")
    if not listing.exists():
        raise UnitsError(f"{path} has no ids: give the manifest its lines belong to ({listing} is not there)")
    names = iter(_utterances(listing))
    lines = 0
    for where, line in _lines(path):
        lines += 1
        if (name := next(names, None)) is None:
            raise UnitsError(f"{where}: {listing} has only {lines - 1} utterances; lines and utterances must pair up")
        yield Row(where, name, _parsed(line, where))
    if rest := sum(1 for _ in names):
        raise UnitsError(f"{path}:{lines}: ends here, but {listing} has {lines + rest} utterances")


def _write_km(out: Path, header: UnitsHeader, units: Iterable[Units], utterances: Manifest | None) -> None:
    known, listed = _needed(utterances, "km"), []
    if out.suffix == ".tsv":
        raise UnitsError(f"{out}: .tsv is the name of the list beside a .km; name the units .km")
    with _replacing(out.with_suffix(".tsv")) as listing, _text(out) as file:
        for one in units:
            file.write(_joined(one.ids) + "\n")
            listed.append(known[one.id])
        write_fairseq_tsv(listing, listed)


# ----------------------------------------------------------------------------------------------------- S2UT tsv


def _read_s2ut(path: Path, manifest: Path | None) -> Iterator[Row]:
    lines = _lines(path)
    where, first = next(lines, (f"{path}:1", ""))
    columns = first.split("\t")
    if missing := {"id", "tgt_audio"} - set(columns):
        raise UnitsError(f"{where}: the first line must name the columns; {', '.join(sorted(missing))} is not there")
    for where, line in lines:
        values = line.split("\t")
        if len(values) != len(columns):
            raise UnitsError(f"{where}: {len(values)} columns, the first line names {len(columns)}")
        row = dict(zip(columns, values, strict=True))
        ids = _parsed(row["tgt_audio"], where)
        if row.get("tgt_n_frames", str(len(ids))) != str(len(ids)):
            raise UnitsError(f"{where}: {len(ids)} units, but tgt_n_frames says {row['tgt_n_frames']}")
        yield Row(where, row["id"], ids)


def _write_s2ut(out: Path, header: UnitsHeader, units: Iterable[Units], utterances: Manifest | None) -> None:
    known = _needed(utterances, "s2ut")
    with _text(out) as file:
        file.write("\t".join(S2UT_COLUMNS) + "\n")
        for one in units:
            source = known[one.id]
            if source.duration is None or source.start is not None:
                raise UnitsError(f"{one.id!r}: s2ut lists whole files with their lengths; the manifest has no such row")
            frames = round(source.duration * 16000) // 160  # filterbank frames of 10 ms, counted as fairseq does
            audio = _plain(source.audio, "s2ut")
            row = (_plain(one.id, "s2ut"), audio, str(frames), _joined(one.ids), str(len(one)))
            file.write("\t".join(row) + "\n")


# ---------------------------------------------------------------------------------------------------------- npz


def _npz_members(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    name = "zip directory"
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                with archive.open(member) as file:
                    yield name, np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, EOFError, zlib.error) as error:
        raise UnitsError(f"{path}: cannot read {name!r}: {error}") from error


def _npz_header(path: Path) -> UnitsHeader | None:
    name, array = next(_npz_members(path), ("", np.zeros(0)))
    return _header_from(str(array), path) if name == HEADER_KEY and array.dtype.kind == "U" else None


def _read_npz(path: Path, manifest: Path | None) -> Iterator[Row]:
    for name, array in _npz_members(path):
        if not (name == HEADER_KEY and array.dtype.kind == "U"):
            yield Row(f"{path}: {name!r}", name, array)


def _write_npz(out: Path, header: UnitsHeader, units: Iterable[Units], utterances: Manifest | None) -> None:
    """One integer array per utterance under its id; the header comes first, as JSON."""
    with _replacing(out) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)

        put(HEADER_KEY, np.array(json.dumps(asdict(header))))
        for one in units:
            if one.id == HEADER_KEY or "\0" in one.id or not _encodable(one.id):
                raise UnitsError(f"{one.id!r} cannot be the name of an array in an npz: rename it")
            put(one.id, one.ids.astype(np.int32 if header.n_units <= 2**31 else np.int64))


def _encodable(text: str, errors: str = "strict") -> bool:
    try:
        return bool(text.encode("utf-8", errors))
    except UnicodeEncodeError:
        return False


# ------------------------------------------------------------------------------------------------------ parquet


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnitsError("parquet needs pyarrow: pip install 'unitkit[parquet]'") from error
    return pyarrow


def _parquet_file(path: Path) -> Any:
    pyarrow = _pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UnitsError(f"{path}: not a parquet file: {error}") from error


def _parquet_header(path: Path) -> UnitsHeader | None:
    with _parquet_file(path) as file:
        stored = (file.schema_arrow.metadata or {}).get(HEADER_KEY.encode())
    return _header_from(stored, path) if stored else None


def _read_parquet(path: Path, manifest: Path | None) -> Iterator[Row]:
    number = 0
    with _parquet_file(path) as file:
        if missing := {"id", "units"} - set(file.schema_arrow.names):
            raise UnitsError(f"{path}: no column {', '.join(sorted(missing))}; it has {file.schema_arrow.names}")
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=["id", "units"]):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", row["id"], row["units"])
        except OSError as error:
            raise UnitsError(f"{path}: damaged after row {number}: {error}") from error


def _write_parquet(out: Path, header: UnitsHeader, units: Iterable[Units], utterances: Manifest | None) -> None:
    """Columns id: string and units: list<int32>, or list<list<int32>> with several codebooks."""
    pyarrow = _pyarrow()
    inner = pyarrow.list_(pyarrow.int32() if header.n_units <= 2**31 else pyarrow.int64())
    kind = inner if header.codebooks == 1 else pyarrow.list_(inner)
    schema = pyarrow.schema([("id", pyarrow.string()), ("units", kind)], {HEADER_KEY: json.dumps(asdict(header))})
    with _replacing(out) as scratch, pyarrow.parquet.ParquetWriter(scratch, schema, compression="zstd") as file:
        for rows in _batches(units):
            columns = {"id": [one.id for one in rows], "units": [one.ids.tolist() for one in rows]}
            file.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema))


def _batches(units: Iterable[Units]) -> Iterator[list[Units]]:
    rows: list[Units] = []
    for one in units:
        if not _encodable(one.id):
            raise UnitsError(f"{one.id!r} is not valid Unicode and cannot be written as parquet: rename it")
        rows.append(one)
        if len(rows) == PARQUET_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


FORMATS = {
    "gslm": Format(_read_gslm, _write_gslm, reduced=True),
    "km": Format(_read_km, _write_km),
    "s2ut": Format(_read_s2ut, _write_s2ut, reduced=True),
    "npz": Format(_read_npz, _write_npz, several=True),
    "parquet": Format(_read_parquet, _write_parquet, several=True),
}

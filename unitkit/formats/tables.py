"""Tables: the tsv of fairseq's speech-to-unit translation, and parquet."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unitkit.formats.base import (
    Format,
    Listing,
    Row,
    encodable,
    header_from,
    joined,
    lines_of,
    needed,
    parsed,
    plain,
    replacing,
    text_file,
    with_durations,
)
from unitkit.units import Units, UnitsError, UnitsHeader

S2UT_COLUMNS = ("id", "src_audio", "src_n_frames", "tgt_audio", "tgt_n_frames")
HEADER_KEY = "unitkit"  # where the schema metadata holds the header
PARQUET_ROWS = 1024


# ------------------------------------------------------------------------------------------------------- S2UT tsv


def read_s2ut(path: Path, listing: Listing | None) -> Iterator[Row]:
    """Units from the column tgt_audio of fairseq's tsv of speech-to-unit pairs."""
    lines = lines_of(path)
    where, first = next(lines, (f"{path}:1", ""))
    columns = first.split("\t")
    if missing := {"id", "tgt_audio"} - set(columns):
        raise UnitsError(f"{where}: the first line must name the columns; {', '.join(sorted(missing))} is not there")
    for where, line in lines:
        values = line.split("\t")
        if len(values) != len(columns):
            raise UnitsError(f"{where}: {len(values)} columns, the first line names {len(columns)}")
        row = dict(zip(columns, values, strict=True))
        ids = parsed(row["tgt_audio"], where)
        if row.get("tgt_n_frames", str(len(ids))) != str(len(ids)):
            raise UnitsError(f"{where}: {len(ids)} units, but tgt_n_frames says {row['tgt_n_frames']}")
        yield Row(where, row["id"], ids)


def write_s2ut(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """Source lengths are those of the manifest, in filterbank frames."""
    known = needed(listing, "s2ut").utterances
    with text_file(out) as file:
        file.write("\t".join(S2UT_COLUMNS) + "\n")
        for one in units:
            source = known[one.id]
            if source.duration is None or source.start is not None:
                raise UnitsError(f"{one.id!r}: s2ut lists whole files with their lengths; the manifest has no such row")
            frames = round(source.duration * 16000) // 160  # filterbank frames of 10 ms, counted as fairseq does
            audio = plain(source.audio, "s2ut")
            row = (plain(one.id, "s2ut"), audio, str(frames), joined(one.ids), str(len(one)))
            file.write("\t".join(row) + "\n")


# -------------------------------------------------------------------------------------------------------- parquet


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


def parquet_header(path: Path) -> UnitsHeader | None:
    """The header that unitkit wrote into the schema, or None."""
    with _parquet_file(path) as file:
        stored = (file.schema_arrow.metadata or {}).get(HEADER_KEY.encode())
    return header_from(stored, path) if stored else None


def read_parquet(path: Path, listing: Listing | None) -> Iterator[Row]:
    """Columns `id` and `units` of any parquet file."""
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


def write_parquet(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """Columns id: string and units: list<int32>, or list<list<int32>> with several codebooks."""
    pyarrow = _pyarrow()
    inner = pyarrow.list_(pyarrow.int32() if header.n_units <= 2**31 else pyarrow.int64())
    kind = inner if header.codebooks == 1 else pyarrow.list_(inner)
    schema = pyarrow.schema([("id", pyarrow.string()), ("units", kind)], {HEADER_KEY: json.dumps(asdict(header))})
    with replacing(out) as scratch, pyarrow.parquet.ParquetWriter(scratch, schema, compression="zstd") as file:
        for rows in _batches(units):
            columns = {"id": [one.id for one in rows], "units": [one.ids.tolist() for one in rows]}
            file.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema))


def _batches(units: Iterable[Units]) -> Iterator[list[Units]]:
    rows: list[Units] = []
    for one in units:
        if not encodable(one.id):
            raise UnitsError(f"{one.id!r} is not valid Unicode and cannot be written as parquet: rename it")
        rows.append(one)
        if len(rows) == PARQUET_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


FORMATS = {
    "s2ut": Format(read_s2ut, write_s2ut, reduced=with_durations(write_s2ut)),
    "parquet": Format(read_parquet, write_parquet, several=True, own_header=parquet_header),
}

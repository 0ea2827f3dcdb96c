"""Numpy arrays: npz with one array per utterance, and the folders of bshall's toolkits with one file per utterance.

Nothing here unpickles: arrays of objects are refused.
"""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from unitkit.formats.base import Format, Listing, Row, encodable, header_from, replacing
from unitkit.units import Units, UnitsError, UnitsHeader

HEADER_KEY = "unitkit"  # the npz member that holds the header
DAMAGE = (zipfile.BadZipFile, ValueError, EOFError, zlib.error, MemoryError, NotImplementedError)

# ------------------------------------------------------------------------------------------ one file for all rows


def npz_members(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of each member; arrays of objects are refused."""
    name = "zip directory"
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                with archive.open(member) as file:
                    yield name, np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGE as error:
        raise UnitsError(f"{path}: cannot read {name!r}: {error}") from error


def npz_header(path: Path) -> UnitsHeader | None:
    """The header that unitkit wrote as the first member, or None."""
    name, array = next(npz_members(path), ("", np.zeros(0)))
    return header_from(str(array), path) if name == HEADER_KEY and array.dtype.kind == "U" else None


def read_npz(path: Path, listing: Listing | None) -> Iterator[Row]:
    """One array per utterance under its id."""
    for name, array in npz_members(path):
        if not (name == HEADER_KEY and array.dtype.kind == "U"):
            yield Row(f"{path}: {name!r}", name, array)


def write_npz(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """One integer array per utterance under its id; the header comes first, as JSON."""
    with replacing(out) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)

        put(HEADER_KEY, np.array(json.dumps(asdict(header))))
        for one in units:
            if one.id == HEADER_KEY or "\0" in one.id or not encodable(one.id):
                raise UnitsError(f"{one.id!r} cannot be the name of an array in an npz: rename it")
            put(one.id, one.ids.astype(np.int32 if header.n_units <= 2**31 else np.int64))


# ----------------------------------------------------------------------------------------------- one file per row


def files_of(folder: Path, suffix: str, listing: Listing | None) -> Iterator[tuple[Path, str]]:
    """Path and id (the path below the folder, without suffix) of each file, in the manifest's order or else by id."""
    if not folder.is_dir():
        raise UnitsError(f"{folder} is not a folder: this format is one of {suffix} files, named like the audio")
    found = {path.relative_to(folder).as_posix().removesuffix(suffix): path for path in folder.rglob(f"*{suffix}")}
    if not found:
        raise UnitsError(f"{folder} has no {suffix} files")
    order = {id_: number for number, id_ in enumerate(listing.utterances)} if listing is not None else {}
    for id_ in sorted(found, key=lambda one: (order.get(one, len(order)), one)):
        yield found[id_], id_


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A scratch folder that becomes `out` if all goes well; a folder with files in it is never written into."""
    if out.exists() and not out.is_dir():
        raise UnitsError(f"{out} is a file; this format is a folder: remove it or name another")
    if out.is_dir() and any(out.iterdir()):
        raise UnitsError(f"{out} has files in it, which would mix with the new ones: remove it or name another")
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    scratch.mkdir()
    try:
        yield scratch
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_files(out: Path, units: Iterable[Units], suffix: str, put: Callable[[BinaryIO, Units], None]) -> None:
    """Write each utterance to `<out>/<id><suffix>`."""
    with new_folder(out) as folder:
        for one in units:
            parts = PurePosixPath(one.id).parts
            if "/".join(parts) != one.id or ".." in parts or "\0" in one.id or not encodable(one.id, "surrogateescape"):
                raise UnitsError(f"{one.id!r} cannot be the name of a file in a folder: rename it")
            path = folder / f"{one.id}{suffix}"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as file:
                    put(file, one)
            except OSError as error:
                raise UnitsError(f"{one.id!r} cannot be written as a file: {error}") from error


def read_npy(path: Path, listing: Listing | None) -> Iterator[Row]:
    """A folder of `.npy` files, units (frames,) or (frames, codebooks); bshall's `encode.py discrete` writes these."""
    for file, id_ in files_of(path, ".npy", listing):
        try:
            array = np.load(file, allow_pickle=False)
        except DAMAGE as error:
            raise UnitsError(f"{file}: not an array: {error}") from error
        yield Row(str(file), id_, np.atleast_1d(array))  # one frame is squeezed to a number


def write_npy(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """A folder of int64 `.npy` files."""
    write_files(out, units, ".npy", lambda file, one: np.save(file, one.ids, allow_pickle=False))


def read_dusted(path: Path, listing: Listing | None) -> Iterator[Row]:
    """A folder of `.npz` files with `codes` (segments,) and `boundaries` (segments + 1,) in frames."""
    for file, id_ in files_of(path, ".npz", listing):
        members = dict(npz_members(file))
        if missing := {"codes", "boundaries"} - set(members):
            raise UnitsError(f"{file}: no array {', '.join(sorted(missing))}; it has {sorted(members)}")
        codes, boundaries = members["codes"], members["boundaries"]
        if boundaries.shape != (len(np.atleast_1d(codes)) + 1,) or boundaries.dtype.kind not in "iu" or boundaries[0]:
            raise UnitsError(f"{file}: boundaries must be whole frames from 0 on, one more than the codes")
        yield Row(str(file), id_, codes, np.diff(boundaries.astype(np.int64)))


def write_dusted(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """The same: each run of equal units is a segment."""

    def put(file: BinaryIO, one: Units) -> None:
        short, durations = one.dedup()
        boundaries = np.r_[0, np.cumsum(durations)].astype(np.int32)
        np.savez(file, codes=short.ids.astype(np.int32), boundaries=boundaries)

    if header.n_units > 2**31:
        raise UnitsError(f"dusted's codes are of 32 bits; {header.n_units} units do not fit")
    write_files(out, units, ".npz", put)


FORMATS = {
    "npz": Format(read_npz, write_npz, several=True, own_header=npz_header),
    "npy": Format(read_npy, write_npy, several=True),
    "dusted": Format(read_dusted, write_dusted, reduced=write_dusted),
}

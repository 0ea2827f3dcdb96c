"""The files pickles come in: plain, joblib's (raw arrays between the operations, perhaps compressed), torch's two."""

import bz2
import gzip
import io
import lzma
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

import unitkit.pickled.values as values
from unitkit.pickled.machine import DAMAGE, Budget, Buffer, Load, Machine, Name, PickledError, Source
from unitkit.pickled.values import STORAGES, Storage

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch files before 1.6
RATIO, ALLOWANCE = 100, 1 << 26  # compressed files: what they unpack to at most, by their size and anyway
COMPRESSED = {
    b"\x1f\x8b": lambda data, most: gzip.GzipFile(fileobj=io.BytesIO(data)).read(most),
    b"BZh": lambda data, most: bz2.BZ2File(io.BytesIO(data)).read(most),
    b"\xfd7zXZ\x00": lambda data, most: _unlzma(data, most),
    b"]\x00\x00": lambda data, most: _unlzma(data, most),
    b"x": lambda data, most: _inflated(data, most),
}
UNREAD = {
    b"ZF": "a joblib file from before 2014",
    b"\x04\x22M\x18": "compressed with LZ4: save it with compress=3",
    b"\x93NUMPY": "a NumPy array, no pickle: numpy.load reads it",
    b"\x89HDF": "an HDF5 file, no pickle",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard: unpack it first",
}


def read_pickled(path: str | os.PathLike[str]) -> Any:
    """The value in a pickle, joblib or torch file, made of data alone: no code in the file or of its classes runs.

    Tensors come as NumPy arrays (bfloat16 as float32), read-only and on the disk until used; objects of known classes
    as `Record`.  Raises `PickledError` with path and reason for anything else, and for damaged files.
    """
    name = os.fspath(path)
    try:
        return _read(name)
    except PickledError as error:
        raise PickledError(f"{name}: {str(error)[:1000]}") from error
    except (*DAMAGE, zipfile.BadZipFile, NotImplementedError, RecursionError, MemoryError) as error:
        raise PickledError(
            f"{name}: no pickle, or a damaged one ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _read(path: str) -> Any:
    with open(path, "rb") as file:
        if not os.path.getsize(path):
            raise PickledError("the file is empty")
        data: Buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for prefix, what in UNREAD.items():
        if data[: len(prefix)] == prefix:
            raise PickledError(f"it is {what}")
    if data[:4] == b"PK\x03\x04":
        return _torch_zip(path, data)
    if data[: len(MAGIC)] == MAGIC:
        return _torch_legacy(data)
    if data[257:262] == b"ustar":
        raise PickledError("a torch file from before version 0.2, or another tar archive, is not read")
    data = _unpacked(data)
    return _run(Source(data), Budget(len(data)), values.no_persistent)


def _run(source: Source, budget: Budget, load: Load) -> Any:
    return Machine(source, budget, find=values.find, call=values.call, build=values.build, load=load).run()


def _unpacked(data: Buffer) -> Buffer:
    """The content of a compressed file, or the file as it is."""
    most = max(ALLOWANCE, RATIO * len(data))
    for prefix, unpack in COMPRESSED.items():
        if data[: len(prefix)] == prefix:
            try:
                content: bytes = unpack(data[:], most + 1)
            except (OSError, zlib.error, lzma.LZMAError, EOFError) as error:
                raise PickledError(f"its compressed content is damaged ({error})") from error
            if len(content) > most:
                raise PickledError(f"it unpacks to over {most:,} bytes, {RATIO} times its size")
            return content
    return data


def _unlzma(data: bytes, most: int) -> bytes:
    with lzma.LZMAFile(io.BytesIO(data)) as stream:
        return stream.read(most)


def _inflated(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(data, most)
    if len(content) < most and not stream.eof:
        raise EOFError("it ends early")
    return content


# -------------------------------------------------------------------------------------------------------- torch


def _torch_zip(path: str, data: Buffer) -> Any:
    """A torch file since 1.6: data.pkl and one member per storage, uncompressed."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickledError("a zip archive, but no torch file: it has no data.pkl (numpy.load reads .npz)")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise PickledError("a TorchScript archive, which is a program: save its state_dict() instead")
    order, known = ">" if _content(data, members.get(f"{root}byteorder")) == b"big" else "<", dict[str, Storage]()

    def load(pid: Any) -> Storage:
        kind, key, count = _storage_id(pid)
        if key not in known:
            content = members.get(f"{root}data/{key}")
            if content is None:
                raise PickledError(f"storage {key!r} is missing")
            start, size = _extent(data, content)
            dtype = np.dtype(order + STORAGES[kind][1:])
            if count * dtype.itemsize > size:
                raise PickledError(f"storage {key!r} has {size} bytes, too few for {count} numbers of {dtype}")
            known[key] = Storage(Source(data, start).array(dtype, count), kind)
        return known[key]

    content = _content(data, members[pickles[0]])
    return _run(Source(content), Budget(len(data)), load)


def _extent(data: Buffer, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a member's bytes start, and how many they are."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise PickledError(f"{member.filename} is compressed, which torch never does")
    header = member.header_offset
    name, extra = struct.unpack("<HH", data[header + 26 : header + 30])
    start = header + 30 + name + extra
    if data[header : header + 4] != b"PK\x03\x04" or start + member.file_size > len(data):
        raise PickledError(f"{member.filename} is not where the archive says")
    return start, member.file_size


def _content(data: Buffer, member: zipfile.ZipInfo | None) -> bytes:
    if member is None:
        return b""
    start, size = _extent(data, member)
    return data[start : start + size]


def _storage_id(pid: Any) -> tuple[str, str, int]:
    """Type, key and count of the storage that a persistent id names."""
    tag, kind, key, _, count, *view = pid
    if tag != "storage" or not isinstance(kind, Name) or kind.text not in STORAGES or not isinstance(key, str):
        raise PickledError("a storage of an unknown type")
    if view and view[0] is not None:
        raise PickledError("a storage that is part of another, as torch before 0.4 wrote it, is not read")
    (count,) = values.checked_shape((count,))
    return kind.text, key, count


def _torch_legacy(data: Buffer) -> Any:
    """A torch file before 1.6: pickles of magic number, version, system, value and keys, then the storages.

    The value comes before the numbers it is made of, so it is read twice: the first time to learn the types.
    """
    source, budget = Source(data), Budget(len(data))
    _run(source, budget, values.no_persistent)
    version, system = (_run(source, budget, values.no_persistent) for _ in range(2))
    if version != 1001 or not isinstance(system, dict):
        raise PickledError("an old torch file of an unknown version")
    start, wanted = source.at, dict[str, tuple[str, int]]()

    def note(pid: Any) -> Storage:
        kind, key, count = _storage_id(pid)
        if count > len(data):
            raise PickledError(f"storage {key!r} of {count} numbers is larger than the file")
        wanted[key] = (kind, count)
        return Storage(np.zeros(count, STORAGES[kind]), kind)  # never written to: no memory is taken

    _run(source, budget, note)
    known = _legacy_storages(source, budget, wanted, ">" if system.get("little_endian") is False else "<")
    return _run(Source(data, start), budget, _from_table(known))


def _from_table(known: dict[str, Storage]) -> Callable[[Any], Storage]:
    def load(pid: Any) -> Storage:
        return known[_storage_id(pid)[1]]

    return load


def _legacy_storages(
    source: Source, budget: Budget, wanted: dict[str, tuple[str, int]], order: str
) -> dict[str, Storage]:
    """The storages that follow their list of keys, each after its count."""
    keys = _run(source, budget, values.no_persistent)
    if not isinstance(keys, list) or set(wanted) - set(keys):
        raise PickledError("storages are missing")
    known = {}
    for key in keys:
        kind, count = wanted[key]
        stated = int(source.array(np.dtype("<i8"), 1)[0])
        if stated != count:
            raise PickledError(f"storage {key!r} has {stated} numbers, not {count}")
        known[key] = Storage(source.array(np.dtype(order + STORAGES[kind][1:]), stated), kind)
    return known

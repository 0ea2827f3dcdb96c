"""Which format a foreign unit file is in, from its name and its first line."""

import ast
import json
import re
from pathlib import Path
from typing import Any

from unitkit.formats.base import lines_of
from unitkit.formats.tables import S2UT_COLUMNS
from unitkit.units import UnitsError

SUFFIXES = {".km": "km", ".unit": "unit", ".unitA": "dgslm-lines", ".unitB": "dgslm-lines", ".units": "textless"}
MAGIC = {b"PK\x03\x04": "npz", b"PK\x05\x06": "npz", b"PAR1": "parquet"}
FOLDERS = {".npy": "npy", ".npz": "dusted"}
# The first set of keys that a line has decides; unit-hifigan's comes last, for others have 'audio' too.
KEYS = (
    ({"audio_repr"}, "slamkit-tokens"),
    ({"units", "file_name"}, "slamkit"),
    ({"units", "file"}, "discophon"),
    ({"units", "fileid"}, "minimal-hubert"),
    ({"units", "audio"}, "unit-hifigan"),
)


def detect(path: str | Path) -> str:
    """The name of the format a file, or a folder of arrays, is in; an error names the candidates if several fit."""
    path = Path(path)
    if path.is_dir():
        found = [format for suffix, format in FOLDERS.items() if any(path.rglob(f"*{suffix}"))]
    else:
        with open(path, "rb") as file:
            magic = MAGIC.get(file.read(4))
        first = next((line for _, line in lines_of(path)), "")
        found = [magic] if magic else _by_first_line(path, first)
    if len(found) != 1:
        what = f"could be {' or '.join(found)}" if found else "is in no format known by its first line"
        raise UnitsError(f"{path} {what}: name its format")
    return found[0]


def _by_first_line(path: Path, line: str) -> list[str]:
    if line.startswith("{"):
        return _by_keys(path, line)
    if set(line.split("\t")) >= {S2UT_COLUMNS[0], S2UT_COLUMNS[3]}:
        return ["s2ut"]
    if path.suffix in SUFFIXES:
        return [SUFFIXES[path.suffix]]
    return [format for format, shape in _SHAPES.items() if re.fullmatch(shape, line)]


_SHAPES = {
    "gslm": r"[^|]+\|[0-9 ]*",
    "textless": r"[^\t|]+\t[0-9 ]*",
    "bare": r"[0-9 ]+",
    "kaldi": r"[^\s|]+( +[0-9]+)+ *",
}


def _by_keys(path: Path, line: str) -> list[str]:
    row = _parsed(line)
    if row is None:
        return []
    keys, is_json = row
    if not is_json:
        return ["dgslm"] if "unitA" in keys else ["resynthesis"]
    if "unitkit" in keys:
        raise UnitsError(f"{path} is a unit file of unitkit already; there is nothing to import")
    return [format for needed, format in KEYS if needed <= keys][:1]


def _parsed(line: str) -> tuple[set[Any], bool] | None:
    """The keys of a dict, and whether it is JSON."""
    for parse, is_json in ((json.loads, True), (ast.literal_eval, False)):
        try:
            return set(parse(line)), is_json
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None

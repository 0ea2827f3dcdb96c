"""Soft units: vectors in place of numbers, one a frame; and folders of them, with a fingerprint as unit files have.

A folder holds `header.json` and one `<id>.npy` (frames, dim) float16 an utterance; van Niekerk et al. 2022 (2111.02392)
have the idea.  No torch in here.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unitkit.units import UnitsError

FORMAT = 1


@dataclass(frozen=True)
class SoftUnits:
    """Soft units of one utterance: `values` (frames, dim) float32, `rate_hz` frames a second, and whose they are."""

    values: np.ndarray
    rate_hz: float
    tokenizer: str
    id: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype.kind != "f":
            raise UnitsError(f"soft units are float (frames, dim), not {self.values.dtype} {self.values.shape}")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.values)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.values) / self.rate_hz


@dataclass(frozen=True)
class SoftHeader:
    """What a folder says of all its soft units."""

    tokenizer: str
    rate_hz: float
    dim: int


def path_of(folder: str | os.PathLike[str], id: str) -> Path:
    """Where a folder has the soft units of an utterance; ids with slashes are in folders."""
    path = Path(folder) / f"{id}.npy"
    if ".." in Path(id).parts or Path(id).is_absolute():
        raise UnitsError(f"id {id!r} leads out of {folder}: give the utterance another one")
    return path


def begin_soft(folder: str | os.PathLike[str], header: SoftHeader) -> None:
    """Makes a folder one of soft units, without those that were there: they may be another tokenizer's.

    A folder that has `.npy` files and no header is somebody else's, and an error.
    """
    path = Path(folder)
    if (there := ids_in(path)) and not (path / "header.json").exists():
        raise UnitsError(f"{path} holds {there[0]}.npy and others, but no header.json: give another folder")
    for stale in there:  # before the header: a call that stops here leaves nothing under a wrong name
        path_of(path, stale).unlink()
    write_soft_header(path, header)


def write_soft_header(folder: str | os.PathLike[str], header: SoftHeader) -> None:
    """Makes a folder one of soft units."""
    path = Path(folder) / "header.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps({"unitkit_soft": FORMAT, **asdict(header)}) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def write_soft(folder: str | os.PathLike[str], units: SoftUnits) -> Path:
    """Writes the soft units of one utterance into a folder that has a header; returns the file."""
    path = path_of(folder, units.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        np.save(file, units.values.astype(np.float16))
    os.replace(scratch, path)
    return path


def read_soft_header(folder: str | os.PathLike[str]) -> SoftHeader:
    """The header of a folder of soft units."""
    path = Path(folder) / "header.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("unitkit_soft") != FORMAT:
            raise UnitsError(f"{path}: of another format than {FORMAT}, which this unitkit reads")
        return SoftHeader(str(found["tokenizer"]), float(found["rate_hz"]), int(found["dim"]))
    except FileNotFoundError:
        raise UnitsError(f"{folder} holds no soft units: it has no header.json") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UnitsError(f"{path}: not a header of soft units ({error!r})") from error


def read_soft(folder: str | os.PathLike[str], id: str) -> SoftUnits:
    """The soft units of one utterance."""
    header, path = read_soft_header(folder), path_of(folder, id)
    if not path.exists():
        raise UnitsError(f"{folder} has no soft units of {id!r}")
    values = np.load(path, allow_pickle=False).astype(np.float32)
    return SoftUnits(values, header.rate_hz, header.tokenizer, id)


def ids_in(folder: str | os.PathLike[str]) -> list[str]:
    """The utterances that a folder has soft units of, sorted."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in Path(folder).rglob("*.npy"))

"""Units and the files that hold them: one header line that names the tokenizer, then one JSON row per utterance.

On disk units are always at frame level.  Deduplicated units are a view with durations, made by `Units.dedup` and
undone by `Units.expand`; they are never written, so there is one truth per utterance.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

FILE_VERSION = 1


class UnitsError(ValueError):
    """Units or a unit file that cannot be what they claim to be."""


class FingerprintError(ValueError):
    """Units, a model or a file made with another tokenizer than the one at hand."""


def check_fingerprint(expected: str, found: str, *, what: str) -> None:
    """Raise `FingerprintError` naming both tokenizers and `what` unless they are the same."""
    if expected != found:
        raise FingerprintError(
            f"{what}: made with tokenizer {found!r}, but {expected!r} is expected here; units of different tokenizers "
            f"do not mix. Encode again with {expected!r}, or use what belongs to {found!r}"
        )


@dataclass(frozen=True, eq=False)
class Units:
    """Units of one utterance: `ids` (frames,) or (frames, codebooks) int64 in 0..n_units-1, `rate_hz` frames a second.

    `tokenizer` is the fingerprint of the tokenizer that made them.  With `reduced`, runs of equal units are merged and
    a row no longer stands for one frame.
    """

    ids: np.ndarray
    rate_hz: float
    n_units: int
    tokenizer: str
    id: str = ""
    reduced: bool = False

    def __post_init__(self) -> None:
        if not (self.rate_hz > 0 and math.isfinite(self.rate_hz)):
            raise UnitsError(f"rate_hz must be a positive number of frames a second, not {self.rate_hz!r}")
        if self.n_units < 1:
            raise UnitsError(f"n_units must be at least 1, not {self.n_units!r}")
        object.__setattr__(self, "ids", _checked_ids(self.ids, self.n_units))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Units):
            return NotImplemented
        same = all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.name != "ids")
        return same and np.array_equal(self.ids, other.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def codebooks(self) -> int:
        """Number of units per frame."""
        return 1 if self.ids.ndim == 1 else self.ids.shape[1]

    @property
    def n_frames(self) -> int:
        """Number of frames; of reduced units, the number of runs."""
        return len(self.ids)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        if self.reduced:
            raise UnitsError(f"{self.id!r}: reduced units have no duration; expand(durations) them first")
        return self.n_frames / self.rate_hz

    def dedup(self) -> tuple["Units", np.ndarray]:
        """Merge runs of equal units (of equal rows): reduced units and their durations (runs,) in frames."""
        if self.reduced:
            raise UnitsError(f"{self.id!r}: already reduced; its durations in frames are not known here")
        rows = _rows_of(self.ids)
        starts = np.flatnonzero(np.r_[len(rows) > 0, (rows[1:] != rows[:-1]).any(axis=1)])
        durations = np.diff(np.r_[starts, len(rows)])
        return replace(self, ids=self.ids[starts], reduced=True), durations

    def expand(self, durations: np.ndarray | list[int]) -> "Units":
        """Repeat each reduced unit `durations` (runs,) frames, at least 1 each: units at frame level again."""
        if not self.reduced:
            raise UnitsError(f"{self.id!r}: at frame level already; only reduced units are expanded")
        counts = np.asarray(durations) if len(durations) else np.zeros(0, np.int64)
        if counts.shape != (len(self.ids),):
            raise UnitsError(f"{self.id!r}: {len(self.ids)} reduced units need as many durations, not {counts.shape}")
        if counts.dtype.kind not in "iu" or (counts < 1).any():
            raise UnitsError(f"{self.id!r}: durations are whole frames of at least 1, not {counts.tolist()[:10]}")
        return replace(self, ids=np.repeat(self.ids, counts, axis=0), reduced=False)

    def shuffled(self, seed: int) -> "Units":
        """The same rows in random order: the control that any unit score must beat."""
        return replace(self, ids=np.random.default_rng(seed).permutation(self.ids, axis=0))


def _rows_of(ids: np.ndarray) -> np.ndarray:
    return ids[:, None] if ids.ndim == 1 else ids  # (frames, codebooks)


def _checked_ids(ids: Any, n_units: int) -> np.ndarray:
    try:
        array = np.asarray(ids)
    except ValueError as error:  # ragged
        raise UnitsError("every frame must hold the same number of units") from error
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise UnitsError(
            f"units are integers (frames,) or (frames, codebooks), not {array.dtype} of shape {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() >= n_units):
        bad = array[(array < 0) | (array >= n_units)].flat[0]
        raise UnitsError(f"unit {bad} is outside 0..{n_units - 1}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]  # one shape for one codebook
    return array.astype(np.int64, copy=False)


# ---------------------------------------------------------------------------------------------------- unit files


@dataclass(frozen=True)
class UnitsHeader:
    """The first row of a unit file: what its units are."""

    tokenizer: str
    rate_hz: float
    n_units: int
    codebooks: int = 1

    def __post_init__(self) -> None:
        if not (self.rate_hz > 0 and math.isfinite(self.rate_hz)):
            raise UnitsError(f"rate_hz must be a positive number of frames a second, not {self.rate_hz!r}")
        for name, value in (("n_units", self.n_units), ("codebooks", self.codebooks)):
            if value < 1:
                raise UnitsError(f"{name} must be at least 1, not {value!r}")

    def units(self, ids: Any, utterance: str) -> Units:
        """`ids` (frames,) or (frames, codebooks) of utterance `utterance` as `Units` under this header."""
        array = np.asarray(ids, np.int64).reshape(0, self.codebooks) if len(ids) == 0 else ids
        units = Units(array, self.rate_hz, self.n_units, self.tokenizer, utterance)
        if units.codebooks != self.codebooks:
            raise UnitsError(f"{utterance!r} has {units.codebooks} units a frame, the header says {self.codebooks}")
        return units

    def check(self, units: Units, *, what: str) -> None:
        """Raise unless `units` may stand in a file with this header."""
        if not units.id:
            raise UnitsError(f"{what}: units need an id to be written")
        if units.reduced:
            raise UnitsError(f"{what}: {units.id!r} is reduced; unit files hold frame-level units: expand them first")
        self.check_same(UnitsHeader(units.tokenizer, units.rate_hz, units.n_units, units.codebooks), what=what)

    def check_same(self, other: "UnitsHeader", *, what: str) -> None:
        """Raise `FingerprintError` unless `other` equals this header."""
        check_fingerprint(self.tokenizer, other.tokenizer, what=what)
        for name, mine in asdict(self).items():
            if mine != (theirs := getattr(other, name)):
                raise FingerprintError(f"{what}: {name} is {theirs}, but {mine} is expected here")


def read_header(path: str | Path) -> UnitsHeader:
    """The header of a unit file."""
    with open(path, "rb") as file:
        return _parse_header(file.readline(), path)


def read_units(path: str | Path, *, tokenizer: str | None = None) -> Iterator[Units]:
    """Stream a unit file; with `tokenizer`, a file made by another one raises `FingerprintError` at once."""
    header = read_header(path)
    if tokenizer is not None:
        check_fingerprint(tokenizer, header.tokenizer, what=str(path))
    return _rows(path, header)


def _rows(path: str | Path, header: UnitsHeader) -> Iterator[Units]:
    seen: set[str] = set()
    with open(path, "rb") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            units = _parse_row(line, header, f"{path}:{number}")
            if units.id in seen:
                raise UnitsError(f"{path}:{number}: a second row with id {units.id!r}")
            seen.add(units.id)
            yield units


def write_units(path: str | Path, header: UnitsHeader, units: Iterable[Units]) -> int:
    """Write a unit file in one go; nothing appears under `path` unless all of it could be written.  Returns rows."""
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")  # leaves a resumable `<path>.partial` alone
    writer = UnitsWriter(scratch, header, resume=False)
    try:
        with writer:
            for one in units:
                writer.append(one)
        os.replace(scratch, path)
    finally:
        for leftover in (scratch, writer.partial):
            leftover.unlink(missing_ok=True)
    return len(writer.done)


class UnitsWriter:
    """Write a unit file row by row to `<path>.partial`, renamed to `path` by `close`; an exception leaves the partial.

    With `resume`, a partial that is there is continued: a torn last line is cut off and `done` holds the ids it has.
    """

    def __init__(self, path: str | Path, header: UnitsHeader, *, resume: bool = True) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.header = header
        self.done: set[str] = set()
        keep = self._repaired_size() if resume and self.partial.exists() else 0
        self._file: BinaryIO = open(self.partial, "r+b" if keep else "wb")  # noqa: SIM115 closed by close()
        self._file.truncate(keep)
        self._file.seek(keep)
        if not keep:
            self._write({"unitkit": FILE_VERSION, **asdict(header)})

    def _repaired_size(self) -> int:
        """Bytes of whole lines in the partial; fills `done`."""
        with open(self.partial, "rb") as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                return 0
            self.header.check_same(_parse_header(first, self.partial), what=str(self.partial))
            size = len(first)
            for number, line in enumerate(file, 2):
                if not line.endswith(b"\n"):
                    break  # the writer died inside this line
                self.done.add(_parse_row(line, self.header, f"{self.partial}:{number}").id)
                size += len(line)
        return size

    def append(self, units: Units) -> None:
        """Write one utterance as one whole line and flush it."""
        self.header.check(units, what=str(self.path))
        if units.id in self.done:
            raise UnitsError(f"{self.path}: a second row with id {units.id!r}")
        self._write({"id": units.id, "units": units.ids.tolist()})
        self.done.add(units.id)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(_json_line(row))
        self._file.flush()

    def close(self) -> None:
        """Make the file final under its own name."""
        if self._file.closed:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.partial, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def _json_line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # an id from a file name that is not UTF-8
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _parse_header(line: bytes, path: str | Path) -> UnitsHeader:
    try:
        row = json.loads(line)
        version = row["unitkit"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnitsError(
            f"{path}:1: not a unit file: the first line must be a header like "
            '{"unitkit":1,"tokenizer":"…","rate_hz":50.0,"n_units":100,"codebooks":1}; '
            "units in another format come in through `unitkit import`"
        ) from error
    if version != FILE_VERSION:
        raise UnitsError(f"{path}:1: unit file version {version!r}; this unitkit reads version {FILE_VERSION}")
    try:
        return UnitsHeader(str(row["tokenizer"]), float(row["rate_hz"]), int(row["n_units"]), int(row["codebooks"]))
    except (KeyError, ValueError, TypeError) as error:
        raise UnitsError(f"{path}:1: bad header: {error!r}") from error


def _parse_row(line: bytes, header: UnitsHeader, where: str) -> Units:
    try:
        row = json.loads(line)
        utterance, ids = row["id"], row["units"]
        if not (isinstance(utterance, str) and utterance and isinstance(ids, list)):
            raise UnitsError('"id" must be a non-empty string and "units" a list')
        return header.units(ids, utterance)
    except KeyError as error:
        raise UnitsError(f"{where}: bad row: no {error}") from error
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise UnitsError(f"{where}: bad row: {error}") from error


# ------------------------------------------------------------------------------------------------------- bitrate


@dataclass(frozen=True)
class Bitrate:
    """Bits per second of a corpus of units, by the three definitions in use; say which one a number is.

    1. `bits_per_second`, fixed rate: Σ units × log2(n_units) / Σ seconds.  What codecs and DASB call bitrate; it does
       not ask how often a unit is used.
    2. `entropy_bps`, entropy: Σ units × H(unit) / Σ seconds, H the empirical entropy over the corpus, each codebook by
       itself.  ZeroSpeech 2019 and 2020 score this, of the rows handed in; never above 1.
    3. `dedup_complete_bps`, deduplicated with durations: Σ runs × (H(unit of a run) + H(frames of a run)) / Σ seconds,
       the sum of `dedup_entropy_bps` and `duration_bps`.

    `dedup_bps`, runs × log2(n_units), and `dedup_entropy_bps` are what papers on deduplicated units print.  Neither
    stream says when a unit is spoken: beside 1 or 2 they are too low by what the durations cost.
    """

    bits_per_second: float
    entropy_bps: float
    dedup_bps: float
    dedup_entropy_bps: float
    duration_bps: float
    seconds: float
    n_units_used: int

    @property
    def dedup_complete_bps(self) -> float:
        """Runs and their durations, both at their entropy: enough to get the frames back."""
        return self.dedup_entropy_bps + self.duration_bps


def bitrate(units: Iterable[Units]) -> Bitrate:
    """Corpus-level bitrate: sum of units × log2(n_units) over sum of seconds, never an average over utterances."""
    frames, runs, durations = Counter[tuple[int, int]](), Counter[tuple[int, int]](), Counter[int]()
    header: UnitsHeader | None = None
    n_frames = 0
    for one in units:
        header = header or UnitsHeader(one.tokenizer, one.rate_hz, one.n_units, one.codebooks)
        header.check(replace(one, id=one.id or "?"), what=f"bitrate of {one.id!r}")
        short, lengths = one.dedup()
        _count(frames, one)
        _count(runs, short)
        durations.update(lengths.tolist())
        n_frames += one.n_frames
    if header is None or n_frames == 0:
        raise UnitsError("bitrate of no units at all")
    seconds = n_frames / header.rate_hz
    width = math.log2(header.n_units)
    return Bitrate(
        bits_per_second=frames.total() * width / seconds,
        entropy_bps=_codebook_bits(frames, header.codebooks) / seconds,
        dedup_bps=runs.total() * width / seconds,
        dedup_entropy_bps=_codebook_bits(runs, header.codebooks) / seconds,
        duration_bps=_bits(durations) / seconds,
        seconds=seconds,
        n_units_used=len(frames),
    )


def _count(counts: Counter[tuple[int, int]], units: Units) -> None:
    for codebook, column in enumerate(_rows_of(units.ids).T):
        values, times = np.unique(column, return_counts=True)
        for value, n in zip(values.tolist(), times.tolist(), strict=True):
            counts[codebook, value] += n


def _codebook_bits(counts: Counter[tuple[int, int]], codebooks: int) -> float:
    return sum(_bits(Counter({k: n for k, n in counts.items() if k[0] == book})) for book in range(codebooks))


def _bits(counts: Counter[Any]) -> float:
    """Symbols × empirical entropy, in bits."""
    total = counts.total()
    return sum(-n * math.log2(n / total) for n in counts.values())


# ---------------------------------------------------------------------------------------------------- vocabulary


@dataclass(frozen=True)
class Vocab:
    """Token ids of a model over units: pad 0, bos 1, eos 2, then the units, codebook after codebook."""

    n_units: int
    codebooks: int = 1

    pad = 0
    bos = 1
    eos = 2
    first = 3

    def __len__(self) -> int:
        return self.first + self.n_units * self.codebooks

    def encode(self, ids: np.ndarray, *, bos: bool = False, eos: bool = False) -> np.ndarray:
        """Units (frames,) or (frames, codebooks) to tokens (frames × codebooks [+ bos, eos],), frame after frame."""
        rows = _rows_of(_checked_ids(ids, self.n_units))
        if len(rows) and rows.shape[1] != self.codebooks:
            raise UnitsError(f"{rows.shape[1]} units a frame do not fit a vocabulary of {self.codebooks} codebooks")
        tokens = (self.first + np.arange(rows.shape[1]) * self.n_units + rows).ravel()
        return np.concatenate([[self.bos] * bos, tokens, [self.eos] * eos]).astype(np.int64)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens to units (frames,) or (frames, codebooks): stops at the first eos, leaves out bos and pad."""
        tokens = np.asarray(tokens, np.int64)
        ends = np.flatnonzero(tokens == self.eos)
        tokens = tokens[: ends[0]] if len(ends) else tokens
        tokens = tokens[(tokens != self.pad) & (tokens != self.bos)]
        if len(tokens) % self.codebooks:
            raise UnitsError(f"{len(tokens)} tokens are not whole frames of {self.codebooks} codebooks")
        rows = tokens.reshape(-1, self.codebooks) - self.first - np.arange(self.codebooks) * self.n_units
        return _checked_ids(rows, self.n_units)

"""Bulk encoding: utterances in, one unit file out, in the manifest's order, resumable, nothing half-written.

This is one process and one file; shards are such files (shards.py), spread over processes (workers.py).
"""

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

import numpy as np

from unitkit import audio
from unitkit.manifest import ManifestError, Utterance
from unitkit.units import (
    FingerprintError,
    Units,
    UnitsError,
    UnitsWriter,
    check_fingerprint,
    read_header,
    read_units,
)

if TYPE_CHECKING:
    from unitkit.tokenizer import Tokenizer  # torch: the process that only hands out shards does without it

BAD_INPUT = (audio.AudioError, ValueError, OSError)
GPU_BATCH = 600.0  # seconds of audio in one call of the tokenizer on a GPU; on a CPU padding costs more than it saves
LOCK_WAIT = 5.0  # seconds; workers of a killed run may take a moment to notice and let go


class LockedError(ValueError):
    """Another process is writing this output."""


@dataclass
class Summary:
    """What one call did: rows `encoded` now or `kept`; `seconds` is audio encoded now, `elapsed` wall time."""

    encoded: int = 0
    kept: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    bad: list[tuple[Utterance, str]] = field(default_factory=list)

    @property
    def hours_per_hour(self) -> float:
        """Hours of audio encoded per hour of wall time."""
        return self.seconds / self.elapsed if self.elapsed else 0.0

    def add(self, other: "Summary") -> None:
        """Count in what another call did, but not its time: calls run side by side."""
        self.encoded += other.encoded
        self.kept += other.kept
        self.seconds += other.seconds
        self.bad += other.bad


@dataclass(frozen=True)
class Progress:
    """One finished utterance: `seconds` of audio in it, whether it was `kept` from an earlier run or `bad`."""

    utterance: Utterance
    seconds: float
    kept: bool = False
    bad: str | None = None


def with_durations(utterances: Iterable[Utterance]) -> list[Utterance]:
    """Fill in missing durations from the files' headers; a file that has none readable keeps `None`."""
    return [u if u.duration is not None else replace(u, duration=_duration(u)) for u in utterances]


def rejects_of(output: Path) -> Path:
    """Where the list of bad files of a unit file stands: `units.rejects.jsonl` beside `units.jsonl`."""
    return output.with_name(output.name.removesuffix(".jsonl") + ".rejects.jsonl")


def encode_files(
    tokenizer: "Tokenizer",
    utterances: Sequence[Utterance],
    output: str | Path,
    *,
    strict: bool = False,
    overwrite: bool = False,
    batch_seconds: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Encode `utterances` into the unit file `output`.

    Rows come in the order given.  Work goes to `<output>.partial` and is renamed at the end, so an interrupted call
    goes on where it stopped.  If `output` exists, its rows are kept and only missing utterances are encoded.  A bad
    file is skipped, and listed in the summary and in `<output>.rejects.jsonl`; with `strict` it stops the call (what
    was encoded before it is kept).  `batch_seconds` of audio go to the tokenizer at once, read while the batch before
    is computed; by default 600 on a GPU, and one file at a time on a CPU.

    Raises:
        FingerprintError: `output` or its partial was made by another tokenizer and `overwrite` is not set.
        LockedError: another process is writing `output`.
        ManifestError: two utterances share an id.
        UnitsError: a bad file, under `strict`.
    """
    output, started = Path(output), time.monotonic()
    refuse_duplicates(utterances)
    with locked(output):
        if output.exists() and not overwrite:
            what = f"{output} (give another -o, or --overwrite)"
            check_fingerprint(tokenizer.fingerprint, read_header(output).tokenizer, what=what)
        if not overwrite and is_complete(output, utterances):
            write_rejects(rejects_of(output), [])
            summary = Summary(kept=len(utterances))
        else:
            summary = _encode(tokenizer, utterances, output, strict, overwrite, batch_seconds, on_progress)
        _sweep(output)
    summary.elapsed = time.monotonic() - started
    return summary


def is_complete(output: Path, utterances: Sequence[Utterance]) -> bool:
    """Whether `output` holds a row for each utterance, in order, and nothing else."""
    if not output.exists():
        return False
    found = (units.id for units in read_units(output))
    return all(next(found, None) == u.id for u in utterances) and next(found, None) is None


def refuse_duplicates(utterances: Iterable[Utterance]) -> None:
    """Raise `ManifestError` if two utterances share an id."""
    seen: dict[str, str] = {}
    for utterance in utterances:
        if utterance.id in seen:
            raise ManifestError(f"two inputs share the id {utterance.id!r}: {seen[utterance.id]} and {utterance.audio}")
        seen[utterance.id] = utterance.audio


def write_rejects(path: Path, bad: Sequence[tuple[Utterance, str]]) -> None:
    """Write id, audio and reason of bad files, one JSON object a line, in one step; of none, no file."""
    rows = [{"id": utterance.id, "audio": utterance.audio, "reason": reason} for utterance, reason in bad]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    if not bad:
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small file in one step.  The caller holds the lock, so that a killed call leaves one scratch at most."""
    scratch = path.with_name(path.name + ".partial")
    with open(scratch, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


# ------------------------------------------------------------------------------------------------------- encoding


def _encode(
    tokenizer: "Tokenizer",
    utterances: Sequence[Utterance],
    output: Path,
    strict: bool,
    overwrite: bool,
    batch_seconds: float | None,
    on_progress: Callable[[Progress], None] | None,
) -> Summary:
    summary, tell = Summary(), on_progress or (lambda progress: None)
    known = {units.id: units for units in read_units(output)} if output.exists() and not overwrite else {}
    seconds = batch_seconds if batch_seconds is not None else _default_batch(tokenizer)
    with UnitsWriter(output, tokenizer.header(), resume=not overwrite) as writer:
        earlier = set(writer.done)
        for utterance, result in _results(tokenizer, utterances, earlier | known.keys(), seconds):
            length = utterance.duration or 0.0
            if result is None:
                if utterance.id not in earlier:
                    writer.append(known[utterance.id])
                summary.kept += 1
                tell(Progress(utterance, length, kept=True))
            elif isinstance(result, Units):
                writer.append(result)
                summary.encoded += 1
                summary.seconds += result.duration
                tell(Progress(utterance, length or result.duration))
            elif strict:
                kept = f"stopped by --strict; {summary.encoded} files encoded before it are kept"
                raise UnitsError(f"{result} ({kept})") from result
            else:
                summary.bad.append((utterance, str(result)))
                tell(Progress(utterance, length, bad=str(result)))
        write_rejects(rejects_of(output), summary.bad)  # first: an output under its own name is the end of it all
    if earlier:
        _restore_order(output, tokenizer, utterances)
    return summary


def _default_batch(tokenizer: "Tokenizer") -> float:
    return GPU_BATCH if tokenizer.quantizer.device.type == "cuda" else 0.0


def _results(
    tokenizer: "Tokenizer", utterances: Sequence[Utterance], have: set[str], seconds: float
) -> Iterator[tuple[Utterance, Units | Exception | None]]:
    """Each utterance in order with its units, the fault that it has, or None if its units are there already."""
    if seconds > 0:
        yield from _batched(tokenizer, utterances, have, seconds)
        return
    for utterance in utterances:
        yield utterance, None if utterance.id in have else _one(tokenizer, utterance)


def _one(tokenizer: "Tokenizer", utterance: Utterance) -> Units | Exception:
    try:
        return tokenizer.encode(utterance)
    except FingerprintError:
        raise
    except BAD_INPUT as error:
        return error if utterance.audio in str(error) else ValueError(f"{utterance.audio}: {error}")


def _batched(
    tokenizer: "Tokenizer", utterances: Sequence[Utterance], have: set[str], seconds: float
) -> Iterator[tuple[Utterance, Units | Exception | None]]:
    """As `_results`, a batch at a time; a thread reads the next batch meanwhile (decoding lets go of Python's lock)."""
    from concurrent.futures import ThreadPoolExecutor

    def read(batch: list[Utterance]) -> list[np.ndarray | None]:
        return [None if u.id in have or (u.duration or seconds) >= seconds else _wav(tokenizer, u) for u in batch]

    batches = list(_batches(utterances, have, seconds))
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, batches[0]) if batches else None
        for number, batch in enumerate(batches):
            wavs = ahead.result() if ahead else []
            ahead = reader.submit(read, batches[number + 1]) if number + 1 < len(batches) else None
            units = _together(tokenizer, batch, wavs)
            for utterance in batch:
                if utterance.id in have:
                    yield utterance, None
                else:  # long, or with a fault that wants its name: by itself
                    yield utterance, units.get(utterance.id) or _one(tokenizer, utterance)


def _batches(utterances: Sequence[Utterance], have: set[str], seconds: float) -> Iterator[list[Utterance]]:
    batch: list[Utterance] = []
    total = 0.0
    for utterance in utterances:
        length = 0.0 if utterance.id in have else utterance.duration or seconds
        if batch and (total + length > seconds or len(batch) >= 1024):
            yield batch
            batch, total = [], 0.0
        batch.append(utterance)
        total += length
    if batch:
        yield batch


def _wav(tokenizer: "Tokenizer", utterance: Utterance) -> np.ndarray | None:
    rate, start = tokenizer.sample_rate, utterance.start
    try:
        if start is None:  # `duration` then only describes the file, perhaps rounded: it cuts nothing off
            return audio.read(utterance.audio, rate)
        return audio.read(utterance.audio, rate, start=start, duration=utterance.duration)
    except BAD_INPUT:
        return None


def _together(
    tokenizer: "Tokenizer", batch: Sequence[Utterance], wavs: Sequence[np.ndarray | None]
) -> dict[str, Units]:
    """Units by id of those in the batch that have a wav; none at all if one of them cannot be encoded."""
    pairs = [(u, wav) for u, wav in zip(batch, wavs, strict=True) if wav is not None]
    try:
        made = tokenizer.encode([wav for _, wav in pairs], rate=tokenizer.sample_rate) if pairs else []
    except BAD_INPUT:
        return {}
    return {u.id: replace(units, id=u.id) for (u, _), units in zip(pairs, made, strict=True)}


def _restore_order(output: Path, tokenizer: "Tokenizer", utterances: Sequence[Utterance]) -> None:
    """A resumed run may have appended a row that belongs earlier (a file mended meanwhile): put rows in order.

    A kill before that is mended by the next call, which takes a file out of order for one that is not complete.
    """
    rows = {units.id: units for units in read_units(output)}
    wanted = [u.id for u in utterances if u.id in rows]
    if list(rows) == wanted:
        return
    ordered = output.with_name(output.name + ".ordered")
    with UnitsWriter(ordered, tokenizer.header(), resume=False) as writer:
        for name in wanted:
            writer.append(rows[name])
    os.replace(ordered, output)


def _sweep(output: Path) -> None:
    """Remove what a killed call may have left."""
    for ending in (".partial", ".ordered", ".ordered.partial"):
        output.with_name(output.name + ending).unlink(missing_ok=True)


def _duration(utterance: Utterance) -> float | None:
    try:
        return audio.info(utterance.audio).duration - (utterance.start or 0.0)
    except BAD_INPUT:
        return None  # named when it is encoded


# ---------------------------------------------------------------------------------------------------------- locks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes off `path` by `<path>.lock`; after LOCK_WAIT seconds raise `LockedError` naming the holder.

    The kernel lets go of the lock when its holder dies, however it dies.  It holds between machines on NFS version 4
    and on Lustre mounted with flock; where a file system has no locks, and on Windows, there is none.
    """
    if path.exists() and not path.is_file():  # a folder; or a device, which would be read without end
        raise UnitsError(f"{path} is not a file: units are written to a file of their own (units.jsonl)")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    file = _take(lock, fcntl, time.monotonic() + LOCK_WAIT)
    try:
        yield
    finally:
        if file is not None:
            lock.unlink(missing_ok=True)  # before letting go: whoever gets the lock of a name that is gone tries again
            file.close()


def _take(lock: Path, fcntl: ModuleType, deadline: float) -> IO[str] | None:
    while True:
        file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115 closed when let go
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                file.close()
                lock.unlink(missing_ok=True)
                return None  # no locks on this file system
            _refuse_after(deadline, file, lock)
            continue
        if _is_still(lock, file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()


def _refuse_after(deadline: float, file: IO[str], lock: Path) -> None:
    with file:
        if time.monotonic() < deadline:
            time.sleep(0.05)
            return
        file.seek(0)
        holder = file.read() or "another process"
    raise LockedError(f"{lock.with_suffix('')}: {holder} is writing it; wait until it is done, or stop it first")


def _is_still(lock: Path, file: IO[str]) -> bool:
    try:
        return os.stat(lock).st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False

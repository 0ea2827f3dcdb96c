"""Shards: contiguous parts of a manifest, each encoded by whoever takes it, with a receipt, and merged in order.

`units.jsonl` is made of `units.jsonl.shards/0003-of-0010.jsonl` and its like.  Beside a finished shard stand its
rejects and, written last, its receipt: a shard with a receipt that agrees with file, manifest and tokenizer is done.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import unitkit
from unitkit.encode import (
    Progress,
    Summary,
    encode_files,
    locked,
    refuse_duplicates,
    rejects_of,
    write_rejects,
    write_text,
)
from unitkit.manifest import Utterance
from unitkit.units import UnitsError, check_fingerprint, read_header, read_units

if TYPE_CHECKING:
    from unitkit.tokenizer import Tokenizer

NAME = re.compile(r"(\d{4,})-of-(\d{4,})\.")
BLOCK = 1 << 20  # bytes copied at a time


class ShardError(ValueError):
    """A shard that is missing, damaged or made from something else, or whose worker died."""


@dataclass(frozen=True)
class Shard:
    """Number `number` of `total` (from 1) of the unit file `output`."""

    output: Path
    number: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise ShardError(f"shard {self.number}/{self.total}: shards are numbered from 1 to their total")

    @property
    def path(self) -> Path:
        """The unit file of this shard."""
        return folder_of(self.output) / f"{self.number:04d}-of-{self.total:04d}.jsonl"

    @property
    def receipt(self) -> Path:
        """What says that the shard is done."""
        return self.path.with_suffix(".json")

    @property
    def command(self) -> str:
        """The command that makes this shard."""
        return f"unitkit encode … -o {self.output} --shard {self.number}/{self.total}"


@dataclass(frozen=True)
class Receipt:
    """What stands in a finished shard: rows (`count`) and `rejected` files, `frames`, `seconds`, checksums, origin.

    `manifest` is the sha256 of the whole manifest and `part` that of the shard's rows: ids, paths, starts, durations.
    """

    shard: int
    shards: int
    tokenizer: str
    manifest: str
    part: str
    utterances: int
    count: int
    rejected: int
    frames: int
    seconds: float
    sha256: str
    rejects_sha256: str
    unitkit: str


@dataclass(frozen=True)
class Task:
    """A shard to encode: its part of the manifest, and the digest of the whole."""

    shard: Shard
    utterances: Sequence[Utterance]
    manifest: str


def folder_of(output: Path) -> Path:
    """Where the shards of a unit file lie."""
    return output.with_name(output.name + ".shards")


def tasks(utterances: Sequence[Utterance], output: str | Path, total: int) -> list[Task]:
    """Cut a manifest into `total` contiguous shards of about equal length by its durations (by count where none).

    Only the manifest counts, not the audio, so that every process cuts alike.
    """
    refuse_duplicates(utterances)
    whole, parts = digest(utterances), split([u.duration for u in utterances], total)
    return [
        Task(Shard(Path(output), number, total), utterances[part], whole) for number, part in enumerate(parts, start=1)
    ]


def split(seconds: Sequence[float | None], total: int) -> list[slice]:
    """`total` contiguous slices of about equal sum; what is unknown counts as the mean of what is known."""
    if total < 1:
        raise ShardError(f"{total} shards: there must be at least 1")
    known = [s for s in seconds if s]
    mean = sum(known) / len(known) if known else 1.0
    sizes = [mean if s is None else s for s in seconds]
    goal, done = sum(sizes), 0.0
    edges = [0]
    for position, size in enumerate(sizes):
        while len(edges) < total and done + size / 2 >= goal * len(edges) / total:
            edges.append(position)  # a shard begins where the middle of an utterance passes its mark
        done += size
    edges += [len(sizes)] * (total + 1 - len(edges))
    return [slice(a, b) for a, b in pairwise(edges)]


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(number, total) of "3/10", or of "auto": a Slurm array task, a torchrun rank, or a rank within an array task."""
    if text != "auto":
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text)):
            raise ShardError(f"shard {text!r}: write number/total as in 3/10 (from 1), or auto")
        number, total = int(match[1]), int(match[2])
        if not 1 <= number <= total:
            raise ShardError(f"shard {text!r}: shards are numbered from 1 to their total")
        return number, total
    place = [_array_task(environment)] if "SLURM_ARRAY_TASK_ID" in environment else []
    if "RANK" in environment and "WORLD_SIZE" in environment:
        place.append((int(environment["RANK"]), int(environment["WORLD_SIZE"])))
    if not place:
        raise ShardError("--shard auto: neither SLURM_ARRAY_TASK_ID nor RANK and WORLD_SIZE is set; write 3/10")
    number, total = 0, 1
    for index, count in place:
        number, total = number * count + index, total * count
    return number + 1, total


def _array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """Index from 0 and count of a Slurm array task; an array with holes does not say how many shards there are."""
    names = ("ID", "MIN", "MAX", "COUNT")
    try:
        task, first, last, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
    except (KeyError, ValueError) as error:
        raise ShardError(f"--shard auto: SLURM_ARRAY_TASK_{', '.join(names)} must all be numbers: {error}") from error
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1") or 1)
    if first + (count - 1) * step != last:
        raise ShardError(
            f"--shard auto: an array of {count} tasks from {first} to {last} has holes, so the number of shards is not "
            'known; write it: --shard "$SLURM_ARRAY_TASK_ID/TOTAL"'
        )
    return (task - first) // step, count


# ------------------------------------------------------------------------------------------------------- encoding


def encode_shard(
    tokenizer: "Tokenizer",
    task: Task,
    *,
    strict: bool = False,
    overwrite: bool = False,
    batch_seconds: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Encode one shard and write its receipt; a shard whose receipt agrees is left as it is, rejects included.

    Raises:
        FingerprintError: a half shard was made by another tokenizer.
        LockedError: another process is at this shard.
        ShardError: the receipt is of another tokenizer or manifest or the shard is damaged, and not `overwrite`; or
            the folder holds shards of another total.
        UnitsError: a bad file, under `strict`.
    """
    shard = task.shard
    refuse_other_totals(shard)
    with locked(shard.receipt):
        if overwrite:
            shard.receipt.unlink(missing_ok=True)
        elif shard.receipt.exists():
            receipt = check_receipt(shard)
            _agree(task, receipt, tokenizer.fingerprint)
            return _kept(task, receipt, strict, on_progress)
        summary = encode_files(
            tokenizer,
            task.utterances,
            shard.path,
            strict=strict,
            overwrite=overwrite,
            batch_seconds=batch_seconds,
            on_progress=on_progress,
        )
        _write_receipt(task, len(summary.bad))
    return summary


def _kept(task: Task, receipt: Receipt, strict: bool, on_progress: Callable[[Progress], None] | None) -> Summary:
    bad = _read_rejects(rejects_of(task.shard.path))
    if strict and bad:
        raise UnitsError(f"{next(iter(bad.values()))} (stopped by --strict; shard of an earlier run)")
    if on_progress is not None:
        for utterance in task.utterances:
            on_progress(Progress(utterance, utterance.duration or 0.0, kept=True, bad=bad.get(utterance.id)))
    return Summary(kept=receipt.count, bad=[(u, bad[u.id]) for u in task.utterances if u.id in bad])


def _write_receipt(task: Task, rejected: int) -> None:
    shard = task.shard
    header, count, frames = read_header(shard.path), 0, 0
    for units in read_units(shard.path):
        count, frames = count + 1, frames + units.n_frames
    receipt = Receipt(
        shard=shard.number,
        shards=shard.total,
        tokenizer=header.tokenizer,
        manifest=task.manifest,
        part=digest(task.utterances),
        utterances=len(task.utterances),
        count=count,
        rejected=rejected,
        frames=frames,
        seconds=frames / header.rate_hz,
        sha256=_sha256(shard.path),
        rejects_sha256=_sha256(rejects_of(shard.path)),
        unitkit=unitkit.__version__,
    )
    _sync_folder(shard.receipt.parent)  # the shard's own name is on disk before the receipt that vouches for it
    write_text(shard.receipt, json.dumps(asdict(receipt), indent=1) + "\n")
    _sync_folder(shard.receipt.parent)


def check_receipt(shard: Shard) -> Receipt:
    """The receipt of a shard, its files checked against it; raises `ShardError` naming what does not fit."""
    try:
        row = json.loads(shard.receipt.read_text(encoding="utf-8"))
        receipt = Receipt(**{field.name: row[field.name] for field in fields(Receipt)})
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{shard.receipt}: not a receipt: {error!r}; {_mend(shard)}") from error
    if (receipt.shard, receipt.shards) != (shard.number, shard.total):
        raise ShardError(f"{shard.receipt} is of shard {receipt.shard}/{receipt.shards}; {_mend(shard)}")
    pairs = ((shard.path, receipt.sha256), (rejects_of(shard.path), receipt.rejects_sha256))
    for path, expected in pairs:
        if (found := _sha256(path)) != expected:
            state = "is not there" if not found else f"has sha256 {found[:12]}…"
            raise ShardError(
                f"{path} {state}, but its receipt {shard.receipt} says {expected[:12] or 'none'}…; {_mend(shard)}"
            )
    return receipt


def _agree(task: Task, receipt: Receipt, fingerprint: str) -> None:
    pairs = (
        ("tokenizer", receipt.tokenizer, fingerprint),
        ("manifest", receipt.manifest, task.manifest),
        ("part of the manifest", receipt.part, digest(task.utterances)),
    )
    for what, made, wanted in pairs:
        if made != wanted:
            raise ShardError(
                f"{task.shard.receipt}: made with {what} {made[:12]!r}, not with {wanted[:12]!r} as given here; "
                "give another -o, or --overwrite"
            )


def _mend(shard: Shard) -> str:
    return f"make it anew: {shard.command} --overwrite"


def refuse_other_totals(shard: Shard) -> None:
    """Raise `ShardError` if shards of another total lie in the folder: two cuts of a manifest do not merge."""
    others = totals(shard.output) - {shard.total}
    if others:
        folder = folder_of(shard.output)
        raise ShardError(
            f"{folder} holds shards of {', '.join(map(str, sorted(others)))}, not of {shard.total}: go on with "
            f"--shard i/{min(others)}, or remove {folder}"
        )


def totals(output: Path) -> set[int]:
    """The totals of the shards that lie in the folder of a unit file, finished or not."""
    folder = folder_of(output)
    names = os.listdir(folder) if folder.is_dir() else []
    return {int(match[2]) for name in names if (match := NAME.match(name)) and not name.endswith(".lock")}


# -------------------------------------------------------------------------------------------------------- merging


def merge_shards(output: str | Path, *, clean: bool = False, overwrite: bool = False) -> Summary:
    """Check every receipt and checksum, then write `output` and its rejects; with `clean` remove the shards.

    A second call with `clean` finds no shards and leaves `output` as it is.

    Raises:
        FingerprintError: `output` is there, made by another tokenizer, and `overwrite` is not set.
        LockedError: another process is writing `output`.
        ShardError: shards are missing, damaged, or of different manifests or tokenizers.
    """
    output = Path(output)
    with locked(output):
        return merge_locked(output, clean=clean, overwrite=overwrite)


def merge_locked(output: Path, *, clean: bool, overwrite: bool) -> Summary:
    """As `merge_shards`, for a caller that holds the lock."""
    if clean and output.exists() and not totals(output):  # an earlier call got that far; it may have been killed here
        discard(output)
        return Summary(kept=sum(1 for _ in read_units(output)), bad=_listed(rejects_of(output)))
    shards = _all_shards(output)
    receipts = [check_receipt(shard) for shard in shards]
    _refuse_mixture(shards, receipts)
    if output.exists() and not overwrite:
        check_fingerprint(receipts[0].tokenizer, read_header(output).tokenizer, what=f"{output} (or --overwrite)")
    bad = [one for shard in shards for one in _listed(rejects_of(shard.path))]
    scratch = output.with_name(output.name + ".merging")
    with open(scratch, "wb") as file:
        for shard, receipt in zip(shards, receipts, strict=True):
            _copy(shard, receipt, file.write, header=shard.number == 1)
        file.flush()
        os.fsync(file.fileno())
    write_rejects(rejects_of(output), bad)
    os.replace(scratch, output)
    _sync_folder(output.parent)
    if clean:
        discard(output)
    return Summary(encoded=sum(r.count for r in receipts), seconds=sum(r.seconds for r in receipts), bad=bad)


def _all_shards(output: Path) -> list[Shard]:
    found = sorted(totals(output))
    if not found:
        raise ShardError(f"{folder_of(output)} holds no shards; make them: unitkit encode … -o {output} --shard 1/10")
    if len(found) > 1:
        raise ShardError(f"{folder_of(output)} holds shards of {' and of '.join(map(str, found))}; remove one kind")
    shards = [Shard(output, number, found[0]) for number in range(1, found[0] + 1)]
    if missing := [shard for shard in shards if not shard.receipt.exists()]:
        names = ", ".join(f"{shard.number}/{shard.total}" for shard in missing[:20])
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise ShardError(f"{len(missing)} of {found[0]} shards are not done: {names}{more}; run {missing[0].command}")
    return shards


def _refuse_mixture(shards: Sequence[Shard], receipts: Sequence[Receipt]) -> None:
    first = receipts[0]
    for shard, receipt in zip(shards, receipts, strict=True):
        for what, mine, theirs in (
            ("tokenizer", first.tokenizer, receipt.tokenizer),
            ("manifest", first.manifest, receipt.manifest),
        ):
            if mine != theirs:
                raise ShardError(
                    f"{shard.receipt}: made with {what} {theirs[:12]!r}, but {shards[0].receipt} with {mine[:12]!r}; "
                    f"make those of the wrong one anew with --overwrite"
                )


def _copy(shard: Shard, receipt: Receipt, write: Callable[[bytes], object], *, header: bool) -> None:
    """Rows of a shard, its checksum taken once more on what is copied; the header only of the first."""
    sha = hashlib.sha256()
    with open(shard.path, "rb") as file:
        first = file.readline()
        sha.update(first)
        if header:
            write(first)
        while block := file.read(BLOCK):
            sha.update(block)
            write(block)
    if sha.hexdigest() != receipt.sha256:
        raise ShardError(f"{shard.path} changed while it was merged; {_mend(shard)}")


def discard(output: Path) -> None:
    """Remove the shards of a unit file: gone under their name in one step, so a kill leaves all of them or none."""
    folder, trash = folder_of(output), output.with_name(output.name + ".shards.done")
    shutil.rmtree(trash, ignore_errors=True)
    if folder.is_dir():
        os.rename(folder, trash)
        shutil.rmtree(trash)


# ---------------------------------------------------------------------------------------------------------- files


def digest(utterances: Sequence[Utterance]) -> str:
    """Sha256 of what decides the units of a manifest: ids, paths, starts and durations, in order."""
    sha = hashlib.sha256()
    for u in utterances:
        sha.update(json.dumps([u.id, u.audio, u.start, u.duration]).encode() + b"\n")
    return sha.hexdigest()


def _sha256(path: Path) -> str:
    """Of a file; "" where there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _rejects(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)


def _listed(path: Path) -> list[tuple[Utterance, str]]:
    return [(Utterance(row["id"], row["audio"]), row["reason"]) for row in _rejects(path)]


def _read_rejects(path: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in _rejects(path)}


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut, where the system can (not Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

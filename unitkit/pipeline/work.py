"""Many recordings made into a directory: what is done, what is kept of an earlier run, what is bad."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

import numpy as np

from unitkit import audio
from unitkit.encode import rejects_of, write_rejects
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.pipeline.speak import file_name, same_settings
from unitkit.units import Units, UnitsHeader, read_units, write_units

Part: TypeAlias = tuple[str | float | None, ...]


@dataclass(frozen=True)
class Step:
    """One recording done: what was said (`units` at frame level), `kept` from an earlier run, or why it is `bad`.

    `reference` is the other recording that took part, if there was one.
    """

    source: Utterance
    units: Units | None = None
    text: str | None = None
    kept: bool = False
    bad: str | None = None
    reference: Utterance | None = None


@dataclass
class Done:
    """What one call did: recordings `made` now or `kept` from before, and the bad ones with the reason."""

    made: int = 0
    kept: int = 0
    bad: list[tuple[Utterance, str]] = field(default_factory=list)
    seconds: float = 0.0  # of speech made now

    def count(self, step: Step) -> None:
        """Counts a step in."""
        if step.bad is not None:
            self.bad.append((step.source, step.bad))
        elif step.units is not None:
            self.kept += step.kept
            self.made += not step.kept
            self.seconds += 0.0 if step.kept else step.units.duration


def part(utterance: Utterance) -> Part:
    """Which samples an utterance is, and whose; its duration only counts where it cuts."""
    cut = utterance.duration if utterance.start is not None else None
    return os.path.realpath(utterance.audio), utterance.start, cut, utterance.speaker


def named(utterance: Utterance, error: Exception) -> str:
    """The error, with the recording's name in it."""
    return str(error) if utterance.audio in str(error) else f"{utterance.audio}: {error}"


class Log:
    """What `out` holds: rows of finished files, and those that an interrupted run noted in `.partial`.

    `settings` say all that changes what is made; `row` gives a step's row of the manifest, without its recording;
    `part` says what makes a recording the same one.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, object],
        *,
        header: UnitsHeader,
        row: Callable[[Step], Utterance],
        part: Callable[[Utterance], Part] = part,
    ) -> None:
        self.out, self.header, self._row, self._part = out, header, row, part
        self.partial = out / "manifest.jsonl.partial"
        files = ("manifest.jsonl", "source.jsonl", "units.jsonl", "reference.jsonl")
        if not same_settings(out, settings, files=files):
            self.partial.unlink(missing_ok=True)
            (out / "manifest.jsonl").unlink(missing_ok=True)
        self._rows = {step.source.id: step for step in (*self._finished(), *self._noted())}
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self._file = open(self.partial, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def path(self, utterance: Utterance) -> Path:
        """Where the wav of an utterance stands."""
        return self.out / "wav" / f"{file_name(utterance.id)}.wav"

    def kept(self, utterance: Utterance, reference: Utterance | None = None) -> Step | None:
        """What was made of the same part of the same files, unless one has changed since."""
        row, wav = self._rows.get(utterance.id), self.path(utterance)
        if row is None or not wav.exists():
            return None
        for one, before in ((utterance, row.source), (reference, row.reference)):
            if (one is None) != (before is None):
                return None
            if one is not None and before is not None and not self._same(one, before, wav):
                return None
        return replace(row, source=utterance, reference=reference, kept=True)

    def _same(self, one: Utterance, before: Utterance, wav: Path) -> bool:
        if self._part(one) != self._part(before) or not os.path.exists(one.audio):
            return False
        return os.path.getmtime(one.audio) <= wav.stat().st_mtime

    def add(self, step: Step, wav: np.ndarray, rate: int) -> Step:
        """Write the wav, then note what it is."""
        assert step.units is not None and self._file is not None
        audio.write(self.path(step.source), wav, rate)
        row: dict[str, Any] = {"source": asdict(step.source), "units": step.units.ids.tolist(), "text": step.text}
        if step.reference is not None:
            row["reference"] = asdict(step.reference)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        return step

    def finish(self, steps: Sequence[Step], bad: Sequence[tuple[Utterance, str]]) -> None:
        """Write the files of the directory; the manifest last, for with it all is done."""
        write_rejects(rejects_of(self.out / "manifest.jsonl"), bad)
        write_units(self.out / "units.jsonl", self.header, (s.units for s in steps if s.units is not None))
        write_manifest(self.out / "source.jsonl", (s.source for s in steps))
        references = [replace(s.reference, id=s.source.id) for s in steps if s.reference is not None]
        if references:
            write_manifest(self.out / "reference.jsonl", references)
        write_manifest(self.out / "manifest.jsonl", (self._made(s) for s in steps))
        self.partial.unlink()

    def _made(self, step: Step) -> Utterance:
        seconds = step.units.duration if step.units is not None else 0.0
        return replace(self._row(step), audio=str(self.path(step.source)), duration=seconds)

    def _finished(self) -> Iterator[Step]:
        names = [self.out / f"{name}.jsonl" for name in ("manifest", "source", "units")]
        if not all(path.exists() for path in names):
            return
        texts = {row.id: row.text for row in read_manifest(names[0])}
        units = {one.id: one for one in read_units(names[2], tokenizer=self.header.tokenizer)}
        beside = self.out / "reference.jsonl"
        references = {row.id: row for row in read_manifest(beside)} if beside.exists() else {}
        for source in read_manifest(names[1]):
            if source.id in texts and source.id in units:
                found = references.get(source.id)
                yield Step(source, units[source.id], texts[source.id], reference=found)

    def _noted(self) -> Iterator[Step]:
        if not self.partial.exists():
            return
        with open(self.partial, "r+b") as file:
            whole = file.read().rpartition(b"\n")[0]
            file.truncate(len(whole) + 1 if whole else 0)  # the last line may be torn
        for line in whole.splitlines():
            row = json.loads(line)
            source, other = Utterance(**row["source"]), row.get("reference")
            units = self.header.units(row["units"], source.id)
            yield Step(source, units, row["text"], reference=Utterance(**other) if other else None)


def work(
    utterances: Sequence[Utterance],
    steps: Iterator[Step],
    log: Log,
    on_progress: Callable[[Step], None] | None = None,
) -> Done:
    """Goes through the steps, however they are ordered, and writes the directory's files in the utterances' order."""
    done, rows = Done(), {}
    for step in steps:
        done.count(step)
        if step.units is not None:
            rows[step.source.id] = step
        if on_progress:
            on_progress(step)
    reasons = {u.id: why for u, why in done.bad}
    done.bad = [(u, reasons[u.id]) for u in utterances if u.id in reasons]
    log.finish([rows[u.id] for u in utterances if u.id in rows], done.bad)
    return done

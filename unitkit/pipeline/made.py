"""Directories of speech made utterance by utterance: what is finished is kept, what was interrupted goes on."""

import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Self

import numpy as np

from unitkit import audio
from unitkit.encode import rejects_of, write_rejects
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.pipeline.speak import file_name, same_settings
from unitkit.units import Units, UnitsHeader, read_units, write_units


@dataclass(frozen=True)
class Step:
    """One utterance done: what was said (`units` at frame level), `kept` from an earlier run, or why it is `bad`."""

    source: Utterance
    units: Units | None = None
    text: str | None = None
    kept: bool = False
    bad: str | None = None


@dataclass
class Made:
    """What one call did: utterances `made` now or `kept` from before, and the bad ones with the reason."""

    made: int = 0
    kept: int = 0
    bad: list[tuple[Utterance, str]] = field(default_factory=list)
    seconds: float = 0.0  # of speech made now

    def of(self, steps: Iterator[Step], given: Sequence[Utterance], tell: Callable[[Step], None] | None) -> list[Step]:
        """Counts what is done; the good steps come back in the order of what was `given`, and so do the bad ones."""
        done: dict[str, Step] = {}
        for step in steps:
            done[step.source.id] = step
            if step.units is not None:
                self.kept += step.kept
                self.made += not step.kept
                self.seconds += 0.0 if step.kept else step.units.duration
            if tell:
                tell(step)
        ordered = [done[one.id] for one in given if one.id in done]
        self.bad += [(step.source, step.bad) for step in ordered if step.bad is not None]
        return [step for step in ordered if step.bad is None]


class Folder:
    """A directory with manifest.jsonl, wavs, units.jsonl and the sources' source.jsonl; `.partial` notes what is done.

    Hold the lock of its manifest.jsonl while it is open.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, object],
        header: UnitsHeader,
        *,
        same: Callable[[Utterance], Hashable],
        row: Callable[[Step], Utterance],
    ) -> None:
        """What was made with other `settings` is removed.

        An utterance is made anew where what `same` says of it has changed; `row` is its line of the manifest, to which
        the wav and its seconds are added.
        """
        self.out, self.header, self.same, self.row = out, header, same, row
        self.partial = out / "manifest.jsonl.partial"
        if not same_settings(out, dict(settings), files=("manifest.jsonl", "source.jsonl", "units.jsonl")):
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

    def kept(self, utterance: Utterance) -> Step | None:
        """What was made of the same utterance before."""
        row = self._rows.get(utterance.id)
        if row is None or self.same(row.source) != self.same(utterance) or not self.path(utterance).exists():
            return None
        return replace(row, source=utterance, kept=True)

    def add(self, utterance: Utterance, wav: np.ndarray, rate: int, *, units: Units, text: str | None = None) -> Step:
        """Write the wav (samples,) at `rate` Hz, then note what it is: `units` at frame level, and the text said."""
        audio.write(self.path(utterance), wav, rate)
        row = {"source": asdict(utterance), "units": units.ids.tolist(), "text": text}
        assert self._file is not None
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        return Step(utterance, units, text)

    def finish(self, steps: Sequence[Step], bad: Sequence[tuple[Utterance, str]]) -> None:
        """Write the files of the directory; the manifest last, for with it all is done."""
        write_rejects(rejects_of(self.out / "manifest.jsonl"), bad)
        write_units(self.out / "units.jsonl", self.header, (s.units for s in steps if s.units is not None))
        write_manifest(self.out / "source.jsonl", (s.source for s in steps))
        write_manifest(self.out / "manifest.jsonl", (self._row(s) for s in steps))
        self.partial.unlink()

    def _row(self, step: Step) -> Utterance:
        seconds = step.units.duration if step.units is not None else 0.0
        return replace(self.row(step), audio=str(self.path(step.source)), start=None, duration=seconds)

    def _finished(self) -> Iterator[Step]:
        names = [self.out / f"{name}.jsonl" for name in ("manifest", "source", "units")]
        if not all(path.exists() for path in names):
            return
        texts = {row.id: row.text for row in read_manifest(names[0])}
        units = {one.id: one for one in read_units(names[2], tokenizer=self.header.tokenizer)}
        for source in read_manifest(names[1]):
            if source.id in texts and source.id in units:
                yield Step(source, units[source.id], texts[source.id])

    def _noted(self) -> Iterator[Step]:
        if not self.partial.exists():
            return
        with open(self.partial, "r+b") as file:
            whole = file.read().rpartition(b"\n")[0]
            file.truncate(len(whole) + 1 if whole else 0)  # the last line may be torn
        for line in whole.splitlines():
            row = json.loads(line)
            source = Utterance(**row["source"])
            yield Step(source, self.header.units(row["units"], source.id), row["text"])


def unchanged(utterance: Utterance, wav: Path) -> bool:
    """Whether a recording is still there and older than the wav that was made of it."""
    return os.path.exists(utterance.audio) and os.path.getmtime(utterance.audio) <= wav.stat().st_mtime

"""Many recordings or units written down: a manifest with their texts, which an interrupted call goes on with."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Self

from unitkit.encode import locked, refuse_duplicates, rejects_of, write_rejects
from unitkit.manifest import Utterance, atomic_text, read_manifest, write_manifest
from unitkit.pipeline.given import Heard, check_sizes
from unitkit.pipeline.recognizer import BATCH, Recognizer, Transcript
from unitkit.pipeline.work import named, noted_rows, part
from unitkit.units import Units, read_units


@dataclass(frozen=True)
class Source:
    """What is to be written down: an utterance, and its units and their file where they stand for its recording."""

    utterance: Utterance
    units: Units | None = None
    units_file: str = ""

    @property
    def file(self) -> str:
        """Where it comes from."""
        return self.units_file or self.utterance.audio


@dataclass(frozen=True)
class Written:
    """One source done: its row with the text, `kept` from an earlier run, or why it is `bad`."""

    source: Source
    row: Utterance | None = None
    kept: bool = False
    bad: str | None = None


@dataclass
class Transcribed:
    """What one call did: texts `made` now or `kept` from before, and the bad sources with the reason."""

    made: int = 0
    kept: int = 0
    bad: list[tuple[Utterance, str]] = field(default_factory=list)
    rows: list[Utterance] = field(default_factory=list)


def sources_of_units(path: str | Path, *, like: Sequence[Utterance] = ()) -> list[Source]:
    """The utterances of a unit file; rows of `like` lend their recordings, speakers and languages by id.

    Without such a row the unit file itself stands for the recording.
    """
    rows = {row.id: row for row in like}
    found = []
    for one in read_units(path):
        row = rows.get(one.id, Utterance(one.id, os.fspath(path)))
        found.append(Source(replace(row, duration=row.duration or round(one.duration, 3)), one, os.fspath(path)))
    return found


def transcribe(
    recognizer: Recognizer,
    sources: Sequence[Source | Utterance],
    out: str | Path | None = None,
    *,
    beam: int = 10,
    ctc_weight: float | None = None,
    lang: str | None = None,
    longest: float | None = None,
    batch: int = BATCH,
    on_progress: Callable[[Written], None] | None = None,
) -> Transcribed:
    """Write sources down into the manifest `out`, in their order: the same rows with the texts that the model wrote.

    Interrupted work goes on; what was made of the same recording with the same settings is kept, and a manifest that
    something else made is never written over.  Bad sources are left out, and listed in the result and in
    `<out>.rejects.jsonl`.  Without `out` the texts are in the result only.
    """
    check_sizes(beam, batch)
    given = [one if isinstance(one, Source) else Source(one) for one in sources]
    refuse_duplicates([one.utterance for one in given])
    for one in given:
        if one.units is not None:
            recognizer.check(one.units)
    how = _How(recognizer, beam, ctc_weight, lang, longest, batch)
    if out is None:
        return _gathered(how.steps(given, None), given, on_progress)
    with locked(Path(out)), _Log(Path(out), how.settings()) as log:
        done = _gathered(how.steps(given, log), given, on_progress)
        log.finish(done)
    return done


def _gathered(
    steps: Iterator[Written], given: Sequence[Source], on_progress: Callable[[Written], None] | None
) -> Transcribed:
    """What the steps did, rows and bad sources in the order given."""
    summary, rows, reasons = Transcribed(), dict[str, Utterance](), dict[str, str]()
    for step in steps:
        if step.row is not None:
            rows[step.row.id] = step.row
            summary.kept += step.kept
            summary.made += not step.kept
        elif step.bad is not None:
            reasons[step.source.utterance.id] = step.bad
        if on_progress:
            on_progress(step)
    utterances = [one.utterance for one in given]
    summary.bad = [(u, reasons[u.id]) for u in utterances if u.id in reasons]
    summary.rows = [rows[u.id] for u in utterances if u.id in rows]
    return summary


@dataclass(frozen=True)
class _How:
    """A recogniser and how it is to search."""

    recognizer: Recognizer
    beam: int
    ctc_weight: float | None
    lang: str | None
    longest: float | None
    batch: int

    def settings(self) -> dict[str, object]:
        """All that changes a text."""
        search = {"beam": self.beam, "ctc_weight": self.ctc_weight, "lang": self.lang, "longest": self.longest}
        return self.recognizer.settings() | search

    def steps(self, sources: Sequence[Source], log: "_Log | None") -> Iterator[Written]:
        """Sources as they are done: those there already, then the others from long to short, a batch at a time."""
        left = []
        for source in sources:
            row = log.kept(source) if log is not None else None
            if row is None:
                left.append(source)
            else:
                yield Written(source, row, kept=True)
        if self.batch > 1:
            left.sort(key=lambda one: -(one.utterance.duration or 0.0))
        for start in range(0, len(left), self.batch):
            yield from self._group(left[start : start + self.batch], log)

    def _group(self, group: Sequence[Source], log: "_Log | None") -> Iterator[Written]:
        heard: list[list[Heard]] = []
        good: list[Source] = []
        for source in group:
            try:
                said = source.utterance if source.units is None else source.units
                heard.append(self.recognizer.hear(said, longest=self.longest))
                good.append(source)
            except (ValueError, OSError) as error:
                yield Written(source, bad=named(source.utterance, error))
        found = self.recognizer.write(
            heard, beam=self.beam, ctc_weight=self.ctc_weight, lang=self.lang, batch=self.batch
        )
        for source, one in zip(good, found, strict=True):
            row = _row(source.utterance, one)
            if log is not None:
                log.add(source, row)
            yield Written(source, row)


def _row(utterance: Utterance, found: Transcript) -> Utterance:
    return replace(utterance, text=found.text, lang=utterance.lang or found.lang)


class _Log:
    """What `out` has, and what an interrupted run noted in `<out>.partial`; how it was made stands beside it."""

    def __init__(self, out: Path, settings: dict[str, object]) -> None:
        self.out, self.partial = out, out.with_name(out.name + ".partial")
        self.note = out.with_name(out.name.removesuffix(".jsonl") + ".transcription.json")
        same = self.note.exists() and json.loads(self.note.read_text()) == settings
        if not self.note.exists() and out.exists():
            raise ValueError(f"{out} was not made by transcribe and would be overwritten: give a file of its own")
        if not same:
            for stale in (self.partial, out):
                stale.unlink(missing_ok=True)
            with atomic_text(self.note) as file:
                file.write(json.dumps(settings, indent=1) + "\n")
        self._rows = {row.id: (row, when) for row, when in (*self._finished(), *self._noted())}
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self._file = open(self.partial, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def kept(self, source: Source) -> Utterance | None:
        """The row made of the same part of the same file, unless the file has changed since."""
        row, when = self._rows.get(source.utterance.id, (None, 0.0))
        if row is None or part(row)[:3] != part(source.utterance)[:3] or _changed(source.file) > when:
            return None  # whoever speaks
        return replace(source.utterance, text=row.text, lang=source.utterance.lang or row.lang)

    def add(self, source: Source, row: Utterance) -> None:
        """Note a text."""
        assert self._file is not None
        self._file.write(json.dumps({"when": _changed(source.file), "row": asdict(row)}) + "\n")
        self._file.flush()

    def finish(self, done: Transcribed) -> None:
        """Write the manifest, with which all is done."""
        write_rejects(rejects_of(self.out), done.bad)
        write_manifest(self.out, done.rows)
        self.partial.unlink()

    def _finished(self) -> Iterator[tuple[Utterance, float]]:
        if self.out.exists():
            when = self.out.stat().st_mtime
            yield from ((row, when) for row in read_manifest(self.out))

    def _noted(self) -> Iterator[tuple[Utterance, float]]:
        for row in noted_rows(self.partial):
            yield Utterance(**row["row"]), row["when"]


def _changed(path: str) -> float:
    """When a file was last written; a file that is not there counts as new, so that its lack is found out."""
    return os.path.getmtime(path) if os.path.exists(path) else math.inf

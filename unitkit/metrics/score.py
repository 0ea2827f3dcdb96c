"""Scores of syntheses against the original recordings, each beside the originals' own score and a control's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics.base import Measure, Unavailable
from unitkit.metrics.families import FAMILIES, TRANSLATION_FAMILIES, Context, Family, Side
from unitkit.metrics.recognise import Recognizer
from unitkit.metrics.rows import (
    METRICS,
    TRANSLATION_METRICS,
    ScoreError,
    ScoreRow,
    markdown,
    read_scores,
    table,
    write_scores,
)
from unitkit.metrics.text import count_words

__all__ = [
    "METRICS",
    "TRANSLATION_METRICS",
    "ScoreError",
    "ScoreRow",
    "System",
    "markdown",
    "read_scores",
    "score",
    "score_directories",
    "score_systems",
    "table",
    "write_scores",
]

PathLike = str | Path
Outcome = dict[str, Measure] | str  # measures by metric, or why there are none


@dataclass(frozen=True)
class System:
    """A synthesis manifest to score, the control that belongs to it, and unit files of both, encoded again."""

    name: str
    manifest: PathLike
    control: PathLike | None = None
    units: PathLike | None = None
    control_units: PathLike | None = None


def score(
    synthesis: PathLike,
    reference: PathLike,
    *,
    metrics: Sequence[str] | str = "all",
    control: PathLike | None = None,
    recognizer: Recognizer | PathLike | None = "auto",
    lang: str | None = None,
    units: PathLike | None = None,
    ref_units: PathLike | None = None,
    control_units: PathLike | None = None,
    system: str = "system",
    split: str = "test",
    partial: bool = False,
    min_words: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Score one synthesis manifest against the manifest of the originals, joined by id; see `score_systems`."""
    return score_systems(
        [System(system, synthesis, control=control, units=units, control_units=control_units)],
        reference,
        metrics=metrics,
        recognizer=recognizer,
        lang=lang,
        ref_units=ref_units,
        split=split,
        partial=partial,
        min_words=min_words,
        progress=progress,
    )


def score_systems(
    systems: Sequence[System | tuple[str, PathLike]],
    reference: PathLike,
    *,
    metrics: Sequence[str] | str = "all",
    recognizer: Recognizer | PathLike | None = "auto",
    lang: str | None = None,
    ref_units: PathLike | None = None,
    split: str = "test",
    partial: bool = False,
    min_words: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Score several syntheses; originals and shared controls are transcribed, embedded and tracked once.

    A row a system and metric, in the order given.  A metric that cannot be computed here gives a row without a value
    and a note that says why.  Every id must be on both sides; with `partial` the ids that a synthesis lacks are left
    out, and named in the note.  `lang` is for utterances whose manifest names none.  With `min_words`, only utterances
    whose reference text has so many words are scored, and signatures say so.
    """
    wanted = check_metrics(metrics)
    originals = {utterance.id: utterance for utterance in read_manifest(reference)}
    if not originals:
        raise ScoreError(f"{reference}: no utterances to score against")
    context = Context(recognizer=recognizer, lang=lang)
    bench = _Bench(context, originals, _path(ref_units), partial, progress, _short(context, originals, min_words))
    if len(bench.short) == len(originals):
        raise ScoreError(f"{reference}: no utterance has a text of at least {min_words} words; take a smaller number")
    rows: list[ScoreRow] = []
    for item in systems:
        rows += bench.rows(item if isinstance(item, System) else System(*item), wanted, split)
    return [_marked(row, min_words) for row in rows] if min_words else rows


def _short(context: Context, originals: dict[str, Utterance], min_words: int) -> frozenset[str]:
    """Ids of the utterances with fewer words than wanted."""
    if min_words < 0:
        raise ScoreError(f"min_words {min_words}: a number of words from 0 is needed")
    return frozenset(
        key for key, one in originals.items() if count_words(one.text or "", lang=context.language(one)) < min_words
    )


def _marked(row: ScoreRow, min_words: int) -> ScoreRow:
    """The row with the least number of words in its signature, before the version."""
    head, found, version = row.signature.rpartition("|v:")
    return replace(row, signature=f"{head}|min-words:{min_words}|v:{version}") if found else row


def score_directories(
    systems: Sequence[PathLike],
    reference: PathLike,
    *,
    control: PathLike | None = None,
    reference_units: PathLike | None = None,
    metrics: Sequence[str] | str = "all",
    recognizer: Recognizer | PathLike | None = "auto",
    lang: str | None = None,
    split: str = "test",
    partial: bool = False,
    min_words: int = 0,
    out: PathLike | None = None,
    note: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Score synthesis directories (`manifest.jsonl`, and `units.jsonl` if encoded again), named after the folders.

    A manifest of its own, such as `unitkit transcribe` writes, is named after the file.
    `metrics` may be comma-separated; rows are also written to `out`; `note` gets a line as each piece of work starts.
    """
    folders = [Path(folder) for folder in systems]
    names = [folder.resolve().name.removesuffix(".jsonl") for folder in folders]
    if len(set(names)) < len(names):
        raise ScoreError(f"two of the directories have one name: {', '.join(map(str, folders))}; rename one")
    beside = Path(control) if control is not None else None
    rows = score_systems(
        [
            System(
                name,
                _manifest_of(folder),
                control=_manifest_of(beside) if beside else None,
                units=_if_there(folder / "units.jsonl"),
                control_units=_if_there(beside / "units.jsonl") if beside else None,
            )
            for name, folder in zip(names, folders, strict=True)
        ],
        reference,
        metrics=metrics,
        recognizer=recognizer,
        lang=lang,
        ref_units=reference_units,
        split=split,
        partial=partial,
        min_words=min_words,
        progress=note,
    )
    if out is not None:
        write_scores(out, rows)
    return rows


def check_metrics(metrics: Sequence[str] | str) -> list[str]:
    """Metric names from a list or a comma-separated text; "all" is every one of a resynthesis."""
    names = [name.strip() for name in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
    if names == ["all"]:
        return list(METRICS)
    known = [*METRICS, *TRANSLATION_METRICS]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ScoreError(f"unknown metric {', '.join(unknown) or '(none given)'}; known: all, {', '.join(known)}")
    return list(dict.fromkeys(names))


@dataclass
class _Bench:
    """One call's originals and what was measured so far."""

    context: Context
    originals: dict[str, Utterance]
    ref_units: Path | None
    partial: bool
    progress: Callable[[str], None] | None
    short: frozenset[str] = frozenset()  # ids that are known, and passed over

    def __post_init__(self) -> None:
        self.done: dict[tuple[object, ...], Outcome] = {}

    def rows(self, system: System, wanted: Sequence[str], split: str) -> list[ScoreRow]:
        """One row a wanted metric."""
        side, missing = self.side(system.manifest, system.units)
        control = None
        if system.control is not None:
            control, lacking = self.side(system.control, system.control_units, ids=[pair[1].id for pair in side.pairs])
            missing = missing or lacking
        itself = Side(tuple((original, original) for _, original in side.pairs))
        gathered: dict[str, tuple[Outcome, Outcome, Outcome]] = {}
        for family in (*FAMILIES, *TRANSLATION_FAMILIES):
            if any(metric in wanted for metric in family.metrics):
                outcomes = (
                    self.measure(family, side, of=system.name),
                    self.measure(family, itself, of="originals", originals=True),
                    self.measure(family, control, of=f"control of {system.name}") if control else "no control",
                )
                gathered |= dict.fromkeys(family.metrics, outcomes)
        return [_row(system.name, split, metric, gathered[metric], missing) for metric in wanted]

    def side(
        self, manifest: PathLike, units: PathLike | None, *, ids: Sequence[str] | None = None
    ) -> tuple[Side, str | None]:
        """Pairs joined by id, and a note on those left out."""
        found = {utterance.id: utterance for utterance in read_manifest(manifest)}
        expected = [key for key in self.originals if key not in self.short] if ids is None else list(ids)
        unknown = [key for key in found if key not in self.originals]
        missing = [key for key in expected if key not in found]
        shared = [key for key in expected if key in found]
        if unknown or not shared or (missing and not self.partial):
            raise ScoreError(
                f"{manifest} does not match the originals: {_named(missing)} missing from it, {_named(unknown)} "
                "unknown to the reference manifest; give the matching reference, or score what is there with partial"
            )
        pairs = tuple((found[key], self.originals[key]) for key in shared)
        note = f"scored without {_named(missing)} that {manifest} lacks" if missing else None
        return Side(pairs, units=_path(units), reference_units=self.ref_units), note

    def measure(self, family: Family, side: Side, *, of: str, originals: bool = False) -> Outcome:
        """The family's measures of one side, computed once; or why it has none."""
        how = family.originals if originals else family.measure
        if how is None:
            return "the originals have no such score"
        key = (family.metrics, originals, side)
        if key not in self.done:
            if self.progress:
                self.progress(f"{', '.join(family.metrics)} of {of}: {len(side.pairs)} recordings")
            try:
                self.done[key] = how(self.context, side)
            except Unavailable as reason:
                self.done[key] = str(reason)
        return self.done[key]


def _row(
    system: str, split: str, metric: str, outcomes: tuple[Outcome, Outcome, Outcome], missing: str | None
) -> ScoreRow:
    own, originals, control = outcomes
    measure = own.get(metric) if isinstance(own, dict) else None
    if measure is None:
        why = own if isinstance(own, str) else "nothing to measure: no frame is voiced in both recordings"
        return ScoreRow(system, split, metric, None, 0, "", note=f"left out: {why}")
    return ScoreRow(
        system,
        split,
        metric,
        measure.value,
        measure.n,
        measure.signature,
        control=_value(control, metric),
        reference=_value(originals, metric),
        low=measure.low,
        high=measure.high,
        note=missing,
    )


def _value(outcome: Outcome, metric: str) -> float | None:
    return outcome[metric].value if isinstance(outcome, dict) and metric in outcome else None


def _named(ids: Sequence[str]) -> str:
    """How many, and the first five by name."""
    return f"{len(ids)} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})" if ids else "0"


def _path(path: PathLike | None) -> Path | None:
    return Path(path) if path is not None else None


def _manifest_of(place: Path) -> Path:
    return place if place.suffix == ".jsonl" else place / "manifest.jsonl"


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None

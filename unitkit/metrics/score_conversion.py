"""Scores of conversions: what moved towards the reference, and what stayed with the source.

Each score stands beside the same of the source as it was ("original") and of the reference, or of another recording of
its speaker, in place of what was made ("control").  How far something moved is counted from the sources, or from a
baseline: conversions of the same pairs that take nothing from the reference.  What the model itself does is left out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics import conversion, speaker
from unitkit.metrics.base import Measure, Unavailable, mean, signature
from unitkit.metrics.families import RATE, Context, Side, recognition
from unitkit.metrics.rows import CONVERSION_METRICS, ScoreError, ScoreRow, write_scores
from unitkit.units import Units, read_header, read_units

PathLike = str | Path
Pairs = list[tuple[Utterance, Utterance]]
T = TypeVar("T")


@dataclass
class Trial:
    """One directory of conversions with what it was made of; units are those of the pairs' ids."""

    folder: Path
    context: Context
    source_units: dict[str, Units] | None = None
    reference_units: dict[str, Units] | None = None
    baseline: "Trial | None" = None
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        made, source, reference = (
            {row.id: row for row in read_manifest(_there(self.folder / f"{name}.jsonl"))}
            for name in ("manifest", "source", "reference")
        )
        self.ids = [name for name in made if name in source and name in reference]
        if not self.ids:
            raise ScoreError(f"{self.folder}: no row of its manifest.jsonl is in its source.jsonl and reference.jsonl")
        self.made, self.source, self.reference = (
            [rows[name] for name in self.ids] for rows in (made, source, reference)
        )

    @property
    def counted_from(self) -> str:
        """Where what moved began, for signatures."""
        return self.baseline.folder.resolve().name if self.baseline else "source"

    def began(self, of_made: Callable[["Trial"], list[T]], of_source: list[T]) -> list[T]:
        """For each pair what the baseline has in the place of what was made; without one, what the source has."""
        if self.baseline is None:
            return of_source
        found = dict(zip(self.baseline.ids, of_made(self.baseline), strict=True))
        if lacking := [name for name in self.ids if name not in found]:
            what = f"{len(lacking)} of the pairs of {self.folder}, such as {lacking[0]}"
            raise ScoreError(f"--baseline {self.baseline.folder} lacks {what}")
        return [found[name] for name in self.ids]

    @cached_property
    def peers(self) -> list[Utterance | None]:
        """Another recording of each reference's speaker, where there is one among the references."""
        found: list[Utterance | None] = []
        for i, one in enumerate(self.reference):
            later = (*self.reference[i + 1 :], *self.reference[:i])
            same = (o for o in later if o.speaker and o.speaker == one.speaker and _place(o) != _place(one))
            found.append(next(same, None))
        return found

    @cached_property
    def made_units(self) -> list[np.ndarray]:
        """Frame-level units as they were spoken."""
        return self._units({u.id: u for u in read_units(_there(self.folder / "units.jsonl"))}, "units.jsonl")

    @property
    def rate_hz(self) -> float:
        """Of the units."""
        return read_header(self.folder / "units.jsonl").rate_hz

    def units(self, side: str) -> list[np.ndarray]:
        """Frame-level units of "source" or "reference"."""
        given = self.source_units if side == "source" else self.reference_units
        if given is None:
            raise Unavailable(f"no units of the {side}s: encode them and give --{side}-units")
        return self._units(given, f"--{side}-units")

    def _units(self, given: dict[str, Units], what: str) -> list[np.ndarray]:
        if lacking := [name for name in self.ids if name not in given]:
            raise ScoreError(f"{self.folder}: {what} lacks {len(lacking)} of its ids, such as {lacking[0]}")
        made_by = read_header(self.folder / "units.jsonl").tokenizer
        if other := {given[name].tokenizer for name in self.ids} - {made_by}:
            raise ScoreError(f"{what}: units of tokenizer {other.pop()}, the conversions' are of {made_by}")
        return [given[name].ids for name in self.ids]


Outcome = Measure | str  # or why there is none
Three = tuple[Outcome, Outcome, Outcome]  # of what was made, of the source in its place, of the reference


def score_conversions(
    folders: Iterable[PathLike],
    *,
    source_units: PathLike | None = None,
    reference_units: PathLike | None = None,
    baseline: PathLike | None = None,
    metrics: Sequence[str] | str = "all",
    recognizer: PathLike | None = "auto",
    lang: str | None = None,
    split: str = "test",
    out: PathLike | None = None,
    note: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Score directories of `unitkit convert`, named after the folders; a row a folder and metric.

    Unit files hold the pairs' sources and references under their ids; without them tempo and durations are left out.
    `baseline`: conversions of the same pairs that take nothing from the reference; what moved is counted from them.
    """
    wanted, context = check_metrics(metrics), Context(recognizer=recognizer, lang=lang)
    sources, references = (
        {u.id: u for u in read_units(path)} if path else None for path in (source_units, reference_units)
    )
    start = Trial(Path(baseline), context, sources, references) if baseline else None
    rows = []
    for folder in map(Path, folders):
        trial = Trial(folder, context, sources, references, start)
        done: dict[str, Three] = {}
        for names, measure in FAMILIES:
            if set(names) & set(wanted):
                if note:
                    note(f"{', '.join(names)} of {folder}: {len(trial.ids)} recordings")
                done |= _measured(names, measure, trial)
        rows += [_row(folder.resolve().name, split, name, done[name]) for name in wanted]
    if out is not None:
        write_scores(out, rows)
    return rows


def check_metrics(metrics: Sequence[str] | str) -> list[str]:
    """Metric names from a list or a comma-separated text; "all" is every one."""
    names = [name.strip() for name in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
    if names == ["all"]:
        return list(CONVERSION_METRICS)
    if not names or (unknown := [name for name in names if name not in CONVERSION_METRICS]):
        found = ", ".join(unknown) if names else "(none given)"
        raise ScoreError(f"unknown metric {found}; known: all, {', '.join(CONVERSION_METRICS)}")
    return names


def _measured(names: Sequence[str], measure: Callable[[Trial], dict[str, Three]], trial: Trial) -> dict[str, Three]:
    try:
        return measure(trial)
    except Unavailable as reason:
        return dict.fromkeys(names, (str(reason),) * 3)


def _row(system: str, split: str, metric: str, outcomes: Three) -> ScoreRow:
    own, *beside = outcomes
    if not isinstance(own, Measure):
        return ScoreRow(system, split, metric, None, 0, "", note=f"left out: {own}")
    original, control = (one.value if isinstance(one, Measure) else None for one in beside)
    return ScoreRow(
        system,
        split,
        metric,
        own.value,
        own.n,
        own.signature,
        low=own.low,
        high=own.high,
        reference=original,
        control=control,
    )


def _there(path: Path) -> Path:
    if not path.exists():
        raise ScoreError(f"{path} is not there: score directories that `unitkit convert` made of a manifest or folder")
    return path


def _or_why(make: Callable[[], Measure]) -> Outcome:
    try:
        return make()
    except Unavailable as reason:
        return str(reason)


# ------------------------------------------------------------------------------------------------------- families


def _words(trial: Trial) -> dict[str, Three]:
    """Error rates against the sources' texts; the reference says other words, so it has none."""
    sides = [Side(tuple(zip(rows, trial.source, strict=True))) for rows in (trial.made, trial.source)]
    made, source = (recognition(trial.context, side) for side in sides)
    return {name: (made[name], source[name], "the reference says other words") for name in ("wer", "cer")}


def _voices(trial: Trial) -> dict[str, Three]:
    def alike(metric: str, rows: Sequence[Utterance | None], to: Sequence[Utterance]) -> Outcome:
        pairs = [(one, other) for one, other in zip(rows, to, strict=True) if one is not None]
        return _or_why(lambda: mean([_cosine(trial.context, *pair) for pair in pairs], name=_speaker_name(metric)))

    target, source = "speaker_target", "speaker_source"
    return {
        target: (
            alike(target, trial.made, trial.reference),
            alike(target, trial.source, trial.reference),
            alike(target, trial.peers, trial.reference),
        ),
        source: (
            alike(source, trial.made, trial.source),
            "the source is itself",
            alike(source, trial.reference, trial.source),
        ),
    }


def _speaker_name(metric: str) -> str:
    return speaker.speaker_signature("reference" if metric == "speaker_target" else "source")


def _cosine(context: Context, one: Utterance, other: Utterance) -> float:
    a, b = context.embed(one), context.embed(other)
    return 0.0 if a is None or b is None else speaker.similarity(a, b)


def _melody(trial: Trial) -> dict[str, Three]:
    """Distance of F0's mean and span to the reference's in semitones, and how far they went there."""
    made, began, source, reference, peers = (
        [conversion.pitch(trial.context.f0(one)) if one is not None else None for one in rows] for rows in _sides(trial)
    )
    scores: dict[str, Three] = {}
    for name, value in (("f0_mean", lambda p: p and p.mean), ("f0_span", lambda p: p and p.span)):
        columns = [[value(one) for one in side] for side in (made, began, source, reference, peers)]
        how = {"unit": "semitone", "f0": "swift-f0", "hop": "10ms"}
        scores |= _went(trial, name, columns, how)
    return scores


def _energy(trial: Trial) -> dict[str, Three]:
    """Distance of energy's span to the reference's in decibels, and how far it went there."""
    columns = [
        [conversion.energy_span(trial.context.wav(one), RATE) if one is not None else None for one in rows]
        for rows in _sides(trial)
    ]
    return _went(trial, "energy_span", columns, {"unit": "dB", "frame": "25ms", "depth": "40dB"})


def _sides(trial: Trial) -> tuple[Sequence[Utterance | None], ...]:
    """Recordings made, where they began, sources, references and the latter's peers, in the same order."""
    began = trial.began(lambda t: t.made, trial.source)
    return trial.made, began, trial.source, trial.reference, trial.peers


def _went(trial: Trial, name: str, columns: Sequence[Sequence[float | None]], how: dict[str, str]) -> dict[str, Three]:
    """How far off the reference something is, and how far it moved, from a column for each of `_sides`."""
    made, _, source, reference, peers = columns

    def apart(side: Sequence[float | None]) -> Outcome:
        both = [(a, b) for a, b in zip(side, reference, strict=True) if a is not None and b is not None]
        which = signature(name, {"to": "reference"} | how)
        return _or_why(lambda: mean([abs(a - b) for a, b in both], name=which))

    rows = [row for row in zip(*columns[:4], strict=True) if None not in row]
    which = signature(f"{name}_moved", {"unit": "%", "from": trial.counted_from, "share": "least-squares"} | how)
    return {name: (apart(made), apart(source), apart(peers)), f"{name}_moved": _moved(rows, which)}


def _moved(rows: Sequence[Sequence[float]], name: str) -> Three:
    """Rows: of what was made, of where it began, of the source, of the reference."""
    ends = "0 by definition", "100 by definition"
    if not rows:
        return "no pair has it throughout", *ends
    made, began, source, reference = (list(column) for column in zip(*rows, strict=True))
    return _or_why(lambda: conversion.moved(made, source, reference, began, name=name)), *ends


def _rhythm(trial: Trial) -> dict[str, Three]:
    """Of units as spoken: tempo, durations beside the source's, and how long each unit lasts beside the reference's."""
    made, source, reference = trial.made_units, trial.units("source"), trial.units("reference")
    began = trial.began(lambda t: t.made_units, source)
    tempos = [[conversion.tempo(one, trial.rate_hz) for one in side] for side in (made, began, source, reference)]
    each = {_place(u): one for u, one in zip(trial.source, source, strict=True)}  # a source may come twice
    how = {"unit": "%", "from": trial.counted_from, "share": "least-squares", "units": "as-spoken"}

    def beside(kind: str, pairs: Iterable[np.ndarray]) -> Outcome:
        which = signature(kind, {"r": "pearson", "of": "log-frames", "units": "as-spoken"})
        return _or_why(lambda: conversion.correlation(list(pairs), name=which))

    to_source = (
        beside("duration_source", map(conversion.shared_durations, made, source)),
        "the source is itself",
        beside("duration_source", conversion.usual_durations(list(each.values()))),
    )
    peers = _peers_units(trial, reference)
    to_reference = (
        beside("duration_reference", map(conversion.shared_profile, made, reference)),
        beside("duration_reference", map(conversion.shared_profile, source, reference)),
        beside("duration_reference", (conversion.shared_profile(a, b) for a, b in peers)),
    )
    return {
        "tempo_moved": _moved(list(zip(*tempos, strict=True)), signature("tempo_moved", how)),
        "duration_source": to_source,
        "duration_reference": to_reference,
    }


def _peers_units(trial: Trial, reference: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Units of another recording of each reference's speaker, and of the reference."""
    by_place = {_place(one): units for one, units in zip(trial.reference, reference, strict=True)}
    return [(by_place[_place(p)], r) for p, r in zip(trial.peers, reference, strict=True) if p is not None]


def _place(one: Utterance) -> tuple[str, float | None]:
    """Which recording it is: several may lie in one file."""
    return one.audio, one.start


FAMILIES: tuple[tuple[tuple[str, ...], Callable[[Trial], dict[str, Three]]], ...] = (
    (("wer", "cer"), _words),
    (("speaker_target", "speaker_source"), _voices),
    (("f0_mean", "f0_mean_moved", "f0_span", "f0_span_moved"), _melody),
    (("energy_span", "energy_span_moved"), _energy),
    (("tempo_moved", "duration_source", "duration_reference"), _rhythm),
)

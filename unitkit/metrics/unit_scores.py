"""Score rows of units against phone alignments and parallel sentences, each beside its control.

    pnmi, phone_purity, cluster_purity     `phones`       needs alignments     control: units shuffled over the corpus
    boundary_*                             `boundaries`   needs alignments     control: runs shuffled in the utterance
    abx_within, abx_across                 `abx`          needs both           control: units shuffled over the corpus
    ued                                    `ued`          needs a manifest     control: another sentence
    perplexity, used, top_share            `usage`
    bitrate, bitrate_entropy, bitrate_dedup              `unitkit.units.bitrate`
A metric that lacks what it needs gives a row without a value and a note.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics import abx, boundaries, phones, ued, usage
from unitkit.metrics.alignments import Alignments, read_alignments
from unitkit.metrics.base import Unavailable, signature
from unitkit.metrics.items import Item, alignment_items
from unitkit.metrics.rows import UNIT_METRICS, ScoreError, ScoreRow
from unitkit.units import Units, bitrate, read_units


@dataclass(frozen=True)
class AbxTask:
    """What ABX compares: kind of item, context condition, limits (None lifts one), seed of their sampling."""

    kind: str = "phoneme"
    context: str = "any"
    max_size_group: int | None = 10
    max_x_across: int | None = 5
    seed: int = 0
    libri_light: bool = False


@dataclass(frozen=True)
class Found:
    """What a metric gave: value, utterances (ABX: items) counted, signature, control, 95 % interval if there is one."""

    value: float
    n: int
    signature: str
    control: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Material:
    """Units by utterance id and what they are scored with."""

    units: Mapping[str, Units]
    alignments: Alignments = field(default_factory=dict)
    utterances: tuple[Utterance, ...] = ()
    items: tuple[Item, ...] = ()  # of an item file; else they are made from the alignments
    task: AbxTask = field(default_factory=AbxTask)
    silence: bool = True
    seed: int = 0

    @cached_property
    def speakers(self) -> dict[str, str | None]:
        """Speaker by utterance id."""
        return {utterance.id: utterance.speaker for utterance in self.utterances}

    @cached_property
    def shuffled(self) -> dict[str, Units]:
        """The units dealt out anew over all frames of the corpus: the control."""
        ids = np.concatenate([one.ids.reshape(len(one), one.codebooks) for one in self.units.values()])
        np.random.default_rng(self.seed).shuffle(ids)
        ends = np.cumsum([len(one) for one in self.units.values()])[:-1]
        return {
            id_: replace(one, ids=part)
            for (id_, one), part in zip(self.units.items(), np.split(ids, ends), strict=True)
        }

    def asked(self) -> list[Item]:
        """The items to compare, of utterances that have units."""
        if self.items:
            return [item for item in self.items if item.file in self.units]
        if not self.alignments:
            raise Unavailable("ABX needs phone alignments, or an item file")
        if not any(self.speakers.values()):
            raise Unavailable("ABX needs a manifest that names the speakers, or an item file")
        ours = {id_: rows for id_, rows in self.alignments.items() if id_ in self.units}
        return list(alignment_items(ours, self.speakers, kind=self.task.kind))


def score_units(
    units: str | Path | Mapping[str, Units],
    alignments: str | Path | Alignments | None = None,
    *,
    manifest: str | Path | Iterable[Utterance] | None = None,
    items: Sequence[Item] = (),
    metrics: Sequence[str] | str = "all",
    system: str = "units",
    split: str = "test",
    task: AbxTask | None = None,
    silence: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """A row a metric, in the order of `UNIT_METRICS`; `manifest` brings speakers and texts, joined by id.

    With a manifest only its utterances are scored.
    """
    wanted = check_metrics(metrics)
    utterances = _utterances(manifest)
    known = {utterance.id for utterance in utterances}
    given = units if isinstance(units, Mapping) else {one.id: one for one in read_units(units)}
    ours = {id_: one for id_, one in given.items() if manifest is None or id_ in known}
    if not ours:
        raise ScoreError("no units to score: the unit file is empty, or shares no id with the manifest")
    table = read_alignments(alignments) if isinstance(alignments, str | Path) else dict(alignments or {})
    material = Material(ours, table, utterances, tuple(items), task or AbxTask(), silence, seed)
    rows: list[ScoreRow] = []
    for names, measure in FAMILIES.items():
        if some := [name for name in names if name in wanted]:
            if progress:
                progress(f"{', '.join(some)}: {len(ours)} utterances")
            rows += _rows(material, some, measure, system=system, split=split)
    return sorted(rows, key=lambda row: wanted.index(row.metric))


def score_features(
    features: abx.Features,
    items: Iterable[Item],
    *,
    rate_hz: float,
    task: AbxTask | None = None,
    distance: str = "angular",
    system: str = "features",
    split: str = "test",
) -> list[ScoreRow]:
    """ABX rows, within and across speakers, of features (frames, dim) by utterance id; chance is 50 %."""
    task = task or AbxTask()
    segments = abx.cut(items, features, rate_hz=rate_hz, libri_light=task.libri_light)
    rows = []
    for mode in abx.MODES:
        try:
            found = _found(_abx(segments, mode, task, distance), control=None)
            rows.append(_row(f"abx_{mode}", found, system=system, split=split))
        except Unavailable as reason:
            rows.append(ScoreRow(system, split, f"abx_{mode}", None, 0, "", note=f"left out: {reason}"))
    return rows


def check_metrics(metrics: Sequence[str] | str) -> list[str]:
    """Names of unit metrics from a list or a comma-separated text; "all" is every one."""
    names = [name.strip() for name in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
    if names == ["all"]:
        return list(UNIT_METRICS)
    unknown = [name for name in names if name not in UNIT_METRICS]
    if unknown or not names:
        raise ScoreError(
            f"unknown metric {', '.join(unknown) or '(none given)'}; known: all, {', '.join(UNIT_METRICS)}"
        )
    return list(dict.fromkeys(names))


def _utterances(manifest: str | Path | Iterable[Utterance] | None) -> tuple[Utterance, ...]:
    if manifest is None:
        return ()
    return tuple(read_manifest(manifest) if isinstance(manifest, str | Path) else manifest)


def _rows(
    material: Material,
    names: Sequence[str],
    measure: Callable[[Material, Sequence[str]], dict[str, Found]],
    *,
    system: str,
    split: str,
) -> list[ScoreRow]:
    try:
        found = measure(material, names)
    except Unavailable as reason:
        return [ScoreRow(system, split, name, None, 0, "", note=f"left out: {reason}") for name in names]
    return [_row(name, found[name], system=system, split=split) for name in names]


def _row(metric: str, found: Found, *, system: str, split: str) -> ScoreRow:
    return ScoreRow(
        system, split, metric, found.value, found.n, found.signature,
        control=found.control, low=found.low, high=found.high,
    )  # fmt: skip


def _aligned(material: Material, names: Sequence[str]) -> dict[str, Found]:
    if not material.alignments:
        raise Unavailable("needs phone alignments")
    measured = (
        phones.phone_measures(material.units, material.alignments, silence=material.silence, seed=material.seed)
        if names[0] in phones.METRICS
        else boundaries.boundary_measures(material.units, material.alignments, seed=material.seed)
    )
    return {
        name: Found(one.value, one.n, one.signature, control, one.low, one.high)
        for name, (one, control) in measured.items()
    }


def _discriminated(material: Material, names: Sequence[str]) -> dict[str, Found]:
    mode = names[0].removeprefix("abx_")
    items, rate = material.asked(), next(iter(material.units.values())).rate_hz
    own, control = (
        abx.cut(items, lambda id_, of=of: of[id_].ids, rate_hz=rate, libri_light=material.task.libri_light)  # type: ignore[misc]
        for of in (material.units, material.shuffled)
    )
    chance = _abx(control, mode, material.task, "identical").value
    found = _found(_abx(own, mode, material.task, "identical"), control=chance)
    first = next(iter(material.units.values()))
    head, _, rest = found.signature.partition("|")
    return {names[0]: replace(found, signature=f"{head}|tokenizer:{first.tokenizer}|K:{first.n_units}|{rest}")}


def _abx(segments: abx.Segments, mode: str, task: AbxTask, distance: str) -> abx.Abx:
    return abx.abx(
        segments,
        speaker=mode,
        context=task.context,
        distance=distance,
        kind=task.kind,
        max_size_group=task.max_size_group,
        max_x_across=task.max_x_across,
        seed=task.seed,
    )


def _found(result: abx.Abx, *, control: float | None) -> Found:
    return Found(result.value, result.items, result.signature, control=control)


def _parallel(material: Material, names: Sequence[str]) -> dict[str, Found]:
    here = [utterance for utterance in material.utterances if utterance.id in material.units]
    if not here:
        raise Unavailable("needs a manifest with speakers and texts")
    pairs = ued.speaker_pairs(here)
    found = ued.unit_edit_distance(material.units, pairs)
    others = ued.control_pairs(pairs, material.speakers, seed=material.seed)
    control = ued.unit_edit_distance(material.units, others).value if others else None
    return {"ued": Found(found.value, found.n, found.signature, control, found.low, found.high)}


def _used(material: Material, names: Sequence[str]) -> dict[str, Found]:
    measured = usage.usage_measures(material.units)
    return {name: Found(one.value, one.n, one.signature, None, one.low, one.high) for name, one in measured.items()}


def _bits(material: Material, names: Sequence[str]) -> dict[str, Found]:
    rate, first = bitrate(material.units.values()), next(iter(material.units.values()))
    facts: dict[str, str | int] = {"tokenizer": first.tokenizer, "K": first.n_units, "codebooks": first.codebooks}
    values = {
        "bitrate": (rate.bits_per_second, "units*log2K/s"),
        "bitrate_entropy": (rate.entropy_bps, "units*entropy/s"),
        "bitrate_dedup": (rate.dedup_bps, "runs*log2K/s,no-durations"),
    }
    return {
        name: Found(value, len(material.units), signature(name, {**facts, "rule": rule}))
        for name, (value, rule) in values.items()
    }


FAMILIES: dict[tuple[str, ...], Callable[[Material, Sequence[str]], dict[str, Found]]] = {
    phones.METRICS: _aligned,
    boundaries.METRICS: _aligned,
    ("abx_within",): _discriminated,
    ("abx_across",): _discriminated,
    ("ued",): _parallel,
    usage.METRICS: _used,
    ("bitrate", "bitrate_entropy", "bitrate_dedup"): _bits,
}

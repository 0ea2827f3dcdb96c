"""One self-contained HTML page per run: players, waveforms over unit timelines, training curves, scores."""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unitkit import audio
from unitkit.axis import round_ticks
from unitkit.manifest import Utterance, atomic_text, read_manifest
from unitkit.metrics.rows import ScoreRow, kind, read_scores
from unitkit.timeline import Block, envelope, flac_base64, strips
from unitkit.units import Units, UnitsHeader, bitrate, read_header, read_units

AUDIO_BUDGET = 6_500_000  # bytes of FLAC in all: base64 adds a third, and a page over 10 MB is a nuisance to send
LENGTHS = (1.0, 8.0)  # seconds; single words say little, and a long timeline cannot be read
COLUMNS = 480  # points of a waveform across the page
POINTS = 200  # points of a training curve

# What the parts of a recipe are called on the page; other names are shown as they are.
SYSTEMS = {
    "frames": "resynthesis from frame-level units",
    "dedup": "resynthesis from deduplicated units, durations predicted",
    "shuffled": "control: the same units in random order",
}
CURVES = {
    "mel": "Log-mel distance (ln)",
    "durations": "Duration loss (log² frames)",
    "stft": "Multi-resolution STFT loss",
    "adversarial": "Adversarial loss",
    "features": "Feature-matching loss",
    "judges": "Discriminator loss",
    "loss": "Total loss, weighted",
}


class ReportError(ValueError):
    """Inputs from which no page can be made; the text names what is missing."""


@dataclass(frozen=True)
class Lane:
    """One recording: a player, its waveform, and a strip of blocks per codebook (none if it was not encoded)."""

    name: str
    about: str
    source: str
    seconds: float
    width: float  # percent of the time axis
    wave: str
    strips: list[list[Block]]


@dataclass(frozen=True)
class Item:
    """One held-out utterance: the original first, then every system that spoke it, on one time axis (seconds)."""

    utterance: Utterance
    lanes: list[Lane]
    texts: list[tuple[str, str]]  # recogniser, what it wrote
    peak: float
    ticks: list[tuple[float, str]]  # percent, seconds


@dataclass(frozen=True)
class Line:
    """One curve: `points` is an SVG point list, `dots` are (x, y, text), `last` the final value."""

    name: str
    kind: str
    points: str
    dots: list[tuple[float, float, str]]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves of one training metric over steps; ticks are (position, text)."""

    title: str
    label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Entry:
    """One line of the score table: originals, every system (value, interval), control, number of its signature."""

    split: str
    title: str
    reference: str
    values: dict[str, tuple[str, str]]
    control: str
    n: str
    signature: int


def report_experiment(
    exp: Path,
    reference: Path,
    out: Path,
    *,
    title: str,
    notes: str = "",
    source: Path | None = None,
    units: Path | None = None,
) -> Path:
    """Write the page of a recipe's experiment directory: units/test.jsonl, synth/*, scores.jsonl, */metrics.jsonl.

    What recognisers wrote is in text/, in a folder with the name of the reference.
    Systems come in the order frames, dedup, those of the scores, others, shuffled.  Of translations the reference is in
    the target language, as are units/test.target.jsonl, and `source` is the manifest of what was heard.
    `units`: those of the reference, where they lie elsewhere.
    """
    scores = exp / "scores.jsonl"
    scored = dict.fromkeys(row.system for row in read_scores(scores)) if scores.exists() else {}
    first = ["frames", "dedup", *scored]
    order = {name: i for i, name in enumerate(dict.fromkeys(first))} | {"shuffled": 10**6}

    def named(paths: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
        return sorted(paths, key=lambda pair: (order.get(pair[0], len(first)), pair[0]))

    return write_report(
        out,
        title=title,
        systems=named((path.parent.name, path) for path in exp.glob("synth/*/manifest.jsonl")),
        texts=named((path.stem, path) for path in exp.glob(f"text/{reference.stem}/*.jsonl")),
        reference=reference,
        units=units or exp / "units" / ("test.target.jsonl" if source else "test.jsonl"),
        metrics=sorted(exp.glob("*/metrics.jsonl")),
        scores=scores if scores.exists() else None,
        notes=notes,
        source=source,
    )


def write_report(
    out: Path,
    *,
    title: str,
    systems: Sequence[tuple[str, Path]],
    reference: Path,
    units: Path,
    metrics: Sequence[Path] = (),
    scores: Path | None = None,
    max_items: int = 8,
    notes: str = "",
    source: Path | None = None,
    texts: Sequence[tuple[str, Path]] = (),
) -> Path:
    """Write one HTML file that needs no other file and asks nothing of the network; returns `out`.

    Args:
        systems: (name, synthesis manifest); a `units.jsonl` beside it has the units spoken, or those encoded again.
        reference: manifest of the original recordings; ids tie everything together.
        units: unit file of the originals.
        metrics: training logs, `{"step", "split", "seconds", name: value...}` a line.
        scores: score rows, one JSON object a line.
        max_items: utterances shown, spread evenly over the held-out ones from long to short.
        notes: plain text under the title; an empty line starts a paragraph.
        source: of translations, the manifest of what was translated; played first.
        texts: (name, manifest) of what recognisers wrote.

    Raises:
        ReportError: no utterance is in the reference, the units and a system.
        FingerprintError: a synthesis was encoded with another tokenizer than `units`.
    """
    header = read_header(units)
    total = bitrate(read_units(units))
    items, candidates = _items(systems, reference, units, header, max_items, source, texts)
    rows = read_scores(scores) if scores else []
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            notes=[paragraph.strip() for paragraph in notes.split("\n\n") if paragraph.strip()],
            facts=_facts(header, total.seconds, total.bits_per_second, total.dedup_bps, candidates),
            header=header,
            items=items,
            synthesised=bool(systems),
            candidates=candidates,
            lengths=LENGTHS,
            columns=COLUMNS,
            charts=[chart for path in metrics for chart in _charts(path, many=len(metrics) > 1)],
            trained=[text for path in metrics if (text := _trained(path))],
            entries=_entries(rows),
            score_systems=list(dict.fromkeys(row.system for row in rows)),
            signatures=_signatures(rows),
            left_out=_left_out(rows),
            about=SYSTEMS,
        )
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(out) as file:
        file.write(page)
    return out


def _environment() -> Environment:
    folder = Path(__file__).resolve().parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    return environment


def _csp_hash(text: str) -> str:
    """The source expression that lets exactly this inline script or style through the content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()}'"


def _facts(header: UnitsHeader, seconds: float, bps: float, dedup_bps: float, count: int) -> list[tuple[str, str]]:
    books = f" × {header.codebooks} codebooks" if header.codebooks > 1 else ""
    return [
        ("tokenizer", header.tokenizer),
        ("units", f"{header.n_units}{books} at {header.rate_hz:g} Hz"),
        ("one frame", f"{1000 / header.rate_hz:g} ms"),
        ("bitrate", f"{bps:.0f} bit/s, {dedup_bps:.0f} deduplicated"),
        ("held out", f"{count} utterances, {seconds / 60:.1f} min"),
    ]


# ---------------------------------------------------------------------------------------------------- listening


def _items(
    systems: Sequence[tuple[str, Path]],
    reference: Path,
    units: Path,
    header: UnitsHeader,
    count: int,
    source: Path | None,
    texts: Sequence[tuple[str, Path]],
) -> tuple[list[Item], int]:
    """The utterances shown, and how many there were to choose from."""
    lengths = {one.id: one.duration for one in read_units(units)}
    spoken = {name: {row.id: row for row in read_manifest(path)} for name, path in systems}
    heard = {row.id: row for row in read_manifest(source)} if source else {}
    originals = {row.id: row for row in read_manifest(reference) if row.id in lengths}
    written = {name: {row.id: row.text or "" for row in read_manifest(path)} for name, path in texts}
    known = set[str]().union(*spoken.values(), *written.values())
    shared = [key for key in originals if key in known]
    if not shared:
        names = ", ".join(name for name, _ in (*systems, *texts)) or "no system"
        raise ReportError(f"no utterance is in {reference}, in {units} and in a system's manifest ({names})")
    chosen = _spread({key: lengths[key] for key in shared}, count)
    encoded = {"original": _picked(units, chosen, header)}
    for name, path in systems:
        again = path.parent / "units.jsonl"
        encoded[name] = _picked(again, chosen, header) if again.exists() else {}
    items: list[Item] = []
    spent = 0
    for key in chosen:
        recordings = {"source": heard[key]} if key in heard else {}
        recordings |= {"original": originals[key]} | {name: rows[key] for name, rows in spoken.items() if key in rows}
        item = _item(originals[key], recordings, {name: found.get(key) for name, found in encoded.items()})
        item.texts.extend((name, rows[key]) for name, rows in written.items() if key in rows)
        spent += sum(len(lane.source) for lane in item.lanes) * 3 // 4
        if items and spent > AUDIO_BUDGET:
            break
        items.append(item)
    return items, len(shared)


def _spread(lengths: dict[str, float], count: int) -> list[str]:
    """`count` ids evenly spread over the lengths (seconds), longest first; nobody picked them by ear."""
    handy = [key for key, seconds in lengths.items() if LENGTHS[0] <= seconds <= LENGTHS[1]]
    ranked = sorted(handy or lengths, key=lambda key: (-lengths[key], key))
    count = min(count, len(ranked))
    return [ranked[(2 * i + 1) * len(ranked) // (2 * count)] for i in range(count)]


def _picked(path: Path, ids: Iterable[str], header: UnitsHeader) -> dict[str, Units]:
    wanted = set(ids)
    return {one.id: one for one in read_units(path, tokenizer=header.tokenizer) if one.id in wanted}


def _item(original: Utterance, recordings: dict[str, Utterance], encoded: dict[str, Units | None]) -> Item:
    sounds = {name: _sound(row) for name, row in recordings.items()}
    seconds = max(len(wav) / rate for wav, rate in sounds.values())
    peak = max(1e-3, *(float(np.abs(wav).max()) for wav, _ in sounds.values()))
    lanes = []
    for name, (wav, rate) in sounds.items():
        units = encoded.get(name)
        lanes.append(
            Lane(
                name=name,
                about=_about(name, row=recordings[name], original=original),
                source=flac_base64(wav, rate),
                seconds=len(wav) / rate,
                width=100 * len(wav) / rate / seconds,
                wave=envelope(wav / peak, round(COLUMNS * len(wav) / rate / seconds)),
                strips=strips(units, seconds) if units is not None else [],
            )
        )
    ticks = [(100 * at / seconds, f"{at:g}") for at in round_ticks(0, seconds, 8)]
    return Item(original, lanes, [], peak, ticks)


def _about(name: str, *, row: Utterance, original: Utterance) -> str:
    """What a lane is, or the text of a translation, where it is not that of the original."""
    if name == "original":
        return "the recording"
    return SYSTEMS.get(name) or (f"“{row.text}”" if row.text and row.text != original.text else "")


def _sound(row: Utterance) -> tuple[np.ndarray, int]:
    """Mono wav (samples,) at the file's own rate, and that rate."""
    rate = audio.info(row.audio).rate
    return audio.read(row.audio, rate, start=row.start or 0.0, duration=row.duration), rate


# ---------------------------------------------------------------------------------------------------- curves


def _charts(path: Path, *, many: bool) -> list[Chart]:
    """Charts of a training log, in full rows of three: what dev measures, then the losses that are only trained on."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in _read_jsonl(path):
        for name, value in row.items():
            if name not in ("step", "split", "seconds") and math.isfinite(float(value)):
                series.setdefault((row["split"], name), []).append((row["step"], float(value)))
    names = [name for split, name in series if split == "dev" and not name.endswith("_shuffled")]
    names += [name for name in CURVES if ("train", name) in series and name not in names]
    prefix = f"{path.parent.name}: " if many else ""
    return [_chart(name, series, title=prefix + name) for name in names[: len(names) // 3 * 3 or 3]]


def _chart(name: str, series: dict[tuple[str, str], list[tuple[float, float]]], *, title: str) -> Chart:
    """One chart in a box of 400 by 230; the plot itself spans x 44..388 and y 12..190."""
    wanted = (("train", name, "train"), ("dev", name, "dev"), ("dev", f"{name}_shuffled", "control"))
    shown = {kind: _thinned(series[split, key]) for split, key, kind in wanted if (split, key) in series}
    steps = [x for points in shown.values() for x, _ in points]
    values = [y for points in shown.values() for _, y in points]
    y_ticks = round_ticks(min(0.0, min(values)), _calm_top(shown), 5, cover=True)
    right, bottom, top = max(steps), y_ticks[0], max(y_ticks[-1], y_ticks[0] + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        return 44 + 344 * x / max(right, 1), 190 - 178 * (min(y, top) - bottom) / (top - bottom)

    names = {"train": "train", "dev": "dev", "control": "dev, shuffled (control)"}
    lines = []
    for line, points in shown.items():
        inside = list(dropwhile(lambda point: point[1] > top, points))
        placed = [place(x, y) for x, y in inside]
        dots = [(*at, f"step {x:.0f}: {y:.4g}") for at, (x, y) in zip(placed, inside, strict=True)]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        lines.append(
            Line(names[line], line, text, dots if line != "train" and len(dots) <= 60 else [], f"{points[-1][1]:.3g}")
        )
    return Chart(
        title=title,
        label=CURVES.get(name, name),
        lines=lines,
        x_ticks=[(place(x, 0)[0], _short(x)) for x in round_ticks(0, right, 5)],
        y_ticks=[(place(0, y)[1], f"{y:g}") for y in y_ticks],
    )


def _calm_top(shown: dict[str, list[tuple[float, float]]]) -> float:
    """Top of the y axis: a curve may begin above it, but after its first twentieth it is all in the box."""
    tops = [max(y for _, y in points[len(points) // 20 :]) for points in shown.values()]
    return max(tops) * 1.04 or 1.0


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points: means of equal shares."""
    if len(points) <= POINTS:
        return points
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in np.array_split(np.array(points), POINTS)]


def _short(number: float) -> str:
    return f"{number / 1000:g}k" if number >= 10_000 else f"{number:g}"


def _trained(path: Path) -> str:
    rows = _read_jsonl(path)
    if not rows:
        return ""
    last = max(rows, key=lambda row: float(row["step"]))
    return f"{path.parent.name}: {last['step']:,} steps in {float(last.get('seconds', 0)) / 60:.1f} minutes"


# ---------------------------------------------------------------------------------------------------- scores


def _entries(rows: Sequence[ScoreRow]) -> list[Entry]:
    """A line per split and metric; scores computed differently (another signature) never share one."""
    signatures = _signatures(rows)
    groups: dict[tuple[str, str, str], list[ScoreRow]] = {}
    for row in rows:
        if row.value is not None:
            groups.setdefault((row.split, row.metric, row.signature), []).append(row)
    table = []
    for (split, metric, signature), group in groups.items():
        shown = kind(metric)
        entry = Entry(
            split=split,
            title=shown.title,
            reference=_shared([row.reference for row in group], shown.digits),
            values={row.system: (_shown(row.value, shown.digits), _interval(row, shown.digits)) for row in group},
            control=_shared([row.control for row in group], shown.digits),
            n=_shared([row.n for row in group], 0),
            signature=signatures.index(signature) + 1,
        )
        table.append(entry)
    return table


def _shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:z.{digits}f}"


def _shared(values: Iterable[float | None], digits: int) -> str:
    """The value that all systems share; several different ones are all shown."""
    return " / ".join(dict.fromkeys(_shown(value, digits) for value in values))


def _interval(row: ScoreRow, digits: int) -> str:
    return "" if row.low is None else f"{_shown(row.low, digits)}–{_shown(row.high, digits)}"


def _signatures(rows: Sequence[ScoreRow]) -> list[str]:
    return list(dict.fromkeys(row.signature for row in rows if row.value is not None))


def _left_out(rows: Sequence[ScoreRow]) -> list[tuple[str, str]]:
    """(metrics, why) of what could not be computed."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            reasons.setdefault(row.note, []).append(f"{row.system} {row.metric}")
    return [(", ".join(dict.fromkeys(names)), note) for note, names in reasons.items()]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ReportError(f"{path}:{number}: not a JSON object: {line[:60]!r}") from error
    return rows

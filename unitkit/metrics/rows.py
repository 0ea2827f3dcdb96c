"""Score rows: one JSON line for a system, split and metric; kept in a file, shown as tables."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from unitkit.manifest import atomic_text

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Kind:
    """How a metric is shown: title with unit and the better direction, digits after the point."""

    title: str
    digits: int


METRICS = {
    "wer": Kind("WER % ↓", 1),
    "cer": Kind("CER % ↓", 1),
    "mel": Kind("mel L1 ↓", 2),
    "mcd": Kind("MCD dB ↓", 2),
    "f0_rmse": Kind("F0 RMSE Hz ↓", 1),
    "f0_cents": Kind("F0 RMSE cent ↓", 0),
    "voicing": Kind("voicing error % ↓", 1),
    "speaker": Kind("speaker cosine ↑", 3),
    "dnsmos": Kind("DNSMOS ↑", 2),
    "distillmos": Kind("DistillMOS ↑", 2),
    "uer": Kind("UER % ↓", 1),
}

# Scores of units against phones and sentences; not of syntheses, so no part of "all" there.
UNIT_METRICS = {
    "pnmi": Kind("PNMI ↑", 3),
    "phone_purity": Kind("phone purity ↑", 3),
    "cluster_purity": Kind("cluster purity ↑", 3),
    "boundary_precision": Kind("boundary precision ↑", 3),
    "boundary_recall": Kind("boundary recall ↑", 3),
    "boundary_f1": Kind("boundary F1 ↑", 3),
    "boundary_os": Kind("over-segmentation (0 best)", 3),
    "boundary_r": Kind("boundary R-value ↑", 3),
    "abx_within": Kind("ABX within % ↓", 2),
    "abx_across": Kind("ABX across % ↓", 2),
    "ued": Kind("UED across speakers % ↓", 1),
    "perplexity": Kind("unit perplexity", 1),
    "used": Kind("units used", 3),
    "top_share": Kind("commonest unit's share", 3),
    "bitrate": Kind("bit/s", 0),
    "bitrate_entropy": Kind("bit/s, entropy", 0),
    "bitrate_dedup": Kind("bit/s, dedup", 0),
}

# Scores of translations and transcripts, from speech heard by the recogniser and from the text that a system wrote; a
# resynthesis has error rates of its own instead, so no part of "all".
TRANSLATION_METRICS = {
    "asr_bleu": Kind("ASR-BLEU ↑", 1),
    "text_bleu": Kind("text BLEU ↑", 1),
    "text_wer": Kind("text WER % ↓", 1),
    "text_cer": Kind("text CER % ↓", 1),
}


# Scores of conversions between their sources and references (`unitkit score conversions`).
CONVERSION_METRICS = {
    "wer": METRICS["wer"],
    "cer": METRICS["cer"],
    "speaker_target": Kind("speaker to reference", 3),
    "speaker_source": Kind("speaker to source", 3),
    "f0_mean": Kind("F0 mean off, semitones ↓", 2),
    "f0_mean_moved": Kind("F0 mean moved %", 0),
    "f0_span": Kind("F0 span off, semitones ↓", 2),
    "f0_span_moved": Kind("F0 span moved %", 0),
    "energy_span": Kind("energy span off, dB ↓", 1),
    "energy_span_moved": Kind("energy span moved %", 0),
    "tempo_moved": Kind("tempo moved %", 0),
    "duration_source": Kind("durations, r to source", 2),
    "duration_reference": Kind("durations, r to reference", 2),
}


def kind(metric: str) -> Kind:
    """How a metric is shown; one that is not known keeps its name."""
    return (METRICS | UNIT_METRICS | TRANSLATION_METRICS | CONVERSION_METRICS).get(metric, Kind(metric, 3))


class ScoreError(ValueError):
    """Scores that cannot be computed or read; the message names the place and the fix."""


@dataclass(frozen=True)
class ScoreRow:
    """One score over `n` utterances, its 95 % interval, and the same metric on the originals and on the control.

    `value` is None where the metric was left out; `note` then says why.
    """

    system: str
    split: str
    metric: str
    value: float | None
    n: int
    signature: str
    control: float | None = None
    reference: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What a later row replaces: (system, split, metric)."""
        return self.system, self.split, self.metric


def read_scores(path: str | Path) -> list[ScoreRow]:
    """All rows of a score file; none if there is no such file yet."""
    names = {field.name for field in fields(ScoreRow)}
    rows = []
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(ScoreRow(**{name: row[name] for name in row if name in names}))
        except (TypeError, json.JSONDecodeError) as error:
            raise ScoreError(f"{path}:{number}: not a score row ({error})") from error
    return rows


def write_scores(path: str | Path, rows: Iterable[ScoreRow]) -> int:
    """Add rows to a score file in one step, in place of those with the same system, split and metric; rows in it."""
    merged = {row.key: row for row in [*read_scores(path), *rows]}
    with atomic_text(path) as file:
        for row in merged.values():
            kept = {name: value for name, value in asdict(row).items() if value is not None or name == "value"}
            file.write(json.dumps(kept, ensure_ascii=False, allow_nan=False) + "\n")
    return len(merged)


def table(rows: Sequence[ScoreRow]) -> "Table":
    """A terminal table, one row a score, with what was left out, and why, underneath."""
    from rich.markup import escape
    from rich.table import Table

    notes = _notes(rows)
    grid = Table(caption=escape("\n".join(notes)) if notes else None, caption_justify="left")
    for index, title in enumerate(_HEADER):
        grid.add_column(title, justify="left" if index < 3 else "right")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in _cells(row)))
    return grid


def markdown(rows: Sequence[ScoreRow]) -> str:
    """A Markdown table, one row a score, then what was left out and the signatures."""
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + "---|" * 3 + "---:|" * (len(_HEADER) - 3)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in _notes(rows))]
    signatures = dict.fromkeys(row.signature for row in rows if row.value is not None)
    lines += ["", "Signatures:", "", *(f"- `{name}`" for name in signatures)]
    return "\n".join(lines) + "\n"


_HEADER = ("system", "split", "metric", "value", "95 % interval", "original", "control", "n")


def _cells(row: ScoreRow) -> list[str]:
    shown = kind(row.metric)

    def show(value: float | None) -> str:
        return "–" if value is None else f"{value:z.{shown.digits}f}"

    between = "–" if row.low is None else f"{show(row.low)}–{show(row.high)}"
    numbers = [show(row.value), between, show(row.reference), show(row.control)]
    return [row.system, row.split, shown.title, *numbers, str(row.n)]


def _notes(rows: Sequence[ScoreRow]) -> list[str]:
    """Every note once, with the metrics and systems it holds for."""
    places: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            places.setdefault(row.note, []).append(f"{row.system}/{row.metric}")
    return [f"{', '.join(where)}: {note}" for note, where in places.items()]

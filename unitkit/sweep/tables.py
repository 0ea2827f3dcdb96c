"""Rows of a sweep as tables: one line an encoder, layer and number of units, every score with its control."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unitkit.metrics.rows import UNIT_METRICS, ScoreRow
from unitkit.sweep.cells import SweepRow

if TYPE_CHECKING:
    from rich.table import Table

FACTS = ("encoder", "layer", "units")
WORDS = ("encoder", "tokenizer")  # columns of text, set to the left


def grid(rows: Sequence[SweepRow]) -> "Table":
    """A terminal table, with what was left out, and why, underneath."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    told = escape("\n".join(notes(rows)))
    shown = Table(caption=told, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in _header(rows):
        shown.add_column(_stacked(title), justify="left" if title in WORDS else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in _cells(row, _metrics(rows))))
    return shown


def _stacked(title: str) -> str:
    """A word a line, arrows beside theirs: ten columns fit a terminal of 80, with controls under their scores."""
    return title.replace(" ↑", "\u00a0↑").replace(" ↓", "\u00a0↓").replace(" ", "\n")


def markdown(rows: Sequence[SweepRow], *, about: str = "") -> str:
    """A Markdown table, what was left out, and the text `about` how it was made."""
    header = [*_header(rows), "tokenizer"]
    lines = ["| " + " | ".join(header) + " |"]
    lines += ["|" + "|".join("---" if title in WORDS else "---:" for title in header) + "|"]
    for row in rows:
        cells = [*_cells(row, _metrics(rows)), f"`{row.tokenizer}`" if row.tokenizer else "–"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    told = [_CONTROLS, *notes(rows), *([about] if about else [])]
    return "\n\n".join(["\n".join(lines), *told]) + "\n"


_CONTROLS = (
    "In brackets the control: the same score of shuffled units, for UED of pairs with different sentences. "
    "PNMI and its control rise with the number of units: compare within one number of units."
)


def notes(rows: Sequence[SweepRow]) -> list[str]:
    """Every reason why a score was left out once, with the metrics it holds for."""
    places: dict[str, dict[str, None]] = {}
    for row in rows:
        for score in row.scores:
            if score.note:
                places.setdefault(score.note, {})[score.metric] = None
    return [f"{', '.join(metrics)}: {note}" for note, metrics in places.items()]


def _metrics(rows: Sequence[SweepRow]) -> list[str]:
    """Metrics that have a value somewhere; the others are among the notes."""
    found = {score.metric for row in rows for score in row.scores if score.value is not None}
    return [metric for metric in UNIT_METRICS if metric in found]


def _header(rows: Sequence[SweepRow]) -> list[str]:
    return [*FACTS, *(UNIT_METRICS[metric].title for metric in _metrics(rows)), "s"]


def _cells(row: SweepRow, metrics: Sequence[str]) -> list[str]:
    facts = [row.encoder, "–" if row.layer is None else str(row.layer), str(row.units or "features")]
    return [*facts, *(_shown(row.score(metric), metric) for metric in metrics), f"{row.seconds:.0f}"]


def _shown(score: ScoreRow | None, metric: str) -> str:
    if score is None or score.value is None:
        return "–"
    digits = UNIT_METRICS[metric].digits
    control = "" if score.control is None else f" ({score.control:.{digits}f})"
    return f"{score.value:.{digits}f}{control}"

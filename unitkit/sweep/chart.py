"""Scores of a sweep over layers as one SVG, readable on light and on dark backgrounds, without a drawing library."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from unitkit.axis import round_ticks
from unitkit.metrics.rows import UNIT_METRICS
from unitkit.sweep.cells import SweepRow
from unitkit.sweep.specs import SweepError

PANELS = ("pnmi", "abx_within", "abx_across", "ued")
WIDTH, HEIGHT = 440, 300  # of a panel; the plot spans LEFT..WIDTH - RIGHT and TOP..HEIGHT - BOTTOM
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 40, 48
INSET = 14  # between the ends of the axis and the outer layers
LEGEND_ROW = 22
# Okabe and Ito's colours, which the colour-blind tell apart: without black and yellow, and with a lighter blue, as they
# stand on light and on dark.
COLOURS = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "7 4", "2 4", "10 4 2 4")
STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.paper { fill: #fff; } .ink { fill: #1c2024; } .quiet { fill: #60646c; }
.rule { stroke: #e3e5e8; } .axis { stroke: #8b9098; }
.title { font-size: 15px; font-weight: 600; } .tick, .label { font-size: 12px; } .name { font-size: 13px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .control { stroke-width: 1; opacity: .75; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #14171a; } .ink { fill: #eceef0; } .quiet { fill: #a8adb5; }
  .rule { stroke: #2b3036; } .axis { stroke: #7a8089; }
}
"""


@dataclass(frozen=True)
class Curve:
    """Scores of one encoder and number of units (None: features): (layer, value) where it has layers, else one value.

    `control` has the same form; it is empty where the control is not drawn.
    """

    encoder: str
    units: int | None
    points: list[tuple[int | None, float]]
    control: list[tuple[int | None, float]]


def drawable(rows: Sequence[SweepRow]) -> bool:
    """Whether any row has a score that is drawn."""
    return any(_curves(rows, metric) for metric in PANELS)


def svg(rows: Sequence[SweepRow]) -> str:
    """One panel a metric that has values: PNMI, ABX, UED over layers; a line an encoder and number of units."""
    panels = {metric: curves for metric in PANELS if (curves := _curves(rows, metric))}
    if not panels:
        raise SweepError(f"nothing to draw: none of {', '.join(PANELS)} has a value")
    look = _Look(rows)
    columns = 2 if len(panels) == 4 else len(panels)
    legend = look.legend(columns * WIDTH)
    width, height = columns * WIDTH, -(-len(panels) // columns) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + legend.height}" '
        f'width="{width}" height="{height + legend.height}" role="img">',
        f"<title>Scores of units by encoder, layer and number of units</title><style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height + legend.height}"/>',
    ]
    for place, (metric, curves) in enumerate(panels.items()):
        x, y = place % columns * WIDTH, place // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(metric, curves, look), "</g>"]
    parts += [f'<g transform="translate(0 {height})">', *legend.parts, "</g>", "</svg>"]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Legend:
    parts: list[str]
    height: int


class _Look:
    """Colours by encoder, dashes by number of units: the same in all panels."""

    def __init__(self, rows: Sequence[SweepRow]) -> None:
        self.encoders = list(dict.fromkeys(row.encoder for row in rows))
        self.units = sorted({row.units for row in rows}, key=lambda units: (units is None, units or 0))
        self.lines = list(dict.fromkeys((row.encoder, row.units) for row in rows))

    def colour(self, encoder: str) -> str:
        """The encoder's colour; past the listed ones, hues far apart."""
        number = self.encoders.index(encoder)
        return COLOURS[number] if number < len(COLOURS) else f"hsl({number * 137.5 % 360:.0f} 60% 50%)"

    def stroke(self, encoder: str, units: int | None) -> str:
        """Attributes of a line."""
        dash = DASHES[self.units.index(units) % len(DASHES)]
        return f'stroke="{self.colour(encoder)}"' + (f' stroke-dasharray="{dash}"' if dash else "")

    def legend(self, width: int) -> _Legend:
        """A sample of each line with its name, in columns, and what lines without dots and thin lines are."""
        names = [f"{encoder}, {'features' if units is None else f'{units} units'}" for encoder, units in self.lines]
        column = 60 + 7.5 * max(map(len, names))  # 13 px letters are about 7 px wide
        across = max(1, int((width - LEFT) // column))
        across -= across % len(self.units) if across > len(self.units) else 0  # an encoder's lines side by side
        parts = []
        for place, (line, name) in enumerate(zip(self.lines, names, strict=True)):
            x, y = LEFT + place % across * column, 12 + place // across * LEGEND_ROW
            parts.append(f'<path class="line" {self.stroke(*line)} d="M{x:.0f} {y}h32"/>')
            parts.append(f'<text class="name ink" x="{x + 40:.0f}" y="{y + 4}">{escape(name)}</text>')
        bottom = 12 + -(-len(names) // across) * LEGEND_ROW
        told = "Thin: the control, shuffled units. Level lines without dots: encoders without layers."
        parts.append(f'<text class="label quiet" x="{LEFT}" y="{bottom + 6}">{told}</text>')
        return _Legend(parts, bottom + 22)


@dataclass(frozen=True)
class _Axes:
    """Where layers and values of a panel lie."""

    first: int
    last: int
    low: float
    high: float

    def x(self, layer: int) -> float:
        inner = WIDTH - LEFT - RIGHT - 2 * INSET
        share = 0.5 if self.last == self.first else (layer - self.first) / (self.last - self.first)
        return LEFT + INSET + share * inner

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _panel(metric: str, curves: Sequence[Curve], look: _Look) -> list[str]:
    """Axes with their names, then every curve above its control."""
    layers = sorted({layer for curve in curves for layer, _ in curve.points if layer is not None})
    values = [value for curve in curves for _, value in [*curve.points, *curve.control]]
    ticks = round_ticks(min(values), max(values), 5, cover=True)
    axes = _Axes(layers[0] if layers else 0, layers[-1] if layers else 0, ticks[0], ticks[-1])
    parts = [f'<text class="title ink" x="{LEFT}" y="24">{escape(UNIT_METRICS[metric].title)}</text>']
    for tick in ticks:
        y = axes.y(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick quiet" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    floor = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" fill="none" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>')
    for layer in layers[:: max(1, -(-len(layers) // 13))]:
        x = axes.x(layer)
        parts.append(f'<path class="axis" d="M{x:.1f} {floor}v4"/>')
        parts.append(f'<text class="tick quiet" x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{layer}</text>')
    middle, name = (LEFT + WIDTH - RIGHT) / 2, "layer" if layers else "(no encoder with layers)"
    parts.append(f'<text class="label quiet" x="{middle}" y="{floor + 38}" text-anchor="middle">{name}</text>')
    for curve in curves:
        parts += _drawn(curve.control, curve, axes, look, kind="line control")
    for curve in curves:
        parts += _drawn(curve.points, curve, axes, look, kind="line")
    return parts


def _drawn(
    points: Sequence[tuple[int | None, float]], curve: Curve, axes: _Axes, look: _Look, *, kind: str
) -> list[str]:
    """Dots joined by a line, or a level line for an encoder without layers."""
    stroke, parts = look.stroke(curve.encoder, curve.units), []
    for layer, value in points:
        if layer is None:
            parts.append(f'<path class="{kind}" {stroke} d="M{LEFT} {axes.y(value):.1f}H{WIDTH - RIGHT}"/>')
    placed = sorted((axes.x(layer), axes.y(value)) for layer, value in points if layer is not None)
    if len(placed) > 1:
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path class="{kind}" {stroke} d="M{line}"/>')
    if kind == "line" or len(placed) == 1:
        size = 3.5 if kind == "line" else 2
        colour = look.colour(curve.encoder)
        parts += [f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>' for x, y in placed]
    return parts


def _curves(rows: Sequence[SweepRow], metric: str) -> list[Curve]:
    """Curves of one metric; the control is drawn for PNMI alone: ABX's is 50 %, UED's far above."""
    curves: dict[tuple[str, int | None], Curve] = {}
    for row in rows:
        score = row.score(metric)
        if score is not None and score.value is not None:
            curve = curves.setdefault((row.encoder, row.units), Curve(row.encoder, row.units, [], []))
            curve.points.append((row.layer, score.value))
            if metric == "pnmi" and score.control is not None:
                curve.control.append((row.layer, score.control))
    return list(curves.values())

"""The sweep itself: fit, encode and score every cell that is not finished, many from each run of an encoder.

Of one encoder, as many layers as the memory holds are computed in one run over the training data and one over the test
data, and all numbers of units are fitted to the same sample of a layer's frames.  The tokenizers are those that
`Tokenizer.fit` gives for the same data, layer, units, frames and seed: their fingerprints are the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unitkit.encode import locked
from unitkit.encoders import Encoder, load_encoder
from unitkit.manifest import Utterance
from unitkit.metrics.base import Unavailable
from unitkit.metrics.items import Item, alignment_items
from unitkit.metrics.rows import ScoreRow
from unitkit.metrics.unit_scores import score_features, score_units
from unitkit.quantizers import KMeans, sample_frames
from unitkit.recording import stream_features
from unitkit.sweep.cells import (
    Cell,
    SweepData,
    SweepOptions,
    SweepRow,
    read_rows,
    relabelled,
    write_rows,
)
from unitkit.sweep.layers import Layer, Layers
from unitkit.tokenizer import Tokenizer, pick_device
from unitkit.units import Units

ROWS = "sweep.jsonl"
ABX = ("abx_within", "abx_across")
Bad = Callable[[Utterance, Exception], None]


def sweep(
    cells: Sequence[Cell],
    data: SweepData,
    *,
    out: str | Path,
    options: SweepOptions | None = None,
    progress: Callable[[float], None] | None = None,
    note: Callable[[str], None] | None = None,
    on_error: Bad | None = None,
) -> list[SweepRow]:
    """A row a cell of a `plan` with the same `options`; each goes to `out/sweep.jsonl` as soon as it is finished.

    Cells that are there already are not computed again, whatever their encoder was called.  `progress` is told of work
    done, in cells: a quarter of one is fitting, a quarter scoring, the rest encoding.  `note` gets a line as each piece
    of work starts.  A bad file raises, unless `on_error` is given: then it is told of it, once for every run of an
    encoder, and the file is skipped.

    Raises:
        LockedError: another process sweeps into `out`.
        SweepError: `out` holds something else.
    """
    options = options or SweepOptions()
    path = Path(out) / ROWS
    with locked(path):
        rows = read_rows(path)
        missing = list({cell.key: cell for cell in cells if cell.key not in rows}.values())
        run = _Run(data, options, progress or _nothing, note or _nothing, on_error)
        for group in run.groups(missing):
            for row in run.rows(group):
                rows[row.cell] = row
                write_rows(path, rows.values())
    return [relabelled(rows[cell.key], cell) for cell in cells]


def _nothing(_: object) -> None:
    pass


@dataclass(frozen=True)
class _Fitted:
    """A cell with its quantizer and the tokenizer's fingerprint (none: features), the frames seen, seconds taken."""

    cell: Cell
    quantizer: KMeans | None = None
    fingerprint: str | None = None
    frames: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Run:
    data: SweepData
    options: SweepOptions
    advance: Callable[[float], None]
    say: Callable[[str], None]
    on_error: Bad | None

    def groups(self, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """Cells of one encoder, and of as many layers of it as the memory holds."""
        for name in dict.fromkeys(cell.features for cell in cells):
            ours = [cell for cell in cells if cell.features == name]
            layers = list(dict.fromkeys(cell.layer for cell in ours))
            size = self._layers_at_once(name, layers[0])
            for start in range(0, len(layers), size):
                yield [cell for cell in ours if cell.layer in layers[start : start + size]]

    def _layers_at_once(self, features: str, layer: Layer) -> int:
        encoder, options = load_encoder(features, layer=layer), self.options
        frames = min(options.max_frames, int(_seconds(self.data.fit_on) * encoder.rate_hz) + 1)
        if options.features:
            frames = max(frames, int(_seconds(self.data.score_on) * encoder.rate_hz) + 1)
        # Two more: a layer is copied out of the sample, and standardised in a copy of that while it is fitted.
        return max(1, int(options.memory_gb * 1e9 / (4 * encoder.dim * frames)) - 2)

    def rows(self, group: Sequence[Cell]) -> Iterator[SweepRow]:
        """Fit the group's cells, encode the test data, and score one cell after the other."""
        started, name = time.monotonic(), _name(group)
        layers = Layers(group[0].features, [cell.layer for cell in group], device=pick_device(self.options.device))
        fitted = self._fitted(layers, group)
        self.say(f"{name}: encoding {len(self.data.score_on)} utterances to score them")
        units, features = self._encoded(layers, fitted)
        shared = (time.monotonic() - started - sum(one.seconds for one in fitted)) / len(fitted)
        for one in fitted:
            self.say(f"{_name([one.cell])}, {_what(one.cell)}: scoring")
            started = time.monotonic()
            if one.quantizer is None:
                scores = self._scores_of_features(features.pop(one.cell.layer), layers.encoder.rate_hz)
            else:
                scores = self._scores_of_units(units.pop(one.cell.key))
            yield _row(one, scores, seconds=shared + one.seconds + time.monotonic() - started)
            self.advance(0.25)

    def _fitted(self, layers: Layers, group: Sequence[Cell]) -> list[_Fitted]:
        """The cells with their quantizers, all from one run over the training data."""
        fitted = [_Fitted(cell) for cell in group if cell.units is None]
        self.advance(0.5 * len(fitted))
        if len(fitted) == len(group):
            return fitted
        self.say(f"{_name(group)}: encoding {len(self.data.fit_on)} utterances to fit units to")
        stream = self._features(layers.encoder, self.data.fit_on, cells=len(group) - len(fitted))
        sample = sample_frames(stream, self.options.max_frames, seed=self.options.seed)
        for layer, frames in layers.split(sample):
            # Fingerprints are of the encoder that ends at the layer, as it would be saved and loaded.
            encoder = load_encoder(group[0].features, layer=layer)
            for cell in group:
                if cell.layer == layer and cell.units is not None:
                    self.say(f"{_name([cell])}, {_what(cell)}: fitting to {len(frames)} frames")
                    fitted.append(self._fit(cell, frames, encoder))
                    self.advance(0.25)
        order = [cell.key for cell in group]
        return sorted(fitted, key=lambda one: order.index(one.cell.key))

    def _fit(self, cell: Cell, frames: np.ndarray, encoder: Encoder) -> _Fitted:
        started, where = time.monotonic(), pick_device(self.options.device)
        quantizer = KMeans.fit(frames, cell.units or 0, seed=self.options.seed, device=where)
        fingerprint = Tokenizer(encoder, quantizer, recipe={}).fingerprint
        return _Fitted(cell, quantizer.to(where), fingerprint, len(frames), time.monotonic() - started)

    def _features(self, encoder: Encoder, utterances: Sequence[Utterance], *, cells: int) -> Iterator[np.ndarray]:
        """Features of utterances in pieces; a quarter of the cells' work is done when all have been given."""
        step = 0.25 * cells / len(utterances)
        return stream_features(
            encoder,
            utterances,
            on_error=self.on_error,
            progress=lambda _: self.advance(step),
            tally={"utterances": 0, "skipped": 0, "seconds": 0.0},
        )

    def _encoded(
        self, layers: Layers, fitted: Sequence[_Fitted]
    ) -> tuple[dict[str, dict[str, Units]], dict[Layer, dict[str, np.ndarray]]]:
        """Units by cell and utterance, and features by layer and utterance where they are asked for."""
        units: dict[str, dict[str, Units]] = {one.cell.key: {} for one in fitted if one.quantizer is not None}
        features: dict[Layer, dict[str, np.ndarray]] = {one.cell.layer: {} for one in fitted if one.quantizer is None}
        step = 0.25 * len(fitted) / len(self.data.score_on)
        for utterance in self.data.score_on:
            heard: dict[str, list[np.ndarray]] = {one.cell.key: [] for one in fitted}
            for piece in self._features(layers.encoder, [utterance], cells=0):
                for layer, frames in layers.split(piece):
                    for one in fitted:
                        if one.cell.layer == layer:
                            heard[one.cell.key].append(_assigned(one, frames))
            self.advance(step)
            for one in fitted:
                if parts := heard[one.cell.key]:  # none of a bad file
                    whole = np.concatenate(parts)
                    if one.quantizer is None:
                        features[one.cell.layer][utterance.id] = whole
                    else:
                        units[one.cell.key][utterance.id] = _units(one, whole, layers.encoder, utterance.id)
        return units, features

    def _scores_of_units(self, units: dict[str, Units]) -> list[ScoreRow]:
        data, options = self.data, self.options
        return score_units(
            units,
            data.phones,
            manifest=data.score_on,
            items=data.given_items,
            metrics=options.metrics,
            task=options.task,
            silence=options.silence,
            seed=options.seed,
        )

    def _scores_of_features(self, features: dict[str, np.ndarray], rate_hz: float) -> list[ScoreRow]:
        items = [item for item in self._items() if item.file in features]
        try:
            return score_features(features, items, rate_hz=rate_hz, task=self.options.task)
        except Unavailable as reason:
            return [ScoreRow("features", "test", name, None, 0, "", note=f"left out: {reason}") for name in ABX]

    def _items(self) -> list[Item]:
        speakers = {utterance.id: utterance.speaker for utterance in self.data.score_on}
        return self.data.given_items or list(alignment_items(self.data.phones, speakers, kind=self.options.task.kind))


def _assigned(one: _Fitted, frames: np.ndarray) -> np.ndarray:
    """Units of features, or the features themselves where these are what is scored."""
    return frames if one.quantizer is None else one.quantizer.assign(frames).cpu().numpy()


def _units(one: _Fitted, ids: np.ndarray, encoder: Encoder, id_: str) -> Units:
    return Units(ids, float(encoder.rate_hz), one.cell.units or 0, one.fingerprint or "", id_)


def _row(one: _Fitted, scores: Sequence[ScoreRow], *, seconds: float) -> SweepRow:
    cell = one.cell
    return SweepRow(
        cell=cell.key,
        encoder=cell.label,
        features=cell.features,
        layer=cell.layer,
        units=cell.units,
        tokenizer=one.fingerprint,
        frames=one.frames,
        seconds=round(seconds, 2),
        scores=tuple(scores),
    )


def _seconds(utterances: Sequence[Utterance]) -> float:
    return sum(utterance.duration or 0.0 for utterance in utterances)


def _name(cells: Sequence[Cell]) -> str:
    """The encoder of some cells, and their layers if it has any."""
    layers = list(dict.fromkeys(cell.layer for cell in cells if cell.layer is not None))
    return " ".join([cells[0].label, *(["layer", ", ".join(map(str, layers))] if layers else [])])


def _what(cell: Cell) -> str:
    return "features" if cell.units is None else f"{cell.units} units"

"""A sweep as cells, each known by everything that decides its scores, and the rows of those that are finished."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unitkit.encode import refuse_duplicates, with_durations
from unitkit.encoders import JSON, load_encoder
from unitkit.manifest import Utterance, atomic_text, read_manifest
from unitkit.metrics.alignments import Alignments, read_alignments
from unitkit.metrics.base import METRICS_VERSION
from unitkit.metrics.items import Item, read_items
from unitkit.metrics.rows import ScoreRow
from unitkit.metrics.unit_scores import AbxTask, check_metrics
from unitkit.sweep.layers import Layer, layers_of
from unitkit.sweep.specs import EncoderSpec, SweepError

METRICS = ("pnmi", "abx_within", "abx_across", "ued", "bitrate", "bitrate_dedup")
FORMAT = 1


@dataclass(frozen=True)
class SweepData:
    """What tokenizers are fitted on and scored on: two manifests, phone alignments, perhaps an item file."""

    train: Path
    test: Path
    alignments: Path | None = None
    prefix: str = ""  # put before the alignments' ids
    items: Path | None = None

    @cached_property
    def fit_on(self) -> list[Utterance]:
        """The utterances of `train`."""
        return _utterances(self.train)

    @cached_property
    def score_on(self) -> list[Utterance]:
        """The utterances of `test`."""
        return _utterances(self.test)

    @cached_property
    def phones(self) -> Alignments:
        """The alignments; empty if there are none."""
        return read_alignments(self.alignments, prefix=self.prefix) if self.alignments else {}

    @cached_property
    def given_items(self) -> list[Item]:
        """The rows of the item file; empty if there is none."""
        return read_items(self.items) if self.items else []

    @cached_property
    def digest(self) -> dict[str, str | None]:
        """sha256 of each file, by what it is; audio files are not read for it."""
        files = {"train": self.train, "test": self.test, "alignments": self.alignments, "items": self.items}
        return {name: None if path is None else _hash_of(path) for name, path in files.items()} | {"ids": self.prefix}


@dataclass(frozen=True)
class SweepOptions:
    """How cells are fitted and scored; `features` also asks for the ABX of each layer's features before k-means.

    `memory_gb` (10⁹ bytes) bounds the features held at once, and so how many layers share one run of an encoder.
    """

    metrics: tuple[str, ...] = METRICS
    max_frames: int = 100_000
    seed: int = 0
    task: AbxTask = field(default_factory=AbxTask)
    silence: bool = True
    features: bool = False
    memory_gb: float = 2.0
    device: str = "auto"


@dataclass(frozen=True)
class Cell:
    """One encoder, layer and number of units (None: the features themselves); `key` is its name in the row file."""

    label: str
    features: str
    layer: Layer
    units: int | None
    key: str


@dataclass(frozen=True)
class SweepRow:
    """A finished cell: fingerprint of its tokenizer, frames k-means saw, scores with controls.

    `seconds` is the time of fitting and scoring it, with an equal share of the encoder's runs.
    """

    cell: str
    encoder: str
    features: str
    layer: Layer
    units: int | None
    tokenizer: str | None
    frames: int
    seconds: float
    scores: tuple[ScoreRow, ...]

    def score(self, metric: str) -> ScoreRow | None:
        """The score of that name."""
        return next((score for score in self.scores if score.metric == metric), None)


def plan(
    specs: Iterable[EncoderSpec], units: Sequence[int], data: SweepData, *, options: SweepOptions | None = None
) -> list[Cell]:
    """All cells, in the order in which they are shown; encoders are loaded at every layer, for the hash of each.

    Raises ValueError where an encoder, a layer or a metric is not known.
    """
    options = options or SweepOptions()
    check_metrics(options.metrics)
    cells: dict[tuple[str, Layer, int | None], Cell] = {}
    for spec in specs:
        for layer in layers_of(spec):
            encoder = load_encoder(spec.features, layer=layer)
            if encoder.codebooks is not None:
                raise SweepError(
                    f"{spec.features} has learned its units, so none are fitted; encode with it and score that: "
                    "`unitkit score units`"
                )
            for count in [*([None] if options.features else []), *units]:
                key = _key(encoder.settings(), count, data, options)
                cells[spec.label, layer, count] = Cell(spec.label, spec.features, layer, count, key)
    return list(cells.values())


def relabelled(row: SweepRow, cell: Cell) -> SweepRow:
    """The row under the name that the encoder has this time."""
    return replace(row, encoder=cell.label, features=cell.features)


def read_rows(path: str | Path) -> dict[str, SweepRow]:
    """Rows of a sweep by cell; none if there is no such file yet."""
    rows: dict[str, SweepRow] = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
    for number, line in enumerate(lines, 1):
        try:
            facts = json.loads(line)
            scores = tuple(ScoreRow(**score) for score in facts["scores"])
            row = SweepRow(**{one.name: facts[one.name] for one in fields(SweepRow)} | {"scores": scores})
        except (ValueError, TypeError, KeyError) as error:
            raise SweepError(f"{path}:{number}: not a row of a sweep ({error!r}); give another -o") from error
        rows[row.cell] = row
    return rows


def write_rows(path: str | Path, rows: Iterable[SweepRow]) -> None:
    """Write all rows in one step."""
    with atomic_text(path) as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n")


def _utterances(path: Path) -> list[Utterance]:
    found = with_durations(read_manifest(path))
    if not found:
        raise SweepError(f"{path} names no utterance")
    refuse_duplicates(found)
    return found


def _hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(settings: dict[str, JSON], units: int | None, data: SweepData, options: SweepOptions) -> str:
    facts: dict[str, Any] = {
        "format": FORMAT,
        "encoder": settings,
        "units": units,
        "data": data.digest,
        "metrics": sorted(options.metrics),
        "max_frames": options.max_frames,
        "seed": options.seed,
        "task": asdict(options.task),
        "silence": options.silence,
        "scores": METRICS_VERSION,
    }
    if units is None:  # features are not fitted to anything, and have only ABX scores
        facts = {name: facts[name] for name in ("format", "encoder", "units", "data", "task", "scores")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

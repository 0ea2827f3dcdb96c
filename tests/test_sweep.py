"""Sweeps: layers in one run, rows against tokenizers fitted and scored one at a time, resuming, tables and charts."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_encoders import CHECKPOINTS, N_LAYERS, model_of, wav_of

from unitkit.axis import round_ticks
from unitkit.encode import BAD_INPUT
from unitkit.encoders import Encoder, load_encoder
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics.alignments import Phone, write_alignments
from unitkit.metrics.items import alignment_items
from unitkit.metrics.rows import ScoreRow
from unitkit.metrics.unit_scores import score_features, score_units
from unitkit.sweep import (
    Cell,
    SweepData,
    SweepError,
    SweepOptions,
    SweepRow,
    labelled_files,
    parse_encoders,
    parse_units,
    plan,
    read_rows,
    sweep,
)
from unitkit.sweep import run as module
from unitkit.sweep.chart import HEIGHT, WIDTH, drawable, svg
from unitkit.sweep.layers import Layers, _widen
from unitkit.sweep.specs import EncoderSpec, parse_encoder
from unitkit.sweep.tables import markdown
from unitkit.tokenizer import Tokenizer

torch.set_num_threads(1)
RATE = 16000


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model_of("hubert-base").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SweepData:
    """Noise in two voices; the test sentences are said by both, and aligned with three phones at random."""
    root, rng, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for number in range(12):
        seconds = float(rng.uniform(0.8, 1.4))
        soundfile.write(root / f"{number}.wav", wav_of(int(seconds * RATE), seed=number), RATE)
        speaker, text = ("ann", "bob")[number % 2], f"sentence {number // 2}"
        rows.append(Utterance(f"s/{number}", str(root / f"{number}.wav"), seconds, speaker=speaker, text=text))
    write_manifest(root / "train.jsonl", rows[:6])
    write_manifest(root / "test.jsonl", rows[6:])
    aligned = []
    for row in rows[6:]:
        cuts = np.round(np.linspace(0, row.duration or 0.0, 9), 3).tolist()
        labels = rng.choice(["A", "B", "SIL"], 8).tolist()
        aligned.append((row.id.removeprefix("s/"), list(map(Phone, cuts[:-1], cuts[1:], labels))))
    write_alignments(root / "phones.tsv", aligned)
    return SweepData(root / "train.jsonl", root / "test.jsonl", root / "phones.tsv", "s/")


OPTIONS = SweepOptions(max_frames=150, device="cpu")


def timeless(rows: list[SweepRow]) -> list[SweepRow]:
    return [replace(row, seconds=0.0) for row in rows]


# ------------------------------------------------------------------------------------------------------- layers


def long_features(encoder: Encoder, wav: np.ndarray) -> np.ndarray:
    """Features of a recording that takes several windows."""
    encoder.window_s, encoder.context_s = 1.0, 0.2  # type: ignore[attr-defined]
    return torch.cat(list(encoder.pieces(lambda: iter([wav[:30000], wav[30000:]])))).numpy()


@pytest.mark.parametrize("name", list(CHECKPOINTS))
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_layers_of_one_run_are_those_of_encoders_cut_there(name: str, engine: str, tmp_path: Path) -> None:
    """Bit for bit, on every engine and family, over the joints of windows."""
    model_of(name).save_pretrained(tmp_path / "checkpoint")
    folder, wav, numbers = str(tmp_path / "checkpoint"), wav_of(50000), [0, 2, 3, N_LAYERS]
    layers = Layers(folder, [4, 2, 0, 3, 2])
    if engine == "plain":
        layers.encoder = load_encoder(folder, layer=N_LAYERS, engine="plain")
        _widen(layers.encoder, numbers)  # type: ignore[arg-type]
    assert layers.layers == tuple(numbers)
    found = dict(layers.split(long_features(layers.encoder, wav)))
    for layer in numbers:
        alone = load_encoder(folder, layer=layer, engine=engine)
        np.testing.assert_array_equal(found[layer], long_features(alone, wav))
    assert not np.array_equal(found[2], found[3])


# -------------------------------------------------------------------------------------------------------- cells


def test_rows_are_those_of_tokenizers_fitted_and_scored_alone(hubert: str, data: SweepData, tmp_path: Path) -> None:
    specs = parse_encoders(["mfcc", f"mine={hubert}:2,4"])
    rows = sweep(plan(specs, [5, 9], data, options=OPTIONS), data, out=tmp_path, options=OPTIONS)
    assert [(row.encoder, row.layer, row.units) for row in rows] == [
        (label, layer, units) for label, layer in (("mfcc", None), ("mine", 2), ("mine", 4)) for units in (5, 9)
    ]
    for row in rows:
        assert row.units and row.frames == 150 and row.seconds > 0
        tok = Tokenizer.fit(
            data.train, features=row.features, layer=row.layer, units=row.units, max_frames=150, device="cpu"
        )
        assert row.tokenizer == tok.fingerprint
        units = {one.id: tok.encode(one) for one in read_manifest(data.test)}
        alone = score_units(units, data.phones, manifest=data.test, metrics=OPTIONS.metrics)
        assert list(row.scores) == alone
        assert all(score.value is not None for score in alone), "every metric is compared"
    assert len({row.tokenizer for row in rows}) == 6


def test_features_are_scored_before_k_means(hubert: str, data: SweepData, tmp_path: Path) -> None:
    options = replace(OPTIONS, features=True, metrics=("pnmi",))
    specs = parse_encoders([f"{hubert}:1,3"])
    rows = sweep(plan(specs, [5], data, options=options), data, out=tmp_path, options=options)
    assert [(row.layer, row.units) for row in rows] == [(1, None), (1, 5), (3, None), (3, 5)]
    speakers = {one.id: one.speaker for one in data.score_on}
    items = list(alignment_items(data.phones, speakers))
    for row in rows[::2]:
        encoder = load_encoder(hubert, layer=row.layer)
        features = {one.id: encoder(soundfile.read(one.audio, dtype="float32")[0]) for one in data.score_on}
        assert list(row.scores) == score_features(features, items, rate_hz=50.0)
        assert row.tokenizer is None and {score.metric for score in row.scores} == {"abx_within", "abx_across"}
    only = replace(options, max_frames=7)  # nothing is fitted to features: the rows stand
    assert [cell.key for cell in plan(specs, [], data, options=only)] == [row.cell for row in rows[::2]]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The layers of every run of an encoder from now on."""
    runs: list[tuple[object, ...]] = []

    class Counted(Layers):
        def __init__(self, features: str, layers: list[int | None], *, device: str = "cpu") -> None:
            super().__init__(features, layers, device=device)
            runs.append(self.layers)

    monkeypatch.setattr(module, "Layers", Counted)
    return runs


def test_finished_cells_are_not_done_again(
    hubert: str, data: SweepData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, runs, shares = parse_encoders([f"a={hubert}:1-3"]), counted(monkeypatch), list[float]()
    cells = plan(specs, [4, 6], data, options=OPTIONS)
    rows = sweep(cells, data, out=tmp_path, options=OPTIONS, progress=shares.append)
    assert runs == [(1, 2, 3)] and sum(shares) == pytest.approx(6)
    file = tmp_path / "sweep.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3] + lines[4:]))  # all but layer 2 with 6 units
    again = sweep(cells, data, out=tmp_path, options=OPTIONS)
    assert runs == [(1, 2, 3), (2,)] and timeless(again) == timeless(rows)
    renamed = plan(parse_encoders([f"b={hubert}:1-3"]), [4, 6], data, options=OPTIONS)
    last = sweep(renamed, data, out=tmp_path, options=OPTIONS)
    assert len(runs) == 2 and [row.encoder for row in last] == ["b"] * 6
    assert [row.tokenizer for row in last] == [row.tokenizer for row in rows]


def test_a_killed_sweep_keeps_what_was_finished(
    data: SweepData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan(parse_encoders(["mfcc"]), [4, 6], data, options=OPTIONS)

    def stop(text: str) -> None:
        if text == "mfcc, 6 units: scoring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(cells, data, out=tmp_path, options=OPTIONS, note=stop)
    assert [row.units for row in read_rows(tmp_path / "sweep.jsonl").values()] == [4]


def test_memory_bounds_the_layers_of_a_run_and_changes_no_row(
    hubert: str, data: SweepData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, specs = counted(monkeypatch), parse_encoders([f"{hubert}:0-4"])
    frame = 4 * 32 * 150 / 1e9  # GB of one layer's sample
    found = []
    for folder, memory, expected in (("all", 7 * frame, [(0, 1, 2, 3, 4)]), ("few", 4 * frame, [(0, 1), (2, 3), (4,)])):
        options = replace(OPTIONS, memory_gb=memory * 1.01, metrics=("pnmi",))
        cells = plan(specs, [4], data, options=options)
        found.append(timeless(sweep(cells, data, out=tmp_path / folder, options=options)))
        assert runs == expected
        runs.clear()
    assert found[0] == found[1]


def test_a_cell_is_known_by_all_that_decides_its_scores(hubert: str, data: SweepData, tmp_path: Path) -> None:
    def key(spec: str, units: int = 5, *, of: SweepData = data, options: SweepOptions = OPTIONS) -> str:
        return plan([parse_encoder(spec)], [units], of, options=options)[0].key

    shorter = tmp_path / "phones.tsv"
    shorter.write_text("".join((data.alignments or Path()).read_text().splitlines(keepends=True)[:-1]))
    changed = tmp_path / "changed"
    model = model_of("hubert-base")
    model.save_pretrained(changed)
    weights = model.encoder.layers[1].final_layer_norm.bias.clone()
    with torch.no_grad():
        model.encoder.layers[1].final_layer_norm.bias += 1e-3
        model.save_pretrained(changed)
        model.encoder.layers[1].final_layer_norm.bias.copy_(weights)
    base = f"{hubert}:2"
    others = [
        key(f"{hubert}:3"),
        key(f"{changed}:2"),
        key("mfcc"),
        key(base, 6),
        key(base, of=replace(data, alignments=shorter)),
        key(base, of=replace(data, prefix="")),
        key(base, of=replace(data, test=data.train)),
        key(base, of=replace(data, train=data.test)),
        key(base, options=replace(OPTIONS, metrics=("pnmi",))),
        key(base, options=replace(OPTIONS, seed=1)),
        key(base, options=replace(OPTIONS, max_frames=151)),
        key(base, options=replace(OPTIONS, silence=False)),
        key(base, options=replace(OPTIONS, task=replace(OPTIONS.task, context="within"))),
    ]
    assert len({key(base), *others}) == len(others) + 1
    assert key(f"{changed}:1") == key(f"{hubert}:1"), "the change lies above layer 1"
    assert key(f"name={hubert}:2", options=replace(OPTIONS, memory_gb=9.0, device="auto")) == key(base)


def test_bad_files_are_told_of_and_skipped(data: SweepData, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("hello " * 100)
    bad = Utterance("s/bad", str(tmp_path / "bad.wav"), 1.0, speaker="ann", text="hello")
    with_bad = []
    for path in (data.train, data.test):
        write_manifest(tmp_path / path.name, [*read_manifest(path), bad])
        with_bad.append(tmp_path / path.name)
    messy = replace(data, train=with_bad[0], test=with_bad[1])
    cells = plan(parse_encoders(["mfcc"]), [5], messy, options=OPTIONS)
    with pytest.raises(BAD_INPUT, match="bad.wav"):
        sweep(cells, messy, out=tmp_path / "strict", options=OPTIONS)
    told: list[str] = []
    rows = sweep(
        cells, messy, out=tmp_path / "out", options=OPTIONS, on_error=lambda utterance, _: told.append(utterance.id)
    )
    assert told == ["s/bad", "s/bad"]  # on the way to fitting, and to scoring
    clean = sweep(
        plan(parse_encoders(["mfcc"]), [5], data, options=OPTIONS), data, out=tmp_path / "clean", options=OPTIONS
    )
    assert rows[0].scores == clean[0].scores and rows[0].tokenizer == clean[0].tokenizer


def test_foreign_rows_and_unknown_metrics_are_refused(data: SweepData, tmp_path: Path) -> None:
    (tmp_path / "sweep.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(SweepError, match=r"sweep.jsonl:1: not a row"):
        sweep([], data, out=tmp_path)
    with pytest.raises(ValueError, match=r"unknown metric wer; known: all, pnmi"):
        plan(parse_encoders(["mfcc"]), [5], data, options=replace(OPTIONS, metrics=("wer",)))


# -------------------------------------------------------------------------------------------------------- specs


def test_encoders_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run=3:2").mkdir()
    for text, expected in {
        "mfcc": EncoderSpec("mfcc", "mfcc"),
        "whisper-base:2,4,6": EncoderSpec("whisper-base", "whisper-base", (2, 4, 6)),
        "facebook/hubert-base-ls960:7-9,0": EncoderSpec(
            "hubert-base-ls960", "facebook/hubert-base-ls960", (0, 7, 8, 9)
        ),
        "mine=exp/a/best:all": EncoderSpec("mine", "exp/a/best", every=True),
        "exp/a=b/best": EncoderSpec("best", "exp/a=b/best"),
        "run=3:2": EncoderSpec("run=3:2", "run=3:2"),  # a folder of that very name
    }.items():
        assert parse_encoder(text) == expected
    for text, words in {"exp/a:5-2": "write 2-5", ":3": "is none", "": "is none"}.items():
        with pytest.raises(SweepError, match=words):
            parse_encoder(text)


def test_equal_names_must_be_told_apart() -> None:
    with pytest.raises(SweepError, match=r"exp/a/best and exp/b/best would both be called 'best'"):
        parse_encoders(["exp/a/best:2", "exp/b/best:2"])
    assert [one.label for one in parse_encoders(["a=exp/a/best:2", "exp/b/best:2", "exp/b/best:4"])] == [
        "a", "best", "best",
    ]  # fmt: skip
    with pytest.raises(SweepError, match="would both be called 'test'"):
        labelled_files(["a/test.jsonl", "b/test.jsonl"])
    assert labelled_files(["a/test.jsonl", "b=b/test.jsonl"]) == [
        ("test", Path("a/test.jsonl")),
        ("b", Path("b/test.jsonl")),
    ]


def test_what_cannot_be_swept_is_named(hubert: str, data: SweepData) -> None:
    for spec, words in {
        "mfcc:2": "mfcc has no layers",
        f"{hubert}:9": "no layer 9; known: 0",
        "none": "unknown",
    }.items():
        with pytest.raises(ValueError, match=words):
            plan([parse_encoder(spec)], [5], data, options=OPTIONS)
    assert [cell.layer for cell in plan([parse_encoder(f"{hubert}:all")], [5], data)] == [1, 2, 3, 4]
    assert [cell.layer for cell in plan([parse_encoder(hubert)], [5], data)] == [2]
    assert parse_units("100,50,100") == [100, 50]
    for text in ("", "100;200", "0", "5.5"):
        with pytest.raises(SweepError, match="100,500"):
            parse_units(text)


# ---------------------------------------------------------------------------------------------- tables and charts


def made(label: str, layer: int | None, units: int | None, **values: tuple[float | None, float | None]) -> SweepRow:
    scores = tuple(
        ScoreRow("units", "test", metric, value, 9, "", control=control, note=None if value is not None else "left out")
        for metric, (value, control) in values.items()
    )
    return SweepRow("c", label, label, layer, units, "0" * 12, 9, 1.0, scores)


def test_tables_show_controls_and_what_was_left_out() -> None:
    rows = [
        made("a|b", 2, 100, pnmi=(0.5, 0.0625), ued=(None, None)),
        made("a|b", None, None, abx_within=(12.5, None)),
    ]
    table = markdown(rows, about="Made so.")
    assert "| encoder | layer | units | PNMI ↑ | ABX within % ↓ | s | tokenizer |" in table
    assert "| a\\|b | 2 | 100 | 0.500 (0.062) | – | 1 | `000000000000` |" in table
    assert "| a\\|b | – | features | – | 12.50 | 1 | `000000000000` |" in table
    assert "\nued: left out\n" in table and table.endswith("Made so.\n")


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e3), st.integers(2, 8))
def test_ticks_are_round_and_hold_the_values(low: float, width: float, count: int) -> None:
    ticks = round_ticks(low, low + width, count, cover=True)
    steps = np.diff(ticks)
    slack = 1e-6 * steps[0]
    assert ticks[0] <= low + slack and ticks[-1] >= low + width - slack and len(ticks) <= count + 2
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert f"{steps[0]:.1e}"[:3] in ("1.0", "2.0", "2.5", "5.0")


def drawn(text: str) -> Iterator[tuple[str, ElementTree.Element]]:
    for element in ElementTree.fromstring(text).iter():
        yield element.tag.rpartition("}")[2], element


def test_a_chart_places_every_score() -> None:
    scores = {2: 0.3, 5: 0.6, 3: 0.45}
    rows = [made("<one>", layer, 100, pnmi=(value, 0.1)) for layer, value in scores.items()]
    rows.append(made("flat", None, 100, pnmi=(0.5, 0.1)))
    rows.append(made("<one>", 2, None, pnmi=(None, None)))
    text = svg(rows)
    circles = [(float(e.get("cx", 0)), float(e.get("cy", 0))) for tag, e in drawn(text) if tag == "circle"]
    circles.sort()
    assert [y for _, y in circles] == sorted((y for _, y in circles), reverse=True), "better is higher, layers ascend"
    (x2, y2), (x3, y3), (x5, y5) = circles
    assert (x3 - x2) / (x5 - x2) == pytest.approx(1 / 3, abs=0.01)
    assert (y3 - y2) / (y5 - y2) == pytest.approx(0.5, abs=0.01)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in circles)
    words = [e.text for tag, e in drawn(text) if tag == "text"]
    assert {"PNMI ↑", "layer", "2", "3", "5", "<one>, 100 units", "flat, 100 units"} <= set(words)
    assert "ABX across % ↓" not in words
    level = [e for tag, e in drawn(text) if tag == "path" and e.get("class") == "line" and "H" in e.get("d", "")]
    assert len(level) == 1 and y5 < float(level[0].get("d", "").split(" ")[1].partition("H")[0]) < y3
    empty = [made("a", None, 5, bitrate=(50.0, None))]
    assert drawable(rows) and not drawable(empty)
    with pytest.raises(SweepError, match="nothing to draw"):
        svg(empty)


def test_rows_survive_the_file(data: SweepData, tmp_path: Path) -> None:
    cells = plan(parse_encoders(["mfcc"]), [5], data, options=OPTIONS)
    rows = sweep(cells, data, out=tmp_path, options=OPTIONS)
    assert isinstance(cells[0], Cell) and read_rows(tmp_path / "sweep.jsonl") == {cells[0].key: rows[0]}
    facts = json.loads((tmp_path / "sweep.jsonl").read_text())
    assert facts["tokenizer"] == rows[0].tokenizer and facts["scores"][0]["control"] is not None
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.jsonl"], "no lock and no half file is left"

"""`unitkit score`: syntheses without a word more, unit files, and sweeps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from unitkit.cli import app, main
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics.alignments import Phone, read_alignments, write_alignments
from unitkit.metrics.rows import UNIT_METRICS, read_scores
from unitkit.metrics.unit_scores import AbxTask, score_units
from unitkit.units import UnitsHeader, write_units

torch.set_num_threads(1)
SAMPLES = Path(__file__).resolve().parents[1] / "samples" / "en"
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`unitkit score ARGS` in this process, in a terminal in which no table wraps."""
    monkeypatch.setattr("unitkit.cli.show.console.width", 250)
    return lambda *args: CliRunner().invoke(app, ["score", *map(str, args)], catch_exceptions=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """units.jsonl, other.jsonl, manifest.jsonl and phones.tsv: four sentences said by two speakers each, at random."""
    root, rng = tmp_path_factory.mktemp("scored"), np.random.default_rng(0)
    rows, aligned = [], []
    for number in range(8):
        rows.append(Utterance(f"x/{number}", f"{number}.wav", 2.0, speaker="ab"[number % 2], text=f"say {number // 2}"))
        labels, cuts = rng.choice(["A", "B", "C", "SIL"], 20).tolist(), np.round(np.linspace(0, 2, 21), 3).tolist()
        aligned.append((str(number), list(map(Phone, cuts[:-1], cuts[1:], labels))))
    write_manifest(root / "manifest.jsonl", rows)
    write_alignments(root / "phones.tsv", aligned)
    for name in ("units", "other"):
        header = UnitsHeader("0123456789ab", 50.0, 10, 1)
        write_units(root / f"{name}.jsonl", header, [header.units(rng.integers(0, 10, 100), row.id) for row in rows])
    return root


def options(folder: Path) -> tuple[object, ...]:
    return ("--manifest", folder / "manifest.jsonl", "--alignments", folder / "phones.tsv", "--alignments-prefix", "x/")


@pytest.mark.parametrize("args", [["a", "b", "--reference", "r", "-o", "s"], ["--reference", "r", "-o", "s", "a", "b"]])
@pytest.mark.parametrize("word", [[], ["syntheses"]])
def test_syntheses_need_no_word(args: list[str], word: list[str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def scored(systems: list[Path], reference: Path, **given: Any) -> list[Any]:
        calls.append((systems, reference, given["out"]))
        return []

    monkeypatch.setattr("unitkit.metrics.score.score_directories", scored)
    done = run(*word, *args)
    assert done.exit_code == 0, done.output
    assert calls == [([Path("a"), Path("b")], Path("r"), Path("s"))]


def test_every_kind_of_score_has_help_with_an_example(run: Run) -> None:
    for args, words in {
        (): ("--reference", "unitkit score exp/synth", "unitkit score units exp"),
        ("units",): ("--alignments-prefix", "unitkit score units a=exp"),
        ("sweep",): ("--encoder", "--max-frames", "label=name:layers", "whisper-base:2,4,6"),
    }.items():
        done = run(*args, "--help")
        assert done.exit_code == 0
        for word in words:
            assert word in done.output, (args, word)
    assert run("units", "--sweep", "--help").output == run("sweep", "--help").output


def test_unit_files_are_scored(folder: Path, tmp_path: Path, run: Run) -> None:
    files = (folder / "units.jsonl", f"second={folder / 'other.jsonl'}")
    extra = ("--context", "within", "--kind", "triphone", "--no-silence", "--seed", 3, "--split", "dev")
    done = run("units", *files, *options(folder), *extra, "-o", tmp_path / "scores.jsonl")
    assert done.exit_code == 0, done.output
    expected = []
    for label, name in (("units", "units"), ("second", "other")):
        expected += score_units(
            folder / f"{name}.jsonl",
            read_alignments(folder / "phones.tsv", prefix="x/"),
            manifest=folder / "manifest.jsonl",
            system=label,
            split="dev",
            task=AbxTask("triphone", "within", seed=3),
            silence=False,
            seed=3,
        )
    assert read_scores(tmp_path / "scores.jsonl") == expected
    assert {row.metric for row in expected} == set(UNIT_METRICS) and {row.value for row in expected[:9]} - {None}
    assert "PNMI" in done.output and "second" in done.output


def test_an_item_file_takes_the_place_of_the_alignments(folder: Path, tmp_path: Path, run: Run) -> None:
    items = tmp_path / "my.item"
    rows = [
        f"x/{n} {at / 10} {at / 10 + 0.1} {'AB'[at % 2]} SIL SIL {'ab'[n % 2]}" for n in range(8) for at in range(9)
    ]
    items.write_text("\n".join(["#file onset offset #phone prev-phone next-phone speaker", *rows]) + "\n")
    out = tmp_path / "scores.jsonl"
    done = run("units", folder / "units.jsonl", "--items", items, "--metrics", "abx_within,pnmi", "-o", out)
    assert done.exit_code == 0, done.output
    abx, pnmi = read_scores(out)
    assert abx.n == len(rows) and "|item:my.item|" in abx.signature
    assert pnmi.value is None and "needs phone alignments" in done.output


def test_wrong_values_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    units = folder / "units.jsonl"
    sweep = ["sweep", "--encoder", "mfcc", "--train", "no.jsonl", "--test", "no.jsonl", "-o", folder / "none"]
    for args, words in (
        (["units", units, f"{folder}/elsewhere/units.jsonl"], ("'units'", "another-name=")),
        (["units", units, "--context", "some"], ("--context 'some'", "within, any")),
        (["units", units, "--kind", "word"], ("--kind 'word'", "phoneme, triphone")),
        (["units", units, "--metrics", "wer"], ("unknown metric wer", "pnmi")),
        (sweep, ("no.jsonl",)),
        ([*sweep, "--units", "ten"], ("'ten'", "100,500")),
        ([*sweep, "--metrics", "wer"], ("unknown metric wer", "pnmi")),
    ):
        monkeypatch.setattr("sys.argv", ["unitkit", "score", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert end.value.code == 2 and all(word in said for word in words), said


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight shipped recordings to fit on, six to score on, with phones at random places."""
    root, rng = tmp_path_factory.mktemp("shipped"), np.random.default_rng(0)
    train, test = (
        list(read_manifest(SAMPLES / f"{name}.jsonl"))[:count] for name, count in (("train", 8), ("test", 6))
    )
    write_manifest(root / "train.jsonl", train)
    write_manifest(root / "test.jsonl", test)
    rows = []
    for row in test:
        cuts = np.arange(0, row.duration or 0.0, 0.1).tolist()
        rows.append((row.id, list(map(Phone, cuts[:-1], cuts[1:], rng.choice(["A", "B", "C"], len(cuts)).tolist()))))
    write_alignments(root / "phones.tsv", rows)
    return root


@pytest.mark.parametrize("words", [("sweep",), ("units", "--sweep")])
def test_a_sweep_writes_rows_a_table_and_a_chart(
    words: tuple[str, ...], shipped: Path, tmp_path: Path, run: Run
) -> None:
    data = (
        "--train",
        shipped / "train.jsonl",
        "--test",
        shipped / "test.jsonl",
        "--alignments",
        shipped / "phones.tsv",
    )
    args = (*words, "--encoder", "mfcc", "--encoder", "loud=logmel", "-k", "5,8", *data, "-o", tmp_path / "out")
    done = run(*args, "--max-frames", 300)
    assert done.exit_code == 0, done.output
    assert "4 cells, 0 of them finished before" in done.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "sweep.jsonl").read_text().splitlines()]
    assert [(row["encoder"], row["units"]) for row in rows] == [("mfcc", 5), ("mfcc", 8), ("loud", 5), ("loud", 8)]
    table = (tmp_path / "out" / "sweep.md").read_text()
    chart = (tmp_path / "out" / "sweep.svg").read_text()
    for row in rows:
        pnmi = next(score for score in row["scores"] if score["metric"] == "pnmi")
        cells = f"{pnmi['value']:.3f} ({pnmi['control']:.3f})"
        assert f"| {row['encoder']} | – | {row['units']} | {cells} |" in table and row["tokenizer"] in table
        assert cells in done.output and f"{row['encoder']}, {row['units']} units" in chart
    assert "ued: left out" in done.output and "ued: left out" in table, "one speaker says each sentence"
    again = run(*args, "--max-frames", 300)
    assert "4 cells, 4 of them finished before" in again.output
    assert (tmp_path / "out" / "sweep.md").read_text() == table

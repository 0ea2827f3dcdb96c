"""Baselines of translation: copying the closest training target, and Whisper's own translations."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from recipe_files import recipe as recipe_file

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics import weights
from unitkit.metrics.recognise import Recognizer
from unitkit.metrics.text import normaliser
from unitkit.units import Units, UnitsHeader, read_header, read_units, write_units

ROOT = Path(__file__).parents[1]
SOURCE, TARGET = UnitsHeader("es-units", 50.0, 6), UnitsHeader("en-units", 25.0, 90)


@pytest.fixture(scope="module")
def baselines() -> ModuleType:
    return recipe_file("baselines")


def write(path: Path, rows: dict[str, list[int]], header: UnitsHeader) -> Path:
    write_units(path, header, [header.units(np.array(ids), name) for name, ids in rows.items()])
    return path


def slow_runs(ids: list[int]) -> list[int]:
    return [unit for place, unit in enumerate(ids) if place == 0 or unit != ids[place - 1]]


def slow_edit_distance(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row, above = [i], row
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def slow_closest(query: list[int], train: dict[str, list[int]]) -> tuple[str, float]:
    """The first training id of the least distance over the longer length, by trying all."""
    best, least = "", 2.0
    for name, ids in train.items():
        a, b = slow_runs(query), slow_runs(ids)
        apart = slow_edit_distance(a, b) / max(len(a), len(b))
        if apart < least:
            best, least = name, apart
    return best, least


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, dict[str, list[int]]]:
    """Random units of 30 training pairs and 12 test sources, many of them near a training source."""
    rng = np.random.default_rng(0)
    train = {f"t{i}": np.repeat(rng.integers(0, 6, size=rng.integers(3, 15)), 2).tolist() for i in range(30)}
    target = {name: rng.integers(0, 90, size=rng.integers(2, 9)).tolist() for name in train}
    test = {f"x{i}": train[f"t{2 * i}"][: rng.integers(4, 20)] + rng.integers(0, 6, size=3).tolist() for i in range(12)}
    write(tmp_path / "train.es.jsonl", train, SOURCE)
    write(tmp_path / "train.en.jsonl", dict(reversed(target.items())), TARGET)  # joined by id, whatever the order
    write(tmp_path / "test.es.jsonl", test, SOURCE)
    return {"train": train, "target": target, "test": test}


def words_of(folder: Path, *more: str) -> list[str]:
    named = {"train-source": "train.es", "train-target": "train.en", "test-source": "test.es"}
    options = [word for key, name in named.items() for word in (f"--{key}-units", str(folder / f"{name}.jsonl"))]
    return ["copy", *options, "-o", str(folder / "deep/out.jsonl"), *more]


def test_copies_the_closest_as_the_slow_reference_does(
    baselines: ModuleType, corpus: dict[str, dict[str, list[int]]], tmp_path: Path
) -> None:
    assert baselines.main(words_of(tmp_path)) == 0
    assert read_header(tmp_path / "deep/out.jsonl") == TARGET
    found = list(read_units(tmp_path / "deep/out.jsonl"))
    lines = (tmp_path / "deep/out.tsv").read_text().splitlines()
    assert [units.id for units in found] == list(corpus["test"]) and lines[0] == "id\tcopied\tdistance"
    for units, line in zip(found, lines[1:], strict=True):
        nearest, apart = slow_closest(corpus["test"][units.id], corpus["train"])
        assert units.ids.tolist() == corpus["target"][nearest]
        assert line == f"{units.id}\t{nearest}\t{apart:.4f}"
    assert len({line.split("\t")[1] for line in lines[1:]}) > 6


def test_durations_do_not_matter_and_the_longer_length_norms(baselines: ModuleType) -> None:
    def units(*ids: int) -> Units:
        return SOURCE.units(np.array(ids), "u")

    one = baselines.runs(units(1, 1, 1, 2, 3, 3))
    assert baselines.distance(one, baselines.runs(units(1, 2, 2, 2, 3))) == 0
    assert baselines.distance(one, baselines.runs(units(1, 2, 3, 4))) == pytest.approx(1 / 4)
    assert baselines.distance([], []) == 0 and baselines.distance(one, []) == 1


def test_frames_of_several_codebooks_are_compared_whole(baselines: ModuleType) -> None:
    two = UnitsHeader("two", 50.0, 6, 2)
    train = {"a": two.units(np.array([[1, 2], [3, 4]]), "a"), "b": two.units(np.array([[1, 2], [1, 2], [3, 5]]), "b")}
    (choice,) = baselines.choose(train, {"x": two.units(np.array([[1, 2], [3, 5], [3, 5]]), "x")})
    assert choice == ("x", "b", 0.0)


def test_random_copies_are_a_seeded_control(
    baselines: ModuleType, corpus: dict[str, dict[str, list[int]]], tmp_path: Path
) -> None:
    copied = []
    for seed in ("1", "1", "2"):
        assert baselines.main(words_of(tmp_path, "--random", seed)) == 0
        rows = [line.split("\t") for line in (tmp_path / "deep/out.tsv").read_text().splitlines()[1:]]
        copied.append([row[1] for row in rows])
        nearest = [slow_closest(corpus["test"][row[0]], corpus["train"])[1] for row in rows]
        assert sum(float(row[2]) for row in rows) > 1.3 * sum(nearest)
    assert copied[0] == copied[1] != copied[2]


def test_what_does_not_fit_is_named_and_nothing_is_written(
    baselines: ModuleType,
    corpus: dict[str, dict[str, list[int]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target, test = corpus["target"], corpus["test"]

    def complaint() -> str:
        assert baselines.main(words_of(tmp_path)) == 2
        assert not (tmp_path / "deep/out.jsonl").exists()
        return capsys.readouterr().err.replace("\n", " ")

    write(tmp_path / "train.en.jsonl", {name: ids for name, ids in target.items() if name != "t7"}, TARGET)
    assert "train.en.jsonl: no units of 1 (t7) that" in complaint()
    write(tmp_path / "train.en.jsonl", target, TARGET)
    write(tmp_path / "test.es.jsonl", test | {"t3": [1, 2]}, SOURCE)
    assert "1 (t3) also in" in complaint()
    write(tmp_path / "test.es.jsonl", test, UnitsHeader("other", 50.0, 6))
    assert "'other'" in complaint()
    write(tmp_path / "test.es.jsonl", test, SOURCE)
    write(tmp_path / "train.es.jsonl", {}, SOURCE)
    assert "no training utterances" in complaint()
    (tmp_path / "train.es.jsonl").unlink()
    assert "train.es.jsonl" in complaint()


# ---------------------------------------------------------------------------------------------------- translating


class Translating:
    """Stands in for Whisper: tells what it was asked."""

    signature = "pretend|beam:1"

    def __call__(self, wav: np.ndarray, *, lang: str | None, task: str) -> str:
        return f"{task} {lang} {len(wav)}"


def test_translations_are_texts_of_the_same_rows(
    baselines: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.Recognizer, "load", lambda name, *, threads: Translating())
    audio.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 16_000, dtype=np.float32), 16_000)
    path = str(tmp_path / "a.wav")
    rows = [
        Utterance("a", path, duration=1.0, speaker="s", lang="es_MX", text="Hola."),
        Utterance("b", path, start=0.0, duration=0.25),  # the part from the beginning
        Utterance("c", path, start=0.5, duration=0.25, lang="fr"),
    ]
    write_manifest(tmp_path / "es.jsonl", rows)
    out = tmp_path / "out/manifest.jsonl"
    assert baselines.main(["whisper-translate", str(tmp_path / "es.jsonl"), "-o", str(out)]) == 0
    found = list(read_manifest(out))
    assert [(row.id, row.lang, row.speaker) for row in found] == [
        ("a", "en", "s"),
        ("b", "en", None),
        ("c", "en", None),
    ]
    assert [row.text for row in found] == ["translate es 16000", "translate None 4000", "translate fr 4000"]
    assert all(Path(row.audio).samefile(path) for row in found)


@pytest.mark.skipif(not weights.installed("whisper-base"), reason="not installed: whisper-base")
def test_whisper_translates_a_real_spanish_recording() -> None:
    pytest.importorskip("ctranslate2")
    pytest.importorskip("whisper_normalizer.english")
    (row,) = (row for row in read_manifest(ROOT / "samples/es/test.jsonl") if row.id == "es/vm-next")
    judge = Recognizer.load("whisper-base", beam=1)
    english, spanish = (judge(row.audio, lang="es", task=task) for task in ("translate", "transcribe"))
    assert english != spanish
    assert {"6", "the", "message"} <= set(normaliser("en")(english).split()), english
    assert {"6", "mensaje"} <= set(normaliser("es")(spanish).split()), spanish
    with pytest.raises(ValueError, match="unknown task 'summarise'; known: transcribe, translate"):
        judge(row.audio, lang="es", task="summarise")


@pytest.mark.skipif(not weights.installed("whisper-tiny.en"), reason="not installed: whisper-tiny.en")
def test_an_english_model_translates_nothing() -> None:
    pytest.importorskip("ctranslate2")
    with pytest.raises(ValueError, match=r"whisper-tiny\.en knows one language and cannot translate; use whisper-base"):
        Recognizer.load("whisper-tiny.en", beam=1)(np.zeros(16_000, np.float32), task="translate")


def test_a_missing_manifest_is_named(baselines: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["whisper-translate", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    assert baselines.main(words) == 2
    assert "none.jsonl" in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()

"""The recordings that ship with the repository, and the tool that chose them."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unitkit.manifest import Utterance, hash_split, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
SPLITS = ("train", "dev", "test")


def rows(lang: str, split: str) -> list[Utterance]:
    """One shipped manifest."""
    return list(read_manifest(SAMPLES / lang / f"{split}.jsonl"))


def words(row: Utterance) -> str:
    """The words alone."""
    return " ".join(re.findall(r"\w+", (row.text or "").lower()))


@pytest.mark.parametrize(("lang", "minutes", "speaker"), [("en", (6, 7), "allison"), ("es", (3, 3.5), "allison-mx")])
def test_shipped_manifests(lang: str, minutes: tuple[float, float], speaker: str) -> None:
    splits = {split: rows(lang, split) for split in SPLITS}
    everything = [row for split in SPLITS for row in splits[split]]
    assert minutes[0] <= sum(row.duration for row in everything) / 60 <= minutes[1]
    assert len(splits["test"]) == 16 and len(splits["dev"]) == 6
    assert len({row.id for row in everything}) == len(everything)
    for split, members in splits.items():
        for row in members:
            assert hash_split(row.id.removeprefix(f"{lang}/")) == split
            assert (row.speaker, row.lang) == (speaker, lang) and len(row.text.split()) >= 2
    assert not {words(row) for row in splits["train"]} & {words(row) for row in splits["test"] + splits["dev"]}


def test_shipped_audio_is_16_khz_mono_of_the_stated_length_and_not_silent() -> None:
    manifests = [(lang, split) for lang in ("en", "es") for split in SPLITS]
    listed = [row for lang, split in manifests for row in rows(lang, split)]
    for row in listed:
        header = soundfile.info(row.audio)
        assert (header.samplerate, header.channels, header.format) == (16000, 1, "FLAC")
        assert header.frames / 16000 == row.duration
    for row in listed[::10]:
        assert 0.05 < np.abs(soundfile.read(row.audio)[0]).max() < 1.0
    assert {Path(row.audio) for row in listed} == set(SAMPLES.rglob("*.flac"))
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 12e6


def test_spanish_prompts_all_have_their_english_pair_in_the_same_split() -> None:
    for split in SPLITS:
        english = {row.id.partition("/")[2] for row in rows("en", split)}
        assert {row.id.partition("/")[2] for row in rows("es", split)} <= english


def test_readme_gives_source_licence_attribution_and_true_counts() -> None:
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for part in ("Allison Smith", "Digium", "creativecommons.org/licenses/by-sa/3.0", "1.6.1", "tools/make_samples.py"):
        assert part in text
    for lang in ("en", "es"):
        counts = [len(rows(lang, split)) for split in SPLITS]
        assert re.search(rf"\| `{lang}/` \|[^|]*\| {counts[0]} \| {counts[1]} \| {counts[2]} \|", text)


# The tool


def tool() -> object:
    """tools/make_samples.py as a module."""
    spec = importlib.util.spec_from_file_location("make_samples", ROOT / "tools" / "make_samples.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def prepared(root: Path, lang: str, names: list[str]) -> Path:
    """A prepared language with files of two seconds."""
    splits: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    for name in names:
        path = root / lang / "wav" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(32000, 0.1), 16000)
        splits[hash_split(name)].append(Utterance(f"{lang}/{name}", str(path), 2.0, None, "v", lang, f"prompt {name}"))
    for split, members in splits.items():
        write_manifest(root / lang / f"{split}.jsonl", members)
    return root / lang


def test_tool_keeps_splits_fills_the_minutes_and_prefers_shared_prompts(tmp_path: Path) -> None:
    english = prepared(tmp_path, "en", [f"d/p{number}" for number in range(300)])
    spanish = prepared(tmp_path, "es", [f"d/p{number}" for number in range(0, 300, 2)])
    make = tool()
    for _ in range(2):
        (tmp_path / "out" / "en").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / "en" / "stale.flac").touch()
        assert make.main([str(tmp_path / "out"), f"{english}=3", f"{spanish}=2"]) == 0
        assert not (tmp_path / "out" / "en" / "stale.flac").exists()
    chosen = {
        lang: {s: list(read_manifest(tmp_path / f"out/{lang}/{s}.jsonl")) for s in SPLITS} for lang in ("en", "es")
    }
    for lang, minutes in (("en", 3), ("es", 2)):
        assert sum(row.duration for members in chosen[lang].values() for row in members) == minutes * 60
        for split, members in chosen[lang].items():
            assert all(hash_split(row.id[3:]) == split for row in members)
    for split in SPLITS:
        assert {row.id[3:] for row in chosen["es"][split]} <= {row.id[3:] for row in chosen["en"][split]}


def test_tool_passes_over_short_long_and_repeated_prompts() -> None:
    make = tool()
    good = Utterance("en/a", "/a.flac", 2.0, None, "v", "en", "two words")
    assert make.suits(good)
    for change in ({"text": "one"}, {"text": None}, {"duration": 0.9}, {"duration": 12.1}, {"duration": None}):
        assert not make.suits(replace(good, **change))
    splits = {
        "train": [good],
        "dev": [],
        "test": [replace(good, id="en/b", text="Two words!"), replace(good, text="x y")],
    }
    assert [row.text for row in make.unseen(splits)["test"]] == ["x y"]


def test_tool_names_a_folder_that_is_not_prepared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert tool().main([str(tmp_path / "out"), f"{tmp_path}/none=3"]) == 2
    assert "train.jsonl: cannot be read" in capsys.readouterr().err

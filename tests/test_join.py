"""Joining manifests keeps every row and where its audio lies."""

import importlib.util
from pathlib import Path

import pytest

from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest

PATH = Path(__file__).parents[1] / "recipes" / "join.py"


@pytest.fixture
def join():
    spec = importlib.util.spec_from_file_location("join_recipe", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifests(folder: Path) -> list[str]:
    for name, langs in (("a", "en es en"), ("b", "fr en")):
        (folder / name).mkdir()
        rows = [
            Utterance(f"{name}{i}", str(folder / name / f"{i}.wav"), duration=1.0 + i, lang=lang, speaker=f"p{i}")
            for i, lang in enumerate(langs.split())
        ]
        write_manifest(folder / name / "m.jsonl", rows)
    return [str(folder / "a" / "m.jsonl"), str(folder / "b" / "m.jsonl")]


@pytest.mark.parametrize(
    ("more", "ids"),
    [
        ([], "a0 a1 a2 b0 b1"),
        (["--every", "2"], "a0 a2 b1"),
        (["--lang", "en"], "a0 a2 b1"),
        (["--lang", "en", "--lang", "fr", "--every", "3"], "a0 b1"),
        (["--speaker=p1"], "a1 b1"),
        (["--speaker", "p0", "--speaker", "p2", "--lang", "en"], "a0 a2"),
        (["--without=p0", "--without=p2"], "a1 b1"),
    ],
)
def test_rows_in_order_from_another_folder(join, tmp_path, more, ids):
    paths = manifests(tmp_path)
    assert join.main([str(tmp_path / "deep" / "er" / "all.jsonl"), *paths, *more]) == 0
    rows = list(read_manifest(tmp_path / "deep" / "er" / "all.jsonl"))
    assert " ".join(row.id for row in rows) == ids
    before = {row.id: row for path in paths for row in read_manifest(path)}
    for row in rows:
        assert Path(row.audio).resolve() == Path(before[row.id].audio).resolve()
        assert (row.duration, row.lang) == (before[row.id].duration, before[row.id].lang)


def test_refused(join, tmp_path, capsys):
    paths = manifests(tmp_path)
    with pytest.raises(ManifestError, match="a0"):
        join.main([str(tmp_path / "all.jsonl"), paths[0], paths[0]])
    assert not (tmp_path / "all.jsonl").exists()
    assert join.main([str(tmp_path / "none.jsonl"), *paths, "--lang", "xx"]) == 1
    with pytest.raises(SystemExit):
        join.main([str(tmp_path / "all.jsonl"), *paths, "--every", "0"])
    assert "--every 0" in capsys.readouterr().err

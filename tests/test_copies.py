"""Changed copies of recordings: each its own, always the same, made once."""

from pathlib import Path

import numpy as np
import pytest
from recipe_files import recipe

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest, write_manifest


@pytest.fixture
def rows(tmp_path: Path) -> list[Utterance]:
    found = []
    for i, hertz in enumerate((150, 250)):
        path = tmp_path / f"{i}.wav"
        audio.write(path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000), 16000)
        found.append(Utterance(f"en/{i}", str(path), 1.0, None, f"s{i}", "en", f"text {i}"))
    write_manifest(tmp_path / "train.jsonl", found)
    return found


def test_copies_are_changed_and_named(rows: list[Utterance], tmp_path: Path) -> None:
    copies = recipe("copies")
    out = tmp_path / "copies"
    assert copies.main([str(tmp_path / "train.jsonl"), "-o", str(out), "-n", "3"]) == 0
    made = list(read_manifest(out / "manifest.jsonl"))
    assert [row.id for row in made] == [f"en/{i}~{k}" for i in range(2) for k in (1, 2, 3)]
    assert [(row.speaker, row.lang, row.text) for row in made[::3]] == [(r.speaker, r.lang, r.text) for r in rows]
    wavs = [audio.read(row.audio, 16000) for row in made]
    assert all(1 / 1.12 <= len(wav) / 16000 <= 1 / 0.88 for wav in wavs)
    assert [row.duration for row in made] == pytest.approx([len(wav) / 16000 for wav in wavs])
    assert len({wav.tobytes() for wav in wavs}) == 6


def test_a_copy_is_made_once_and_is_the_same_in_any_manifest(rows: list[Utterance], tmp_path: Path) -> None:
    copies = recipe("copies")
    copies.main([str(tmp_path / "train.jsonl"), "-o", str(tmp_path / "a"), "-n", "1"])
    first = {row.id: Path(row.audio) for row in read_manifest(tmp_path / "a" / "manifest.jsonl")}
    times = {path: path.stat().st_mtime_ns for path in first.values()}
    write_manifest(tmp_path / "one.jsonl", rows[1:])
    copies.main([str(tmp_path / "one.jsonl"), "-o", str(tmp_path / "a"), "-n", "1"])
    assert times == {path: path.stat().st_mtime_ns for path in first.values()}
    copies.main([str(tmp_path / "one.jsonl"), "-o", str(tmp_path / "b"), "-n", "1"])
    (again,) = read_manifest(tmp_path / "b" / "manifest.jsonl")
    assert Path(again.audio).read_bytes() == first["en/1~1"].read_bytes()
    copies.main([str(tmp_path / "one.jsonl"), "-o", str(tmp_path / "b"), "-n", "1", "--seed", "1"])
    (other,) = read_manifest(tmp_path / "b" / "manifest.jsonl")
    assert Path(other.audio).read_bytes() != first["en/1~1"].read_bytes()


def test_what_cannot_be_read_is_left_out(rows: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Path(rows[0].audio).write_bytes(b"")
    copies = recipe("copies")
    assert copies.main([str(tmp_path / "train.jsonl"), "-o", str(tmp_path / "out")]) == 1
    assert "left out: en/0: " in capsys.readouterr().err
    assert [row.id for row in read_manifest(tmp_path / "out" / "manifest.jsonl")] == ["en/1~1", "en/1~2"]
    with pytest.raises(SystemExit):
        copies.main([str(tmp_path / "train.jsonl"), "-o", str(tmp_path / "out"), "-n", "0"])

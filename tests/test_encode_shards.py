"""Shards: cut evenly, done once, checked before they count, merged into the file that one process would write."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from unitkit.encode import encode_files, rejects_of
from unitkit.manifest import ManifestError, Utterance
from unitkit.shards import (
    Shard,
    ShardError,
    check_receipt,
    encode_shard,
    folder_of,
    merge_shards,
    parse_shard,
    split,
    tasks,
)
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, UnitsError, read_units

RATE = 16000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Nine noises and two bad files."""
    folder = tmp_path_factory.mktemp("in")
    made = []
    for i in range(9):
        wav = np.random.default_rng(i).normal(0, 0.1, RATE // 4 + 900 * i)
        soundfile.write(folder / f"{i}.wav", wav, RATE)
        made.append(Utterance(f"r/{i}", str(folder / f"{i}.wav"), len(wav) / RATE))
    (folder / "empty.wav").touch()
    made.insert(1, Utterance("empty", str(folder / "empty.wav")))
    made.append(Utterance("gone", str(folder / "gone.wav"), 1.0))
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load("prompts-mfcc100", device="cpu")


@pytest.fixture(scope="module")
def other(rows: list[Utterance]) -> Tokenizer:
    good = [u for u in rows if u.id.startswith("r/")]
    return Tokenizer.fit(good, features="mfcc", units=8, device="cpu")


@given(st.lists(st.none() | st.floats(0.01, 1000), max_size=60), st.integers(1, 40))
def test_slices_are_contiguous_whole_and_even(seconds: list[float | None], total: int) -> None:
    slices = split(seconds, total)
    assert len(slices) == total
    assert [i for part in slices for i in range(len(seconds))[part]] == list(range(len(seconds)))
    known = [s for s in seconds if s is not None]
    sizes = [s if s is not None else (sum(known) / len(known) if known else 1.0) for s in seconds]
    for part in slices:
        assert sum(sizes[part]) <= (sum(sizes) / total + max(sizes, default=0)) * (1 + 1e-9)


def test_slices_of_nothing_known_are_by_count() -> None:
    assert [len(range(100)[part]) for part in split([None] * 100, 8)] == [12, 13, 12, 13, 12, 13, 12, 13]
    assert [len(range(3)[part]) for part in split([0.0] * 3, 2)] in ([0, 3], [1, 2], [2, 1], [3, 0])


@pytest.mark.parametrize("total", [1, 2, 5, 30])
def test_merged_shards_are_the_file_of_one_process(
    total: int, rows: list[Utterance], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one, out = tmp_path / "one" / "u.jsonl", tmp_path / "out" / "u.jsonl"
    alone = encode_files(tokenizer, rows, one)
    for task in reversed(tasks(rows, out, total)):
        encode_shard(tokenizer, task)
    merged = merge_shards(out, clean=True)
    assert [path.name for path in sorted(out.parent.iterdir())] == ["u.jsonl", "u.rejects.jsonl"]
    assert out.read_bytes() == one.read_bytes()
    assert rejects_of(out).read_bytes() == rejects_of(one).read_bytes()
    assert merged.encoded == alone.encoded == 9 and merged.seconds == pytest.approx(alone.seconds)
    assert [(u.id, why) for u, why in merged.bad] == [(u.id, why) for u, why in alone.bad]


def test_a_receipt_says_what_is_there(rows: list[Utterance], tokenizer: Tokenizer, tmp_path: Path) -> None:
    cut = tasks(rows, tmp_path / "u.jsonl", 3)
    for task in cut:
        encode_shard(tokenizer, task)
        receipt, units = check_receipt(task.shard), list(read_units(task.shard.path))
        assert (receipt.shard, receipt.shards, receipt.tokenizer) == (task.shard.number, 3, tokenizer.fingerprint)
        assert receipt.utterances == receipt.count + receipt.rejected == len(task.utterances)
        assert receipt.count == len(units) and receipt.frames == sum(u.n_frames for u in units)
        assert receipt.seconds == pytest.approx(sum(u.duration for u in units))
    assert task.shard.path == tmp_path / "u.jsonl.shards" / "0003-of-0003.jsonl"
    assert len({check_receipt(task.shard).manifest for task in cut}) == 1
    assert len({check_receipt(task.shard).part for task in cut}) == 3


def test_a_finished_shard_is_left_as_it_is(rows: list[Utterance], tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = tasks(rows, tmp_path / "u.jsonl", 2)[0]
    first = encode_shard(tokenizer, task)
    before = {path.name: path.stat().st_mtime_ns for path in folder_of(tmp_path / "u.jsonl").iterdir()}
    told: list[tuple[bool, bool]] = []
    again = encode_shard(tokenizer, task, on_progress=lambda step: told.append((step.kept, step.bad is not None)))
    assert before == {path.name: path.stat().st_mtime_ns for path in folder_of(tmp_path / "u.jsonl").iterdir()}
    assert (again.encoded, again.kept) == (0, first.encoded) and again.bad == first.bad
    assert len(told) == len(task.utterances) and all(kept for kept, _ in told) and any(bad for _, bad in told)
    with pytest.raises(UnitsError, match=r"empty\.wav.*strict"):
        encode_shard(tokenizer, task, strict=True)
    assert encode_shard(tokenizer, task, overwrite=True).encoded == first.encoded


def test_a_receipt_that_disagrees_is_an_error_naming_both(
    rows: list[Utterance], tokenizer: Tokenizer, other: Tokenizer, tmp_path: Path
) -> None:
    task = tasks(rows, tmp_path / "u.jsonl", 2)[0]
    encode_shard(tokenizer, task)
    with pytest.raises(ShardError, match=f"{tokenizer.fingerprint}.*{other.fingerprint}.*--overwrite"):
        encode_shard(other, task)
    grown = tasks([*rows, Utterance("new", rows[0].audio)], tmp_path / "u.jsonl", 2)[0]
    with pytest.raises(ShardError, match=f"manifest '{task.manifest[:12]}', not with '{grown.manifest[:12]}'"):
        encode_shard(tokenizer, grown)
    encode_shard(other, grown, overwrite=True)
    assert check_receipt(task.shard).tokenizer == other.fingerprint
    with pytest.raises(ShardError, match="shards of 2, not of 3"):
        encode_shard(tokenizer, tasks(rows, tmp_path / "u.jsonl", 3)[0])


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "rejects", "receipt", "renamed"])
def test_damage_is_seen_and_mended_with_overwrite(
    damage: str, rows: list[Utterance], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "u.jsonl"
    first, second = tasks(rows, out, 2)
    encode_shard(tokenizer, first)
    encode_shard(tokenizer, second)
    merge_shards(out)
    whole, path = out.read_bytes(), first.shard.path
    out.unlink()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "changed":
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    elif damage == "removed":
        path.unlink()
    elif damage == "rejects":
        rejects_of(path).unlink()
    elif damage == "receipt":
        first.shard.receipt.write_text("{}")
    else:
        first.shard.receipt.write_bytes(second.shard.receipt.read_bytes())
    for act in (lambda: merge_shards(out), lambda: encode_shard(tokenizer, first)):
        with pytest.raises(ShardError, match=r"0001-of-0002.*--shard 1/2 --overwrite"):
            act()
    assert not out.exists()
    encode_shard(tokenizer, first, overwrite=True)
    merge_shards(out)
    assert out.read_bytes() == whole


def test_merge_refuses_what_is_missing_or_mixed(
    rows: list[Utterance], tokenizer: Tokenizer, other: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "u.jsonl"
    with pytest.raises(ShardError, match="holds no shards"):
        merge_shards(out)
    cut = tasks(rows, out, 4)
    encode_shard(tokenizer, cut[0])
    encode_shard(tokenizer, cut[2])
    with pytest.raises(ShardError, match=r"2 of 4 shards are not done: 2/4, 4/4; run .*--shard 2/4"):
        merge_shards(out)
    encode_shard(tokenizer, cut[1])
    encode_shard(other, cut[3])
    with pytest.raises(ShardError, match=f"{other.fingerprint}.*{tokenizer.fingerprint}"):
        merge_shards(out)
    changed = tasks([*rows[:-1], Utterance("gone", "elsewhere.wav", 1.0)], out, 4)
    encode_shard(tokenizer, changed[3], overwrite=True)
    with pytest.raises(ShardError, match="manifest"):
        merge_shards(out)
    assert not out.exists() and not out.with_name("u.jsonl.merging").exists()
    encode_shard(tokenizer, cut[3], overwrite=True)
    encode_files(other, rows[2:4], out)
    with pytest.raises(FingerprintError, match=other.fingerprint):
        merge_shards(out)
    assert merge_shards(out, overwrite=True).encoded == 9


def test_shards_by_number_by_array_and_by_rank() -> None:
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "10", "SLURM_ARRAY_TASK_COUNT": "10"}
    stepped = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "5"}
    ranks = {"RANK": "3", "WORLD_SIZE": "4"}
    assert parse_shard("3/10", {}) == (3, 10)
    assert parse_shard("auto", {**array, "SLURM_ARRAY_TASK_ID": "1"}) == (1, 10)
    assert parse_shard("auto", {**stepped, "SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_STEP": "2"}) == (4, 5)
    assert parse_shard("auto", ranks) == (4, 4)
    assert parse_shard("auto", {**array, **ranks, "SLURM_ARRAY_TASK_ID": "2"}) == (8, 40)
    everyone = {
        parse_shard("auto", {**array, "SLURM_ARRAY_TASK_ID": str(task), "RANK": str(rank), "WORLD_SIZE": "4"})
        for task in range(1, 11)
        for rank in range(4)
    }
    assert everyone == {(number, 40) for number in range(1, 41)}
    for text in ("0/10", "11/10", "3", "a/b", "-1/3", "1/0"):
        with pytest.raises(ShardError, match=text):
            parse_shard(text, {})
    with pytest.raises(ShardError, match="holes"):
        parse_shard("auto", {**array, "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2"})
    with pytest.raises(ShardError, match="SLURM_ARRAY_TASK_ID nor RANK"):
        parse_shard("auto", {})


def test_wrong_cuts_are_named(rows: list[Utterance], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="share the id"):
        tasks([*rows, rows[0]], tmp_path / "u.jsonl", 2)
    with pytest.raises(ShardError, match="0 shards"):
        tasks(rows, tmp_path / "u.jsonl", 0)
    with pytest.raises(ShardError, match="4/3"):
        Shard(tmp_path / "u.jsonl", 4, 3)


def test_a_name_that_is_not_utf8_goes_through(tokenizer: Tokenizer, tmp_path: Path) -> None:
    name = "a\udcff.wav"  # how Python holds a file name of bytes that are not UTF-8
    row = Utterance(name, str(tmp_path / name))
    encode_shard(tokenizer, tasks([row], tmp_path / "u.jsonl", 1)[0])
    merged = merge_shards(tmp_path / "u.jsonl")
    assert [u.id for u, _ in merged.bad] == [name]
    assert json.loads(rejects_of(tmp_path / "u.jsonl").read_text())["id"] == name

"""Bulk encoding: the same units however the work was cut, nothing lost, bad input named."""

import json
import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unitkit import encode
from unitkit.encode import LockedError, encode_files, locked, rejects_of, with_durations
from unitkit.manifest import ManifestError, Utterance, discover
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, UnitsError, read_units

RATE = 16000


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short noisy sweeps, a few of them below the top folder."""
    root = tmp_path_factory.mktemp("recordings")
    for i in range(8):
        rng = np.random.default_rng(i)
        t = np.arange(int(RATE * (0.4 + 0.15 * i))) / RATE
        wav = 0.3 * np.sin(2 * np.pi * (150 + 60 * i + 300 * t) * t) + 0.05 * rng.standard_normal(len(t))
        path = root / ("deep" if i % 3 == 0 else ".") / f"r{i}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, wav, RATE)
    return root


@pytest.fixture(scope="module")
def tokenizer(recordings: Path) -> Tokenizer:
    return Tokenizer.fit(list(discover([str(recordings)])), features="mfcc", units=12, seed=1)


def utterances(root: Path) -> list[Utterance]:
    return with_durations(discover([str(root)]))


def test_same_units_alone_and_in_bulk(recordings: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = utterances(recordings)
    summary = encode_files(tokenizer, rows, tmp_path / "u.jsonl")
    written = list(read_units(tmp_path / "u.jsonl", tokenizer=tokenizer.fingerprint))
    assert summary.encoded == len(rows) == 8 and not summary.bad
    assert [u.id for u in written] == [r.id for r in rows]
    for row, bulk in zip(rows, written, strict=True):
        assert np.array_equal(tokenizer.encode(row.audio).ids, bulk.ids)


def test_interrupted_anywhere_gives_the_same_bytes(recordings: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = utterances(recordings)
    encode_files(tokenizer, rows, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for trial in range(12):
        cut = random.Random(trial).randrange(len(whole))
        out = tmp_path / f"cut{trial}.jsonl"
        out.with_name(out.name + ".partial").write_bytes(whole[:cut])
        summary = encode_files(tokenizer, rows, out)
        assert out.read_bytes() == whole
        assert summary.encoded + summary.kept == len(rows)


def test_rerun_keeps_everything_and_adds_only_the_new(recordings: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows, out = utterances(recordings), tmp_path / "u.jsonl"
    encode_files(tokenizer, rows[1:], out)
    again = encode_files(tokenizer, rows[1:], out)
    assert (again.encoded, again.kept) == (0, 7)
    more = encode_files(tokenizer, rows, out)
    assert (more.encoded, more.kept) == (1, 7)
    assert [u.id for u in read_units(out)] == [r.id for r in rows]


def test_bad_files_are_listed_and_the_rest_is_done(recordings: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    bad = {"empty.wav": b"", "text.wav": b"this is no audio\n" * 40, "cut.flac": b"fLaC\x00\x00\x00\x22garbage"}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    soundfile.write(tmp_path / "short.wav", np.zeros(50), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan] * 9000), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.random.default_rng(0).normal(0, 0.1, (8000, 2)), 8000)
    rows = [Utterance(p.stem, str(p)) for p in sorted(tmp_path.glob("*.*"))]
    rows.append(Utterance("gone", str(tmp_path / "gone.wav")))
    summary = encode_files(tokenizer, rows, tmp_path / "u.jsonl")
    assert [u.id for u in read_units(tmp_path / "u.jsonl")] == ["stereo"]
    assert {u.id for u, _ in summary.bad} == {"empty", "text", "cut", "short", "nan", "gone"}
    for utterance, reason in summary.bad:
        assert utterance.audio in reason
    listed = [json.loads(line) for line in rejects_of(tmp_path / "u.jsonl").read_text().splitlines()]
    assert [(r["id"], r["audio"], r["reason"]) for r in listed] == [(u.id, u.audio, why) for u, why in summary.bad]
    with pytest.raises(UnitsError, match="strict"):
        encode_files(tokenizer, rows, tmp_path / "v.jsonl", strict=True)
    assert not (tmp_path / "v.jsonl").exists()


def test_a_mended_file_takes_its_place_in_the_order(recordings: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = utterances(recordings)
    broken = tmp_path / "a.wav"
    broken.write_bytes(b"")
    rows.insert(2, Utterance("mended", str(broken)))
    out = tmp_path / "u.jsonl"
    assert len(encode_files(tokenizer, rows, out).bad) == 1
    soundfile.write(broken, np.random.default_rng(3).normal(0, 0.1, 8000), RATE)
    assert rejects_of(out).exists()
    assert encode_files(tokenizer, rows, out).encoded == 1
    assert [u.id for u in read_units(out)] == [r.id for r in rows]
    assert not rejects_of(out).exists()


def test_another_tokenizer_is_refused(recordings: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows, out = utterances(recordings), tmp_path / "u.jsonl"
    encode_files(tokenizer, rows, out)
    other = Tokenizer.fit(rows, features="mfcc", units=12, seed=2)
    assert other.fingerprint != tokenizer.fingerprint
    with pytest.raises(FingerprintError, match=other.fingerprint):
        encode_files(other, rows, out)
    assert encode_files(other, rows, out, overwrite=True).encoded == len(rows)
    assert {u.tokenizer for u in read_units(out)} == {other.fingerprint}


def test_doubled_ids_are_refused(recordings: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = utterances(recordings)
    with pytest.raises(ManifestError, match="share the id"):
        encode_files(tokenizer, [*rows, rows[0]], tmp_path / "u.jsonl")


@pytest.mark.parametrize("seconds", [0.5, 1.5, 100.0])
def test_batches_read_ahead_give_the_same_bytes(
    seconds: float, recordings: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """What a GPU gets: some files longer than a batch, bad ones among them, and rows kept from before."""
    (tmp_path / "bad.wav").write_bytes(b"no audio" * 50)
    rows = utterances(recordings)
    rows.insert(3, Utterance("bad", str(tmp_path / "bad.wav"), duration=0.3))
    rows.insert(5, Utterance("part", rows[-1].audio, start=0.2, duration=0.5))
    one = encode_files(tokenizer, rows, tmp_path / "one.jsonl")
    out = tmp_path / "batched.jsonl"
    out.with_name(out.name + ".partial").write_bytes((tmp_path / "one.jsonl").read_bytes()[:500])
    told: list[str] = []
    batched = encode_files(
        tokenizer, rows, out, batch_seconds=seconds, on_progress=lambda step: told.append(step.utterance.id)
    )
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert batched.bad == one.bad and batched.kept > 0
    assert told == [u.id for u in rows]


def test_one_process_at_a_time(
    recordings: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "LOCK_WAIT", 0.2)
    rows, out = utterances(recordings), tmp_path / "u.jsonl"
    with locked(out), pytest.raises(LockedError) as caught:
        encode_files(tokenizer, rows, out)
    for word in (str(out), str(os.getpid()), socket.gethostname()):
        assert word in str(caught.value)
    assert not out.exists()
    out.with_name("u.jsonl.lock").write_text("process 1 on a machine that died")  # a lock file, but nobody's lock
    assert encode_files(tokenizer, rows, out).encoded == len(rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["u.jsonl"]

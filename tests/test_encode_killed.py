"""Bulk encoding killed with SIGKILL: nothing lost, nothing doubled, the same bytes, nothing left lying about.

Each test runs this file as a program in a process of its own, which forks: torch is loaded once, so that hundreds of
kills take seconds.  tools/kill_test.py does the same to the real command.
"""

import builtins
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from unitkit import workers
from unitkit.encode import encode_files
from unitkit.manifest import Utterance
from unitkit.shards import encode_shard, merge_shards, tasks
from unitkit.tokenizer import Tokenizer

RATE = 16000
ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX")


def run(*words: object) -> dict[str, Any]:
    """This file as a program; the facts it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(facts, dict)
    return facts


@pytest.mark.parametrize("way", ["mended", "shards"])
def test_killed_at_every_write_rename_and_sync(way: str, tmp_path: Path) -> None:
    facts = run("sweep", way, tmp_path)
    assert facts["kills"] == facts["points"] > 20
    assert facts["wrong"] == []


@pytest.mark.parametrize(("way", "kills"), [("single", 30), ("shards", 30), ("workers", 10)])
def test_killed_at_random_moments(way: str, kills: int, tmp_path: Path) -> None:
    facts = run("random", way, tmp_path, kills)
    assert facts["kills"] >= kills and facts["finished"] >= 1
    assert facts["wrong"] == []


# --------------------------------------------------------------------------------------------- the program itself


def recordings(folder: Path, count: int) -> list[Utterance]:
    """Short noises, and one file that is no audio."""
    folder.mkdir()
    rows = []
    for i in range(count):
        path = folder / f"{i}.wav"
        wav = np.random.default_rng(i).normal(0, 0.1, RATE // 4 + 800 * i)
        soundfile.write(path, wav, RATE)
        rows.append(Utterance(f"r/{i}", str(path), len(wav) / RATE))
    (folder / "bad.wav").write_text("no audio " * 50)
    return [*rows[:2], Utterance("r/bad", str(folder / "bad.wav")), *rows[2:]]


def worker(way: str, tokenizer: Tokenizer, rows: list[Utterance]) -> Callable[[Path], object]:
    """The function that encodes `rows` into a folder in one of the ways."""

    def single(folder: Path) -> None:
        encode_files(tokenizer, rows, folder / "u.jsonl")

    def shards(folder: Path) -> None:
        out = folder / "u.jsonl"
        for task in tasks(rows, out, 2) if not out.exists() else ():  # merged, perhaps not cleaned up: on to the merge
            encode_shard(tokenizer, task)
        merge_shards(out, clean=True)

    def team(folder: Path) -> None:
        workers.START = "fork"  # so that torch is there already
        workers.encode_parallel(workers.Loader("prompts-mfcc100", device="cpu"), rows, folder / "u.jsonl", workers=2)

    return {"single": single, "mended": single, "shards": shards, "workers": team}[way]


class Counted:
    """A file whose writes are two: a kill may come before, or in the middle."""

    def __init__(self, file: Any, event: Callable[[], None]) -> None:
        self._file, self._event = file, event

    def write(self, data: Any) -> int:
        self._event()
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._event()
        self._file.write(data[len(data) // 2 :])
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *why: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def count_events(stop_at: int) -> Callable[[], int]:
    """Count what touches the disk from now on, and kill this process before event number `stop_at`."""
    count = 0

    def event() -> None:
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            event()
            return function(*args, **options)

        return call

    for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    plain = builtins.open

    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wa+"):
            return plain(path, mode, *args, **options)
        event()
        return Counted(plain(path, mode, *args, **options), event)

    builtins.open = opened  # type: ignore[assignment]
    return lambda: count


def child(function: Callable[[], object]) -> int:
    """Start `function` in a fork; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(3)


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prepared(folder: Path, way: str, whole: bytes | None) -> Path:
    """A fresh folder; for "mended" with a half file that lacks its first row, as if that file had been bad then."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if way == "mended" and whole is not None:
        lines = whole.splitlines(keepends=True)
        (folder / "u.jsonl.partial").write_bytes(b"".join([lines[0], *lines[2:4]]))
    return folder


def sweep(way: str, root: Path) -> dict[str, Any]:
    """Kill before every event once, finish with a second call, compare the folder with that of an undisturbed call."""
    rows = recordings(root / "in", 4)
    work = worker(way, Tokenizer.load("prompts-mfcc100", device="cpu"), rows)
    wanted_folder = prepared(root / "wanted", way, None)
    work(wanted_folder)
    wanted = files(wanted_folder)
    whole = wanted["u.jsonl"]

    def counting() -> None:
        count = count_events(0)
        work(folder)
        (root / "points").write_text(str(count()))

    folder = prepared(root / "out", way, whole)
    assert status(child(counting)) == 0
    points, kills, wrong = int((root / "points").read_text()), 0, []
    for point in range(1, points + 1):
        prepared(folder, way, whole)
        kills += status(child(lambda stop=point: (count_events(stop), work(folder)))) == -signal.SIGKILL  # type: ignore[misc]
        if status(child(lambda: work(folder))) != 0 or files(folder) != wanted:
            wrong.append({"point": point, "files": sorted(files(folder))})
    return {"points": points, "kills": kills, "wrong": wrong}


def at_random(way: str, root: Path, goal: int) -> dict[str, Any]:
    """Kill at random moments and start again, until done; then anew, until enough were killed."""
    rows = recordings(root / "in", 16)
    work = worker(way, Tokenizer.load("prompts-mfcc100", device="cpu"), rows)
    start = time.monotonic()
    work(prepared(root / "wanted", way, None))
    longest = time.monotonic() - start
    wanted, folder = files(root / "wanted"), root / "out"
    seed, kills, finished, wrong = random.Random(0), 0, 0, []
    while kills < goal:
        prepared(folder, way, None)
        while True:
            pid = child(lambda: work(folder))
            time.sleep(seed.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)  # of a process that has ended, but not been waited for: nothing
            code = status(pid)
            kills += code == -signal.SIGKILL
            if code != -signal.SIGKILL:
                break
        finished += 1
        if code != 0 or files(folder) != wanted:
            wrong.append({"status": code, "files": sorted(files(folder))})
    return {"kills": kills, "finished": finished, "wrong": wrong}


if __name__ == "__main__":
    os.fsync = lambda handle: None  # type: ignore[assignment]  # guards against power cuts, which no signal makes
    what, how, where, *rest = sys.argv[1:]
    print(json.dumps(sweep(how, Path(where)) if what == "sweep" else at_random(how, Path(where), int(rest[0]))))

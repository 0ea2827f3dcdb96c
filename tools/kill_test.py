"""Kill the real `unitkit encode` with SIGKILL again and again; the result must be the undisturbed one, byte for byte.

    python tools/kill_test.py [--kills 100] [--way single|shards|workers|all] [input ...]

For each way: runs are killed at random moments and started again until they are done, then anew, until `--kills` were
killed.  A third of the moments are anywhere in a run, the rest after it has begun to write.  With `workers` every
second victim is one of the workers, else the command itself.  Exit status 1 if anything was lost, doubled or changed.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("single", "shards", "workers")
SHARDS = 3


@dataclass
class Tally:
    """What happened in one way: `kills` that hit, of them `writing` after the first row, files `finished`, faults."""

    kills: int = 0
    writing: int = 0
    finished: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    """One line per way, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", default=[str(ROOT / "samples")])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--way", choices=[*WAYS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for way in WAYS if args.way == "all" else (args.way,):
            started = time.monotonic()
            tally = torture(way, args.inputs, root / way, args.kills, random.Random(args.seed))
            good &= not tally.wrong
            print(
                f"{way}: {tally.kills} SIGKILLs ({tally.writing} while rows were written) in {tally.runs} runs, "
                f"{tally.finished} files finished, {len(tally.wrong)} wrong, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            for fault in tally.wrong:
                print(f"  {fault}")
    print("byte-identical to the undisturbed run every time" if good else "NOT the same as the undisturbed run")
    raise SystemExit(0 if good else 1)


def commands(way: str, inputs: list[str], out: Path) -> list[list[str]]:
    """What a user types, one after the other."""
    unitkit = [sys.executable, "-m", "unitkit.cli"]
    encode = [*unitkit, "encode", *inputs, "-o", str(out), "--device", "cpu"]
    if way == "single":
        return [encode]
    if way == "workers":
        return [[*encode, "--workers", "2"]]
    shards = [[*encode, "--shard", f"{number}/{SHARDS}"] for number in range(1, SHARDS + 1)]
    return [*shards, [*unitkit, "merge", str(out), "--clean"]]


def torture(way: str, inputs: list[str], root: Path, goal: int, dice: random.Random) -> Tally:
    """Files anew until `goal` kills have hit."""
    tally, lengths = Tally(), []
    wanted = root / "wanted"
    for command in commands("single", inputs, wanted / "u.jsonl"):
        finish(start(command))
    for command in commands(way, inputs, root / "timed" / "u.jsonl"):
        began = time.monotonic()
        finish(start(command))
        lengths.append(time.monotonic() - began)
    while tally.kills < goal:
        folder = root / "out"
        shutil.rmtree(folder, ignore_errors=True)
        for command, length in zip(commands(way, inputs, folder / "u.jsonl"), lengths, strict=True):
            until_done(command, length, folder, way, tally, dice)
        tally.finished += 1
        if (found := contents(folder)) != contents(wanted):
            same = [name for name, data in contents(wanted).items() if found.get(name) == data]
            tally.wrong.append(f"file {tally.finished}: found {sorted(found)}, of which the same: {same}")
    return tally


def until_done(command: list[str], length: float, folder: Path, way: str, tally: Tally, dice: random.Random) -> None:
    """Start, kill, start again, until one run comes to its end."""
    while True:
        tally.runs += 1
        process = start(command)
        writing = dice.random() > 1 / 3 and wait_for_rows(process, folder)
        time.sleep(dice.uniform(0, length / 3 if writing else length))
        victim = process.pid
        if way == "workers" and tally.kills % 2 and (workers := children(process.pid)):
            victim = dice.choice(workers)
        hit = process.poll() is None and kill(victim)
        code = finish(process, quiet=True)
        if not hit or code == 0:  # it was done before
            if code != 0:
                tally.wrong.append(f"exit status {code}: {' '.join(command)}")
            return
        tally.kills += 1
        tally.writing += writing


def wait_for_rows(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Until something in the folder grows; False if the run ended before."""
    before = size(folder)
    while process.poll() is None:
        if size(folder) != before:
            return True
        time.sleep(0.005)
    return False


def size(folder: Path) -> int:
    """Bytes of unit files, half or whole; files may vanish meanwhile."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            if ".jsonl" in name and not name.endswith(".lock"):
                try:
                    total += os.path.getsize(os.path.join(top, name))
                except FileNotFoundError:
                    continue
    return total


def children(pid: int) -> list[int]:
    """Workers of a process (Linux), without Python's own helper that watches over shared memory."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    pids = [int(word) for word in found.read_text().split()] if found.exists() else []
    return [child for child in pids if b"resource_tracker" not in command_line(child)]


def command_line(pid: int) -> bytes:
    """Of a process that may have ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"resource_tracker"


def kill(pid: int) -> bool:
    """Whether there was still something to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Quietly, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, stdin=subprocess.DEVNULL
    )


def finish(process: subprocess.Popen[bytes], *, quiet: bool = False) -> int:
    """Exit status; anything but 0 is an error unless `quiet`."""
    code = process.wait(timeout=600)
    if code and not quiet:
        raise SystemExit(f"exit status {code} of an undisturbed run: {process.args!r}")
    return code


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()

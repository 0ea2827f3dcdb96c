"""Many workers: the file of one process, whoever dies on the way; and the commands that start them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unitkit import workers
from unitkit.cli import main
from unitkit.encode import Progress, encode_files
from unitkit.manifest import Utterance, discover
from unitkit.shards import ShardError, encode_shard, folder_of, tasks
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, UnitsError, read_units
from unitkit.workers import Loader, Options, encode_parallel

PLAIN = "prompts-mfcc100"  # no network: quick to load in every process
RATE = 16000
ROOT = Path(__file__).resolve().parents[1]
LOADER = Loader(PLAIN, device="cpu")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Thirty noises and two bad files."""
    folder = tmp_path_factory.mktemp("in")
    made = []
    for i in range(30):
        soundfile.write(folder / f"{i:02}.wav", np.random.default_rng(i).normal(0, 0.1, RATE // 4 + 300 * i), RATE)
        made.append(Utterance(f"{i:02}", str(folder / f"{i:02}.wav")))
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no audio " * 40)
    return [made[0], Utterance("text", str(folder / "text.wav")), *made[1:], Utterance("empty", f"{folder}/empty.wav")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(PLAIN, device="cpu")


@pytest.fixture(scope="module")
def wanted(rows: list[Utterance], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name and content of the files that one process leaves."""
    folder = tmp_path_factory.mktemp("wanted")
    encode_files(tokenizer, rows, folder / "u.jsonl")
    return files(folder)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as forks of this process: they have torch already.  Some tests take the real, slower start."""
    monkeypatch.setattr(workers, "START", "fork" if hasattr(os, "fork") else "spawn")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_workers_write_the_file_of_one(rows: list[Utterance], wanted: dict[str, bytes], tmp_path: Path) -> None:
    told: list[str] = []
    summary = encode_parallel(
        LOADER, rows, tmp_path / "u.jsonl", workers=2, on_progress=lambda step: told.append(step.utterance.id)
    )
    assert files(tmp_path) == wanted
    assert sorted(told) == sorted(u.id for u in rows)
    assert summary.encoded == 30 and [u.id for u, _ in summary.bad] == ["text", "empty"]
    assert summary.hours_per_hour > 0 and not multiprocessing.active_children()


def test_what_is_there_is_kept_and_only_the_new_encoded(
    rows: list[Utterance], wanted: dict[str, bytes], tmp_path: Path, forked: None
) -> None:
    out, good = tmp_path / "u.jsonl", [u for u in rows if u.id[0] in "012"]
    first = encode_parallel(LOADER, good[::2], out, workers=2)
    again = encode_parallel(LOADER, good[::2], out, workers=3)
    assert (first.encoded, again.encoded, again.kept) == (15, 0, 15)
    grown = encode_parallel(LOADER, rows, out, workers=2)
    assert (grown.encoded, grown.kept, len(grown.bad)) == (15, 15, 2)
    assert files(tmp_path) == wanted
    anew = encode_parallel(LOADER, rows, out, workers=2, options=Options(overwrite=True))
    assert (anew.encoded, anew.kept) == (30, 0) and files(tmp_path) == wanted


def test_workers_finish_what_shards_began(
    rows: list[Utterance], tokenizer: Tokenizer, wanted: dict[str, bytes], tmp_path: Path, forked: None
) -> None:
    for task in tasks(rows, tmp_path / "u.jsonl", 5)[1:3]:
        encode_shard(tokenizer, task)
    summary = encode_parallel(LOADER, rows, tmp_path / "u.jsonl", workers=2)
    assert summary.kept > 5 and summary.kept + summary.encoded == 30
    assert files(tmp_path) == wanted


@posix
def test_a_worker_that_dies_names_its_shard_and_a_rerun_goes_on(
    rows: list[Utterance], wanted: dict[str, bytes], tmp_path: Path, forked: None
) -> None:
    def shoot(step: Progress) -> None:
        for child in multiprocessing.active_children()[:1]:
            os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(ShardError, match=r"SIGKILL.*of memory.*(shard \d+/\d+|first shard).*same command goes on"):
        encode_parallel(LOADER, rows, tmp_path / "u.jsonl", workers=2, on_progress=shoot)
    assert not multiprocessing.active_children()
    assert not (tmp_path / "u.jsonl").exists()
    assert encode_parallel(LOADER, rows, tmp_path / "u.jsonl", workers=1).encoded <= 30
    assert files(tmp_path) == wanted


def test_a_workers_fault_comes_out_as_it_is(
    rows: list[Utterance], tokenizer: Tokenizer, tmp_path: Path, forked: None
) -> None:
    out = tmp_path / "u.jsonl"
    with pytest.raises(ValueError, match="minni.*prompts-mfcc100"):
        encode_parallel(Loader("minni", device="cpu"), rows, out, workers=2)
    with pytest.raises(UnitsError, match=r"(text|empty)\.wav.*strict"):
        encode_parallel(LOADER, rows, out, workers=2, options=Options(strict=True))
    assert not out.exists()
    Tokenizer.fit(rows[2:6], features="mfcc", units=4, device="cpu").save(tmp_path / "tok")
    other = Loader(str(tmp_path / "tok"), device="cpu")
    encode_parallel(LOADER, rows, out, workers=2)
    with pytest.raises(FingerprintError, match=tokenizer.fingerprint):
        encode_parallel(other, rows, out, workers=2)
    encode_parallel(other, rows, out, workers=2, options=Options(overwrite=True))
    for number, name in ((0, "local"), (2, "dask")):
        with pytest.raises(ValueError, match=r"0 workers|'dask'; known: local, ray"):
            encode_parallel(LOADER, rows, out, workers=number, engine=name)


@pytest.mark.slow  # Ray takes 10 s to start, more beside others
def test_ray_actors_write_the_same_file(rows: list[Utterance], wanted: dict[str, bytes], tmp_path: Path) -> None:
    """A real cluster of two processors on this machine."""
    pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    told: list[str] = []
    summary = encode_parallel(
        LOADER,
        rows,
        tmp_path / "u.jsonl",
        workers=2,
        engine="ray",
        on_progress=lambda step: told.append(step.utterance.id),
    )
    assert files(tmp_path) == wanted
    assert summary.encoded == 30 and [u.id for u, _ in summary.bad] == ["text", "empty"]
    assert sorted(told) == sorted(u.id for u in rows)


# ------------------------------------------------------------------------------------------------------- commands


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "unitkit.cli", *map(str, words)]


def unitkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """`unitkit ARGS` in this process: exit status and what it said."""
    monkeypatch.setattr(sys, "argv", ["unitkit", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out + said.err


def quiet() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


def test_commands_of_a_slurm_array(
    rows: list[Utterance],
    wanted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest, out = tmp_path / "m.jsonl", tmp_path / "out" / "u.jsonl"
    manifest.write_text("".join(f'{{"id":"{u.id}","audio":"{u.audio}"}}\n' for u in rows))
    code, text = unitkit(monkeypatch, capsys, "encode", manifest, "-t", PLAIN, "-o", out, "--shard", "1/2")
    assert code == 1 and "text.wav" in text, text
    code, text = unitkit(monkeypatch, capsys, "merge", out)
    assert code == 2 and "1 of 2 shards are not done: 2/2" in text and "--shard 2/2" in text, text
    with monkeypatch.context() as task:
        for name, value in {"ID": "2", "MIN": "1", "MAX": "2", "COUNT": "2"}.items():
            task.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        code, text = unitkit(task, capsys, "encode", manifest, "-t", PLAIN, "-o", out, "--shard", "auto")
    assert code == 1 and "0002-of-0002" in text, text
    code, text = unitkit(monkeypatch, capsys, "merge", out, "--clean")
    assert code == 1 and "30 utterances" in text and "2 bad" in text, text
    assert files(out.parent) == wanted
    code, text = unitkit(
        monkeypatch, capsys, "encode", manifest, "-t", PLAIN, "-o", out, "--shard", "1/2", "--workers", "2"
    )
    assert code == 2 and "leave out --workers" in text, text


def living(group: int) -> list[str]:
    """Processes of a group, those aside that have ended and wait for their parent to notice."""
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [" ".join(row) for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@posix
def test_ctrl_c_stops_all_workers_and_a_rerun_goes_on(rows: list[Utterance], tmp_path: Path, forked: None) -> None:
    """SIGINT to the whole group, as a terminal sends it, once shards are being written."""
    out = tmp_path / "u.jsonl"
    folder = Path(rows[0].audio).parent
    many = [tmp_path / "in" / f"{i:04}.wav" for i in range(1500)]
    (tmp_path / "in").mkdir()
    for i, path in enumerate(many):
        path.symlink_to(folder / f"{i % 30:02}.wav")
    words = command("encode", tmp_path / "in", "-t", PLAIN, "-o", out, "--workers", "2")
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=quiet(),
        start_new_session=True,
        # A shell that starts the tests in the background has them, and so their children, ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(folder_of(out).glob("*.jsonl*")) and time.monotonic() < deadline:  # finished or begun
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "goes on from here" in text and "Traceback" not in text, text
    assert time.monotonic() - began < 8
    while living(process.pid) and time.monotonic() - began < 8:  # Python's own helper goes a moment after the rest
        time.sleep(0.05)
    assert living(process.pid) == []
    assert not out.exists()
    kept = sum(len(list(read_units(path))) for path in folder_of(out).glob("*.jsonl"))
    summary = encode_parallel(LOADER, list(discover([tmp_path / "in"])), out, workers=2)
    assert summary.kept >= kept and summary.kept + summary.encoded == len(many)
    assert [units.id for units in read_units(out)] == [path.stem for path in many]

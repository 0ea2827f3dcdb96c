"""Bulk encoding by many processes: shards from a queue to workers of this machine, or to actors of a Ray cluster."""

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from unitkit.encode import Progress, Summary, is_complete, locked, rejects_of, write_rejects
from unitkit.manifest import Utterance
from unitkit.shards import (
    Shard,
    ShardError,
    Task,
    discard,
    encode_shard,
    folder_of,
    merge_locked,
    refuse_other_totals,
    tasks,
    totals,
)
from unitkit.units import UnitsHeader, check_fingerprint, read_header, read_units, write_units

if TYPE_CHECKING:
    from unitkit.tokenizer import Tokenizer

START = "spawn"  # a fork after torch's threads have run may hang
ENGINES = ("local", "ray")
PER_WORKER, PER_SHARD, MOST = 32, 2000, 9999  # shards a worker at least, utterances a shard at most, shards at most
# With few shards the worker that ends first waits long for the other: 8 a worker cost a tenth of the time.
STOP = 5.0  # seconds a worker gets to end
TICK = 0.2  # seconds between two messages of a worker about its progress


@dataclass(frozen=True)
class Loader:
    """How every worker loads the tokenizer: directory or bundled name (None: the default), `Tokenizer.load`'s words."""

    tokenizer: str | None = None
    device: str = "auto"
    precision: str | None = None
    backend: str = "auto"

    def load(self, worker: int = 0) -> "Tokenizer":
        """The tokenizer; workers take the GPUs of a machine in turn unless the device names one."""
        import torch

        from unitkit.tokenizer import DEFAULT, Tokenizer

        device = self.device
        if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
            device = f"cuda:{worker % torch.cuda.device_count()}"
        name = self.tokenizer or DEFAULT
        return Tokenizer.load(name, device=device, precision=self.precision, engine=self.backend)


@dataclass(frozen=True)
class Options:
    """What holds for every file and shard of a run: as the arguments of `encode_files`."""

    strict: bool = False
    overwrite: bool = False
    batch_seconds: float | None = None


def encode_parallel(
    loader: Loader,
    utterances: Sequence[Utterance],
    output: str | Path,
    *,
    workers: int,
    engine: str = "local",
    options: Options | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """As `encode_files`, by `workers` processes of this machine, or actors of a Ray cluster: the same file.

    The work is cut into more shards than workers, and merged at the end; shards of a killed run are gone on with,
    however many workers it had.  Workers are new processes: a script that calls this guards its main part with
    `if __name__ == "__main__"`.

    Raises:
        ImportError: `engine` is "ray" and Ray is not installed.
        LockedError, FingerprintError, UnitsError: as `encode_files`.
        ShardError: a worker died, or shards in the folder do not belong to this manifest and tokenizer.
    """
    output, started = Path(output), time.monotonic()
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r}; known: {', '.join(ENGINES)}")
    if workers < 1:
        raise ValueError(f"{workers} workers: there must be at least 1")
    run = Run(loader, output, options or Options(), on_progress or (lambda progress: None))
    with locked(output):
        if run.options.overwrite:
            discard(output)
        run.todo = deque(tasks(utterances, output, _total(output, len(utterances), workers)))
        refuse_other_totals(run.todo[0].shard)
        (_run_local if engine == "local" else _run_ray)(run, utterances, workers)
        if not run.complete:
            merge_locked(output, clean=True, overwrite=run.options.overwrite)
    place = {u.id: number for number, u in enumerate(utterances)}
    run.summary.bad.sort(key=lambda pair: place[pair[0].id])
    run.summary.elapsed = time.monotonic() - started
    return run.summary


def _total(output: Path, n_utterances: int, workers: int) -> int:
    """Shards to cut into: as many as lie there already, else enough to keep every worker busy to the end."""
    if len(there := totals(output)) == 1:
        return there.pop()
    return max(1, min(n_utterances, MOST, max(PER_WORKER * workers, n_utterances // PER_SHARD)))


@dataclass
class Run:
    """The state of one call: shards `todo`, what was done, and whether `output` was `complete` before."""

    loader: Loader
    output: Path
    options: Options
    tell: Callable[[Progress], None]
    todo: deque[Task] = field(default_factory=deque)
    summary: Summary = field(default_factory=Summary)
    complete: bool = False

    def begin(self, header: UnitsHeader, utterances: Sequence[Utterance]) -> None:
        """Look at `output` once a tokenizer's header is known: nothing to do, or rows to take over, or an error."""
        if self.options.overwrite or not self.output.exists():
            return
        found = read_header(self.output)
        check_fingerprint(header.tokenizer, found.tokenizer, what=f"{self.output} (give another -o, or --overwrite)")
        if is_complete(self.output, utterances):
            self.todo.clear()
            self.complete, self.summary.kept = True, len(utterances)
            write_rejects(rejects_of(self.output), [])
            discard(self.output)
        else:
            _take_over(self.output, self.todo)


def _take_over(output: Path, todo: Sequence[Task]) -> None:
    """Put the rows of `output` into the shards they belong to, those that were begun already left out."""
    shard_of = {u.id: task.shard for task in todo for u in task.utterances}
    folder_of(output).mkdir(exist_ok=True)
    begun = set(folder_of(output).iterdir())
    for shard, rows in groupby(read_units(output), key=lambda units: shard_of.get(units.id)):
        names = () if shard is None else (shard.path, shard.receipt, shard.path.with_name(shard.path.name + ".partial"))
        if shard is not None and begun.isdisjoint(names):
            write_units(shard.path, read_header(output), rows)
            begun.add(shard.path)


# --------------------------------------------------------------------------------------------------- this machine


def _run_local(run: Run, utterances: Sequence[Utterance], workers: int) -> None:
    """Hand out shards until none is left; any worker's fault ends the run, its half shards kept."""
    at: dict[Connection, Task] = {}
    begun = False
    with _team(run.loader, run.options, min(workers, len(run.todo))) as team:
        while team:
            for ready in wait(list(team)):
                assert isinstance(ready, Connection)
                kind, value = _received(ready, team[ready], at.get(ready))
                if kind == "progress":
                    for step in value:
                        run.tell(step)
                    continue
                if kind == "ready" and not begun:
                    run.begin(value, utterances)
                    begun = True
                if kind == "done":
                    run.summary.add(value)
                    del at[ready]
                _send_next(ready, run, at)
                if ready not in at:
                    team.pop(ready).join(STOP)


def _send_next(connection: Connection, run: Run, at: dict[Connection, Task]) -> None:
    """The next shard, or None: go home."""
    if run.todo:
        at[connection] = run.todo.popleft()
    connection.send(at.get(connection))


def _received(connection: Connection, process: BaseProcess, task: Task | None) -> tuple[str, Any]:
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionError):
        _report_death(process, task)
    if kind == "failed":
        raise value
    return kind, value


def _report_death(process: BaseProcess, task: Task | None) -> NoReturn:
    process.join(STOP)
    code = process.exitcode
    how = f"ended with status {code}"
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += " (out of memory? take fewer --workers)" if code == -signal.SIGKILL else ""
    where = f"at shard {task.shard.number}/{task.shard.total} ({task.shard.path})" if task else "before its first shard"
    raise ShardError(
        f"a worker (process {process.pid}) {how} {where}; what was encoded is kept: the same command goes on from there"
    )


@contextmanager
def _team(loader: Loader, options: Options, size: int) -> Iterator[dict[Connection, BaseProcess]]:
    """Workers by the pipe to each.  A queue would be shared, and a worker killed inside it would block the others."""
    context: Any = multiprocessing.get_context(START)
    everyone: list[BaseProcess] = []
    team: dict[Connection, BaseProcess] = {}
    try:
        with _one_thread_each(), _no_interrupts():
            for number in range(size):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(there, loader, options, number), daemon=True)
                process.start()
                there.close()  # so that its death ends the pipe
                everyone.append(process)
                team[here] = process
        yield team
    finally:
        for process in everyone:
            process.terminate()
        for process in everyone:
            process.join(STOP)
            process.kill()
            process.join()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers share the cores among them, so each computes with one thread; this process keeps its own settings."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which goes to the whole group: their parent stops them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows; workers ignore it once they run
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, loader: Loader, options: Options, number: int) -> None:
    """A worker: load the tokenizer, then encode the shards that come through the pipe until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        torch.set_num_threads(1)
        tokenizer = loader.load(number)
        connection.send(("ready", tokenizer.header()))
        while (task := connection.recv()) is not None:
            with _Reporter(connection) as reporter:
                summary = _encode(tokenizer, task, options, reporter.tell)
            connection.send(("done", summary))
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except (ValueError, OSError, ImportError) as error:
        connection.send(("failed", error))
    except Exception:
        connection.send(("failed", RuntimeError(f"in a worker:\n{traceback.format_exc()}")))


class _Reporter:
    """Progress through the pipe, a few times a second: a message per utterance would keep a core busy with waking."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.steps: list[Progress] = []
        self.sent = time.monotonic()

    def tell(self, step: Progress) -> None:
        """Keep a step; send all that were kept if the last message is old enough."""
        self.steps.append(step)
        if time.monotonic() - self.sent >= TICK:
            self.send()

    def send(self) -> None:
        """Send what was kept."""
        self.connection.send(("progress", self.steps))
        self.steps, self.sent = [], time.monotonic()

    def __enter__(self) -> "_Reporter":
        return self

    def __exit__(self, *why: object) -> None:
        self.send()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on beside the workers of the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _encode(
    tokenizer: "Tokenizer", task: Task, options: Options, on_progress: Callable[[Progress], None] | None
) -> Summary:
    return encode_shard(
        tokenizer, task, strict=options.strict, batch_seconds=options.batch_seconds, on_progress=on_progress
    )


# ------------------------------------------------------------------------------------------------------------ ray


def _run_ray(run: Run, utterances: Sequence[Utterance], workers: int) -> None:
    """Ray Data maps the shards over a pool of actors; only shard numbers and summaries travel, never audio.

    The cluster of RAY_ADDRESS (its nodes share the file system), or else one on this machine for this call.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves beside anything else that computes
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray ({error}): pip install 'unitkit[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    run.begin(run.loader.load().header(), utterances)
    if not run.todo:
        return
    mine = not ray.is_initialized()
    if mine:
        own = None if os.environ.get("RAY_ADDRESS") else workers
        ray.init(
            num_cpus=own, include_dashboard=False if own else None, log_to_driver=False, logging_level=logging.WARNING
        )
    try:
        _map_shards(run, {u.id: u for u in utterances}, min(workers, len(run.todo)))
    finally:
        if mine:
            ray.shutdown()


def _map_shards(run: Run, by_id: dict[str, Utterance], workers: int) -> None:
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = 0.0 if run.loader.device == "cpu" else ray.cluster_resources().get("GPU", 0.0)
    rows = [{"task": _packed(task)} for task in run.todo]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(run.loader, run.options),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=min(1.0, gpus / workers),
    )
    for row in results.iter_rows():
        result = json.loads(row["result"])
        if "error" in result:
            raise ShardError(f"{result['error']} (what was encoded is kept: the same command goes on from there)")
        bad = [(by_id[name], reason) for name, reason in result.pop("bad")]
        run.summary.add(Summary(bad=bad, encoded=result["encoded"], kept=result["kept"], seconds=result["seconds"]))
        reasons = {utterance.id: reason for utterance, reason in bad}
        for name in result["ids"]:
            run.tell(Progress(by_id[name], by_id[name].duration or 0.0, bad=reasons.get(name)))


class _Actor:
    """Loads the tokenizer once, then encodes one shard a call."""

    def __init__(self, loader: Loader, options: Options) -> None:
        import torch

        torch.set_num_threads(1)
        self.options = options
        self.tokenizer = loader.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"result": [json.dumps(self._result(_unpacked(str(text)))) for text in batch["task"]]}

    def _result(self, task: Task) -> dict[str, Any]:
        try:
            summary = _encode(self.tokenizer, task, self.options, None)
        except (ValueError, OSError) as error:  # ours to word; anything else is Ray's to report
            return {"error": str(error)}
        counts = {"encoded": summary.encoded, "kept": summary.kept, "seconds": summary.seconds}
        return {**counts, "bad": [(u.id, reason) for u, reason in summary.bad], "ids": [u.id for u in task.utterances]}


def _packed(task: Task) -> str:
    """A task as text: one string a row is what every Arrow version carries, file names that are not UTF-8 included."""
    shard = task.shard
    rows = [asdict(utterance) for utterance in task.utterances]
    return json.dumps([os.path.abspath(shard.output), shard.number, shard.total, task.manifest, rows])


def _unpacked(text: str) -> Task:
    output, number, total, manifest, rows = json.loads(text)
    return Task(Shard(Path(output), number, total), [Utterance(**row) for row in rows], manifest)

"""The one training loop: `fit` runs any recipe's step under Accelerate, with checkpoints that resume bit for bit."""

import contextlib
import copy
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Batches = Callable[
    [int], Iterator[Any]
]  # micro-step to start from -> endless batches; the same start, the same batches
Step = Callable[["Run", Any], dict[str, Tensor]]
Validate = Callable[[nn.Module], dict[str, float]]
Save = Callable[[nn.Module, Path, Mapping[str, float]], None]


class TrainingError(RuntimeError):
    """Training that cannot go on; the text says at which step and why."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and a learning rate that is a pure function of the step."""

    lr: float = 2e-4
    betas: tuple[float, float] = (0.8, 0.99)
    weight_decay: float = 0.01
    schedule: str = "cosine"  # constant | cosine | exponential | inverse_sqrt
    warmup: int = 0  # steps of linear rise
    final: float = 0.01  # cosine, exponential: fraction of lr left at max_steps


@dataclass(frozen=True)
class FitConfig:
    """What `fit` does around the step; `max_minutes` counts training time across resumes, 0 = no limit."""

    max_steps: int = 10_000
    max_minutes: float = 0.0
    accumulate: int = 1
    clip: float = 1.0  # norm of the gradient; 0 = never clipped
    ema: float = 0.999  # 0 = the raw weights are validated and saved
    log_every: int = 50
    validate_every: int = 500
    save_every: int = 500
    precision: str = "auto"  # auto (bf16 where the hardware has it) | bf16 | fp32
    device: str = "auto"  # auto | cpu
    tensorboard: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """A module trained by its own optimizer; the part named "model" is averaged, validated and saved."""

    module: nn.Module
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class FitResult:
    """How training ended: `stopped` is "steps", "minutes" or the name of a signal; `best` is the monitored value."""

    step: int
    seconds: float
    stopped: str
    best: float
    metrics: dict[str, float]

    @property
    def exit_code(self) -> int:
        """0 when the budget was used up, 128 + the signal's number otherwise, as shells expect."""
        return 128 + signal.Signals[self.stopped].value if self.stopped.startswith("SIG") else 0


def lr_at(config: OptimConfig, step: int, max_steps: int) -> float:
    """The learning rate of optimizer step `step` (0-based)."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, max_steps - config.warmup))
    match config.schedule:
        case "constant":
            return config.lr
        case "cosine":
            return config.lr * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress)))
        case "exponential":
            return config.lr * max(config.final, 1e-8) ** progress
        case "inverse_sqrt":
            return config.lr * math.sqrt(max(1, config.warmup) / max(1, step + 1))
    raise ValueError(f"schedule {config.schedule!r}: choose constant, cosine, exponential or inverse_sqrt")


def supervised(loss: Callable[[nn.Module, Any], dict[str, Tensor]]) -> Step:
    """Turns a function that returns {"loss": ...} (and anything else worth logging) into a step for `fit`."""

    def step(run: "Run", batch: Any) -> dict[str, Tensor]:
        losses = loss(run.modules["model"], batch)
        run.backward(losses["loss"])
        run.update()
        return losses

    return step


class Run:
    """What a step may touch: `modules` (perhaps wrapped), `bare` (never wrapped), `step`, `backward`, `update`."""

    def __init__(self, parts: Mapping[str, Part], config: FitConfig) -> None:
        if "model" not in parts:
            raise ValueError(f"fit needs a part named 'model'; the parts are {', '.join(parts)}")
        self.config = config
        AcceleratorState._reset_state()  # else the first run's precision would hold for all runs of a process
        self.accelerator = Accelerator(
            mixed_precision=_precision(config), cpu=config.device == "cpu", step_scheduler_with_optimizer=False
        )
        self.parts = parts
        self.bare = {name: part.module.to(self.accelerator.device) for name, part in parts.items()}
        self.average = copy.deepcopy(self.bare["model"]).requires_grad_(False) if config.ema else None
        self.modules = {name: self.accelerator.prepare_model(module) for name, module in self.bare.items()}
        self.optimizers = {name: _optimizer(part) for name, part in parts.items()}
        self.step = 0
        self.norms: dict[str, Tensor] = {}
        self._last_micro_step = True

    @property
    def device(self) -> torch.device:
        """Where batches and modules are."""
        return self.accelerator.device

    @property
    def final(self) -> nn.Module:
        """The module that is validated and saved: the average of the weights, or the weights."""
        return self.bare["model"] if self.average is None else self.average

    def backward(self, loss: Tensor, part: str = "model") -> None:
        """Adds the gradient of `loss` to one part only, so that a generator's pass leaves its judge alone."""
        inputs = [p for group in self.optimizers[part].param_groups for p in group["params"]]
        self.accelerator.backward(loss / self.config.accumulate, inputs=inputs)

    def update(self, part: str = "model") -> None:
        """Clips, steps and clears one part's optimizer; does nothing before the last accumulated batch."""
        if not self._last_micro_step:
            return
        optimizer = self.optimizers[part]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self.config.clip or math.inf
        self.norms[f"norm_{part}"] = torch.nn.utils.clip_grad_norm_(parameters, limit)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(self.parts[part].optim, self.step, self.config.max_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def train_step(self, step: Step, batches: Iterator[Any]) -> dict[str, Tensor]:
        """One optimizer step: `accumulate` batches through the recipe's `step`, then the average of the weights."""
        # Randomness belongs to the step, not to the process: nothing to save, nothing that a resume could miss.
        set_seed((self.config.seed * 1_000_003 + self.step * 1009 + self.accelerator.process_index) % 2**32)
        totals: dict[str, Tensor] = {}
        for index in range(self.config.accumulate):
            self._last_micro_step = index == self.config.accumulate - 1
            with contextlib.ExitStack() as stack:
                if not self._last_micro_step:
                    for module in self.modules.values():
                        stack.enter_context(self.accelerator.no_sync(module))
                losses = step(self, send_to_device(next(batches), self.device))
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / self.config.accumulate
        self.step += 1
        self._average_weights()
        return totals | self.norms

    @torch.no_grad()
    def _average_weights(self) -> None:
        if self.average is None:
            return
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))  # a young average forgets its random start
        for old, new in zip(self.average.parameters(), self.bare["model"].parameters(), strict=True):
            old.lerp_(new, 1 - keep)
        for old, new in zip(self.average.buffers(), self.bare["model"].buffers(), strict=True):
            old.copy_(new)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a resume needs, as file name -> tensors."""
        files = {f"weights_{name}": module.state_dict() for name, module in self.bare.items()}
        if self.average is not None:
            files["average"] = self.average.state_dict()
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()["state"]
            files[f"optimizer_{name}"] = {f"{i}.{key}": v for i, slot in state.items() for key, v in slot.items()}
        return files

    def load_tensors(self, files: Mapping[str, dict[str, Tensor]]) -> None:
        """The inverse of `tensors`."""
        for name, module in self.bare.items():
            module.load_state_dict(files[f"weights_{name}"])
        if self.average is not None:
            self.average.load_state_dict(files.get("average", files["weights_model"]))
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in files[f"optimizer_{name}"].items():
                index, slot = key.split(".", 1)
                state.setdefault(int(index), {})[slot] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _precision(config: FitConfig) -> str:
    if config.precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision {config.precision!r}: choose auto, bf16 or fp32")
    fast = config.precision == "bf16" or (config.precision == "auto" and _multiplies_bf16(config))
    return "bf16" if fast else "no"


def _multiplies_bf16(config: FitConfig) -> bool:
    """Whether the device does bf16 in hardware: on a CPU that does, a step takes half the time; else many times it."""
    if torch.cuda.is_available() and config.device != "cpu":
        return torch.cuda.is_bf16_supported()
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not public: its absence means "no"
    return bool(check and check())


def _optimizer(part: Part) -> torch.optim.Optimizer:
    parameters = [p for p in part.module.parameters() if p.requires_grad]
    config = part.optim
    return torch.optim.AdamW(parameters, lr=config.lr, betas=tuple(config.betas), weight_decay=config.weight_decay)


class Checkpoints:
    """Training state in `<out>/state/<step>/`: written under a temporary name, renamed, then older ones removed."""

    def __init__(self, out: Path) -> None:
        self.root = out / "state"

    def latest(self) -> Path | None:
        """The newest finished state, or None."""
        found = sorted(p for p in self.root.glob("[0-9]*") if (p / "state.json").is_file())
        return found[-1] if found else None

    def write(self, run: Run, facts: Mapping[str, Any]) -> Path:
        """Saves the run and the JSON `facts` (step, seconds, best)."""
        final = self.root / f"{run.step:09d}"
        temporary = self.root / f".{final.name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in run.tensors().items():
            copied = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            save_file(copied, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(dict(facts)) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
        for old in self.root.iterdir():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def read(self, run: Run) -> dict[str, Any]:
        """Restores the newest state into `run` and returns its facts; an empty dict when there is none."""
        path = self.latest()
        if path is None:
            return {}
        run.load_tensors({p.stem: load_file(p) for p in path.glob("*.safetensors")})
        facts = json.loads((path / "state.json").read_text())
        run.step = facts["step"]
        return facts


class MetricsLog:
    """`metrics.jsonl` (append; rows after a resumed step are dropped) and, where installed, TensorBoard."""

    def __init__(self, out: Path, *, step: int, tensorboard: bool) -> None:
        self.path = out / "metrics.jsonl"
        self._drop_after(step)
        self.board = _summary_writer(out / "tensorboard", step) if tensorboard else None

    def _drop_after(self, step: int) -> None:
        rows = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [row for row in rows if _row_step(row) <= step] if step else []
        temporary = Path(f"{self.path}.tmp")
        temporary.write_text("".join(f"{row}\n" for row in kept))
        os.replace(temporary, self.path)

    def write(self, step: int, split: str, seconds: float, values: Mapping[str, float]) -> None:
        """Appends one row; numbers only."""
        row = {"step": step, "split": split, "seconds": round(seconds, 2)} | {k: float(v) for k, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{split}/{name}", float(value), step)

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self.board is not None:
            self.board.close()


def _row_step(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line torn by a kill


def _summary_writer(folder: Path, step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


class _Signals:
    """Notes SIGTERM and SIGINT so that the loop ends after its current step; a second one acts at once."""

    def __enter__(self) -> "_Signals":
        self.name = ""
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class _Display:
    """A progress bar with the time left on a terminal, a line now and then elsewhere."""

    def __init__(self, config: FitConfig, *, step: int, show: bool) -> None:
        self.console = Console(stderr=True, quiet=not show, soft_wrap=True)
        self.max_steps = config.max_steps
        self._next_line = 0.0
        self._bar: Progress | None = None
        if show and self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console)
            self._task: TaskID = self._bar.add_task("training", total=config.max_steps, completed=step)
            self._bar.start()

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def line(self, step: int, seconds: float, split: str, values: Mapping[str, float], *, force: bool = False) -> None:
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, description=text[:60])
        if force or (self._bar is None and time.monotonic() >= self._next_line):
            self._next_line = time.monotonic() + 20
            self.console.print(f"{seconds:7.0f} s  step {step}/{self.max_steps}  {split}: {text}", highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def fit(
    parts: Mapping[str, Part],
    step: Step,
    *,
    batches: Batches,
    out: str | os.PathLike[str],
    config: FitConfig,
    save: Save,
    validate: Validate | None = None,
    monitor: str = "loss",
) -> FitResult:
    """Trains until max_steps, max_minutes or a signal; resumes from `<out>/state` when there is one.

    Args:
        parts: modules with their optimizers; "model" is the one averaged, validated and saved.
        step: the recipe's step; `supervised(loss)` makes one, a GAN writes its own with `run.backward/update`.
        batches: micro-step -> endless iterator of this process's batches from there on.
        out: model directory; `save(module, out, metrics)` fills it, `best/` holds the one with the lowest `monitor`.
        validate: module in eval mode, gradients off -> metrics of the dev split.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(parts, config)
    main = run.accelerator.is_main_process
    checkpoints = Checkpoints(out)
    facts: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": math.inf, "metrics": {}} | checkpoints.read(run)
    log = MetricsLog(out, step=run.step, tensorboard=config.tensorboard) if main else None
    display = _Display(config, step=run.step, show=main)
    before, start = facts["seconds"], time.monotonic()
    window: list[dict[str, Tensor]] = []
    stream = batches(run.step * config.accumulate)
    stopped = _agree(run, _why_stop(run, before, ""))
    with _Signals() as signals:
        try:
            while True:
                if not stopped:
                    _train_mode(run)
                    window.append(run.train_step(step, stream))
                    facts["step"], facts["seconds"] = run.step, before + time.monotonic() - start
                    stopped = _agree(run, _why_stop(run, facts["seconds"], signals.name))
                    display.advance(run.step)
                if window and (run.step % config.log_every == 0 or stopped):
                    means = _means(window, run.step)
                    window.clear()
                    if log is not None:
                        log.write(run.step, "train", facts["seconds"], means | {"lr": _lr(run)})
                        display.line(run.step, facts["seconds"], "train", means)
                due = run.step % config.validate_every == 0 or stopped
                if validate is not None and due and log is not None and facts.get("validated") != run.step:
                    facts |= {"metrics": _validate(run, validate), "validated": run.step}
                    log.write(run.step, "dev", facts["seconds"], facts["metrics"])
                    display.line(run.step, facts["seconds"], "dev", facts["metrics"], force=True)
                    _keep_best(run, facts, monitor=monitor, folder=out / "best", save=save)
                if run.step % config.save_every == 0 or stopped:
                    if main:
                        save(run.final, out, _summary(facts))
                        checkpoints.write(run, facts)
                    run.accelerator.wait_for_everyone()
                if stopped:
                    break
        finally:
            display.close()
            if log is not None:
                log.close()
    return FitResult(run.step, facts["seconds"], stopped, facts["best"], facts["metrics"])


def _train_mode(run: Run) -> None:
    for module in run.bare.values():
        module.train()


def _why_stop(run: Run, seconds: float, name: str) -> str:
    if name:
        return name
    if run.step >= run.config.max_steps:
        return "steps"
    return "minutes" if run.config.max_minutes and seconds >= 60 * run.config.max_minutes else ""


def _agree(run: Run, reason: str) -> str:
    """All processes stop together, with the same reason."""
    if run.accelerator.num_processes == 1:
        return reason
    reasons = ("", "steps", "minutes", "SIGTERM", "SIGINT")
    mine = torch.tensor([reasons.index(reason)], device=run.device)
    return reasons[int(run.accelerator.gather(mine).max())]


def _means(window: Sequence[dict[str, Tensor]], step: int) -> dict[str, float]:
    names = dict.fromkeys(name for values in window for name in values)
    means = {name: float(torch.stack([v[name].float() for v in window if name in v]).mean()) for name in names}
    for name, value in means.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} is {value} near step {step}: lower the learning rate or set fit.clip")
    return means


def _lr(run: Run) -> float:
    return run.optimizers["model"].param_groups[0]["lr"]


def _validate(run: Run, validate: Validate) -> dict[str, float]:
    training = run.final.training
    run.final.eval()
    with torch.no_grad():
        metrics = validate(run.final)
    run.final.train(training)
    return metrics


def _summary(facts: Mapping[str, Any]) -> dict[str, float]:
    return {"step": facts["step"], "minutes": facts["seconds"] / 60} | facts["metrics"]


def _keep_best(run: Run, facts: dict[str, Any], *, monitor: str, folder: Path, save: Save) -> None:
    metrics = facts["metrics"]
    if monitor not in metrics:
        raise TrainingError(f"cannot monitor {monitor!r}: validation returned {', '.join(metrics)}")
    if metrics[monitor] < facts["best"]:
        facts["best"] = metrics[monitor]
        folder.mkdir(exist_ok=True)
        save(run.final, folder, _summary(facts))

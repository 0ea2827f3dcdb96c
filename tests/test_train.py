import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unitkit.train import FitConfig, OptimConfig, Part, TrainingError, fit, lr_at, supervised

torch.set_num_threads(1)
QUIET = FitConfig(
    max_steps=12, log_every=2, validate_every=4, save_every=5, tensorboard=False, device="cpu", precision="fp32"
)


class Killed(Exception):
    """Stands for a kill that leaves no time to save."""


def batches(start):
    """Micro-step s always gives the same batch."""
    for step in itertools.count(start):
        yield torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def parts():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 4))
    judge = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
    return {"model": Part(model, OptimConfig(lr=1e-2)), "judge": Part(judge, OptimConfig(lr=1e-2, schedule="constant"))}


def gan_step(run, batch, *, die_at=None):
    if run.step == die_at:
        raise Killed
    fake = run.modules["model"](batch + torch.randn_like(batch))
    judge = run.modules["judge"]
    run.backward((judge(batch) - 1).square().mean() + judge(fake.detach()).square().mean(), "judge")
    run.update("judge")
    loss = (run.bare["judge"](fake) - 1).square().mean() + (fake - batch).abs().mean()
    run.backward(loss)
    run.update()
    return {"loss": loss}


def save(module, folder, metrics):
    save_file(module.state_dict(), folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps(metrics))


def validate(module):
    assert not module.training and not torch.is_grad_enabled()
    torch.rand(3)  # what a validation draws must not matter
    return {"loss": float(module(torch.ones(2, 4)).abs().mean())}


def run_fit(out, config=QUIET, step=gan_step, **more):
    return fit(parts(), step, batches=batches, out=out, config=config, save=save, validate=validate, **more)


def everything(out):
    """All weights, averages and optimizer states of the newest checkpoint, and the saved model."""
    (state,) = (p for p in (out / "state").iterdir())
    files = [*state.glob("*.safetensors"), out / "model.safetensors"]
    return {f"{p.stem}/{name}": value for p in files for name, value in load_file(p).items()}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kill", [7, 9])
def test_killed_and_resumed_gan_training_is_bit_equal(tmp_path, kill, accumulate):
    config = replace(QUIET, accumulate=accumulate)
    run_fit(tmp_path / "straight", config)

    def dying(run, batch):
        return gan_step(run, batch, die_at=kill)

    with pytest.raises(Killed):
        run_fit(tmp_path / "killed", config, dying)
    rows = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["step"] for row in rows) > 5 * (kill // 5)  # beyond what was saved
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "spl')  # torn by the kill
    torch.manual_seed(999)
    result = run_fit(tmp_path / "killed", config)
    assert (result.step, result.stopped, result.exit_code) == (12, "steps", 0)
    straight, resumed = everything(tmp_path / "straight"), everything(tmp_path / "killed")
    assert straight.keys() == resumed.keys() and len(straight) > 30
    assert any("optimizer_judge" in name for name in straight) and any("average/" in name for name in straight)
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    both = [[json.loads(r) for r in (tmp_path / n / "metrics.jsonl").open()] for n in ("straight", "killed")]
    steps = [[(r["step"], r["split"]) for r in rows] for rows in both]
    assert steps[0] == steps[1] and len(set(steps[0])) == len(steps[0])
    last = [{k: v for k, v in rows[-1].items() if k != "seconds"} for rows in both]
    assert last[0] == last[1]


def test_training_state_is_only_safetensors_and_json(tmp_path):
    run_fit(tmp_path)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "state.json", "weights_model.safetensors", "weights_judge.safetensors", "average.safetensors",
        "optimizer_model.safetensors", "optimizer_judge.safetensors", "metrics.jsonl", "model.safetensors", "card.json",
    }  # fmt: skip
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["000000012"]


def test_best_is_the_lowest_of_the_dev_rows(tmp_path):
    result = run_fit(tmp_path)
    dev = [r for r in map(json.loads, (tmp_path / "metrics.jsonl").open()) if r["split"] == "dev"]
    assert [r["step"] for r in dev] == [4, 8, 12]
    assert result.best == min(r["loss"] for r in dev) and result.metrics == {"loss": dev[-1]["loss"]}
    best = json.loads((tmp_path / "best" / "card.json").read_text())
    assert best["loss"] == result.best and best["step"] == min(dev, key=lambda r: r["loss"])["step"]
    with pytest.raises(TrainingError, match="cannot monitor 'wer'"):
        run_fit(tmp_path / "other", monitor="wer")


def test_finished_training_does_nothing_on_a_second_call(tmp_path):
    first = run_fit(tmp_path)
    before = everything(tmp_path)

    def never(run, batch):
        raise AssertionError

    again = run_fit(tmp_path, step=never)
    assert again.step == 12 and again.metrics == first.metrics
    assert all(torch.equal(v, everything(tmp_path)[k]) for k, v in before.items())


def test_minutes_are_counted_across_resumes(tmp_path, monkeypatch):
    clock = itertools.count()  # a step takes some "seconds" of this clock, however busy the machine is
    now = [0.0]

    def tick(run, batch):
        now[0] = next(clock)
        return gan_step(run, batch, die_at=die_at)

    monkeypatch.setattr("unitkit.train.time.monotonic", lambda: now[0])
    config = replace(QUIET, max_steps=10_000, max_minutes=20 / 60)
    die_at = 12
    with pytest.raises(Killed):
        run_fit(tmp_path, config, tick)
    used = json.loads(next((tmp_path / "state").glob("*/state.json")).read_text())["seconds"]
    assert 0 < used <= 12
    die_at = None
    before = now[0]
    result = run_fit(tmp_path, config, tick)
    assert result.stopped == "minutes" and 20 <= result.seconds < 22
    assert now[0] - before == pytest.approx(20 - used, abs=2)  # the second run had only what the first left
    assert run_fit(tmp_path, config, tick).step == result.step


def regression(model, batch):
    return {"loss": (model(batch[0]) - batch[1]).square().mean()}


def linear_batches(size, *, rank=0, world=1):
    def start(step):
        random = torch.Generator().manual_seed(0)
        x = torch.randn(64, 3, generator=random)
        y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
        for s in itertools.count(step):
            rows = torch.arange(s * size * world, (s + 1) * size * world)[rank::world] % 64
            yield x[rows], y[rows]

    return start


def fit_linear(out, *, size, config, rank=0, world=1):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optim = OptimConfig(lr=0.05, weight_decay=0.0, betas=(0.9, 0.99))
    fit(
        {"model": Part(model, optim)},
        supervised(regression),
        batches=linear_batches(size, rank=rank, world=world),
        out=out,
        config=config,
        save=save,
    )
    return model, load_file(out / "model.safetensors")


def test_plain_training_learns_and_the_average_follows(tmp_path):
    config = replace(QUIET, max_steps=300, log_every=50, save_every=300, ema=0.9)
    model, saved = fit_linear(tmp_path, size=16, config=config)
    assert model.weight.detach().flatten().tolist() == pytest.approx([1.0, -2.0, 0.5], abs=0.02)
    assert (saved["weight"] - model.weight).abs().max() < 0.05 and not torch.equal(saved["weight"], model.weight)


def test_accumulated_small_batches_equal_one_large(tmp_path):
    config = replace(QUIET, max_steps=20, ema=0.0)
    large, saved = fit_linear(tmp_path / "a", size=16, config=config)
    small, _ = fit_linear(tmp_path / "b", size=4, config=replace(config, accumulate=4))
    assert torch.allclose(large.weight, small.weight, atol=1e-6)
    assert torch.equal(saved["weight"], large.weight)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    seen = []

    def step(run, batch):
        run.backward(1000 * run.modules["model"](batch).sum())
        gradients = run.optimizers["model"].param_groups[0]["params"]
        run.update()
        seen.append(float(run.norms["norm_model"]))
        assert all(p.grad is None for p in gradients)
        return {"loss": torch.zeros(())}

    before = parts()["model"].module.state_dict()
    sgd = replace(QUIET, max_steps=1, clip=1e-9, ema=0.0)
    fit({"model": Part(parts()["model"].module, OptimConfig(lr=1.0, weight_decay=0.0))}, step, batches=batches,
        out=tmp_path, config=sgd, save=save)  # fmt: skip
    assert seen[0] > 100
    after = load_file(tmp_path / "model.safetensors")
    # Adam divides by the gradient plus 1e-8: a gradient clipped to 1e-9 moves the weights far less than lr.
    assert max((after[k] - before[k]).abs().max() for k in after) < 0.2


def test_a_loss_that_is_not_a_number_stops_with_its_name(tmp_path):
    def step(run, batch):
        return {"loss": torch.tensor(float("nan"))}

    with pytest.raises(TrainingError, match="loss is nan near step 2"):
        run_fit(tmp_path, step=step)


def test_schedules():
    cosine = OptimConfig(lr=1.0, warmup=10, final=0.1)
    assert [lr_at(cosine, s, 110) for s in (0, 9, 10, 60, 110, 500)] == pytest.approx([0.1, 1, 1, 0.55, 0.1, 0.1])
    exponential = OptimConfig(lr=1.0, schedule="exponential", final=0.01)
    assert [lr_at(exponential, s, 100) for s in (0, 50, 100)] == pytest.approx([1, 0.1, 0.01])
    inverse = OptimConfig(lr=1.0, schedule="inverse_sqrt", warmup=100)
    assert [lr_at(inverse, s, 1000) for s in (49, 399)] == pytest.approx([0.5, 0.5])
    assert lr_at(OptimConfig(lr=1.0, schedule="constant"), 77, 100) == 1.0
    with pytest.raises(ValueError, match="choose constant, cosine"):
        lr_at(OptimConfig(schedule="linear"), 0, 10)


def test_parts_and_precision_are_checked(tmp_path):
    with pytest.raises(ValueError, match="a part named 'model'; the parts are judge"):
        fit({"judge": parts()["judge"]}, gan_step, batches=batches, out=tmp_path, config=QUIET, save=save)
    with pytest.raises(ValueError, match="choose auto, bf16 or fp32"):
        run_fit(tmp_path, replace(QUIET, precision="fp16"))


def test_tensorboard_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    run_fit(tmp_path, replace(QUIET, tensorboard=True))
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_with_their_exit_code(tmp_path, number):
    before = signal.getsignal(number)

    def step(run, batch):
        if run.step == 6:
            os.kill(os.getpid(), number)
        return gan_step(run, batch)

    result = run_fit(tmp_path, step=step)
    assert (result.step, result.stopped, result.exit_code) == (7, number.name, 128 + number)
    assert signal.getsignal(number) is before
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["000000007"]
    run_fit(tmp_path)
    run_fit(tmp_path / "straight")
    resumed = everything(tmp_path / "straight")
    assert all(torch.equal(value, resumed[name]) for name, value in everything(tmp_path).items())


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_train as t
from accelerate import PartialState
config = replace(t.QUIET, max_steps=6, ema=0.0)
rank = PartialState(cpu=True).process_index
t.fit_linear(Path(sys.argv[1]), size=4, config=config, rank=rank, world=2)
"""


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    config = replace(QUIET, max_steps=6, ema=0.0)
    fit_linear(tmp_path / "one", size=8, config=config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = WORKER.format(tests=str(Path(__file__).parent))
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "two")], env=common | {"RANK": str(r), "LOCAL_RANK": str(r)}
        )
        for r in range(2)
    ]
    assert [w.wait(timeout=90) for w in workers] == [0, 0]
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    rows = [json.loads(row) for row in (tmp_path / "two" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [2, 4, 6]

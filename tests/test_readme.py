"""The README's bash and Python blocks run as they stand; blocks without a language are shown, not run, here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unitkit.tokenizer import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"} and len(BLOCKS) >= 6


@pytest.fixture
def env(tmp_path: Path, first: Path) -> dict[str, str]:
    """The environment for commands run in a scratch folder that has samples and what the first block made of them."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    shutil.copytree(first, tmp_path / "exp")
    return _environment()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first bash block that encodes leaves, which the others build on; made once, copied for each."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "samples").symlink_to(ROOT / "samples")
    _bash(FIRST, folder, _environment())
    return folder / "exp"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def _bash(block: str, folder: Path, env: dict[str, str]) -> None:
    subprocess.run(["bash", "-euc", block], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)


BASH = [block for kind, block in BLOCKS if kind == "bash"]
FIRST = next(block for block in BASH if "-o exp/readme/units.jsonl" in block)


@pytest.mark.parametrize("block", BASH, ids=[block.split("\n")[0][:40] for block in BASH])
def test_a_bash_block_runs_after_the_first(block: str, tmp_path: Path, env: dict[str, str]) -> None:
    _bash(block, tmp_path, env)  # the first one too: it finds its work done


def test_the_python_blocks_run_in_order(tmp_path: Path, env: dict[str, str]) -> None:
    """After the first bash block, whose units they read; the models they load are bundled or trained here."""
    _train_translator(tmp_path, env)
    python = "".join(block for kind, block in BLOCKS if kind == "python")
    subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, check=True)


def _train_translator(folder: Path, env: dict[str, str]) -> None:
    """From English to English, for want of a second language in the samples, and with the bundled vocoder."""
    samples, units = "samples/en/dev.jsonl", "exp/readme/en.jsonl"
    subprocess.run(["unitkit", "encode", samples, "-o", units], cwd=folder, env=env, check=True)
    files = [
        f"{split}_{side}={path}" for split in ("train", "dev") for side, path in (("source", samples), ("units", units))
    ]
    small = ["model.dim=16", "model.attention_heads=2", "model.hidden=16", "fit.max_steps=2", "fit.tensorboard=false"]
    recipe = [sys.executable, str(ROOT / "recipes" / "train_s2ut.py"), "out=exp/s2ut", *files, *small]
    subprocess.run(recipe, cwd=folder, env=env, check=True)
    shutil.copytree(BUNDLED / "vocoder", folder / "exp" / "s2ut" / "vocoder")

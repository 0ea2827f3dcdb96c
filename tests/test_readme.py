"""The README's bash and Python blocks run as they stand; blocks without a language are shown, not run, here."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"} and len(BLOCKS) >= 6


def test_every_block_runs_in_order(tmp_path: Path) -> None:
    """In a scratch folder with the repository's samples; the vocoder block needs a trained vocoder: a tiny one."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    tiny = ["model.istft.dim=16", "model.istft.blocks=1", "fit.max_steps=2", "fit.tensorboard=false"]
    python = ""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for kind, block in BLOCKS:
        if kind == "bash":
            subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)
            continue
        if "Vocoder" in block:
            _train(tmp_path, env, tiny)
        python += block
    subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, check=True)


def _train(folder: Path, env: dict[str, str], settings: list[str]) -> None:
    units, samples = "exp/readme/en.jsonl", "samples/en/dev.jsonl"
    files = [f"train_manifest={samples}", f"train_units={units}", f"dev_manifest={samples}", f"dev_units={units}"]
    subprocess.run(["unitkit", "encode", samples, "-o", units], cwd=folder, env=env, check=True)
    recipe = [sys.executable, str(ROOT / "recipes" / "train_vocoder.py"), "out=exp/vocoder"]
    subprocess.run([*recipe, *files, *settings], cwd=folder, env=env, check=True)

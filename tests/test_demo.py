"""The demo from end to end, with its training cut short: every stage runs, and a rerun finds its work done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unitkit.metrics.rows import read_scores
from unitkit.units import read_header, read_units

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_demo_runs_all_stages_and_resumes(tmp_path: Path) -> None:
    exp = tmp_path / "demo"
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = [f"exp={exp}", "fit.max_steps=150", "fit.validate_every=75"]
    command = ["bash", str(ROOT / "egs" / "prompts" / "demo" / "run.sh"), *words]
    subprocess.run(command, env=env, check=True)
    page = (exp / "report.html").read_text()
    assert page.count("<audio") >= 8
    scores = {(row.system, row.metric): row for row in read_scores(exp / "scores.jsonl")}
    wer, mel = scores["frames", "wer"], scores["frames", "mel"]
    assert wer.reference is not None and wer.reference < 15  # the recogniser hears the originals
    assert mel.control is not None and mel.value is not None and mel.value < 0.7 * mel.control
    header = read_header(exp / "units" / "test.jsonl")
    assert {u.tokenizer for u in read_units(exp / "synth" / "frames" / "units.jsonl")} == {header.tokenizer}
    weights = exp / "vocoder" / "model.safetensors"
    before = weights.read_bytes()
    subprocess.run([*command, "train", "synth"], env=env, check=True)
    assert weights.read_bytes() == before

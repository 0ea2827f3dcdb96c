"""Bulk encoding by two processes against one: wall time of the whole command, start-up included.

Two tokenizers: the bundled one, where little but start-up is left, on a long manifest; and a HuBERT-base of random
weights at layer 6, as in real use.  One process has one thread.  The files are compared byte for byte first.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from side_by_side import Row, parser, report

ROOT = Path(__file__).resolve().parents[2]
TARGET = 1.8


def main() -> None:
    """Both tokenizers, one and two processes in turn."""
    made = parser(__doc__)
    made.add_argument("--turns", type=int, default=3, help="runs of each side; medians are shown")
    args = made.parse_args()
    turns = 1 if args.quick else args.turns
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        heavy = folder / "tokenizer"
        make_tokenizer(heavy, small=args.quick)
        name = "random small HuBERT" if args.quick else "random HuBERT-base, layer 6"
        rows = [
            compare("bundled MFCC", "prompts-mfcc100", folder, copies=1 if args.quick else 60, repeats=turns),
            compare(name, heavy, folder, copies=1 if args.quick else 3, repeats=turns),
        ]
        report(rows, args.json)


def make_tokenizer(directory: Path, *, small: bool) -> None:
    """HuBERT of random weights with k-means fitted to a few files: what it costs does not depend on the weights."""
    import torch
    from transformers import HubertConfig, HubertModel

    from unitkit.manifest import read_manifest
    from unitkit.tokenizer import Tokenizer

    torch.manual_seed(0)
    size = (
        {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": (32,) * 7} if small else {}
    )
    config = HubertConfig(num_hidden_layers=6, **size)
    HubertModel(config).save_pretrained(directory.with_name("hubert"))
    files = list(read_manifest(ROOT / "samples" / "en" / "test.jsonl"))[:5]
    tokenizer = Tokenizer.fit(files, features=str(directory.with_name("hubert")), layer=6, units=50, device="cpu")
    tokenizer.save(directory)


def compare(name: str, tokenizer: Path | str, folder: Path, *, copies: int, repeats: int) -> Row:
    """Median wall seconds of both commands, which take turns; the second run of each that counts starts warm."""
    inputs, hours = manifest(folder / f"{copies}.jsonl", copies)
    words = [str(inputs), "-t", str(tokenizer)]
    out = {workers: folder / f"{workers}.units.jsonl" for workers in (1, 2)}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    sides: dict[int, Callable[[], float]] = {
        workers: lambda workers=workers: encode([*words, "--workers", str(workers)], out[workers])  # type: ignore[misc]
        for workers in (1, 2)
    }
    for _ in range(repeats):
        for workers, side in sides.items():
            seconds[workers].append(side())
    same = out[1].read_bytes() == out[2].read_bytes()
    if not same:
        raise SystemExit(f"{name}: one and two processes do not write the same bytes")
    one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
    return Row(
        work=f"bulk encoding, {name}, {hours:.2f} h of audio, wall time, turns: {repeats}",
        ours=f"2 processes {two:.1f} s ({hours * 3600 / two:.0f} h/h)",
        peer=f"1 process {one:.1f} s ({hours * 3600 / one:.0f} h/h)",
        ratio=one / two,
        equal="byte-identical",
        target=f"≥ {TARGET}×",
    )


def manifest(path: Path, copies: int) -> tuple[Path, float]:
    """All samples `copies` times under ids of their own; returns the manifest and its hours."""
    from dataclasses import replace

    from unitkit.encode import with_durations
    from unitkit.manifest import discover, write_manifest

    files = with_durations(discover([str(ROOT / "samples")]))
    rows = [replace(u, id=f"{copy}/{u.id}") for copy in range(copies) for u in files]
    write_manifest(path, rows)
    return path, sum(u.duration or 0.0 for u in rows) / 3600


def encode(words: list[str], out: Path) -> float:
    """Wall seconds of `unitkit encode`, the output made anew."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "unitkit.cli", "encode", *words, "-o", str(out), "--device", "cpu"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

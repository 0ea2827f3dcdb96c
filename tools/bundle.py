r"""Put trained models into the package, in half the bytes: unitkit/bundled/NAME with all that it needs, and its card.

    python tools/bundle.py vocoder=exp/vocoder converter=exp/mini/converter \
        tts=exp/characters recognizer=exp/k500-frames

Weights of two and more dimensions become float16, others stay as they are.  A speaker encoder stays whole: voices and
models name it by the checksum of its weights.  A card that is there stays: it is written by hand, from the training's.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unitkit.models.storage import kind_of
from unitkit.pipeline.given import part_beside
from unitkit.tokenizer import BUNDLED

LIMIT_MB = 40
NAMES = ("vocoder", "converter", "tts", "recognizer")
SPEAKS = ("frame", "tts")  # kinds that need a vocoder
TRAINING = ("best", "state", "tensorboard", "metrics.jsonl")  # of no use to whoever runs the model


def bundle(source: Path, out: Path) -> None:
    """Copies a model directory and its parts, a vocoder beside it among them."""
    kind = kind_of(source)
    if not kind:
        raise SystemExit(f"{source} is not the directory of a model")
    card = (out / "card.md").read_bytes() if (out / "card.md").is_file() else None
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(*TRAINING))
    vocoder = part_beside(source, "vocoder")
    if kind in SPEAKS and not (out / "vocoder").is_dir():
        if vocoder is None:
            raise SystemExit(f"{source} has no vocoder in it or beside it")
        shutil.copytree(vocoder, out / "vocoder", ignore=shutil.ignore_patterns(*TRAINING))
    if card is not None:
        (out / "card.md").write_bytes(card)
    for path in out.rglob("model.safetensors"):
        if kind_of(path.parent) != "speaker encoder":
            halve(path)


def halve(path: Path) -> None:
    """Round matrices to float16."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    for name, value in weights.items():
        if value.ndim > 1 and value.dtype == torch.float32:
            weights[name] = value.half()
            if not torch.isfinite(weights[name]).all():
                raise SystemExit(f"{path}: {name} is too large for float16")
    save_file(weights, path, metadata=metadata)
    path.chmod(0o644)


def megabytes(folder: Path) -> float:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main(words: list[str]) -> int:
    """Command line: NAME=DIRECTORY words."""
    for word in words:
        name, _, source = word.partition("=")
        if name not in NAMES or not source:
            raise SystemExit(f"{word!r}: give NAME=DIRECTORY; names: {', '.join(NAMES)}")
        bundle(Path(source), BUNDLED / name)
    there = {name: megabytes(BUNDLED / name) for name in NAMES if (BUNDLED / name).is_dir()}
    for name, size in there.items():
        print(f"{name}: {size:.1f} MB")
    print(f"together: {sum(there.values()):.1f} MB of {LIMIT_MB}")
    return int(sum(there.values()) > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

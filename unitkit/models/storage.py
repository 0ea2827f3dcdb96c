"""A model's directory: config.yaml, model.safetensors and card.md, written under other names first."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from unitkit import config as configs

T = TypeVar("T")


def save_model(
    directory: str | os.PathLike[str], config: object, weights: Mapping[str, Tensor], *, kind: str, card: str
) -> None:
    """Writes the three files; `kind` is noted in the weights and tells what the directory is."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    configs.save(config, folder / "config.yaml")
    own = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    temporary = folder / "model.safetensors.tmp"
    # Bytes first: save_file makes a file that only its owner may read.
    temporary.write_bytes(serialize(own, metadata={"unitkit": kind}))
    os.replace(temporary, folder / "model.safetensors")
    (folder / "card.md").write_text(card, encoding="utf-8")


def kind_of(directory: str | os.PathLike[str]) -> str:
    """What `save_model` was told that the model of a directory is; "" where it was not made by it, or is damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(directory) / "model.safetensors"
    if not path.is_file():
        return ""
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("unitkit", ""))
    except SafetensorError:  # whoever reads the model will say what is wrong with it
        return ""


def read_model(
    directory: str | os.PathLike[str], schema: type[T], *, what: str, error: type[ValueError]
) -> tuple[T, dict[str, Tensor]]:
    """Config and weights of a directory; `error` names the file that it lacks to be `what`."""
    folder = Path(directory)
    for name in ("config.yaml", "model.safetensors"):
        if not (folder / name).is_file():
            raise error(f"{folder} is not {what}: it has no {name}")
    return configs.load(schema, folder / "config.yaml"), load_file(folder / "model.safetensors")


def checksum(config: object, weights: Mapping[str, Tensor]) -> str:
    """12 hex digits that change with the config or any weight."""
    digest = sha256(configs.to_yaml(config).encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]

"""How an objective is kept: the encoder in transformers' layout, beside it heads, configuration and card."""

import os
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn

from unitkit import config as configs
from unitkit.encoders.convolutional import CONFIG, WEIGHTS
from unitkit.models.ssl.blocks import SslError

C = TypeVar("C")


class Stored(nn.Module, Generic[C]):
    """A module with a config; where it has a `backbone`, that is kept in a layout that `load_encoder` reads."""

    schema: type[Any]

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes objective.yaml, objective.safetensors, card.md and the encoder's files."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        backbone: Any = getattr(self, "backbone", None)
        if backbone is not None:
            backbone.save(folder)
        own = {
            name: value.detach().cpu().contiguous().clone()
            for name, value in self.state_dict().items()
            if not name.startswith("backbone.")
        }
        temporary = folder / f"{WEIGHTS}.tmp"
        # Bytes first: save_file makes a file that only its owner may read.
        temporary.write_bytes(serialize(own, metadata={"unitkit": type(self).__name__}))
        os.replace(temporary, folder / WEIGHTS)
        configs.save(self.config, folder / CONFIG)
        (folder / "card.md").write_text(card or f"# {type(self).__name__}\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Reads what `save` wrote, ready for use."""
        folder = Path(directory)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise SslError(f"{folder} holds no {cls.__name__}: it has no {name}")
        model = cls(configs.load(cls.schema, folder / CONFIG))
        backbone: Any = getattr(model, "backbone", None)
        if backbone is not None:
            backbone.restore(folder)
        missing, unknown = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
        if absent := [name for name in missing if not name.startswith("backbone.")] + unknown:
            raise SslError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {absent[0]}")
        return model.to(device).eval()

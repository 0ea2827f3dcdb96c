"""Speaker vectors by name, of utterances to train on or of speakers to speak as, in a file that says what made them."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np


class VoicesError(ValueError):
    """Vectors that do not fit, or a name that has none; the text names it and the known ones."""


class SpeakerModel(Protocol):
    """What makes speaker vectors: `unitkit.models.speaker.SpeakerEncoder`, or another one of its shape."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it takes."""

    def checksum(self) -> str:
        """12 hex digits that change with anything that changes its vectors."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes what its `load` reads."""

    def __call__(self, wav: np.ndarray) -> np.ndarray:
        """Wav (samples,) to (dim,) float32 of length 1."""


@dataclass(frozen=True, eq=False)
class Voices:
    """`vectors` (names, dim) float32 of length 1; `encoder` is the checksum of what made them."""

    names: tuple[str, ...]
    vectors: np.ndarray
    encoder: str = ""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names) or not np.isfinite(self.vectors).all():
            raise VoicesError(
                f"vectors of shape {self.vectors.shape} for {len(self.names)} names: one, finite, for each"
            )
        if len(set(self.names)) < len(self.names):
            raise VoicesError("a name stands twice among the voices")

    @classmethod
    def of(cls, vectors: Mapping[str, np.ndarray], *, encoder: str = "") -> "Voices":
        """Of vectors (dim,) by name, each brought to length 1."""
        if not vectors:
            raise VoicesError("no voices at all")
        rows = np.stack([np.asarray(vector, np.float32) for vector in vectors.values()])
        return cls(tuple(vectors), rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9), encoder)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.vectors.shape[1]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> np.ndarray:
        """The vector (dim,) of a name."""
        if name not in self._rows:
            raise VoicesError(f"{name!r} has no speaker vector; known are {_some(self.names)}")
        return self.vectors[self._rows[name]]

    def means(self, groups: Mapping[str, Iterable[str]]) -> "Voices":
        """One voice a group: the mean of the vectors of its names, brought to length 1."""
        found = {group: np.mean([self[name] for name in names], axis=0) for group, names in groups.items()}
        return Voices.of(found, encoder=self.encoder)

    def with_more(self, other: "Voices") -> "Voices":
        """Both; where both have a name, the other's."""
        other.check(self.encoder, self.dim, what="more voices")
        mine = {name: self[name] for name in self.names} | {name: other[name] for name in other.names}
        return Voices.of(mine, encoder=self.encoder)

    def check(self, encoder: str, dim: int, *, what: str) -> None:
        """Raise `VoicesError` unless these were made by that encoder."""
        if (self.encoder, self.dim) != (encoder, dim):
            raise VoicesError(
                f"{what}: {self.dim} numbers by speaker encoder {self.encoder or 'unknown'!r}, but {dim} by "
                f"{encoder or 'unknown'!r} are expected here; make both with one encoder"
            )

    def checksum(self) -> str:
        """12 hex digits that change with any name or number."""
        return sha256(json.dumps([self.names, self.encoder]).encode() + self.vectors.tobytes()).hexdigest()[:12]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, under another name first."""
        from safetensors.numpy import save

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"unitkit": "voices", "names": json.dumps(self.names), "encoder": self.encoder}
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(save({"vectors": np.ascontiguousarray(self.vectors, np.float32)}, metadata=facts))
        os.replace(scratch, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Voices":
        """What `save` wrote."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise VoicesError(f"{path}: no such file of voices; recipes/speaker_vectors.py writes them")
        try:
            with safe_open(path, "np") as file:
                facts = file.metadata() or {}
                if facts.get("unitkit") != "voices":
                    raise VoicesError(f"{path} holds no voices; recipes/speaker_vectors.py writes them")
                return cls(tuple(json.loads(facts["names"])), file.get_tensor("vectors"), facts["encoder"])
        except SafetensorError as error:
            raise VoicesError(f"{path} holds no voices: {error}") from error


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:20])}{f' and {len(names) - 20} more' if len(names) > 20 else ''}" or "none"

"""What a model hears: an encoder's features of a wav, kept in the model's directory so that it hears the same."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitkit.encoders import FILTERBANKS, Encoder, load_encoder


class ListenerError(ValueError):
    """A directory without a listener, or features that cannot be had."""


@dataclass(frozen=True)
class Listener:
    """Wav to features: `Listener.make("logmel@100")`, or of any speech model up to a layer; both frozen.

    Filterbanks are brought to zero mean and unit variance in each dimension over the utterance, as in S2UT; features of
    models are as `load_encoder` gives them.
    """

    encoder: Encoder
    name: str  # a filterbank, or "" for a model

    @classmethod
    def make(cls, features: str, layer: int | None = None, *, device: str = "cpu", engine: str = "auto") -> "Listener":
        """By a name that `load_encoder` knows, or the directory of a speech model."""
        found = load_encoder(features, layer=layer, device=device, engine=engine)
        return cls(found, features if features in FILTERBANKS else "")

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, device: str = "cpu") -> "Listener":
        """What `save` wrote."""
        path = Path(directory)
        if (path / "filterbank").is_file():
            return cls.make((path / "filterbank").read_text(encoding="utf-8").strip(), device=device)
        if not (path / "config.json").is_file():
            raise ListenerError(f"{path} holds no listener: models of speech have one, models of text or units do not")
        return cls(load_encoder(path, device=device), "")

    @property
    def dim(self) -> int:
        """Numbers a frame."""
        return self.encoder.dim

    @property
    def rate_hz(self) -> float:
        """Frames per second."""
        return self.encoder.rate_hz

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it takes."""
        return self.encoder.sample_rate

    @property
    def min_samples(self) -> int:
        """Samples of the shortest wav that gives a frame."""
        return self.encoder.min_samples

    def settings(self) -> dict[str, Any]:
        """All that changes the features."""
        return self.encoder.settings() | ({"normalise": "utterance"} if self.name else {})

    @torch.inference_mode()
    def __call__(self, wav: np.ndarray | Tensor) -> Tensor:
        """Wav (samples,) at `sample_rate` to features (frames, dim) float32."""
        features = self.encoder(wav)
        if not self.name:
            return features
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        return (features - mean) / torch.sqrt(variance + 1e-5)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes what `load` reads."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        if self.name:
            (path / "filterbank").write_text(f"{self.name}\n", encoding="utf-8")
        else:
            self.encoder.save(path)

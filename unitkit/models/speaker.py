"""Whose voice it is, as one vector: a small network on log-mels, learned by telling voices apart.

It conditions models that speak (conversion, speech from text); what scores them is another one, `metrics.speaker`.
Additive-margin softmax: Wang et al. 2018 (1801.05599).
"""

import os
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.audio import Mel, spectra
from unitkit.models.front import inside
from unitkit.models.layers import UtteranceEncoder
from unitkit.models.storage import checksum, read_model, save_model


class SpeakerError(ValueError):
    """A speaker encoder that cannot be loaded, or a wav that cannot be heard."""


@dataclass(frozen=True)
class SpeakerConfig:
    """The network; it is below 2 MB."""

    mel: Mel = field(default_factory=Mel)
    hidden: int = 128
    layers: int = 4
    dim: int = 128  # of the vector
    dropout: float = 0.1


class SpeakerNet(nn.Module):
    """Log-mels (batch, frames, n_mels) to vectors (batch, dim) of length 1, whatever the level of the recording."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = UtteranceEncoder(
            config.mel.n_mels, config.hidden, config.dim, layers=config.layers, dropout=config.dropout
        )

    def forward(self, mels: Tensor, lengths: Tensor) -> Tensor:
        """See the class; `lengths` (batch,) are frames."""
        mask = inside(lengths, mels.shape[1])[:, :, None]
        level = (mels * mask).sum((1, 2)) / (lengths * mels.shape[2])  # a louder recording is higher by a constant
        return F.normalize(self.encoder((mels - level[:, None, None]) / 2, lengths), dim=1)


class MarginHead(nn.Module):
    """Tells the voices of the training set apart: softmax of scaled cosines, the right one's lowered by a margin."""

    def __init__(self, dim: int, voices: int, *, margin: float = 0.2, scale: float = 30.0) -> None:
        super().__init__()
        self.voices = nn.Parameter(torch.randn(voices, dim))
        self.margin, self.scale = margin, scale

    def forward(self, vectors: Tensor, voices: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy of vectors (batch, dim) of length 1 whose voices are (batch,) indices."""
        cosines = vectors.float() @ F.normalize(self.voices, dim=1).T
        margins = self.margin * F.one_hot(voices, len(self.voices))
        right = (cosines.argmax(1) == voices).float().mean()
        return {"loss": F.cross_entropy(self.scale * (cosines - margins), voices), "accuracy": right.detach()}


class SpeakerEncoder:
    """A wav to its speaker's vector: `SpeakerEncoder.load("exp/speaker")(wav)` gives (dim,) float32 of length 1."""

    def __init__(self, net: SpeakerNet) -> None:
        self.net = net.eval()

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> "SpeakerEncoder":
        """What `save` or recipes/train_speaker.py wrote."""
        config, weights = read_model(directory, SpeakerConfig, what="a speaker encoder", error=SpeakerError)
        net = SpeakerNet(config)
        net.load_state_dict(weights)
        return cls(net.to(device))

    def save(self, directory: str | os.PathLike[str], *, card: str = "# Speaker encoder\n") -> None:
        """Writes config.yaml, model.safetensors and card.md."""
        save_model(directory, self.net.config, self.net.state_dict(), kind="speaker encoder", card=card)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.net.config.dim

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it takes."""
        return self.net.config.mel.sample_rate

    def checksum(self) -> str:
        """12 hex digits that change with the config or any weight."""
        return checksum(self.net.config, self.net.state_dict())

    @torch.inference_mode()
    def __call__(self, wav: np.ndarray | Tensor) -> np.ndarray:
        """Wav (samples,) at `sample_rate` to (dim,) float32 of length 1."""
        data = wav.detach().cpu().numpy() if isinstance(wav, Tensor) else wav
        mel = self.net.config.mel
        if data.ndim != 1 or len(data) < mel.hop:
            raise SpeakerError(f"a wav of shape {tuple(data.shape)}: give (samples,), at least {mel.hop} of them")
        if not data.any():
            raise SpeakerError("a silent recording has no speaker")
        mels = torch.from_numpy(spectra(data, mel)[0]).to(next(self.net.parameters()).device)
        return self.net(mels[None], torch.tensor([len(mels)], device=mels.device))[0].float().cpu().numpy()

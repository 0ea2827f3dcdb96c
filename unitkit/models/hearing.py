"""How the frame model hears a recording: what is computed once of a wav, and the encoders that make vectors of it.

Small: log-mels, and convolutions.  The paper's size: the frozen convolutions of wav2vec 2.0, and for every vector its
first Transformer layers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unitkit.audio import Mel, resample, spectra
from unitkit.models.front import inside
from unitkit.models.layers import UtteranceEncoder

OFFSET, SCALE = -5.0, 3.0  # of natural log-mels: what lies inside a network is about -2..2


class MelHearing(nn.Module):
    """Log-mels; nothing in it is learned."""

    def __init__(self, mel: Mel) -> None:
        super().__init__()
        self.mel, self.dim = mel, mel.n_mels

    def forward(self, wav: np.ndarray) -> Tensor:
        """Wav (samples,) at the mel's rate to (frames, n_mels)."""
        return (torch.from_numpy(spectra(wav, self.mel)[0]) - OFFSET) / SCALE

    def encoder(self, hidden: int, dim: int, *, layers: int, dropout: float) -> nn.Module:
        """Makes a vector (batch, dim) of what was heard."""
        return UtteranceEncoder(self.dim, hidden, dim, layers=layers, dropout=dropout)


class Wav2Vec2Hearing(nn.Module):
    """The convolutions and the projection of wav2vec 2.0, frozen; the recording is scaled as base models want it."""

    RATE = 16000

    def __init__(self, hidden: int, sample_rate: int) -> None:
        super().__init__()
        whole = _wav2vec2(hidden, 0)
        self.convolutions, self.projection = whole.feature_extractor, whole.feature_projection
        self.requires_grad_(False)
        self.sample_rate, self.dim = sample_rate, hidden

    @torch.no_grad()
    def forward(self, wav: np.ndarray) -> Tensor:
        """Wav (samples,) at the mel's rate to (frames, hidden), 50 a second."""
        device = next(self.parameters()).device
        samples = torch.from_numpy(resample(wav, self.sample_rate, self.RATE)).to(device)
        self.eval()
        return self.projection(self.convolutions(samples[None]).transpose(1, 2))[0][0]

    def encoder(self, hidden: int, dim: int, *, layers: int, dropout: float) -> nn.Module:
        """Makes a vector (batch, dim) of what was heard."""
        return Wav2Vec2Branch(hidden, dim, layers=layers)


class Wav2Vec2Branch(nn.Module):
    """The first Transformer layers of wav2vec 2.0, the mean over an utterance's frames, and a linear layer."""

    def __init__(self, hidden: int, dim: int, *, layers: int) -> None:
        super().__init__()
        self.transformer = _wav2vec2(hidden, layers).encoder
        self.leave = nn.Linear(hidden, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, hidden) and (batch,) to (batch, dim)."""
        mask = inside(lengths, features.shape[1])
        inner = features * mask[:, :, None]  # a copy: transformers writes zeros behind the ends of what it is given
        x = self.transformer(inner, attention_mask=mask).last_hidden_state * mask[:, :, None]
        return self.leave(x.sum(1) / lengths[:, None])


def _wav2vec2(hidden: int, layers: int) -> Any:
    """A wav2vec 2.0 base model with some of its layers, with random weights."""
    import transformers

    return transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_attention_heads=max(1, hidden // 64),
            num_hidden_layers=layers,
            layerdrop=0.0,
            mask_time_prob=0.0,
        )
    )


def take_wav2vec2(hearing: nn.Module, branches: list[nn.Module], model: Any) -> None:
    """Copies the weights of a transformers wav2vec 2.0 model that has at least the branches' layers."""
    parts: list[tuple[Any, Any]] = [
        (hearing.convolutions, model.feature_extractor),
        (hearing.projection, model.feature_projection),
    ]
    for branch in branches:
        layers = branch.transformer.layers
        parts += [(branch.transformer.layer_norm, model.encoder.layer_norm)]
        parts += [(branch.transformer.pos_conv_embed, model.encoder.pos_conv_embed)]
        parts += list(zip(layers, model.encoder.layers, strict=False))
    for ours, theirs in parts:
        ours.load_state_dict(theirs.state_dict())

"""CTC on features: a small stack that reads units or letters off frozen features (speech normaliser, recogniser).

The speech normaliser of textless speech-to-speech translation (Lee et al., 2021) hears any speaker and writes the
reduced units of one reference speaker.  Where the paper fine-tunes a pre-trained model as a whole, the features here
are given and stay as they are; what learns is the stack above them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.front import inside, sinusoids
from unitkit.models.storage import read_model, save_model
from unitkit.text import Letters

BLANK = -1  # a frame at which nothing is read, outside the model; inside, blank is the class behind all others
TARGETS = ("units", "text")


class CtcError(ValueError):
    """A CTC setting or input that cannot be; the text says which and what can."""


@dataclass(frozen=True)
class CtcConfig:
    """The defaults make a stack of 1.7 M parameters on features of 512 dimensions and 100 units."""

    targets: str = "units"  # units | text
    tokenizer: str = ""  # units: the fingerprint, number and rate of the units that are written
    n_units: int = 0
    rate_hz: float = 0.0
    letters: str = ""  # text: what it is written with
    features_dim: int = 0
    features_hz: float = 0.0
    dim: int = 160
    layers: int = 4
    heads: int = 4
    hidden: int = 640
    kernel: int = 5  # frames that the first convolution sees; an odd number
    stride: int = 1  # 2 = half as many frames
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.targets not in TARGETS:
            raise CtcError(f"targets {self.targets!r}: choose {' or '.join(TARGETS)}")
        if self.dim % (2 * self.heads):
            raise CtcError(f"dim {self.dim} is not a multiple of twice the heads, {2 * self.heads}")
        if self.kernel % 2 == 0 or self.kernel < 1:
            raise CtcError(f"kernel {self.kernel} is not an odd number")
        if self.stride not in (1, 2):
            raise CtcError(f"stride {self.stride}: choose 1 or 2")

    @property
    def n_classes(self) -> int:
        """Different units or letters; the class of this number is blank."""
        return self.n_units if self.targets == "units" else len(self.letters)

    @property
    def repeat(self) -> int:
        """Unit frames that one frame of the model stands for; an error where that is no whole number."""
        found = self.rate_hz * self.stride / self.features_hz if self.features_hz else 0.0
        if round(found) < 1 or abs(found - round(found)) > 1e-6:
            raise CtcError(
                f"features at {self.features_hz:g} Hz with stride {self.stride} cannot give units at "
                f"{self.rate_hz:g} Hz: set model.stride=2, or take features of another rate"
            )
        return round(found)


def collapsed(frames: np.ndarray) -> np.ndarray:
    """What CTC reads off frames (frames,): runs merged, then blanks left out."""
    kept = np.r_[True, frames[1:] != frames[:-1]][: len(frames)]
    return frames[kept & (frames != BLANK)]


def reduced(frames: np.ndarray) -> np.ndarray:
    """The same for reduced units, in which nothing stands twice in a row: merged across blanks too."""
    return collapsed(frames[frames != BLANK])


def fill_blanks(frames: np.ndarray) -> np.ndarray:
    """Frames (frames,) whose blanks take the unit before them, and those at the start the first unit.

    Nothing but blanks gives nothing, (0,).
    """
    said = np.flatnonzero(frames != BLANK)
    if not len(said):
        return frames[:0]
    before = np.searchsorted(said, np.arange(len(frames)), side="right") - 1
    return frames[said[before.clip(min=0)]]


def frames_needed(target: np.ndarray) -> int:
    """The least frames that CTC can write a target (length,) in: one for each, and a blank between equal ones."""
    return len(target) + int((target[1:] == target[:-1]).sum())


class CtcModel(nn.Module):
    """LayerNorm, convolution, Transformer (pre-norm), and scores of every unit or letter and of blank."""

    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        if config.n_classes < 1 or config.features_dim < 1:
            what = "n_units" if config.targets == "units" else "letters"
            raise CtcError(f"{what} ({config.n_classes}) and features_dim ({config.features_dim}) must be 1 or more")
        self.config = config
        self.norm = nn.LayerNorm(config.features_dim)
        self.stem = nn.Conv1d(
            config.features_dim, config.dim, config.kernel, stride=config.stride, padding=config.kernel // 2
        )
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.dim,
            config.heads,
            config.hidden,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # Nested tensors are not for pre-norm layers; asked for, they only warn.
        self.stack = nn.TransformerEncoder(
            layer, config.layers, norm=nn.LayerNorm(config.dim), enable_nested_tensor=False
        )
        self.head = nn.Linear(config.dim, config.n_classes + 1)
        self.place = nn.Parameter(torch.tensor(0.1))  # how loud positions are beside what is heard
        for parameter in self.stack.parameters():  # copies of one layer so far
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @property
    def blank(self) -> int:
        """The class of blank."""
        return self.config.n_classes

    def n_frames(self, lengths: Tensor) -> Tensor:
        """Frames that come out of `lengths` frames of features."""
        return (lengths - 1) // self.config.stride + 1

    def scores(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, frames, dim), padded to `lengths`, to (batch, frames, classes + 1) and lengths of these."""
        c = self.config
        if features.ndim != 3 or features.shape[2] != c.features_dim:
            raise CtcError(f"features of shape {tuple(features.shape)}: expected (batch, frames, {c.features_dim})")
        if int(lengths.min()) < 1:
            raise CtcError("an utterance without frames: leave it out")
        kept = inside(lengths, features.shape[1])[:, :, None]
        hidden = self.norm(features.to(self.norm.weight.dtype))
        # Padding is zero for the convolution, as what lies around an utterance is.
        hidden = self.stem(torch.where(kept, hidden, 0.0).transpose(1, 2)).transpose(1, 2)
        lengths = self.n_frames(lengths)
        kept = inside(lengths, hidden.shape[1])
        hidden = self.dropout(F.gelu(hidden) + self.place * sinusoids(hidden.shape[1], c.dim).to(hidden))
        return self.head(self.stack(hidden, src_key_padding_mask=~kept)), lengths

    def forward(self, features: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> dict[str, Tensor]:
        """Losses of features (batch, frames, dim) and targets (batch, longest), each padded to its lengths.

        Returns:
            loss: nats per target class, of the utterances that are long enough for their targets.
            blank: share of the frames at which blank is the best guess.
            short: share of the utterances that are too short and teach nothing.
        """
        scores, frames = self.scores(features, lengths)
        kept = inside(target_lengths, targets.shape[1])
        twice = (targets[:, 1:] == targets[:, :-1]) & kept[:, 1:]
        fits = frames >= target_lengths + twice.sum(1)
        losses = F.ctc_loss(
            scores.float().log_softmax(2).transpose(0, 1),
            torch.where(kept, targets, 0),
            frames,
            target_lengths,
            blank=self.blank,
            reduction="none",
            zero_infinity=True,
        )
        total = torch.where(fits, losses, 0.0).sum()
        real = inside(frames, scores.shape[1])
        return {
            "loss": total / (target_lengths * fits).sum().clamp(min=1),
            "blank": (scores.argmax(2) == self.blank)[real].float().mean(),
            "short": 1 - fits.float().mean(),
        }

    @torch.inference_mode()
    def greedy(self, features: Sequence[Tensor]) -> list[np.ndarray]:
        """The best class of each frame: features (frames, dim) each to (frames,) int64, BLANK where it is blank."""
        if not features:
            return []
        padded, lengths = pad_features(features)
        device = self.head.weight.device
        scores, frames = self.scores(padded.to(device), lengths.to(device))
        best = scores.argmax(2)
        rows = best.masked_fill(best == self.blank, BLANK).cpu().numpy()
        return [row[:n] for row, n in zip(rows, frames.tolist(), strict=True)]

    def read(self, frames: np.ndarray) -> np.ndarray:
        """The units, reduced, or the letters, counted from 0, that greedy's frames (frames,) say."""
        return reduced(frames) if self.config.targets == "units" else collapsed(frames)

    def text(self, frames: np.ndarray) -> str:
        """The text that greedy's frames (frames,) say."""
        if self.config.targets != "text":
            raise CtcError("this model writes units, not text")
        return Letters(self.config.letters).decode(self.read(frames) + Letters.first)

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors and card.md."""
        text = card or f"# CTC to {self.config.targets}\n"
        save_model(directory, self.config, self.state_dict(), kind="ctc", card=text)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Reads what `save` wrote, ready for use."""
        config, weights = read_model(directory, CtcConfig, what="a CTC model directory", error=CtcError)
        model = cls(config)
        model.load_state_dict(weights)
        return model.to(device).eval()

    def take(self, other: "CtcModel") -> bool:
        """Starts from another model's weights; whether its head could be taken too, which needs the same targets."""
        mine, theirs = self.config, other.config
        for name in ("features_dim", "dim", "layers", "heads", "hidden", "kernel"):
            if (here := getattr(mine, name)) != (there := getattr(theirs, name)):
                raise CtcError(f"{name} is {there} in the model to start from, but {here} here: make them alike")
        kinds = [(c.targets, c.tokenizer, c.n_units, c.letters) for c in (mine, theirs)]
        weights = other.state_dict()
        if kinds[0] != kinds[1]:
            weights |= {name: value for name, value in self.state_dict().items() if name.startswith("head.")}
        self.load_state_dict(weights)
        return kinds[0] == kinds[1]


def pad_features(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (frames, dim) each to (batch, frames, dim), padded with zeros, and lengths (batch,)."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), torch.tensor([len(row) for row in rows])


def pad_targets(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Targets (length,) each to (batch, longest) int64, padded with zeros, and lengths (batch,)."""
    tensors = [torch.from_numpy(np.ascontiguousarray(row, np.int64)) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(row) for row in rows])

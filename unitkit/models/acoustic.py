"""Units, or soft units, to mels, which a vocoder of mels speaks.  Two models with one way in and one way out.

`RecurrentAcoustic` writes the mels frame by frame, each after the one before: the acoustic model of van Niekerk et al.
2022 (2111.02392), anybody's units to one voice.  `ParallelAcoustic` writes all frames at once, units of several
codebooks to the voice of a speaker vector: vec2mel of ZMM-TTS (Gong et al. 2023, 2312.14398).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from unitkit.audio import Mel
from unitkit.models.front import inside
from unitkit.models.layers import BLOCKS, Stack
from unitkit.models.storage import checksum, read_model, save_model

KINDS = ("recurrent", "parallel")


class AcousticError(ValueError):
    """An acoustic model that cannot be built, loaded or fed."""


@dataclass(frozen=True)
class AcousticConfig:
    """The model; what units and voices say about themselves is filled in by the recipe.  The defaults are small."""

    kind: str = "recurrent"  # recurrent | parallel
    tokenizer: str = ""  # fingerprint of the units, or of the soft tokenizer
    rate_hz: float = 50.0
    n_units: int = 100
    codebooks: int = 1
    features_dim: int = 0  # > 0: soft units (frames, dim) instead of ids
    langs: tuple[str, ...] = ()
    speaker_vector_dim: int = 0  # 0 = one voice
    speaker_encoder: str = ""  # checksum of the model that made the vectors
    mel: Mel = field(default_factory=lambda: Mel(hop=160))
    dim: int = 64  # of a unit; of the layers that lead into a recurrent model, of all layers of a parallel one
    layers: int = 2  # recurrent ones, or blocks
    dropout: float = 0.5  # in the layers that lead into encoder and decoder, or in blocks and what follows them
    encoder: int = 128  # channels of a recurrent model's encoder
    decoder: int = 192  # numbers in a recurrent layer
    blocks: str = "conv"  # of a parallel model: residual convolutions (conv), or attention and convolutions (fft)
    kernel: int = 5
    attention_heads: int = 2  # of fft
    hidden: int = 256  # of fft
    post: int = 5  # convolutions that correct the mels of a parallel model, each of `post_dim` channels
    post_dim: int = 128

    speakers: ClassVar[tuple[str, ...]] = ()  # voices are vectors here, and melody comes from the units: like a vocoder
    f0: ClassVar[bool] = False
    energy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AcousticError(f"kind {self.kind!r}: known are {', '.join(KINDS)}")
        if self.ratio < 1 or (self.kind == "recurrent" and self.ratio.denominator > 1):
            raise AcousticError(
                f"mels of {self.mel.rate_hz:g} frames a second for {self.rate_hz:g} units: choose mel.hop so that the "
                f"one is a whole multiple of the other, such as {round(self.mel.sample_rate / self.rate_hz / 2)}"
            )
        if self.layers < 1:
            raise AcousticError(f"layers {self.layers}: at least 1")
        if self.blocks not in BLOCKS:
            raise AcousticError(f"blocks {self.blocks!r}: known are {', '.join(BLOCKS)}")
        if self.kernel % 2 == 0:
            raise AcousticError(f"kernel {self.kernel} is not an odd number")
        if self.features_dim and self.codebooks > 1:
            raise AcousticError("soft units have no codebooks: set features_dim or codebooks")

    @property
    def ratio(self) -> Fraction:
        """Mel frames a unit."""
        return Fraction(self.mel.rate_hz / self.rate_hz).limit_denominator(100)

    def frames(self, n: int) -> int:
        """Mel frames of so many units."""
        return n * self.ratio.numerator // self.ratio.denominator


# The paper's model for 100 units; 256 numbers (features_dim) in the soft ones.
PAPER = AcousticConfig(mel=Mel(hop=160, n_mels=128), dim=256, encoder=512, decoder=768, layers=3)
# vec2mel as in its paper, but for what comes before its six FFT blocks: two books of 320 units, a postnet of five.
PARALLEL_PAPER = AcousticConfig(
    kind="parallel", n_units=320, codebooks=2, mel=Mel(hop=200), dim=256, layers=6, dropout=0.2, blocks="fft", kernel=9,
    hidden=1024, post_dim=512,
)  # fmt: skip


@dataclass(frozen=True)
class AcousticBatch:
    """Units (batch, n[, codebooks]) or soft units (batch, n, dim), and their mels (batch, frames, n_mels).

    Rows have `lengths` units; `lang` (batch,) are indices, `vector` (batch, dim) says whose voice it is.
    """

    source: Tensor
    lengths: Tensor
    mel: Tensor
    lang: Tensor
    vector: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AcousticBatch":
        """The same batch on `device`."""
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return AcousticBatch(**{name: x if x is None else x.to(device, non_blocking=non_blocking) for name, x in given})


class RowNorm(nn.Module):
    """Each channel of a row to mean 0 and deviation 1 over the frames that are the row's own."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, channels, frames) and a mask (batch, 1, frames) to the same shape, zero outside."""
        n = mask.sum(2, keepdim=True).clamp(min=1)
        mean = (x * mask).sum(2, keepdim=True) / n
        variance = ((x - mean).square() * mask).sum(2, keepdim=True) / n
        return (x - mean) * (variance + 1e-5).rsqrt() * mask


class AcousticModel(nn.Module, ABC):
    """What both have: units as vectors, language and voice, saving.  `forward` trains, `generate` makes mels."""

    def __init__(self, config: AcousticConfig, *, condition: int) -> None:
        super().__init__()
        self.config = c = config
        self.units = None if c.features_dim else nn.Embedding(c.n_units, c.dim)
        self.books = nn.ModuleList(nn.Embedding(c.n_units, c.dim) for _ in range(c.codebooks - 1))
        self.langs = nn.Embedding(len(c.langs), condition) if len(c.langs) > 1 else None
        self.voice = (
            nn.Sequential(nn.LayerNorm(c.speaker_vector_dim), nn.Linear(c.speaker_vector_dim, condition))
            if c.speaker_vector_dim
            else None
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, batch: AcousticBatch) -> dict[str, Tensor]:
        """Losses of a batch; `loss` is the one to lower."""

    @abstractmethod
    def mels(self, source: Tensor, lengths: Tensor, lang: Tensor, vector: Tensor | None) -> Tensor:
        """Mels (batch, frames, n_mels) that the model makes by itself."""

    def embed(self, source: Tensor) -> Tensor:
        """Units (batch, n[, codebooks]) or soft units (batch, n, dim) to vectors (batch, n, dim)."""
        if self.units is None:
            return source
        columns = source.unsqueeze(2) if source.ndim == 2 else source
        return sum((book(columns[:, :, i + 1]) for i, book in enumerate(self.books)), self.units(columns[:, :, 0]))

    def colour(self, x: Tensor, lang: Tensor, vector: Tensor | None) -> Tensor:
        """Frames (batch, n, dim) with language and voice added."""
        if self.langs is not None:
            x = x + self.langs(lang)[:, None]
        if self.voice is not None:
            if vector is None:
                raise AcousticError("this model speaks with many voices: give speaker vectors")
            x = x + self.voice(vector.to(x.dtype))[:, None]
        return x

    def own_frames(self, batch: AcousticBatch) -> Tensor:
        """Which frames of the mels (batch, frames) are a row's own."""
        ratio = self.config.ratio
        return inside(batch.lengths * ratio.numerator // ratio.denominator, batch.mel.shape[1])

    @torch.inference_mode()
    def generate(
        self,
        sources: Sequence[Tensor | np.ndarray],
        *,
        langs: Sequence[str] = (),
        vectors: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Mels (frames, n_mels) float32 of units (n[, codebooks]) or soft units (n, dim), each as it would be alone.

        `langs` and `vectors` (sources, dim) where the model has several languages or voices.
        """
        c = self.config
        lengths = torch.tensor([len(one) for one in sources], device=self.device)
        rows = [torch.as_tensor(one).to(self.device) for one in sources]
        if any(row.ndim != 1 + bool(c.features_dim or c.codebooks > 1) for row in rows):
            wanted = f"ids of {c.codebooks} codebooks" if c.codebooks > 1 else "ids, not vectors"
            raise AcousticError("this model takes " + ("soft units" if c.features_dim else wanted))
        if len(c.langs) > 1 and len(langs) != len(rows):
            raise AcousticError(f"this model speaks {', '.join(c.langs)}: say which language each is in")
        lang = torch.tensor([self._lang(one) for one in langs] or [0] * len(rows), device=self.device)
        vector = None if vectors is None else torch.from_numpy(np.asarray(vectors, np.float32)).to(self.device)
        if not len(rows) or not int(lengths.max()):
            return [np.zeros((0, c.mel.n_mels), np.float32) for _ in rows]
        made = self.mels(nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, lang, vector).float().cpu().numpy()
        return [mel[: c.frames(int(n))] for mel, n in zip(made, lengths, strict=True)]

    def _lang(self, name: str) -> int:
        """The index of a language."""
        if name not in self.config.langs:
            known = ", ".join(self.config.langs) or "no names"
            raise AcousticError(f"language {name!r}: this model knows {known}")
        return self.config.langs.index(name)

    def checksum(self) -> str:
        """12 hex digits that change with the config or any weight."""
        return checksum(self.config, self.state_dict())

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors and card.md."""
        text = card or f"# Acoustic model\n\nTokenizer: `{self.config.tokenizer}`\n"
        save_model(directory, self.config, self.state_dict(), kind="acoustic", card=text)

    @staticmethod
    def build(config: AcousticConfig) -> "AcousticModel":
        """The model of the config's kind."""
        return ParallelAcoustic(config) if config.kind == "parallel" else RecurrentAcoustic(config)

    @staticmethod
    def load(directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> "AcousticModel":
        """Loads a model directory, ready for use."""
        config, weights = read_model(directory, AcousticConfig, what="an acoustic model", error=AcousticError)
        model = AcousticModel.build(config)
        model.load_state_dict(weights)
        return model.to(device).eval()


class RecurrentAcoustic(AcousticModel):
    """An encoder of convolutions brings units to the rate of the mels, recurrent layers write frame after frame."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__(config, condition=config.encoder)
        c, ratio = config, config.ratio.numerator
        self.enter = _lead_in(c.features_dim or c.dim, c.dim, dropout=c.dropout)
        self.convs = nn.ModuleList(nn.Conv1d(c.dim if i == 0 else c.encoder, c.encoder, 5, padding=2) for i in range(3))
        self.wider = nn.ConvTranspose1d(c.encoder, c.encoder, ratio + 2 * (ratio // 2), ratio, ratio // 2)
        self.norm = RowNorm()
        self.before = _lead_in(c.mel.n_mels, c.dim, dropout=c.dropout)
        self.cells = nn.ModuleList(
            nn.LSTM(c.dim + c.encoder if i == 0 else c.decoder, c.decoder, batch_first=True) for i in range(c.layers)
        )
        self.leave = nn.Linear(c.decoder, c.mel.n_mels, bias=False)

    def encode(self, source: Tensor, lengths: Tensor, lang: Tensor, vector: Tensor | None) -> Tensor:
        """Units (batch, n[, codebooks or dim]) to (batch, n × ratio, encoder)."""
        mask = inside(lengths, source.shape[1])[:, None]
        x = self.embed(source)
        mask = mask.to(x.dtype)
        x = self.enter(x).transpose(1, 2)
        for place, conv in enumerate(self.convs):
            x = self.norm(torch.relu(conv(x * mask)), mask)
            if place == 0:  # the other convolutions see frames of the mel
                x, mask = self.wider(x), mask.repeat_interleave(self.config.ratio.numerator, 2)
        return self.colour(x.transpose(1, 2), lang, vector)

    def decode(self, encoded: Tensor, before: Tensor, states: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Mels (batch, m, n_mels) after the frames `before` each of them; `states` go in and are replaced."""
        x = torch.cat([self.before(before), encoded], dim=2)
        for place, cell in enumerate(self.cells):
            y, state = cell(x, None if states is None or len(states) <= place else states[place])
            if states is not None:
                states[place : place + 1] = [state]
            x = y if place == 0 else x + y
        return self.leave(x)

    def forward(self, batch: AcousticBatch) -> dict[str, Tensor]:
        """`loss`: L1 of the natural-log mels after the true frames, each row counted alike however long it is."""
        before = torch.cat([torch.zeros_like(batch.mel[:, :1]), batch.mel[:, :-1]], dim=1)
        made = self.decode(self.encode(batch.source, batch.lengths, batch.lang, batch.vector), before)
        return {"loss": _apart(made, batch.mel, self.own_frames(batch))}

    def mels(self, source: Tensor, lengths: Tensor, lang: Tensor, vector: Tensor | None) -> Tensor:
        """Each frame after the model's own frame before."""
        encoded = self.encode(source, lengths, lang, vector)
        frame = encoded.new_zeros(len(source), 1, self.config.mel.n_mels)
        made, states = [], list[tuple[Tensor, Tensor]]()
        for step in range(encoded.shape[1]):
            frame = self.decode(encoded[:, step : step + 1], frame, states)
            made.append(frame)
        return torch.cat(made, dim=1)


class ParallelAcoustic(AcousticModel):
    """Units stretched to the rate of the mels, language and voice added; blocks; convolutions that correct the mels."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__(config, condition=config.dim)
        c, up = config, config.ratio.numerator
        self.enter = nn.Linear(c.features_dim or c.dim, c.dim)
        self.wider = nn.ConvTranspose1d(c.dim, c.dim, up + 2 * (up // 2), up, up // 2)
        self.pool = nn.AvgPool1d(c.ratio.denominator)
        self.stack = Stack(
            c.blocks, c.dim, c.layers, kernel=c.kernel, heads=c.attention_heads, hidden=c.hidden, dropout=c.dropout
        )
        self.leave = nn.Linear(c.dim, c.mel.n_mels)
        sizes = [c.mel.n_mels, *[c.post_dim] * (c.post - 1), c.mel.n_mels] if c.post else []
        self.post = nn.ModuleList(nn.Conv1d(*pair, 5, padding=2) for pair in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(conv.out_channels) for conv in self.post)
        self.drop = nn.Dropout(c.dropout)

    def both(self, source: Tensor, lengths: Tensor, lang: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mels (batch, frames, n_mels) before their correction and after it."""
        ratio = self.config.ratio
        x = self.enter(self.embed(source)) * inside(lengths, source.shape[1])[:, :, None]
        x = self.pool(self.wider(x.transpose(1, 2))).transpose(1, 2)
        mask = inside(lengths * ratio.numerator // ratio.denominator, x.shape[1])
        first = self.leave(self.stack(self.colour(x, lang, vector), mask))
        y = first.transpose(1, 2)
        for place, (conv, norm) in enumerate(zip(self.post, self.norms, strict=True)):
            y = norm(conv(y * mask[:, None]))
            y = self.drop(torch.tanh(y) if place < len(self.post) - 1 else y)
        return first, first + y.transpose(1, 2) if len(self.post) else first

    def forward(self, batch: AcousticBatch) -> dict[str, Tensor]:
        """`loss`: L1 of the natural-log mels, before their correction and after, each row counted alike."""
        first, last = self.both(batch.source, batch.lengths, batch.lang, batch.vector)
        mask, n = self.own_frames(batch), batch.mel.shape[1]
        losses = [_apart(one[:, :n], batch.mel, mask) for one in ((first, last) if len(self.post) else (last,))]
        return {"loss": torch.stack(losses).mean(), "mel": losses[-1].detach()}

    def mels(self, source: Tensor, lengths: Tensor, lang: Tensor, vector: Tensor | None) -> Tensor:
        """All frames at once."""
        return self.both(source, lengths, lang, vector)[1]


def _apart(made: Tensor, mel: Tensor, mask: Tensor) -> Tensor:
    """L1 a value, the mean of each row's own frames; rows count alike."""
    error = (made.float() - mel.float()).abs().mean(2)
    return ((error * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def _lead_in(width: int, dim: int, *, dropout: float) -> nn.Sequential:
    """Two layers that forget much, so that the decoder leans on the units and not on the frame before."""
    parts = [nn.Linear(width, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts)


@dataclass(frozen=True)
class AcousticItem:
    """Units (n[, codebooks]) or soft units (n, dim) of a row with its mels (frames, n_mels), language and voice."""

    source: np.ndarray
    mel: np.ndarray
    lang: int = 0
    vector: np.ndarray | None = None


def pad_acoustic(items: Sequence[AcousticItem]) -> AcousticBatch:
    """Rows to a batch; all of them have a vector, or none."""
    source, mel = (
        nn.utils.rnn.pad_sequence([torch.from_numpy(np.ascontiguousarray(x)) for x in some], batch_first=True)
        for some in ([one.source for one in items], [one.mel for one in items])
    )
    vectors = [one.vector for one in items if one.vector is not None]
    return AcousticBatch(
        source,
        torch.tensor([len(one.source) for one in items]),
        mel.float(),
        torch.tensor([one.lang for one in items]),
        torch.from_numpy(np.stack(vectors)) if vectors else None,
    )

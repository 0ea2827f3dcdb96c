"""Text to units, all frames at once: how long each token lasts, and then what is said in each frame.

ZMM-TTS's txt2vec (Gong et al. 2023, 2312.14398): an encoder of text, language and a speaker vector beside it, durations
that an aligner teaches, and a decoder of frames to the units of one codebook or several.  Speaker vectors are given, so
that a voice never heard in training can be asked for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.frontends import FrontEnd
from unitkit.models.aligner import Aligner, binarisation, forward_sum, monotonic_durations
from unitkit.models.front import inside
from unitkit.models.layers import BLOCKS, Stack, VariancePredictor, regulate
from unitkit.models.storage import read_model, save_model

LONGEST = 5.0  # seconds that a token may last


class TtsError(ValueError):
    """A model that cannot be built, loaded or fed; the text names the value and what is known."""


@dataclass(frozen=True)
class TtsConfig:
    """The model; what units, texts and voices say of themselves is filled in by the recipe.  The defaults are small."""

    tokenizer: str = ""  # fingerprint of the units
    n_units: int = 0
    codebooks: int = 1
    rate_hz: float = 50.0
    front: str = "characters"  # characters | bytes | phonemes
    symbols: str = ""
    longest: int = 0  # tokens of the longest text in training; longer ones are spoken in parts
    langs: tuple[str, ...] = ()
    speakers: dict[str, list[str]] = field(
        default_factory=dict
    )  # known voices with their languages, the most heard first
    speaker_vector_dim: int = 0  # 0 = one voice
    speaker_encoder: str = ""  # checksum of the model that made the vectors
    blocks: str = "conv"  # conv | fft: residual convolutions, or attention and convolutions as in FastSpeech
    dim: int = 192
    encoder_layers: int = 4
    decoder_layers: int = 6
    kernel: int = 5
    attention_heads: int = 2  # of fft
    hidden: int = 768  # of fft
    dropout: float = 0.1
    lang_dim: int = 64  # used where there are several
    inside_tokens: bool = True  # frames are told how far they are into their token, which the paper does not do
    aligner_dim: int = 128
    temperature: float = 5e-4
    duration_dim: int = 192
    duration_layers: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.blocks not in BLOCKS:
            raise TtsError(f"blocks {self.blocks!r}: known are {', '.join(BLOCKS)}")
        if self.blocks == "fft" and self.dim % self.attention_heads:
            raise TtsError(f"dim {self.dim} is not a multiple of attention_heads {self.attention_heads}")
        if self.kernel % 2 == 0:
            raise TtsError(f"kernel {self.kernel} is not an odd number")
        _ = self.front_end

    @property
    def front_end(self) -> FrontEnd:
        """Texts to tokens."""
        return FrontEnd(self.front, self.symbols)

    @property
    def condition_dim(self) -> int:
        """Numbers that say language and voice."""
        return self.speaker_vector_dim + self.lang_dim * (len(self.langs) > 1)


# txt2vec as in the paper, with its own text encoder: two books of 320 units, 4 and 6 FFT layers of 256 dimensions.
PAPER = TtsConfig(
    n_units=320,
    codebooks=2,
    blocks="fft",
    dim=256,
    kernel=9,
    hidden=1024,
    dropout=0.2,
    inside_tokens=False,
    duration_dim=256,
)


@dataclass(frozen=True)
class Lines:
    """A batch: `tokens` (batch, n), `units` (batch, frames[, codebooks]), each with lengths; `lang` (batch,) indices.

    `vector` (batch, dim) says whose voice it is, where the model has several.
    """

    tokens: Tensor
    token_lengths: Tensor
    units: Tensor
    lengths: Tensor
    lang: Tensor
    vector: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Lines":
        """The same batch on `device`."""
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return Lines(**{name: x if x is None else x.to(device, non_blocking=non_blocking) for name, x in given})

    def pin_memory(self) -> "Lines":
        """The same batch in page-locked memory."""
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return Lines(**{name: x if x is None else x.pin_memory() for name, x in given})


def _stack(config: TtsConfig, layers: int) -> Stack:
    c = config
    return Stack(c.blocks, c.dim, layers, kernel=c.kernel, heads=c.attention_heads, hidden=c.hidden, dropout=c.dropout)


class TextToUnits(nn.Module):
    """See the module's text; `forward` trains, `generate` speaks."""

    def __init__(self, config: TtsConfig) -> None:
        super().__init__()
        if config.n_units < 2 or (config.front != "bytes" and not config.symbols):
            raise TtsError(f"n_units {config.n_units} and symbols {config.symbols!r}: both come from the training data")
        self.config = c = config
        self.tokens = nn.Embedding(len(c.front_end), c.dim, padding_idx=0)
        self.encoder, self.decoder = _stack(c, c.encoder_layers), _stack(c, c.decoder_layers)
        self.text_norm = nn.LayerNorm(c.dim)
        self.langs = nn.Embedding(len(c.langs), c.lang_dim) if len(c.langs) > 1 else None
        self.lang_norm = nn.LayerNorm(c.lang_dim) if len(c.langs) > 1 else None
        self.voice_norm = nn.LayerNorm(c.speaker_vector_dim) if c.speaker_vector_dim else None
        self.colour = nn.Linear(c.condition_dim, c.dim) if c.condition_dim else None
        # The paper gives the aligner units as one-hot vectors; an embedding is the same without the multiplication.
        self.said = nn.ModuleList(nn.Embedding(c.n_units, c.aligner_dim) for _ in range(c.codebooks))
        self.aligner = Aligner(c.dim + c.condition_dim, c.aligner_dim, c.aligner_dim, temperature=c.temperature)
        self.durations = VariancePredictor(
            c.dim, c.duration_dim, layers=c.duration_layers, condition=c.condition_dim, dropout=c.dropout
        )
        self.inner = nn.Linear(2, c.dim) if c.inside_tokens else None
        self.units = nn.Linear(c.dim, c.codebooks * c.n_units)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.units.weight.device

    def encode(
        self, tokens: Tensor, lengths: Tensor, lang: Tensor, vector: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (batch, n) to (batch, n, dim), their mask (batch, n), and what says language and voice (batch, m)."""
        mask = inside(lengths, tokens.shape[1])
        text = self.text_norm(self.encoder(self.tokens(tokens), mask))
        parts = [] if self.langs is None or self.lang_norm is None else [self.lang_norm(self.langs(lang))]
        if self.voice_norm is not None:
            if vector is None:
                raise TtsError("this model speaks with many voices: give speaker vectors")
            parts.append(self.voice_norm(vector.to(text.dtype)))
        return text, mask, torch.cat(parts, dim=1) if parts else None

    def align(self, text: Tensor, lengths: Tensor, condition: Tensor | None, batch: Lines) -> Tensor:
        """Scores (batch, frames, tokens) of what is said when, as an `Aligner` gives them."""
        columns = batch.units.unsqueeze(-1) if batch.units.ndim == 2 else batch.units
        queries = sum(table(columns[..., i]) for i, table in enumerate(self.said))
        keys = text if condition is None else torch.cat([text, _spread(condition, text)], dim=2)
        return self.aligner(keys, queries, lengths, batch.lengths)

    def decode(self, text: Tensor, durations: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Text (batch, n, dim) and frames of each token (batch, n) to logits (batch, frames, codebooks, n_units)."""
        if self.colour is not None and condition is not None:
            text = text + _spread(self.colour(condition), text)
        frames, lengths = regulate(text, durations)
        if self.inner is not None:
            ends = durations.cumsum(1)
            spans, _ = regulate(torch.stack([ends - durations, ends], dim=2).float(), durations)
            at = torch.arange(frames.shape[1], device=frames.device)[None, :, None] + 0.5
            frames = frames + self.inner(torch.log1p((spans - at).abs()))
        hidden = self.decoder(frames, inside(lengths, frames.shape[1]))
        return self.units(hidden).unflatten(2, (self.config.codebooks, self.config.n_units)), lengths

    def forward(self, batch: Lines) -> dict[str, Tensor]:
        """Losses of a batch; padding has none.

        Returns:
            units: cross entropy, nats a frame, the sum over the codebooks.
            accuracy: share of the units that are the likeliest at their place.
            align: minus log of the sum over alignments, nats a token.
            bind: how far that is from the best alignment, nats a frame.
            durations: squared error of log(1 + frames).
        """
        text, mask, condition = self.encode(batch.tokens, batch.token_lengths, batch.lang, batch.vector)
        scores = self.align(text, batch.token_lengths, condition, batch)
        durations = monotonic_durations(scores, batch.token_lengths, batch.lengths)
        logits, lengths = self.decode(text, durations, condition)
        kept = inside(lengths, logits.shape[1])
        wanted = batch.units.view(*batch.units.shape[:2], -1)[kept]  # (frames of all rows, codebooks)
        logits = logits[kept].float()
        predicted = self.durations(text, mask, condition).float()
        error = (predicted - torch.log1p(durations.float())).square()
        return {
            "units": F.cross_entropy(logits.flatten(0, 1), wanted.flatten()) * self.config.codebooks,
            "accuracy": (logits.argmax(2) == wanted).float().mean(),
            "align": forward_sum(scores, batch.token_lengths, batch.lengths),
            "bind": binarisation(scores, durations),
            "durations": (error * mask).sum() / mask.sum(),
        }

    @torch.inference_mode()
    def generate(
        self,
        tokens: Sequence[np.ndarray],
        *,
        langs: Sequence[str] = (),
        vectors: np.ndarray | None = None,
        speed: float = 1.0,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Units (frames[, codebooks]) and frames of each token (n,) of token sequences (n,), each as it would be alone.

        `langs` and `vectors` (sequences, dim) where the model has several languages or voices; durations are divided
        by `speed`.
        """
        if not tokens:
            return []
        c = self.config
        padded = nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in tokens], batch_first=True)
        lengths = torch.tensor([len(one) for one in tokens], device=self.device)
        index = torch.tensor([self._lang(lang) for lang in langs] or [0] * len(tokens), device=self.device)
        vector = None if vectors is None else torch.from_numpy(np.asarray(vectors, np.float32)).to(self.device)
        text, mask, condition = self.encode(padded.to(self.device), lengths, index, vector)
        frames = (self.durations(text, mask, condition).float().exp() - 1).clamp(max=LONGEST * c.rate_hz)
        durations = torch.round(frames / speed).long().clamp(min=1) * mask
        logits, found = self.decode(text, durations, condition)
        units = logits.argmax(3).squeeze(2) if c.codebooks == 1 else logits.argmax(3)
        return [
            (one[:n].cpu().numpy(), row[:m].cpu().numpy())
            for one, n, row, m in zip(units, found.tolist(), durations, lengths.tolist(), strict=True)
        ]

    def _lang(self, lang: str) -> int:
        if lang not in self.config.langs:
            raise TtsError(f"language {lang!r}: this model knows {', '.join(self.config.langs) or 'no names'}")
        return self.config.langs.index(lang)

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors and card.md."""
        text = card or f"# Text to units\n\nTokenizer: `{self.config.tokenizer}`\n"
        save_model(directory, self.config, self.state_dict(), kind="tts", card=text)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Reads what `save` wrote, ready for use."""
        config, weights = read_model(directory, TtsConfig, what="a text-to-units model", error=TtsError)
        model = cls(config)
        model.load_state_dict(weights)
        return model.to(device).eval()


def _spread(vector: Tensor, over: Tensor) -> Tensor:
    """(batch, m) to (batch, steps, m), as many steps as the other has."""
    return vector[:, None].expand(-1, over.shape[1], -1)

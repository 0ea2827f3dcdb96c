"""Unit vocoder: units (or any per-frame condition) to a waveform, with a HiFi-GAN or an ISTFT core."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit import config as configs
from unitkit.models.storage import read_model, save_model
from unitkit.models.wave_cores import HifiganConfig, HifiganCore, IstftConfig, IstftCore, VocoderError
from unitkit.units import Units, check_fingerprint

CHUNK = 1500  # frames that `generate` makes at a time
T = TypeVar("T")


def hop_samples(sample_rate: int, rate_hz: float) -> int:
    """Samples per frame; an error when that is no whole number."""
    hop = sample_rate / rate_hz
    if abs(hop - round(hop)) > 1e-6:
        raise VocoderError(
            f"sample_rate {sample_rate} is not a whole multiple of the units' rate_hz {rate_hz}: choose a sample rate "
            f"that is, such as {round(rate_hz * round(hop))}"
        )
    return round(hop)


def normalise_f0(f0: np.ndarray, stats: Sequence[float] | None = None) -> np.ndarray:
    """F0 (frames,) in Hz -> (frames, 2) normalised log F0 and voicing; own statistics where none are given."""
    voiced = f0 > 0
    log = np.log(np.where(voiced, f0, 1.0))
    mean, std = stats if stats is not None else f0_stats([f0])
    return np.stack([np.where(voiced, (log - mean) / max(std, 1e-3), 0.0), voiced], axis=-1).astype(np.float32)


def f0_stats(contours: Sequence[np.ndarray]) -> list[float]:
    """[mean, standard deviation] of log F0 over the voiced frames; [0, 1] when there are none."""
    voiced = np.concatenate([c[c > 0] for c in contours]) if contours else np.empty(0)
    if not len(voiced):
        return [0.0, 1.0]
    return [float(np.log(voiced).mean()), float(max(np.log(voiced).std(), 1e-3))]


@dataclass(frozen=True)
class VocoderConfig:
    """Everything needed to rebuild a vocoder; `tokenizer` is the fingerprint its units must have."""

    tokenizer: str = ""
    rate_hz: float = 50.0
    n_units: int = 100
    codebooks: int = 1
    features_dim: int = 0  # > 0: continuous or soft units (frames, dim) instead of ids
    sample_rate: int = 16000
    core: str = "istft"  # istft | hifigan
    hifigan: HifiganConfig = field(default_factory=HifiganConfig)
    istft: IstftConfig = field(default_factory=IstftConfig)
    unit_dim: int = 128
    speakers: tuple[str, ...] = ()
    speaker_dim: int = 128  # used when there are two speakers or more, or vectors
    speaker_vector_dim: int = 0  # > 0: a speaker vector is given instead of a name, so that any voice can be
    speaker_encoder: str = ""  # checksum of the model that made the vectors
    langs: tuple[str, ...] = ()
    lang_dim: int = 64  # used when there are two languages or more
    f0: bool = False
    f0_stats: dict[str, list[float]] = field(default_factory=dict)  # speaker -> mean, std of log F0
    energy: bool = False
    prosody_dim: int = 64
    durations: bool = True  # a predictor, so that deduplicated units can be spoken
    duration_dim: int = 128
    duration_dropout: float = 0.5

    @property
    def hop(self) -> int:
        """Samples per unit frame."""
        return hop_samples(self.sample_rate, self.rate_hz)

    @property
    def frames_alone(self) -> bool:
        """Whether it is told nothing but frames: a vocoder of mels that any model of mels can speak through."""
        several = len(self.speakers) > 1 or len(self.langs) > 1 or self.speaker_vector_dim > 0
        return not (several or self.f0 or self.energy)


class DurationPredictor(nn.Module):
    """Run embeddings (batch, runs, dim) -> log(1 + frames) of every run."""

    def __init__(self, dim: int, hidden: int, *, kernel: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(d, hidden, kernel, padding=kernel // 2) for d in (dim, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        keep = None if mask is None else mask[:, :, None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = conv((x if keep is None else x * keep).transpose(1, 2)).transpose(1, 2)
            x = self.dropout(norm(F.relu(y)))
        return self.out(x).squeeze(2)


def find_runs(units: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs of equal units: values (batch, frames[, codebooks]), lengths and a mask (batch, frames), padded at the end.

    Units are (batch, frames[, codebooks]); a run ends where any codebook changes. No Python loop, no host sync.
    """
    rows = units.reshape(*units.shape[:2], -1)
    new = torch.ones_like(mask)
    new[:, 1:] = (rows[:, 1:] != rows[:, :-1]).any(2)
    new = new & mask
    index = (new.cumsum(1) - 1).clamp(min=0)
    lengths = torch.zeros_like(index).scatter_add_(1, index, mask.long())
    values = torch.zeros_like(rows).scatter_reduce_(
        1, index[:, :, None].expand_as(rows), rows * mask[:, :, None], "amax", include_self=False
    )
    return values.view_as(units), lengths, lengths > 0


def duration_loss(predicted: Tensor, lengths: Tensor, mask: Tensor, *, cut: Tensor) -> Tensor:
    """Squared error of log(1 + frames) over the runs that were not cut by the segment's edges (`cut` (batch, 2))."""
    first = torch.arange(lengths.shape[1], device=lengths.device) == 0
    last = torch.arange(lengths.shape[1], device=lengths.device) == mask.sum(1, keepdim=True) - 1
    whole = mask & ~(first & cut[:, :1]) & ~(last & cut[:, 1:])
    error = (predicted.float() - torch.log1p(lengths.float())).square()
    return (error * whole).sum() / whole.sum().clamp(min=1)


class UnitVocoder(nn.Module):
    """Units with their conditions to a waveform; `forward` is for training, `generate` for use."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        if c.features_dim:
            self.features = nn.Linear(c.features_dim, c.unit_dim)
        else:
            self.units = nn.ModuleList(nn.Embedding(c.n_units, c.unit_dim) for _ in range(c.codebooks))
        self.speaker = nn.Embedding(len(c.speakers), c.speaker_dim) if len(c.speakers) > 1 else None
        self.voice = nn.Linear(c.speaker_vector_dim, c.speaker_dim) if c.speaker_vector_dim else None
        self.lang = nn.Embedding(len(c.langs), c.lang_dim) if len(c.langs) > 1 else None
        self.f0 = nn.Linear(2, c.prosody_dim) if c.f0 else None
        self.energy = nn.Linear(1, c.prosody_dim) if c.energy else None
        dim = c.unit_dim + (c.f0 + c.energy) * c.prosody_dim
        dim += c.speaker_dim * ((self.speaker is not None) + (self.voice is not None))
        dim += c.lang_dim * (self.lang is not None)
        match c.core:
            case "hifigan":
                self.core: nn.Module = HifiganCore(c.hifigan, dim, hop=c.hop)
            case "istft":
                self.core = IstftCore(c.istft, dim, hop=c.hop)
            case _:
                raise VocoderError(f"core {c.core!r} is unknown; known: istft, hifigan")
        predicts = c.durations and not c.features_dim
        self.durations = DurationPredictor(c.unit_dim, c.duration_dim, dropout=c.duration_dropout) if predicts else None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def embed(self, units: Tensor) -> Tensor:
        """Ids (batch, frames[, codebooks]) or features (batch, frames, dim) -> (batch, frames, unit_dim)."""
        if self.config.features_dim:
            return self.features(units)
        columns = units.unsqueeze(-1) if units.ndim == 2 else units
        return sum(table(columns[..., i]) for i, table in enumerate(self.units))

    def condition(
        self,
        units: Tensor,
        *,
        speaker: Tensor | None = None,
        lang: Tensor | None = None,
        f0: Tensor | None = None,
        energy: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Tensor:
        """(batch, dim, frames): what the core hears; `speaker` and `lang` are (batch,) indices, `vector` (batch, n)."""
        x = self.embed(units)
        parts = [x]
        if self.f0 is not None:
            parts.append(self.f0(_given(f0, "f0")))
        if self.energy is not None:
            parts.append(self.energy(_given(energy, "energy")))
        if self.speaker is not None:
            parts.append(self.speaker(_given(speaker, "speaker"))[:, None].expand(-1, x.shape[1], -1))
        if self.voice is not None:
            parts.append(self.voice(_given(vector, "vector"))[:, None].expand(-1, x.shape[1], -1))
        if self.lang is not None:
            parts.append(self.lang(_given(lang, "lang"))[:, None].expand(-1, x.shape[1], -1))
        return torch.cat(parts, dim=2).transpose(1, 2)

    def forward(
        self,
        units: Tensor,
        mask: Tensor | None = None,
        *,
        speaker: Tensor | None = None,
        lang: Tensor | None = None,
        f0: Tensor | None = None,
        energy: Tensor | None = None,
        vector: Tensor | None = None,
        cut: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Wav (batch, frames * hop), zero where `mask` is false, and the duration loss (0 without `cut`)."""
        x = self.condition(units, speaker=speaker, lang=lang, f0=f0, energy=energy, vector=vector)
        wav = self.core(x, None if mask is None else mask[:, None].to(x.dtype))
        if mask is not None:
            wav = wav * mask.repeat_interleave(self.config.hop, dim=1)
        if self.durations is None or cut is None or mask is None:
            return wav, wav.new_zeros(())
        runs, lengths, present = find_runs(units, mask)
        predicted = self.durations(self.embed(runs), present)
        return wav, duration_loss(predicted, lengths, present, cut=cut)

    def fold(self) -> "UnitVocoder":
        """Folds the weight normalisation into plain weights, for inference and saving."""
        if isinstance(self.core, HifiganCore):
            self.core.set_weight_norm(False)
        return self

    def unfold(self) -> "UnitVocoder":
        """Puts the weight normalisation back, for more training."""
        if isinstance(self.core, HifiganCore):
            self.core.set_weight_norm(True)
        return self.train()

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors (weight normalisation folded) and card.md."""
        text = card or f"# Unit vocoder\n\nTokenizer: `{self.config.tokenizer}`\n"
        save_model(directory, self.config, _plain_weights(self), kind="vocoder", card=text)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> "UnitVocoder":
        """Loads a model directory, ready for inference."""
        config, weights = read_model(directory, VocoderConfig, what="a vocoder directory", error=VocoderError)
        model = cls(config).fold()
        model.load_state_dict(weights)
        return model.to(device).eval()

    @torch.inference_mode()
    def generate(
        self,
        units: Sequence[Units | Tensor | np.ndarray],
        *,
        speaker: str | None = None,
        lang: str | None = None,
        durations: str | Sequence[Sequence[int] | Tensor | np.ndarray] | None = None,
        f0: Sequence[np.ndarray] | None = None,
        energy: Sequence[np.ndarray] | None = None,
        f0_speaker: str | None = None,
        vector: np.ndarray | None = None,
    ) -> list[Tensor]:
        """Wavs (frames * hop,) on the CPU for a batch of unit sequences; each is what it would be alone.

        Args:
            units: `Units`, ids (frames[, codebooks]) or soft units (frames, dim); deduplicated ones need `durations`.
            durations: frames per unit, "predict" to have them predicted, or None for frame-level units.
            f0: Hz per output frame, 0 = unvoiced; normalised by `f0_speaker` (default: the target speaker, if known).
            energy: root mean square per output frame.
            vector: speaker vector (n,) of all, or (sequences, n).
        """
        if not units:
            return []
        ids = [self._ids(item, expanded=durations is not None) for item in units]
        frames = self._expand(ids, durations)
        condition, mask = self._heard(frames, speaker, lang, f0, energy, f0_speaker, vector)
        wavs = torch.cat(list(self._chunks(condition, mask, CHUNK)), dim=1)
        return [wav[: len(f) * self.config.hop].clone() for wav, f in zip(wavs, frames, strict=True)]

    def stream(
        self,
        units: Units | Tensor | np.ndarray,
        *,
        seconds: float = 0.5,
        speaker: str | None = None,
        lang: str | None = None,
        durations: str | Sequence[int] | Tensor | np.ndarray | None = None,
        f0: np.ndarray | None = None,
        energy: np.ndarray | None = None,
        f0_speaker: str | None = None,
        vector: np.ndarray | None = None,
    ) -> Iterator[Tensor]:
        """What `generate` gives for one sequence, in pieces (samples,) of `seconds`, the first as soon as it is made.

        Bad arguments raise here, not at the first piece; durations are predicted for the whole sequence at once.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            raise VocoderError(f"seconds={seconds!r}: pieces have a positive length, such as 0.5")
        size = max(1, round(seconds * self.config.rate_hz))  # a piece is at least one frame
        lengths = durations if durations is None or isinstance(durations, str) else [durations]
        with torch.inference_mode():
            frames = self._expand([self._ids(units, expanded=durations is not None)], lengths)
            contours, levels = (None if c is None else [c] for c in (f0, energy))
            condition, mask = self._heard(frames, speaker, lang, contours, levels, f0_speaker, vector)
        return (piece[0].clone() for piece in self._chunks(condition, mask, size))

    def _heard(
        self,
        frames: list[Tensor],
        speaker: str | None,
        lang: str | None,
        f0: Sequence[np.ndarray] | None,
        energy: Sequence[np.ndarray] | None,
        f0_speaker: str | None,
        vector: np.ndarray | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The core's condition (batch, dim, frames) and its mask (batch, 1, frames), None where nothing is padded."""
        padded, mask = _pad(frames, self.device)
        contours, stats = None, self.config.f0_stats.get(f0_speaker or speaker or (*self.config.speakers, "")[0])
        if self.f0 is not None:
            contours = [normalise_f0(np.asarray(c, np.float32), stats) for c in _given(f0, "f0")]
        levels = None
        if self.energy is not None:
            levels = [np.log(np.asarray(e, np.float32)[:, None] + 1e-4) for e in _given(energy, "energy")]
        n = len(frames)
        condition = self.condition(
            padded,
            speaker=self._named(speaker, self.config.speakers, n, what="speaker"),
            lang=self._named(lang, self.config.langs, n, what="language"),
            f0=_pad_like(contours, mask, what="f0"),
            energy=_pad_like(levels, mask, what="energy"),
            vector=self._vectors(vector, n),
        )
        return condition, None if bool(mask.all()) else mask[:, None].float()

    @torch.inference_mode()
    def _chunks(self, condition: Tensor, mask: Tensor | None, size: int) -> Iterator[Tensor]:
        """The core on `size` frames at a time with all the context that matters: bounded memory, the same wav."""
        hop, total = self.config.hop, condition.shape[2]
        for start in range(0, total, size):
            stop = min(start + size, total)
            seen = slice(max(0, start - self.core.margin), stop + self.core.margin)
            wav = self.core(condition[:, :, seen], None if mask is None else mask[:, :, seen]).float().cpu()
            yield wav[:, (start - seen.start) * hop : (stop - seen.start) * hop]

    def checksum(self) -> str:
        """12 hex digits that change with the config or any weight."""
        digest = sha256(configs.to_yaml(self.config).encode())
        for name, value in sorted(_plain_weights(self).items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:12]

    @torch.inference_mode()
    def predict_durations(self, units: Sequence[Tensor]) -> list[Tensor]:
        """Frames (runs,) int64, at least 1, for a batch of deduplicated id sequences."""
        if self.durations is None:
            raise VocoderError("this vocoder has no duration predictor: give frame-level units, or durations")
        padded, mask = _pad(units, self.device)
        predicted = self.durations(self.embed(padded), mask).float()
        frames = torch.round(predicted.exp() - 1).clamp(min=1).long()
        return [row[: len(u)] for row, u in zip(frames, units, strict=True)]

    def _ids(self, item: Units | Tensor | np.ndarray, *, expanded: bool) -> Tensor:
        if isinstance(item, Units):
            if self.config.tokenizer:
                check_fingerprint(self.config.tokenizer, item.tokenizer, what=f"units {item.id!r} for this vocoder")
            if item.reduced and not expanded:
                raise VocoderError(f"units {item.id!r} are deduplicated: pass durations, or durations='predict'")
            item = item.ids
        ids = torch.as_tensor(item).to(self.device)
        wanted = self.config.features_dim or (self.config.codebooks if self.config.codebooks > 1 else 0)
        if ids.ndim != (2 if wanted else 1) or (wanted and ids.shape[1] != wanted) or not len(ids):
            shape = f"(frames, {wanted})" if wanted else "(frames,)"
            raise VocoderError(f"units of shape {tuple(ids.shape)}: this vocoder takes {shape}, at least one frame")
        if self.config.features_dim:
            return ids.float()
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.n_units:
            raise VocoderError(f"units {int(ids.min())}..{int(ids.max())}: known are 0..{self.config.n_units - 1}")
        return ids.long()

    def _expand(self, ids: list[Tensor], durations: str | Sequence | None) -> list[Tensor]:
        if durations is None:
            return ids
        if isinstance(durations, str):
            if durations != "predict":
                raise VocoderError(f"durations={durations!r}: give 'predict', numbers of frames, or None")
            durations = self.predict_durations(ids)
        lengths = [torch.as_tensor(d).to(self.device).long() for d in durations]
        if [len(d) for d in lengths] != [len(i) for i in ids]:
            raise VocoderError(f"{[len(d) for d in lengths]} durations for {[len(i) for i in ids]} units")
        return [i.repeat_interleave(d, dim=0) for i, d in zip(ids, lengths, strict=True)]

    def _named(self, name: str | None, known: tuple[str, ...], n: int, *, what: str) -> Tensor | None:
        if name is None and len(known) < 2:
            return None
        if name not in known:
            raise VocoderError(f"{what} {name!r} is unknown to this vocoder; known: {', '.join(known) or 'none'}")
        return torch.full((n,), known.index(name), device=self.device)

    def _vectors(self, vector: np.ndarray | None, n: int) -> Tensor | None:
        dim = self.config.speaker_vector_dim
        if vector is None or not dim:
            return None
        if np.shape(vector) not in ((dim,), (n, dim)):
            raise VocoderError(
                f"speaker vector of shape {np.shape(vector)}: this vocoder takes ({dim},) or ({n}, {dim})"
            )
        return torch.from_numpy(np.array(vector, np.float32)).to(self.device).expand(n, dim)


def _given(value: T | None, name: str) -> T:
    if value is None:
        raise VocoderError(f"this vocoder was trained with {name}: pass {name}=")
    return value


def _pad(items: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    padded = nn.utils.rnn.pad_sequence(list(items), batch_first=True)
    lengths = torch.tensor([len(i) for i in items], device=device)
    return padded, torch.arange(padded.shape[1], device=device) < lengths[:, None]


def _pad_like(items: list[np.ndarray] | None, mask: Tensor, *, what: str) -> Tensor | None:
    """(batch, frames, channels), each contour as long as its row of `mask`."""
    if items is None:
        return None
    wanted = mask.sum(1).tolist()
    if [len(i) for i in items] != wanted:
        raise VocoderError(f"{what} of {[len(i) for i in items]} frames for units of {wanted} frames")
    return nn.utils.rnn.pad_sequence([torch.from_numpy(i) for i in items], batch_first=True).to(mask.device)


def _plain_weights(model: UnitVocoder) -> dict[str, Tensor]:
    """The state dict as it is after `fold`, without touching the model."""
    weights = {}
    for name, value in model.state_dict().items():
        owner, _, leaf = name.partition(".parametrizations.weight.")
        if not leaf:
            weights[name] = value
        elif leaf == "original0":
            weights[f"{owner}.weight"] = model.get_submodule(owner).weight
    return {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}


def n_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(math.prod(p.shape) for p in module.parameters())

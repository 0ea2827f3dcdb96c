"""Units and vectors of an utterance to prosody, and with it to a mel: conversion of voice and prosody in one shot.

Three encoders hear a recording: whose voice, how high and loud it moves, how fast it goes.  Of units and these vectors
come durations, voicing, F0 and energy, as soft bins; of units, F0 and energy the mel, as the sum of a part of units
and voice, a part of F0 and voice, and a level.  The encoders hear a copy shifted in pitch, so that they cannot say how
high the voice is, which only the vector in the part of F0 may know.  UUVC, Chen et al. 2022 (2211.06535).
"""

import os
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.audio import Mel
from unitkit.models.front import inside
from unitkit.models.hearing import MelHearing, Wav2Vec2Hearing
from unitkit.models.layers import VariancePredictor, regulate, soft_bins
from unitkit.models.source_filter import Synthesiser, embedded
from unitkit.models.storage import read_model, save_model
from unitkit.models.vocoder import duration_loss, find_runs, hop_samples
from unitkit.units import Units, check_fingerprint

# What each mode takes from the reference; the rest stays the source's.
MODES: dict[str, frozenset[str]] = {
    "copy": frozenset(),  # nothing: what the model makes of the source as it is
    "rhythm": frozenset({"rhythm"}),
    "pitch-energy": frozenset({"pitch"}),
    "prosody": frozenset({"pitch", "rhythm"}),
    "speaker": frozenset({"speaker"}),
    "all": frozenset({"speaker", "pitch", "rhythm"}),
}


class FrameError(ValueError):
    """A frame model that cannot be built, loaded or fed; the text names the value and what is known."""


@dataclass(frozen=True)
class Bins:
    """A scale in soft bins: `bins` of them from `low` to `high`, blurred by `sigma`, all in the scale's own unit."""

    low: float
    high: float
    bins: int
    sigma: float

    def __post_init__(self) -> None:
        if not (self.high > self.low and self.bins > 1 and self.sigma > 0):
            raise FrameError(f"{self}: high is above low, there are two bins or more, and sigma is positive")

    def targets(self, values: Tensor) -> Tensor:
        """Values (...) to soft targets (..., bins)."""
        width = (self.high - self.low) / (self.bins - 1)
        return soft_bins(values, low=self.low, high=self.high, bins=self.bins, sigma=self.sigma / width)


@dataclass(frozen=True)
class Size:
    """A predictor: numbers in its layers, and how many of them."""

    hidden: int
    layers: int = 2


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts."""

    durations: float = 1.0
    f0: float = 1.0
    voicing: float = 1.0
    energy: float = 1.0
    mel: float = 1.0
    embedding: float = 1.0
    adversarial: float = 1.0  # where a judge of mels takes part


@dataclass(frozen=True)
class FrameConfig:
    """The model; what the units say about themselves is filled in by the recipe.  The defaults are small."""

    tokenizer: str = ""  # fingerprint of the units
    rate_hz: float = 50.0
    n_units: int = 100
    mel: Mel = field(default_factory=Mel)
    dim: int = 128
    layers: int = 3  # of a generator, before and again after the step to mel frames
    vector_dim: int = 64  # of an utterance
    hearing: str = "mel"  # mel | wav2vec2
    hearing_hidden: int = 96
    hearing_layers: int = 2
    speaker_dim: int = 0  # of vectors given by a speaker encoder; 0: a third encoder is learned
    speaker_encoder: str = ""  # checksum of that speaker encoder
    f0_scale: str = "semitones"  # semitones | hz: of F0 from the utterance's mean
    f0: Bins = field(default_factory=lambda: Bins(-16.0, 16.0, 128, 0.4))
    energy_scale: str = "log"  # log | linear: of the length of a frame's spectrum
    energy: Bins = field(default_factory=lambda: Bins(-6.0, 6.0, 96, 0.2))
    durations: Size = field(default_factory=lambda: Size(64))
    voicing: Size = field(default_factory=lambda: Size(64))
    f0_size: Size = field(default_factory=lambda: Size(96, 3))
    energy_size: Size = field(default_factory=lambda: Size(96))
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (
            ("hearing", ("mel", "wav2vec2")),
            ("f0_scale", ("semitones", "hz")),
            ("energy_scale", ("log", "linear")),
        ):
            if getattr(self, name) not in known:
                raise FrameError(f"{name} {getattr(self, name)!r}: known are {', '.join(known)}")

    @property
    def ratio(self) -> float:
        """Mel frames a unit."""
        return self.mel.rate_hz / self.rate_hz

    @property
    def aligned(self) -> int:
        """Units from one that begins with a mel frame to the next such; 1 where there is none within a second."""
        mels = Fraction(self.mel.sample_rate, self.mel.hop) / Fraction(self.rate_hz).limit_denominator(1000)
        return mels.denominator if mels.denominator <= self.rate_hz else 1

    @property
    def heard_hz(self) -> float:
        """Frames per second of what the encoders hear."""
        return self.mel.rate_hz if self.hearing == "mel" else 50.0

    @property
    def unit_hop(self) -> int:
        """Samples of a unit at the mel's rate."""
        return hop_samples(self.mel.sample_rate, self.rate_hz)

    def mel_frames(self, n_units: int) -> int:
        """Mel frames that lie within so many frames of units."""
        return int(n_units * self.ratio + 1e-6)

    def fitted(self, wav: np.ndarray, n_units: int, *, name: str = "the wav") -> np.ndarray:
        """The wav (samples,) at the mel's rate, cut or padded at its end to so many frames of units."""
        wanted = n_units * self.unit_hop
        if wanted - len(wav) > 0.1 * self.mel.sample_rate + self.unit_hop:
            rate = self.mel.sample_rate
            raise FrameError(
                f"{name}: its units last {wanted / rate:.2f} s, its audio {len(wav) / rate:.2f} s; encode it again"
            )
        return np.pad(wav[:wanted], (0, max(0, wanted - len(wav))))


# The paper's model: generators of 8 + 8 blocks, 200 bins of 2.5 Hz and of energy, first layers of wav2vec 2.0.
PAPER = FrameConfig(
    n_units=200,
    mel=Mel(sample_rate=22050, hop=256),
    dim=512,
    layers=8,
    vector_dim=256,
    hearing="wav2vec2",
    hearing_hidden=768,
    hearing_layers=1,
    f0_scale="hz",
    f0=Bins(-250.0, 250.0, 200, 4.0),
    energy_scale="linear",
    energy=Bins(0.0, 200.0, 200, 4.0),
    durations=Size(128),
    voicing=Size(128),
    f0_size=Size(256, 4),
    energy_size=Size(256),
)


@dataclass(frozen=True)
class FrameBatch:
    """Segments of utterances; F0 and energy on the config's scales, all padded behind each row's end.

    `heard` is a copy shifted in pitch, for the vectors of prosody; `voice` is heard for the part of F0 and `shifted`
    for that of units: as `heard`, or (batch, speaker_dim) vectors of a speaker encoder.
    """

    units: Tensor  # (batch, n)
    lengths: Tensor  # (batch,)
    cut: Tensor  # (batch, 2): speech goes on before, after
    f0: Tensor  # (batch, n), from the utterance's mean
    voiced: Tensor  # (batch, n) bool
    energy: Tensor  # (batch, m)
    mel: Tensor  # (batch, m, n_mels), natural log
    heard: Tensor  # (batch, frames, heard_dim)
    heard_lengths: Tensor
    voice: Tensor
    voice_lengths: Tensor
    shifted: Tensor
    shifted_lengths: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "FrameBatch":
        """The same batch on `device`."""
        return FrameBatch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))


@dataclass(frozen=True)
class Vectors:
    """Of one utterance: whose voice, how high and loud it moves, how fast it goes; each (vector_dim,)."""

    speaker: Tensor
    pitch: Tensor
    rhythm: Tensor

    def taking(self, other: "Vectors", what: frozenset[str]) -> "Vectors":
        """These, but for those named in `what`, which are the other's."""
        return Vectors(*(getattr(other if f.name in what else self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Contours:
    """F0 (n,) from the utterance's mean, voicing (n,) bool and energy (m,), on the config's scales."""

    f0: Tensor
    voiced: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Converted:
    """What was made: `mel` (m, n_mels), the reduced units with their durations, and the prosody as bins."""

    mel: Tensor
    units: Tensor  # (runs,)
    durations: Tensor  # (runs,) frames
    f0: Tensor  # (n, bins)
    voiced: Tensor  # (n,) bool
    energy: Tensor  # (m, bins)


class FrameModel(nn.Module):
    """Units and vectors of utterances to prosody and mel; `forward` is for training, `convert` for use."""

    def __init__(self, config: FrameConfig) -> None:
        super().__init__()
        self.config = c = config
        self.hearing: Any = (
            MelHearing(c.mel) if c.hearing == "mel" else Wav2Vec2Hearing(c.hearing_hidden, c.mel.sample_rate)
        )
        kinds = ["pitch", "rhythm"] + ["speaker"] * (not c.speaker_dim)
        self.encoders = nn.ModuleDict(
            {
                kind: self.hearing.encoder(c.hearing_hidden, c.vector_dim, layers=c.hearing_layers, dropout=c.dropout)
                for kind in kinds
            }
        )
        if c.speaker_dim:
            self.given = nn.Sequential(nn.Linear(c.speaker_dim, c.vector_dim), nn.LayerNorm(c.vector_dim))
        self.units = nn.Embedding(c.n_units, c.dim)
        self.durations, self.voicing, self.f0 = (
            VariancePredictor(
                c.dim, size.hidden, layers=size.layers, out=out, condition=c.vector_dim, dropout=c.dropout
            )
            for size, out in ((c.durations, 1), (c.voicing, 1), (c.f0_size, c.f0.bins))
        )
        self.energy = VariancePredictor(
            c.f0_size.hidden, c.energy_size.hidden, layers=c.energy_size.layers, out=c.energy.bins, dropout=c.dropout
        )
        self.synthesiser = Synthesiser(
            c.dim,
            c.mel.n_mels,
            layers=c.layers,
            voice_dim=c.vector_dim,
            f0_bins=c.f0.bins,
            energy_bins=c.energy.bins,
            dropout=c.dropout,
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.units.weight.device

    # ---------------------------------------------------------------------------------------------------- training

    def forward(self, batch: FrameBatch, weights: LossWeights | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Losses, "loss" their weighted sum, and the mel (batch, m, n_mels).

        In training F0 and energy go into the mel as the mean of truth and prediction, else as predicted.
        """
        c, w = self.config, weights or LossWeights()
        mask = inside(batch.lengths, batch.units.shape[1])
        mel_mask = inside((batch.lengths.double() * c.ratio + 1e-6).long(), batch.mel.shape[1])
        pitch, rhythm = (self.encoders[kind](batch.heard, batch.heard_lengths) for kind in ("pitch", "rhythm"))
        voices = self.voice(batch.shifted, batch.shifted_lengths), self.voice(batch.voice, batch.voice_lengths)
        runs, lengths, present = find_runs(batch.units, mask)
        spoken = self.durations(self.units(runs), present, rhythm)
        units, index = self.units(batch.units), self.index(batch.mel.shape[1])
        voicing, f0, energy = self.prosody(units, pitch, mask=mask, index=index, mel_mask=mel_mask)
        true_f0, true_energy = c.f0.targets(batch.f0), c.energy.targets(batch.energy)
        made_f0, made_energy = f0.sigmoid(), energy.sigmoid()
        share = 0.5 if self.training else 0.0
        mel = self.synthesiser(
            units,
            share * true_f0 + (1 - share) * made_f0,
            batch.voiced if self.training else voicing > 0,
            share * true_energy + (1 - share) * made_energy,
            voices=voices,
            mask=mask,
            index=index,
            mel_mask=mel_mask,
        )
        losses = {
            "durations": duration_loss(spoken, lengths, present, cut=batch.cut),
            "f0": _mean(_bce(f0, true_f0).mean(2), mask & batch.voiced),
            "voicing": _mean(_bce(voicing, batch.voiced), mask),
            "energy": _mean(_bce(energy, true_energy).mean(2), mel_mask),
            "mel": _mean((mel - batch.mel).abs().mean(2), mel_mask),
            "embedding": self._apart(true_f0, made_f0, mask & batch.voiced, self.synthesiser.f0)
            + self._apart(true_energy, made_energy, mel_mask, self.synthesiser.energy),
        }
        return {"loss": sum(getattr(w, name) * value for name, value in losses.items())} | losses, mel

    def _apart(self, true: Tensor, made: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        """Squared distance of what true and predicted bins stand for; the true side does not move."""
        apart = embedded(true, table).detach().float() - embedded(made, table).float()
        return _mean(apart.square().mean(2), mask)

    # --------------------------------------------------------------------------------------------------- its parts

    def voice(self, heard: Tensor, lengths: Tensor) -> Tensor:
        """The voice's vector (batch, vector_dim), of what was heard or of vectors (batch, speaker_dim) given."""
        return self.given(heard) if self.config.speaker_dim else self.encoders["speaker"](heard, lengths)

    def prosody(
        self, units: Tensor, pitch: Tensor, *, mask: Tensor, index: Tensor, mel_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of voicing (batch, n), of F0 (batch, n, bins) and of energy (batch, m, bins)."""
        hidden = self.f0.hidden(units, mask, pitch)
        return self.voicing(units, mask, pitch), self.f0.leave(hidden), self.energy(hidden[:, index], mel_mask)

    def index(self, n_mel_frames: int) -> Tensor:
        """Which unit frame (m,) each mel frame lies in."""
        return ((torch.arange(n_mel_frames, dtype=torch.float64) + 0.5) / self.config.ratio).long().to(self.device)

    def hear(self, wav: np.ndarray) -> Tensor:
        """What the encoders hear of a wav (samples,) at the mel's rate: (frames, heard_dim)."""
        return self.hearing(wav)

    def contours(self, hertz: np.ndarray, lengths: np.ndarray) -> Contours:
        """F0 (n,) in Hz, 0 unvoiced, and lengths of spectra (m,) on the scales; F0 from the mean of these frames."""
        voiced = hertz > 0
        f0 = np.where(voiced, hertz, 1.0).astype(np.float64)
        if self.config.f0_scale == "semitones":
            f0 = 12 * np.log2(f0)
        f0 = np.where(voiced, f0 - (f0[voiced].mean() if voiced.any() else 0.0), 0.0)
        energy = lengths if self.config.energy_scale == "linear" else np.log(np.maximum(lengths, 1e-5))
        return Contours(*(torch.from_numpy(x) for x in (f0.astype(np.float32), voiced, energy.astype(np.float32))))

    # --------------------------------------------------------------------------------------------------------- use

    @torch.inference_mode()
    def vectors(self, heard: Tensor, speaker: np.ndarray | None = None) -> Vectors:
        """Of what was heard (frames, heard_dim), and of a speaker encoder's vector (speaker_dim,) if given."""
        if (speaker is None) == bool(self.config.speaker_dim):
            wanted = self.config.speaker_dim
            raise FrameError(
                f"this model {'takes a speaker vector of ' + str(wanted) if wanted else 'hears voices itself'}"
            )
        batch, lengths = heard[None].to(self.device).float(), torch.tensor([len(heard)], device=self.device)
        voice = batch if speaker is None else torch.from_numpy(speaker)[None].to(self.device)
        found = {kind: self.encoders[kind](batch, lengths)[0] for kind in ("pitch", "rhythm")}
        return Vectors(self.voice(voice, lengths)[0], **found)

    @torch.inference_mode()
    def convert(
        self,
        units: Units,
        source: Vectors,
        reference: Vectors,
        *,
        mode: str = "speaker",
        contours: Contours | None = None,
    ) -> Converted:
        """Units at frame level, spoken with what `mode` takes from the reference; `contours` replace predicted ones."""
        if mode not in MODES:
            raise FrameError(f"mode {mode!r}: known are {', '.join(MODES)}")
        taken = MODES[mode]
        if contours is not None and taken & {"pitch", "rhythm"}:
            raise FrameError(f"mode {mode!r} changes prosody: exact pitch goes with mode 'speaker' or 'copy'")
        check_fingerprint(self.config.tokenizer, units.tokenizer, what=f"units {units.id!r} for this model")
        vectors = source.taking(reference, taken)
        reduced, lengths = units.dedup()
        runs, durations = (torch.from_numpy(x).to(self.device) for x in (reduced.ids, lengths))
        if "rhythm" in taken:
            durations = self.new_durations(runs, durations, source.rhythm, vectors.rhythm)
        return self._speak(runs, durations, vectors, contours)

    def new_durations(self, runs: Tensor, durations: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Frames (runs,), at least 1, of reduced units (runs,) that last `durations` and come with the rhythm `own`.

        Those predicted for the other rhythm, times what brings those predicted for its own to the length it has: what
        is predicted too short or too long of this sentence cancels out, and what remains is what the vectors tell.
        """
        mask = torch.ones_like(runs, dtype=torch.bool)[None]
        units = self.units(runs[None])
        ours, theirs = (
            (self.durations(units, mask, rhythm[None])[0].double().exp() - 1).clamp(min=1) for rhythm in (own, other)
        )
        wanted = theirs * (durations.sum() / ours.sum())
        frames = wanted.floor().clamp(min=1)
        more = int((wanted.sum() - frames.sum()).round().clamp(min=0))  # so that rounding leaves the whole length
        frames[(wanted - frames).topk(more).indices] += 1
        return frames.long()

    def _speak(self, runs: Tensor, durations: Tensor, vectors: Vectors, contours: Contours | None) -> Converted:
        c = self.config
        units, lengths = regulate(self.units(runs)[None], durations[None])
        n = int(lengths[0])
        index = self.index(c.mel_frames(n))
        mask, mel_mask = (torch.ones(1, k, dtype=torch.bool, device=self.device) for k in (n, len(index)))
        voicing, f0, energy = self.prosody(units, vectors.pitch[None], mask=mask, index=index, mel_mask=mel_mask)
        voiced, f0, energy = voicing > 0, f0.sigmoid(), energy.sigmoid()
        if contours is not None:
            if (len(contours.f0), len(contours.energy)) != (n, len(index)):
                raise FrameError(
                    f"F0 of {len(contours.f0)} and energy of {len(contours.energy)} frames for {n} and {len(index)}"
                )
            voiced = contours.voiced[None].to(self.device)
            f0 = c.f0.targets(contours.f0[None].to(self.device))
            energy = c.energy.targets(contours.energy[None].to(self.device))
        voice = vectors.speaker[None]
        mel = self.synthesiser(
            units, f0, voiced, energy, voices=(voice, voice), mask=mask, index=index, mel_mask=mel_mask
        )
        return Converted(mel[0], runs, durations, f0[0].float(), voiced[0], energy[0].float())

    # ------------------------------------------------------------------------------------------------------- files

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors and card.md."""
        text = card or f"# Frame model\n\nTokenizer: `{self.config.tokenizer}`\n"
        save_model(directory, self.config, self.state_dict(), kind="frame", card=text)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> "FrameModel":
        """Loads a model directory, ready for use."""
        config, weights = read_model(directory, FrameConfig, what="a frame model", error=FrameError)
        model = cls(config)
        model.load_state_dict(weights)
        return model.to(device).eval()


def _bce(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)

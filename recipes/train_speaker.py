"""Trains a speaker encoder: python recipes/train_speaker.py [conf.yaml] train_manifest=... dev_manifest=... ...

It learns to tell the training set's voices apart, and each of them from itself at other pitches and formants, which
count as voices of their own.  What it is good for shows on voices that it never heard (unseen_manifest).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unitkit import augment, data
from unitkit import config as configs
from unitkit.audio import Mel, spectra
from unitkit.augment import Augment
from unitkit.cli.show import progress
from unitkit.features import Features, arrays_of
from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics.speaker import verification
from unitkit.models.speaker import MarginHead, SpeakerConfig, SpeakerEncoder, SpeakerNet
from unitkit.models.vocoder import n_parameters
from unitkit.recording import read_speech
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, fit, supervised

Batch = tuple[Tensor, Tensor, Tensor]  # mels (batch, frames, n_mels), their lengths, voices


@dataclass(frozen=True)
class DataConfig:
    """What an example is."""

    batch: int = 48
    seconds: tuple[float, float] = (1.2, 3.0)  # of a stretch
    semitones: tuple[float, ...] = (-4.0, -2.0, 2.0, 4.0)  # copies of each recording that count as other voices
    changes: Augment = field(
        default_factory=lambda: Augment(speed=0, pitch=0, reverb=0.5, noise=0.7, babble=0, gain=0)
    )  # of a second copy of each, so that rooms and noise tell nothing
    cache: str = "exp/features"
    dev_utterances: int = 200  # validated on, evenly spread; 0 = all


@dataclass(frozen=True)
class Config:
    """The recipe's configuration."""

    train_manifest: str = ""
    dev_manifest: str = ""
    unseen_manifest: str = ""  # of voices that are in neither, for the card
    out: str = "exp/speaker"
    margin: float = 0.2
    scale: float = 30.0
    data: DataConfig = field(default_factory=DataConfig)
    model: SpeakerConfig = field(default_factory=SpeakerConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, betas=(0.9, 0.98), warmup=100))
    fit: FitConfig = field(default_factory=lambda: FitConfig(max_steps=3000, ema=0.99, clip=5.0))


class Taught(nn.Module):
    """The network with the head that it learns by."""

    def __init__(self, net: SpeakerNet, head: MarginHead) -> None:
        super().__init__()
        self.net, self.head = net, head

    def forward(self, mels: Tensor, lengths: Tensor, voices: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy."""
        return self.head(self.net(mels, lengths), voices)


def spoken(path: str) -> list[Utterance]:
    """A manifest's rows; one without a speaker is an error."""
    rows = list(read_manifest(path))
    if nameless := [row.id for row in rows if not row.speaker]:
        raise data.DataError(f"{path}: {len(nameless)} rows name no speaker, such as {nameless[0]}")
    return rows


def mels_of(
    rows: Sequence[Utterance], mel: Mel, config: Config, *, semitones: float = 0.0, change: bool = False
) -> Features:
    """Log-mels of recordings, of shifted ones, or of changed ones."""
    seed, changes = config.fit.seed, config.data.changes

    def make(index: int) -> np.ndarray:
        wav = read_speech(rows[index], mel.sample_rate)
        if semitones:
            wav = augment.pitch(wav, mel.sample_rate, semitones)
        if change:
            wav = augment.augment(wav, mel.sample_rate, np.random.default_rng([seed, index]), config=changes)
        return spectra(wav, mel)[0]

    how = f"{semitones} {(seed, len(rows), changes) if change else ''}"
    with progress("listen", sum(row.duration or 0.0 for row in rows), "s") as advance:
        return arrays_of(rows, make, config.data.cache, settings={"mels": mel.fingerprint}, how=how, advance=advance)


class Stretches(Dataset):
    """Stretches of recordings with the number of their voice; item (epoch, i) is always the same one."""

    def __init__(self, rows: Sequence[Utterance], *, config: Config) -> None:
        mel, shifts = config.model.mel, (0.0, *config.data.semitones)
        self.rows, self.config, self.rate_hz = rows, config, mel.rate_hz
        names = sorted({row.speaker or "" for row in rows})
        self.voices = {(name, shift): i for i, (shift, name) in enumerate((s, n) for s in shifts for n in names)}
        self.shifts = shifts
        self.variants = [
            [mels_of(rows, mel, config, semitones=shift, change=change) for change in (False, True)] for shift in shifts
        ]

    def __len__(self) -> int:
        return len(self.rows) * len(self.shifts)

    def __getitem__(self, key: data.Key) -> tuple[np.ndarray, int]:
        epoch, item = key
        draw = np.random.default_rng([self.config.fit.seed, epoch, item])
        index, shift = item % len(self.rows), item // len(self.rows)
        mels = self.variants[shift][int(draw.integers(2))][index]
        length = min(len(mels), round(draw.uniform(*self.config.data.seconds) * self.rate_hz))
        start = int(draw.integers(len(mels) - length + 1))
        voice = self.voices[self.rows[index].speaker or "", self.shifts[shift]]
        return mels[start : start + length].astype(np.float32), voice

    @staticmethod
    def collate(items: Sequence[tuple[np.ndarray, int]]) -> Batch:
        """Mels padded at the end, their lengths, voices."""
        mels = [torch.from_numpy(one) for one, _ in items]
        padded = nn.utils.rnn.pad_sequence(mels, batch_first=True)
        return padded, torch.tensor([len(one) for one in mels]), torch.tensor([voice for _, voice in items])


class Validation:
    """Equal error rate of whole recordings, of the dev set and of voices that were never heard."""

    def __init__(self, config: Config, dev: Sequence[Utterance], unseen: Sequence[Utterance]) -> None:
        self.sets: dict[str, tuple[list[str], list[Tensor]]] = {}
        for name, rows in (("", dev), ("_unseen", unseen)):
            count = min(config.data.dev_utterances or len(rows), len(rows))
            chosen = [rows[i * len(rows) // count] for i in range(count)]
            if chosen:
                mels = mels_of(chosen, config.model.mel, config)
                heard = [torch.from_numpy(mels[i].astype(np.float32)) for i in range(len(mels))]
                self.sets[name] = [row.speaker or "" for row in chosen], heard

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode."""
        taught: Any = model
        device = taught.head.voices.device
        found: dict[str, float] = {}
        for name, (voices, heard) in self.sets.items():
            vectors = [taught.net(one[None].to(device), torch.tensor([len(one)], device=device))[0] for one in heard]
            scores = verification(torch.stack(vectors).float().cpu().numpy(), voices)
            found |= {f"{metric}{name}": value for metric, value in scores.items()}
        return found


def _card(config: Config, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    return (
        f"# Speaker encoder\n\nWav at {config.model.mel.sample_rate} Hz to a vector of {config.model.dim} numbers of "
        f"length 1.  Trained on `{config.train_manifest}` (its licence is that of this model), validated on "
        f"`{config.dev_manifest}`; voices never heard: `{config.unseen_manifest or 'none'}`.\n\n"
        f"## Scores\n\n{scores}\n\neer: equal error rate, percent, over all pairs of whole recordings; same, "
        "different: mean cosines of one voice and of two.\n\n## Recipe\n\n"
        f"python recipes/train_speaker.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def train(config: Config) -> FitResult:
    """Runs the recipe; the directory is `config.out`."""
    torch.manual_seed(config.fit.seed)
    for name in ("train_manifest", "dev_manifest"):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
    rows, dev = spoken(config.train_manifest), spoken(config.dev_manifest)
    unseen = spoken(config.unseen_manifest) if config.unseen_manifest else []
    if both := {row.speaker for row in rows} & {row.speaker for row in unseen}:
        raise data.DataError(f"{config.unseen_manifest}: {', '.join(sorted(map(str, both)))} are voices trained on")
    stretches = Stretches(rows, config=config)
    net = SpeakerNet(config.model)
    head = MarginHead(config.model.dim, len(stretches.voices), margin=config.margin, scale=config.scale)
    print(f"{n_parameters(net) / 1e6:.2f} M parameters, {len(stretches.voices)} voices", file=sys.stderr)

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        SpeakerEncoder(module.net).save(folder, card=_card(config, metrics))

    return fit(
        {"model": Part(Taught(net, head), config.optim)},
        supervised(lambda module, batch: module(*batch)),
        batches=data.batches(
            stretches,
            config.data.batch,
            collate=Stretches.collate,
            seed=config.fit.seed,
            device=config.fit.device,
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(config, dev, unseen),
        monitor="eer",
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

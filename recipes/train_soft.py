"""Trains a soft tokenizer: python recipes/train_soft.py [conf.yaml] train_manifest=... train_units=... key=value ...

A head on a speech model learns to name each frame's discrete unit; what it projects the frame to is the soft unit.  The
speech model stays as it is (its features are computed once), or learns as a whole with finetune=all, as in the paper,
or by the names of its weights.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from unitkit import config as configs
from unitkit import data
from unitkit.augment import Masks, mask_features
from unitkit.cli.show import progress
from unitkit.features import features_of
from unitkit.models.finetune import Hearing
from unitkit.models.listen import Listener
from unitkit.models.soft import PAPER, Frames, SoftConfig, SoftHead, pad_frames
from unitkit.models.vocoder import n_parameters
from unitkit.tokenizer import pick_device
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, fit, supervised

DERIVED = ("tokenizer", "n_units", "rate_hz", "features", "features_dim")


@dataclass(frozen=True)
class DataConfig:
    """What an example is, and how examples are changed."""

    batch: int = 16
    max_seconds: float = 20.0  # longer recordings are left out
    cache: str = "exp/features"  # where features are kept
    masks: Masks = field(default_factory=lambda: Masks(seconds=0.2, share=0.1))


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what units and features say about themselves is never written here."""

    train_manifest: str = ""
    train_units: str = ""
    dev_manifest: str = ""
    dev_units: str = ""
    features: str = "logmel"  # a filterbank, or a speech model by name or directory …
    layer: int | None = None  # … and its layer; left out: the middle one
    finetune: str = "frozen"  # frozen | all | lna | parts of the names of the speech model's weights, with commas
    size: str = "small"  # small: as `model` says | paper: one linear layer on the speech model
    out: str = "exp/soft"
    data: DataConfig = field(default_factory=DataConfig)
    model: SoftConfig = field(default_factory=SoftConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, betas=(0.9, 0.98), warmup=100))
    fit: FitConfig = field(default_factory=lambda: FitConfig(max_steps=1500, ema=0.99, clip=10.0))


class Taught(Dataset):
    """Features or wavs with their units; item (epoch, i) is always the same one."""

    def __init__(self, what: str, rows: Sequence[data.Row], listener: Listener, *, config: Config) -> None:
        """With `what` "train" features are masked; recordings that are too long are left out."""
        self.config, self.train, self.rate_hz = config, what == "train", listener.rate_hz
        longest = config.data.max_seconds
        self.rows = [row for row in rows if len(row.units) and len(row.units) / config.model.rate_hz <= longest]
        if left := len(rows) - len(self.rows):
            print(f"{what}: {left} of {len(rows)} recordings are empty or longer than {longest:g} s", file=sys.stderr)
        if not self.rows:
            raise data.DataError(f"{what}: none of {len(rows)} recordings can be learned from")
        self.lengths = [len(row.units) for row in self.rows]
        self.features: Any = None
        self.wavs = data.AudioCache(listener.sample_rate)
        if config.finetune == "frozen":
            utterances = [row.utterance for row in self.rows]
            with progress("listen", sum(row.duration or 0.0 for row in utterances), "s") as advance:
                self.features = features_of(utterances, listener, config.data.cache, advance=advance)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: data.Key) -> tuple[np.ndarray, np.ndarray]:
        epoch, item = key
        row = self.rows[item]
        if self.features is None:
            return self.wavs.read(row.utterance, 0, 1 << 40), row.units
        found = self.features[item].astype(np.float32)
        if self.train:
            draw = np.random.default_rng([self.config.fit.seed, epoch, item])
            found = mask_features(found, draw, config=self.config.data.masks, rate_hz=self.rate_hz)
        return found, row.units

    @staticmethod
    def collate(items: Sequence[tuple[np.ndarray, np.ndarray]]) -> Frames:
        """A padded batch."""
        sources, targets = zip(*items, strict=True)
        return pad_frames(sources, targets)


class Validation:
    """Loss and accuracy on the dev set."""

    def __init__(self, dev: Taught, batch: int) -> None:
        order = sorted(range(len(dev)), key=lambda item: dev.lengths[item])
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        self.batches = [dev.collate([dev[0, item] for item in group]) for group in groups]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode, by frame."""
        device, totals, weight = next(model.parameters()).device, dict[str, float](), 0
        for batch in self.batches:
            n = int((batch.target >= 0).sum())
            for name, value in model(batch.to(device)).items():
                totals[name] = totals.get(name, 0.0) + n * float(value)
            weight += n
        return {name: value / weight for name, value in totals.items()}


def _card(config: Config, model: SoftConfig, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    return (
        f"# Soft units of {model.dim} numbers at {model.rate_hz:g} Hz\n\n"
        f"Taught by the {model.n_units} units of tokenizer `{model.tokenizer}` in `{config.train_units}`; heard with "
        f"`{model.features}` ({config.finetune}).  Trained on `{config.train_manifest}` (its licence, and that of the "
        f"speech model, is that of this one), validated on `{config.dev_manifest}`.\n\n## Scores\n\n{scores}\n\n"
        "accuracy: share of frames whose nearest unit is the discrete one; loss: nats a frame.\n\n## Recipe\n\n"
        f"python recipes/train_soft.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def check(config: Config) -> None:
    """Refuses settings that lack something or say a thing twice."""
    for name in (f"{split}_{what}" for split in ("train", "dev") for what in ("manifest", "units")):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
    for name in DERIVED:
        if getattr(config.model, name) != getattr(SoftConfig(), name):
            raise configs.ConfigError(f"model.{name} is read from the data: take it out of the config")
    if config.size not in ("small", "paper"):
        raise configs.ConfigError(f"size {config.size!r}: known are small, paper")
    if config.size == "paper" and config.model != SoftConfig():
        raise configs.ConfigError("size=paper says all of the model: take the other model settings out")


def build(config: Config) -> tuple[Hearing[SoftHead] | SoftHead, Listener, Taught, Taught]:
    """The model, what it hears with, and both sets."""
    check(config)
    engine = "auto" if config.finetune == "frozen" else "plain"
    device = pick_device(config.fit.device)
    listener = Listener.make(config.features, config.layer, device=device, engine=engine)
    train = data.read_corpus(config.train_manifest, config.train_units)
    dev = data.read_corpus(config.dev_manifest, config.dev_units, tokenizer=train.header.tokenizer)
    train.header.check_same(dev.header, what=config.dev_units)
    if train.header.codebooks != 1:
        raise data.DataError(
            f"{config.train_units}: {train.header.codebooks} units a frame; soft units are taught by 1"
        )
    if abs(train.header.rate_hz - listener.rate_hz) > 1e-6:
        raise data.DataError(
            f"{config.train_units} has {train.header.rate_hz:g} units a second, {config.features} "
            f"{listener.rate_hz:g} frames: take features of the units' rate"
        )
    settings = replace(
        PAPER if config.size == "paper" else config.model,
        tokenizer=train.header.tokenizer,
        n_units=train.header.n_units,
        rate_hz=train.header.rate_hz,
        features=config.features,
        features_dim=listener.dim,
    )
    config = replace(config, model=settings)
    sets = [Taught(what, corpus.rows, listener, config=config) for what, corpus in (("train", train), ("dev", dev))]
    head = SoftHead(settings)
    model = head if config.finetune == "frozen" else Hearing(listener, head, what=config.finetune)
    return model, listener, sets[0], sets[1]


def train(config: Config) -> FitResult:
    """Runs the recipe; `config.out` gets the model, and what it hears with in `listener/`."""
    torch.manual_seed(config.fit.seed)
    model, listener, taught, dev = build(config)
    print(f"{n_parameters(model) / 1e6:.2f} M parameters, {len(taught)} recordings", file=sys.stderr)

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        head = module.head if isinstance(module, Hearing) else module
        head.save(folder, card=_card(config, head.config, metrics))
        (module.listener if isinstance(module, Hearing) else listener).save(folder / "listener")

    return fit(
        {"model": Part(model, config.optim)},
        supervised(lambda module, batch: module(batch)),
        batches=data.batches(
            taught,
            config.data.batch,
            collate=Taught.collate,
            seed=config.fit.seed,
            device=config.fit.device,
            lengths=taught.lengths,
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(dev, config.data.batch),
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Trains CTC on frozen features: python recipes/train_ctc.py [conf.yaml] train_manifest=... key=value ...

A speech normaliser hears any speaker and writes the reduced units of one reference speaker who says the same words:
train_units has the ids of train_manifest and that speaker's units (`recipes/pair.py` finds such pairs).  With
model.targets=text it learns to write the manifests' texts in letters instead, and no units are named.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unitkit import config as configs
from unitkit import data
from unitkit.augment import Augment, Masks, mask_features
from unitkit.cli.show import progress
from unitkit.features import Features, features_of
from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics.units import unit_errors
from unitkit.models.ctc import CtcConfig, CtcModel, frames_needed, pad_features, pad_targets, reduced
from unitkit.models.listen import Listener
from unitkit.models.vocoder import n_parameters
from unitkit.text import Letters
from unitkit.tokenizer import pick_device
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, fit, supervised
from unitkit.units import Units

DERIVED = ("tokenizer", "n_units", "rate_hz", "letters", "features_dim", "features_hz")
FILTERBANK = "logmel"  # heard where neither features nor init is given
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # features and their lengths, targets and their lengths


@dataclass(frozen=True)
class DataConfig:
    """What an example is, and how examples are changed."""

    batch: int = 16  # utterances
    max_seconds: float = 20.0  # longer recordings are left out
    cache: str = "exp/features"  # where features are kept
    copies: int = 0  # of each recording, changed, heard beside the clean one
    changes: Augment = field(default_factory=Augment)
    masks: Masks = field(default_factory=lambda: Masks(seconds=0.3, share=0.15))
    dev_utterances: int = 256  # validated on, evenly spread over the dev set; 0 = all


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what the units, texts and features say about themselves is never written here."""

    train_manifest: str = ""
    train_units: str = ""
    dev_manifest: str = ""
    dev_units: str = ""
    features: str = ""  # filterbank, hub id or directory of a speech model, as `unitkit fit` takes it
    layer: int | None = None
    init: str = ""  # CTC model directory to start from, which brings its features with it
    out: str = "exp/ctc"
    data: DataConfig = field(default_factory=DataConfig)
    model: CtcConfig = field(default_factory=CtcConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, betas=(0.9, 0.98), warmup=200))
    fit: FitConfig = field(default_factory=lambda: FitConfig(max_steps=3000, ema=0.99))


@dataclass(frozen=True)
class Taught:
    """An utterance and what it should be read as: (length,) reduced units, or letters counted from 0."""

    utterance: Utterance
    target: np.ndarray


def read_units_corpus(config: Config) -> tuple[CtcConfig, list[Taught], list[Taught]]:
    """Both sets taught by units, and the model's config with what the units say."""
    train = data.read_corpus(config.train_manifest, config.train_units)
    dev = data.read_corpus(config.dev_manifest, config.dev_units, tokenizer=train.header.tokenizer)
    train.header.check_same(dev.header, what=config.dev_units)
    if (codebooks := train.header.codebooks) != 1:
        raise data.DataError(f"{config.train_units}: {codebooks} units a frame; CTC reads sequences of single units")
    for what, corpus in (("train", train), ("dev", dev)):
        _left_out(what, "have no units", corpus.missing)
    h = train.header
    model = replace(config.model, tokenizer=h.tokenizer, n_units=h.n_units, rate_hz=h.rate_hz)
    sets = [[Taught(row.utterance, reduced(row.units)) for row in corpus.rows] for corpus in (train, dev)]
    return model, sets[0], sets[1]


def read_text_corpus(config: Config) -> tuple[CtcConfig, list[Taught], list[Taught]]:
    """Both sets taught by their texts, and the model's config with the letters of the training texts."""
    train, dev = list(read_manifest(config.train_manifest)), list(read_manifest(config.dev_manifest))
    letters = Letters.of(row.text or "" for row in train)
    sets = []
    for what, rows in (("train", train), ("dev", dev)):
        taught = [Taught(row, letters.encode(row.text or "") - Letters.first) for row in rows]
        _left_out(what, "have no text", [one.utterance.id for one in taught if not len(one.target)])
        sets.append([one for one in taught if len(one.target)])
    return replace(config.model, letters=letters.letters), sets[0], sets[1]


def _left_out(what: str, why: str, ids: Sequence[str]) -> None:
    if ids:
        print(f"{what}: {len(ids)} utterances {why} and are left out: {', '.join(ids[:10])}", file=sys.stderr)


class Heard(Dataset):
    """Features and targets of the utterances that a model can learn from; item (epoch, i) is always the same one.

    In training they are those of the recording or of a changed copy of it, with stretches and bands masked.
    """

    def __init__(self, what: str, rows: Sequence[Taught], listener: Listener, *, config: Config) -> None:
        """With `what` "train", utterances too short for their targets are left out, and examples are changed."""
        self.config, self.seed, self.train = config.data, config.fit.seed, what == "train"
        self.rows, self.frames_hz = rows, listener.rate_hz
        self.variants = [
            self._hear(listener, self.config.changes if copy else None, seed=self.seed + copy)
            for copy in range(1 + self.config.copies * self.train)
        ]
        lengths, longest = self.variants[0].lengths, config.data.max_seconds * listener.rate_hz
        need = [(frames_needed(row.target) - 1) * config.model.stride + 1 for row in rows]
        long = [n > longest for n in lengths]
        short = [self.train and n < least for n, least in zip(lengths, need, strict=True)]
        for why, which in (
            (f"are longer than {config.data.max_seconds:g} s", long),
            ("are too short to say so", short),
        ):
            _left_out(what, why, [row.utterance.id for row, left in zip(rows, which, strict=True) if left])
        self.items = [i for i in range(len(rows)) if not (long[i] or short[i])]
        if not self.items:
            raise data.DataError(f"{what}: none of {len(rows)} utterances can be learned from")
        self.lengths = [int(lengths[i]) for i in self.items]

    def _hear(self, listener: Listener, changes: Augment | None, *, seed: int) -> Features:
        rows = [row.utterance for row in self.rows]
        with progress("listen", sum(row.duration or 0.0 for row in rows), "s") as advance:
            return features_of(rows, listener, self.config.cache, changes=changes, seed=seed, advance=advance)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: data.Key) -> tuple[Tensor, np.ndarray]:
        epoch, item = key
        index, draw = self.items[item], np.random.default_rng([self.seed, epoch, item])
        variant = int(draw.integers(len(self.variants))) if self.train else 0
        features = self.variants[variant][index].astype(np.float32)
        if self.train:
            features = mask_features(features, draw, config=self.config.masks, rate_hz=self.frames_hz)
        return torch.from_numpy(features), self.rows[index].target

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, np.ndarray]]) -> Batch:
        """Features (batch, frames, dim) and targets (batch, longest), padded, each with its lengths."""
        features, targets = zip(*items, strict=True)
        return *pad_features(features), *pad_targets(targets)


class Validation:
    """Loss on the dev set and the error rate of the greedy output, in percent of the targets' length."""

    def __init__(self, config: Config, heard: Heard) -> None:
        total = len(heard)
        count = min(config.data.dev_utterances or total, total)
        chosen = sorted((i * total // count for i in range(count)), key=lambda item: heard.lengths[item])
        groups = [chosen[i : i + config.data.batch] for i in range(0, count, config.data.batch)]
        self.groups = [[heard[0, item] for item in group] for group in groups]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode."""
        ctc: Any = model
        device = ctc.head.weight.device
        totals = {"loss": 0.0, "blank": 0.0}
        errors, length = 0, 0
        for group in self.groups:
            batch = Heard.collate(group)
            losses = model(*(part.to(device) for part in batch))
            for name in totals:
                totals[name] += float(losses[name]) * int(batch[3].sum())
            for frames, (_, target) in zip(ctc.greedy([one for one, _ in group]), group, strict=True):
                wrong, of = _errors(ctc.config, ctc.read(frames), target)
                errors, length = errors + wrong, length + of
        return {name: value / length for name, value in totals.items()} | {"uer": 100 * errors / length}


def _errors(config: CtcConfig, found: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    both = [Units(ids, 1.0, config.n_classes, config.tokenizer) for ids in (found, target)]
    return unit_errors(both[0], both[1], dedup=config.targets == "units")


def _card(config: Config, model: CtcConfig, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    units = f"the {model.n_units} reduced units of tokenizer `{model.tokenizer}`, as in `{config.train_units}`"
    return (
        f"# CTC to {model.targets}\n\n"
        f"Writes {units if model.targets == 'units' else f'letters ({model.letters!r})'}.  Trained on "
        f"`{config.train_manifest}` (its licence, and that of the model heard with, is that of this model), validated "
        f"on `{config.dev_manifest}`.  The features below the stack are frozen (`listener/`).\n\n## Scores\n\n{scores}"
        "\n\nuer: edit distance of the greedy output to the targets, percent of their length; loss: nats per target; "
        "blank: share of frames.\n\n## Recipe\n\n"
        f"python recipes/train_ctc.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def check(config: Config) -> None:
    """Refuses settings that lack something or say a thing twice."""
    text = config.model.targets == "text"
    for name in (f"{split}_{what}" for split in ("train", "dev") for what in ("manifest", "units")):
        if not getattr(config, name) and not (text and name.endswith("units")):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
        if getattr(config, name) and text and name.endswith("units"):
            raise configs.ConfigError(f"model.targets=text learns from the manifests' texts: leave {name} out")
    for name in DERIVED:
        if getattr(config.model, name) != getattr(CtcConfig(), name):
            raise configs.ConfigError(f"model.{name} is read from the data: take it out of the config")
    if config.init and (config.features or config.layer is not None):
        raise configs.ConfigError(f"{config.init} brings its features with it: leave features and layer out")


def build(config: Config) -> tuple[CtcModel, Listener, Heard, Heard]:
    """The model, what it hears with, and both sets."""
    check(config)
    device = pick_device(config.fit.device)
    listener = (
        Listener.load(Path(config.init) / "listener", device=device)
        if config.init
        else Listener.make(config.features or FILTERBANK, config.layer, device=device)
    )
    settings, *sets = (read_text_corpus if config.model.targets == "text" else read_units_corpus)(config)
    settings = replace(settings, features_dim=listener.dim, features_hz=listener.rate_hz)
    if settings.targets == "units":
        _ = settings.repeat  # an error before anything is heard
    model = CtcModel(settings)
    if config.init:
        whole = model.take(CtcModel.load(config.init))
        print(
            f"{config.init}: taken {'whole' if whole else 'but for the head: it writes other things'}", file=sys.stderr
        )
    train, dev = (Heard(what, rows, listener, config=config) for what, rows in zip(("train", "dev"), sets, strict=True))
    return model, listener, train, dev


def train(config: Config) -> FitResult:
    """Runs the recipe; `config.out` gets the model, and what it hears with in `listener/`."""
    torch.manual_seed(config.fit.seed)
    model, listener, heard, dev = build(config)
    print(f"CTC to {config.model.targets}, {n_parameters(model) / 1e6:.2f} M parameters", file=sys.stderr)
    kept: set[Path] = set()

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        module.save(folder, card=_card(config, module.config, metrics))
        if folder not in kept:  # it never changes, and may be large
            listener.save(folder / "listener")
            kept.add(folder)

    return fit(
        {"model": Part(model, config.optim)},
        supervised(lambda module, batch: module(*batch)),
        batches=data.batches(
            heard,
            config.data.batch,
            collate=Heard.collate,
            seed=config.fit.seed,
            device=config.fit.device,
            lengths=heard.lengths,
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(config, dev),
        monitor="uer",
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Trains an acoustic model: python recipes/train_acoustic.py [conf.yaml] train_units=... train_mels=... key=value ...

Units, or soft units (folders, in place of unit files), to mels (folders of recipes/mels.py); of one voice, or of the
voices whose vectors voices_train and voices_dev have (files of recipes/speaker_vectors.py), in the languages of the
manifests.  A vocoder of such mels in `vocoder/` of the model's directory makes it a system that `unitkit vocode` speaks
with.
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
from unitkit.manifest import read_manifest
from unitkit.models.acoustic import AcousticBatch, AcousticConfig, AcousticItem, AcousticModel, pad_acoustic
from unitkit.models.vocoder import n_parameters
from unitkit.soft import ids_in, path_of, read_soft, read_soft_header
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, fit, supervised
from unitkit.units import check_fingerprint, read_header, read_units
from unitkit.voices import Voices

DERIVED = (
    "tokenizer",
    "rate_hz",
    "n_units",
    "codebooks",
    "features_dim",
    "langs",
    "speaker_vector_dim",
    "speaker_encoder",
)


@dataclass(frozen=True)
class DataConfig:
    """How utterances are cut up."""

    batch: int = 16
    segment_frames: int = 150  # of units; 0 = whole utterances
    dev_utterances: int = 32  # validated on, evenly spread over the dev set; 0 = all


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what units and voices say about themselves is never written here."""

    train_units: str = ""  # unit file, or folder of soft units
    train_mels: str = ""  # folder of recipes/mels.py
    dev_units: str = ""
    dev_mels: str = ""
    train_manifest: str = ""  # whose languages the model is told; left out: it is told none
    dev_manifest: str = ""
    voices_train: str = ""  # speaker vectors of the utterances; left out: one voice
    voices_dev: str = ""
    out: str = "exp/acoustic"
    data: DataConfig = field(default_factory=DataConfig)
    model: AcousticConfig = field(default_factory=AcousticConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, betas=(0.8, 0.99), warmup=100))
    fit: FitConfig = field(default_factory=lambda: FitConfig(max_steps=4000, ema=0.99, clip=1.0))


def _read(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What units say of themselves, by the names of the model's config; frames (n,) or (n, dim) of each utterance."""
    if Path(path).is_dir():
        soft = read_soft_header(path)
        facts = {"tokenizer": soft.tokenizer, "rate_hz": soft.rate_hz, "features_dim": soft.dim}
        return facts, {name: read_soft(path, name).values for name in ids_in(path)}
    header, found = read_header(path), {one.id: one for one in read_units(path)}
    if any(one.reduced for one in found.values()):
        raise data.DataError(f"{path}: a unit for every frame is wanted here")
    names = ("tokenizer", "rate_hz", "n_units", "codebooks")
    facts = {name: getattr(header, name) for name in names}
    return facts, {name: one.ids.astype(np.int64) for name, one in found.items()}


class Spoken(Dataset):
    """Segments of units with their mels; item (epoch, i) is always the same one."""

    def __init__(self, split: str, config: Config, *, segment_frames: int) -> None:
        """Utterances that have all that is wanted; segments of 0 frames are whole utterances."""
        units, mels, manifest, voices = (
            getattr(config, name)
            for name in (f"{split}_units", f"{split}_mels", f"{split}_manifest", f"voices_{split}")
        )
        self.config, self.segment_frames, self.seed, self.mels = config.model, segment_frames, config.fit.seed, mels
        check_fingerprint(self.config.mel.fingerprint, read_soft_header(mels).tokenizer, what=f"mels in {mels}")
        facts, found = _read(units)
        check_fingerprint(self.config.tokenizer, facts["tokenizer"], what=units)
        self.voices = Voices.load(voices) if voices else None
        if self.voices is not None:
            self.voices.check(self.config.speaker_encoder, self.config.speaker_vector_dim, what=voices)
        self.langs = _langs(manifest, self.config.langs)
        there = set(ids_in(mels))
        self.units = {name: one for name, one in found.items() if name in there and len(one) and self._known(name)}
        if left := len(found) - len(self.units):
            lacking = f"have no mels in {mels}" + (f", no vector in {voices}" if voices else "")
            lacking += f", no language in {manifest}" if self.langs else ""
            print(f"{units}: {left} of {len(found)} utterances are empty or {lacking}", file=sys.stderr)
        if not self.units:
            raise data.DataError(f"{units} and {mels} have no utterance in common")
        self.items = [
            name
            for name, one in self.units.items()
            for _ in range(max(1, round(len(one) / segment_frames)) if segment_frames else 1)
        ]

    def _known(self, name: str) -> bool:
        return (self.voices is None or name in self.voices) and (not self.langs or name in self.langs)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: data.Key) -> AcousticItem:
        epoch, item = key
        name, up, down = self.items[item], self.config.ratio.numerator, self.config.ratio.denominator
        units, mel = self.units[name], np.load(path_of(self.mels, name), mmap_mode="r", allow_pickle=False)
        total = min(len(units), len(mel) * down // up)
        if abs(len(units) * up / down - len(mel)) > 0.1 * self.config.mel.rate_hz + up:
            raise data.DataError(
                f"{name}: {len(units)} units and {len(mel)} frames of mels do not last alike: make both anew"
            )
        length = min(total, self.segment_frames or total)
        # Units begin together with a frame every `down` of them.
        start = down * int(np.random.default_rng([self.seed, epoch, item]).integers((total - length) // down + 1))
        first = start * up // down
        return AcousticItem(
            units[start : start + length],
            mel[first : first + self.config.frames(length)].astype(np.float32),
            self.langs.get(name, 0),
            None if self.voices is None else self.voices[name],
        )


def _langs(manifest: str, known: Sequence[str]) -> dict[str, int]:
    """The index of each utterance's language; none where the model is told no languages."""
    if not manifest or len(known) < 2:
        return {}
    return {row.id: known.index(row.lang) for row in read_manifest(manifest) if row.lang in known}


class Validation:
    """L1 of the mels on whole dev utterances, from the true frames before and from its own; and of other units."""

    def __init__(self, dev: Spoken, count: int) -> None:
        n = min(count or len(dev), len(dev))
        self.pairs = [dev[0, i * len(dev) // n] for i in range(n)]
        draw = np.random.default_rng(dev.seed)
        self.disordered = [replace(one, source=one.source[draw.permutation(len(one.source))]) for one in self.pairs]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode: each utterance counts alike."""
        acoustic: Any = model
        forced = [float(model(pad_acoustic([pair]).to(acoustic.device))["loss"]) for pair in self.pairs]
        return {
            "loss": float(np.mean(forced)),
            "mel": self._apart(acoustic, self.pairs),
            "mel_shuffled": self._apart(acoustic, self.disordered),
        }

    @staticmethod
    def _apart(model: AcousticModel, pairs: Sequence[AcousticItem]) -> float:
        langs, vectors = model.config.langs, [one.vector for one in pairs if one.vector is not None]
        made = model.generate(
            [one.source for one in pairs],
            langs=[langs[one.lang] for one in pairs] if len(langs) > 1 else (),
            vectors=np.stack(vectors) if vectors else None,
        )
        return float(np.mean([np.abs(mine - one.mel).mean() for mine, one in zip(made, pairs, strict=True)]))


def _card(config: Config, model: AcousticConfig, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    kind = f"soft units of {model.features_dim} numbers" if model.features_dim else f"{model.n_units} units"
    kind += f" × {model.codebooks} codebooks" if model.codebooks > 1 else ""
    voice = f"Voices are vectors of speaker encoder `{model.speaker_encoder}`.  " if model.speaker_vector_dim else ""
    return (
        f"# Acoustic model\n\nFrom {kind} of tokenizer `{model.tokenizer}` at {model.rate_hz:g} Hz to mels "
        f"`{model.mel.fingerprint}`.  {voice}Trained on `{config.train_units}` (its licence is that of this "
        f"model), validated on `{config.dev_units}`.\n\n## Scores\n\n{scores}\n\nL1 of natural-log mels; "
        "loss: after the true frames; "
        "mel: after its own, as in use; mel_shuffled: likewise, units in random order.\n\n## Recipe\n\n"
        f"python recipes/train_acoustic.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def complete(config: Config) -> Config:
    """The config with what the units say, or an error that names what is missing."""
    for name in (f"{split}_{what}" for split in ("train", "dev") for what in ("units", "mels")):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
    for name in DERIVED:
        if getattr(config.model, name) != getattr(AcousticConfig(), name):
            raise configs.ConfigError(f"model.{name} is read from the units: take it out of the config")
    for one, other in (("voices_train", "voices_dev"), ("train_manifest", "dev_manifest")):
        if bool(getattr(config, one)) != bool(getattr(config, other)):
            raise configs.ConfigError(f"{one} and {other}: both or neither")
    facts = _read(config.train_units)[0]
    if config.voices_train:
        voices = Voices.load(config.voices_train)
        facts |= {"speaker_vector_dim": voices.dim, "speaker_encoder": voices.encoder}
    if config.train_manifest:
        facts["langs"] = tuple(sorted({row.lang for row in read_manifest(config.train_manifest) if row.lang}))
    return replace(config, model=replace(config.model, **facts))


def train(config: Config) -> FitResult:
    """Runs the recipe; the model directory is `config.out`."""
    torch.manual_seed(config.fit.seed)
    config = complete(config)
    taught = Spoken("train", config, segment_frames=config.data.segment_frames)
    dev = Spoken("dev", config, segment_frames=0)
    model = AcousticModel.build(config.model)
    print(f"{n_parameters(model) / 1e6:.2f} M parameters, {len(taught.units)} utterances", file=sys.stderr)

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        module.save(folder, card=_card(config, module.config, metrics))

    def losses(module: nn.Module, batch: AcousticBatch) -> dict[str, Any]:
        return dict(module(batch))

    return fit(
        {"model": Part(model, config.optim)},
        supervised(losses),
        batches=data.batches(
            taught, config.data.batch, collate=pad_acoustic, seed=config.fit.seed, device=config.fit.device
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(dev, config.data.dev_utterances),
        monitor="mel",
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

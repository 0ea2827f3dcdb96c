"""Pre-trains an encoder: python recipes/pretrain.py [conf.yaml] objective=hubert train_manifest=... key=value ...

HuBERT's iterations are runs of this recipe.  The first takes MFCC units; the next takes the units of a tokenizer that
was fitted on a layer of the last (`unitkit fit` with features=<out>), or of any other encoder, such as Whisper's.
"""

import math
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
from unitkit.augment import Augment, augment, speed
from unitkit.manifest import Utterance, read_manifest
from unitkit.models import lm
from unitkit.models.ssl import dinosr as dino
from unitkit.models.ssl import hubert as masked
from unitkit.models.ssl import vq_wav2vec as vq
from unitkit.models.ssl.blocks import CodeUse, units_at
from unitkit.models.ssl.storage import Stored
from unitkit.models.vocoder import n_parameters
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, Run, fit
from unitkit.units import UnitsHeader, read_header, read_units

RATE = 16000
LEARNING_RATES = {"hubert": 5e-4, "dinosr": 5e-4, "vq-wav2vec": 1e-3, "bert": 5e-4}  # where optim.lr is 0
DERIVED = {"hubert": ("tokenizers", "n_units"), "bert": ("tokenizer", "n_units", "codebooks")}
PAPERS: dict[str, Any] = {
    "hubert": masked.PAPER,
    "dinosr": dino.PAPER,
    "spidr": dino.PAPER_SPIDR,
    "vq-wav2vec": vq.PAPER,
    "bert": lm.PAPER,
}
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class DataConfig:
    """Crops: a batch is cut to its shortest crop, so that there is no padding; neighbours in length go together."""

    batch: int = 8
    max_seconds: float = 4.0
    min_seconds: float = 0.5  # shorter recordings are left out
    workers: int = 0
    cache_mb: int = 2048  # audio kept in memory
    augment: float = 0.0  # share of the training crops that are changed; what teaches stays that of the clean speech
    changes: Augment = field(default_factory=Augment)  # what may happen to these
    dev_utterances: int = 64  # validated on, evenly spread over the dev set; 0 = all


@dataclass(frozen=True)
class AlarmConfig:
    """When the log says that codes collapse: perplexity below `bound` times their number after `grace` steps."""

    bound: float = 0.1
    grace: int = 1000
    window: int = 100  # steps that are looked at


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; of the four objectives only the chosen one's settings are used."""

    objective: str = "hubert"  # hubert | dinosr | vq-wav2vec | bert
    size: str = "small"  # small: as the objective's settings say | paper: the paper's model and settings
    train_manifest: str = ""  # all but bert
    train_units: tuple[str, ...] = ()  # hubert: what teaches, a head for each file and codebook; bert: what is read
    dev_manifest: str = ""
    dev_units: tuple[str, ...] = ()
    out: str = "exp/pretrain"
    data: DataConfig = field(default_factory=DataConfig)
    hubert: masked.HubertConfig = field(default_factory=masked.HubertConfig)
    dinosr: dino.DinoConfig = field(default_factory=dino.DinoConfig)
    vq_wav2vec: vq.VqConfig = field(default_factory=vq.VqConfig)
    bert: lm.BertConfig = field(default_factory=lm.BertConfig)
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=0.0, betas=(0.9, 0.98), warmup=500)  # 0 = what suits the objective
    )
    fit: FitConfig = field(default_factory=lambda: FitConfig(ema=0.0))

    @property
    def settings(self) -> Any:
        """The chosen objective's settings."""
        if self.objective not in LEARNING_RATES:
            raise configs.ConfigError(f"objective {self.objective!r}: choose {', '.join(LEARNING_RATES)}")
        own = getattr(self, self.objective.replace("-", "_"))
        if self.size == "small":
            return own
        if self.size != "paper":
            raise configs.ConfigError(f"size {self.size!r}: choose small or paper")
        spidr = self.objective == "dinosr" and own.variant == "spidr"
        if own != (dino.DinoConfig(variant="spidr") if spidr else type(own)()):
            raise configs.ConfigError(f"size=paper sets all of {self.objective}: leave the one or the other out")
        return PAPERS["spidr" if spidr else self.objective]


@dataclass(frozen=True)
class Taught:
    """An utterance and the unit sequences that teach it, each with its unit frames per second."""

    utterance: Utterance
    units: tuple[tuple[np.ndarray, float], ...]


@dataclass(frozen=True)
class Crop:
    """A piece of an utterance: samples, units (frames, targets), and a number in 0..1 that says where it may be cut.

    `clean` are the samples before they were changed.
    """

    wav: np.ndarray
    clean: np.ndarray
    units: np.ndarray
    where: float


def read_taught(manifest: str, units: Sequence[str]) -> tuple[list[UnitsHeader], list[Taught]]:
    """Joins a manifest with unit files by id; utterances that lack units are left out, with a note."""
    headers = [read_header(path) for path in units]
    stored = [{u.id: u.ids for u in read_units(path)} for path in units]
    rows, missing = [], []
    for utterance in read_manifest(manifest):
        found = [ids.get(utterance.id) for ids in stored]
        if any(ids is None or not len(ids) for ids in found):
            missing.append(utterance.id)
            continue
        pairs = zip(found, headers, strict=True)
        rows.append(Taught(utterance, tuple((np.asarray(ids, np.int32), h.rate_hz) for ids, h in pairs)))
    if missing:
        names = ", ".join(missing[:10])
        print(f"{manifest}: {len(missing)} utterances have no units and are left out: {names}", file=sys.stderr)
    return headers, rows


class Crops(Dataset):
    """Random crops of whole frames; item (epoch, i) is always the same one, a long utterance has several items."""

    def __init__(
        self,
        rows: Sequence[Taught],
        config: DataConfig,
        *,
        hop: int,
        field: int,
        seed: int,
        whole: bool = False,
        clean: bool = False,
    ) -> None:
        """`hop` and `field` are the model's; with `whole` an utterance is one item, cropped from its start.

        With `clean` a batch has the unchanged wavs too.
        """
        self.hop, self.field, self.seed, self.whole = hop, field, seed, whole
        self.share, self.changes = 0.0 if whole else config.augment, config.changes
        self.clean = clean
        self.cache = data.AudioCache(RATE, limit_bytes=config.cache_mb << 20)
        self.max_frames = int(config.max_seconds * RATE / hop)
        lengths = [(row, self._frames(row.utterance)) for row in rows]
        kept = [(row, n) for row, n in lengths if n >= max(1, int(config.min_seconds * RATE / hop))]
        if not kept:
            raise data.DataError(f"none of {len(rows)} utterances has units and {config.min_seconds} s of audio")
        if left := len(lengths) - len(kept):
            print(f"{left} utterances are shorter than {config.min_seconds} s and left out", file=sys.stderr)
        self.rows, self.frames = [row for row, _ in kept], np.array([n for _, n in kept])
        shares = (
            np.ones(len(kept), int) if whole else np.maximum(1, np.round(self.frames / self.max_frames)).astype(int)
        )
        self.items = np.repeat(np.arange(len(kept)), shares)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each item."""
        return np.minimum(self.frames[self.items], self.max_frames)

    def _frames(self, utterance: Utterance) -> int:
        seconds = utterance.duration
        samples = len(self.cache.read(utterance, 0, 1 << 40)) if seconds is None else int(seconds * RATE)
        return (samples - self.field) // self.hop + 1 if samples >= self.field else 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: data.Key) -> Crop:
        epoch, item = key
        index = self.items[item]
        random = np.random.default_rng([self.seed, epoch, item])
        changed = random.random() < self.share
        factor = random.uniform(*self.changes.speed_factor) if changed and random.random() < self.changes.speed else 1.0
        total = max(1, int(self.frames[index] / factor))
        n_frames = min(total, self.max_frames)
        start = 0 if self.whole else int(random.integers(total - n_frames + 1))
        crop = self._crop(self.rows[index], start, n_frames, factor=factor, where=float(random.random()))
        return replace(crop, wav=self._changed(crop.wav, random)) if changed else crop

    def _changed(self, wav: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Whatever leaves every sound in its place; speed is dealt with where the crop is cut."""
        most = self.changes.babble_voices[1] if self.changes.babble else 0
        others = [self.rows[int(i)].utterance for i in random.integers(len(self.rows), size=most)]
        voices = [self.cache.read(other, 0, len(wav)) for other in others]
        return augment(wav, RATE, random, config=replace(self.changes, speed=0.0), others=voices)

    def _crop(self, row: Taught, start: int, n_frames: int, *, factor: float, where: float) -> Crop:
        """Frames `start` and on of the utterance spoken `factor` times as fast, with the units of these frames."""
        wav = self._spoken(row, start, n_frames, factor)
        seconds = (start + n_frames) * self.hop * factor / RATE
        columns = []
        for ids, rate_hz in row.units:
            if seconds - len(ids) / rate_hz > data.SLACK_SECONDS:
                raise data.DataError(
                    f"{row.utterance.id}: its units last {len(ids) / rate_hz:.2f} s, its audio {seconds:.2f} s "
                    "or more; encode again, or check the manifest's start and duration"
                )
            columns.append(units_at(ids, start, n_frames, ratio=factor * rate_hz * self.hop / RATE))
        units = np.concatenate(columns, axis=1) if columns else np.zeros((n_frames, 0), np.int64)
        return Crop(wav, wav, units, where)

    def _spoken(self, row: Taught, start: int, n_frames: int, factor: float) -> np.ndarray:
        wanted = (n_frames - 1) * self.hop + self.field
        source = math.ceil(wanted * factor)
        wav = self.cache.read(row.utterance, round(start * self.hop * factor), source)
        if source - len(wav) > data.SLACK_SECONDS * RATE:
            raise data.DataError(f"{row.utterance.id}: its audio is shorter than the manifest's duration")
        wav = wav if factor == 1 else speed(wav, factor)[:wanted]
        return np.pad(wav, (0, wanted - len(wav)))

    def collate(self, crops: Sequence[Crop]) -> Batch:
        """Wavs (batch, samples) and units (batch, frames, targets), cut to the shortest; clean wavs where wanted."""
        n_frames = min(len(crop.units) for crop in crops)
        samples = (n_frames - 1) * self.hop + self.field
        wavs, units, clean = [], [], []
        for crop in crops:
            start = int(crop.where * (len(crop.units) - n_frames + 1))
            wavs.append(torch.from_numpy(crop.wav[start * self.hop :][:samples]))
            clean.append(torch.from_numpy(crop.clean[start * self.hop :][:samples]))
            units.append(torch.from_numpy(crop.units[start:][:n_frames]))
        whole = torch.stack(wavs), torch.stack(units)
        return (*whole, torch.stack(clean)) if self.clean else whole


class Sequences(Dataset):
    """Random crops of unit sequences, for BERT; item (epoch, i) is always the same one."""

    def __init__(self, path: str, *, max_frames: int, seed: int, whole: bool = False) -> None:
        """With `whole` a sequence is one item, cropped from its start."""
        self.max_frames, self.seed, self.whole = max_frames, seed, whole
        self.rows = [u.ids.reshape(len(u.ids), -1) for u in read_units(path) if len(u.ids)]
        if not self.rows:
            raise data.DataError(f"{path} holds no units")
        shares = [1 if whole else max(1, round(len(row) / max_frames)) for row in self.rows]
        self.items = np.repeat(np.arange(len(self.rows)), shares)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each item."""
        return np.array([min(len(self.rows[index]), self.max_frames) for index in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: data.Key) -> np.ndarray:
        epoch, item = key
        row = self.rows[self.items[item]]
        spare = 0 if self.whole else max(0, len(row) - self.max_frames)
        start = int(np.random.default_rng([self.seed, epoch, item]).integers(spare + 1))
        return row[start : start + self.max_frames]

    def collate(self, rows: Sequence[np.ndarray]) -> Batch:
        """Units (batch, frames, codebooks), padded, and lengths (batch,)."""
        return lm.pad_units(list(rows))


Pieces = Crops | Sequences


def build(config: Config) -> tuple[Stored, Pieces, Pieces]:
    """The model and the training and dev sets; what units say about themselves is read from them."""
    settings = config.settings
    for name in DERIVED.get(config.objective, ()):
        if getattr(settings, name) != getattr(type(settings)(), name):
            raise configs.ConfigError(f"{config.objective}.{name} is read from the units: take it out of the config")
    wanted = {"hubert": ("manifest", "units"), "bert": ("units",)}.get(config.objective, ("manifest",))
    for name in (f"{split}_{what}" for split in ("train", "dev") for what in wanted):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}={'path' if 'manifest' in name else '[path]'}")
    return _for_bert(config, settings) if config.objective == "bert" else _for_audio(config, settings)


def _for_bert(config: Config, settings: lm.BertConfig) -> tuple[Stored, Pieces, Pieces]:
    if len(config.train_units) != 1 or len(config.dev_units) != 1:
        raise configs.ConfigError("bert reads one unit file: train_units=[path] and dev_units=[path]")
    header = read_header(config.train_units[0])
    header.check_same(read_header(config.dev_units[0]), what=config.dev_units[0])
    model = lm.UnitBert(
        replace(settings, tokenizer=header.tokenizer, n_units=header.n_units, codebooks=header.codebooks)
    )
    length, seed = settings.max_frames, config.fit.seed
    train = Sequences(config.train_units[0], max_frames=length, seed=seed)
    return model, train, Sequences(config.dev_units[0], max_frames=length, seed=seed, whole=True)


def _for_audio(config: Config, settings: Any) -> tuple[Stored, Pieces, Pieces]:
    taught = config.objective == "hubert"
    headers, train = read_taught(config.train_manifest, config.train_units if taught else ())
    others, dev = read_taught(config.dev_manifest, config.dev_units if taught else ())
    if len(headers) != len(others):
        raise configs.ConfigError(
            f"{len(headers)} train_units but {len(others)} dev_units: name them in the same order"
        )
    for header, other, path in zip(headers, others, config.dev_units, strict=False):
        header.check_same(other, what=path)
    if taught:
        sizes = tuple(h.n_units for h in headers for _ in range(h.codebooks))
        settings = replace(settings, tokenizers=tuple(h.tokenizer for h in headers), n_units=sizes)
    model = MODELS[config.objective](settings)
    hop, size, seed = model.hop, model.field, config.fit.seed
    clean = taught and settings.anchor_weight > 0
    sets = [
        Crops(rows, config.data, hop=hop, field=size, seed=seed, whole=rows is dev, clean=clean)
        for rows in (train, dev)
    ]
    return model, sets[0], sets[1]


MODELS: dict[str, Any] = {"hubert": masked.Hubert, "dinosr": dino.Dino, "vq-wav2vec": vq.VqWav2Vec}


class PretrainStep:
    """One step of any objective, with an eye on the codes."""

    def __init__(self, codes: Sequence[int], alarm: AlarmConfig) -> None:
        self.use = CodeUse(codes, bound=alarm.bound, grace=alarm.grace, window=alarm.window)

    def __call__(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """Losses, perplexity and share of codes in use; collapse is said on standard error as well."""
        model: Any = run.bare["model"]
        model.advance(run.step)
        losses, counts = run.modules["model"](*batch)
        run.backward(losses["loss"])
        run.update()
        use = self.use.add(counts)
        if warning := self.use.alarm(run.step):
            print(warning, file=sys.stderr)
        return losses | use


class Validation:
    """Losses on the dev set under masks that are always the same ones, and the use of codes over all of it."""

    def __init__(self, config: Config, pieces: Any) -> None:
        total = len(pieces)
        count = min(config.data.dev_utterances or total, total)
        chosen = np.array([i * total // count for i in range(count)])
        order = chosen[np.argsort(pieces.lengths[chosen], kind="stable")]
        groups = [order[i : i + config.data.batch] for i in range(0, count, config.data.batch)]
        self.batches = [pieces.collate([pieces[0, int(item)] for item in group]) for group in groups]
        self.seed = config.fit.seed

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode."""
        device = next(model.parameters()).device
        totals: dict[str, float] = {}
        counts, weight = None, 0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for batch in self.batches:
                losses, hits = model(*(part.to(device) for part in batch))
                counts = hits if counts is None else counts + hits
                weight += len(batch[0])
                for name, value in losses.items():
                    totals[name] = totals.get(name, 0.0) + len(batch[0]) * float(value)
        use = CodeUse(model.codes).add(counts)
        means = {name: value / weight for name, value in totals.items()}
        return means | {name: float(use[name]) for name in ("perplexity", "used")}


def _card(config: Config, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    return (
        f"# Pre-trained by {config.objective} ({config.size})\n\n"
        f"Trained on `{config.train_manifest or config.train_units[0]}` (its licence is that of this model)"
        f"{', taught by ' + ', '.join(f'`{u}`' for u in config.train_units) if config.objective == 'hubert' else ''}, "
        f"validated on `{config.dev_manifest or config.dev_units[0]}`.\n\n## Scores\n\n{scores}\n\n"
        "chance: share of the most frequent answer; perplexity and used: lowest of all codebooks.\n\n## Recipe\n\n"
        f"python recipes/pretrain.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def train(config: Config) -> FitResult:
    """Runs the recipe; `config.out` gets the encoder, as `load_encoder` reads it, and the objective beside it."""
    torch.manual_seed(config.fit.seed)
    model, pieces, dev = build(config)
    print(f"{config.objective}, {n_parameters(model) / 1e6:.2f} M parameters", file=sys.stderr)
    optim = replace(config.optim, lr=config.optim.lr or LEARNING_RATES[config.objective])
    codes: Any = model.codes

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        module.save(folder, card=_card(config, metrics))

    return fit(
        {"model": Part(model, optim)},
        PretrainStep(codes, config.alarm),
        batches=data.batches(
            pieces,
            config.data.batch,
            collate=pieces.collate,
            workers=config.data.workers,
            seed=config.fit.seed,
            device=config.fit.device,
            lengths=pieces.lengths.tolist(),
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(config, dev),
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Trains speech, text or units to units: python recipes/train_s2ut.py [conf.yaml] train_source=... key=value ...

S2UT and Enhanced S2UT (source features), text-to-unit models (model.source=text) and unit mBART (model.source=units,
data.holes: units with holes in them to the whole).  A parallel corpus is two manifests and a unit file that join by id:
the source's speech or text, the target's text, and the units of the target's speech.
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
from unitkit.augment import Augment, Holes, Masks, holes, mask_features
from unitkit.cli.show import progress
from unitkit.features import Features, features_of
from unitkit.manifest import Utterance, read_manifest
from unitkit.models.finetune import Hearing, trainable
from unitkit.models.listen import Listener
from unitkit.models.seq2seq import PAPER, PAPER_BART, PAPER_ENHANCED, Pairs, Seq2Seq, Seq2SeqConfig, mask_token
from unitkit.models.vocoder import n_parameters
from unitkit.pairs import Example, PairLosses, collate_pairs
from unitkit.text import Letters
from unitkit.tokenizer import pick_device
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, Run, fit
from unitkit.units import Units, UnitsHeader, Vocab, read_header, read_units

SIZES = {"paper": PAPER, "paper-enhanced": PAPER_ENHANCED, "paper-bart": PAPER_BART}
DERIVED = (
    *("tokenizer", "n_units", "rate_hz", "features", "features_dim", "source_tokenizer", "source_units"),
    *("source_lang", "target_lang", "source_letters", "target_letters"),
)


@dataclass(frozen=True)
class DataConfig:
    """What an example is, and how examples are changed."""

    batch: int = 16
    max_seconds: float = 20.0  # longer sources are left out
    max_units: int = 600  # longer targets are left out
    cache: str = "exp/features"  # where features are kept
    copies: int = 0  # of each recording, changed, heard beside the clean one
    changes: Augment = field(default_factory=Augment)
    repeat: dict[str, int] = field(default_factory=dict)  # sources of these speakers count so many times
    concat: float = 0.0  # share of the examples that are joined with another one
    masks: Masks = field(default_factory=Masks)
    holes: Holes = field(default_factory=Holes)
    workers: int = 0


@dataclass(frozen=True)
class FinetuneConfig:
    """What learns: "all", "frozen" (nothing), "lna" or parts of parameters' names with commas; see `trainable`.

    The listener is what hears; where it is frozen its features are computed once.
    """

    listener: str = "frozen"
    decoder: str = "all"
    freeze_steps: int = 0  # the listener learns from this step on


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what units and texts say about themselves is never written here."""

    train_source: str = ""  # manifest; for model.source=units a unit file
    train_target: str = ""  # manifest; only its texts are read
    train_units: str = ""
    dev_source: str = ""
    dev_target: str = ""
    dev_units: str = ""
    source_units: str = ""  # unit file of the sources, for a head on source_units
    dev_source_units: str = ""
    out: str = "exp/s2ut"
    features: str = "logmel@100"  # a filterbank, or a speech model by name or directory …
    layer: int | None = None  # … and its layer; left out: the middle one
    init: str = ""  # a trained model to begin with, such as a unit mBART
    init_parts: tuple[str, ...] = ("decoder",)  # of it: encoder, decoder, front, heads
    size: str = "small"  # small: as `model` says | paper | paper-enhanced | paper-bart
    data: DataConfig = field(default_factory=DataConfig)
    model: Seq2SeqConfig = field(default_factory=Seq2SeqConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup=300)
    )
    fit: FitConfig = field(default_factory=lambda: FitConfig(ema=0.99, clip=10.0))


@dataclass(frozen=True)
class Row:
    """A pair: where its source is, the target's unit tokens, and texts by head target."""

    id: str
    source: int | np.ndarray  # row of the features, or tokens
    target: np.ndarray
    texts: dict[str, np.ndarray]
    length: int


@dataclass(frozen=True)
class Corpus:
    """What one split's files hold, joined by id."""

    header: UnitsHeader
    sources: list[Utterance]
    source_texts: dict[str, str]
    target_texts: dict[str, str]
    targets: dict[str, Units]
    source_units: dict[str, Units]
    langs: tuple[str, str]


def read_split(config: Config, split: str) -> Corpus:
    """Reads one split, "train" or "dev"; pairs that lack a side are left out, with a note."""
    path = {name: getattr(config, f"{split}_{name}") for name in ("source", "target", "units")}
    for name in ("source", "units"):
        if not path[name]:
            raise configs.ConfigError(f"{split}_{name} is not set: pass {split}_{name}=path")
    header = read_header(path["units"])
    targets = {u.id: u for u in read_units(path["units"])}
    target_rows = list(read_manifest(path["target"])) if path["target"] else []
    extra = path["source"] if config.model.source == "units" else _source_units(config, split)
    source_units = {u.id: u for u in read_units(extra)} if extra else {}
    if config.model.source == "units":
        sources = [Utterance(id, "") for id in source_units]
    else:
        sources = list(read_manifest(path["source"]))
    kept = [row for row in sources if row.id in targets and len(targets[row.id])]
    if len(kept) < len(sources):
        print(f"{split}: {len(sources) - len(kept)} of {len(sources)} sources have no target units", file=sys.stderr)
    if not kept:
        raise data.DataError(f"no id of {path['source']} has units in {path['units']}")
    return Corpus(
        header,
        kept,
        {row.id: row.text for row in kept if row.text},
        {row.id: row.text for row in target_rows if row.text},
        targets,
        source_units,
        (kept[0].lang or "", target_rows[0].lang or "" if target_rows else ""),
    )


def _source_units(config: Config, split: str) -> str:
    return config.source_units if split == "train" else config.dev_source_units


def complete(config: Config, train: Corpus, listener: Listener | None) -> Seq2SeqConfig:
    """The model's config with all that the training set and the listener decide."""
    given = [name for name in DERIVED if getattr(config.model, name) != getattr(Seq2SeqConfig(), name)]
    if given:
        raise configs.ConfigError(f"model.{given[0]} is read from the training data: take it out of the config")
    model = config.model
    if config.size != "small":
        if config.size not in SIZES:
            raise configs.ConfigError(f"size {config.size!r}: choose small, {', '.join(SIZES)}")
        if config.model != Seq2SeqConfig(source=config.model.source):
            raise configs.ConfigError(f"size={config.size} sets all of model but source: leave one of them out")
        model = replace(SIZES[config.size], source=config.model.source)
    other = next(iter(train.source_units.values()), None)
    return replace(
        model,
        tokenizer=train.header.tokenizer,
        n_units=train.header.n_units,
        rate_hz=train.header.rate_hz,
        features=config.features if listener else "",
        features_dim=listener.dim if listener else 0,
        source_tokenizer=other.tokenizer if other else "",
        source_units=other.n_units if other else 0,
        source_letters=Letters.of(train.source_texts.values()).letters,
        target_letters=Letters.of(train.target_texts.values()).letters,
        source_lang=train.langs[0],
        target_lang=train.langs[1],
    )


def rows_of(
    corpus: Corpus, model: Seq2SeqConfig, config: DataConfig, *, lengths: Sequence[int], longest: int, train: bool
) -> list[Row]:
    """The pairs as tokens; sources and targets that are too long are left out, with a note."""
    vocab, inputs = Vocab(model.n_units), Letters(model.source_letters)
    known = {utterance.speaker or "" for utterance in corpus.sources}
    if train and config.repeat and known.isdisjoint(config.repeat):
        names = ", ".join(sorted(known))
        raise data.DataError(f"data.repeat: no source is of speaker {' or '.join(config.repeat)}; speakers: {names}")
    rows: list[Row] = []
    for index, utterance in enumerate(corpus.sources):
        units = corpus.targets[utterance.id]
        target = vocab.encode((units.dedup()[0] if model.reduced else units).ids)
        texts = _texts(corpus, model, utterance.id)
        source: int | np.ndarray = index
        if model.source == "text":
            source = inputs.encode(corpus.source_texts.get(utterance.id, ""))
        elif model.source == "units":
            source = Vocab(model.source_units).encode(corpus.source_units[utterance.id].dedup()[0].ids)
        length = int(lengths[index]) if isinstance(source, int) else len(source)
        if 0 < length <= longest and len(target) <= config.max_units:
            row = Row(utterance.id, source, target, texts, length)
            rows += [row] * (config.repeat.get(utterance.speaker or "", 1) if train else 1)
    if left := len(corpus.sources) - len({row.id for row in rows}):
        print(f"{left} of {len(corpus.sources)} pairs are too long or have no text; left out", file=sys.stderr)
    if not rows:
        raise data.DataError("no pair is left to train on")
    return rows


def _texts(corpus: Corpus, model: Seq2SeqConfig, id: str) -> dict[str, np.ndarray]:
    """What the heads are asked for."""
    wanted = {head.target for head in model.heads.values()}
    found = {}
    if "source_text" in wanted:
        found["source_text"] = Letters(model.source_letters).encode(corpus.source_texts.get(id, ""))
    if "target_text" in wanted:
        found["target_text"] = Letters(model.target_letters).encode(corpus.target_texts.get(id, ""))
    if "source_units" in wanted:
        if id not in corpus.source_units:
            raise data.DataError(f"{id}: a head on source_units needs them: pass source_units= and dev_source_units=")
        found["source_units"] = Vocab(model.source_units).encode(corpus.source_units[id].dedup()[0].ids)
    return found


class PairSet(Dataset):
    """Examples; item (epoch, i) is always the same one.  `variants` are features of clean and of changed speech."""

    def __init__(
        self,
        rows: Sequence[Row],
        model: Seq2SeqConfig,
        config: DataConfig,
        *,
        variants: Sequence[Features] = (),
        wavs: data.AudioCache | None = None,
        utterances: Sequence[Utterance] = (),
        frames_hz: float = 50.0,
        seed: int = 0,
        train: bool = True,
    ) -> None:
        self.rows, self.model, self.config = rows, model, config
        self.variants, self.wavs, self.utterances = variants, wavs, utterances
        self.frames_hz, self.seed, self.train = frames_hz, seed, train

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: data.Key) -> Example:
        epoch, item = key
        draw = np.random.default_rng([self.seed, epoch, item])
        source, target, texts = self._example(item, draw)
        if self.train and draw.random() < self.config.concat:
            other = self._example(int(draw.integers(len(self.rows))), draw)
            source, target = np.concatenate([source, other[0]]), _joined(target, other[1], reduced=self.model.reduced)
            space = self._space()
            texts = {n: np.concatenate([t, space.get(n, t[:0]), other[2][n]]) for n, t in texts.items()}
        if self.train and self.model.source == "features" and self.wavs is None:
            source = mask_features(source, draw, config=self.config.masks, rate_hz=self.frames_hz)
        return source, target, texts

    def _example(self, item: int, draw: np.random.Generator) -> Example:
        row = self.rows[item]
        if isinstance(row.source, np.ndarray):
            wanted = self.config.holes
            source = (
                holes(row.source, draw, config=wanted, mask=mask_token(self.model)) if wanted.masked else row.source
            )
        elif self.wavs is not None:
            source = self.wavs.read(self.utterances[row.source], 0, 1 << 40)
        else:
            variant = int(draw.integers(len(self.variants))) if self.train else 0
            source = self.variants[variant][row.source].astype(np.float32)
        return source, row.target, row.texts

    def _space(self) -> dict[str, np.ndarray]:
        return {
            "source_text": Letters(self.model.source_letters).space,
            "target_text": Letters(self.model.target_letters).space,
        }

    collate = staticmethod(collate_pairs)


def _joined(one: np.ndarray, other: np.ndarray, *, reduced: bool) -> np.ndarray:
    """One target after the other; of reduced units the joint has no repetition either."""
    same = reduced and len(one) and len(other) and one[-1] == other[0]
    return np.concatenate([one, other[1:] if same else other])


@dataclass(frozen=True)
class Sets:
    """What `train` needs of the data: both sets, the dev set with sources in disorder, and the length of each pair."""

    train: PairSet
    dev: PairSet
    lengths: list[int]


def read_sets(config: Config, listener: Listener | None) -> tuple[Seq2SeqConfig, Sets]:
    """Reads both splits, listens to what is heard once, and completes the model's config."""
    corpora = {split: read_split(config, split) for split in ("train", "dev")}
    corpora["train"].header.check_same(corpora["dev"].header, what=config.dev_units)
    model = complete(config, corpora["train"], listener)
    sets = {split: _pair_set(config, model, corpora[split], listener, split == "train") for split in corpora}
    return model, Sets(sets["train"], sets["dev"], [row.length for row in sets["train"].rows])


def _pair_set(config: Config, model: Seq2SeqConfig, corpus: Corpus, listener: Listener | None, train: bool) -> PairSet:
    variants: list[Features] = []
    lengths: Sequence[int] = [0] * len(corpus.sources)
    wavs, longest, frames_hz = None, config.data.max_units * 4, 1.0
    if listener is not None and config.finetune.listener == "frozen":
        for copy in range(1 + config.data.copies * train):
            changes = config.data.changes if copy else None
            variants.append(_heard(corpus, listener, config.data.cache, changes=changes, seed=config.fit.seed + copy))
        lengths, frames_hz = variants[0].lengths.tolist(), listener.rate_hz
    elif listener is not None:
        wavs, frames_hz = data.AudioCache(listener.sample_rate), float(listener.sample_rate)
        lengths = [int((row.duration or 1.0) * listener.sample_rate) for row in corpus.sources]
    if listener is not None:
        longest = int(config.data.max_seconds * frames_hz)
    return PairSet(
        rows_of(corpus, model, config.data, lengths=lengths, longest=longest, train=train),
        model,
        config.data,
        variants=variants,
        wavs=wavs,
        utterances=corpus.sources,
        frames_hz=frames_hz,
        seed=config.fit.seed,
        train=train,
    )


def _heard(corpus: Corpus, listener: Listener, folder: str, *, changes: Augment | None, seed: int) -> Features:
    total = sum(row.duration or 0.0 for row in corpus.sources)
    with progress("listen", total, "s") as advance:
        return features_of(corpus.sources, listener, folder, changes=changes, seed=seed, advance=advance)


class TranslateStep:
    """One step; the listener learns from `freeze_steps` on."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.config = config
        self.frozen = [p for n, p in model.named_parameters() if n.startswith("net.") and p.requires_grad]

    def __call__(self, run: Run, batch: Pairs) -> dict[str, Tensor]:
        """See the class."""
        losses = run.modules["model"](batch, run.step / max(1, run.config.max_steps))
        run.backward(losses["loss"])
        if run.step < self.config.finetune.freeze_steps:
            for parameter in self.frozen:
                parameter.grad = None
        run.update()
        return losses


def _card(config: Config, model: Seq2SeqConfig, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    return (
        f"# {model.source} to units ({model.source_lang or '?'} to {model.target_lang or '?'})\n\n"
        f"Units of tokenizer `{model.tokenizer}`, {model.n_units} at {model.rate_hz:g} Hz. "
        f"Trained on `{config.train_source}` and `{config.train_units}` (their licence is that of this model), "
        f"validated on `{config.dev_units}`.\n\n## Scores\n\n{scores}\n\nloss: nats a unit on the dev set; "
        f"loss_other_source: with each source beside another target.\n\n## Recipe\n\n"
        f"python recipes/train_s2ut.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def build(config: Config) -> tuple[Hearing | Seq2Seq, Listener | None, Sets]:
    """The model, what it hears with, and the data."""
    listener = None
    if config.model.source == "features":
        engine = "auto" if config.finetune.listener == "frozen" else "plain"
        device = pick_device(config.fit.device)
        listener = Listener.make(config.features, config.layer, device=device, engine=engine)
    model_config, sets = read_sets(config, listener)
    model = Seq2Seq(model_config)
    if config.fit.device == "cpu" or not torch.cuda.is_available():
        model.plain_attention()
    if config.init:
        taken = model.start_from(Seq2Seq.load(config.init), parts=config.init_parts)
        print(f"{len(taken)} weights are those of {config.init}", file=sys.stderr)
    if config.finetune.decoder != "all":
        trainable(model.inner.model.decoder, config.finetune.decoder, attention=("encoder_attn",))
    if listener is None or config.finetune.listener == "frozen":
        return model, listener, sets
    return Hearing(listener, model, what=config.finetune.listener), listener, sets


def train(config: Config) -> FitResult:
    """Runs the recipe; the model directory is `config.out`."""
    torch.manual_seed(config.fit.seed)
    model, listener, sets = build(config)
    print(f"{n_parameters(model) / 1e6:.2f} M parameters, {len(sets.train)} pairs", file=sys.stderr)

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        own = module.head if isinstance(module, Hearing) else module
        own.save(folder, card=_card(config, own.config, metrics))
        heard = module.listener if isinstance(module, Hearing) else listener
        if heard is not None:
            heard.save(folder / "listener")

    return fit(
        {"model": Part(model, config.optim)},
        TranslateStep(config, model),
        batches=data.batches(
            sets.train,
            config.data.batch,
            collate=PairSet.collate,
            workers=config.data.workers,
            seed=config.fit.seed,
            device=config.fit.device,
            lengths=sets.lengths,
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=PairLosses([sets.dev[0, i] for i in range(len(sets.dev))], config.data.batch),
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

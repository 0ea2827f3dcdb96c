"""Trains a recogniser: python recipes/train_asr.py [conf.yaml] train_manifest=... dev_manifest=... key=value ...

With train_units and dev_units it reads units, deduplicated or not, in pieces of a BPE or not, of one codebook or more;
without them it hears features: log-mels, or any speech model's.  All else is the same.  model.ctc is the share of CTC
in loss and search: 0 = attention alone, 1 = CTC alone.  The model directory is one for `unitkit transcribe`.
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
from unitkit.augment import Augment, Masks, Stretches, mask_features, mask_tokens
from unitkit.bpe import UnitBPE
from unitkit.cli.show import progress
from unitkit.features import Features, features_of
from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics.text import count_errors
from unitkit.models.ctc import frames_needed
from unitkit.models.listen import Listener
from unitkit.models.seq2seq import PAPER_ASR, Pairs, Seq2Seq, Seq2SeqConfig
from unitkit.models.unit_input import UnitInput
from unitkit.models.vocoder import n_parameters
from unitkit.pairs import Example, PairLosses, collate_pairs
from unitkit.pieces import Pieces
from unitkit.text import plain
from unitkit.tokenizer import Tokenizer, bundled_as, pick_device
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, Run, fit
from unitkit.units import Units, check_fingerprint, read_header

SMALL = Seq2SeqConfig(
    target="text",
    dim=144,
    encoder_layers=6,
    decoder_layers=2,
    hidden=576,
    conv_channels=288,
    blocks="branchformer",
    branch_hidden=432,
    branch_kernel=15,
    label_smoothing=0.1,
    ctc=0.3,
)
SIZES = {"paper": PAPER_ASR}
DERIVED = (
    *("target", "source", "tokenizer", "pieces", "langs", "longest", "n_units", "rate_hz", "features", "features_dim"),
    *("source_tokenizer", "source_units", "source_codebooks", "source_rate_hz", "source_reduced", "source_pieces"),
    "source_bpe",
)
FILTERBANK = "logmel@100"


@dataclass(frozen=True)
class TextConfig:
    """What the texts are made of."""

    kind: str = "bpe"  # bpe | char
    size: int = 500  # pieces at most, learnt of the training texts
    dropout: float = 0.0  # BPE-dropout of training texts
    plain: bool = True  # lower case without punctuation; false: as they are written
    langs: bool = False  # the token of its language stands before each text


@dataclass(frozen=True)
class UnitsConfig:
    """How units are read."""

    reduced: bool = True  # runs of equal units are one
    pieces: int = 0  # of a BPE, at most, learnt of the training units; 0: single units
    dropout: float = 0.0  # BPE-dropout of training units
    embeddings: str = "random"  # random | centroids: of the tokenizer
    masks: Stretches = field(default_factory=lambda: Stretches(times=4))


@dataclass(frozen=True)
class DataConfig:
    """What an example is, and how features are changed."""

    batch: int = 16
    max_seconds: float = 20.0  # longer recordings are left out
    cache: str = "exp/features"  # where features are kept
    copies: int = 0  # of each recording, changed, heard beside the clean one
    changes: Augment = field(default_factory=Augment)
    masks: Masks = field(default_factory=lambda: Masks(seconds=0.3, share=0.2))
    dev_utterances: int = 128  # written down at each validation, evenly spread over the dev set; 0 = all
    workers: int = 0


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what units, texts and features say about themselves is never written here."""

    train_manifest: str = ""
    train_units: str = ""  # a unit file with the manifest's ids; "": features
    dev_manifest: str = ""
    dev_units: str = ""
    tokenizer: str = ""  # of the units: directory or bundled name; the model then takes speech as well
    features: str = ""  # a filterbank, or a speech model by name or directory …
    layer: int | None = None  # … and its layer
    init: str = ""  # a trained model to begin with
    init_parts: tuple[str, ...] = ("encoder", "front")  # of it: encoder, decoder, front, heads, ctc
    out: str = "exp/asr"
    size: str = "small"  # small: as `model` says | paper
    text: TextConfig = field(default_factory=TextConfig)
    units: UnitsConfig = field(default_factory=UnitsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: Seq2SeqConfig = field(default_factory=lambda: SMALL)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, betas=(0.9, 0.98), warmup=500))
    fit: FitConfig = field(default_factory=lambda: FitConfig(max_steps=5000, ema=0.999, clip=5.0))


@dataclass(frozen=True)
class Row:
    """An utterance, its text as it is to be written, and its units where it has some."""

    utterance: Utterance
    text: str
    units: Units | None = None

    @property
    def seconds(self) -> float:
        """How long it is; 0 where nothing says so."""
        return self.units.duration if self.units is not None else self.utterance.duration or 0.0


@dataclass(frozen=True)
class Ear:
    """What the model gets to know of a recording: features of a listener, or units and, if known, what makes them."""

    listener: Listener | None = None
    units: UnitInput | None = None
    tokenizer: Tokenizer | None = None


def check(config: Config) -> None:
    """Refuses settings that lack something or say a thing twice."""
    for name in ("train_manifest", "dev_manifest"):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
    if bool(config.train_units) != bool(config.dev_units):
        raise configs.ConfigError("train_units and dev_units go together: pass both, or none to hear features")
    if config.train_units and (config.features or config.layer is not None):
        raise configs.ConfigError("a model of units hears no features: leave features and layer out, or the unit files")
    if not config.train_units and config.tokenizer:
        raise configs.ConfigError("tokenizer= is for a model of units: pass train_units= and dev_units= too")
    if config.units.embeddings not in ("random", "centroids"):
        raise configs.ConfigError(f"units.embeddings {config.units.embeddings!r}: choose random or centroids")
    if config.size != "small" and config.size not in SIZES:
        raise configs.ConfigError(f"size {config.size!r}: choose small, {', '.join(SIZES)}")
    if config.size != "small" and config.model != SMALL:
        raise configs.ConfigError(f"size={config.size} sets all of model: leave one of them out")
    for name in DERIVED:
        if getattr(config.model, name) != getattr(SMALL, name):
            raise configs.ConfigError(f"model.{name} is read from the training data: take it out of the config")


def read_rows(config: Config, split: str) -> list[Row]:
    """One split, "train" or "dev"; rows that lack a text or units are left out, with a note."""
    manifest, units = (getattr(config, f"{split}_{name}") for name in ("manifest", "units"))
    found: list[tuple[Utterance, Units | None]]
    if units:
        corpus = data.read_corpus(manifest, units)
        _left_out(split, "have no units", corpus.missing)
        found = [(row.utterance, corpus.header.units(row.units, row.utterance.id)) for row in corpus.rows]
    else:
        found = [(utterance, None) for utterance in read_manifest(manifest)]
    spelled = plain if config.text.plain else str.strip
    rows = [Row(utterance, spelled(utterance.text or ""), own) for utterance, own in found]
    _left_out(split, "have no text", [row.utterance.id for row in rows if not row.text])
    kept = [row for row in rows if row.text]
    if not kept:
        raise data.DataError(f"{manifest}: no utterance has a text to learn from")
    return kept


def _left_out(split: str, why: str, ids: Sequence[str]) -> None:
    if ids:
        print(f"{split}: {len(ids)} utterances {why} and are left out: {', '.join(ids[:10])}", file=sys.stderr)


def make_pieces(config: TextConfig, rows: Sequence[Row]) -> Pieces:
    """The pieces of the training texts, and their languages where a token is asked for."""
    langs = sorted({row.utterance.lang or "" for row in rows}) if config.langs else []
    if "" in langs:
        raise data.DataError("text.langs=true needs the language of every training utterance: add lang to the manifest")
    return Pieces.train((row.text for row in rows), config.size, kind=config.kind, langs=langs)


def make_ear(config: Config, rows: Sequence[Row]) -> Ear:
    """The listener, or how units are read, with a BPE learnt of the training units."""
    device = pick_device(config.fit.device)
    first = rows[0].units
    if first is None:
        return Ear(Listener.make(config.features or FILTERBANK, config.layer, device=device))
    given = config.tokenizer or bundled_as(first.tokenizer)
    tokenizer = Tokenizer.load(given, device=device) if given else None
    if tokenizer is not None:
        check_fingerprint(first.tokenizer, tokenizer.fingerprint, what=f"tokenizer={config.tokenizer}")
    if config.units.embeddings == "centroids" and tokenizer is None:
        raise configs.ConfigError("units.embeddings=centroids are those of the tokenizer: pass tokenizer=directory")
    header = read_header(config.train_units)
    bpe = None
    if config.units.pieces:
        heard = (row.units for row in rows if row.units is not None)
        bpe = UnitBPE.train((u.dedup()[0] if config.units.reduced else u for u in heard), config.units.pieces)
    return Ear(None, UnitInput(header, config.units.reduced, bpe), tokenizer)


def complete(config: Config, pieces: Pieces, ear: Ear, rows: Sequence[Row]) -> Seq2SeqConfig:
    """The model's config with all that texts, units and features decide."""
    model = replace(
        SIZES.get(config.size, config.model),
        target="text",
        tokenizer=pieces.fingerprint,
        pieces=pieces.n_pieces,
        langs=pieces.langs,
        longest=round(float(np.quantile([row.seconds for row in rows], 0.95)), 1),
    )
    if ear.listener is not None:
        name = config.features or FILTERBANK
        return replace(model, source="features", features=name, features_dim=ear.listener.dim)
    assert ear.units is not None
    h, centroids = ear.units.header, config.units.embeddings == "centroids"
    return replace(
        model,
        source="units",
        source_tokenizer=h.tokenizer,
        source_units=h.n_units,
        source_codebooks=h.codebooks,
        source_rate_hz=h.rate_hz,
        source_reduced=ear.units.reduced,
        source_pieces=len(ear.units.bpe) if ear.units.bpe is not None else 0,
        source_bpe=ear.units.bpe.fingerprint if ear.units.bpe is not None else "",
        embedding_dim=ear.tokenizer.quantizer.dim if centroids and ear.tokenizer else model.embedding_dim,
    )


class Spoken(Dataset):
    """Examples; item (epoch, i) is always the same one.  In training they are changed, masked, and split by chance."""

    def __init__(
        self, split: str, rows: Sequence[Row], *, model: Seq2SeqConfig, ear: Ear, pieces: Pieces, config: Config
    ) -> None:
        """With `split` "train" examples are changed; what is too long for the model is left out, with a note."""
        self.config, self.model, self.ear, self.pieces = config, model, ear, pieces
        self.train, self.seed = split == "train", config.fit.seed
        self.rows = [row for row in rows if not pieces.langs or row.utterance.lang in pieces.langs]
        others = [row.utterance.id for row in rows if pieces.langs and row.utterance.lang not in pieces.langs]
        _left_out(split, "are in a language that is not learnt", others)
        copies = 1 + config.data.copies * self.train if ear.listener else 0
        self.variants = [self._hear(copy) for copy in range(copies)]
        lengths = self.variants[0].lengths if self.variants else [len(self._tokens(row)) for row in self.rows]
        fits = [self._fits(row, int(length)) for row, length in zip(self.rows, lengths, strict=True)]
        long = [row.utterance.id for row, good in zip(self.rows, fits, strict=True) if not good]
        _left_out(split, "are too long", long)
        self.items = [i for i, good in enumerate(fits) if good]
        if not self.items:
            raise data.DataError(f"{split}: none of {len(rows)} utterances can be learned from")
        self.lengths = [int(lengths[i]) for i in self.items]
        short = [i for i, n in zip(self.items, self.lengths, strict=True) if not self._writable(self.rows[i], n)]
        if short and model.ctc and self.train:
            print(f"{len(short)} of {len(self)} texts have more tokens than CTC has positions for", file=sys.stderr)

    @property
    def _shorter(self) -> int:
        """How many times fewer positions there are than frames or tokens."""
        return int(2 ** len(self.model.conv_kernels if self.ear.listener else self.model.unit_kernels))

    def _fits(self, row: Row, length: int) -> bool:
        """Whether the model can take an utterance of `length` frames or tokens, and its text."""
        short = self._seconds(row, length) <= self.config.data.max_seconds
        most = self.model.max_positions
        return short and 0 < length <= most * self._shorter and len(self._target(row)) < most

    def _writable(self, row: Row, length: int) -> bool:
        """Whether CTC has a position for each token of the text."""
        return frames_needed(self._target(row)) <= -(-length // self._shorter)

    def _hear(self, copy: int) -> Features:
        rows, c = [row.utterance for row in self.rows], self.config.data
        assert self.ear.listener is not None
        with progress("listen", sum(row.duration or 0.0 for row in rows), "s") as advance:
            changes = c.changes if copy else None
            return features_of(
                rows, self.ear.listener, c.cache, changes=changes, seed=self.seed + copy, advance=advance
            )

    def _seconds(self, row: Row, length: int) -> float:
        if self.ear.listener is not None:
            return length / self.ear.listener.rate_hz
        return row.units.duration if row.units is not None else 0.0

    def _tokens(self, row: Row, draw: np.random.Generator | None = None) -> np.ndarray:
        assert self.ear.units is not None and row.units is not None
        if draw is None or not self.config.units.dropout:
            return self.ear.units.tokens(row.units)
        return self.ear.units.tokens(row.units, dropout=self.config.units.dropout, seed=int(draw.integers(1 << 62)))

    def _target(self, row: Row, draw: np.random.Generator | None = None) -> np.ndarray:
        lang = row.utterance.lang if self.pieces.langs else None
        if draw is None or not self.config.text.dropout:
            return self.pieces.encode(row.text, lang=lang)
        seed = int(draw.integers(1 << 62))
        return self.pieces.encode(row.text, lang=lang, dropout=self.config.text.dropout, seed=seed)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: data.Key) -> Example:
        epoch, item = key
        index, draw = self.items[item], np.random.default_rng([self.seed, epoch, item])
        row = self.rows[index]
        chance = draw if self.train else None
        if self.ear.units is not None:
            source = self._tokens(row, chance)
            if self.train:
                source = mask_tokens(source, draw, config=self.config.units.masks, mask=self.ear.units.mask)
            return source, self._target(row, chance), {}
        assert self.ear.listener is not None
        variant = int(draw.integers(len(self.variants))) if self.train else 0
        source = self.variants[variant][index].astype(np.float32)
        if self.train:
            source = mask_features(source, draw, config=self.config.data.masks, rate_hz=self.ear.listener.rate_hz)
        return source, self._target(row, chance), {}


class Validation:
    """Losses on the dev set, each source put beside another text as control, and CER of texts written greedily."""

    def __init__(self, spoken: Spoken, config: Config) -> None:
        total = len(spoken)
        count = min(config.data.dev_utterances or total, total)
        chosen = sorted((i * total // count for i in range(count)), key=lambda item: spoken.lengths[item])
        examples = [spoken[0, item] for item in chosen]
        self.losses = PairLosses(examples, config.data.batch, main="ctc" if spoken.model.ctc == 1 else "attention")
        groups = [range(i, min(i + config.data.batch, count)) for i in range(0, count, config.data.batch)]
        self.sources = [[torch.from_numpy(np.ascontiguousarray(examples[i][0])) for i in group] for group in groups]
        self.texts = [[spoken.rows[spoken.items[chosen[i]]].text for i in group] for group in groups]
        self.pieces = spoken.pieces

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode; cer is a percentage of the texts' letters."""
        own: Any = model
        wrong = of = 0
        for sources, texts in zip(self.sources, self.texts, strict=True):
            found = own.generate(sources, beam=1, extra=20)
            for hypothesis, text in zip(found, texts, strict=True):
                said = self.pieces.decode(hypothesis.units + self.pieces.first)
                errors, length = count_errors(text, said, words=False)
                wrong, of = wrong + errors, of + length
        return self.losses(model) | {"cer": 100 * wrong / max(1, of)}


def _card(config: Config, model: Seq2SeqConfig, *, heard: str, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    languages = f"languages {', '.join(model.langs)}" if model.langs else "no language token"
    return (
        f"# Recogniser of {model.source}\n\nHears {heard}; writes {model.pieces} {config.text.kind} pieces, "
        f"{languages}. Trained on `{config.train_manifest}` (its licence is that of this model), validated on "
        f"`{config.dev_manifest}`.\n\n## Scores\n\n{scores}\n\nloss: nats a token on the dev set; loss_other_source: "
        "with each source beside another text; cer: of texts written greedily, percent of the letters.\n\n## Recipe\n\n"
        f"python recipes/train_asr.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def _heard(ear: Ear, rows: Sequence[Row], *, model: Seq2SeqConfig) -> str:
    """What the model hears, in words; of units, at which rates."""
    if ear.units is None:
        return f"`{model.features}`, {model.features_dim} numbers a frame"
    a_second, bits = ear.units.rates(row.units for row in rows if row.units is not None)
    kind = ("reduced" if ear.units.reduced else "frame-level") + (" units in pieces" if ear.units.bpe else " units")
    return (
        f"{kind} of tokenizer `{model.source_tokenizer}`, {ear.units.n_symbols} in all, {a_second:.1f} a second, "
        f"{bits:.0f} bit/s on the dev set"
    )


def build(config: Config) -> tuple[Seq2Seq, Ear, Pieces, Spoken, Spoken]:
    """The model, what it hears with, what it writes, and both sets."""
    check(config)
    rows = {split: read_rows(config, split) for split in ("train", "dev")}
    if config.train_units:
        read_header(config.train_units).check_same(read_header(config.dev_units), what=config.dev_units)
    pieces, ear = make_pieces(config.text, rows["train"]), make_ear(config, rows["train"])
    settings = complete(config, pieces, ear, rows["train"])
    model = Seq2Seq(settings)
    if config.fit.device == "cpu" or not torch.cuda.is_available():
        model.plain_attention()
    if config.units.embeddings == "centroids" and ear.units is not None and ear.tokenizer is not None:
        model.front.begin_with(ear.units.vectors(ear.tokenizer.quantizer))
    if config.init:
        taken = model.start_from(Seq2Seq.load(config.init), parts=config.init_parts)
        print(f"{len(taken)} weights are those of {config.init}", file=sys.stderr)
    sets = [
        Spoken(split, rows[split], model=settings, ear=ear, pieces=pieces, config=config) for split in ("train", "dev")
    ]
    return model, ear, pieces, sets[0], sets[1]


def step(run: Run, batch: Pairs) -> dict[str, Tensor]:
    """One training step."""
    losses = run.modules["model"](batch, run.step / max(1, run.config.max_steps))
    run.backward(losses["loss"])
    run.update()
    return losses


def train(config: Config) -> FitResult:
    """Runs the recipe; `config.out` is the model directory, with all that a recogniser needs."""
    torch.manual_seed(config.fit.seed)
    model, ear, pieces, spoken, dev = build(config)
    heard = _heard(ear, dev.rows, model=model.config)
    print(f"{n_parameters(model) / 1e6:.2f} M parameters, {len(spoken)} utterances; {heard}", file=sys.stderr)
    kept: set[Path] = set()

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        module.save(folder, card=_card(config, module.config, heard=heard, metrics=metrics))
        if folder not in kept:  # what never changes, and may be large
            kept.add(folder)
            pieces.save(folder)
            if ear.units is not None:
                ear.units.save(folder)
            if ear.listener is not None:
                ear.listener.save(folder / "listener")
            if ear.tokenizer is not None and bundled_as(ear.tokenizer.fingerprint) is None:
                ear.tokenizer.save(folder / "tokenizer", overwrite=True)

    return fit(
        {"model": Part(model, config.optim)},
        step,
        batches=data.batches(
            spoken,
            config.data.batch,
            collate=collate_pairs,
            workers=config.data.workers,
            seed=config.fit.seed,
            device=config.fit.device,
            lengths=spoken.lengths,
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(dev, config),
        monitor="cer",
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

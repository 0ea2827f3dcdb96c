"""Trains text to units, all frames at once: python recipes/train_tts.py [conf.yaml] train_manifest=... key=value ...

Texts, languages and speakers come from the manifests, units of one codebook or several from the unit files.  With
voices=FILE (recipes/speaker_vectors.py) the model speaks with any voice of which there is a vector; speaker=DIR, the
encoder that made them, is kept beside it so that new voices can be heard.  The other way, unit by unit:
recipes/train_s2ut.py with model.source=text.
"""

import shutil
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
from unitkit.frontends import FrontEnd, write
from unitkit.models.ctc import pad_targets
from unitkit.models.tts import PAPER, Lines, TextToUnits, TtsConfig
from unitkit.models.vocoder import n_parameters
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, Run, fit
from unitkit.voices import SpeakerModel, Voices

DERIVED = (
    *("tokenizer", "n_units", "codebooks", "rate_hz", "symbols", "longest", "langs"),
    *("speakers", "speaker_vector_dim", "speaker_encoder"),
)


@dataclass(frozen=True)
class DataConfig:
    """What an example is."""

    batch: int = 16  # utterances
    max_seconds: float = 15.0  # longer recordings are left out
    repeat: dict[str, int] = field(default_factory=dict)  # utterances of these speakers count so many times
    dev_utterances: int = 128  # validated on, evenly spread over the dev set; 0 = all
    workers: int = 0


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses beside the units'; `bind` rises from step `bind_from` on, in `bind_warmup` steps."""

    align: float = 1.0
    bind: float = 1.0
    bind_from: int = 400
    bind_warmup: int = 400
    durations: float = 1.0

    def bind_at(self, step: int) -> float:
        """The weight of `bind` at a step."""
        return self.bind * min(1.0, max(0.0, (step - self.bind_from) / max(1, self.bind_warmup)))


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what units, texts and voices say of themselves is never written here."""

    train_manifest: str = ""
    train_units: str = ""
    dev_manifest: str = ""
    dev_units: str = ""
    voices: str = ""  # speaker vectors of the training utterances; left out: one voice
    dev_voices: str = ""
    speaker: str = ""  # directory of the encoder that made them
    out: str = "exp/tts"
    size: str = "small"  # small: as `model` says | paper
    data: DataConfig = field(default_factory=DataConfig)
    model: TtsConfig = field(default_factory=TtsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, betas=(0.9, 0.98), warmup=200))
    fit: FitConfig = field(default_factory=lambda: FitConfig(max_steps=6000, ema=0.995))


@dataclass(frozen=True)
class Row:
    """An utterance to learn from: token ids (n,) and units (frames[, codebooks])."""

    id: str
    tokens: np.ndarray
    units: np.ndarray
    lang: int
    speaker: str


def check(config: Config) -> None:
    """Refuses settings that lack something or say a thing twice."""
    for name in ("train_manifest", "train_units", "dev_manifest", "dev_units"):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
    if bool(config.voices) != bool(config.dev_voices):
        raise configs.ConfigError("speaker vectors need both voices and dev_voices")
    if config.speaker and not config.voices:
        raise configs.ConfigError("speaker is kept to hear new voices: pass voices= and dev_voices= that it made")
    if given := [name for name in DERIVED if getattr(config.model, name) != getattr(TtsConfig(), name)]:
        raise configs.ConfigError(f"model.{given[0]} is read from the training data: take it out of the config")
    if config.size not in ("small", "paper"):
        raise configs.ConfigError(f"size {config.size!r}: choose small or paper")
    if config.size == "paper" and config.model != TtsConfig(front=config.model.front):
        raise configs.ConfigError("size=paper sets all of model but front: leave one of them out")


def complete(config: Config, corpus: data.Corpus, written: Mapping[str, str], voices: Voices | None) -> TtsConfig:
    """The model's config with all that the training set decides."""
    front = FrontEnd.of(config.model.front, written.values())
    header = corpus.header
    frames = {row.utterance.id: len(row.units) for row in corpus.rows}
    sizes = [(len(front.encode(text)), frames[name]) for name, text in written.items()]
    return replace(
        replace(PAPER, front=config.model.front) if config.size == "paper" else config.model,
        tokenizer=header.tokenizer,
        n_units=header.n_units,
        codebooks=header.codebooks,
        rate_hz=header.rate_hz,
        symbols=front.symbols,
        longest=max((n for n, frames in sizes if n <= frames), default=0),  # of those that are learned from
        langs=corpus.langs,
        speakers=_speakers(corpus) if voices else {},
        speaker_vector_dim=voices.dim if voices else 0,
        speaker_encoder=voices.encoder if voices else "",
    )


def usable(what: str, corpus: data.Corpus, voices: Voices | None, *, config: Config) -> data.Corpus:
    """The corpus without what is too long, or has no speaker vector where there are some."""
    most = config.data.max_seconds * corpus.header.rate_hz
    kept = [row for row in corpus.rows if len(row.units) <= most and (voices is None or row.utterance.id in voices)]
    if left := sorted({row.utterance.id for row in corpus.rows} - {row.utterance.id for row in kept}):
        why = "are too long" + (" or have no speaker vector" if voices is not None else "")
        print(f"{what}: {len(left)} utterances {why}; left out: {', '.join(left[:10])}", file=sys.stderr)
    if not kept:
        raise data.DataError(f"{what}: none of {len(corpus.rows)} utterances can be learned from")
    return replace(corpus, rows=kept)


def _speakers(corpus: data.Corpus) -> dict[str, list[str]]:
    """Speakers by how much they say, and the languages of each, likewise."""
    frames: dict[str, dict[str, int]] = {}
    for row in corpus.rows:
        if row.utterance.speaker:
            own = frames.setdefault(row.utterance.speaker, {})
            own[row.utterance.lang or ""] = own.get(row.utterance.lang or "", 0) + len(row.units)
    order = sorted(frames, key=lambda name: -sum(frames[name].values()))
    return {name: sorted(frames[name], key=lambda lang: -frames[name][lang]) for name in order}


def written_texts(corpus: data.Corpus, front: str) -> dict[str, str]:
    """By id, what the front end makes of the texts; of those that say nothing, nothing."""
    rows = [row.utterance for row in corpus.rows if row.utterance.text]
    texts = write(front, [row.text or "" for row in rows], [row.lang or "" for row in rows])
    found = {row.id: text for row, text in zip(rows, texts, strict=True) if text}
    if not found:
        raise data.DataError("no utterance has a text: the manifests need texts to speak")
    return found


class Script(Dataset):
    """Utterances with their texts; item (epoch, i) is always the same one.

    In training each comes with the speaker vector of any utterance of its speaker, so that it says no more than who
    speaks; in validation with the mean of the speaker's.
    """

    def __init__(
        self,
        what: str,
        corpus: data.Corpus,
        written: Mapping[str, str],
        *,
        model: TtsConfig,
        config: Config,
        voices: Voices | None,
    ) -> None:
        """With `what` "train" utterances of some speakers count several times."""
        self.train, self.seed, self.voices = what == "train", config.fit.seed, voices
        front, repeat = model.front_end, config.data.repeat if what == "train" else {}
        self.rows: list[Row] = []
        left = list(corpus.missing)
        for row in corpus.rows:
            one = row.utterance
            tokens = front.encode(written.get(one.id, ""))
            if not 2 < len(tokens) <= len(row.units):
                left.append(one.id)
                continue
            lang = _known(one.lang or "", model.langs, one.id) if len(model.langs) > 1 else 0
            found = Row(one.id, tokens, row.units, lang, one.speaker or "")
            self.rows += [found] * repeat.get(one.speaker or "", 1)
        if left:
            why = "have no text or units, or are too short for their text"
            names = ", ".join(left[:10])
            print(f"{what}: {len(left)} utterances {why}; left out: {names}", file=sys.stderr)
        if not self.rows:
            raise data.DataError(f"{what}: none of {len(corpus.rows)} utterances can be learned from")
        self.mates = data.same_speaker([row.utterance for row in corpus.rows]) if voices else {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: data.Key) -> tuple[Row, np.ndarray | None]:
        epoch, item = key
        row = self.rows[item]
        if self.voices is None:
            return row, None
        mates = self.mates[row.id]
        if self.train:
            draw = np.random.default_rng([self.seed, epoch, item])
            return row, self.voices[mates[int(draw.integers(len(mates)))]]
        return row, self.voices.means({"": mates})[""]

    @staticmethod
    def collate(items: Sequence[tuple[Row, np.ndarray | None]]) -> Lines:
        """Tokens and units padded to the longest, each with their lengths."""
        tokens = pad_targets([row.tokens for row, _ in items])
        units = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(row.units.astype(np.int64)) for row, _ in items], batch_first=True
        )
        lengths = torch.tensor([len(row.units) for row, _ in items])
        langs = torch.tensor([row.lang for row, _ in items])
        return Lines(*tokens, units, lengths, langs, data.stacked([vector for _, vector in items]))


def _known(lang: str, langs: tuple[str, ...], id: str) -> int:
    if lang not in langs:
        raise data.DataError(f"{id}: language {lang!r} is unknown; known: {', '.join(langs)}")
    return langs.index(lang)


class TtsStep:
    """One step: the weighted sum of the losses."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(self, run: Run, batch: Lines) -> dict[str, Tensor]:
        """See the class."""
        c, losses = self.config, run.modules["model"](batch)
        total = losses["units"] + c.align * losses["align"] + c.durations * losses["durations"]
        if weight := c.bind_at(run.step):
            total = total + weight * losses["bind"]
        run.backward(total)
        run.update()
        return losses | {"loss": total}


class Validation:
    """Losses on the dev set; `loss` is the units', and loss_other_text the same with each text beside other speech."""

    def __init__(self, script: Script, config: DataConfig) -> None:
        total = len(script)
        count = min(config.dev_utterances or total, total)
        chosen = sorted((i * total // count for i in range(count)), key=lambda i: len(script.rows[i].tokens))
        items = [script[0, i] for i in chosen]
        others = [
            (replace(row, tokens=other.tokens), vector)
            for (row, vector), (other, _) in zip(items, items[1:] + items[:1], strict=True)
            if len(other.tokens) <= len(row.units)
        ]
        self.real, self.control = (
            [Script.collate(some[i : i + config.batch]) for i in range(0, len(some), config.batch)]
            for some in (items, others)
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode."""
        found, control = self._measure(model, self.real), self._measure(model, self.control)
        return {"loss": found.pop("units"), "loss_other_text": control.get("units", float("nan")), **found}

    def _measure(self, model: nn.Module, batches: Sequence[Lines]) -> dict[str, float]:
        device, totals, weight = next(model.parameters()).device, dict[str, float](), 0
        for batch in batches:
            n = int(batch.lengths.sum())
            for name, value in model(batch.to(device)).items():
                totals[name] = totals.get(name, 0.0) + n * float(value)
            weight += n
        return {name: value / weight for name, value in totals.items()}


@dataclass(frozen=True)
class Built:
    """What `train` needs: the model, both sets, the voices of the speakers, and what hears new ones."""

    model: TextToUnits
    train: Script
    dev: Script
    voices: Voices | None
    speaker: SpeakerModel | None


def build(config: Config) -> Built:
    """Reads both sets and makes the model."""
    check(config)
    train = data.read_corpus(config.train_manifest, config.train_units)
    dev = data.read_corpus(config.dev_manifest, config.dev_units, tokenizer=train.header.tokenizer)
    train.header.check_same(dev.header, what=config.dev_units)
    voices, dev_voices = (Voices.load(path) if path else None for path in (config.voices, config.dev_voices))
    if voices and dev_voices:
        dev_voices.check(voices.encoder, voices.dim, what=config.dev_voices)
    train, dev = (usable(*one, config=config) for one in (("train", train, voices), ("dev", dev, dev_voices)))
    written = written_texts(train, config.model.front)
    model = complete(config, train, written, voices)
    return Built(
        TextToUnits(model),
        Script("train", train, written, model=model, config=config, voices=voices),
        Script("dev", dev, written_texts(dev, config.model.front), model=model, config=config, voices=dev_voices),
        _means(train, voices),
        _encoder(config, voices),
    )


def _means(corpus: data.Corpus, voices: Voices | None) -> Voices | None:
    """The mean vector of each speaker."""
    groups: dict[str, list[str]] = {}
    for row in corpus.rows:
        if row.utterance.speaker:
            groups.setdefault(row.utterance.speaker, []).append(row.utterance.id)
    return voices.means(groups) if voices and groups else None


def _encoder(config: Config, voices: Voices | None) -> SpeakerModel | None:
    if not config.speaker or voices is None:
        return None
    from unitkit.models.speaker import SpeakerEncoder

    encoder = SpeakerEncoder.load(config.speaker)
    voices.check(encoder.checksum(), encoder.dim, what=config.voices)
    return encoder


def _card(config: Config, model: TtsConfig, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    who = f"voices by vectors of speaker encoder `{model.speaker_encoder}`" if model.speaker_vector_dim else "one voice"
    return (
        f"# Text to units\n\nText ({model.front}) in {', '.join(model.langs) or 'one language'} to units of tokenizer "
        f"`{model.tokenizer}`, {model.n_units} x {model.codebooks} at {model.rate_hz:g} Hz; {who}. Trained on "
        f"`{config.train_manifest}` (its licence is that of this model), validated on `{config.dev_manifest}`."
        f"\n\n## Scores\n\n{scores}\n\nloss: nats a frame of the units, dev set, along the best alignment; "
        "loss_other_text: with each text beside other speech; align: nats a token; durations: of log frames."
        f"\n\n## Recipe\n\npython recipes/train_tts.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def train(config: Config) -> FitResult:
    """Runs the recipe; `config.out` gets the model, voices.safetensors and, to hear new voices with, speaker/."""
    torch.manual_seed(config.fit.seed)
    built = build(config)
    print(f"{n_parameters(built.model) / 1e6:.2f} M parameters, {len(built.train)} utterances", file=sys.stderr)

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        module.save(folder, card=_card(config, module.config, metrics))
        if built.voices is not None:
            built.voices.save(folder / "voices.safetensors")
        if built.speaker is not None:
            built.speaker.save(folder / "speaker")
            if (card := Path(config.speaker) / "card.md").is_file():  # what taught it, and under which licence
                shutil.copyfile(card, folder / "speaker" / "card.md")

    return fit(
        {"model": Part(built.model, config.optim)},
        TtsStep(config.loss),
        batches=data.batches(
            built.train,
            config.data.batch,
            collate=Script.collate,
            workers=config.data.workers,
            seed=config.fit.seed,
            device=config.fit.device,
            lengths=[len(row.units) for row in built.train.rows],
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(built.dev, config.data),
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

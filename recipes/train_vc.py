"""Trains conversion of voice and prosody: python recipes/train_vc.py [conf.yaml] train_manifest=... key=value ...

The model directory speaks through a vocoder of its mels: recipes/mels.py, then recipes/train_vocoder.py with
out=<directory>/vocoder.  With speaker=<directory of recipes/train_speaker.py> voices are that encoder's vectors, else
an encoder of voices is learned along.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unitkit import audio, augment, data
from unitkit import config as configs
from unitkit.cli.show import progress
from unitkit.features import Features, arrays_of
from unitkit.models.discriminators import MelJudge
from unitkit.models.frame import PAPER, FrameBatch, FrameConfig, FrameModel, LossWeights
from unitkit.models.front import inside
from unitkit.models.hearing import take_wav2vec2
from unitkit.models.speaker import SpeakerEncoder
from unitkit.models.storage import checksum
from unitkit.models.vocoder import n_parameters
from unitkit.recording import read_speech
from unitkit.tokenizer import pick_device
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, Run, fit

Make = Callable[[np.ndarray], np.ndarray]  # a wav to what is kept of it
DERIVED = ("tokenizer", "n_units", "rate_hz", "speaker_dim", "speaker_encoder")


@dataclass(frozen=True)
class DataConfig:
    """What an example is, and how the copies that the encoders hear are changed."""

    batch: int = 16
    segment_seconds: float = 2.5  # of what is spoken
    heard_seconds: float = 4.0  # at most so much is heard for a vector
    copies: int = 2  # of each recording, shifted in pitch
    semitones: float = 6.0  # the furthest shift
    formants: bool = False  # shifts move formants as well, as the paper's do; else a shifted voice keeps its colour
    voices: tuple[float, ...] = ()  # shifts in semitones, formants and all, that make other voices of the corpus
    tempo: float = 1.0  # examples, and what is heard of them, are up to so many times as fast or slow; the paper: 1
    other: float = 0.5  # share of examples whose voice is heard in another recording of the speaker; the paper: 0
    cache: str = "exp/features"  # where all that is computed of a recording once is kept
    workers: int = 0
    dev_utterances: int = 64  # validated on, evenly spread over the dev set; 0 = all


@dataclass(frozen=True)
class GanConfig:
    """A judge of mels that takes part from a step on."""

    use: bool = False
    start: int = 0
    width: int = 256
    blocks: int = 5


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what the units say about themselves is never written here."""

    train_manifest: str = ""
    train_units: str = ""
    dev_manifest: str = ""
    dev_units: str = ""
    speaker: str = ""  # directory of a speaker encoder; left out: one is learned along
    wav2vec2: str = ""  # checkpoint that model.hearing=wav2vec2 begins with
    size: str = "small"  # small: as `model` says | paper
    out: str = "exp/converter"
    data: DataConfig = field(default_factory=DataConfig)
    model: FrameConfig = field(default_factory=FrameConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    gan: GanConfig = field(default_factory=GanConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, warmup=200))
    judge_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4))
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass(frozen=True)
class Example:
    """One segment, as `FrameBatch` has it, but for what is padded."""

    units: np.ndarray
    cut: tuple[bool, bool]
    f0: np.ndarray
    voiced: np.ndarray
    energy: np.ndarray
    mel: np.ndarray
    heard: np.ndarray
    voice: np.ndarray
    shifted: np.ndarray


@dataclass(frozen=True)
class Kept:
    """Of every recording, or of every one shifted to another voice: what is computed of it once."""

    spectra: Features  # (m, n_mels + 1): log-mels and the length of the spectrum
    f0: Features  # (n,) Hz
    heard: list[Features]  # as it is, then its copies shifted in pitch
    voices: list[Features]  # likewise, what the voice's encoder hears, or the vectors of the one that is given


class Voices(Dataset):
    """Segments of a corpus with what the encoders hear; item (epoch, i) is always the same one.

    In the dev set utterances are whole, heard as they are, and voices in the recordings themselves.
    """

    def __init__(
        self, what: str, corpus: data.Corpus, model: FrameModel, speaker: SpeakerEncoder | None, *, config: Config
    ) -> None:
        self.what, self.config, self.seed, self.train = what, config.data, config.fit.seed, what == "train"
        self.corpus, self.model, self.speaker = corpus, model, speaker
        self.hearing = checksum(model.config.mel, model.hearing.state_dict())
        shifts = (0.0, *config.data.voices) if self.train else (0.0,)
        self.kept = [self._keep(shift) for shift in shifts]
        size = round(config.data.segment_seconds * model.config.rate_hz) if self.train else 0
        lengths = [len(row.units) for row in corpus.rows]
        self.size = size or max(lengths)
        once = np.repeat(np.arange(len(lengths)), [max(1, round(n / self.size)) for n in lengths])
        self.items, self.shifts = np.tile(once, len(shifts)), np.repeat(np.arange(len(shifts)), len(once))
        self.lengths = [min(lengths[i], self.size) for i in self.items]
        index = {row.utterance.id: i for i, row in enumerate(corpus.rows)}
        mates = data.same_speaker([row.utterance for row in corpus.rows])
        self.same = [[index[mate] for mate in mates[name]] for name in index]  # of each row, those of its speaker

    def _keep(self, shift: float) -> Kept:
        model, speaker, mel = self.model, self.speaker, self.model.config.mel
        units, hop = model.config.tokenizer, model.config.unit_hop

        def analyse(wav: np.ndarray) -> np.ndarray:
            mels, lengths = audio.spectra(wav, mel)
            return np.concatenate([mels, lengths[:, None]], axis=1)

        spectra = self._made("spectra", analyse, {"mel": mel.fingerprint, "units": units}, shift)
        f0 = self._made(
            "pitch", lambda wav: audio.f0(wav, mel.sample_rate, hop_samples=hop), {"f0": hop, "units": units}, shift
        )
        heard = self._copies("hear", lambda wav: model.hear(wav).cpu().numpy(), {"hearing": self.hearing}, shift)
        if speaker is None:
            return Kept(spectra, f0, heard, heard)
        settings = {"speaker": speaker.checksum(), "rate": mel.sample_rate}
        voices = self._copies(
            "voices", lambda wav: speaker(audio.resample(wav, mel.sample_rate, speaker.sample_rate)), settings, shift
        )
        return Kept(spectra, f0, heard, voices)

    def _copies(self, verb: str, hear: Make, settings: dict[str, Any], shift: float) -> list[Features]:
        copies = range(1 + self.config.copies * self.train)
        return [self._made(verb, hear, settings, shift, copy=copy) for copy in copies]

    def _made(self, verb: str, make: Make, settings: dict[str, Any], shift: float, *, copy: int = 0) -> Features:
        """Of each recording as it is (copy 0), or of a copy whose pitch is shifted by a draw of its own."""
        c, rate, rows = self.config, self.model.config.mel.sample_rate, [row.utterance for row in self.corpus.rows]

        def of(index: int) -> np.ndarray:
            wav = read_speech(rows[index], rate)
            if shift:
                wav = augment.pitch(wav, rate, shift)
            if copy:
                semitones = np.random.default_rng([self.seed, copy, index]).uniform(-c.semitones, c.semitones)
                wav = augment.pitch(wav, rate, semitones, formants=c.formants)
            return make(self.model.config.fitted(wav, len(self.corpus.rows[index].units), name=rows[index].id))

        how = f"shifted {c.semitones} {c.formants} {self.seed} {copy} {len(rows)}" if copy else ""
        how = f"{how} voice {shift}" if shift else how
        with progress(f"{self.what}: {verb}", sum(row.duration or 0.0 for row in rows), "s") as advance:
            return arrays_of(rows, of, c.cache, settings=settings, how=how, advance=advance)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: data.Key) -> Example:
        epoch, item = key
        index, draw = int(self.items[item]), np.random.default_rng([self.seed, epoch, item])
        kept, units, c = self.kept[self.shifts[item]], self.corpus.rows[index].units, self.model.config
        length = min(len(units), self.size)
        start = int(draw.integers(len(units) - length + 1))
        start -= start % c.aligned  # else mel frames lie up to one before the units that they are of
        first, m = c.mel_frames(start), c.mel_frames(length)
        found = kept.spectra[index].astype(np.float32)
        contours = self.model.contours(kept.f0[index].astype(np.float32), found[:, -1])
        voice = index
        if self.train and draw.random() < self.config.other:
            voice = self.same[index][int(draw.integers(len(self.same[index])))]
        copies, voices = kept.heard[1:] or kept.heard, kept.voices[1:] or kept.voices
        example = Example(
            units=units[start : start + length].astype(np.int64),
            cut=(start > 0, start + length < len(units)),
            f0=contours.f0.numpy()[start : start + length],
            voiced=contours.voiced.numpy()[start : start + length],
            energy=contours.energy.numpy()[first : first + m],
            mel=found[first : first + m, :-1],
            heard=self._window(copies[int(draw.integers(len(copies)))][index], draw),
            voice=self._window(kept.voices[0][voice], draw),
            shifted=self._window(voices[int(draw.integers(len(voices)))][voice], draw),
        )
        if not self.train or self.config.tempo == 1:
            return example
        return at_tempo(example, self.config.tempo ** draw.uniform(-1, 1), c)

    def _window(self, heard: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """In training a stretch of what is heard, if it is long; a vector as it is."""
        if heard.ndim == 2 and self.train:
            longest = round(self.config.heard_seconds * self.model.config.heard_hz)
            start = int(draw.integers(max(1, len(heard) - longest + 1)))
            heard = heard[start : start + longest]
        return heard.astype(np.float32)

    @staticmethod
    def collate(examples: Sequence[Example]) -> FrameBatch:
        """Pads each field behind its rows' ends."""
        padded = {f.name: _padded([getattr(e, f.name) for e in examples]) for f in fields(Example) if f.name != "cut"}
        lengths = {
            f"{name}_lengths" if name != "units" else "lengths": torch.tensor([len(getattr(e, name)) for e in examples])
            for name in ("units", "heard", "voice", "shifted")
        }
        return FrameBatch(cut=torch.tensor([e.cut for e in examples]), **padded, **lengths)


def at_tempo(example: Example, tempo: float, config: FrameConfig) -> Example:
    """The example `tempo` times as fast, its pitch kept: units are dropped or repeated, frames of mels interpolated."""
    n = max(1, round(len(example.units) / tempo))
    steps = (np.arange(n) * len(example.units) // n).astype(np.int64)
    m, heard = config.mel_frames(n), max(1, round(len(example.heard) / tempo))
    return replace(
        example,
        **{name: getattr(example, name)[steps] for name in ("units", "f0", "voiced")},
        energy=_between(example.energy[:, None], m)[:, 0],
        mel=_between(example.mel, m),
        heard=_between(example.heard, heard),
    )


def _between(frames: np.ndarray, n: int) -> np.ndarray:
    """(frames, dim) at `n` places evenly spread over them, each between its two neighbours."""
    at = ((np.arange(n) + 0.5) * len(frames) / n - 0.5).clip(0, len(frames) - 1)
    left = np.minimum(at.astype(np.int64), max(0, len(frames) - 2))
    right, share = np.minimum(left + 1, len(frames) - 1), (at - left)[:, None]
    return ((1 - share) * frames[left] + share * frames[right]).astype(np.float32)


def _padded(arrays: Sequence[np.ndarray]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True)


class Step:
    """One training step; with a judge, it learns first, of the same mels."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, run: Run, batch: FrameBatch) -> dict[str, Tensor]:
        """See the class."""
        losses, mel = run.modules["model"](batch, self.config.weights)
        loss = losses["loss"]
        if self.config.gan.use and run.step >= self.config.gan.start:
            ratio = run.bare["model"].config.ratio
            mask = inside((batch.lengths.double() * ratio + 1e-6).long(), mel.shape[1])
            losses["judge"] = self._teach(run, batch.mel, mel.detach(), mask)
            with run.accelerator.autocast():
                score = run.bare["judge"](mel, mask)
            losses["adversarial"] = _off(score, 1.0, mask)
            loss = loss + self.config.weights.adversarial * losses["adversarial"]
        run.backward(loss)
        run.update()
        return losses | {"loss": loss}

    def _teach(self, run: Run, real: Tensor, fake: Tensor, mask: Tensor) -> Tensor:
        scores = run.modules["judge"](torch.cat([real, fake]), torch.cat([mask, mask]))
        loss = _off(scores[: len(real)], 1.0, mask) + _off(scores[len(real) :], 0.0, mask)
        run.backward(loss, "judge")
        run.update("judge")
        return loss


def _off(scores: Tensor, wanted: float, mask: Tensor) -> Tensor:
    """Mean squared distance of scores (batch, frames) from what is wanted."""
    return ((scores.float() - wanted).square() * mask).sum() / mask.sum()


def others(batch: FrameBatch) -> FrameBatch:
    """The batch with everything heard in other recordings of it: the control of what vectors tell."""
    n = max(1, len(batch.units) // 2)
    heard = [f.name for f in fields(FrameBatch) if f.name.partition("_")[0] in ("heard", "voice", "shifted")]
    return replace(batch, **{name: getattr(batch, name).roll(n, 0) for name in heard})


class Validation:
    """Losses on whole dev utterances, F0 and energy as predicted, and of some with the vectors of other recordings."""

    def __init__(self, config: Config, voices: Voices) -> None:
        total = len(voices)
        count = min(config.data.dev_utterances or total, total)
        chosen = sorted((i * total // count for i in range(count)), key=lambda item: voices.lengths[item])
        groups = np.array_split(chosen, max(1, count // max(2, config.data.batch)))  # none of one: it has no others
        self.batches = [Voices.collate([voices[0, int(item)] for item in some]) for some in groups]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode."""
        frame: Any = model
        totals: dict[str, float] = {}
        frames = sum(int(batch.lengths.sum()) for batch in self.batches)
        for batch in (one.to(frame.device) for one in self.batches):
            share = int(batch.lengths.sum()) / frames
            losses, control = model(batch)[0], model(others(batch))[0]
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + share * float(value)
            for name in ("f0", "durations", "mel"):
                totals[f"{name}_others"] = totals.get(f"{name}_others", 0.0) + share * float(control[name])
        return totals


def _card(config: Config, model: FrameConfig, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    return (
        f"# Conversion of voice and prosody\n\nTokenizer `{model.tokenizer}`, {model.n_units} units at "
        f"{model.rate_hz:g} Hz; mels `{model.mel.fingerprint}`, {model.mel.n_mels} at {model.mel.rate_hz:g} Hz.  "
        f"Trained on `{config.train_manifest}` (its licence is that of this model), validated on "
        f"`{config.dev_manifest}`.\n\n"
        f"## Scores\n\n{scores}\n\nmel: L1 of natural-log mels with predicted prosody and true durations; *_others: "
        "the same with the vectors of other recordings.\n\n## Recipe\n\n"
        f"python recipes/train_vc.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def check(config: Config) -> None:
    """Refuses settings that lack something or say a thing twice."""
    for name in ("train_manifest", "train_units", "dev_manifest", "dev_units"):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
    for name in DERIVED:
        if getattr(config.model, name) != getattr(FrameConfig(), name):
            raise configs.ConfigError(f"model.{name} is read from the data: take it out of the config")
    if config.size not in ("small", "paper"):
        raise configs.ConfigError(f"size {config.size!r}: choose small or paper")
    if config.data.tempo < 1:
        raise configs.ConfigError(f"data.tempo={config.data.tempo}: at least 1, which leaves all as it is")
    if config.size == "paper" and config.model != FrameConfig():
        raise configs.ConfigError("size=paper sets all of model: leave one of them out")
    hearing = (PAPER if config.size == "paper" else config.model).hearing
    if config.data.tempo != 1 and hearing != "mel":
        raise configs.ConfigError("data.tempo stretches what is heard, which only log-mels bear: set model.hearing=mel")
    if config.wav2vec2 and hearing != "wav2vec2":
        raise configs.ConfigError(f"wav2vec2={config.wav2vec2} is heard with by model.hearing=wav2vec2 or size=paper")


def build(config: Config) -> tuple[FrameModel, SpeakerEncoder | None, Voices, Voices]:
    """The model, the speaker encoder if one is given, and both sets."""
    check(config)
    train = data.read_corpus(config.train_manifest, config.train_units)
    dev = data.read_corpus(config.dev_manifest, config.dev_units, tokenizer=train.header.tokenizer)
    h = train.header
    h.check_same(dev.header, what=config.dev_units)
    if h.codebooks != 1:
        raise data.DataError(f"{config.train_units}: {h.codebooks} units a frame; this model takes single units")
    for what, corpus in (("train", train), ("dev", dev)):
        if corpus.missing:
            print(f"{what}: {len(corpus.missing)} without units left out: {corpus.missing[:10]}", file=sys.stderr)
    device = pick_device(config.fit.device)
    speaker = SpeakerEncoder.load(config.speaker, device=device) if config.speaker else None
    settings = replace(
        PAPER if config.size == "paper" else config.model,
        tokenizer=h.tokenizer,
        n_units=h.n_units,
        rate_hz=h.rate_hz,
        speaker_dim=speaker.dim if speaker is not None else 0,
        speaker_encoder=speaker.checksum() if speaker is not None else "",
    )
    model = FrameModel(settings).to(device)
    if config.wav2vec2:
        from unitkit.encoders import load_encoder

        encoder: Any = load_encoder(config.wav2vec2, layer=settings.hearing_layers, engine="plain")
        take_wav2vec2(model.hearing, list(model.encoders.values()), encoder.model)
    sets = [Voices(what, corpus, model, speaker, config=config) for what, corpus in (("train", train), ("dev", dev))]
    return model, speaker, sets[0], sets[1]


def train(config: Config) -> FitResult:
    """Runs the recipe; `config.out` gets the model, and the speaker encoder in `speaker/` where one was given."""
    torch.manual_seed(config.fit.seed)
    model, speaker, voices, dev = build(config)
    print(f"frame model, {n_parameters(model) / 1e6:.2f} M parameters", file=sys.stderr)
    parts = {"model": Part(model, config.optim)}
    if config.gan.use:
        judge = MelJudge(model.config.mel.n_mels, width=config.gan.width, blocks=config.gan.blocks)
        parts["judge"] = Part(judge, config.judge_optim)

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        module.save(folder, card=_card(config, module.config, metrics))
        if speaker is not None:
            speaker.save(folder / "speaker", card=(Path(config.speaker) / "card.md").read_text(encoding="utf-8"))

    return fit(
        parts,
        Step(config),
        batches=data.batches(
            voices,
            config.data.batch,
            collate=Voices.collate,
            workers=config.data.workers,
            seed=config.fit.seed,
            device=config.fit.device,
            lengths=voices.lengths,
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(config, dev),
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

"""Trains a unit vocoder: python recipes/train_vocoder.py [conf.yaml] train_manifest=... key=value ..."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitkit import config as configs
from unitkit import data
from unitkit.models.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    LogMel,
    LossConfig,
    SpectralLoss,
    Verdict,
    feature_loss,
    fool_loss,
    judge_loss,
)
from unitkit.models.vocoder import UnitVocoder, VocoderConfig, n_parameters
from unitkit.soft import SoftHeader, read_soft_header
from unitkit.train import FitConfig, FitResult, OptimConfig, Part, Run, fit
from unitkit.units import check_fingerprint
from unitkit.voices import Voices

LEARNING_RATES = {"istft": 2e-3, "hifigan": 2e-4}  # where optim.lr is 0
DERIVED = (
    *("tokenizer", "rate_hz", "n_units", "codebooks", "speakers", "langs", "f0_stats", "features_dim"),
    *("speaker_vector_dim", "speaker_encoder"),
)


@dataclass(frozen=True)
class DataConfig:
    """How the corpus is cut up."""

    batch: int = 16
    segment_frames: int = 32
    workers: int = 0
    cache_mb: int = 2048  # audio kept in memory
    dev_utterances: int = 32  # validated on, evenly spread over the dev set; 0 = all
    dev_seconds: float = 8.0  # at most this much of each
    names: bool = True  # tell speakers and languages apart by name; false: what is spoken says all, as mels do
    features_train: str = ""  # folders of soft units (unitkit.soft), instead of ids
    features_dev: str = ""
    voices_train: str = ""  # speaker vectors of the utterances (recipes/speaker_vectors.py) instead of speakers' names
    voices_dev: str = ""


@dataclass(frozen=True)
class Config:
    """The recipe's configuration; what the units say about themselves is never written here."""

    train_manifest: str = ""
    train_units: str = ""
    dev_manifest: str = ""
    dev_units: str = ""
    out: str = "exp/vocoder"
    init: str = ""  # model directory to start from
    data: DataConfig = field(default_factory=DataConfig)
    model: VocoderConfig = field(default_factory=VocoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    judges: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.0))  # 0 = what suits the core
    judges_optim: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass(frozen=True)
class Corpora:
    """Training and dev sets, as datasets, and the dev set's shuffled control."""

    train: data.Segments
    dev: data.Segments
    shuffled: list[data.Row]


def read_corpora(config: Config) -> tuple[VocoderConfig, Corpora]:
    """Reads both sets, checks that they belong together, and completes the model's config from them."""
    for name in ("train_manifest", "train_units", "dev_manifest", "dev_units"):
        if not getattr(config, name):
            raise configs.ConfigError(f"{name} is not set: pass {name}=path")
    train = data.read_corpus(config.train_manifest, config.train_units)
    dev = data.read_corpus(config.dev_manifest, config.dev_units, tokenizer=train.header.tokenizer)
    train.header.check_same(dev.header, what=config.dev_units)
    for what, corpus in (("train", train), ("dev", dev)):
        if corpus.missing:
            names = ", ".join(corpus.missing[:10])
            print(f"{what}: {len(corpus.missing)} utterances have no units and are left out: {names}", file=sys.stderr)
    cache = data.AudioCache(config.model.sample_rate, limit_bytes=config.data.cache_mb << 20)
    voices = _voices(config)
    model, prosody = _complete(config, train, cache, voices[0])
    sets = []
    splits = zip((train, dev), (config.data.features_train, config.data.features_dev), voices, strict=True)
    for corpus, features, heard in splits:
        if prosody is not None and corpus is dev:
            prosody = _prosody(config, dev, cache, stats=model.f0_stats)
        sets.append(
            data.Segments(
                corpus,
                cache,
                segment_frames=config.data.segment_frames if corpus is train else 0,
                speakers=model.speakers,
                langs=model.langs,
                prosody=prosody,
                use_f0=model.f0,
                use_energy=model.energy,
                features_dir=features or None,
                voices=heard,
                seed=config.fit.seed,
            )
        )
    return model, Corpora(sets[0], sets[1], data.shuffled_rows(dev, seed=config.fit.seed))


def _prosody(
    config: Config, corpus: data.Corpus, cache: data.AudioCache, *, stats: dict[str, list[float]] | None = None
) -> data.Prosody:
    return data.measure_prosody(
        corpus, cache, hop_samples=config.model.hop, f0=config.model.f0, energy=config.model.energy, stats=stats
    )


def _voices(config: Config) -> tuple[Voices, Voices] | tuple[None, None]:
    """Speaker vectors of both sets, or none."""
    paths = config.data.voices_train, config.data.voices_dev
    if not any(paths):
        return None, None
    if not all(paths):
        raise configs.ConfigError("speaker vectors need both data.voices_train and data.voices_dev")
    train, dev = Voices.load(paths[0]), Voices.load(paths[1])
    dev.check(train.encoder, train.dim, what=paths[1])
    return train, dev


def _complete(
    config: Config, train: data.Corpus, cache: data.AudioCache, voices: Voices | None
) -> tuple[VocoderConfig, data.Prosody | None]:
    """The model's config with all that the training set decides, and the training set's prosody where it is used."""
    header, soft = train.header, _soft_header(config, train)
    model = replace(
        config.model,
        tokenizer=soft.tokenizer if soft else header.tokenizer,
        rate_hz=header.rate_hz,
        n_units=header.n_units,
        codebooks=header.codebooks,
        speakers=train.speakers if config.data.names else (),
        langs=train.langs if config.data.names else (),
        features_dim=soft.dim if soft else 0,
    )
    if voices:
        model = replace(model, speakers=(), speaker_vector_dim=voices.dim, speaker_encoder=voices.encoder)
    if not (model.f0 or model.energy):
        return model, None
    prosody = _prosody(replace(config, model=model), train, cache)
    return replace(model, f0_stats=prosody.stats if model.f0 else {}), prosody


def _soft_header(config: Config, train: data.Corpus) -> SoftHeader | None:
    """What both folders of soft units say of them, where there are any."""
    folders = (config.data.features_train, config.data.features_dev)
    if bool(folders[0]) != bool(folders[1]):
        raise configs.ConfigError("soft units need both data.features_train and data.features_dev")
    if not folders[0]:
        return None
    header, other = (read_soft_header(folder) for folder in folders)
    check_fingerprint(header.tokenizer, other.tokenizer, what=folders[1])
    if abs(header.rate_hz - train.header.rate_hz) > 1e-6:
        raise configs.ConfigError(
            f"{folders[0]} has {header.rate_hz:g} soft units a second, {config.train_units} {train.header.rate_hz:g}"
        )
    return header


def _speak(model: nn.Module, batch: data.Batch) -> tuple[Tensor, Tensor]:
    """Wav (batch, samples) and duration loss of a batch."""
    return model(
        batch.units if batch.features is None else batch.features,
        batch.mask,
        speaker=batch.speaker,
        lang=batch.lang,
        f0=batch.f0,
        energy=batch.energy,
        vector=batch.vector,
        cut=batch.cut,
    )


class VocoderStep:
    """One training step: spectral losses, and from `gan_start` on the judges'."""

    def __init__(self, config: LossConfig, rate: int) -> None:
        self.config = config
        self.spectral = SpectralLoss(config, rate)

    def __call__(self, run: Run, batch: data.Batch) -> dict[str, Tensor]:
        """See the class; the judges learn first, on the same generated audio."""
        c, real = self.config, batch.wav
        fake, durations = _speak(run.modules["model"], batch)
        fake = fake.float()
        logs = self.spectral.to(fake.device)(real, fake) | {"durations": durations}
        loss = c.mel * logs["mel"] + c.stft * logs.get("stft", 0.0) + c.durations * durations
        if c.gan and run.step >= c.gan_start:
            logs["judges"] = self._teach(run, real, fake.detach())
            judges = run.bare["judges"]  # bare: this pass leaves no gradient in the judges to be synchronised
            with run.accelerator.autocast():
                with torch.no_grad():
                    truth = judges(real)
                verdicts = judges(fake)
            logs["adversarial"] = fool_loss(verdicts, kind=c.gan_kind)
            logs["features"] = feature_loss(truth, verdicts)
            loss = loss + c.adversarial * logs["adversarial"] + c.features * logs["features"]
        run.backward(loss)
        run.update()
        return logs | {"loss": loss}

    def _teach(self, run: Run, real: Tensor, fake: Tensor) -> Tensor:
        # One call for both: a wrapped module may run only once before its backward.
        n = len(real)
        verdicts = run.modules["judges"](torch.cat([real, fake]))
        truth: list[Verdict] = [(score[:n], []) for score, _ in verdicts]
        false: list[Verdict] = [(score[n:], []) for score, _ in verdicts]
        loss = judge_loss(truth, false, kind=self.config.gan_kind)
        run.backward(loss, "judges")
        run.update("judges")
        return loss


class Validation:
    """Mel L1 on whole dev utterances, and the same with every utterance's units in random order."""

    def __init__(self, config: Config, corpora: Corpora) -> None:
        dataset = corpora.dev
        limit = int(config.data.dev_seconds * dataset.corpus.header.rate_hz)
        total = len(corpora.dev.corpus.rows)
        count = min(config.data.dev_utterances or total, total)
        chosen = [i * total // count for i in range(count)]
        rows = [(dataset.corpus.rows[i], corpora.shuffled[i]) for i in chosen]
        cut = [(row, other, min(limit, len(row.units))) for row, other in rows]
        self.real = [data.collate([dataset.segment(row, 0, n)]) for row, _, n in cut]
        control = [data.collate([dataset.segment(other, 0, n)]) for _, other, n in cut]
        self.control = [_shuffled_features(batch, seed=config.fit.seed) for batch in control]
        self.mel = LogMel(config.model.sample_rate)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The dev metrics of a model in eval mode."""
        mel, durations = self._measure(model, self.real)
        shuffled, _ = self._measure(model, self.control)
        return {"mel": mel, "mel_shuffled": shuffled, "durations": durations}

    def _measure(self, model: nn.Module, batches: list[data.Batch]) -> tuple[float, float]:
        device = next(model.parameters()).device
        self.mel.to(device)
        errors, durations, frames = 0.0, 0.0, 0
        for batch in (b.to(device) for b in batches):
            wav, loss = _speak(model, batch)
            n = batch.mask.shape[1]
            errors += n * float((self.mel(wav.float()) - self.mel(batch.wav)).abs().mean())
            durations += n * float(loss)
            frames += n
        return errors / frames, durations / frames


def _shuffled_features(batch: data.Batch, *, seed: int) -> data.Batch:
    """The batch with the frames of its features, if it has any, in random order."""
    if batch.features is None:
        return batch
    order = torch.randperm(batch.features.shape[1], generator=torch.Generator().manual_seed(seed))
    return replace(batch, features=batch.features[:, order])


def _card(config: Config, model: VocoderConfig, metrics: Mapping[str, float]) -> str:
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    return (
        f"# Unit vocoder ({model.core})\n\n"
        f"Tokenizer `{model.tokenizer}`, {model.n_units} units x {model.codebooks} at {model.rate_hz:g} Hz, "
        f"{model.sample_rate} Hz audio, speakers: {_who(model)}.\n\n"
        f"Trained on `{config.train_manifest}` (its licence is that of this model), validated on "
        f"`{config.dev_manifest}`.\n\n## Scores\n\n{scores}\n\nmel: L1 of the natural-log mel spectrogram, dev set; "
        f"mel_shuffled: the same with the units in random order.\n\n## Recipe\n\n"
        f"python recipes/train_vocoder.py conf.yaml\n\n```yaml\n{configs.to_yaml(config)}```\n"
    )


def _who(model: VocoderConfig) -> str:
    if model.speaker_vector_dim:
        return f"by vectors of {model.speaker_vector_dim} numbers, speaker encoder `{model.speaker_encoder}`"
    return ", ".join(model.speakers) or "not named"


def _begun(config: Config) -> Config:
    """With `init` the model's settings are those of the model that is there."""
    if not config.init:
        return config
    plain = VocoderConfig()
    bare = replace(UnitVocoder.load(config.init).config, **{name: getattr(plain, name) for name in DERIVED})
    if config.model not in (plain, bare):
        raise configs.ConfigError(f"init={config.init} says all of the model: take the other model settings out")
    return replace(config, model=bare)


def _initial(config: Config, model: VocoderConfig) -> UnitVocoder:
    if not config.init:
        return UnitVocoder(model)
    loaded = UnitVocoder.load(config.init)
    check_fingerprint(loaded.config.tokenizer, model.tokenizer, what=config.train_units)
    if (theirs := loaded.config.speaker_encoder) != model.speaker_encoder:
        raise configs.ConfigError(
            f"{config.init} takes vectors of speaker encoder {theirs!r}, data.voices_train are of "
            f"{model.speaker_encoder!r}: make them with that encoder"
        )
    loaded.unfold()
    return loaded


def learning_rate(config: Config) -> float:
    """The generator's learning rate: as configured, or what suits the core."""
    return config.optim.lr or LEARNING_RATES.get(config.model.core, 2e-4)


def _parts(config: Config, model: UnitVocoder) -> dict[str, Part]:
    parts = {"model": Part(model, replace(config.optim, lr=learning_rate(config)))}
    if config.loss.gan:
        parts["judges"] = Part(Discriminators(config.judges), config.judges_optim)
    return parts


def train(config: Config) -> FitResult:
    """Runs the recipe; the model directory is `config.out`."""
    torch.manual_seed(config.fit.seed)
    config = _begun(config)
    model_config, corpora = read_corpora(config)
    model = _initial(config, model_config)
    print(f"{model_config.core} core, {n_parameters(model) / 1e6:.2f} M parameters", file=sys.stderr)

    def save(module: Any, folder: Path, metrics: Mapping[str, float]) -> None:
        module.save(folder, card=_card(config, module.config, metrics))

    return fit(
        _parts(config, model),
        VocoderStep(config.loss, model_config.sample_rate),
        batches=data.batches(
            corpora.train,
            config.data.batch,
            collate=data.collate,
            seed=config.fit.seed,
            device=config.fit.device,
            workers=config.data.workers,
        ),
        out=config.out,
        config=config.fit,
        save=save,
        validate=Validation(config, corpora),
        monitor="mel",
    )


def main(words: list[str]) -> int:
    """Command line: an optional YAML file, then key=value words; returns the exit code."""
    config = configs.from_words(Config, words)
    derived = [name for name in DERIVED if getattr(config.model, name) != getattr(VocoderConfig(), name)]
    if derived:
        raise configs.ConfigError(f"model.{derived[0]} is read from the training data: take it out of the config")
    result = train(config)
    print(f"{config.out}: {result.step} steps, {result.seconds / 60:.1f} min, {result.metrics}", file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

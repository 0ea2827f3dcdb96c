"""The vocoder recipe on real recordings: it learns, says what it learned from, and resumes with its judges."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from recipe_files import recipe as load_recipe
from safetensors.torch import load_file

from unitkit import audio
from unitkit.config import ConfigError, load
from unitkit.manifest import read_manifest, write_manifest
from unitkit.models.vocoder import UnitVocoder
from unitkit.units import FingerprintError, Units, UnitsError, UnitsHeader, read_units, write_units

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, 40)


def recipe() -> ModuleType:
    if "train_vocoder" not in sys.modules:
        spec = importlib.util.spec_from_file_location("train_vocoder", ROOT / "recipes" / "train_vocoder.py")
        sys.modules["train_vocoder"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["train_vocoder"])
    return sys.modules["train_vocoder"]


def features(wav: np.ndarray) -> np.ndarray:
    """Log-mel frames, one per 20 ms: enough for units that mean something."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, 100), 520)[::320] * np.hanning(520)
    filters = audio.mel_filters(16000, n_fft=520, n_mels=24)
    return np.log(np.abs(np.fft.rfft(frames, axis=1)) @ filters.T + 1e-4)


def cluster(frames: np.ndarray, count: int) -> np.ndarray:
    centres = frames[np.random.default_rng(0).choice(len(frames), count, replace=False)]
    for _ in range(10):
        nearest = ((frames[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.stack([frames[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
    return centres


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Eight shipped prompts with units; the dev set is two of them, so that learning can be seen in seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [u for u in read_manifest(ROOT / "samples" / "en" / "train.jsonl") if 1.0 < u.duration < 4.0][:8]
    heard = {u.id: features(audio.read(u.audio, 16000)) for u in rows}
    centres = cluster(np.concatenate(list(heard.values())), HEADER.n_units)
    paths = {}
    for split, chosen in (("train", rows), ("dev", rows[:2])):
        units = [
            Units(((heard[u.id][:, None] - centres) ** 2).sum(2).argmin(1), 50.0, 40, HEADER.tokenizer, u.id)
            for u in chosen
        ]
        paths |= {f"{split}_manifest": str(folder / f"{split}.jsonl"), f"{split}_units": str(folder / f"{split}.units")}
        write_manifest(paths[f"{split}_manifest"], chosen)
        write_units(paths[f"{split}_units"], HEADER, units)
    return paths


BASE = [
    "fit.device=cpu", "fit.tensorboard=false", "fit.log_every=5", "data.segment_frames=24", "data.batch=8",
    "model.unit_dim=32", "model.duration_dim=16", "optim.lr=5e-3", "fit.ema=0.9",
]  # fmt: skip
CORES = {
    "istft": ["model.istft.dim=64", "model.istft.blocks=2", "model.istft.hidden=128", "model.istft.upsample=1"],
    "hifigan": ["model.core=hifigan", "model.hifigan.channels=32", "model.hifigan.kernels=[3]", "data.batch=4"],
}


def settings(corpus: dict[str, str], out: Path, *words: str) -> list[str]:
    return [f"{k}={v}" for k, v in corpus.items()] + [f"out={out}", *BASE, *words]


@pytest.mark.parametrize(("core", "steps", "falls"), [("istft", 100, 0.55), ("hifigan", 60, 0.7)])
def test_it_learns_and_beats_shuffled_units(corpus, tmp_path, core, steps, falls):
    words = settings(corpus, tmp_path, *CORES[core], f"fit.max_steps={steps}", "fit.validate_every=1000")
    assert recipe().main(words) == 0
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < falls * losses[0]
    dev = rows[-1]
    assert dev["split"] == "dev" and dev["step"] == steps
    assert dev["mel"] < 0.85 * dev["mel_shuffled"]
    model = UnitVocoder.load(tmp_path)
    assert model.config.tokenizer == HEADER.tokenizer and model.config.n_units == 40
    assert model.config.speakers == ("allison",) and model.config.langs == ("en",) and model.config.core == core
    one = next(read_units(corpus["dev_units"]))
    assert len(model.generate([one], speaker="allison")[0]) == one.n_frames * 320
    card = (tmp_path / "card.md").read_text()
    assert HEADER.tokenizer in card and corpus["train_manifest"] in card and f"mel: {dev['mel']:.4g}" in card


def test_mels_are_spoken_whoever_speaks(corpus, tmp_path):
    """Features instead of units: they learn, the control's are in random order, and no name is asked for."""
    words = {k: v for k, v in corpus.items() if k.endswith("manifest")}
    for split in ("train", "dev"):
        mels = tmp_path / split
        assert load_recipe("mels").main([corpus[f"{split}_manifest"], "-o", str(mels), "--n-mels", "32"]) == 0
        words |= {f"{split}_units": str(mels / "units.jsonl"), f"data.features_{split}": str(mels)}
    more = [*CORES["istft"], "data.names=false", "fit.max_steps=80", "fit.validate_every=1000"]
    assert recipe().main(settings(words, tmp_path / "out", *more)) == 0
    dev = [json.loads(row) for row in (tmp_path / "out" / "metrics.jsonl").open()][-1]
    assert dev["mel"] < 0.8 * dev["mel_shuffled"]
    model = UnitVocoder.load(tmp_path / "out")
    assert (model.config.speakers, model.config.langs, model.config.features_dim) == ((), (), 32)
    assert (model.config.tokenizer, model.config.rate_hz) == (audio.Mel(n_mels=32).fingerprint, 80.0)
    (wav,) = model.generate([np.load(next((tmp_path / "dev").rglob("*.npy"))).astype(np.float32)])
    assert len(wav) % 200 == 0


def test_judged_training_resumes_bit_equal(corpus, tmp_path, monkeypatch):
    module = recipe()
    words = (
        *CORES["hifigan"], "model.hifigan.channels=16", "loss.gan=true", "loss.gan_start=1", "loss.stft=1",
        "judges.width=0.0625", "judges.kinds=[mpd,msd,mrd]", "fit.max_steps=4", "fit.save_every=2", "data.batch=2",
        "model.f0=true", "model.energy=true",
    )  # fmt: skip
    monkeypatch.setattr(audio, "f0", lambda wav, rate, *, hop_samples: np.full(len(wav) // hop_samples, 200.0))
    assert module.main(settings(corpus, tmp_path / "straight", *words)) == 0
    normal = module.VocoderStep.__call__

    def dying(self, run, batch):
        if run.step == 3:
            raise RuntimeError("killed")
        return normal(self, run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module.VocoderStep, "__call__", dying)
        with pytest.raises(RuntimeError, match="killed"):
            module.main(settings(corpus, tmp_path / "killed", *words))
    assert module.main(settings(corpus, tmp_path / "killed", *words)) == 0
    files = sorted(p.relative_to(tmp_path / "straight") for p in (tmp_path / "straight").rglob("*.safetensors"))
    assert len(files) == 7
    for name in files:
        a, b = load_file(tmp_path / "straight" / name), load_file(tmp_path / "killed" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    rows = [json.loads(row) for row in (tmp_path / "killed" / "metrics.jsonl").open()]
    last = [row for row in rows if row["split"] == "train"][-1]
    assert {"mel", "stft", "judges", "adversarial", "features", "durations", "loss", "norm_judges"} <= last.keys()
    assert UnitVocoder.load(tmp_path / "killed").config.f0_stats["allison"][0] == pytest.approx(np.log(200))


def test_training_goes_on_from_another_model(corpus, tmp_path):
    module = recipe()
    words = [*CORES["hifigan"], "fit.max_steps=1"]
    module.main(settings(corpus, tmp_path / "a", *words))
    module.main(settings(corpus, tmp_path / "b", *words, f"init={tmp_path / 'a'}", "optim.lr=1e-9"))
    a, b = load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors")
    assert all((a[k] - b[k]).abs().max() < 1e-5 for k in a)
    with pytest.raises(ConfigError, match="says all of the model: take the other model settings out"):
        module.main(settings(corpus, tmp_path / "c", *words, f"init={tmp_path / 'a'}", "model.unit_dim=7"))


def test_configs_that_cannot_be_say_so(corpus, tmp_path):
    module = recipe()
    with pytest.raises(ConfigError, match=r"dev_units is not set: pass dev_units=path"):
        module.main([f"{k}={v}" for k, v in corpus.items() if k != "dev_units"])
    with pytest.raises(ConfigError, match=r"model\.n_units is read from the training data"):
        module.main(settings(corpus, tmp_path, "model.n_units=50"))
    with pytest.raises(ConfigError, match="both data"):
        module.main(settings(corpus, tmp_path, "data.features_train=x"))
    units = list(read_units(corpus["dev_units"]))
    other = str(tmp_path / "other.units")
    write_units(other, replace(HEADER, tokenizer="b" * 12), [replace(u, tokenizer="b" * 12) for u in units])
    with pytest.raises(FingerprintError, match=r"b{12}.*5a5a"):
        module.main(settings(corpus | {"dev_units": other}, tmp_path))
    write_units(other, replace(HEADER, n_units=41), [replace(u, n_units=41) for u in units])
    with pytest.raises((UnitsError, FingerprintError), match="41"):
        module.main(settings(corpus | {"dev_units": other}, tmp_path))


def test_yaml_and_words_reach_the_recipe(corpus, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 5e-4}\nmodel: {core: hifigan}\nfit: {max_steps: 7}\n")
    config = load(recipe().Config, path, ["fit.max_steps=9"])
    assert (config.optim.lr, config.model.core, config.fit.max_steps) == (5e-4, "hifigan", 9)
    assert recipe().learning_rate(load(recipe().Config)) == 2e-3
    assert recipe().learning_rate(load(recipe().Config, None, ["model.core=hifigan"])) == 2e-4
    assert recipe().learning_rate(config) == 5e-4

"""The pre-training recipe on real recordings: every objective, two iterations of HuBERT, resuming, and the alarm."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from reference_ssl import N_UNITS, mfcc_units, recordings
from safetensors.torch import load_file

from unitkit import Tokenizer, audio
from unitkit.config import ConfigError, load
from unitkit.data import DataError
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.models.ssl import dinosr
from unitkit.models.ssl.blocks import IGNORED
from unitkit.units import FingerprintError, Units, UnitsHeader, read_units, write_units

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, N_UNITS)
ENCODER = ["dim=64", "layers=2", "heads=2", "hidden=128", "conv_dims=[16,16,32,32,32,32,32]", "dropout=0"]
BASE = [
    "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.log_every=5", "fit.validate_every=1000",
    "data.batch=6", "data.max_seconds=1.5", "optim.warmup=10",
]  # fmt: skip


def recipe() -> ModuleType:
    if "pretrain" not in sys.modules:
        spec = importlib.util.spec_from_file_location("pretrain", ROOT / "recipes" / "pretrain.py")
        sys.modules["pretrain"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["pretrain"])
    return sys.modules["pretrain"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Twelve short recordings with MFCC units; the dev set is four of them, so that learning is seen in seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for index, wav in enumerate(recordings()):
        audio.write(folder / f"{index}.wav", wav, 16000)
        rows.append(Utterance(f"u{index}", str(folder / f"{index}.wav"), duration=len(wav) / 16000))
    paths = {}
    for split, count in (("train", 12), ("dev", 4)):
        units = [
            Units(ids.numpy(), 50.0, N_UNITS, HEADER.tokenizer, row.id)
            for ids, row in zip(mfcc_units()[:count], rows[:count], strict=True)
        ]
        paths |= {f"{split}_manifest": str(folder / f"{split}.jsonl"), f"{split}_units": str(folder / f"{split}.units")}
        write_manifest(paths[f"{split}_manifest"], rows[:count])
        write_units(paths[f"{split}_units"], HEADER, units)
    return paths


def words(corpus: dict[str, str], out: Path, objective: str, *more: str) -> list[str]:
    data = [f"{name}=[{path}]" if name.endswith("units") else f"{name}={path}" for name, path in corpus.items()]
    key = objective.replace("-", "_")
    encoder = [f"{key}.encoder.{word}" for word in ENCODER] if objective in ("hubert", "dinosr") else []
    return [f"objective={objective}", f"out={out}", *data, *BASE, *encoder, *more]


def log(out: Path, split: str = "train") -> list[dict[str, float]]:
    return [row for row in map(json.loads, (out / "metrics.jsonl").open()) if row["split"] == split]


def test_hubert_learns_and_teaches_its_next_iteration(corpus, tmp_path):
    """MFCC units, then units of its own layer beside the first: two heads."""
    first = tmp_path / "first"
    more = ("hubert.encoder.input_dropout=0", "hubert.encoder.feature_grad=1", "hubert.final_dim=32")
    steps = ("fit.max_steps=100", "optim.lr=2e-3", "optim.schedule=constant", "fit.log_every=10")
    assert recipe().main(words(corpus, first, "hubert", *more, *steps, "hubert.feature_penalty=1")) == 0
    rows, dev = log(first), log(first, "dev")[-1]
    assert rows[-1]["masked"] < 0.75 * rows[0]["masked"]
    assert rows[-1]["accuracy"] > 2 * rows[-1]["chance"] and dev["accuracy"] > 1.5 * dev["chance"]
    assert dev["perplexity"] > 2 and dev["used"] > 0.2
    card = (first / "card.md").read_text()
    assert corpus["train_units"] in card and "objective: hubert" in card
    tokenizer = Tokenizer.fit(corpus["train_manifest"], features=str(first), layer=1, units=8)
    for split in ("train", "dev"):
        manifest = list(read_manifest(corpus[f"{split}_manifest"]))
        write_units(tmp_path / f"{split}.units", tokenizer.header(), tokenizer.encode(manifest))
    both = {
        name: f"{path},{tmp_path / name.removesuffix('_units')}.units" if name.endswith("units") else path
        for name, path in corpus.items()
    }
    assert recipe().main(words(both, tmp_path / "second", "hubert", "fit.max_steps=2")) == 0
    written = load(recipe().masked.HubertConfig, tmp_path / "second" / "objective.yaml")
    assert written.n_units == (N_UNITS, 8) and written.tokenizers == (HEADER.tokenizer, tokenizer.fingerprint)


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("dinosr", ["dinosr.top_layers=2", "dinosr.codes=16"]),
        ("dinosr", ["dinosr.top_layers=2", "dinosr.codes=16", "dinosr.variant=spidr"]),
        ("dinosr", ["dinosr.top_layers=1", "dinosr.codes=16", "dinosr.encoder.layout=wav2vec2-bert"]),
        ("vq-wav2vec", ["vq_wav2vec.dim=32", "vq_wav2vec.codes=16"]),
        ("vq-wav2vec", ["vq_wav2vec.dim=32", "vq_wav2vec.codes=16", "vq_wav2vec.quantizer=gumbel"]),
        ("bert", ["bert.dim=32", "bert.heads=2", "bert.layers=2", "bert.hidden=64", "optim.lr=3e-3"]),
    ],
    ids=["dinosr", "spidr", "dinosr-mels", "vq", "gumbel", "bert"],
)
def test_every_objective_runs(corpus, tmp_path, objective, more):
    assert recipe().main(words(corpus, tmp_path, objective, *more, "fit.max_steps=15", "fit.log_every=1")) == 0
    rows, dev = log(tmp_path), log(tmp_path, "dev")[-1]
    assert {"loss", "accuracy", "chance", "perplexity", "used", "collapsed"} <= rows[-1].keys()
    assert np.mean([row["loss"] for row in rows[-3:]]) < rows[0]["loss"]
    assert dev["perplexity"] >= 1 and 0 < dev["used"] <= 1
    assert (tmp_path / "objective.yaml").is_file() and (tmp_path / "best" / "objective.safetensors").is_file()
    if objective == "dinosr":
        assert Tokenizer.fit(corpus["dev_manifest"], features=str(tmp_path), layer=2, units=4).n_units == 4


@pytest.mark.parametrize("objective", ["hubert", "dinosr", "vq-wav2vec", "bert"])
def test_half_precision(corpus, tmp_path, objective):
    more = {
        "dinosr": ["dinosr.top_layers=2"],
        "vq-wav2vec": ["vq_wav2vec.dim=32"],
        "bert": ["bert.dim=32", "bert.layers=1"],
    }
    small = ["fit.max_steps=2", "fit.precision=bf16", "data.batch=2", "data.max_seconds=0.8"]
    assert recipe().main(words(corpus, tmp_path, objective, *more.get(objective, []), *small)) == 0
    weights = load_file(tmp_path / "objective.safetensors")
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights.values())
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_self_distillation_resumes_bit_equal(corpus, tmp_path, monkeypatch):
    module = recipe()
    more = (
        "dinosr.top_layers=2", "dinosr.codes=8", "dinosr.freeze_step=3", "fit.max_steps=4", "fit.save_every=2",
        "fit.accumulate=2", "data.batch=3", "data.max_seconds=0.8",
    )  # fmt: skip
    assert module.main(words(corpus, tmp_path / "straight", "dinosr", *more)) == 0
    normal = module.PretrainStep.__call__

    def dying(self, run, batch):
        if run.step == 3:
            raise RuntimeError("killed")
        return normal(self, run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module.PretrainStep, "__call__", dying)
        with pytest.raises(RuntimeError, match="killed"):
            module.main(words(corpus, tmp_path / "killed", "dinosr", *more))
    assert module.main(words(corpus, tmp_path / "killed", "dinosr", *more)) == 0
    files = sorted(p.relative_to(tmp_path / "straight") for p in (tmp_path / "straight").rglob("*.safetensors"))
    assert len(files) == 6
    for name in files:
        a, b = load_file(tmp_path / "straight" / name), load_file(tmp_path / "killed" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    assert int(load_file(tmp_path / "killed" / "objective.safetensors")["moved"]) == 3


def test_collapse_is_said_aloud(corpus, tmp_path, capsys, monkeypatch):
    kept = dinosr.OnlineCodebook.nearest
    monkeypatch.setattr(dinosr.OnlineCodebook, "nearest", lambda self, x: torch.zeros_like(kept(self, x)))
    more = ("dinosr.top_layers=1", "dinosr.codes=16", "fit.max_steps=4", "fit.log_every=1", "alarm.grace=2")
    assert recipe().main(words(corpus, tmp_path, "dinosr", *more)) == 0
    said = capsys.readouterr().err
    assert said.count("codes collapse") == 1
    assert "warning: step 2: codes collapse: perplexity 1.0 of codebook 0 is below 1.6 (0.1 of its 16 codes)" in said
    assert log(tmp_path)[-1]["collapsed"] == 1 and log(tmp_path)[-1]["used"] == 1 / 16


def test_crops_are_of_one_length_and_keep_their_units(corpus):
    """Whatever a batch is cut to, frame k of a crop has the unit that starts at its first sample."""
    module = recipe()
    marked = [
        np.repeat(np.arange(60, dtype=np.float32) / 100, 320),
        np.repeat(np.arange(45, dtype=np.float32) / 100, 320),
    ]
    rows = [
        module.Taught(Utterance(str(i), "", duration=len(w) / 16000), ((np.arange(120), 100.0), (np.arange(60), 50.0)))
        for i, w in enumerate(marked)
    ]
    config = module.DataConfig(max_seconds=0.8, min_seconds=0.1)
    crops = module.Crops(rows, config, hop=320, field=400, seed=1)
    crops.cache._kept = {str(i): np.round(w * 32768).astype(np.int16) for i, w in enumerate(marked)}
    assert crops.lengths.tolist() == [40] * len(crops) and len(crops) == 2
    crops.max_frames = 50  # the second recording is shorter now
    starts = set()
    for epoch in range(8):
        wavs, units = crops.collate([crops[epoch, 0], crops[epoch, 1]])
        assert wavs.shape == (2, 43 * 320 + 400) and units.shape == (2, 44, 2)
        for wav, ids in zip(wavs, units, strict=True):
            frames = torch.round(wav[: 44 * 320 : 320] * 100).long()
            assert torch.equal(ids[:, 1], frames) and torch.equal(ids[:, 0], 2 * frames)
            starts.add(int(frames[0]))
    assert len(starts) > 3
    same = [crops[5, 0], crops[5, 0]]
    assert np.array_equal(same[0].wav, same[1].wav) and np.array_equal(same[0].units, same[1].units)


def test_units_that_end_early_teach_nothing_there_and_too_early_is_an_error():
    module = recipe()

    def crop(n_units: int) -> np.ndarray:
        row = module.Taught(Utterance("one", "", duration=1.0), ((np.arange(n_units), 50.0),))
        crops = module.Crops([row], module.DataConfig(), hop=320, field=400, seed=0)
        crops.cache._kept = {"one": np.zeros(16000, np.int16)}
        return crops[0, 0].units[:, 0]

    assert crop(49).tolist() == list(range(49))
    assert crop(46).tolist() == [*range(46), *[IGNORED] * 3]
    with pytest.raises(DataError, match=r"one: its units last 0\.80 s, its audio 0\.98 s or more"):
        crop(40)


def test_configs_that_cannot_be_say_so(corpus, tmp_path):
    module = recipe()

    def refused(match: str, objective: str, *more: str, **changed: str) -> None:
        with pytest.raises((ConfigError, FingerprintError, DataError), match=match):
            module.main(words(corpus | changed, tmp_path, objective, *more))

    refused("objective 'x': choose hubert, dinosr, vq-wav2vec, bert", "x")
    refused("train_units is not set: pass train_units=", "hubert", train_units="")
    refused("hubert.n_units is read from the units", "hubert", "hubert.n_units=[5]")
    refused("size=paper sets all of dinosr", "dinosr", "size=paper", "dinosr.top_layers=1")
    refused("size 'big': choose small or paper", "hubert", "size=big")
    refused("bert reads one unit file", "bert", train_units=f"{corpus['train_units']},{corpus['train_units']}")
    refused("2 train_units but 1 dev_units", "hubert", train_units=f"{corpus['train_units']},{corpus['train_units']}")
    other = str(tmp_path / "other.units")
    header = UnitsHeader("b" * 12, 50.0, N_UNITS)
    write_units(other, header, [Units(u.ids, 50.0, N_UNITS, "b" * 12, u.id) for u in read_units(corpus["dev_units"])])
    refused(r"b{12}", "hubert", dev_units=other)
    refused("none of 12 utterances has units and 9.0 s", "vq-wav2vec", "data.min_seconds=9")


def test_the_paper_sizes_by_name():
    module = recipe()
    for objective, paper in module.PAPERS.items():
        variant = ["objective=dinosr", "dinosr.variant=spidr"] if objective == "spidr" else [f"objective={objective}"]
        assert load(module.Config, None, ["size=paper", *variant]).settings is paper


def test_units_go_with_the_sound_at_any_speed(tmp_path):
    """A ramp tells where a sample was taken from, and a unit that is its frame's number must name the same place."""
    seconds, rate = 6, 16000
    audio.write(tmp_path / "ramp.wav", np.linspace(-0.9, 0.9, seconds * rate, dtype=np.float32), rate)
    row = Utterance("ramp", str(tmp_path / "ramp.wav"), duration=float(seconds))
    taught = recipe().Taught(row, ((np.arange(seconds * 50, dtype=np.int32), 50.0),))
    changes = recipe().Augment(speed=1.0, speed_factor=(0.7, 1.4), pitch=0, reverb=0, noise=0, babble=0, gain=0)
    config = recipe().DataConfig(augment=0.5, changes=changes, max_seconds=2.0)
    pieces = recipe().Crops([taught], config, hop=320, field=400, seed=0)
    factors = []
    for epoch in range(20):
        crop = pieces[epoch, 0]
        assert np.array_equal(crop.wav, pieces[epoch, 0].wav) and len(crop.wav) == 99 * 320 + 400
        frames = np.arange(5, 95)
        places = (crop.wav[frames * 320] + 0.9) / 1.8 * seconds * 50
        assert np.abs(places - crop.units[frames, 0]).max() < 1.1  # a frame, and what rounding down leaves
        factors.append(float(np.polyfit(frames, places, 1)[0]))
    plain = [factor for factor in factors if abs(factor - 1) < 0.01]
    assert 3 <= len(plain) <= 17 and min(factors) < 0.9 and max(factors) > 1.1


def test_augmented_crops_keep_their_units(corpus):
    """All changes but speed leave length and units alone, and do change the wav; dev crops are never changed."""
    _, rows = recipe().read_taught(corpus["train_manifest"], [corpus["train_units"]])
    clean = recipe().DataConfig(max_seconds=1.0)
    noisy = recipe().DataConfig(
        max_seconds=1.0, augment=1.0, changes=recipe().Augment(speed=0.0, noise=1.0, babble=1.0)
    )
    for whole in (False, True):
        ours, plain = (recipe().Crops(rows, one, hop=320, field=400, seed=0, whole=whole) for one in (noisy, clean))
        for item in range(len(ours)):
            one, other = ours[3, item], plain[3, item]
            assert one.wav.shape == other.wav.shape and one.wav.dtype == np.float32
            if whole:
                assert np.array_equal(one.wav, other.wav) and np.array_equal(one.units, other.units)
                continue
            assert len(one.units) == len(other.units)
            assert not np.allclose(one.wav, other.wav, atol=1e-3)


def test_an_encoder_stays_near_its_beginning(corpus, tmp_path):
    """From a first run's encoder, on changed speech: the anchor is logged, on the dev set too, and falls."""
    assert recipe().main(words(corpus, tmp_path / "first", "hubert", "fit.max_steps=2")) == 0
    more = [f"hubert.encoder.start={tmp_path / 'first'}", "hubert.anchor_weight=1", "hubert.encoder.input_dropout=0"]
    more += ["hubert.masked_weight=0.05", "hubert.mask_starts=0", "data.augment=1", "data.changes.noise=1"]
    steps = ["fit.max_steps=40", "fit.log_every=2", "optim.lr=1e-3", "optim.schedule=constant"]
    assert recipe().main(words(corpus, tmp_path / "second", "hubert", *more, *steps)) == 0
    anchors = [row["anchor"] for row in log(tmp_path / "second")]
    assert np.mean(anchors[-3:]) < 0.9 * np.mean(anchors[:3])
    assert log(tmp_path / "second", "dev")[-1]["anchor"] > 0

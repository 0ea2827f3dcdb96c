"""The acoustic model: rows of a batch do not touch, it learns, and it speaks through its vocoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_files import recipe
from typer.testing import CliRunner

import unitkit
from unitkit.audio import Mel
from unitkit.cli import app
from unitkit.config import ConfigError
from unitkit.models.acoustic import PAPER, AcousticConfig, AcousticError, AcousticModel, pad_acoustic
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.soft import SoftHeader, SoftUnits, write_soft, write_soft_header
from unitkit.units import FingerprintError, UnitsHeader, write_units

torch.set_num_threads(1)
MEL, NAME = Mel(hop=160, n_mels=6), "5a5a5a5a5a5a"
SMALL = AcousticConfig(NAME, n_units=7, mel=MEL, dim=12, encoder=16, decoder=20)
HEADER = UnitsHeader(NAME, 50.0, 7)


def model(config: AcousticConfig = SMALL) -> AcousticModel:
    torch.manual_seed(0)
    return AcousticModel(config).eval()


@pytest.mark.parametrize("soft", [False, True])
def test_a_row_of_a_batch_is_what_it_is_alone(soft: bool):
    one, draw = model(replace(SMALL, features_dim=5) if soft else SMALL), np.random.default_rng(0)
    lengths = (9, 1, 14)
    rows = [draw.standard_normal((n, 5)).astype(np.float32) if soft else draw.integers(0, 7, n) for n in lengths]
    together, alone = one.generate(rows), [one.generate([row])[0] for row in rows]
    for mine, other, n in zip(together, alone, lengths, strict=True):
        assert mine.shape == (2 * n, 6)
        np.testing.assert_allclose(mine, other, atol=2e-6)
    mels = [draw.standard_normal((2 * n, 6)).astype(np.float32) for n in lengths]
    losses = [one(pad_acoustic([pair]))["loss"].item() for pair in zip(rows, mels, strict=True)]
    joint = one(pad_acoustic(list(zip(rows, mels, strict=True))))["loss"].item()
    assert joint == pytest.approx(np.mean(losses), abs=1e-5)


def test_its_own_frames_as_the_true_ones_change_nothing():
    """Written frame by frame or scored at once after the same frames: the same mels."""
    one, units = model(), np.array([0, 3, 3, 6, 1])
    (made,) = one.generate([units])
    assert float(one(pad_acoustic([(units, made)]))["loss"]) < 1e-5
    moved = made.copy()
    moved[4] += 1
    assert float(one(pad_acoustic([(units, moved)]))["loss"]) > 1e-3


@pytest.mark.parametrize(("hop", "ratio"), [(320, 1), (160, 2), (64, 5)])
def test_mels_of_any_whole_multiple_of_the_units_rate(hop: int, ratio: int):
    one = model(replace(SMALL, mel=Mel(hop=hop, n_mels=6)))
    assert one.config.ratio == ratio and one.generate([np.arange(4)])[0].shape == (4 * ratio, 6)


def test_mels_of_another_rate_are_refused():
    with pytest.raises(AcousticError, match=r"mels of 80 frames a second for 50 units: choose mel.hop"):
        replace(SMALL, mel=Mel(hop=200))
    with pytest.raises(AcousticError, match="ids, not vectors"):
        model().generate([np.zeros((3, 5), np.float32)])


@pytest.mark.parametrize("features_dim", [0, 256])
def test_the_paper_s_size_takes_a_step(features_dim: int):
    torch.manual_seed(0)
    one = AcousticModel(replace(PAPER, features_dim=features_dim))
    assert sum(p.numel() for p in one.parameters()) / 1e6 == pytest.approx(18.9, abs=0.1)
    units = torch.randn(8, 256).numpy() if features_dim else np.arange(8)
    batch = pad_acoustic([(units, np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32))])
    before = one(batch)["loss"]
    before.backward()
    torch.optim.AdamW(one.parameters(), lr=4e-4).step()
    assert one.eval()(batch)["loss"] < before


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Each unit has a mel of its own, which the next frame's half moves towards."""
    folder, draw = tmp_path_factory.mktemp("acoustic"), np.random.default_rng(0)
    shapes, paths = draw.standard_normal((7, 6)).astype(np.float32), dict[str, str]()
    for split, count in (("train", 24), ("dev", 4)):
        mels, soft, units = folder / f"{split}.mels", folder / f"{split}.soft", []
        write_soft_header(mels, SoftHeader(MEL.fingerprint, MEL.rate_hz, 6))
        write_soft_header(soft, SoftHeader("50f750f750f7", 50.0, 7))
        for number in range(count):
            ids, name = np.repeat(draw.integers(0, 7, 8), 3), f"{split}/{number}"
            units.append(HEADER.units(ids, name))
            mel = np.repeat(shapes[ids], 2, axis=0)
            write_soft(mels, SoftUnits(mel, MEL.rate_hz, MEL.fingerprint, name))
            write_soft(soft, SoftUnits(np.eye(7, dtype=np.float32)[ids], 50.0, "50f750f750f7", name))
        write_units(folder / f"{split}.jsonl", HEADER, units)
        paths |= {
            f"{split}_mels": str(mels), f"{split}_units": str(folder / f"{split}.jsonl"), f"{split}_soft": str(soft),
        }  # fmt: skip
    return paths


def words(corpus: dict[str, str], out: Path, *more: str, soft: bool = False) -> list[str]:
    files = [
        f"{split}_{what}={corpus[f'{split}_{kind}']}"
        for split in ("train", "dev")
        for what, kind in (("mels", "mels"), ("units", "soft" if soft else "units"))
    ]
    fast = ["fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.ema=0.9", "optim.warmup=5"]
    size = ["model.mel.n_mels=6", "model.dim=16", "model.encoder=16", "model.decoder=24", "model.dropout=0.1"]
    return [*files, *fast, *size, "optim.lr=1e-2", "data.batch=8", "data.segment_frames=20", f"out={out}", *more]


@pytest.mark.parametrize("soft", [False, True])
def test_it_learns_and_beats_shuffled_units(corpus, tmp_path, soft: bool):
    config = recipe("train_acoustic").configs.from_words(
        recipe("train_acoustic").Config, words(corpus, tmp_path / "exp", "fit.max_steps=120", soft=soft)
    )
    metrics = recipe("train_acoustic").train(config).metrics
    assert metrics["mel"] < 0.35 < 0.7 < metrics["mel_shuffled"], metrics
    loaded = AcousticModel.load(tmp_path / "exp")
    assert loaded.config.tokenizer == ("50f750f750f7" if soft else NAME)
    assert loaded.config.features_dim == (7 if soft else 0)
    assert "mel_shuffled" in (tmp_path / "exp" / "card.md").read_text()


def test_what_is_missing_or_strange_is_named(corpus, tmp_path):
    module = recipe("train_acoustic")
    with pytest.raises(ConfigError, match="train_mels is not set"):
        module.main([f"train_units={corpus['train_units']}"])
    with pytest.raises(ConfigError, match=r"model\.n_units is read from the units"):
        module.main(words(corpus, tmp_path, "model.n_units=9"))
    with pytest.raises(FingerprintError, match="mels in"):
        module.main(words(corpus, tmp_path, "model.mel.n_fft=512"))
    strange = [word for word in words(corpus, tmp_path) if not word.startswith("dev_units")]
    with pytest.raises(FingerprintError):
        module.main([*strange, f"dev_units={corpus['dev_soft']}"])


@pytest.fixture
def system(tmp_path) -> Path:
    """An untrained acoustic model with its vocoder."""
    model().save(tmp_path / "acoustic")
    voice = VocoderConfig(MEL.fingerprint, MEL.rate_hz, 1, features_dim=6, istft=IstftConfig(dim=8, blocks=1, hidden=8))
    UnitVocoder(voice).save(tmp_path / "acoustic" / "vocoder")
    return tmp_path / "acoustic"


def test_it_speaks_through_its_vocoder(system, tmp_path):
    vocoder, units = unitkit.Vocoder.load(system), HEADER.units(np.array([0, 3, 3, 6, 1]), "a")
    assert vocoder.tokenizer == NAME
    wav = vocoder(units)
    (mel,) = model().generate([units.ids])
    spoken = UnitVocoder.load(system / "vocoder").generate([mel])[0].numpy()
    assert wav.shape == (5 * 320,) and np.array_equal(wav, spoken)
    assert len(vocoder(HEADER.units([], "none"))) == 0
    np.testing.assert_allclose(np.concatenate(list(vocoder.stream(units, seconds=0.04))), wav, atol=1e-5)
    with pytest.raises(ValueError, match="reduced: this vocoder predicts no durations"):
        vocoder(units.dedup()[0])
    with pytest.raises(FingerprintError):
        vocoder(replace(units, tokenizer="bbbbbbbbbbbb"))
    write_units(tmp_path / "u.jsonl", HEADER, [units])
    command = ["vocode", str(tmp_path / "u.jsonl"), "-m", str(system), "-o", str(tmp_path / "said")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert unitkit.read_manifest(tmp_path / "said" / "manifest.jsonl")


def test_a_vocoder_of_other_mels_is_refused(system):
    other = Mel(hop=160, n_mels=6, n_fft=512).fingerprint
    UnitVocoder(VocoderConfig(other, 100.0, 1, features_dim=6, istft=IstftConfig(dim=8, blocks=1, hidden=8))).save(
        system / "vocoder"
    )
    with pytest.raises(FingerprintError, match="the vocoder for"):
        unitkit.Vocoder.load(system)

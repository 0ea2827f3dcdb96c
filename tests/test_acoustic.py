"""The acoustic model: rows of a batch do not touch, it learns, and it speaks through its vocoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from recipe_files import recipe
from typer.testing import CliRunner

import unitkit
from unitkit import audio
from unitkit.audio import Mel
from unitkit.cli import app
from unitkit.config import ConfigError
from unitkit.manifest import Utterance, write_manifest
from unitkit.models.acoustic import (
    PAPER,
    PARALLEL_PAPER,
    AcousticConfig,
    AcousticError,
    AcousticItem,
    AcousticModel,
    pad_acoustic,
)
from unitkit.models.tts import TextToUnits
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.soft import SoftHeader, SoftUnits, write_soft, write_soft_header
from unitkit.units import FingerprintError, UnitsHeader, write_units
from unitkit.voices import Voices, VoicesError

torch.set_num_threads(1)
MEL, NAME = Mel(hop=160, n_mels=6), "5a5a5a5a5a5a"
SMALL = AcousticConfig(tokenizer=NAME, n_units=7, mel=MEL, dim=12, encoder=16, decoder=20)
HEADER = UnitsHeader(NAME, 50.0, 7)
MANY = AcousticConfig(
    kind="parallel", tokenizer=NAME, n_units=7, codebooks=2, langs=("en", "es"), speaker_vector_dim=4,
    speaker_encoder="abc", mel=Mel(hop=200, n_mels=6), dim=16, hidden=24, post=3, post_dim=12,
)  # fmt: skip


def model(config: AcousticConfig = SMALL) -> AcousticModel:
    torch.manual_seed(0)
    return AcousticModel.build(config).eval()


@pytest.mark.parametrize("kind", ["units", "soft", "parallel", "fft", "voices"])
def test_a_row_of_a_batch_is_what_it_is_alone(kind: str):
    config = {
        "soft": replace(SMALL, features_dim=5),
        "parallel": MANY,
        "fft": replace(MANY, blocks="fft", post=0),
        "voices": replace(MANY, kind="recurrent", mel=MEL),
    }.get(kind, SMALL)
    one, draw, lengths = model(config), np.random.default_rng(0), (9, 1, 14)
    for norm in getattr(one, "norms", ()):
        norm.running_mean.normal_()
    shape = (5,) if kind == "soft" else (2,) if config.codebooks == 2 else ()
    rows = [
        draw.standard_normal((n, *shape)).astype(np.float32) if kind == "soft" else draw.integers(0, 7, (n, *shape))
        for n in lengths
    ]
    langs, vectors = (("en", "es", "en"), draw.random((3, 4))) if config.langs else ((), None)
    more = [{} if vectors is None else {"langs": langs[i : i + 1], "vectors": vectors[i : i + 1]} for i in range(3)]
    together = one.generate(rows, langs=langs, vectors=vectors)
    alone = [one.generate([row], **extra)[0] for row, extra in zip(rows, more, strict=True)]
    for mine, other, n in zip(together, alone, lengths, strict=True):
        assert mine.shape == (config.frames(n), 6) and mine.std() > 0
        np.testing.assert_allclose(mine, other, atol=2e-6)
    mels = [draw.standard_normal((config.frames(n), 6)).astype(np.float32) for n in lengths]
    items = [
        AcousticItem(row, mel, i % 2, None if vectors is None else vectors[i].astype(np.float32))
        for i, (row, mel) in enumerate(zip(rows, mels, strict=True))
    ]
    losses = [one(pad_acoustic([item]))["loss"].item() for item in items]
    assert one(pad_acoustic(items))["loss"].item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_its_own_frames_as_the_true_ones_change_nothing():
    """Written frame by frame or scored at once after the same frames: the same mels."""
    one, units = model(), np.array([0, 3, 3, 6, 1])
    (made,) = one.generate([units])
    with torch.inference_mode():
        assert float(one(pad_acoustic([AcousticItem(units, made)]))["loss"]) < 1e-5
        moved = made.copy()
        moved[4] += 1
        assert float(one(pad_acoustic([AcousticItem(units, moved)]))["loss"]) > 1e-3


@pytest.mark.parametrize("kind", ["recurrent", "parallel"])
def test_books_languages_and_voices_are_heard(kind: str):
    one = model(replace(MANY, kind=kind, mel=MEL, dropout=0.0))
    units, voice = np.array([[0, 1], [3, 2], [3, 2], [6, 0]]), np.array([[1.0, 0, 0, 0]])
    (made,) = one.generate([units], langs=("en",), vectors=voice)
    second = units.copy()
    second[1, 1] = 5
    for given, lang, vector in ((second, "en", voice), (units, "es", voice), (units, "en", voice[:, ::-1].copy())):
        (other,) = one.generate([given], langs=(lang,), vectors=vector)
        assert np.abs(other - made).max() > 1e-3
    with pytest.raises(AcousticError, match="many voices: give speaker vectors"):
        one.generate([units], langs=("en",))
    with pytest.raises(AcousticError, match="en, es: say which language each is in"):
        one.generate([units], vectors=voice)
    with pytest.raises(AcousticError, match="language 'de': this model knows en, es"):
        one.generate([units], langs=("de",), vectors=voice)
    with pytest.raises(AcousticError, match="ids of 2 codebooks"):
        one.generate([units[:, 0]], langs=("en",), vectors=voice)


@pytest.mark.parametrize(("hop", "ratio"), [(320, 1), (160, 2), (64, 5)])
def test_mels_of_any_whole_multiple_of_the_units_rate(hop: int, ratio: int):
    one = model(replace(SMALL, mel=Mel(hop=hop, n_mels=6)))
    assert one.config.ratio == ratio and one.generate([np.arange(4)])[0].shape == (4 * ratio, 6)


@pytest.mark.parametrize(("hop", "n", "frames"), [(200, 10, 16), (200, 9, 14), (200, 1, 1), (160, 3, 6), (320, 3, 3)])
def test_mels_of_other_multiples_are_for_the_parallel_one(hop: int, n: int, frames: int):
    one = model(replace(MANY, mel=Mel(hop=hop, n_mels=6), langs=(), speaker_vector_dim=0))
    assert one.generate([np.zeros((n, 2), int)])[0].shape == (frames, 6)
    assert [len(mel) for mel in one.generate([np.zeros((0, 2), int), np.zeros((n, 2), int)])] == [0, frames]
    assert one.generate([np.zeros((0, 2), int)])[0].shape == (0, 6)


def test_mels_of_another_rate_are_refused():
    with pytest.raises(AcousticError, match=r"mels of 80 frames a second for 50 units: choose mel.hop"):
        replace(SMALL, mel=Mel(hop=200))
    for strange, words in (
        ({"kind": "both"}, "kind 'both': known are recurrent, parallel"),
        ({"blocks": "x"}, "blocks 'x': known are conv, fft"),
        ({"kernel": 4}, "kernel 4 is not an odd number"),
        ({"layers": 0}, "layers 0: at least 1"),
        ({"features_dim": 5, "codebooks": 2}, "soft units have no codebooks"),
    ):
        with pytest.raises(AcousticError, match=words):
            replace(SMALL, **strange)
    with pytest.raises(AcousticError, match="ids, not vectors"):
        model().generate([np.zeros((3, 5), np.float32)])


@pytest.mark.parametrize("features_dim", [0, 256])
def test_the_paper_s_size_takes_a_step(features_dim: int):
    torch.manual_seed(0)
    one = AcousticModel.build(replace(PAPER, features_dim=features_dim))
    assert sum(p.numel() for p in one.parameters()) / 1e6 == pytest.approx(18.9, abs=0.1)
    units = torch.randn(8, 256).numpy() if features_dim else np.arange(8)
    batch = pad_acoustic([AcousticItem(units, np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32))])
    before = one(batch)["loss"]
    before.backward()
    torch.optim.AdamW(one.parameters(), lr=4e-4).step()
    assert one.eval()(batch)["loss"] < before


def test_vec2mel_of_the_paper_takes_a_step():
    torch.manual_seed(0)
    one = AcousticModel.build(replace(PARALLEL_PAPER, langs=("en", "es"), speaker_vector_dim=192, dropout=0.0))
    draw = np.random.default_rng(0)
    mel, vector = draw.standard_normal((16, 80)).astype(np.float32), draw.random(192).astype(np.float32)
    batch = pad_acoustic([AcousticItem(draw.integers(0, 320, (10, 2)), mel, 1, vector)])
    before = one(batch)["loss"]
    before.backward()
    torch.optim.Adam(one.parameters(), lr=1e-4).step()
    assert one(batch)["loss"] < before and one.eval().generate(
        [np.zeros((5, 2), int)], langs=["es"], vectors=vector[None]
    )


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


SETTINGS = [
    *(
        "fit.device=cpu",
        "fit.precision=fp32",
        "fit.tensorboard=false",
        "fit.ema=0.9",
        "optim.warmup=5",
        "optim.lr=1e-2",
    ),
    *("data.batch=8", "data.segment_frames=20", "model.mel.n_mels=6", "model.dim=16", "model.encoder=16"),
    *("model.decoder=24", "model.dropout=0.1"),
]


def words(corpus: dict[str, str], out: Path, *more: str, soft: bool = False) -> list[str]:
    files = [
        f"{split}_{what}={corpus[f'{split}_{kind}']}"
        for split in ("train", "dev")
        for what, kind in (("mels", "mels"), ("units", "soft" if soft else "units"))
    ]
    return [*files, *SETTINGS, f"out={out}", *more]


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


def test_voices_and_languages_are_learned(tmp_path):
    """The mel of a unit is that of its voice, moved by its language; units of two books, at 80 Hz."""
    draw, header = np.random.default_rng(0), UnitsHeader(NAME, 50.0, 5, 2)
    mel, shapes = Mel(hop=200, n_mels=6), draw.standard_normal((2, 2, 5, 6)).astype(np.float32)
    words = ["model.kind=parallel", "model.mel.hop=200", "model.post_dim=16", "model.post=3", "model.kernel=3"]
    for split, count in (("train", 40), ("dev", 8)):
        write_soft_header(tmp_path / f"{split}.mels", SoftHeader(mel.fingerprint, mel.rate_hz, 6))
        units, rows, vectors = [], [], {}
        for number in range(count):
            ids, name, who, lang = (
                np.repeat(draw.integers(0, 5, (6, 2)), 5, axis=0),
                f"{number}",
                number % 2,
                number // 2 % 2,
            )
            frames = np.repeat(shapes[who, 0][ids[:, 0]] + shapes[who, 1][ids[:, 1]], 8, axis=0)[::5] + (0.5 - lang)
            write_soft(tmp_path / f"{split}.mels", SoftUnits(frames, mel.rate_hz, mel.fingerprint, name))
            units.append(header.units(ids, name))
            rows.append(Utterance(name, f"{name}.wav", lang=("en", "es")[lang]))
            vectors[name] = np.eye(4)[who]
        del vectors[f"{count - 1}"]  # left out, and said so
        write_units(tmp_path / f"{split}.jsonl", header, units)
        write_manifest(tmp_path / f"{split}.manifest.jsonl", rows)
        Voices.of(vectors, encoder="abc").save(tmp_path / f"{split}.safetensors")
        words += [f"{split}_units={tmp_path}/{split}.jsonl", f"{split}_mels={tmp_path}/{split}.mels"]
        words += [
            f"{split}_manifest={tmp_path}/{split}.manifest.jsonl",
            f"voices_{split}={tmp_path}/{split}.safetensors",
        ]
    words += [*SETTINGS, "fit.max_steps=200", f"out={tmp_path / 'exp'}"]
    module = recipe("train_acoustic")
    metrics = module.train(module.configs.from_words(module.Config, words)).metrics
    assert metrics["mel"] < 0.5 < 1.0 < metrics["mel_shuffled"], metrics
    loaded = AcousticModel.load(tmp_path / "exp").config
    assert (loaded.codebooks, loaded.langs, loaded.speaker_vector_dim, loaded.speaker_encoder) == (
        2,
        ("en", "es"),
        4,
        "abc",
    )
    with pytest.raises(ConfigError, match="voices_train and voices_dev: both or neither"):
        module.main([word for word in words if not word.startswith("voices_dev")])
    Voices.of({"0": np.ones(4)}, encoder="other").save(tmp_path / "dev.safetensors")
    with pytest.raises(VoicesError, match="other"):
        module.main(words)


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
    with pytest.raises(ValueError, match="nobody"):
        vocoder(units, speaker="nobody")
    with pytest.raises(ValueError, match="reduced: this vocoder predicts no durations"):
        vocoder(units.dedup()[0])
    with pytest.raises(FingerprintError):
        vocoder(replace(units, tokenizer="bbbbbbbbbbbb"))
    write_units(tmp_path / "u.jsonl", HEADER, [units])
    command = ["vocode", str(tmp_path / "u.jsonl"), "-m", str(system), "-o", str(tmp_path / "said")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert unitkit.read_manifest(tmp_path / "said" / "manifest.jsonl")


def test_voices_speak_by_mels(system, tmp_path):
    """Speech from text and unit files through an acoustic model of many voices, whose vocoder knows mels alone."""
    ear = tiny_models.encoder()
    facts = {"speaker_vector_dim": ear.dim, "speaker_encoder": ear.checksum(), "langs": ("en", "es")}
    text = TextToUnits.load(tiny_models.tts(tmp_path / "tts", HEADER)).config
    model(replace(MANY, codebooks=1, mel=MEL, **facts)).save(system)
    tts = unitkit.TTS.load(tmp_path / "tts", vocoder=system, device="cpu")
    assert tts.vocoder.tokenizer == text.tokenizer and tts.takes_vectors and tts.speakers == ("bob", "ann", "cid")
    said, other = tts.say([tts.line("a bad cab", tts.voice(name), language="en") for name in ("bob", "ann")])
    assert len(said.wav) == len(said.units) * 320 and not np.array_equal(said.wav, other.wav)
    (mel,) = tts.vocoder.acoustic.generate([said.units.ids], langs=["en"], vectors=tts.voices["bob"][None])
    assert np.array_equal(said.wav, tts.vocoder.model.generate([mel])[0].numpy())
    rows = [Utterance("a", "a.wav", speaker="ann", lang="es"), Utterance("b", "b.wav", speaker="bob", lang="en")]
    write_manifest(tmp_path / "m.jsonl", rows)
    write_units(tmp_path / "u.jsonl", HEADER, [HEADER.units([1, 2, 3], name) for name in "ab"])
    command = ["vocode", str(tmp_path / "u.jsonl"), "-m", str(system), "-o", str(tmp_path / "said")]
    command += ["--like", str(tmp_path / "m.jsonl")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code and "speaker vectors" in str(refused.exception or refused.output)
    done = CliRunner().invoke(app, [*command, "--voices", str(tmp_path / "tts" / "voices.safetensors")])
    assert done.exit_code == 0, done.output
    spoken = {row.id: row.audio for row in unitkit.read_manifest(tmp_path / "said" / "manifest.jsonl")}
    want = tts.vocoder(HEADER.units([1, 2, 3], "a"), lang="es", vector=tts.voices["ann"])
    np.testing.assert_allclose(audio.read(spoken["a"], 16000), want, atol=2e-4)


def test_a_vocoder_of_other_mels_is_refused(system):
    other = Mel(hop=160, n_mels=6, n_fft=512).fingerprint
    UnitVocoder(VocoderConfig(other, 100.0, 1, features_dim=6, istft=IstftConfig(dim=8, blocks=1, hidden=8))).save(
        system / "vocoder"
    )
    with pytest.raises(FingerprintError, match="the vocoder for"):
        unitkit.Vocoder.load(system)


@pytest.mark.parametrize("more", [{"speakers": ("ann", "bob")}, {"f0": True}, {"speaker_vector_dim": 4}])
def test_a_vocoder_that_wants_more_than_mels_is_refused(system, more):
    voice = VocoderConfig(MEL.fingerprint, MEL.rate_hz, 1, features_dim=6, istft=IstftConfig(dim=8, blocks=1, hidden=8))
    UnitVocoder(replace(voice, **more)).save(system / "vocoder")
    with pytest.raises(ValueError, match="wants more than mels: train one with data.names=false"):
        unitkit.Vocoder.load(system)

"""The speech normaliser from end to end: two voices of tones, one read as the other; and the recipes' manners."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_files import recipe
from safetensors.torch import load_file

from unitkit import audio
from unitkit.config import ConfigError, load
from unitkit.data import DataError
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.models.ctc import CtcConfig, CtcError, CtcModel, reduced
from unitkit.models.listen import Listener
from unitkit.units import FingerprintError, Units, UnitsHeader, read_units, write_units

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
N_UNITS, HOP, RATE = 8, 320, 16000
HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, N_UNITS)
VOICES = {"ann": 1.0, "bob": 1.35}  # how high they speak


def tone(word: int, frames: int, height: float) -> np.ndarray:
    """A word is two tones at once."""
    time = np.arange(frames * HOP) / RATE
    pitches = (300 + 90 * word, 1200 + 230 * (word * 3 % N_UNITS))
    return sum(0.2 * np.sin(2 * np.pi * height * hz * time) for hz in pitches)


def say(words: np.ndarray, voice: str, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Wav and frame-level units of a sentence; bob's own units are others than ann's for the same words."""
    frames = draw.integers(4, 8, len(words))
    wav = np.concatenate([tone(w, n, VOICES[voice]) for w, n in zip(words, frames, strict=True)])
    wav = np.concatenate([wav, np.zeros(80)]) + 0.005 * draw.standard_normal(len(wav) + 80)
    return wav.astype(np.float32), np.repeat(words if voice == "ann" else (words + 3) % N_UNITS, frames)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Sentences that both voices say; ann's units teach.  The dev set has other sentences."""
    folder, draw = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    paths = {}
    for split, count in (("train", 40), ("dev", 8)):
        rows: list[Utterance] = []
        units: dict[str, list[Units]] = {"own": [], "units": []}
        for number in range(count):
            words = reduced(draw.integers(0, N_UNITS, 8))
            text, taught = " ".join("abcdefgh"[word] for word in words), None
            for voice in VOICES:
                wav, ids = say(words, voice, draw)
                name, path = f"{split}/{voice}/{number}", folder / "wav" / f"{split}-{voice}-{number}.wav"
                path.parent.mkdir(exist_ok=True)
                audio.write(path, wav, RATE)
                rows.append(Utterance(name, str(path), len(wav) / RATE, None, voice, "en", text))
                taught = ids if taught is None else taught  # ann's, who comes first
                units["own"].append(HEADER.units(ids, name))
                units["units"].append(HEADER.units(taught, name))
        paths[f"{split}_manifest"] = str(folder / f"{split}.jsonl")
        write_manifest(paths[f"{split}_manifest"], rows)
        for kind, found in units.items():
            paths[f"{split}_{kind}"] = str(folder / f"{split}.{kind}")
            write_units(paths[f"{split}_{kind}"], HEADER, found)
    paths["cache"] = str(folder / "features")
    return paths


BASE = [
    "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.log_every=20", "fit.validate_every=1000",
    "model.dim=48", "model.layers=1", "model.hidden=96", "model.dropout=0", "data.masks.seconds=0.1", "optim.lr=5e-3",
    "optim.warmup=10", "fit.ema=0.9",
]  # fmt: skip


def words(corpus: dict[str, str], out: Path, *more: str) -> list[str]:
    """The recipe's arguments."""
    names = ("train_manifest", "train_units", "dev_manifest", "dev_units")
    return [f"{name}={corpus[name]}" for name in names] + [f"out={out}", f"data.cache={corpus['cache']}", *BASE, *more]


@pytest.fixture(scope="module")
def normaliser(corpus, tmp_path_factory) -> Path:
    """A trained normaliser."""
    out = tmp_path_factory.mktemp("normaliser") / "model"
    assert recipe("train_ctc").main(words(corpus, out, "fit.max_steps=70")) == 0
    return out


def test_the_other_voice_is_read_as_the_reference(corpus, normaliser, tmp_path, capsys):
    out = tmp_path / "deep" / "norm.jsonl"
    arguments = [str(normaliser), corpus["dev_manifest"], "-o", str(out), "--device", "cpu"]
    assert (
        recipe("normalise").main([*arguments, "--reference", corpus["dev_units"], "--before", corpus["dev_own"]]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    before, after = (float(line.split(":")[1].split("%")[0]) for line in lines[:2])
    assert before > 80 and after < 25, lines
    assert lines[2].startswith("uer|tokenizer:5a5a5a5a5a5a|K:8") and lines[3].startswith("left out: 8 utterances of")
    assert "8 utterances" in lines[0]

    model, listener = CtcModel.load(normaliser), Listener.load(normaliser / "listener")
    rows = {u.id: u for u in read_units(out, tokenizer=HEADER.tokenizer)}
    assert list(rows) == [row.id for row in read_manifest(corpus["dev_manifest"])]
    for row in read_manifest(corpus["dev_manifest"]):
        features = listener(audio.read(row.audio, RATE))
        assert rows[row.id].n_frames == len(features)
        assert np.array_equal(rows[row.id].dedup()[0].ids, model.read(model.greedy([features])[0]))
    assert [p.name for p in out.parent.iterdir()] == ["norm.jsonl"]


def test_what_training_leaves(corpus, normaliser):
    config = load(CtcConfig, normaliser / "config.yaml")
    assert (config.tokenizer, config.n_units, config.rate_hz) == ("5a5a5a5a5a5a", N_UNITS, 50.0)
    assert config.features_hz == 50.0 and config.features_dim == Listener.load(normaliser / "listener").dim
    card = (normaliser / "card.md").read_text()
    assert corpus["train_manifest"] in card and "`5a5a5a5a5a5a`" in card and "- uer: " in card
    dev = [json.loads(line) for line in (normaliser / "metrics.jsonl").read_text().splitlines()][-1]
    assert dev["split"] == "dev" and dev["uer"] < 25 and 0 < dev["blank"] < 1
    assert CtcModel.load(normaliser / "best").config == config and (normaliser / "best" / "listener").is_dir()


def test_a_stopped_run_goes_on(corpus, normaliser, tmp_path, monkeypatch, capsys):
    """The second run reads only what the first did not; another model or manifest starts anew."""
    module, heard = recipe("normalise"), []
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    arguments = [str(normaliser), corpus["dev_manifest"], "--device", "cpu", "-o"]
    assert module.main([*arguments, str(whole)]) == 0
    read = module.read_speech

    def dies(row: Utterance, rate: int) -> np.ndarray:
        heard.append(row.id)
        if len(heard) == 6:
            raise KeyboardInterrupt
        return read(row, rate)

    monkeypatch.setattr(module, "read_speech", dies)
    with pytest.raises(KeyboardInterrupt):
        module.main([*arguments, str(out)])
    assert not out.exists() and len(heard) == 6
    work = module.work_of(normaliser, Path(corpus["dev_manifest"]))
    assert work != module.work_of(normaliser, Path(corpus["train_manifest"]))
    assert work != module.work_of(_changed(normaliser, tmp_path / "other"), Path(corpus["dev_manifest"]))
    assert module.main([*arguments, str(out)]) == 0
    assert len(heard) == 6 + 11 and heard[5] == heard[6]
    assert out.read_bytes() == whole.read_bytes()


def _changed(normaliser: Path, folder: Path) -> Path:
    model = CtcModel.load(normaliser)
    with torch.no_grad():
        model.head.bias += 1e-3
    model.save(folder)
    Listener.load(normaliser / "listener").save(folder / "listener")
    return folder


def test_what_cannot_be_read_is_named_and_left_out(corpus, normaliser, tmp_path, capsys):
    row = next(read_manifest(corpus["dev_manifest"]))
    audio.write(tmp_path / "short.wav", np.zeros(100, np.float32), RATE)
    rows = [Utterance("gone", str(tmp_path / "gone.wav")), row, Utterance("short", str(tmp_path / "short.wav"))]
    write_manifest(tmp_path / "m.jsonl", rows)
    assert recipe("normalise").main([str(normaliser), str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "left out: gone: " in told and "left out: short: wav of 100 samples is too short" in told
    assert "1 of 3 utterances" in told and [u.id for u in read_units(tmp_path / "out")] == [row.id]


def test_where_nothing_is_read_the_row_is_empty(corpus, normaliser, tmp_path, capsys):
    model = CtcModel.load(normaliser)
    with torch.no_grad():
        model.head.bias[model.blank] = 1e4
    model.save(tmp_path / "mute")
    Listener.load(normaliser / "listener").save(tmp_path / "mute" / "listener")
    out, reference, own = tmp_path / "out", corpus["dev_units"], corpus["dev_own"]
    words = [str(tmp_path / "mute"), corpus["dev_manifest"], "-o", str(out), "--reference", reference, "--before", own]
    assert recipe("normalise").main(words) == 0
    assert len(list(read_units(out))) == 16 and not any(len(units) for units in read_units(out))
    told = capsys.readouterr()
    assert "dev/ann/0: nothing but blanks was read; its row is empty" in told.err
    assert "UER after : 100.0 % [100.0, 100.0], 8 utterances" in told.out  # all that the reference has is missing


def test_a_report_needs_another_speaker_and_both_files(corpus, normaliser, tmp_path, capsys):
    module = recipe("normalise")
    with pytest.raises(ValueError, match="share no utterance of another speaker"):
        module.report(Path(corpus["dev_units"]), Path(corpus["dev_own"]), Path(corpus["dev_units"]))
    with pytest.raises(SystemExit):
        module.main([str(normaliser), corpus["dev_manifest"], "-o", "x", "--before", corpus["dev_own"]])
    assert "--reference and --before go together" in capsys.readouterr().err


def test_resuming_is_bit_for_bit(corpus, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    steps = ["model.dim=16", "data.batch=4", "fit.save_every=1000", "optim.schedule=constant"]
    module = recipe("train_ctc")
    assert module.main(words(corpus, once, *steps, "fit.max_steps=6")) == 0
    for count in (3, 6):
        assert module.main(words(corpus, twice, *steps, f"fit.max_steps={count}")) == 0
    for name, value in load_file(once / "model.safetensors").items():
        assert torch.equal(value, load_file(twice / "model.safetensors")[name]), name


def test_starting_from_a_model(corpus, normaliser, tmp_path, capsys):
    """The start is that of the given model: after one tiny step the error rate is still low."""
    module = recipe("train_ctc")
    steps = [f"init={normaliser}", "fit.max_steps=1", "optim.lr=1e-6", "optim.warmup=0"]
    result = module.train(load(module.Config, None, words(corpus, tmp_path / "a", *steps)))
    assert result.metrics["uer"] < 25
    assert "taken whole" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="brings its features with it: leave features and layer out"):
        module.main(words(corpus, tmp_path / "b", *steps, "features=mfcc"))


def test_letters_from_texts(corpus, normaliser, tmp_path):
    module = recipe("train_ctc")
    more = ["model.targets=text", "train_units=''", "dev_units=''", "fit.max_steps=3", "data.batch=4"]
    assert module.main(words(corpus, tmp_path / "text", *more)) == 0
    model = CtcModel.load(tmp_path / "text")
    assert model.config.letters == " abcdefgh" and model.config.tokenizer == ""
    assert "letters (' abcdefgh')" in (tmp_path / "text" / "card.md").read_text()
    with pytest.raises(CtcError, match="writes text, not units"):
        recipe("normalise").main([str(tmp_path / "text"), corpus["dev_manifest"], "-o", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="leave train_units out"):
        module.main(words(corpus, tmp_path / "x", "model.targets=text"))


def test_utterances_too_long_or_short_for_their_targets_are_left_out(corpus, capsys):
    module, listener = recipe("train_ctc"), Listener.make("logmel")
    config = load(module.Config, None, [f"data.cache={corpus['cache']}"])
    rows = list(read_manifest(corpus["dev_manifest"]))[:3]
    taught = [module.Taught(row, np.arange(n) % N_UNITS) for row, n in zip(rows, (5, 999, 5), strict=True)]
    assert module.Heard("train", taught, listener, config=config).items == [0, 2]
    assert "1 utterances are too short to say so and are left out: dev/bob/0" in capsys.readouterr().err
    assert len(module.Heard("dev", taught, listener, config=config)) == 3
    brief = load(module.Config, None, [f"data.cache={corpus['cache']}", "data.max_seconds=0.1"])
    with pytest.raises(DataError, match="train: none of 3 utterances"):
        module.Heard("train", taught, listener, config=brief)
    assert "3 utterances are longer than 0.1 s" in capsys.readouterr().err


def test_training_examples_are_changed_and_masked_the_same_way_every_time(corpus, tmp_path):
    module, listener = recipe("train_ctc"), Listener.make("logmel")
    keys = [f"data.cache={tmp_path}", "data.copies=1", "data.changes.speed=1", "data.changes.speed_factor=[0.8,0.8]"]
    config = load(module.Config, None, keys)
    taught = [module.Taught(row, np.arange(3)) for row in list(read_manifest(corpus["dev_manifest"]))[:2]]
    train, dev = (module.Heard(what, taught, listener, config=config) for what in ("train", "dev"))
    drawn = [train[epoch, 1][0] for epoch in range(12)]
    clean = dev[0, 1][0]
    assert all(torch.equal(train[epoch, 1][0], one) for epoch, one in enumerate(drawn))
    assert {len(one) > 1.2 * len(clean) for one in drawn} == {True, False}  # the slow copy, and the recording
    assert any(len(one) == len(clean) and not torch.equal(one, clean) for one in drawn)  # masked
    assert torch.equal(dev[1, 1][0], clean)
    assert torch.allclose(clean, listener(audio.read(taught[1].utterance.audio, RATE)), atol=1e-2)


@pytest.mark.parametrize(
    ("word", "error", "text"),
    [
        ("dev_units=''", ConfigError, "dev_units is not set: pass dev_units=path"),
        ("model.n_units=5", ConfigError, "model.n_units is read from the data"),
        ("features=logmel@100", CtcError, r"at 100 Hz with stride 1 cannot give units at 50 Hz: set model\.stride=2"),
        ("model.kernal=3", ConfigError, r"unknown key 'model\.kernal'"),
    ],
)
def test_refused(corpus, tmp_path, word, error, text):
    with pytest.raises(error, match=text):
        recipe("train_ctc").main(words(corpus, tmp_path, word))


def test_units_of_another_tokenizer_or_of_several_codebooks_are_refused(corpus, tmp_path):
    rows = [row.id for row in read_manifest(corpus["dev_manifest"])]
    for name, header, shape in (
        ("other", UnitsHeader("0b0b0b0b0b0b", 50.0, 8), 9),
        ("two", UnitsHeader("22", 50.0, 8, 2), (9, 2)),
    ):
        write_units(tmp_path / name, header, [Units(np.ones(shape, int), 50.0, 8, header.tokenizer, id) for id in rows])
    module = recipe("train_ctc")
    with pytest.raises(FingerprintError, match="0b0b0b0b0b0b"):
        module.main(words(corpus, tmp_path / "out", f"dev_units={tmp_path / 'other'}"))
    both = [
        f"{split}_{what}={path}"
        for split in ("train", "dev")
        for what, path in (("units", tmp_path / "two"), ("manifest", corpus["dev_manifest"]))
    ]
    with pytest.raises(DataError, match="2 units a frame"):
        module.main(words(corpus, tmp_path / "out", *both))

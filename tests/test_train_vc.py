"""The trainer of conversion on made speech: two voices that move differently, told apart by ear; resuming; refusals."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_files import recipe
from safetensors.torch import load_file

from unitkit import audio, augment
from unitkit.config import ConfigError, load
from unitkit.data import DataError
from unitkit.features import FeaturesError
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.models.frame import PAPER, FrameConfig, FrameModel
from unitkit.models.speaker import SpeakerConfig, SpeakerEncoder, SpeakerNet
from unitkit.units import FingerprintError, Units, UnitsHeader, read_units, write_units

torch.set_num_threads(1)
N_UNITS, HOP, RATE = 6, 320, 16000
HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, N_UNITS)
VOICES = {"ann": (190.0, 2.0, 1.0), "bob": (110.0, -2.0, 0.6)}  # height, semitones a unit, how bright


def say(words: np.ndarray, voice: str, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Wav and units: harmonics with a peak that the unit says; ann's F0 rises with the unit's number, bob's falls."""
    height, step, bright = VOICES[voice]
    frames = draw.integers(3, 7, len(words)) + (voice == "bob") * 3  # bob is slow
    units = np.repeat(words, frames)
    hertz = np.repeat(height * 2 ** (step * (units - (N_UNITS - 1) / 2) / 12), HOP)
    phase, peak = 2 * np.pi * np.cumsum(hertz) / RATE, np.repeat(500 + 350.0 * units, HOP)
    wav = sum(
        np.sin(k * phase) * np.exp(-(((k * hertz - peak) / 400) ** 2)) + bright * 0.3 / k * np.sin(k * phase)
        for k in range(1, 18)
    )
    return (0.1 * wav + 0.002 * draw.standard_normal(len(wav))).astype(np.float32), units


def tracked(wav: np.ndarray, rate: int, *, hop_samples: int) -> np.ndarray:
    """F0 by autocorrelation, in place of the tracker that is an extra."""
    padded = np.pad(wav, 512)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[hop_samples // 2 :: hop_samples][
        : len(wav) // hop_samples
    ]
    power = np.abs(np.fft.rfft(frames * np.hanning(1024), 2048, axis=1)) ** 2
    correlation = np.fft.irfft(power, axis=1)[:, 60:200]
    return (rate / (60 + correlation.argmax(1))).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def tracker():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "f0", tracked)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Sentences of two voices."""
    folder, draw, paths = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0), {}
    for split, count in (("train", 20), ("dev", 4)):
        rows, units = [], []
        for number in range(count):
            for voice in VOICES:
                wav, ids = say(draw.integers(0, N_UNITS, 12), voice, draw)
                path = folder / f"{split}-{voice}-{number}.wav"
                audio.write(path, wav, RATE)
                rows.append(Utterance(f"{voice}/{number}", str(path), len(wav) / RATE, None, voice, "en", "words"))
                units.append(HEADER.units(ids, rows[-1].id))
        paths |= {f"{split}_manifest": str(folder / f"{split}.jsonl"), f"{split}_units": str(folder / f"{split}.units")}
        write_manifest(paths[f"{split}_manifest"], rows)
        write_units(paths[f"{split}_units"], HEADER, units)
    paths["data.cache"] = str(folder / "cache")
    return paths


BASE = [
    "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.log_every=20", "fit.validate_every=1000",
    "data.batch=8", "data.segment_seconds=0.8", "data.heard_seconds=0.8", "data.copies=1", "data.semitones=3",
    "model.dim=32", "model.layers=1", "model.vector_dim=8", "model.hearing_hidden=16", "model.hearing_layers=1",
    "model.mel.n_mels=40", "model.dropout=0", "optim.lr=5e-3", "optim.warmup=10", "fit.ema=0.9",
    "model.f0={low: -8, high: 8, bins: 17, sigma: 1}", "model.energy.bins=32", "model.energy.sigma=0.5",
]  # fmt: skip


def words(corpus: dict[str, str], out: Path, *more: str) -> list[str]:
    return [f"{key}={value}" for key, value in corpus.items()] + [f"out={out}", *BASE, *more]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vc") / "model"
    assert recipe("train_vc").main(words(corpus, out, "fit.max_steps=140")) == 0
    return out


def test_it_learns_whose_melody_and_tempo_it_is(corpus, trained):
    """F0 of a unit rises for one voice and falls for the other: only a recording's vector can tell."""
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses, dev = [row["loss"] for row in rows if row["split"] == "train"], rows[-1]
    assert losses[-1] < 0.6 * losses[0]
    assert dev["split"] == "dev" and dev["step"] == 140
    assert dev["f0"] < 0.7 * dev["f0_others"] and dev["durations"] < 0.7 * dev["durations_others"]
    assert dev["mel"] < 0.8 * dev["mel_others"]


def test_conversion_goes_to_the_other_voice(corpus, trained):
    """The same units with the other's vectors have the other's F0 and tempo."""
    net = FrameModel.load(trained)
    rows = {row.id: row for row in read_manifest(corpus["dev_manifest"])}
    units = {u.id: u for u in read_units(corpus["dev_units"])}
    vectors = {name: net.vectors(net.hear(audio.read(rows[f"{name}/0"].audio, RATE))) for name in VOICES}
    source = units["ann/1"]
    made = {mode: net.convert(source, vectors["ann"], vectors["bob"], mode=mode) for mode in ("copy", "all", "rhythm")}
    own = net.convert(source, vectors["ann"], vectors["ann"], mode="rhythm")

    def slope(one) -> float:  # semitones a unit
        f0 = torch.linspace(-8, 8, 17)[one.f0.argmax(1)]
        ids = one.units.repeat_interleave(one.durations).float()
        return float(((f0 - f0.mean()) * (ids - ids.mean())).sum() / (ids - ids.mean()).square().sum())

    assert slope(made["copy"]) > 0.5 and slope(made["rhythm"]) > 0.5 and slope(made["all"]) < -0.5
    assert made["rhythm"].durations.float().mean() > own.durations.float().mean() + 1.5


def test_what_training_leaves(corpus, trained):
    config = load(FrameConfig, trained / "config.yaml")
    assert (config.tokenizer, config.n_units, config.rate_hz, config.speaker_dim) == ("5a5a5a5a5a5a", N_UNITS, 50.0, 0)
    card = (trained / "card.md").read_text()
    assert corpus["train_manifest"] in card and "`5a5a5a5a5a5a`" in card and "- f0_others: " in card
    assert config.mel.fingerprint in card and FrameModel.load(trained / "best").config == config


def test_examples_are_aligned_and_the_same_for_the_same_key(corpus, tmp_path):
    module = recipe("train_vc")
    config = load(module.Config, None, words(corpus, tmp_path))
    net, speaker, train, dev = module.build(config)
    assert speaker is None and len(train.kept[0].heard) == 2 and len(dev.kept[0].heard) == 1
    for item in (0, 7, len(train) - 1):
        one, again = train[3, item], train[3, item]
        for f in fields(one):
            assert np.array_equal(getattr(one, f.name), getattr(again, f.name)), f.name
    one, row = dev[0, 1], dev.corpus.rows[1]
    wav = audio.read(row.utterance.audio, RATE)
    mel, lengths = audio.spectra(wav, net.config.mel)
    assert np.array_equal(one.units, row.units) and np.allclose(one.mel, mel, atol=0.01)
    assert np.allclose(one.energy, np.log(lengths), atol=0.01) and one.cut == (False, False)
    contours = net.contours(tracked(wav, RATE, hop_samples=HOP), lengths)
    assert np.allclose(one.f0, contours.f0.numpy(), atol=0.02)
    assert (net.config.aligned, PAPER.aligned) == (5, 1)
    for key in (
        (0, 0),
        (1, 3),
        (2, 5),
        (3, 3),
        (4, 5),
    ):  # a segment is a piece of its recording, mels and units at the same place
        part, whole = train[key], train.kept[0].spectra[int(train.items[key[1]])].astype(np.float32)[:, :-1]
        units = train.corpus.rows[int(train.items[key[1]])].units
        at = next(i for i in range(len(units)) if np.array_equal(units[i : i + len(part.units)], part.units))
        assert any(
            s * net.config.ratio % 1 < 1e-9 and np.array_equal(whole[round(s * 1.6) :][: len(part.mel)], part.mel)
            for s in range(at, len(units) - len(part.units) + 1)
        )
    batch = module.Voices.collate([train[0, i] for i in range(4)])
    assert batch.mel.shape[1] == net.config.mel_frames(int(batch.lengths.max()))
    few = replace(config, data=replace(config.data, batch=2, dev_utterances=5))
    sizes = [len(one.units) for one in module.Validation(few, dev).batches]
    assert sum(sizes) == 5 and min(sizes) > 1
    shuffled = module.others(batch)
    assert torch.equal(shuffled.heard, batch.heard.roll(2, 0)) and torch.equal(shuffled.units, batch.units)
    assert torch.equal(shuffled.shifted_lengths, batch.shifted_lengths.roll(2, 0))


@pytest.mark.parametrize("tempo", [0.5, 0.8, 1.0, 1.7])
def test_an_example_at_another_tempo(tempo):
    module, config = recipe("train_vc"), FrameConfig(tokenizer="0a0a0a0a0a0a", n_units=9)
    n, draw = 40, np.random.default_rng(0)
    m, ramp = config.mel_frames(n), np.linspace(0, 1, 100, dtype=np.float32)[:, None]
    units, voice = np.repeat(np.arange(8), 5), draw.random(4)
    f0, energy = draw.random(n).astype(np.float32), draw.random(m).astype(np.float32)
    mel = np.linspace(0, 1, m, dtype=np.float32)[:, None]
    one = module.Example(units, (True, False), f0, f0 > 0.5, energy, mel, ramp, voice, voice)
    other = module.at_tempo(one, tempo, config)
    assert len(other.units) == len(other.f0) == len(other.voiced) == round(n / tempo) and other.cut == one.cut
    assert len(other.mel) == len(other.energy) == config.mel_frames(len(other.units))
    assert len(other.heard) == round(100 / tempo) and other.voice is voice
    assert list(dict.fromkeys(other.units)) == list(range(8))  # nothing is lost, and the order stays
    counts = np.bincount(other.units)
    assert counts.max() - counts.min() <= 1  # all runs alike
    np.testing.assert_allclose(other.mel[:, 0], np.linspace(0, 1, len(other.mel)), atol=0.05)
    np.testing.assert_allclose(other.heard[:, 0], np.linspace(0, 1, len(other.heard)), atol=0.02)
    if tempo == 1.0:
        np.testing.assert_allclose(other.energy, one.energy, atol=1e-6)
        assert np.array_equal(other.f0, one.f0) and np.array_equal(other.voiced, one.voiced)


def test_tempos_are_drawn_in_training_alone(corpus, tmp_path):
    module = recipe("train_vc")
    config = module.configs.from_words(module.Config, words(corpus, tmp_path, "data.tempo=1.5"))
    _, _, taught, dev = module.build(config)
    plain = module.configs.from_words(module.Config, words(corpus, tmp_path))
    _, _, still, calm = module.build(plain)
    shares = [len(taught[0, i].units) / len(still[0, i].units) for i in range(len(taught))]
    assert min(shares) < 0.9 and max(shares) > 1.1 and min(shares) > 1 / 1.6 and max(shares) < 1.6
    assert np.array_equal(taught[0, 0].mel, taught[0, 0].mel) and len(taught[1, 0].units) != len(taught[0, 0].units)
    assert all(np.array_equal(dev[0, i].mel, calm[0, i].mel) for i in range(len(dev)))
    batch = module.Voices.collate([taught[0, i] for i in range(3)])
    assert batch.units.shape[1] == int(batch.lengths.max())


def test_voices_may_be_heard_in_other_recordings_of_the_speaker(corpus, tmp_path):
    module = recipe("train_vc")
    for share, same in ((0.0, True), (1.0, False)):
        config = load(module.Config, None, words(corpus, tmp_path, f"data.other={share}", "data.heard_seconds=9"))
        _, _, train, _ = module.build(config)
        heard = [train[0, item].voice for item in range(len(train))]
        own = [np.array_equal(one, train.kept[0].heard[0][int(i)].astype(np.float32))
               for one, i in zip(heard, train.items, strict=True)]  # fmt: skip
        assert all(own) if same else np.mean(own) < 0.3
        if not same:  # but always the same speaker
            for one, i in zip(heard, train.items, strict=True):
                who = [row.utterance.speaker for row in train.corpus.rows]
                mates = [k for k in range(len(who)) if who[k] == who[int(i)]]
                assert any(np.array_equal(one, train.kept[0].heard[0][k].astype(np.float32)) for k in mates)


def test_a_recording_whose_speaker_is_not_named_has_its_own_voice(corpus, tmp_path):
    rows = [replace(row, speaker=None) for row in read_manifest(corpus["train_manifest"])]
    write_manifest(tmp_path / "nameless.jsonl", rows)
    module, nameless = recipe("train_vc"), corpus | {"train_manifest": str(tmp_path / "nameless.jsonl")}
    train = module.build(load(module.Config, None, words(nameless, tmp_path, "data.other=1", "data.heard_seconds=9")))[
        2
    ]
    for item in range(0, len(train), 5):
        own = train.kept[0].heard[0][int(train.items[item])].astype(np.float32)
        assert np.array_equal(train[0, item].voice, own)


def test_shifted_recordings_count_as_other_voices(corpus, tmp_path):
    module = recipe("train_vc")
    plain = module.build(load(module.Config, None, words(corpus, tmp_path, "data.other=1")))[2]
    more = module.build(load(module.Config, None, words(corpus, tmp_path, "data.other=1", "data.voices=[5]")))[2]
    assert len(more) == 2 * len(plain) and len(more.lengths) == len(more)
    row = more.corpus.rows[0]
    wav = augment.pitch(audio.read(row.utterance.audio, RATE), RATE, 5.0)
    mel = audio.spectra(more.model.config.fitted(wav, len(row.units)), more.model.config.mel)[0]
    assert np.allclose(more.kept[1].spectra[0][:, :-1].astype(np.float32), mel, atol=0.01)
    ratio = np.median(more.kept[1].f0[0].astype(np.float32) / more.kept[0].f0[0].astype(np.float32))
    assert ratio == pytest.approx(2 ** (5 / 12), rel=0.03)
    one = more[0, len(plain)]  # the same words, heard in recordings that are shifted as well
    heard = [more.kept[1].voices[0][i].astype(np.float32) for i in range(len(more.corpus.rows))]
    assert any(len(h) >= len(one.voice) and _within(one.voice, h) for h in heard)
    assert not any(_within(one.voice, more.kept[0].voices[0][i].astype(np.float32)) for i in range(len(heard)))


def _within(part: np.ndarray, whole: np.ndarray) -> bool:
    return any(np.array_equal(whole[i : i + len(part)], part) for i in range(len(whole) - len(part) + 1))


def test_given_vectors_and_a_judge_resume_bit_for_bit(corpus, tmp_path):
    torch.manual_seed(0)
    SpeakerEncoder(SpeakerNet(SpeakerConfig(hidden=8, layers=1, dim=6))).save(tmp_path / "speaker", card="# Ears\n")
    module = recipe("train_vc")
    more = [
        f"speaker={tmp_path / 'speaker'}", "gan.use=true", "gan.start=1", "gan.width=8", "gan.blocks=1", "data.batch=4",
        "model.dim=16", "fit.save_every=2", "optim.schedule=constant", "judge_optim.schedule=constant",
    ]  # fmt: skip
    assert module.main(words(corpus, tmp_path / "once", *more, "fit.max_steps=4")) == 0
    for steps in (2, 4):
        assert module.main(words(corpus, tmp_path / "twice", *more, f"fit.max_steps={steps}")) == 0
    files = sorted(p.relative_to(tmp_path / "once") for p in (tmp_path / "once").rglob("*.safetensors"))
    assert {"weights_judge.safetensors", "optimizer_judge.safetensors"} <= {p.name for p in files}
    for name in files:
        a, b = load_file(tmp_path / "once" / name), load_file(tmp_path / "twice" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    last = json.loads((tmp_path / "once" / "metrics.jsonl").read_text().splitlines()[-2])
    assert {"judge", "adversarial", "mel", "norm_judge"} <= last.keys()
    kept, config = SpeakerEncoder.load(tmp_path / "once" / "speaker"), FrameModel.load(tmp_path / "once").config
    assert (config.speaker_dim, config.speaker_encoder) == (kept.dim, kept.checksum()) == (6, kept.checksum())
    assert (tmp_path / "once" / "speaker" / "card.md").read_text() == "# Ears\n"


def test_wav2vec2_begins_as_its_checkpoint(corpus, tmp_path):
    """The convolutions, the projection and the first layer are those of the model given; the rest is not taken."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1}
    whole = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**shape, num_hidden_layers=2))
    whole.save_pretrained(tmp_path / "w2v2")
    module = recipe("train_vc")
    more = [f"wav2vec2={tmp_path / 'w2v2'}", "model.hearing=wav2vec2", "model.hearing_hidden=64", "data.copies=0"]
    small = {k: v.replace("train", "dev") if k.startswith("train") else v for k, v in corpus.items()}
    config = load(module.Config, None, words(small, tmp_path / "out", *more))
    net, _, train, _ = module.build(config)
    theirs = whole.state_dict()
    for name, value in net.encoders["rhythm"].transformer.layers[0].state_dict().items():
        assert torch.equal(value, theirs[f"encoder.layers.0.{name}"]), name
    wav = audio.read(train.corpus.rows[0].utterance.audio, RATE)
    with torch.no_grad():
        first = whole.eval().feature_projection(whole.feature_extractor(torch.from_numpy(wav)[None]).transpose(1, 2))[0]
    assert torch.allclose(net.hear(wav), first[0], atol=1e-4)
    with pytest.raises(ConfigError, match=r"is heard with by model\.hearing=wav2vec2 or size=paper"):
        module.main(words(corpus, tmp_path / "x", f"wav2vec2={tmp_path / 'w2v2'}"))


def test_a_silent_recording_is_named(corpus, tmp_path):
    torch.manual_seed(0)
    SpeakerEncoder(SpeakerNet(SpeakerConfig(hidden=8, layers=1, dim=6))).save(tmp_path / "speaker")
    rows = list(read_manifest(corpus["dev_manifest"]))
    audio.write(tmp_path / "silent.wav", np.zeros(round((rows[0].duration or 0) * RATE), np.float32), RATE)
    write_manifest(tmp_path / "m.jsonl", [replace(rows[0], audio=str(tmp_path / "silent.wav")), *rows[1:]])
    given = {"train_manifest": str(tmp_path / "m.jsonl"), "train_units": corpus["dev_units"]}
    with pytest.raises(FeaturesError, match=rf"{rows[0].id} .*silent\.wav.*: a silent recording has no speaker"):
        recipe("train_vc").main(words(corpus | given, tmp_path / "out", f"speaker={tmp_path / 'speaker'}"))


@pytest.mark.parametrize(
    ("word", "error", "text"),
    [
        ("dev_units=''", ConfigError, "dev_units is not set: pass dev_units=path"),
        ("model.speaker_dim=5", ConfigError, r"model\.speaker_dim is read from the data"),
        ("size=large", ConfigError, "size 'large': choose small or paper"),
        ("size=paper", ConfigError, "size=paper sets all of model"),
        ("model.f0.low=90", ValueError, "high is above low"),
        ("data.tempo=0.8", ConfigError, r"data\.tempo=0\.8: at least 1"),
        ("data.tempo=1.2 model.hearing=wav2vec2", ConfigError, "only log-mels bear"),
    ],
)
def test_refused(corpus, tmp_path, word, error, text):
    with pytest.raises(error, match=text):
        recipe("train_vc").main(words(corpus, tmp_path, *word.split()))


def test_units_that_do_not_fit_are_refused(corpus, tmp_path):
    module = recipe("train_vc")
    ids = [row.id for row in read_manifest(corpus["dev_manifest"])]
    other = UnitsHeader("0b0b0b0b0b0b", 50.0, N_UNITS)
    write_units(tmp_path / "other", other, [other.units(np.ones(9, int), id) for id in ids])
    with pytest.raises(FingerprintError, match="0b0b0b0b0b0b"):
        module.main(words(corpus | {"dev_units": str(tmp_path / "other")}, tmp_path / "out"))
    books = UnitsHeader("22", 50.0, N_UNITS, 2)
    write_units(tmp_path / "two", books, [Units(np.ones((9, 2), int), 50.0, N_UNITS, "22", id) for id in ids])
    two = {"train_units": str(tmp_path / "two"), "dev_units": str(tmp_path / "two")}
    two["train_manifest"] = corpus["dev_manifest"]
    with pytest.raises(DataError, match="2 units a frame; this model takes single units"):
        module.main(words(corpus | two, tmp_path / "out"))

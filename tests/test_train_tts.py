"""The recipes of speech from text: trained on a made-up language, spoken with, resumed; and their manners."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_ins
import torch
from recipe_files import recipe
from safetensors.torch import load_file
from toy_language import N_UNITS, samples

from unitkit import audio
from unitkit.config import ConfigError, load
from unitkit.data import DataError
from unitkit.frontends import PLACE
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.models.tts import PAPER, TextToUnits, TtsConfig
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.pipeline import TTS
from unitkit.units import FingerprintError, UnitsHeader, read_units, write_units
from unitkit.voices import Voices, VoicesError

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, N_UNITS, 2)
ENCODER = stand_ins.SpeakerEncoder()
SPEAKERS = ("ann", "bob")
LANGS = ("en", "es")
Corpus = dict[str, str]


@pytest.fixture(autouse=True)
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.install(monkeypatch)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Manifests with texts, units of two books, vectors of the utterances; ann says most."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = {"speaker": str(folder / "speaker")}
    ENCODER.save(folder / "speaker")
    (folder / "speaker" / "card.md").write_text("# Ears\n")
    for split, count in (("train", 120), ("dev", 16)):
        said, draw = samples(count, len(split)), np.random.default_rng(1)
        rows = [
            Utterance(
                f"{split}/{i}",
                f"{i}.wav",
                len(s.units) / 50,
                None,
                SPEAKERS[s.voice],
                LANGS[s.lang],
                f"{s.word.upper()}",
            )
            for i, s in enumerate(said)
        ]
        vectors = {
            row.id: np.eye(4)[s.voice] + 0.1 * draw.standard_normal(4) for row, s in zip(rows, said, strict=True)
        }
        paths |= {f"{split}_manifest": str(folder / f"{split}.jsonl"), f"{split}_units": str(folder / f"{split}.units")}
        voices = str(folder / f"{split}.voices")
        paths["voices" if split == "train" else "dev_voices"] = voices
        Voices.of(vectors, encoder=ENCODER.checksum()).save(voices)
        write_manifest(paths[f"{split}_manifest"], rows)
        write_units(
            paths[f"{split}_units"], HEADER, (HEADER.units(s.units, row.id) for row, s in zip(rows, said, strict=True))
        )
    return paths


BASE = [
    "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.log_every=20", "fit.validate_every=1000",
    "model.dim=40", "model.encoder_layers=1", "model.decoder_layers=2", "model.kernel=3", "model.dropout=0",
    "model.lang_dim=8", "model.aligner_dim=24", "model.duration_dim=24", "optim.lr=5e-3", "optim.warmup=10",
    "fit.ema=0.9", "loss.bind_from=40", "loss.bind_warmup=20",
]  # fmt: skip


def words(corpus: Corpus, out: Path, *more: str) -> list[str]:
    """The recipe's arguments."""
    return [f"{name}={path}" for name, path in corpus.items()] + [f"out={out}", *BASE, *more]


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, with an untrained vocoder."""
    out = tmp_path_factory.mktemp("tts") / "model"
    with pytest.MonkeyPatch.context() as patch:
        stand_ins.install(patch)
        assert recipe("train_tts").main(words(corpus, out, "fit.max_steps=100")) == 0
    settings = VocoderConfig(
        HEADER.tokenizer, n_units=N_UNITS, codebooks=2, istft=IstftConfig(dim=16, blocks=1, hidden=16),
        speaker_vector_dim=4, speaker_encoder=ENCODER.checksum(),
    )  # fmt: skip
    UnitVocoder(settings).save(out / "vocoder")
    return out


def test_it_learns_from_the_files(corpus: Corpus, trained: Path) -> None:
    dev = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert dev["split"] == "dev" and dev["accuracy"] > 0.7
    assert dev["loss_other_text"] > 2 * dev["loss"] + 1
    assert {"align", "bind", "durations"} <= set(dev)


def test_what_training_leaves(corpus: Corpus, trained: Path) -> None:
    config = load(TtsConfig, trained / "config.yaml")
    assert (config.tokenizer, config.n_units, config.codebooks, config.rate_hz) == ("5a5a5a5a5a5a", N_UNITS, 2, 50.0)
    assert config.symbols == "abcdefghij" and config.langs == LANGS and config.longest == 10
    assert (config.speaker_vector_dim, config.speaker_encoder) == (4, ENCODER.checksum())
    frames = {name: 0 for name in SPEAKERS}
    for row in read_manifest(corpus["train_manifest"]):
        frames[str(row.speaker)] += round((row.duration or 0) * 50)
    assert list(config.speakers) == sorted(frames, key=lambda name: -frames[name])
    assert all(sorted(langs) == ["en", "es"] for langs in config.speakers.values())
    means, vectors = Voices.load(trained / "voices.safetensors"), Voices.load(corpus["voices"])
    own = [row.id for row in read_manifest(corpus["train_manifest"]) if row.speaker == "bob"]
    assert sorted(means.names) == ["ann", "bob"] and np.allclose(means["bob"], vectors.means({"": own})[""])
    card = (trained / "card.md").read_text()
    assert corpus["train_manifest"] in card and "`5a5a5a5a5a5a`" in card and "- loss_other_text: " in card
    assert (trained / "speaker" / "card.md").read_text() == "# Ears\n"
    assert (trained / "best" / "speaker").is_dir() and TextToUnits.load(trained / "best").config == config


def test_the_model_speaks(corpus: Corpus, trained: Path) -> None:
    tts = TTS.load(trained, device="cpu")
    (made,) = tts.say([tts.line("Bad cage", tts.voice("ann"), language="en")])
    assert made.left_out == " "  # the corpus has single words
    other = tts.say([tts.line("Badcage", tts.voice("bob"), language="en")])[0].units.ids
    n = min(len(other), len(made.units.ids))
    assert (made.units.ids[:n, 0] == other[:n, 0]).mean() > 0.5 and (made.units.ids[:n, 1] != other[:n, 1]).mean() > 0.5
    assert len(made.wav) == 320 * made.units.n_frames


def test_resuming_is_bit_for_bit(corpus: Corpus, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    steps = ["model.dim=16", "data.batch=4", "fit.save_every=1000", "optim.schedule=constant", "loss.bind_from=1"]
    module = recipe("train_tts")
    assert module.main(words(corpus, once, *steps, "fit.max_steps=6")) == 0
    for count in (3, 6):
        assert module.main(words(corpus, twice, *steps, f"fit.max_steps={count}")) == 0
    for name, value in load_file(once / "model.safetensors").items():
        assert torch.equal(value, load_file(twice / "model.safetensors")[name]), name


def test_a_voice_comes_from_another_utterance_of_its_speaker(corpus: Corpus) -> None:
    module = recipe("train_tts")
    config = load(module.Config, None, words(corpus, Path("x")))
    built = module.build(config)
    vectors = Voices.load(corpus["voices"])
    speakers = {row.id: row.speaker for row in read_manifest(corpus["train_manifest"])}
    drawn = []
    for epoch in range(12):
        row, vector = built.train[epoch, 3]
        (name,) = [name for name in vectors.names if np.array_equal(vectors[name], vector)]
        assert speakers[name] == row.speaker == speakers[row.id]
        drawn.append(name)
        assert np.array_equal(built.train[epoch, 3][1], vector)
    assert len(set(drawn)) > 4
    assert np.array_equal(built.dev[0, 1][1], built.dev[5, 1][1])  # the mean of the speaker's


def test_utterances_without_a_vector_are_named_and_left_out(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording that could not be heard has none; no other utterance of its speaker comes with it either."""
    whole = Voices.load(corpus["voices"])
    some = {name: whole[name] for name in whole.names if name not in ("train/3", "train/7")}
    Voices.of(some, encoder=whole.encoder).save(tmp_path / "some")
    module = recipe("train_tts")
    config = load(module.Config, None, words(corpus | {"voices": str(tmp_path / "some")}, tmp_path / "out"))
    built = module.build(config)
    assert "train: 2 utterances are too long or have no speaker vector; left out: train/3, train/7" in (
        capsys.readouterr().err
    )
    assert len(built.train) == 118 and all(built.train[0, item][1] is not None for item in range(118))


def test_the_weight_of_binarisation_rises() -> None:
    loss = recipe("train_tts").LossConfig(bind=2.0, bind_from=10, bind_warmup=20)
    assert [loss.bind_at(step) for step in (0, 10, 20, 30, 99)] == [0, 0, 1, 2, 2]


def test_one_voice_one_language_bytes(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without vectors; rows without a text, too long or too short for theirs are named and left out."""
    rows = [
        Utterance(row.id, row.audio, row.duration, None, None, "en", row.text)
        for row in read_manifest(corpus["train_manifest"])
    ]
    changed = [
        *rows[:-3],
        Utterance("train/117", "x.wav", text=None, lang="en"),
        Utterance("train/118", "x.wav", text="a" * 99, lang="en"),
        Utterance("nowhere", "x.wav", text="a", lang="en"),
    ]
    write_manifest(tmp_path / "m.jsonl", changed)
    bare = {name: path for name, path in corpus.items() if name.startswith(("train", "dev_m", "dev_u"))}
    more = [
        f"train_manifest={tmp_path / 'm.jsonl'}",
        "model.front=bytes",
        "fit.max_steps=2",
        "data.batch=4",
        "data.repeat={x: 2}",
    ]
    assert recipe("train_tts").main(words(bare, tmp_path / "out", *more)) == 0
    told = capsys.readouterr().err
    assert "train: 3 utterances have no text or units" in told
    assert all(name in told for name in ("nowhere", "train/117", "train/118"))
    config = load(TtsConfig, tmp_path / "out" / "config.yaml")
    assert config.symbols == "" and config.condition_dim == 0 and not config.speakers
    assert config.longest == 10  # of the texts that were learned from, which the one of 99 letters was not
    assert not (tmp_path / "out" / "voices.safetensors").exists()
    with pytest.raises(DataError, match="train: none of 119 utterances"):
        recipe("train_tts").main(words(bare, tmp_path / "x", *more, "data.max_seconds=0.01"))


def test_phonemes_where_there_is_a_program(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "espeak"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.stdin.read().replace('A', 'ɑː'))\n")
    program.chmod(0o755)
    monkeypatch.setenv(PLACE, str(program))
    module = recipe("train_tts")
    built = module.build(load(module.Config, None, words(corpus, tmp_path, "model.front=phonemes")))
    assert "ɑ" in built.model.config.symbols and "A" not in built.model.config.symbols


@pytest.mark.parametrize(
    ("word", "error", "text"),
    [
        ("dev_units=''", ConfigError, "dev_units is not set: pass dev_units=path"),
        ("dev_voices=''", ConfigError, "both voices and dev_voices"),
        ("model.n_units=5", ConfigError, "model.n_units is read from the training data"),
        ("size=huge", ConfigError, "choose small or paper"),
        ("size=paper", ConfigError, "sets all of model but front"),
        ("model.front=runes", ValueError, "known are characters, bytes, phonemes"),
        ("model.kernal=3", ConfigError, r"unknown key 'model\.kernal'"),
        ("voices=nowhere", VoicesError, "no such file of voices"),
    ],
)
def test_refused(corpus: Corpus, tmp_path: Path, word: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        recipe("train_tts").main(words(corpus, tmp_path, word))


def test_units_or_voices_of_another_kind_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    module, rows = recipe("train_tts"), list(read_units(corpus["dev_units"]))
    other = UnitsHeader("0b0b0b0b0b0b", 50.0, N_UNITS, 2)
    write_units(tmp_path / "other", other, (other.units(row.ids, row.id) for row in rows))
    with pytest.raises(FingerprintError, match="0b0b0b0b0b0b"):
        module.main(words(corpus, tmp_path / "out", f"dev_units={tmp_path / 'other'}"))
    voices = Voices.load(corpus["dev_voices"])
    Voices(voices.names, voices.vectors, "other").save(tmp_path / "v")
    with pytest.raises(VoicesError, match="'other'.*'000000000000'"):
        module.main(words(corpus, tmp_path / "out", f"dev_voices={tmp_path / 'v'}"))
    stand_ins.SpeakerEncoder(5).save(tmp_path / "speaker")
    with pytest.raises(VoicesError, match="'000000000000'.*'000000000005'"):
        module.main(words(corpus, tmp_path / "out", f"speaker={tmp_path / 'speaker'}"))


def test_the_papers_size_by_name(corpus: Corpus, tmp_path: Path) -> None:
    module = recipe("train_tts")
    given = [f"{name}={path}" for name, path in corpus.items()]
    config = load(module.Config, None, [*given, "size=paper", "model.front=bytes"])
    found = module.build(config).model.config
    assert (found.blocks, found.dim, found.encoder_layers, found.decoder_layers) == ("fft", 256, 4, 6)
    assert found.front == "bytes" and found.kernel == PAPER.kernel and found.codebooks == 2


# ------------------------------------------------------------------------------------------------------ the vectors


@pytest.fixture(scope="module")
def recordings() -> list[Utterance]:
    return [row for row in read_manifest(ROOT / "samples" / "en" / "train.jsonl") if (row.duration or 0) > 1][:4]


def test_vectors_of_recordings(
    corpus: Corpus, recordings: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, out = recipe("speaker_vectors"), tmp_path / "v" / "all.safetensors"
    audio.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    rows = [*recordings, Utterance("silent", str(tmp_path / "silent.wav"), speaker="allison")]
    write_manifest(tmp_path / "m.jsonl", rows)
    assert module.main([corpus["speaker"], str(tmp_path / "m.jsonl"), "-o", str(out), "--device", "cpu"]) == 1
    assert "left out: silent: a silent recording" in capsys.readouterr().err
    voices = Voices.load(out)
    assert voices.names == tuple(row.id for row in recordings) and voices.encoder == ENCODER.checksum()
    assert np.allclose(voices[recordings[2].id], ENCODER(audio.read(recordings[2].audio, 16000)), atol=1e-6)


def test_a_few_seconds_of_each_speaker(corpus: Corpus, recordings: list[Utterance], tmp_path: Path) -> None:
    module, rest = recipe("speaker_vectors"), tmp_path / "rest.jsonl"
    rows = [Utterance(row.id, row.audio, row.duration, speaker="ab"[i // 2]) for i, row in enumerate(recordings)]
    write_manifest(tmp_path / "m.jsonl", rows)
    tail = [str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "v"), "--device", "cpu"]
    assert module.main([corpus["speaker"], *tail, "--seconds", "0.5", "--rest", str(rest)]) == 0
    assert [row.id for row in read_manifest(rest)] == [rows[1].id, rows[3].id]
    voices = Voices.load(tmp_path / "v")
    assert voices.names == ("a", "b") and np.allclose(voices["a"], ENCODER(audio.read(rows[0].audio, 16000)), atol=1e-6)
    Voices.of({"eve": np.ones(4)}, encoder=ENCODER.checksum()).save(tmp_path / "more")
    assert module.main([corpus["speaker"], *tail, "--seconds", "99", "--add", str(tmp_path / "more")]) == 0
    assert Voices.load(tmp_path / "v").names == ("eve", "a", "b")
    both = [ENCODER(audio.read(row.audio, 16000)) for row in rows[:2]]
    assert np.allclose(Voices.load(tmp_path / "v")["a"], sum(both) / np.linalg.norm(sum(both)), atol=1e-6)
    with pytest.raises(SystemExit):
        module.main([corpus["speaker"], *tail, "--rest", str(rest)])
    write_manifest(tmp_path / "m.jsonl", [Utterance("x", rows[0].audio)])
    with pytest.raises(ValueError, match="no speaker is named"):
        module.main([corpus["speaker"], *tail, "--seconds", "1"])


def test_a_vocoder_of_any_voice(recordings: list[Utterance], tmp_path: Path) -> None:
    """Two books and speaker vectors, through the vocoder's recipe; names of speakers are not what it learns."""
    draw = np.random.default_rng(0)
    rows = [Utterance(r.id, r.audio, r.duration, None, "ab"[i // 2], "en") for i, r in enumerate(recordings)]
    write_manifest(tmp_path / "m.jsonl", rows)
    units = [HEADER.units(draw.integers(0, N_UNITS, (int(50 * (r.duration or 0)), 2)), r.id) for r in rows]
    write_units(tmp_path / "u", HEADER, units)
    Voices.of({row.id: draw.random(4) for row in rows}, encoder="cafe").save(tmp_path / "v")
    module = recipe("train_vocoder")
    given = [
        f"{split}_{kind}={tmp_path / path}"
        for split in ("train", "dev")
        for kind, path in (("manifest", "m.jsonl"), ("units", "u"))
    ]
    given += [
        "fit.device=cpu",
        "fit.tensorboard=false",
        "fit.max_steps=2",
        "model.istft.dim=16",
        "model.istft.blocks=1",
        f"out={tmp_path / 'out'}",
    ]
    with pytest.raises(ConfigError, match=r"both data\.voices_train and data\.voices_dev"):
        module.main([*given, f"data.voices_train={tmp_path / 'v'}"])
    assert module.main([*given, f"data.voices_train={tmp_path / 'v'}", f"data.voices_dev={tmp_path / 'v'}"]) == 0
    model = UnitVocoder.load(tmp_path / "out")
    assert (model.config.speaker_vector_dim, model.config.speaker_encoder, model.config.speakers) == (4, "cafe", ())
    assert model.config.codebooks == 2 and "speaker encoder `cafe`" in (tmp_path / "out" / "card.md").read_text()
    config = load(
        module.Config, None, [*given, f"data.voices_train={tmp_path / 'v'}", f"data.voices_dev={tmp_path / 'v'}"]
    )
    train, voices = module.read_corpora(config)[1].train, Voices.load(tmp_path / "v")
    for epoch in range(6):
        one = train[epoch, 0]
        assert any(np.array_equal(one.vector, voices[row.id]) for row in rows[:2])
    assert np.array_equal(train.segment(train.corpus.rows[3], 0, 5).vector, voices[rows[3].id])
    Voices.of({row.id: draw.random(4) for row in rows[:3]}, encoder="cafe").save(tmp_path / "three")
    with pytest.raises(DataError, match=rf"1 utterances have no speaker vector \({rows[3].id}\)"):
        module.main([*given, f"data.voices_train={tmp_path / 'three'}", f"data.voices_dev={tmp_path / 'v'}"])
    Voices.of({row.id: draw.random(4) for row in rows}, encoder="beef").save(tmp_path / "other")
    begun = [f"init={tmp_path / 'out'}", *(f"data.voices_{split}={tmp_path / 'other'}" for split in ("train", "dev"))]
    with pytest.raises(ConfigError, match="takes vectors of speaker encoder 'cafe'.*'beef'"):
        module.main([*given, *begun])

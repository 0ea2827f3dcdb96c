"""The S2UT recipe: all kinds of sources, heads, fine-tuning by name, augmentation, resuming, and what goes wrong."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import recipe
from reference_ssl import recordings
from safetensors.torch import load_file

from unitkit import audio
from unitkit.augment import Augment, Holes, holes, mask_bands
from unitkit.config import ConfigError, load
from unitkit.data import DataError
from unitkit.features import FeaturesError, features_of
from unitkit.manifest import Utterance, write_manifest
from unitkit.models.finetune import Hearing, trainable
from unitkit.models.listen import Listener, ListenerError
from unitkit.models.seq2seq import Seq2Seq, Seq2SeqError
from unitkit.units import Units, UnitsHeader, write_units

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, 20)
SMALL = [
    "model.dim=32", "model.hidden=64", "model.attention_heads=2", "model.encoder_layers=2", "model.decoder_layers=2",
    "model.conv_channels=32", "model.dropout=0", "model.label_smoothing=0", "fit.device=cpu", "fit.precision=fp32",
    "fit.tensorboard=false", "fit.log_every=5", "fit.validate_every=1000", "data.batch=4", "optim.warmup=5",
    "fit.ema=0", "data.masks.times=0", "data.masks.bands=0",
]  # fmt: skip
HEADS = [
    "model.heads.source.at=encoder", "model.heads.source.layer=1", "model.heads.source.target=source_text",
    "model.heads.source.dim=32", "model.heads.source.hidden=32", "model.heads.source.weight=0.3",
    "model.heads.source.layers=1",
    "model.heads.text.kind=ctc", "model.heads.text.at=decoder", "model.heads.text.layer=1",
    "model.heads.text.target=target_text",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight recordings, each with a target of its own: a few units, text on both sides."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    source, target, units, own = [], [], [], []
    for index, wav in enumerate(recordings()[:8]):
        audio.write(folder / f"{index}.wav", wav, 16000)
        name = f"u{index}"
        source.append(
            Utterance(name, str(folder / f"{index}.wav"), len(wav) / 16000, None, f"s{index % 2}", "es", f"uno {index}")
        )
        target.append(Utterance(name, "none.wav", lang="en", text="a b c"[: 1 + index % 5]))
        ids = np.repeat(draw.integers(20, size=6), 2)
        units.append(Units(ids, 50.0, 20, HEADER.tokenizer, name))
        own.append(Units(draw.integers(20, size=9), 50.0, 20, HEADER.tokenizer, name))
    write_manifest(folder / "source.jsonl", source)
    write_manifest(folder / "target.jsonl", target)
    write_units(folder / "units.jsonl", HEADER, units)
    write_units(folder / "own.jsonl", HEADER, own)
    words = [f"data.cache={folder}/features"]
    for split in ("train", "dev"):
        words += [f"{split}_{name}={folder}/{name}.jsonl" for name in ("source", "target", "units")]
    return words


def run(words: Sequence[str], out: Path, *more: str) -> list[dict[str, float]]:
    module = recipe("train_s2ut")
    module.train(load(module.Config, None, [*words, *SMALL, f"out={out}", *more]))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def folder_of(words: Sequence[str]) -> Path:
    return Path(words[0].split("=")[1]).parent


# ---------------------------------------------------------------- sources


def test_speech_is_learnt_by_heart_and_spoken_again(corpus: list[str], tmp_path: Path) -> None:
    rows = run(corpus, tmp_path, *HEADS, "fit.max_steps=180", "optim.lr=5e-3", "data.batch=8")
    dev = [row for row in rows if row["split"] == "dev"][-1]
    assert dev["loss"] < 0.5 < dev["loss_other_source"]
    assert {"source", "text", "accuracy"} <= dev.keys()
    model, listener = Seq2Seq.load(tmp_path), Listener.load(tmp_path / "listener")
    assert model.config.source_lang == "es" and model.config.target_lang == "en"
    assert model.config.features == "logmel@100" and "uno" not in model.config.target_letters
    wav = audio.read(str(folder_of(corpus) / "1.wav"), 16000)
    (found,) = model.generate([listener(wav)], beam=3)
    assert found.texts["target_text"] == "a"
    assert "Trained on" in (tmp_path / "card.md").read_text()


def test_text_to_units(corpus: list[str], tmp_path: Path) -> None:
    rows = run(corpus, tmp_path, "model.source=text", "fit.max_steps=120", "optim.lr=5e-3", "data.batch=8")
    assert [row for row in rows if row["split"] == "dev"][-1]["loss"] < 0.5
    assert not (tmp_path / "listener").exists()
    with pytest.raises(ListenerError, match="no listener"):
        Listener.load(tmp_path / "listener")


def test_unit_mbart_fills_holes_and_its_decoder_begins_another_model(corpus: list[str], tmp_path: Path) -> None:
    units = f"{folder_of(corpus)}/units.jsonl"
    bart = [f"train_source={units}", f"dev_source={units}", "model.source=units", "data.holes.masked=0.3"]
    rows = run(corpus, tmp_path / "bart", *bart, "fit.max_steps=40", "optim.lr=3e-3")
    assert rows[-1]["loss"] < rows[0]["loss"]
    config = load(recipe("train_s2ut").Config, None, [*corpus, *SMALL, f"init={tmp_path}/bart", f"out={tmp_path}/x"])
    model, _, _ = recipe("train_s2ut").build(config)
    theirs = Seq2Seq.load(tmp_path / "bart")
    name = "inner.model.decoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.state_dict()[name], theirs.state_dict()[name])
    assert torch.equal(model.inner.model.shared.weight, theirs.inner.model.shared.weight)


def test_a_head_on_source_units(corpus: list[str], tmp_path: Path) -> None:
    head = ["model.heads.own.target=source_units", "model.heads.own.layer=2", "fit.max_steps=2"]
    with pytest.raises(DataError, match="source_units"):
        run(corpus, tmp_path / "a", *head)
    own = folder_of(corpus) / "own.jsonl"
    rows = run(corpus, tmp_path / "b", *head, f"source_units={own}", f"dev_source_units={own}")
    assert rows[-1]["own"] > 0


def test_frames_in_place_of_runs(corpus: list[str], tmp_path: Path) -> None:
    module = recipe("train_s2ut")
    sets = []
    for reduced in ("true", "false"):
        config = load(module.Config, None, [*corpus, *SMALL, f"model.reduced={reduced}", f"out={tmp_path}"])
        sets.append(module.build(config)[2].train.rows[0].target)
    assert len(sets[0]) < len(sets[1]) == 12
    assert [t for i, t in enumerate(sets[1]) if i == 0 or t != sets[1][i - 1]] == sets[0].tolist()


# ---------------------------------------------------------------- a listener that learns


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hubert")
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.HubertModel(config).save_pretrained(folder)
    return folder


def test_only_named_weights_of_the_listener_learn(corpus: list[str], hubert: Path, tmp_path: Path) -> None:
    lna = [f"features={hubert}", "layer=2", "finetune.listener=lna", "finetune.decoder=lna", "model.features_norm=true"]
    run(corpus, tmp_path, *lna, "fit.max_steps=6", "model.conv_kernels=[3]", "model.encoder_layers=0")
    before, after = load_file(hubert / "model.safetensors"), load_file(tmp_path / "listener" / "model.safetensors")
    moved = {name for name in after if name in before and not torch.equal(after[name], before[name])}
    assert any("attention.q_proj" in name for name in moved) and any("layer_norm" in name for name in moved)
    assert not any("feed_forward" in name or "conv_layers.3" in name for name in moved)


def test_the_average_of_a_learning_listener_is_what_is_kept(corpus: list[str], hubert: Path, tmp_path: Path) -> None:
    words = [f"features={hubert}", "layer=2", "finetune.listener=all", "model.conv_kernels=[3]", "fit.max_steps=4"]
    name, kept = "encoder.layers.0.attention.q_proj.weight", {}
    for ema in ("0", "0.9"):
        run(corpus, tmp_path / ema, *words, f"fit.ema={ema}")
        kept[ema] = load_file(tmp_path / ema / "listener" / "model.safetensors")[name]
    before = load_file(hubert / "model.safetensors")[name]
    moved = {ema: float((weights - before).abs().mean()) for ema, weights in kept.items()}
    assert 0 < moved["0.9"] < moved["0"]


def test_a_frozen_beginning(corpus: list[str], hubert: Path, tmp_path: Path) -> None:
    words = [f"features={hubert}", "layer=2", "finetune.listener=all", "model.conv_kernels=[3]"]
    for steps, out in (("3", "a"), ("4", "b")):
        run(corpus, tmp_path / out, *words, "finetune.freeze_steps=3", f"fit.max_steps={steps}")
    before = load_file(hubert / "model.safetensors")["encoder.layers.0.attention.q_proj.weight"]
    held, freed = (
        load_file(tmp_path / out / "listener" / "model.safetensors")["encoder.layers.0.attention.q_proj.weight"]
        for out in "ab"
    )
    assert torch.equal(before, held) and not torch.equal(before, freed)


def test_learning_features_are_those_of_the_listener(hubert: Path) -> None:
    listener = Listener.make(str(hubert), 2, engine="plain")
    wavs = [torch.from_numpy(wav[:n]) for wav, n in zip(recordings()[:2], (9000, 16000), strict=True)]
    found = listener.encoder.differentiable(wavs)  # type: ignore[attr-defined]
    for features, wav in zip(found, wavs, strict=True):
        assert torch.allclose(features, listener(wav), atol=1e-4)


def test_names_that_fit_nothing() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no parameter has 'encoder'"):
        trainable(net, "encoder")
    assert trainable(net, "0.weight") == ["0.weight"]
    assert not net[0].bias.requires_grad
    assert trainable(net, "frozen") == []


def test_hearing_gives_its_own_weights_back(hubert: Path, corpus: list[str], tmp_path: Path) -> None:
    words = [f"features={hubert}", "layer=2", "finetune.listener=all", f"out={tmp_path}"]
    model, _, _ = recipe("train_s2ut").build(load(recipe("train_s2ut").Config, None, [*corpus, *SMALL, *words]))
    assert isinstance(model, Hearing)
    model.net.encoder.layers[0].attention.q_proj.weight.data.fill_(0.5)
    model.listener.save(tmp_path)
    assert (load_file(tmp_path / "model.safetensors")["encoder.layers.0.attention.q_proj.weight"] == 0.5).all()


# ---------------------------------------------------------------- augmentation


@given(st.lists(st.integers(3, 50), max_size=60, unique=True), st.floats(0, 0.9), st.integers(0, 99))
def test_holes_keep_the_order_of_what_is_left(tokens: list[int], masked: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = holes(np.array(tokens, np.int64), draw, config=Holes(masked, random=0.0), mask=99).tolist()
    kept = [token for token in found if token != 99]
    assert kept == [token for token in tokens if token in set(kept)]
    assert len(tokens) - len(kept) <= round(masked * len(tokens))


def test_holes_take_their_share() -> None:
    tokens = np.arange(3, 10_003)
    found = holes(tokens, np.random.default_rng(0), config=Holes(0.3, random=0.1), mask=1)
    assert 0.2 < 1 - np.isin(tokens, found[found != 1]).mean() < 0.32
    assert 300 < (found == 1).sum() < 1100
    assert holes(tokens, np.random.default_rng(0), config=Holes(), mask=1).tolist() == tokens.tolist()


def test_bands_are_as_wide_as_said() -> None:
    x = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    out = mask_bands(x, np.random.default_rng(1), count=1, widest=9, axis=0)
    changed = (out != x).any(axis=1)
    assert 0 < changed.sum() <= 9 and np.ptp(np.flatnonzero(changed)) == changed.sum() - 1
    assert (mask_bands(x, np.random.default_rng(1), count=3, widest=9, axis=1) != x).any(axis=0).sum() <= 27
    assert np.array_equal(mask_bands(x, np.random.default_rng(1), count=2, widest=0, axis=0), x)


def test_examples_joined(corpus: list[str], tmp_path: Path) -> None:
    words = [*corpus, *SMALL, *HEADS, "data.concat=1.0", f"out={tmp_path}"]
    pairs = recipe("train_s2ut").build(load(recipe("train_s2ut").Config, None, words))[2].train
    source, target, texts = pairs[0, 0]
    alone, first, _ = pairs._example(0, np.random.default_rng(0))
    assert len(source) > len(alone) and np.array_equal(source[: len(alone)], alone)
    assert np.array_equal(target[: len(first)], first) and (np.diff(target) != 0).all()
    from unitkit.text import Letters

    assert Letters(pairs.model.source_letters).decode(texts["source_text"]).startswith("uno 0 uno ")


def test_a_speaker_counts_more_than_once(corpus: list[str], tmp_path: Path) -> None:
    words = [*corpus, *SMALL, "data.repeat.s1=3", "data.repeat.nobody=9", f"out={tmp_path}"]
    sets = recipe("train_s2ut").build(load(recipe("train_s2ut").Config, None, words))[2]
    assert (len(sets.train), len(sets.dev), len(sets.lengths)) == (4 + 3 * 4, 8, 16)
    with pytest.raises(DataError, match="speaker june; speakers: s0, s1"):
        june = [*corpus, *SMALL, "data.repeat.june=2", f"out={tmp_path}"]
        recipe("train_s2ut").build(load(recipe("train_s2ut").Config, None, june))


def test_changed_copies_are_heard_too_and_kept(corpus: list[str], tmp_path: Path) -> None:
    rows = [Utterance(f"u{i}", str(folder_of(corpus) / f"{i}.wav")) for i in range(3)]
    listener, changes = Listener.make("logmel@100"), Augment(noise=1.0, babble=1.0, speed=1.0, speed_factor=(0.8, 0.81))
    clean = features_of(rows, listener, tmp_path)
    noisy = features_of(rows, listener, tmp_path, changes=changes, seed=1)
    assert (noisy.lengths > 1.2 * clean.lengths).all()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.npy")}
    assert len(files) == 6
    again = features_of(rows, listener, tmp_path, changes=changes, seed=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == files
    assert np.array_equal(again[2], noisy[2])
    newer = features_of(rows[:1], listener, tmp_path).paths[0].stat().st_mtime_ns
    os.utime(rows[0].audio)  # as if it had been made again
    assert features_of(rows[:1], listener, tmp_path).paths[0].stat().st_mtime_ns > newer
    wav = audio.read(rows[1].audio, 16000)
    assert np.array_equal(clean[1], listener(wav).numpy().astype(np.float16))


# ---------------------------------------------------------------- the rest


def test_stopping_and_going_on_changes_nothing(corpus: list[str], tmp_path: Path) -> None:
    more = ["fit.max_steps=6", "fit.save_every=3", "data.concat=0.5", "model.source=text"]
    run(corpus, tmp_path / "whole", *more)
    run(corpus, tmp_path / "parts", *more, "fit.max_steps=3", "optim.schedule=constant")
    run(corpus, tmp_path / "again", *more, "optim.schedule=constant")
    run(corpus, tmp_path / "parts", *more, "optim.schedule=constant")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["train_units=''"], ConfigError, "train_units is not set"),
        (["model.n_units=5"], ConfigError, "model.n_units is read"),
        (["size=huge"], ConfigError, "choose small"),
        (["size=paper"], ConfigError, "size=paper sets all of model"),
        (["model.heads.x.speed=1"], ConfigError, "unknown key 'model.heads.x.speed'"),
        (["data.max_seconds=0.01"], DataError, "no pair is left"),
        (["init=nowhere"], Seq2SeqError, "not a seq2seq model"),
        (["features=nothing"], ValueError, "unknown features"),
    ],
)
def test_what_is_refused(
    corpus: list[str], tmp_path: Path, more: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(corpus, tmp_path, *more)


def test_a_bad_recording_is_named(tmp_path: Path) -> None:
    audio.write(tmp_path / "short.wav", np.zeros(100, np.float32), 16000)
    with pytest.raises(FeaturesError, match=r"u: .*short\.wav is too short"):
        features_of([Utterance("u", str(tmp_path / "short.wav"))], Listener.make("logmel"), tmp_path / "f")
    assert not list((tmp_path / "f").glob("*/*"))


def test_the_papers_model_from_the_recipe(corpus: list[str], tmp_path: Path) -> None:
    words = [*corpus, "size=paper", f"out={tmp_path}"]
    model, _, sets = recipe("train_s2ut").build(load(recipe("train_s2ut").Config, None, words))
    assert model.config.encoder_layers == 12 and set(model.config.heads) == {"source", "target", "text"}
    losses = model(sets.train.collate([sets.train[0, 0], sets.train[0, 1]]))
    assert torch.isfinite(losses["loss"])

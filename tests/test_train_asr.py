"""The recogniser's recipe: units and features, pieces, codebooks, centroids, languages, resuming, what goes wrong."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_files import recipe
from safetensors.torch import load_file
from spoken_letters import utterances

from unitkit.bpe import UnitBPE
from unitkit.config import ConfigError, load
from unitkit.data import DataError
from unitkit.manifest import read_manifest, write_manifest
from unitkit.models.seq2seq import Seq2Seq
from unitkit.pairs import collate_pairs
from unitkit.pieces import Pieces, PiecesError
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, Units, UnitsHeader, read_units, write_units

torch.set_num_threads(1)
SMALL = [
    "model.dim=32", "model.hidden=64", "model.attention_heads=2", "model.encoder_layers=2", "model.decoder_layers=1",
    "model.conv_channels=32", "model.branch_hidden=64", "model.branch_kernel=5", "model.dropout=0", "text.kind=char",
    "model.label_smoothing=0", "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.log_every=5",
    "fit.validate_every=1000", "data.batch=12", "optim.warmup=10", "optim.lr=4e-3", "fit.ema=0", "data.masks.times=0",
    "data.masks.bands=0", "units.masks.times=0", "data.dev_utterances=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of two languages, a tokenizer of theirs, and their units."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, n, seed in (("train", 60, 1), ("dev", 16, 2)):
        write_manifest(folder / f"{split}.jsonl", utterances(folder, n, seed=seed, langs=("en", "es")))
    tokenizer = Tokenizer.fit(folder / "train.jsonl", features="logmel", units=14, device="cpu", max_frames=4000)
    tokenizer.save(folder / "tokenizer")
    for split in ("train", "dev"):
        found = [tokenizer.encode(row) for row in read_manifest(folder / f"{split}.jsonl")]
        write_units(folder / f"{split}.units.jsonl", tokenizer.header(), found)
    return folder


def heard(corpus: Path, *more: str) -> list[str]:
    """Words that every run has."""
    manifests = [f"{split}_manifest={corpus}/{split}.jsonl" for split in ("train", "dev")]
    return [*manifests, f"data.cache={corpus}/features", *SMALL, *more]


def read(corpus: Path, *more: str) -> list[str]:
    """The same for models of units."""
    units = [f"{split}_units={corpus}/{split}.units.jsonl" for split in ("train", "dev")]
    return heard(corpus, *units, f"tokenizer={corpus}/tokenizer", *more)


def run(words: Sequence[str], out: Path) -> list[dict[str, float]]:
    module = recipe("train_asr")
    module.train(load(module.Config, None, [*words, f"out={out}"]))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def built(words: Sequence[str], out: Path) -> tuple:
    module = recipe("train_asr")
    return module.build(load(module.Config, None, [*words, f"out={out}"]))


# ---------------------------------------------------------------- learning


def test_units_are_learnt_and_the_directory_has_all(corpus: Path, tmp_path: Path) -> None:
    rows = run(read(corpus, "fit.max_steps=150", "text.langs=true"), tmp_path)
    dev = [row for row in rows if row["split"] == "dev"][-1]
    assert dev["cer"] < 30 and dev["loss"] < 0.7 * dev["loss_other_source"]
    assert {"ctc", "accuracy"} <= dev.keys()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "model.safetensors", "card.md", "text.model", "tokenizer", "best"} <= names
    assert "listener" not in names and "unit_bpe" not in names
    config = Seq2Seq.load(tmp_path).config
    pieces = Pieces.load(tmp_path, langs=config.langs, fingerprint=config.tokenizer)
    assert config.langs == ("en", "es") and config.pieces == pieces.n_pieces
    tokenizer = Tokenizer.load(tmp_path / "tokenizer", device="cpu")
    assert config.source_tokenizer == tokenizer.fingerprint and config.source_rate_hz == tokenizer.rate_hz
    card = (tmp_path / "card.md").read_text()
    assert "bit/s on the dev set" in card and f"`{corpus}/train.jsonl`" in card and "- cer: " in card


def test_the_same_trainer_on_features(corpus: Path, tmp_path: Path) -> None:
    rows = run(heard(corpus, "fit.max_steps=120"), tmp_path)
    dev = [row for row in rows if row["split"] == "dev"][-1]
    assert dev["cer"] < 35 and dev["loss"] < 0.7 * dev["loss_other_source"]
    assert (tmp_path / "listener" / "filterbank").read_text() == "logmel@100\n"
    assert not (tmp_path / "tokenizer").exists()
    config = Seq2Seq.load(tmp_path).config
    assert (config.source, config.features, config.features_dim) == ("features", "logmel@100", 80)


@pytest.mark.parametrize(("share", "names"), [("0", {"accuracy"}), ("1", set())])
def test_attention_alone_and_ctc_alone(corpus: Path, tmp_path: Path, share: str, names: set[str]) -> None:
    rows = run(read(corpus, "fit.max_steps=4", f"model.ctc={share}"), tmp_path)
    told = {"step", "split", "seconds", "loss", "loss_other_source", "cer"}
    assert rows[-1].keys() == told | names and np.isfinite(rows[-1]["loss"])


# ---------------------------------------------------------------- what is read


def test_pieces_of_units(corpus: Path, tmp_path: Path) -> None:
    words = read(corpus, "units.pieces=40", "units.dropout=0.5", "fit.max_steps=3")
    run(words, tmp_path)
    bpe = UnitBPE.load(tmp_path / "unit_bpe")
    config = Seq2Seq.load(tmp_path).config
    assert bpe.reduced and config.source_pieces == len(bpe) and 14 < len(bpe) <= 40
    _, _, _, train, dev = built(words, tmp_path)
    again = [train[0, 3][0].tolist() for _ in range(2)]
    assert again[0] == again[1]  # an example is the same each time …
    assert train[0, 3][0].tolist() != train[1, 3][0].tolist()  # … and another one in each epoch
    assert dev[0, 3][0].tolist() == dev[1, 3][0].tolist()
    spelt = [bpe.decode(train[epoch, 3][0] - 3).ids.tolist() for epoch in (0, 1)]
    assert spelt[0] == spelt[1] == train.rows[train.items[3]].units.dedup()[0].ids.tolist()


def test_runs_frames_and_masks(corpus: Path, tmp_path: Path) -> None:
    frames, runs = (
        built(read(corpus, f"units.reduced={value}", "units.masks.times=3", "units.masks.share=0.2"), tmp_path)
        for value in ("false", "true")
    )
    assert not frames[0].config.source_reduced and runs[0].config.source_reduced
    source, target, _ = frames[3][0, 0]
    units = frames[3].rows[frames[3].items[0]].units
    assert len(source) == len(units) > len(runs[3][0, 0][0])
    mask = frames[1].units.mask
    assert (source == mask).any() and np.array_equal(source[source != mask], units.ids[source != mask] + 3)
    assert not (frames[4][0, 0][0] == mask).any()  # the dev set is not masked
    assert frames[2].decode(target) == frames[3].rows[frames[3].items[0]].text


def test_embeddings_begin_with_centroids(corpus: Path, tmp_path: Path) -> None:
    model, ear, _, _, _ = built(read(corpus, "units.embeddings=centroids"), tmp_path)
    vectors = ear.units.vectors(ear.tokenizer.quantizer)
    assert model.config.embedding_dim == vectors.shape[1] == ear.tokenizer.quantizer.dim
    rows = model.front.table.weight[3:17] * model.front.scale
    assert torch.allclose(rows, (vectors - vectors.mean()) / vectors.std(correction=0), atol=1e-4)


def test_several_codebooks(corpus: Path, tmp_path: Path) -> None:
    header = UnitsHeader("ba9876543210", 50.0, 14, 2)
    for split in ("train", "dev"):
        found = [
            Units(np.stack([u.ids, u.ids[::-1]], axis=1), 50.0, 14, header.tokenizer, u.id)
            for u in read_units(corpus / f"{split}.units.jsonl")
        ]
        write_units(tmp_path / f"{split}.jsonl", header, found)
    words = heard(corpus, f"train_units={tmp_path}/train.jsonl", f"dev_units={tmp_path}/dev.jsonl", "fit.max_steps=3")
    assert np.isfinite(run(words, tmp_path / "out")[-1]["loss"])
    config = Seq2Seq.load(tmp_path / "out").config
    assert config.source_codebooks == 2 and not (tmp_path / "out" / "tokenizer").exists()


def test_changed_and_masked_features(corpus: Path, tmp_path: Path) -> None:
    words = [word for word in heard(corpus, "data.copies=1", "data.changes.noise=1.0") if "data.masks" not in word]
    _, _, _, train, dev = built(words, tmp_path)
    assert len(train.variants) == 2 and len(dev.variants) == 1
    clean = train.variants[0][train.items[0]].astype(np.float32)
    drawn = [train[epoch, 0][0] for epoch in range(6)]
    assert all(one.shape[1] == 80 for one in drawn) and not any(np.array_equal(one, clean) for one in drawn)
    assert np.array_equal(dev[0, 0][0], dev.variants[0][dev.items[0]].astype(np.float32))


# ---------------------------------------------------------------- what is written


def test_texts_in_pieces_with_dropout(corpus: Path, tmp_path: Path) -> None:
    words = [word for word in read(corpus) if word != "text.kind=char"]
    _, _, pieces, train, dev = built([*words, "text.size=20", "text.dropout=0.5"], tmp_path)
    targets = [train[epoch, 5][1] for epoch in range(4)]
    assert len({tuple(target) for target in targets}) > 1
    assert {pieces.decode(target) for target in targets} == {train.rows[train.items[5]].text}
    assert dev[0, 5][1].tolist() == dev[3, 5][1].tolist()


def test_texts_as_they_are_written(corpus: Path, tmp_path: Path) -> None:
    rows = [replace(row, text=f"A! {row.text}?") for row in read_manifest(corpus / "train.jsonl")]
    write_manifest(tmp_path / "train.jsonl", rows)
    words = [word for word in read(corpus) if not word.startswith("train_manifest")]
    words += [f"train_manifest={tmp_path}/train.jsonl"]
    plain, written = (built([*words, f"text.plain={value}"], tmp_path)[3].rows[0].text for value in ("true", "false"))
    assert plain == f"a {rows[0].text}"[:2] + (rows[0].text or "")[3:-1] and written == rows[0].text


# ---------------------------------------------------------------- the rest


def test_stopping_and_going_on_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    more = ["fit.max_steps=6", "fit.save_every=3", "units.pieces=40", "units.dropout=0.3", "units.masks.times=2"]
    words = read(corpus, *more, "optim.schedule=constant")
    run(words, tmp_path / "whole")
    run([*words, "fit.max_steps=3"], tmp_path / "parts")
    run(words, tmp_path / "parts")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_beginning_with_another_model(corpus: Path, tmp_path: Path) -> None:
    run(read(corpus, "fit.max_steps=2"), tmp_path / "first")
    model = built(read(corpus, f"init={tmp_path}/first", "text.kind=bpe", "text.size=20"), tmp_path)[0]
    theirs = Seq2Seq.load(tmp_path / "first")
    assert torch.equal(model.blocks.blocks[1].merge.weight, theirs.blocks.blocks[1].merge.weight)  # type: ignore[union-attr]


def test_what_cannot_be_learned_from_is_named(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(read_manifest(corpus / "train.jsonl"))
    rows[0], rows[1] = replace(rows[0], text=None), replace(rows[1], id="lost")
    write_manifest(tmp_path / "train.jsonl", rows)
    words = [word for word in read(corpus, "data.max_seconds=1.2") if not word.startswith("train_manifest")]
    train = built([*words, f"train_manifest={tmp_path}/train.jsonl"], tmp_path)[3]
    told = capsys.readouterr().err
    assert f"train: 1 utterances have no text and are left out: {rows[0].id}" in told
    assert "train: 1 utterances have no units and are left out: lost" in told and "are too long" in told
    assert 0 < len(train) < 58 and max(row.units.duration for row in (train.rows[i] for i in train.items)) <= 1.2


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["dev_manifest=''"], ConfigError, "dev_manifest is not set"),
        (["dev_units=''"], ConfigError, "go together"),
        (["features=logmel"], ConfigError, "hears no features"),
        (["train_units=''", "dev_units=''"], ConfigError, "tokenizer= is for a model of units"),
        (["units.embeddings=nice"], ConfigError, "choose random or centroids"),
        (["model.pieces=4"], ConfigError, "model.pieces is read from"),
        (["size=huge"], ConfigError, "choose small, paper"),
        (["size=paper"], ConfigError, "size=paper sets all of model"),
        (["text.kind=word"], PiecesError, "known are bpe, char"),
        (["tokenizer=mini-100"], FingerprintError, "tokenizer=mini-100"),
        (["data.max_seconds=0.01"], DataError, "none of 60 utterances"),
        (["units.pieces=3"], ValueError, "no room for the 14 single units"),
    ],
)
def test_what_is_refused(corpus: Path, tmp_path: Path, more: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run([*read(corpus), *more], tmp_path)


def test_the_papers_model_from_the_recipe(corpus: Path, tmp_path: Path) -> None:
    words = [word for word in read(corpus) if not word.startswith("model.")]
    model, _, _, train, _ = built([*words, "size=paper", "units.pieces=40"], tmp_path)
    assert (model.config.encoder_layers, model.config.decoder_layers, model.config.ctc) == (12, 6, 0.3)
    losses = model(collate_pairs([train[0, 0], train[0, 1]]))
    assert torch.isfinite(losses["loss"])

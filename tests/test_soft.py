"""Soft units: the head learns what a frame is, folders carry the fingerprint, and a vocoder speaks them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_files import recipe
from typer.testing import CliRunner

import unitkit
from unitkit import audio
from unitkit.cli import app
from unitkit.config import ConfigError, load
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.models.finetune import Hearing
from unitkit.models.soft import PAPER, Frames, SoftConfig, SoftError, SoftHead, pad_frames
from unitkit.pipeline import encode_soft
from unitkit.soft import (
    SoftHeader,
    SoftUnits,
    begin_soft,
    ids_in,
    read_soft,
    read_soft_header,
    write_soft,
    write_soft_header,
)
from unitkit.units import FingerprintError, UnitsError, UnitsHeader, write_units

torch.set_num_threads(1)
N_UNITS, HOP, RATE = 6, 320, 16000
HEADER = UnitsHeader("5a5a5a5a5a5a", 50.0, N_UNITS)
SMALL = SoftConfig(tokenizer="5a5a5a5a5a5a", n_units=N_UNITS, features_dim=4, dim=5, hidden=8, blocks=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Sentences of tones, a tone for each unit."""
    folder, draw, paths = tmp_path_factory.mktemp("soft"), np.random.default_rng(0), {}
    for split, count in (("train", 24), ("dev", 6)):
        rows, units = [], []
        for number in range(count):
            ids = np.repeat(draw.integers(0, N_UNITS, 10), 5)
            time = np.arange(len(ids) * HOP + 400) / RATE  # more samples, for the window of the last frame
            pitch = np.pad(np.repeat(300 + 350 * ids, HOP), (0, 400), mode="edge")
            wav = (0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * draw.standard_normal(len(time))).astype(np.float32)
            name, path = f"{split}/{number}", folder / f"{split}-{number}.wav"
            audio.write(path, wav, RATE)
            rows.append(Utterance(name, str(path), len(wav) / RATE, None, "ann", "en", "tones"))
            units.append(HEADER.units(ids, name))
        write_manifest(folder / f"{split}.jsonl", rows)
        write_units(folder / f"{split}.units", HEADER, units)
        paths |= {f"{split}_manifest": str(folder / f"{split}.jsonl"), f"{split}_units": str(folder / f"{split}.units")}
    return paths


FAST = [
    "features=logmel", "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.log_every=50",
    "fit.ema=0.9", "model.hidden=32", "model.dim=16", "model.blocks=1", "optim.lr=5e-3",
    "optim.warmup=5", "data.batch=8",
]  # fmt: skip


def words(corpus: dict[str, str], out: Path, *more: str) -> list[str]:
    """The recipe's arguments."""
    return [f"{k}={v}" for k, v in corpus.items()] + [*FAST, f"out={out}", f"data.cache={out}/cache", *more]


@pytest.fixture(scope="module")
def trained(corpus: dict[str, str], tmp_path_factory) -> Path:
    """A soft tokenizer that has learned the tones."""
    out = tmp_path_factory.mktemp("trained")
    steps = ["fit.max_steps=60", "fit.validate_every=60"]
    assert recipe("train_soft").main(words(corpus, out, *steps)) == 0
    return out


def test_the_loss_is_cross_entropy_of_cosines() -> None:
    torch.manual_seed(0)
    head = SoftHead(SMALL).eval()
    rows = [np.random.default_rng(i).standard_normal((n, 4)).astype(np.float32) for i, n in enumerate((7, 4))]
    targets = [np.arange(7) % N_UNITS, np.array([1, 2, 3, 0, 5])]  # one frame more than heard: it counts nothing
    found = head(pad_frames(rows, targets))
    losses = []
    for row, target in zip(rows, targets, strict=True):  # alone, frame by frame
        soft = head.soft(torch.from_numpy(row)[None], torch.tensor([len(row)]))[0]
        for vector, unit in zip(soft, target, strict=False):
            cosines = torch.stack([torch.cosine_similarity(vector, label, dim=0) for label in head.labels.weight])
            losses.append(-(cosines / SMALL.temperature).log_softmax(0)[unit])
    assert len(losses) == 11
    assert float(found["loss"].detach()) == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-4)


def test_it_learns_and_the_control_does_not(trained: Path, corpus: dict[str, str], tmp_path: Path) -> None:
    scores = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    accuracy = max(row.get("accuracy", row.get("dev/accuracy", 0.0)) for row in scores)
    soft = unitkit.SoftTokenizer.load(trained, device="cpu")
    rows = list(read_manifest(corpus["dev_manifest"]))
    truth = {units.id: units.ids for units in unitkit.read_units(corpus["dev_units"])}
    found = [soft.discrete(soft.encode(row)) for row in rows]
    right = np.mean([np.mean(f[: len(truth[r.id])] == truth[r.id][: len(f)]) for f, r in zip(found, rows, strict=True)])
    other = [truth[row.id] for row in rows[1:] + rows[:1]]
    wrong = np.mean([np.mean(f[: len(t)] == t[: len(f)]) for f, t in zip(found, other, strict=True)])
    assert right > 0.9 > 0.4 > wrong and accuracy > 0.5


def test_alone_or_in_a_list_and_from_any_form(trained: Path, corpus: dict[str, str]) -> None:
    soft = unitkit.SoftTokenizer.load(trained, device="cpu")
    rows = list(read_manifest(corpus["dev_manifest"]))[:2]
    one, two = soft.encode(rows)
    assert one.id == rows[0].id and one.tokenizer == soft.fingerprint and one.values.shape == (len(one), 16)
    wav = audio.read(rows[1].audio, RATE)
    np.testing.assert_array_equal(soft.encode(wav, rate=RATE).values, two.values)
    np.testing.assert_array_equal(soft.encode(rows[1].audio).values, two.values)
    with pytest.raises(SoftError, match="8000"):
        soft.encode(wav, rate=8000)


def test_the_fingerprint_is_of_all_that_makes_soft_units(trained: Path) -> None:
    soft = unitkit.SoftTokenizer.load(trained, device="cpu")
    again = unitkit.SoftTokenizer.load(trained, device="cpu")
    assert soft.fingerprint == again.fingerprint and len(soft.fingerprint) == 12
    again.head.project.bias.data[0] += 1
    assert unitkit.SoftTokenizer(again.listener, again.head).fingerprint != soft.fingerprint
    with pytest.raises(SoftError, match="features of"):
        unitkit.SoftTokenizer(soft.listener, SoftHead(SMALL))


def test_a_corpus_becomes_a_folder(trained: Path, corpus: dict[str, str], tmp_path: Path) -> None:
    rows = list(read_manifest(corpus["dev_manifest"]))
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    given = [*rows, Utterance("bad", str(bad))]
    soft = unitkit.SoftTokenizer.load(trained, device="cpu")
    found = encode_soft(soft, given, tmp_path / "out")
    assert (found.encoded, found.kept, [u.id for u, _ in found.bad]) == (6, 0, ["bad"])
    assert "bad" in (tmp_path / "out" / "rejects.jsonl").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    (tmp_path / "out" / "dev" / "3.npy").unlink()
    found = encode_soft(soft, rows, tmp_path / "out")
    assert (found.encoded, found.kept) == (1, 5) and ids_in(tmp_path / "out") == [f"dev/{i}" for i in range(6)]
    kept = [path.stat().st_mtime_ns == time for path, time in before.items() if path.name != "3.npy"]
    assert all(kept)
    one = read_soft(tmp_path / "out", "dev/1")
    np.testing.assert_allclose(one.values, soft.encode(rows[1]).values, atol=2e-2, rtol=2e-3)
    soft.head.project.bias.data[0] += 1
    other = unitkit.SoftTokenizer(soft.listener, soft.head)
    with pytest.raises(FingerprintError, match=soft.fingerprint):
        encode_soft(other, rows, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):  # stopped after the first: the rest is not the old tokenizer's

        def stop(_: object) -> None:
            raise KeyboardInterrupt

        encode_soft(other, rows, tmp_path / "out", overwrite=True, on_progress=stop)
    found = encode_soft(other, rows, tmp_path / "out")
    assert (found.encoded, found.kept) == (5, 1)
    np.testing.assert_allclose(read_soft(tmp_path / "out", "dev/3").values, other.encode(rows[3]).values, atol=2e-2)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UnitsError, match=r"no header\.json"):
        read_soft_header(tmp_path)
    np.save(tmp_path / "mine.npy", np.zeros(1))
    with pytest.raises(UnitsError, match=r"mine\.npy and others.*give another folder"):
        begin_soft(tmp_path, SoftHeader("a" * 12, 50.0, 2))
    assert (tmp_path / "mine.npy").exists()
    (tmp_path / "header.json").write_text("[]")
    with pytest.raises(UnitsError, match="not a header"):
        read_soft_header(tmp_path)
    write_soft_header(tmp_path, SoftHeader("a" * 12, 50.0, 2))
    with pytest.raises(UnitsError, match="no soft units of 'x'"):
        read_soft(tmp_path, "x")
    with pytest.raises(UnitsError, match="leads out"):
        write_soft(tmp_path, SoftUnits(np.zeros((1, 2), np.float32), 50.0, "a" * 12, "../x"))
    with pytest.raises(UnitsError, match="int64"):
        SoftUnits(np.zeros((1, 2), np.int64), 50.0, "a" * 12)


def test_the_command_line_encodes_and_a_vocoder_speaks(trained: Path, corpus: dict[str, str], tmp_path: Path) -> None:
    run = CliRunner()
    for split in ("train", "dev"):
        done = run.invoke(app, ["encode", corpus[f"{split}_manifest"], "-t", str(trained), "-o", str(tmp_path / split)])
        assert done.exit_code == 0, done.output
    assert run.invoke(app, ["encode", "x", "-t", str(trained), "-o", "y", "--workers", "2"]).exit_code != 0
    settings = [f"data.features_{split}={tmp_path / split}" for split in ("train", "dev")]
    tiny = ["fit.max_steps=2", "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "data.batch=2"]
    core = ["model.core=istft", "model.istft.dim=16", "model.istft.blocks=1", "loss.gan=false", f"out={tmp_path / 'v'}"]
    assert recipe("train_vocoder").main([f"{k}={v}" for k, v in corpus.items()] + settings + tiny + core) == 0
    vocoder, soft = unitkit.Vocoder.load(tmp_path / "v"), unitkit.SoftTokenizer.load(trained, device="cpu")
    assert vocoder.tokenizer == soft.fingerprint
    row = next(read_manifest(corpus["dev_manifest"]))
    units = soft.encode(row)
    assert len(vocoder(units)) == len(units) * HOP
    pieces = np.concatenate(list(vocoder.stream(units, seconds=0.1)))
    np.testing.assert_allclose(pieces, vocoder(units), atol=1e-5)
    with pytest.raises(FingerprintError, match="5a5a5a5a5a5a"):
        vocoder(HEADER.units(np.zeros(5, np.int64), "x"))
    with pytest.raises(ValueError, match="leave durations out"):
        vocoder(units, durations="predicted")
    done = run.invoke(app, ["vocode", str(tmp_path / "dev"), "-m", str(tmp_path / "v"), "-o", str(tmp_path / "wavs"),
                            "--like", corpus["dev_manifest"]])  # fmt: skip
    assert done.exit_code == 0, done.output
    spoken = list(read_manifest(tmp_path / "wavs" / "manifest.jsonl"))
    assert [r.id for r in spoken] == [f"dev/{i}" for i in range(6)] and spoken[0].text == "tones"


@pytest.fixture(scope="module")
def hubert(tmp_path_factory) -> Path:
    """A tiny HuBERT on disk."""
    from transformers import HubertConfig, HubertModel

    path = tmp_path_factory.mktemp("hubert")
    config = HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    HubertModel(config).save_pretrained(path)
    return path


def test_the_paper_s_head_learns_with_the_whole_model(hubert: Path, corpus: dict[str, str], tmp_path: Path) -> None:
    assert (PAPER.blocks, PAPER.dim, PAPER.temperature) == (0, 256, 0.1)
    words = [f"{k}={v}" for k, v in corpus.items()] + [
        f"features={hubert}", "layer=1", "finetune=all", "size=paper", f"out={tmp_path}", "fit.device=cpu",
        "fit.precision=fp32", "fit.tensorboard=false", "fit.max_steps=1", "data.batch=2", "fit.validate_every=1",
    ]  # fmt: skip
    module = recipe("train_soft")
    model, _, _, _ = module.build(load(module.Config, None, words))
    assert isinstance(model, Hearing) and sum(p.numel() for p in model.head.parameters()) == 32 * 256 + 256 + 6 * 256
    before = model.net.encoder.layers[0].attention.q_proj.weight.detach().clone()
    assert module.main(words) == 0
    after = unitkit.SoftTokenizer.load(tmp_path, device="cpu")
    encoder = after.listener.encoder.model  # type: ignore[attr-defined]
    assert not torch.equal(encoder.encoder.layers[0].attention.q_proj.weight, before)


def test_settings_that_cannot_be(corpus: dict[str, str], tmp_path: Path) -> None:
    module = recipe("train_soft")
    for given, said in (
        (["train_units=''"], "train_units is not set"),
        (["model.n_units=4"], r"model\.n_units is read from the data"),
        (["size=large"], "known are small, paper"),
        (["size=paper"], "take the other model settings out"),
    ):
        with pytest.raises(ConfigError, match=said):
            module.main(words(corpus, tmp_path, *given))
    with pytest.raises(ValueError, match="frames: take features of the units' rate"):
        module.main(words(corpus, tmp_path, "features=logmel@100"))
    with pytest.raises(SoftError, match="temperature 0"):
        SoftConfig(temperature=0)
    with pytest.raises(SoftError, match="not set"):
        SoftHead(SoftConfig())


def test_batches_move_as_one() -> None:
    batch = pad_frames([np.zeros((3, 2), np.float32)], [np.zeros(2, np.int64)])
    assert isinstance(batch.to("cpu"), Frames) and batch.target.tolist() == [[0, 0]]

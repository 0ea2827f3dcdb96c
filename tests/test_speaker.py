"""The speaker encoder: level and padding change nothing, voices are told apart, files, error rates; and its recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_files import recipe

from unitkit import audio
from unitkit.audio import Mel
from unitkit.config import ConfigError
from unitkit.data import DataError
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics.speaker import equal_error_rate, verification
from unitkit.models.layers import UtteranceEncoder, pooled
from unitkit.models.speaker import MarginHead, SpeakerConfig, SpeakerEncoder, SpeakerError, SpeakerNet
from unitkit.models.vocoder import n_parameters

torch.set_num_threads(1)
RATE = 16000
TINY = SpeakerConfig(mel=Mel(n_mels=24), hidden=16, layers=1, dim=8)


def voice(number: int, draw: np.random.Generator, seconds: float = 0.9) -> np.ndarray:
    """A voice is a spectrum: harmonics under peaks of its own; what it says moves one more peak about."""
    times = np.arange(int(seconds * RATE)) / RATE
    height = (90 + 31 * number) * 2 ** (0.1 * np.sin(2 * np.pi * draw.uniform(1, 3) * times))
    phase = 2 * np.pi * np.cumsum(height) / RATE
    moving = 700 + 500 * np.sin(2 * np.pi * draw.uniform(1, 3) * times + draw.uniform(0, 6))
    peaks = (1500 + 410 * number, 5200 - 370 * number)
    gains = [
        np.exp(-(((k * height - moving) / 300) ** 2)) + sum(np.exp(-(((k * height - p) / 200) ** 2)) for p in peaks)
        for k in range(1, 40)
    ]
    wav = sum(gain * np.sin(k * phase) for k, gain in enumerate(gains, 1))
    return (0.05 * wav + 0.001 * draw.standard_normal(len(wav))).astype(np.float32)


def net() -> SpeakerNet:
    torch.manual_seed(0)
    return SpeakerNet(TINY).eval()


def test_what_lies_behind_a_row_changes_nothing() -> None:
    torch.manual_seed(0)
    encoder, x = UtteranceEncoder(6, 8, 4, layers=2).eval(), torch.randn(1, 15, 6)
    alone = encoder(x, torch.tensor([15]))
    padded = torch.cat([x, torch.randn(1, 7, 6)], dim=1)
    assert torch.allclose(encoder(padded, torch.tensor([15])), alone, atol=1e-5)
    mask = torch.arange(22)[None] < 15
    slow = torch.cat([x[0].mean(0), x[0].std(0, correction=0)])
    assert torch.allclose(pooled(padded, mask)[0], slow, atol=1e-5)


def test_vectors_have_length_one_whatever_the_level() -> None:
    encoder = SpeakerEncoder(net())
    wav = voice(1, np.random.default_rng(0))
    one, louder = encoder(wav), encoder(3 * wav)
    assert one.shape == (8,) and one.dtype == np.float32 and np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert np.allclose(one, louder, atol=1e-3) and np.array_equal(encoder(torch.from_numpy(wav)), one)
    assert not np.allclose(one, encoder(voice(4, np.random.default_rng(0))), atol=1e-3)


def test_the_usual_size_is_below_two_megabytes() -> None:
    assert 4 * n_parameters(SpeakerNet(SpeakerConfig())) < 2e6


def test_files_and_refusals(tmp_path: Path) -> None:
    encoder = SpeakerEncoder(net())
    encoder.save(tmp_path / "s", card="# Mine\n")
    again = SpeakerEncoder.load(tmp_path / "s")
    wav = voice(2, np.random.default_rng(1))
    assert np.array_equal(again(wav), encoder(wav)) and again.checksum() == encoder.checksum()
    assert (again.dim, again.sample_rate) == (8, RATE) and (tmp_path / "s" / "card.md").read_text() == "# Mine\n"
    with pytest.raises(SpeakerError, match=r"is not a speaker encoder: it has no config\.yaml"):
        SpeakerEncoder.load(tmp_path)
    with pytest.raises(SpeakerError, match="a silent recording has no speaker"):
        encoder(np.zeros(4000, np.float32))
    with pytest.raises(SpeakerError, match="at least 200 of them"):
        encoder(np.ones(100, np.float32))
    with torch.no_grad():
        encoder.net.encoder.leave.bias += 1
    assert again.checksum() != encoder.checksum()


def test_the_margin_asks_for_more_than_being_right() -> None:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    head, plain = MarginHead(8, 3, margin=0.3, scale=10), MarginHead(8, 3, margin=0.0, scale=10)
    plain.load_state_dict(head.state_dict())
    voices = torch.tensor([0, 1, 2, 0, 1])
    cosines = vectors @ torch.nn.functional.normalize(head.voices, dim=1).T
    slow = 0.0
    for c, v in zip(cosines.tolist(), voices.tolist(), strict=True):
        mine, others = np.exp(10 * (c[v] - 0.3)), sum(np.exp(10 * c[k]) for k in range(3) if k != v)
        slow -= np.log(mine / (mine + others)) / 5
    assert float(head(vectors, voices)["loss"].detach()) == pytest.approx(slow, rel=1e-4)
    assert head(vectors, voices)["loss"] > plain(vectors, voices)["loss"]
    right = (cosines.argmax(1) == voices).float().mean()
    assert head(vectors, voices)["accuracy"] == right


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.lists(st.floats(-1, 1), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_equal_error_rate(same: list[float], different: list[float]) -> None:
    """Against trying every threshold."""
    found = equal_error_rate(np.array(same), np.array(different))
    tries = []
    for threshold in [*same, *different, 9.0]:
        missed = sum(s < threshold for s in same) / len(same)
        false = sum(d >= threshold for d in different) / len(different)
        tries.append((abs(missed - false), 50 * (missed + false)))
    best = min(gap for gap, _ in tries)
    assert any(abs(gap - best) < 1e-9 and abs(rate - found) < 1e-6 for gap, rate in tries)


def test_pairs_of_voices() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], np.float32)
    scores = verification(vectors, ["a", "a", "b", "b"])
    assert scores["same"] == pytest.approx(0.8) and scores["different"] == pytest.approx(0, abs=1e-6)
    assert scores["eer"] == 0
    assert verification(vectors[[0, 2, 1, 3]], ["a", "a", "b", "b"])["eer"] > 40  # names that say nothing
    with pytest.raises(ValueError, match="an error rate needs both"):
        verification(vectors, ["a"] * 4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Four voices to learn, two that are never heard in training."""
    folder, draw, paths = tmp_path_factory.mktemp("voices"), np.random.default_rng(0), {}
    for split, numbers, count in (("train", (0, 2, 3, 5), 5), ("dev", (0, 2, 3, 5), 2), ("unseen", (1, 4), 4)):
        rows = []
        for number in numbers:
            for take in range(count):
                path = folder / f"{split}-{number}-{take}.wav"
                audio.write(path, voice(number, draw), RATE)
                rows.append(Utterance(f"{number}/{take}", str(path), 0.9, speaker=f"v{number}"))
        paths[f"{split}_manifest"] = str(folder / f"{split}.jsonl")
        write_manifest(paths[f"{split}_manifest"], rows)
    return paths | {"data.cache": str(folder / "cache")}


BASE = [
    "fit.device=cpu", "fit.precision=fp32", "fit.tensorboard=false", "fit.log_every=20", "fit.validate_every=1000",
    "data.batch=16", "data.seconds=[0.4,0.8]", "data.semitones=[3]", "model.hidden=24", "model.layers=1",
    "model.dim=12", "model.mel.n_mels=40", "optim.lr=1e-2", "optim.warmup=5", "fit.ema=0.9", "model.dropout=0",
    "scale=10",
]  # fmt: skip


def test_it_tells_voices_apart_that_it_never_heard(corpus, tmp_path, capsys) -> None:
    module = recipe("train_speaker")
    words = [f"{key}={value}" for key, value in corpus.items()] + BASE
    assert module.main([*words, f"out={tmp_path / 'out'}", "fit.max_steps=50"]) == 0
    assert "8 voices" in capsys.readouterr().err  # four, each at two pitches
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    dev, train = rows[-1], [row for row in rows if row["split"] == "train"]
    assert train[-1]["loss"] < 0.5 * train[0]["loss"] and train[-1]["accuracy"] > 0.8
    assert dev["eer"] < 10 and dev["same"] > dev["different"] + 0.4
    assert dev["eer_unseen"] < 25
    encoder = SpeakerEncoder.load(tmp_path / "out")
    heard = [(encoder(audio.read(row.audio, RATE)), row.speaker) for row in read_manifest(corpus["dev_manifest"])]
    scores = verification(np.stack([v for v, _ in heard]), [s or "" for _, s in heard])
    assert scores["eer"] == pytest.approx(dev["eer"], abs=3)
    card = (tmp_path / "out" / "card.md").read_text()
    assert corpus["train_manifest"] in card and "- eer_unseen: " in card


def test_resuming_is_bit_for_bit(corpus, tmp_path) -> None:
    module, small = recipe("train_speaker"), ["model.hidden=8", "data.batch=4", "optim.schedule=constant"]
    words = [f"{key}={value}" for key, value in corpus.items()] + [*BASE, *small]
    assert module.main([*words, f"out={tmp_path / 'once'}", "fit.max_steps=4"]) == 0
    for steps in (2, 4):
        assert module.main([*words, f"out={tmp_path / 'twice'}", f"fit.max_steps={steps}"]) == 0
    once, twice = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice


def test_what_cannot_be_learned_from_is_refused(corpus, tmp_path) -> None:
    module = recipe("train_speaker")
    words = [f"{key}={value}" for key, value in corpus.items()] + [*BASE, f"out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match="dev_manifest is not set: pass dev_manifest=path"):
        module.main([word for word in words if not word.startswith("dev_manifest")])
    with pytest.raises(DataError, match="v0, v2, v3, v5 are voices trained on"):
        module.main([*words, f"unseen_manifest={corpus['dev_manifest']}"])
    write_manifest(tmp_path / "nameless.jsonl", [Utterance("a", str(tmp_path / "a.wav"), 1.0)])
    with pytest.raises(DataError, match="1 rows name no speaker, such as a"):
        module.main([*words, f"dev_manifest={tmp_path / 'nameless.jsonl'}"])

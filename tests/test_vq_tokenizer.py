"""A pre-trained vq-wav2vec as a tokenizer: units of the model as it was trained, alone, in blocks and from disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import unitkit.encoders.convolutional as convolutional
from unitkit import audio, recording
from unitkit.cli import app
from unitkit.encoders import load_encoder
from unitkit.manifest import Utterance, write_manifest
from unitkit.models.ssl.vq_wav2vec import QUANTIZERS, VqConfig, VqWav2Vec
from unitkit.quantizers import KMeans
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError

RATE = 16000
SIZES: dict[str, dict[str, Any]] = {
    "small": {"dim": 24, "codes": 20},
    "groups": {"dim": 24, "codes": 12, "groups": 3, "kernels": (10, 8, 4, 3, 2, 1), "strides": (5, 4, 2, 2, 2, 1)},
    "one group": {"dim": 16, "codes": 12, "groups": 1},
}


def wave(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = 120 + 60 * seed + 40 * np.sin(2 * np.pi * 1.5 * t)
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) * np.abs(np.sin(3 * t + seed))
    return (0.3 * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def model_of(quantizer: str, size: str = "small") -> VqWav2Vec:
    """A model whose weights are far from their start, and whose codes lie among the features."""
    torch.manual_seed(0)
    model = VqWav2Vec(VqConfig(quantizer=quantizer, context_kernels=(3, 3), dropout=0.3, **SIZES[size]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if quantizer == "kmeans":
            model.quantizer.centroids.normal_()
    return model.eval()


def trained(model: VqWav2Vec, wav: np.ndarray) -> np.ndarray:
    """Codes (frames, groups) of a wav by the modules that are trained, all of it at once."""
    with torch.no_grad():
        return model.quantizer(model.encoder(torch.from_numpy(wav)[None]), 1.0).codes[0].numpy()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for seed in range(4):
        audio.write(root / f"u{seed}.wav", wave(1.1 + 0.4 * seed, seed), RATE)
        rows.append(Utterance(f"u{seed}", str(root / f"u{seed}.wav")))
    write_manifest(root / "train.jsonl", rows)
    return rows


@pytest.fixture(scope="module", params=QUANTIZERS)
def model(request: pytest.FixtureRequest) -> VqWav2Vec:
    return model_of(request.param)


@pytest.fixture(scope="module")
def saved(model: VqWav2Vec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(model.config.quantizer)
    model.save(root)
    return root


@pytest.fixture(scope="module")
def tok(saved: Path) -> Tokenizer:
    return Tokenizer.fit([], features=saved, device="cpu")


# ------------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_units_are_those_of_the_modules_that_were_trained(quantizer: str, size: str, tmp_path: Path) -> None:
    model = model_of(quantizer, size)
    model.save(tmp_path)
    tok = Tokenizer.fit([], features=tmp_path)
    groups = model.config.groups
    assert (tok.rate_hz, tok.sample_rate, tok.codebooks, tok.n_units) == (100.0, RATE, groups, model.config.codes)
    for seed in range(4):
        wav = wave(2 + seed, seed)
        wanted = trained(model, wav)
        assert len(np.unique(wanted)) > 3
        units = tok.encode(wav, rate=RATE)
        assert np.array_equal(units.ids.reshape(-1, groups), wanted)
        assert torch.equal(model.train().units(torch.from_numpy(wav)), torch.from_numpy(wanted)) and model.training
        model.eval()


def test_features_are_what_the_quantizer_decides_by(model: VqWav2Vec, tok: Tokenizer) -> None:
    wav = wave(3, 1)
    with torch.no_grad():
        z = model.encoder(torch.from_numpy(wav)[None])
        part: Any = model.quantizer
        wanted = part.projection(z)[0].T if model.config.quantizer == "kmeans" else part.logits(z[0].T)
    found = tok.encoder(wav)
    assert found.shape == wanted.shape == (tok.encoder.n_frames(len(wav)), tok.encoder.dim)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert not found.is_inference() and tok.encoder.exact_context is None


@pytest.mark.parametrize("n_samples", [465, 466, 624, 625, 16000, 16100])
def test_frame_counts(model: VqWav2Vec, tok: Tokenizer, n_samples: int) -> None:
    wav = wave(2, 0)[:n_samples]
    assert len(tok.encoder(wav)) == tok.encoder.n_frames(n_samples) == len(trained(model, wav))
    with pytest.raises(ValueError, match="wav of 464 samples is too short for vq-wav2vec: at least 465"):
        tok.encoder(wav[:464])


def test_alone_in_a_list_from_a_file_or_in_blocks(
    tok: Tokenizer, corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [tok.encode(u) for u in corpus]
    assert tok.encode(corpus[::-1]) == alone[::-1] and tok.encode(corpus, batched=True) == alone
    wav = audio.read(corpus[3].audio, RATE)
    whole = tok.encoder(wav)
    for cut in ([1, 700, 701], [len(wav) - 1], list(range(1000, len(wav), 1000))):
        pieces = list(tok.encoder.pieces(lambda cut=cut: np.split(wav, cut)))
        assert torch.equal(torch.cat(pieces), whole)
    # Chunks smaller than the recording, held and computed again for every norm: the same units as in one chunk.
    for held in (convolutional.HELD_BYTES, 0):
        monkeypatch.setattr(convolutional, "HELD_BYTES", held)
        monkeypatch.setattr(convolutional, "CHUNK_FRAMES", 37)
        monkeypatch.setattr(recording, "HELD_BLOCKS", 0)
        assert [tok.encode(u) for u in corpus] == alone


def test_long_recordings_have_no_windows_and_are_the_same_bits_however_they_are_held(
    model: VqWav2Vec, tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wav = np.concatenate([wave(25, seed) for seed in range(3)])
    audio.write(tmp_path / "long.wav", wav, RATE)
    wav = audio.read(tmp_path / "long.wav", RATE)
    whole = tok.encoder(wav)
    assert tok.window_s is None
    monkeypatch.setattr(convolutional, "HELD_BYTES", 0)
    assert torch.equal(tok.encoder(wav), whole)
    monkeypatch.setattr(recording, "HELD_BLOCKS", 1)
    units = tok.encode(tmp_path / "long.wav").ids
    assert np.array_equal(units, tok.quantizer.assign(whole)) and len(units) == 7498
    assert np.mean(units == trained(model, wav)) > 0.999  # rounding of sums over a minute


# ------------------------------------------------------------------------------------------------------------- files


def test_save_and_load(tok: Tokenizer, saved: Path, corpus: list[Utterance], tmp_path: Path) -> None:
    tok.save(tmp_path / "tok")
    again = Tokenizer.load(tmp_path / "tok")
    assert again.fingerprint == tok.fingerprint and again.encode(corpus) == tok.encode(corpus)
    assert again.embed(again.encode(corpus[0])).shape == (again.encode(corpus[0]).n_frames, again.encoder.dim)
    kept = load_file(tmp_path / "tok" / "encoder" / convolutional.WEIGHTS)
    assert not [name for name in kept if name.startswith(("context", "predictor", "quantizer.centroids"))]
    assert json.loads(json.dumps(tok.encoder.settings())) == tok.encoder.settings()
    assert Tokenizer.fit([], features=str(saved)).fingerprint == tok.fingerprint
    with pytest.raises(ValueError, match="whole recordings"):
        tok.stream()


def edit(directory: Path, name: str, change: Callable[[torch.Tensor], Any]) -> None:
    path = next(path for path in (directory / convolutional.WEIGHTS, directory / "model.safetensors") if path.exists())
    weights = load_file(path)
    change(weights[name])
    save_file(weights, path)


def test_the_fingerprint_covers_every_weight_that_is_used(
    model: VqWav2Vec, tok: Tokenizer, saved: Path, tmp_path: Path
) -> None:
    def fingerprint(name: str) -> str:
        model.save(tmp_path)
        edit(tmp_path, name, lambda tensor: tensor.view(-1)[-1:].mul_(1.001))
        return Tokenizer.fit([], features=tmp_path).fingerprint

    used = [name for name in model.state_dict() if name.startswith(("encoder", "quantizer"))]
    if model.config.quantizer == "gumbel":
        used.remove("quantizer.centroids")  # what a code stands for in training: no unit hangs on it
        assert fingerprint("quantizer.centroids") == tok.fingerprint
    found = {fingerprint(name) for name in used}
    assert len(found | {tok.fingerprint}) == len(used) + 1
    assert fingerprint("predictor.weight") == tok.fingerprint
    tok.save(tmp_path / "tok")
    edit(tmp_path / "tok" / "encoder", "encoder.layers.0.weight", lambda tensor: tensor.view(-1)[:1].add_(1e-3))
    with pytest.raises(FingerprintError, match="differ in fingerprint, encoder"):
        Tokenizer.load(tmp_path / "tok")


def test_half_and_shared_encoders(saved: Path, tok: Tokenizer, corpus: list[Utterance], tmp_path: Path) -> None:
    half = Tokenizer.fit([], features=saved, half=True)
    half.save(tmp_path / "half")
    kept = load_file(tmp_path / "half" / "encoder" / convolutional.WEIGHTS)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16} and half.fingerprint != tok.fingerprint
    again = Tokenizer.load(tmp_path / "half")
    assert again.fingerprint == half.fingerprint and again.encode(corpus) == half.encode(corpus)
    fitted = Tokenizer.fit(corpus, encoder_of=tmp_path / "half", units=7)  # k-means on the same features
    fitted.save(tmp_path / "fitted", encoder_of=tmp_path / "half")
    assert (fitted.n_units, fitted.codebooks) == (7, 1) and not (tmp_path / "fitted" / "encoder").exists()
    assert Tokenizer.load(tmp_path / "fitted").encode(corpus) == fitted.encode(corpus)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_other_units_than_its_own_are_refused(saved: Path, tok: Tokenizer) -> None:
    same = Tokenizer.fit([], features=saved, units=20, codebooks=2, kind="product")
    assert same.fingerprint == tok.fingerprint
    with pytest.raises(ValueError, match=r"units 100, where the encoder's own has 20, codebooks 1, .* has 2\. Leave"):
        Tokenizer.fit([], features=saved, units=100, codebooks=1)
    with pytest.raises(ValueError, match="kind plain, where the encoder's own has product"):
        Tokenizer.fit([], features=saved, kind="plain")
    for wrong, words in (
        ({"layer": 2}, "no layers, but layer=2"),
        ({"padding": "center"}, "vq-wav2vec cannot take padding 'center'; known: none"),
        ({"precision": "bfloat16"}, "float32 only, not in bfloat16"),
        ({"engine": "fast"}, "float32 only, not in float32 on engine 'fast'"),
    ):
        with pytest.raises(ValueError, match=words):
            load_encoder(saved, **wrong)


def test_broken_directories_are_named(tmp_path: Path) -> None:
    model = model_of("kmeans")

    def refused(words: str) -> None:
        with pytest.raises(ValueError, match=words):
            load_encoder(tmp_path)
        model.save(tmp_path)
        load_encoder(tmp_path)

    model.save(tmp_path)
    config = tmp_path / convolutional.CONFIG
    config.write_text("layers: 6\ndim: 192\n")
    refused(r"objective\.yaml: not of a vq-wav2vec: it lacks quantizer, kernels, strides, groups, codes")
    config.write_text("{")
    refused(r"objective\.yaml: ")
    config.write_text(config.read_text().replace("dim: 24", "dim: many"))
    refused(r"objective\.yaml: .*many")
    config.write_text(config.read_text().replace("quantizer: kmeans", "quantizer: fsq"))
    refused(r"objective\.yaml: quantizer 'fsq' is unknown; known: kmeans, gumbel")
    config.write_text(config.read_text().replace("dim: 24", "dim: 32"))
    refused(r"encoder\.layers\.0\.weight should be \(32, 1, 10\), as objective\.yaml says, but there is \(24, 1, 10\)")
    config.write_text(config.read_text().replace("quantizer: kmeans", "quantizer: gumbel"))
    refused(r"quantizer\.logits\.0\.weight should be \(48, 24\), .* but there is nothing")
    (tmp_path / convolutional.WEIGHTS).write_bytes(b"short")
    refused(r"objective\.safetensors: ")


def test_fit_on_the_command_line(saved: Path, tok: Tokenizer, corpus: list[Utterance], tmp_path: Path) -> None:
    manifest = str(Path(corpus[0].audio).with_name("train.jsonl"))
    done = CliRunner().invoke(app, ["fit", manifest, "-o", str(tmp_path / "tok"), "--features", str(saved)])
    assert done.exit_code == 0, done.output
    assert Tokenizer.load(tmp_path / "tok").fingerprint == tok.fingerprint
    assert "learned with the encoder" in (tmp_path / "tok" / "card.md").read_text()
    wrong = CliRunner().invoke(app, ["fit", manifest, "-o", str(tmp_path / "no"), "--features", str(saved), "-k", "9"])
    assert "units 9, where the encoder's own has 20" in str(wrong.exception)


def test_codebooks_as_a_quantizer() -> None:
    books = torch.randn(3, 5, 4)
    features = torch.randn(200, 12)
    found = KMeans.of_codebooks(books).assign(features)
    for book in range(3):
        assert torch.equal(found[:, book], torch.cdist(features[:, 4 * book : 4 * book + 4], books[book]).argmin(1))
    one_hot, logits = KMeans.of_codebooks(torch.eye(10)[None]), torch.randn(500, 10)
    assert torch.equal(one_hot.assign(logits), logits.argmax(1))
    ties = logits.round(decimals=1)  # among equals the rounding of float64 decides
    assert torch.equal(ties.gather(1, one_hot.assign(ties)[:, None])[:, 0], ties.amax(1))

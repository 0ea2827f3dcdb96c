"""How little of a tokenizer lies on disk: weights in half precision, and one encoder for several tokenizers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_encoders import CHECKPOINTS, WAV, model_of
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from unitkit import audio
from unitkit.cli import app
from unitkit.encoders import load_encoder
from unitkit.encoders.weights import smallest
from unitkit.manifest import Utterance, write_manifest
from unitkit.tokenizer import Tokenizer, TokenizerError, files
from unitkit.units import FingerprintError

RATE = 16000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rows = []
    for number in range(3):
        loud = 0.2 * np.abs(np.sin(np.arange(RATE) / 2000 + number))
        audio.write(root / f"{number}.wav", (loud * rng.standard_normal(RATE)).astype(np.float32), RATE)
        rows.append(Utterance(f"{number}", str(root / f"{number}.wav")))
    write_manifest(root / "train.jsonl", rows)
    return rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hubert")
    model_of("hubert-base").save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def halved(corpus: list[Utterance], checkpoint: Path) -> Tokenizer:
    return Tokenizer.fit(corpus, features=checkpoint, layer=2, units=12, half=True)


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def kinds_of(directory: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in weights_of(directory).values() if tensor.is_floating_point()}


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = weights_of(directory)
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


# -------------------------------------------------------------------------------------------------------------- half


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_half_is_stored_in_half_and_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model_of(name).save_pretrained(tmp_path / "full")
    full, half = load_encoder(tmp_path / "full", layer=2), load_encoder(tmp_path / "full", layer=2, half=True)
    for key, weight in half.model.state_dict().items():
        original = full.model.state_dict()[key]
        assert weight.dtype == original.dtype != torch.float16
        if weight.is_floating_point():
            assert torch.equal(weight, original.half().float())
    assert half.settings()["weights"] != full.settings()["weights"]
    full.save(tmp_path / "saved-full")
    half.save(tmp_path / "saved-half")
    assert kinds_of(tmp_path / "saved-full") == {torch.float32} and kinds_of(tmp_path / "saved-half") == {torch.float16}
    again = load_encoder(tmp_path / "saved-half")
    assert again.settings() == half.settings() and torch.equal(again(WAV), half(WAV))
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert not [key for key in weights_of(tmp_path / "saved-half") if "mask" in key or "adapter" in key]


@pytest.mark.parametrize("name", ["hubert-large", "mhubert", "w2v-bert", "whisper"])
def test_checkpoints_in_half_precision_from_elsewhere_compute_in_float32(name: str, tmp_path: Path) -> None:
    import copy

    copy.deepcopy(model_of(name)).half().save_pretrained(tmp_path / "theirs")
    copy.deepcopy(model_of(name)).half().float().save_pretrained(tmp_path / "floats")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["dtype"] == "float16"
    theirs, floats = load_encoder(tmp_path / "theirs", layer=3), load_encoder(tmp_path / "floats", layer=3)
    assert theirs(WAV).dtype == torch.float32 and torch.equal(theirs(WAV), floats(WAV))
    assert theirs.settings() == floats.settings()


def test_weights_that_are_not_all_exact_stay_as_they_are() -> None:
    exact = {"a": torch.tensor([1.5, -0.0, 2.0**-24, 65504.0]), "n": torch.tensor([70000])}
    small = smallest(exact)
    assert small["a"].dtype == torch.float16 and torch.equal(small["n"], exact["n"])
    assert np.array_equal(small["a"].float().numpy().view(np.int32), exact["a"].numpy().view(np.int32))
    for odd in (0.1, 1e-9, 65505.0, 1e9, float("nan")):
        kept = smallest({**exact, "b": torch.tensor([0.5, odd])})
        assert kept["a"].dtype == kept["b"].dtype == torch.float32


def test_half_of_what_float16_cannot_hold_names_the_tensor(checkpoint: Path, tmp_path: Path) -> None:
    key = "encoder.layers.1.feed_forward.output_dense.weight"
    shutil.copytree(checkpoint, tmp_path / "large")
    edit_weights(tmp_path / "large", lambda weights: weights[key].view(-1)[3:4].fill_(-7e4))
    with pytest.raises(ValueError, match=rf"large: {key} reaches 70000, but float16 ends at 65504; leave half"):
        load_encoder(tmp_path / "large", layer=2, half=True)
    assert load_encoder(tmp_path / "large", layer=1, half=True).settings()["layer"] == 1  # not among these layers
    with pytest.raises(ValueError, match="mfcc has no weights to be rounded"):
        load_encoder("mfcc", half=True)


def test_a_half_tokenizer_is_fitted_to_the_rounded_weights(
    halved: Tokenizer, corpus: list[Utterance], checkpoint: Path, tmp_path: Path
) -> None:
    halved.save(tmp_path / "half")
    again = Tokenizer.load(tmp_path / "half")
    assert again.fingerprint == halved.fingerprint and again.encode(corpus) == halved.encode(corpus)
    assert again.recipe["half"] is True and "arithmetic" not in again.encoder.settings()
    full = Tokenizer.fit(corpus, features=checkpoint, layer=2, units=12)
    full.save(tmp_path / "full")
    assert full.fingerprint != halved.fingerprint and "half" not in full.recipe
    sizes = [(tmp_path / name / "encoder" / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    # The same as of a checkpoint that was rounded before: nothing but the weights is different.
    halved.encoder.save(tmp_path / "rounded")
    same = Tokenizer.fit(corpus, features=tmp_path / "rounded", layer=2, units=12)
    assert same.fingerprint == halved.fingerprint


# ------------------------------------------------------------------------------------------------------------ shared


@pytest.fixture
def pair(halved: Tokenizer, corpus: list[Utterance], tmp_path: Path) -> tuple[Path, Path, Tokenizer]:
    """A tokenizer, another of the same encoder beside it, and that one as it was fitted."""
    large, small = tmp_path / "home" / "large", tmp_path / "home" / "small"
    halved.save(large)
    tok = Tokenizer.fit(corpus, encoder_of=large, units=5)
    tok.save(small, encoder_of=large)
    return large, small, tok


def test_one_encoder_for_two(
    pair: tuple[Path, Path, Tokenizer], halved: Tokenizer, corpus: list[Utterance], tmp_path: Path
) -> None:
    large, small, tok = pair
    assert tok.encoder.settings() == halved.encoder.settings() and tok.n_units == 5
    assert tok.recipe == halved.recipe
    assert {path.name for path in small.iterdir()} == {"tokenizer.json", "model.safetensors", "card.md"}
    assert json.loads((small / "tokenizer.json").read_text())["encoder_of"] == "../large"
    assert "those of `../large`" in (small / "card.md").read_text()
    tok.save(tmp_path / "alone")  # the same tokenizer with an encoder of its own
    large.parent.rename(tmp_path / "moved")
    for directory in (tmp_path / "moved" / "small", tmp_path / "alone"):
        again = Tokenizer.load(directory)
        assert again.fingerprint == tok.fingerprint and again.encode(corpus) == tok.encode(corpus)
    (tmp_path / "link").symlink_to(tmp_path / "moved" / "small")
    assert Tokenizer.load(tmp_path / "link").fingerprint == tok.fingerprint


def test_a_third_one_takes_the_encoder_from_where_it_lies(pair: tuple[Path, Path, Tokenizer]) -> None:
    large, small, tok = pair
    third = small.parent / "deep" / "third"
    tok.save(third, encoder_of=small)
    assert json.loads((third / "tokenizer.json").read_text())["encoder_of"] == "../../large"
    shutil.rmtree(small)
    assert Tokenizer.load(third).fingerprint == tok.fingerprint
    assert large.is_dir()


def test_a_missing_or_changed_other_is_named_with_the_one_that_needs_it(
    pair: tuple[Path, Path, Tokenizer], tmp_path: Path
) -> None:
    large, small, _ = pair
    kept = tmp_path / "kept"
    shutil.copytree(large, kept)

    def broken(change: Callable[[], Any], error: type[Exception], words: str) -> None:
        change()
        with pytest.raises(error, match=rf"home/small.*home/large.*{words}"):
            Tokenizer.load(small)
        shutil.rmtree(large, ignore_errors=True)
        shutil.copytree(kept, large)
        Tokenizer.load(small)

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        weights["feature_projection.projection.bias"][0] += 1

    broken(lambda: shutil.rmtree(large), TokenizerError, "where there is none")
    broken(lambda: shutil.rmtree(large / "encoder"), TokenizerError, "where there is none")
    broken(lambda: edit_weights(large / "encoder", nudge), FingerprintError, "differ in fingerprint, encoder")
    broken(lambda: edit_weights(large / "encoder", lambda w: w.popitem()), TokenizerError, "lacks 1 weights")
    fewer = load_encoder(large / "encoder", layer=1)
    broken(lambda: fewer.save(large / "encoder"), TokenizerError, "no layer 2")


def test_only_the_same_encoder_is_shared(
    pair: tuple[Path, Path, Tokenizer], corpus: list[Utterance], checkpoint: Path, tmp_path: Path
) -> None:
    large, small, tok = pair
    for other, differ in (
        (Tokenizer.fit(corpus, features=checkpoint, layer=1, units=4, half=True), r"layer 1, there 2; weights"),
        (Tokenizer.fit(corpus, features=checkpoint, layer=2, units=4), r"another one: weights"),
        (Tokenizer.load(large, precision="bfloat16", device="cpu"), r"another one: arithmetic fast bfloat16, there N"),
    ):
        with pytest.raises(TokenizerError, match=rf"{other.fingerprint} cannot share .*{large.name}.*{differ}"):
            other.save(tmp_path / "other", encoder_of=large)
        assert not (tmp_path / "other").exists()
    for target in (large, large / "inside"):
        with pytest.raises(TokenizerError, match="cannot share the encoder of .*large: save it beside"):
            tok.save(target, encoder_of=large, overwrite=True)
    with pytest.raises(ValueError, match=r"encoder_of .*large says all of the encoder: leave out layer=2, half=True"):
        Tokenizer.fit(corpus, encoder_of=large, layer=2, half=True)
    with pytest.raises(TokenizerError, match="prompts-mfcc100 has no encoder to share: mfcc needs no weights"):
        Tokenizer.fit(corpus, encoder_of="prompts-mfcc100")
    assert Tokenizer.load(small).fingerprint == tok.fingerprint


def test_bundled_encoders_go_by_name_outside_the_package_and_by_path_inside(
    halved: Tokenizer, corpus: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUNDLED", tmp_path / "bundled")
    halved.save(tmp_path / "bundled" / "mini")
    tok = Tokenizer.fit(corpus, encoder_of="mini", units=5)
    tok.save(tmp_path / "bundled" / "mini-5", encoder_of="mini")
    tok.save(tmp_path / "mine", encoder_of="mini")
    said = {
        directory.name: json.loads((directory / "tokenizer.json").read_text())["encoder_of"]
        for directory in (tmp_path / "bundled" / "mini-5", tmp_path / "mine")
    }
    assert said == {"mini-5": "../mini", "mine": "mini"}
    (tmp_path / "bundled").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(files, "BUNDLED", tmp_path / "elsewhere")
    for name in ("mini-5", tmp_path / "mine"):
        assert Tokenizer.load(name).fingerprint == tok.fingerprint
    shutil.rmtree(tmp_path / "elsewhere" / "mini")
    with pytest.raises(TokenizerError, match=r"mine has the encoder of the bundled tokenizer 'mini', .* mini-5"):
        Tokenizer.load(tmp_path / "mine")
    with pytest.raises(TokenizerError, match=r"mini-5 has the encoder of .*mini, where there is none"):
        Tokenizer.load("mini-5")


def test_fit_on_the_command_line(corpus: list[Utterance], checkpoint: Path, tmp_path: Path) -> None:
    manifest = str(Path(corpus[0].audio).with_name("train.jsonl"))

    def fit(*words: object) -> Any:
        return CliRunner().invoke(app, ["fit", manifest, *map(str, words)])

    large, small = tmp_path / "large", tmp_path / "small"
    done = fit("-o", large, "--features", checkpoint, "--layer", 2, "-k", 12, "--half")
    assert done.exit_code == 0, done.output
    assert kinds_of(large / "encoder") == {torch.float16}
    done = fit("-o", small, "--encoder-of", large, "-k", 5)
    assert done.exit_code == 0, done.output
    tok = Tokenizer.load(small)
    assert tok.n_units == 5 and tok.encoder.settings()["layer"] == 2 and not (small / "encoder").exists()
    wrong = fit("-o", tmp_path / "no", "--encoder-of", large, "--features", "mfcc")
    assert isinstance(wrong.exception, ValueError) and "leave out features='mfcc'" in str(wrong.exception)
    assert not (tmp_path / "no").exists()

"""Encoders against transformers' own hidden states, on tiny random checkpoints of every family."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_encoders import CHECKPOINTS, N_LAYERS, WAV, in_layers, layers_of, model_of, official_inputs, tiny
from safetensors.torch import load_file, save_file

from unitkit import encoders
from unitkit.encoders import load_encoder


@pytest.fixture
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A saved checkpoint of the family named by the test's parameter."""
    model_of(request.param).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def every(names: list[str]) -> Any:
    return pytest.mark.parametrize("checkpoint", names, indirect=True)


def test_fixture_covers_both_styles_and_the_hooks_agree_with_hidden_states() -> None:
    for name in ("hubert-base", "wavlm-base", "data2vec-audio", "w2v-bert"):
        inputs = official_inputs(name, normalize=False)
        with torch.no_grad():
            hidden = model_of(name)(inputs, output_hidden_states=True).hidden_states
        for ours, theirs in zip(layers_of(name, inputs), hidden, strict=True):
            torch.testing.assert_close(ours, theirs[0])
    large = official_inputs("hubert-large", normalize=True)
    with torch.no_grad():
        output = model_of("hubert-large")(large, output_hidden_states=True)
    for layer in range(N_LAYERS):
        torch.testing.assert_close(layers_of("hubert-large", large)[layer], output.hidden_states[layer][0])
    assert not torch.allclose(layers_of("hubert-large", large)[-1], output.last_hidden_state[0], atol=0.1)


@every(list(CHECKPOINTS))
@pytest.mark.parametrize("layer", [0, 2, N_LAYERS])
def test_layers_equal_transformers(checkpoint: Path, layer: int, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["checkpoint"]
    encoder = load_encoder(str(checkpoint), layer=layer, padding="full" if name.startswith("whisper") else "none")
    features = encoder(WAV)
    expected = layers_of(name, official_inputs(name, bool(encoder.settings()["normalize"])))[layer]
    assert features.shape == (encoder.n_frames(len(WAV)), encoder.dim)
    assert features.dtype == torch.float32 and not features.is_inference() and not features.requires_grad
    torch.testing.assert_close(features, expected[: len(features)], atol=2e-4, rtol=2e-4)
    assert encoder.rate_hz == 50.0
    assert len(features) == (50 if name.startswith("whisper") else 49)


@every(list(CHECKPOINTS))
def test_saved_encoder_is_the_same_and_holds_no_more(checkpoint: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(checkpoint), layer=1)
    encoder.save(tmp_path / "saved")
    for again in (load_encoder(str(tmp_path / "saved"), layer=1), load_encoder(str(tmp_path / "saved"))):
        torch.testing.assert_close(again(WAV), encoder(WAV), atol=0, rtol=0)
        assert again.settings() == encoder.settings()
    assert json.loads(json.dumps(encoder.settings())) == encoder.settings()
    assert str(tmp_path) not in json.dumps(encoder.settings())
    again.save(tmp_path / "twice")
    assert load_encoder(str(tmp_path / "twice")).settings() == encoder.settings()
    kept = load_file(tmp_path / "saved" / "model.safetensors")
    assert in_layers(kept, 1) and not in_layers(kept, 2, 3, 4)
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    with pytest.raises(ValueError, match=r"no layer 2; known: 0 .* to 1"):
        load_encoder(str(tmp_path / "saved"), layer=2)


@every(list(CHECKPOINTS))
def test_layers_above_are_never_run(checkpoint: Path) -> None:
    clean = load_encoder(str(checkpoint), layer=2)
    weights = load_file(checkpoint / "model.safetensors")
    for key in in_layers(weights, 3, 4):
        weights[key] = torch.full_like(weights[key], float("nan"))
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    again = load_encoder(str(checkpoint), layer=2)
    torch.testing.assert_close(again(WAV), clean(WAV), atol=0, rtol=0)
    assert again.settings()["weights"] == clean.settings()["weights"]
    assert not torch.isfinite(load_encoder(str(checkpoint), layer=3)(WAV)).all()


@every(["hubert-base", "hubert-large", "w2v-bert", "whisper"])
def test_a_changed_weight_changes_the_hash_and_a_moved_folder_does_not(checkpoint: Path) -> None:
    before = load_encoder(str(checkpoint), layer=2)
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    assert load_encoder(str(moved), layer=2).settings() == before.settings()
    assert load_encoder(str(moved), layer=1).settings()["weights"] != before.settings()["weights"]
    weights = load_file(moved / "model.safetensors")
    key = next(key for key in weights if "encoder.layers.1." in key and key.endswith("weight"))
    weights[key].view(-1)[0] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(moved), layer=2).settings()["weights"] != before.settings()["weights"]


@every(["hubert-base"])
def test_checkpoints_with_a_head_load_the_same(checkpoint: Path, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(1)
    with_head = transformers.HubertForCTC(model_of("hubert-base").config)
    with_head.hubert.load_state_dict(model_of("hubert-base").state_dict())
    with_head.save_pretrained(tmp_path / "ctc")
    plain, headed = load_encoder(str(checkpoint), layer=2), load_encoder(str(tmp_path / "ctc"), layer=2)
    assert plain.settings() == headed.settings()
    whisper = transformers.WhisperForConditionalGeneration(model_of("whisper").config)
    whisper.model.load_state_dict(model_of("whisper").state_dict())
    whisper.save_pretrained(tmp_path / "generation")
    model_of("whisper").save_pretrained(tmp_path / "whisper")
    first, second = load_encoder(str(tmp_path / "generation")), load_encoder(str(tmp_path / "whisper"))
    assert first.settings() == second.settings()


@every(["hubert-large", "wav2vec2-base"])
def test_normalisation_comes_from_the_checkpoint(checkpoint: Path) -> None:
    by_style = load_encoder(str(checkpoint), layer=1)
    large = json.loads((checkpoint / "config.json").read_text())["feat_extract_norm"] == "layer"
    assert by_style.settings()["normalize"] is large
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({"do_normalize": not large}))
    stated = load_encoder(str(checkpoint), layer=1)
    assert stated.settings()["normalize"] is not large
    normal, other = (by_style, stated) if large else (stated, by_style)
    loud = 5 * WAV + 0.25
    torch.testing.assert_close(normal(loud), other((loud - loud.mean()) / loud.std()), atol=1e-4, rtol=1e-4)
    if large:  # a group norm hides the difference, being a normalisation itself
        assert not torch.allclose(normal(loud), other(loud), atol=1e-2)
    assert stated.settings()["weights"] == by_style.settings()["weights"]


@every(["hubert-base"])
def test_attention_implementations_agree(checkpoint: Path) -> None:
    encoder = load_encoder(str(checkpoint), layer=3, engine="plain")
    found = {}
    for kind in ("sdpa", "eager"):
        encoder.model.set_attn_implementation(kind)
        found[kind] = encoder(WAV)
    torch.testing.assert_close(found["sdpa"], found["eager"], atol=1e-5, rtol=1e-5)


@every(["wavlm-base"])
def test_center_padding_is_zeros_on_both_sides(checkpoint: Path) -> None:
    centred, plain = load_encoder(str(checkpoint), padding="center"), load_encoder(str(checkpoint))
    assert (centred.n_frames(16000), plain.n_frames(16000)) == (50, 49)
    torch.testing.assert_close(centred(WAV), plain(np.pad(WAV, 40)), atol=1e-6, rtol=1e-6)
    assert centred.settings() != plain.settings()
    assert (centred.min_samples, plain.min_samples) == (320, 400)


def test_default_layer_is_the_middle(tmp_path: Path) -> None:
    model_of("wavlm-base").save_pretrained(tmp_path)
    assert load_encoder(tmp_path).settings()["layer"] == N_LAYERS // 2


COUNTED = [
    *((name, padding) for name in encoders.FILTERBANKS for padding in ("none", "center")),
    ("hubert-base", "none"),
    ("hubert-base", "center"),
    ("wav2vec2-large", "none"),
    ("w2v-bert", "none"),
    ("whisper", "none"),
]


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(COUNTED), n_samples=st.integers(0, 2000))
@example(case=("mfcc", "none"), n_samples=400)
@example(case=("logmel", "none"), n_samples=559)
@example(case=("logmel", "center"), n_samples=480)
@example(case=("hubert-base", "none"), n_samples=719)
@example(case=("hubert-base", "center"), n_samples=320)
@example(case=("w2v-bert", "none"), n_samples=560)
@example(case=("whisper", "none"), n_samples=320)
def test_frame_counts_are_exact(case: tuple[str, str], n_samples: int) -> None:
    name, padding = case
    encoder = tiny(name, layer=1, engine="auto", padding=padding)
    wav = np.resize(WAV, n_samples)
    expected = encoder.n_frames(n_samples)
    assert (expected == 0) == (n_samples < encoder.min_samples)
    if expected:
        assert encoder(wav).shape == (expected, encoder.dim)
    else:
        with pytest.raises(ValueError, match=f"wav of {n_samples} samples .* at least {encoder.min_samples} samples"):
            encoder(wav)


def test_input_is_checked() -> None:
    encoder = load_encoder("mfcc")
    for bad in (np.zeros((2, 16000), np.float32), np.zeros(16000, np.int16)):
        with pytest.raises(ValueError, match="float samples of shape"):
            encoder(bad)
    with pytest.raises(ValueError, match="NaN"):
        encoder(np.full(16000, np.nan, np.float32))
    torch.testing.assert_close(encoder(torch.from_numpy(WAV)), encoder(WAV))
    torch.testing.assert_close(encoder(WAV.astype(np.float64)), encoder(WAV))


def test_unknown_names_and_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown features 'huber'; known: mfcc, .*hubert-base.*local directory"):
        load_encoder("huber")
    with pytest.raises(ValueError, match=r"unknown features './nowhere'"):
        load_encoder("./nowhere")
    with pytest.raises(ValueError, match=r"no layers"):
        load_encoder("mfcc", layer=3)
    with pytest.raises(ValueError, match=r"mfcc cannot take padding 'same'; known: none, center"):
        load_encoder("mfcc", padding="same")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"'bert' model; known families: hubert, wav2vec2"):
        load_encoder(str(tmp_path))


@every(["hubert-base", "whisper"])
def test_layer_out_of_range_and_padding_of_the_family(checkpoint: Path, request: pytest.FixtureRequest) -> None:
    for layer in (-1, N_LAYERS + 1):
        with pytest.raises(ValueError, match=f"no layer {layer}; known: 0 .* to {N_LAYERS}"):
            load_encoder(str(checkpoint), layer=layer)
    wrong = "center" if "whisper" in request.node.name else "full"
    with pytest.raises(ValueError, match=f"cannot take padding '{wrong}'; known: none"):
        load_encoder(str(checkpoint), padding=wrong)


@every(["hubert-base"])
def test_pickled_and_incomplete_checkpoints_are_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    key = next(key for key in weights if "layers.0." in key and "attention" in key)
    del weights[key]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_encoder(str(checkpoint), layer=1)
    torch.save(weights, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors.*save_pretrained"):
        load_encoder(str(checkpoint), layer=1)


def test_offline_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot get nobody/nothing from the Hugging Face hub .* local directory"):
        load_encoder("nobody/nothing")


def test_every_short_name_is_a_hub_id() -> None:
    assert all(hub_id.count("/") == 1 and "/" not in short for short, hub_id in encoders.MODELS.items())


@every(list(CHECKPOINTS))
def test_loading_leaves_transformers_logging_as_it_was(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_encoder(str(checkpoint), layer=1)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert "layers" not in capfd.readouterr().err

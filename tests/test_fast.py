"""The fast engines against transformers: every family and style, any length, every layer, both precisions."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_encoders import CHECKPOINTS, LARGE, N_LAYERS, SMALL, layers_of, model_of
from torch import Tensor

from unitkit.encoders import fast
from unitkit.encoders.fast import FastWaveform, group_norm_of, supports
from unitkit.encoders.openvino import CALIBRATION, CALIBRATION_SECONDS, OpenVinoWaveform, _pieces

torch.set_num_threads(1)

COVERED = [name for name in CHECKPOINTS if supports(model_of(name).config)]
GROUPED = [name for name in COVERED if getattr(model_of(name).config, "feat_extract_norm", "") == "group"]
FIELD = 400
OPENVINO = "no openvino here: pip install 'unitkit[openvino]'"


def signal(samples: int, seed: int = 0) -> Tensor:
    """Noise with a slow swing, so that windows of one recording differ."""
    generator = np.random.default_rng(seed)
    swing = 1 + np.sin(np.arange(samples) / 3000)
    return torch.from_numpy((0.1 * swing * generator.standard_normal(samples)).astype(np.float32))


def off(found: Tensor, expected: Tensor) -> float:
    """Relative error (Euclidean)."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def built(family: str, fields: dict[str, Any]) -> Any:
    """A small random model with weights far from their start."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_the_families_covered() -> None:
    assert {"hubert-base", "hubert-large", "wav2vec2-base", "wav2vec2-large"} <= set(COVERED)
    assert {"wavlm-base", "wavlm-large", "data2vec-audio", "data2vec-audio-large"} <= set(COVERED)
    assert not {"w2v-bert", "whisper"} & set(COVERED)


@pytest.mark.parametrize("name", COVERED)
def test_every_layer_is_that_of_transformers(name: str) -> None:
    wav = signal(16000)
    expected = layers_of(name, wav[None])
    for layer in range(N_LAYERS + 1):
        found = FastWaveform(model_of(name), layer=layer).hidden(wav)
        assert found.dtype == torch.float32 and found.shape == expected[layer].shape
        assert off(found, expected[layer]) < 1e-5


@pytest.mark.parametrize("name", COVERED)
@given(samples=st.one_of(st.integers(FIELD, 1500), st.integers(1500, 50000)))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_length(name: str, samples: int) -> None:
    wav = signal(samples, samples)
    assert off(FastWaveform(model_of(name), layer=2).hidden(wav), layers_of(name, wav[None])[2]) < 1e-5


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        # Kernels of 128 and 33 taps go through the FFT, in one block and in several; none of the sizes divides by 8.
        ("Hubert", {**SMALL, "num_conv_pos_embeddings": 128}),
        ("Hubert", {**LARGE, "num_conv_pos_embeddings": 33, "hidden_size": 36, "num_attention_heads": 3}),
        ("WavLM", {**SMALL, "hidden_size": 20, "num_attention_heads": 5, "conv_dim": (5, 6, 7, 9, 10, 11, 13)}),
        ("Wav2Vec2", {**SMALL, "intermediate_size": 37, "conv_bias": True}),
        ("Hubert", {**SMALL, "feat_proj_layer_norm": False}),
        ("Hubert", {**SMALL, "feat_extract_norm": "layer"}),
        ("Wav2Vec2", {**SMALL, "conv_kernel": (9, 2, 5, 3), "conv_stride": (4, 3, 2, 5), "conv_dim": (16, 8, 16, 8)}),
    ],
)
def test_odd_sizes(family: str, fields: dict[str, Any]) -> None:
    counts = {"num_feat_extract_layers": len(fields["conv_dim"])}
    model = built(family, {**fields, **counts})
    encoder = FastWaveform(model, layer=N_LAYERS)
    for samples in (16000, 50001, 90000):
        wav = signal(samples)
        with torch.no_grad():
            expected = model_without_final_norm(model)(wav[None]).last_hidden_state[0]
        assert off(encoder.hidden(wav), expected) < 1e-5


def model_without_final_norm(model: Any) -> Any:
    """As our encoders have it: the norm after the last layer of a pre-norm model is no part of that layer."""
    if getattr(model.config, "do_stable_layer_norm", False):
        model.encoder.layer_norm = torch.nn.Identity()
    return model


def test_chunks_leave_no_joints(monkeypatch: pytest.MonkeyPatch) -> None:
    wav = signal(50000)
    for name in ("hubert-base", "wavlm-large"):
        encoder = FastWaveform(model_of(name), layer=N_LAYERS)
        whole = encoder.hidden(wav)
        monkeypatch.setattr(fast, "CHUNK_FRAMES", 7)
        monkeypatch.setattr(fast, "CHUNK_QUERIES", 11)
        assert off(encoder.hidden(wav), whole) < 2e-6


@pytest.mark.parametrize("name", GROUPED)
def test_a_slice_with_the_norm_of_the_recording(name: str) -> None:
    wav = signal(40000)
    model = model_of(name)
    norm = group_norm_of(model.feature_extractor.conv_layers[0], wav)
    encoder = FastWaveform(model, layer=1)
    assert torch.equal(encoder.hidden(wav, norm=norm), encoder.hidden(wav))
    start, stop = 10 * 320, 60 * 320 + 80
    hidden, caught = wav[None, None], []
    hook = model.encoder.layers[0].register_forward_hook(lambda _, args, out: caught.append(out))
    with torch.no_grad():  # the plain model on the slice, its group norm replaced by that of the whole
        first, *rest = model.feature_extractor.conv_layers
        hidden = first.activation(first.layer_norm(first.conv(hidden)))
        hidden = hidden[:, :, start // 5 : (stop - 10) // 5 + 1]
        for layer in rest:
            hidden = layer(hidden)
        projected = model.feature_projection(hidden.transpose(1, 2))
        model.encoder(projected[0] if isinstance(projected, tuple) else projected)
    hook.remove()
    expected = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    found = encoder.hidden(wav[start:stop], norm=norm)
    assert off(found, expected[0]) < 1e-5
    assert off(encoder.hidden(wav[start:stop]), expected[0]) > 1e-3  # the statistics do matter


@pytest.mark.parametrize("name", COVERED)
def test_bfloat16_is_closer_than_autocast(name: str) -> None:
    wav = signal(100_000)
    expected = layers_of(name, wav[None])
    with torch.autocast("cpu", torch.bfloat16):
        cast = layers_of(name, wav[None])
    for layer in (0, 2, N_LAYERS):
        found = FastWaveform(model_of(name), layer=layer, precision="bfloat16").hidden(wav)
        assert found.dtype == torch.float32
        assert 0 < off(found, expected[layer]) < 1.1 * off(cast[layer].float(), expected[layer]) < 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_onednn(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on ARM and macOS."""
    wav = signal(16000)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fast._has_onednn.cache_clear()
    try:
        for name in ("hubert-base", "wavlm-large"):
            encoder = FastWaveform(model_of(name), layer=2, precision=precision)
            assert not encoder.projection.packed
            assert off(encoder.hidden(wav), layers_of(name, wav[None])[2]) < (1e-5 if precision == "float32" else 0.05)
    finally:
        fast._has_onednn.cache_clear()


def test_the_model_and_the_signal_are_left_alone() -> None:
    model, wav = model_of("wav2vec2-large"), signal(5000)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    encoder = FastWaveform(model, layer=2, precision="bfloat16")
    kept = wav.clone()
    first, second = encoder.hidden(wav), encoder.hidden(wav)
    assert torch.equal(first, second) and torch.equal(wav, kept)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("hubert-base", {"hidden_act": "relu"}),
        ("hubert-base", {"feat_extract_activation": "gelu_new"}),
        ("hubert-base", {"conv_pos_batch_norm": True}),
        ("wav2vec2-large", {"adapter_attn_dim": 16}),
        ("wav2vec2-base", {"add_adapter": True}),
        ("w2v-bert", {}),
        ("whisper", {}),
    ],
)
def test_what_is_not_covered(name: str, changed: dict[str, Any]) -> None:
    config = type(model_of(name).config)(**{**model_of(name).config.to_dict(), **changed})
    assert not supports(config)


def test_errors_name_the_fault() -> None:
    model = model_of("hubert-base")
    with pytest.raises(ValueError, match=r"unknown precision 'int4'; known: float32, bfloat16"):
        FastWaveform(model, layer=1, precision="int4")
    with pytest.raises(ValueError, match=rf"no layer 9; known: 0 \(input of the first layer\) to {N_LAYERS}"):
        FastWaveform(model, layer=9)
    with pytest.raises(ValueError, match="399 samples give no frame; at least 400 are needed"):
        FastWaveform(model, layer=1).hidden(torch.zeros(399))
    with pytest.raises(ValueError, match="the fast engine does not cover this 'wav2vec2-bert' model"):
        FastWaveform(model_of("w2v-bert"), layer=1)


# ------------------------------------------------------------------------------------------------------- OpenVINO


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-large", "data2vec-audio"])
def test_openvino_is_transformers_at_any_length(name: str) -> None:
    """One frame comes first on purpose: without the warm-up, OpenVINO 2026.4 is wrong ever after."""
    pytest.importorskip("openvino", reason=OPENVINO)
    encoder = OpenVinoWaveform(model_of(name), layer=2, precision="float32")
    for samples in (400, 16000, 719, 720, 35001, 400):
        wav = signal(samples)
        assert off(encoder.hidden(wav), layers_of(name, wav[None])[2]) < 1e-5


def test_openvino_uses_the_norm_it_is_given() -> None:
    pytest.importorskip("openvino", reason=OPENVINO)
    model, wav = model_of("hubert-base"), signal(30000)
    norm = group_norm_of(model.feature_extractor.conv_layers[0], wav)
    ours, theirs = (kind(model, layer=2, precision="float32") for kind in (FastWaveform, OpenVinoWaveform))
    assert off(theirs.hidden(wav[:9000], norm=norm), ours.hidden(wav[:9000], norm=norm)) < 1e-5
    assert off(theirs.hidden(wav[:9000]), ours.hidden(wav[:9000], norm=norm)) > 1e-3


@pytest.mark.parametrize(
    ("name", "precision", "bound"), [("wav2vec2-base", "bfloat16", 0.05), ("wav2vec2-large", "int8", 0.1)]
)
def test_openvino_at_lower_precision(name: str, precision: str, bound: float) -> None:
    pytest.importorskip("nncf", reason=OPENVINO)
    openvino = pytest.importorskip("openvino", reason=OPENVINO)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("no bfloat16 on this processor")
    wav = signal(32000)
    found = OpenVinoWaveform(model_of(name), layer=2, precision=precision).hidden(wav)
    assert 1e-4 < off(found, layers_of(name, wav[None])[2]) < bound


def test_openvino_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'unitkit\[openvino\]'"):
        OpenVinoWaveform(model_of("hubert-base"), layer=1)


def test_calibration_speech_comes_with_the_package() -> None:
    pieces = list(_pieces(normalize=True))
    assert CALIBRATION.is_file() and 30 < sum(map(len, pieces)) / 16000 < 40
    assert max(map(len, pieces)) == CALIBRATION_SECONDS * 16000
    assert all(abs(float(piece.std()) - 1) < 1e-3 for piece in pieces)

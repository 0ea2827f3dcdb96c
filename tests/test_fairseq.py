"""fairseq checkpoints, built from random transformers models and from modules that are gone when they are read."""

import argparse
import enum
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from reference_encoders import N_LAYERS, WAV, layers_of, model_of, official_inputs
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from unitkit.cli import app
from unitkit.encoders import load_encoder
from unitkit.encoders.fairseq import FairseqError, convert_fairseq
from unitkit.pickled import PickledError

torch.set_num_threads(1)
NAMES = ["hubert-base", "hubert-large", "wav2vec2-base", "wav2vec2-large"]
CONVS = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2"


def fairseq_name(name: str, *, large: bool) -> str:
    """The name that fairseq gives a parameter of transformers; written apart from the converter's table."""
    if name == "masked_spec_embed":
        return "mask_emb"
    head, _, tail = name.partition(".")
    if head == "feature_projection":
        return tail.replace("projection.", "post_extract_proj.")
    if head == "feature_extractor":
        _, number, part, kind = tail.split(".")
        place = "0" if part == "conv" else ("2.1" if large else "2")
        return f"feature_extractor.conv_layers.{number}.{place}.{kind}"
    if tail.startswith("pos_conv_embed.conv."):
        return f"encoder.pos_conv.0.{tail.removeprefix('pos_conv_embed.conv.')}"
    if not tail.startswith("layers."):
        return name
    _, number, *rest = tail.split(".")
    match rest:
        case ["attention", projection, kind]:
            inner = f"self_attn.{projection}.{kind}"
        case ["layer_norm", kind]:
            inner = f"self_attn_layer_norm.{kind}"
        case ["feed_forward", "intermediate_dense", kind]:
            inner = f"fc1.{kind}"
        case ["feed_forward", "output_dense", kind]:
            inner = f"fc2.{kind}"
        case _:
            inner = ".".join(rest)
    return f"encoder.layers.{number}.{inner}"


def tensors_of(name: str, *, old_norm: bool = True, tuned: bool = False) -> dict[str, Tensor]:
    """The model's parameters in fairseq's layout, with those of training that an encoder has no use for."""
    found = {}
    for key, tensor in model_of(name).state_dict().items():
        ours = fairseq_name(key, large=name.endswith("large"))
        if old_norm:
            ours = ours.replace("parametrizations.weight.original0", "weight_g")
            ours = ours.replace("parametrizations.weight.original1", "weight_v")
        found[ours] = tensor.clone()
    if tuned:
        found = {f"w2v_encoder.w2v_model.{key}": tensor for key, tensor in found.items()}
        return {**found, "w2v_encoder.proj.weight": torch.randn(5, 32), "w2v_encoder.proj.bias": torch.zeros(5)}
    found |= {"final_proj.weight": torch.randn(8, 32), "final_proj.bias": torch.zeros(8)}
    if name.startswith("hubert"):
        return {**found, "label_embs_concat": torch.randn(9, 8)}
    return {**found, "quantizer.vars": torch.randn(1, 8, 4), "project_q.weight": torch.randn(8, 8)}


def fairseq_layers(w: dict[str, Tensor], wav: Tensor, *, large: bool) -> list[Tensor]:
    """fairseq's forward pass by its own names: the input of layer 1, then what output_layer=1, 2, ... gives."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = wav[None]
    for i, stride in enumerate([5, 2, 2, 2, 2, 2, 2]):
        name = f"feature_extractor.conv_layers.{i}"
        x = F.conv1d(x, w[f"{name}.0.weight"], w.get(f"{name}.0.bias"), stride=stride)
        if large:
            x = norm(x.transpose(1, 2), f"{name}.2.1").transpose(1, 2)
        elif i == 0:
            x = F.group_norm(x, x.shape[1], w[f"{name}.2.weight"], w[f"{name}.2.bias"])
        x = F.gelu(x)
    x = linear(norm(x.transpose(1, 2), "layer_norm"), "post_extract_proj")
    direction, length = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"]
    kernel = length * direction / direction.norm(dim=(0, 1), keepdim=True)
    position = F.conv1d(x.transpose(1, 2), kernel, w["encoder.pos_conv.0.bias"], padding=8, groups=4)[..., :-1]
    x = x + F.gelu(position).transpose(1, 2)
    layers = [x if large else (x := norm(x, "encoder.layer_norm"))]
    for i in range(N_LAYERS):
        name = f"encoder.layers.{i}"
        source = norm(x, f"{name}.self_attn_layer_norm") if large else x
        query, key, value = (
            linear(source, f"{name}.self_attn.{one}_proj").unflatten(-1, (2, -1)).transpose(1, 2) for one in "qkv"
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5, dim=-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"{name}.self_attn.out_proj")
        x = x if large else norm(x, f"{name}.self_attn_layer_norm")
        source = norm(x, f"{name}.final_layer_norm") if large else x
        x = x + linear(F.gelu(linear(source, f"{name}.fc1")), f"{name}.fc2")
        x = x if large else norm(x, f"{name}.final_layer_norm")
        layers.append(x)
    return [layer[0] for layer in layers]


def model_settings(name: str) -> dict[str, Any]:
    large = name.endswith("large")
    return {
        "_name": "hubert" if name.startswith("hubert") else "wav2vec2",
        "encoder_attention_heads": 2,
        "layer_norm_first": large,
        "extractor_mode": "layer_norm" if large else "default",
        "conv_feature_layers": CONVS,
        "conv_bias": large,
        "activation_fn": "gelu",
    }


def settings_of(name: str) -> dict[str, Any]:
    return {"model": model_settings(name), "task": {"_name": "pretraining", "normalize": name.endswith("large")}}


@contextmanager
def fairseq_modules() -> Iterator[Any]:
    """Modules called fairseq.*, while a checkpoint is written; they never exist where it is read."""

    class Dictionary:
        def __init__(self) -> None:
            self.symbols, self.indices = ["<s>", "17"], {"<s>": 0, "17": 1}

    class Choices(enum.Enum):
        STATIC = "static"

    module = types.ModuleType("fairseq.data.dictionary")
    for kind in (Dictionary, Choices):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    parents = {name: types.ModuleType(name) for name in ("fairseq", "fairseq.data")}
    added = {**parents, module.__name__: module}
    sys.modules.update(added)
    try:
        yield module
    finally:
        for one in added:
            del sys.modules[one]


def write(path: Path, name: str, form: str, *, tensors: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint as fairseq of some time wrote it: `form` is what holds its settings."""
    settings = settings_of(name)
    tuned = form == "tuned"
    content: dict[str, Any] = {"model": tensors or tensors_of(name, tuned=tuned, old_norm=form != "dict")}
    match form:
        case "namespace":
            flat = {**settings["model"], "normalize": settings["task"]["normalize"], "arch": settings["model"]["_name"]}
            content |= {"args": argparse.Namespace(**flat), "cfg": None}
        case "omegaconf":
            content |= {"cfg": OmegaConf.create(settings), "args": None}
        case "tuned":
            outer = {"_name": "ctc", "w2v_args": settings, "normalize": "${task.normalize}"}
            content["cfg"] = {"model": outer, "task": settings["task"]}
        case _:
            content["cfg"] = settings
    with fairseq_modules() as module:
        content["task_state"] = {"dictionaries": [module.Dictionary()], "choice": module.Choices.STATIC}
        content["optimizer_history"] = [{"num_updates": 4, "optimizer_name": "FP16Optimizer", "lr": torch.tensor(0.1)}]
        torch.save(content, path, _use_new_zipfile_serialization=form != "namespace")
    assert "fairseq" not in sys.modules
    return path


@pytest.mark.parametrize("form", ["namespace", "dict", "omegaconf", "tuned"])
@pytest.mark.parametrize("name", NAMES)
def test_converted_features_are_the_models_own(name: str, form: str, tmp_path: Path) -> None:
    out = convert_fairseq(write(tmp_path / "checkpoint.pt", name, form), tmp_path / "out" / "model")
    inputs = official_inputs(name, name.endswith("large"))
    written_out = fairseq_layers(tensors_of(name), inputs, large=name.endswith("large"))
    for layer in (0, 1, N_LAYERS):
        encoder = load_encoder(out, layer=layer, engine="plain")
        for expected in (layers_of(name, inputs)[layer], written_out[layer]):
            assert torch.linalg.vector_norm(encoder(WAV) - expected) < 1e-6 * torch.linalg.vector_norm(expected)
    assert encoder.settings()["normalize"] is name.endswith("large")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == name.split("-")[0]
    assert sorted(path.name for path in out.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_of_the_encoder_is_that_of_the_hubs_layout(name: str, tmp_path: Path) -> None:
    model_of(name).save_pretrained(tmp_path / "hub")
    ours = load_encoder(convert_fairseq(write(tmp_path / "c.pt", name, "dict"), tmp_path / "out"), layer=2)
    theirs = load_encoder(tmp_path / "hub", layer=2)
    assert ours.settings() == theirs.settings()
    assert torch.equal(ours(WAV), theirs(WAV))


def test_half_precision_weights_keep_their_numbers(tmp_path: Path) -> None:
    tensors = {key: tensor.half() for key, tensor in tensors_of("hubert-base").items()}
    out = convert_fairseq(write(tmp_path / "c.pt", "hubert-base", "dict", tensors=tensors), tmp_path / "out")
    kept = load_encoder(out, layer=1).model.state_dict()["encoder.layers.0.attention.k_proj.weight"]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, tensors["encoder.layers.0.self_attn.k_proj.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layers.1.fc2.bias": None}, r"1 tensors missing: encoder.layers.1.feed_forward.output_dense.bias"),
        ({"encoder.layers.0.adapter.weight": torch.ones(2)}, r"1 tensors that .* do not have: .*adapter.weight"),
        ({"encoder.layers.0.fc2.bias": torch.ones(3)}, "of another shape: encoder.layers.0.*output_dense.bias"),
        ({"post_extract_proj.weight": None, "post_extract_proj.bias": None}, "2 tensors missing"),
        ({"encoder.pos_conv.0.weight_v": None}, "weight_v is missing"),
    ],
)
def test_wrong_tensors_are_listed(change: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    tensors = tensors_of("wav2vec2-base")
    for key, tensor in change.items():
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    path = write(tmp_path / "c.pt", "wav2vec2-base", "dict", tensors=tensors)
    with pytest.raises(FairseqError, match=message):
        convert_fairseq(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": None}, "neither cfg nor args"),
        ({"cfg": {"task": {"normalize": True}, "model": {"_name": "hubert"}}}, "encoder_attention_heads as None"),
        ({"cfg": {"model": model_settings("hubert-base")}}, "does not say whether recordings are normalised"),
        ({"model": 5}, "no fairseq checkpoint"),
        ({"cfg": {**settings_of("hubert-base"), "model": {**model_settings("hubert-base"),
          "conv_feature_layers": "__import__('os').system('true')"}}}, "is no list of"),
        ({"cfg": {**settings_of("hubert-base"), "model": {**model_settings("hubert-base"),
          "conv_feature_layers": "[(16, 3, 2)] * 7"}}}, "disagrees with the tensors"),
        ({"cfg": {**settings_of("hubert-base"), "model": {**model_settings("hubert-base"),
          "activation_fn": "swish"}}}, "activation_fn 'swish' is not known"),
    ],
)  # fmt: skip
def test_what_is_not_said_is_not_guessed(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = {"model": tensors_of("hubert-base"), "cfg": settings_of("hubert-base"), **changes}
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(FairseqError, match=message):
        convert_fairseq(tmp_path / "c.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["encoder_attention_heads", "conv_feature_layers", "activation_fn", "_name"])
def test_settings_that_are_nested_without_end(key: str, tmp_path: Path) -> None:
    laugh: list[Any] = []
    for _ in range(40):
        laugh = [laugh] * 10
    cfg = {**settings_of("hubert-base"), "model": {**model_settings("hubert-base"), key: laugh}}
    tensors = {key: tensor for key, tensor in tensors_of("hubert-base").items() if key != "label_embs_concat"}
    tensors["feature_extractor.conv_layers.0.0.weight"] = torch.ones(1)
    torch.save({"model": tensors, "cfg": cfg}, tmp_path / "c.pt")
    with pytest.raises(FairseqError):
        convert_fairseq(tmp_path / "c.pt", tmp_path / "out")


def test_a_layer_number_of_billions(tmp_path: Path) -> None:
    tensors = tensors_of("hubert-base")
    tensors["encoder.layers.4000000000.fc1.bias"] = torch.ones(48)
    path = write(tmp_path / "c.pt", "hubert-base", "dict", tensors=tensors)
    with pytest.raises(FairseqError, match="module 4 of"):
        convert_fairseq(path, tmp_path / "out")


def test_normalisation_and_family_can_be_told(tmp_path: Path) -> None:
    model = {key: value for key, value in model_settings("hubert-base").items() if key != "_name"}
    tensors = {key: tensor for key, tensor in tensors_of("hubert-base").items() if key != "label_embs_concat"}
    torch.save({"model": tensors, "args": argparse.Namespace(**model)}, tmp_path / "c.pt")
    with pytest.raises(FairseqError, match="--normalize"):
        convert_fairseq(tmp_path / "c.pt", tmp_path / "out")
    with pytest.raises(FairseqError, match="--family"):
        convert_fairseq(tmp_path / "c.pt", tmp_path / "out", normalize=False)
    with pytest.raises(FairseqError, match="unknown family 'wavlm'"):
        convert_fairseq(tmp_path / "c.pt", tmp_path / "out", normalize=False, family="wavlm")
    out = convert_fairseq(tmp_path / "c.pt", tmp_path / "out", normalize=True, family="hubert")
    assert load_encoder(out, layer=1).settings()["normalize"] is True
    with pytest.raises(FairseqError, match="exists"):
        convert_fairseq(tmp_path / "c.pt", out, normalize=True, family="hubert")


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (tmp_path / "sprung", "x")

    content = {"model": tensors_of("hubert-base"), "cfg": settings_of("hubert-base"), "extra_state": Trap()}
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(PickledError, match=re.escape(str(tmp_path / "c.pt"))):
        convert_fairseq(tmp_path / "c.pt", tmp_path / "out")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


def test_the_verb(tmp_path: Path) -> None:
    path = write(tmp_path / "c.pt", "hubert-large", "namespace")
    run = CliRunner().invoke(app, ["import-fairseq", str(path), "-o", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert load_encoder(tmp_path / "out", layer=1).settings()["normalize"] is True
    command = [sys.executable, "-m", "unitkit.cli", "import-fairseq", str(tmp_path / "out" / "config.json"), "-o"]
    failed = subprocess.run([*command, str(tmp_path / "x")], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2 and "error:" in failed.stderr and "Traceback" not in failed.stderr
    assert "config.json" in failed.stderr and not (tmp_path / "x").exists()

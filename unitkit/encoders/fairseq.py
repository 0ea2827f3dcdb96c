"""fairseq's HuBERT and wav2vec 2.0 checkpoints to the layout transformers reads: no fairseq, and no code from the file.

What tensors show (sizes, group or layer norm, biases) is taken from them; what they do not (heads, strides, pre-norm,
normalised input) from the settings in the checkpoint.  Neither is ever guessed.  Weights keep their numbers.
"""

import ast
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialize
from torch import Tensor

from unitkit.pickled import Record, read_pickled

SAMPLE_RATE = 16000
STRIDES = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"  # fairseq's default conv_feature_layers
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_accurate": "gelu_new"}
TUNED = "w2v_encoder.w2v_model."
# Parameters of training alone: prediction heads, quantizer, label embeddings.
TRAINING = re.compile(
    r"(final_proj|label_embs_concat|target_glu|quantizer|input_quantizer|project_q|project_inp)(\.|$)"
    r"|(w2v_encoder\.proj|decoder)\."
)
RENAMES = (
    (r"mask_emb", "masked_spec_embed"),
    (r"post_extract_proj\.(weight|bias)", r"feature_projection.projection.\1"),
    (r"layer_norm\.(weight|bias)", r"feature_projection.layer_norm.\1"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.(weight|bias)",
     r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (r"encoder\.layer_norm\.(weight|bias)", r"encoder.layer_norm.\1"),
    (r"encoder\.pos_conv\.0\.(weight_g|weight_v|bias)", r"encoder.pos_conv_embed.conv.\1"),
    (r"encoder\.pos_conv\.0\.parametrizations\.weight\.original0", "encoder.pos_conv_embed.conv.weight_g"),
    (r"encoder\.pos_conv\.0\.parametrizations\.weight\.original1", "encoder.pos_conv_embed.conv.weight_v"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([kvq]|out)_proj\.(weight|bias)",
     r"encoder.layers.\1.attention.\2_proj.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)", r"encoder.layers.\1.layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.fc1\.(weight|bias)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (r"encoder\.layers\.(\d+)\.fc2\.(weight|bias)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(weight|bias)", r"encoder.layers.\1.final_layer_norm.\2"),
)  # fmt: skip
CONV = "feature_extractor.conv_layers"


class FairseqError(ValueError):
    """A checkpoint that is none of fairseq's HuBERT or wav2vec 2.0, or does not say enough."""


@dataclass(frozen=True)
class _Settings:
    """What the checkpoint says beside its tensors."""

    family: str  # "hubert" or "wav2vec2"
    normalize: bool
    model: Any  # dictionary or record of the encoder's settings


def convert_fairseq(
    checkpoint: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    family: str | None = None,
    normalize: bool | None = None,
) -> Path:
    """Write config.json, model.safetensors and preprocessor_config.json, so that `load_encoder(out_dir)` works.

    Takes pretrained and fine-tuned checkpoints (of these the encoder without its head).  `family` ("hubert" or
    "wav2vec2") and `normalize` (scale each recording to zero mean and unit variance) are for checkpoints that do not
    say.  Layer L of the result is fairseq's output_layer=L.  Raises `FairseqError` for tensors missing or left over,
    and where `out_dir` holds files already.
    """
    name, target = os.fspath(checkpoint), Path(out_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FairseqError(f"{target} exists: convert into a new directory")
    content = read_pickled(name)
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(one, np.ndarray) for one in tensors.values()):
        raise FairseqError(f"{name}: no fairseq checkpoint: it has no dictionary of tensors called 'model'")
    try:
        settings = _settings(content, list(tensors), family=family, normalize=normalize)
        weights = _renamed(tensors)
        config = _config(weights, settings)
        _check(weights, config)
    except FairseqError as error:
        raise FairseqError(f"{name}: {error}") from error
    _write(target, weights, config, normalize=settings.normalize)
    return target


def _write(target: Path, weights: dict[str, Tensor], config: Any, *, normalize: bool) -> None:
    """All files in one step: a directory that exists is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        config.save_pretrained(scratch)
        front = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": normalize,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": config.feat_extract_norm == "layer",
            "sampling_rate": SAMPLE_RATE,
        }
        (scratch / "preprocessor_config.json").write_text(json.dumps(front, indent=2) + "\n", encoding="utf-8")
        # Bytes first: save_file makes a file that only its owner may read.
        (scratch / "model.safetensors").write_bytes(serialize(weights, metadata={"format": "pt"}))
        if target.exists():
            target.rmdir()
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ tensors


def _renamed(tensors: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The encoder's tensors in float32 by their names in transformers."""
    tuned, found, strange = any(name.startswith(TUNED) for name in tensors), {}, []
    for name, array in tensors.items():
        short = name.removeprefix(TUNED) if tuned else name
        new = _new_name(short)
        if new is not None:
            found[new] = torch.from_numpy(np.array(array, np.float32))
        elif not TRAINING.match(short):
            strange.append(name)
    if strange:
        raise FairseqError(
            f"{len(strange)} tensors that HuBERT and wav2vec 2.0 do not have: {_some(strange)}. Other models of "
            "fairseq (data2vec, conformers, adapters) are not converted"
        )
    return found


def _new_name(name: str) -> str | None:
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _check(weights: dict[str, Tensor], config: Any) -> None:
    """Names and shapes against an empty model of this config."""
    expected = _shapes(config)
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    wrong = sorted(name for name in set(expected) & set(weights) if expected[name] != tuple(weights[name].shape))
    kinds = {"tensors missing": missing, "unexpected": unexpected, "of another shape": wrong}
    parts = [f"{len(names)} {what}: {_some(names)}" for what, names in kinds.items() if names]
    if parts:
        raise FairseqError(f"as transformers would name them, {'; '.join(parts)}")


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    shapes = {}
    for name, tensor in model.state_dict().items():
        for new, replacement in old.items():
            name = name.replace(new, replacement)
        shapes[name] = tuple(tensor.shape)
    return shapes


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# ----------------------------------------------------------------------------------------------------- settings


def _config(weights: dict[str, Tensor], settings: _Settings) -> Any:
    """The transformers config: sizes from the tensors, the rest from the settings."""
    import transformers

    model = settings.model
    convs = _numbered(weights, rf"{CONV}\.(\d+)\.conv\.weight")
    layers = _numbered(weights, r"encoder\.layers\.(\d+)\..*")
    position = _shape_of(weights, "encoder.pos_conv_embed.conv.weight_v", 3)
    kernels = [_shape_of(weights, f"{CONV}.{i}.conv.weight", 3) for i in range(convs)]
    hidden = _shape_of(weights, "encoder.layer_norm.weight", 1)[0]
    heads = _required(model, "encoder_attention_heads", int)
    if hidden % heads or hidden % position[1]:
        raise FairseqError(f"{hidden} dimensions cannot be split into {heads} heads or parts of {position[1]}")
    masked = 0.05 if "masked_spec_embed" in weights else 0.0
    fields = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": _shape_of(weights, "encoder.layers.0.feed_forward.intermediate_dense.weight", 2)[0],
        "hidden_act": _activation(model),
        "conv_dim": [shape[0] for shape in kernels],
        "conv_kernel": [shape[2] for shape in kernels],
        "conv_stride": _strides(model, [(shape[0], shape[2]) for shape in kernels]),
        "conv_bias": f"{CONV}.0.conv.bias" in weights,
        "feat_extract_norm": "layer" if f"{CONV}.1.layer_norm.weight" in weights else "group",
        "do_stable_layer_norm": _required(model, "layer_norm_first", bool),
        "num_conv_pos_embeddings": position[2],
        "num_conv_pos_embedding_groups": hidden // position[1],
        "mask_time_prob": masked,
        "architectures": ["HubertModel" if settings.family == "hubert" else "Wav2Vec2Model"],
    }
    kind = transformers.HubertConfig if settings.family == "hubert" else transformers.Wav2Vec2Config
    return kind(**fields)


def _numbered(weights: dict[str, Tensor], pattern: str) -> int:
    """How many modules of a list the tensors show; their numbers must follow one another from 0."""
    found = {int(match[1]) for name in weights if (match := re.fullmatch(pattern, name))}
    if not found:
        raise FairseqError("it has no transformer layers or no convolutions, so it is no speech encoder")
    if gaps := sorted(set(range(len(found))) - found):
        raise FairseqError(f"as transformers would name it, module {gaps[0]} of {pattern} is missing")
    return len(found)


def _shape_of(weights: dict[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim != dims:
        raise FairseqError(f"as transformers would name it, {name} is missing or has not {dims} dimensions")
    return tuple(weights[name].shape)


def _activation(model: Any) -> str:
    found = _text(model, "activation_fn") or "gelu"
    if found not in ACTIVATIONS:
        raise FairseqError(f"activation_fn {found!r} is not known; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[found]


def _strides(model: Any, shapes: list[tuple[int, int]]) -> list[int]:
    """The strides in conv_feature_layers, whose channels and kernels must be those of the tensors."""
    text = _text(model, "conv_feature_layers") or STRIDES
    try:
        layers = _layers(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise FairseqError(f"conv_feature_layers {text[:80]!r} is no list of (channels, kernel, stride)") from error
    if [layer[:2] for layer in layers] != shapes:
        raise FairseqError(f"conv_feature_layers {text[:80]!r} disagrees with the tensors: {shapes}")
    return [layer[2] for layer in layers]


def _layers(node: ast.expr) -> list[tuple[int, int, int]]:
    """Lists of triples, their sums, and their repetitions by a number: all that conv_feature_layers are written in."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _layers(node.left) + _layers(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        times = ast.literal_eval(node.right)
        if isinstance(times, int) and 0 <= times <= 64:
            return (_layers(node.left) * times)[:64]
    elif isinstance(node, ast.List | ast.Tuple):
        layers = [tuple(ast.literal_eval(item)) for item in node.elts]
        if all(len(layer) == 3 and all(isinstance(size, int) for size in layer) for layer in layers):
            return [(channels, kernel, stride) for channels, kernel, stride in layers]
    raise ValueError(ast.dump(node)[:80])


def _settings(content: dict[Any, Any], names: list[str], *, family: str | None, normalize: bool | None) -> _Settings:
    """Settings of the encoder: of a fine-tuned model, those it was pretrained with."""
    top = _unwrapped(content.get("cfg")) or _unwrapped(content.get("args"))
    if not top:
        raise FairseqError("it has neither cfg nor args, and tensors alone do not tell heads, strides and pre-norm")
    # args is one flat namespace; cfg has parts
    model, task = _unwrapped(_field(top, "model")) or top, _unwrapped(_field(top, "task")) or top
    pretrained = _unwrapped(_field(model, "w2v_args"))
    found = _field(task, "normalize")
    if pretrained:
        inner = _unwrapped(_field(pretrained, "model")) or pretrained
        inner_task = _unwrapped(_field(pretrained, "task")) or pretrained
        found = _field(inner_task, "normalize") if not isinstance(found, bool) else found
    else:
        inner = model
    normalize = found if normalize is None and isinstance(found, bool) else normalize
    if normalize is None:
        raise FairseqError("it does not say whether recordings are normalised: say --normalize or --no-normalize")
    return _Settings(_family(family, [top, model, inner], names), normalize, inner)


def _family(stated: str | None, nodes: list[Any], names: list[str]) -> str:
    if stated is not None:
        if stated not in ("hubert", "wav2vec2"):
            raise FairseqError(f"unknown family {stated!r}; known: hubert, wav2vec2")
        return stated
    called = " ".join(_text(node, key) for node in nodes for key in ("_name", "arch"))
    short = [name.removeprefix(TUNED) for name in names]
    if "hubert" in called or "label_embs_concat" in short:
        return "hubert"
    if "wav2vec" in called or any(name.startswith(("quantizer.", "project_q.")) for name in short):
        return "wav2vec2"
    raise FairseqError("it does not say what model it is: say --family hubert or --family wav2vec2")


def _required(model: Any, key: str, kind: type[Any]) -> Any:
    found = _field(model, key)
    if not isinstance(found, kind) or (kind is int and (isinstance(found, bool) or found < 1)):
        given = repr(found) if isinstance(found, int | float | None) else f"a {type(found).__name__}"
        raise FairseqError(f"its settings give {key} as {given}, where a {kind.__name__} must be")
    return found


def _text(node: Any, key: str) -> str:
    """A setting that is text, cut to a sane length; empty where it is none: str() of nested lists may never end."""
    found = _field(node, key)
    return found[:2000] if isinstance(found, str) else ""


def _field(node: Any, key: str) -> Any:
    """A setting in a dictionary, as plain value; None where there is none."""
    found = node.get(key) if isinstance(node, dict) else None
    return _unwrapped(found)


def _unwrapped(value: Any) -> Any:
    """The dictionary in a namespace or an OmegaConf container, the value in a node; others as they are."""
    for _ in range(8):  # nodes hold nodes, but not many
        if not isinstance(value, Record):
            return value
        fields = value.fields
        value = next((fields[key] for key in ("_content", "_val") if key in fields), fields)
    return value

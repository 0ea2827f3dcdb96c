"""Checkpoints of speech models: which are known, and how one is loaded and cut at a layer."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unitkit.encoders.engines import Arithmetic
from unitkit.encoders.families import BertEncoder, WaveformEncoder, WhisperEncoder
from unitkit.encoders.filterbanks import FILTERBANKS
from unitkit.encoders.transformer import Cut, TransformerEncoder, canonical_names, quiet_transformers
from unitkit.encoders.weights import round_to_half

MODELS = {  # short name -> hub id; any other hub id or local directory works as well
    "hubert-base": "facebook/hubert-base-ls960",
    "hubert-large": "facebook/hubert-large-ll60k",
    "mhubert-147": "utter-project/mHuBERT-147",
    "wav2vec2-base": "facebook/wav2vec2-base",
    "wav2vec2-large": "facebook/wav2vec2-large-lv60",
    "xlsr-53": "facebook/wav2vec2-large-xlsr-53",
    "xls-r-300m": "facebook/wav2vec2-xls-r-300m",
    "wavlm-base": "microsoft/wavlm-base",
    "wavlm-base-plus": "microsoft/wavlm-base-plus",
    "wavlm-large": "microsoft/wavlm-large",
    "data2vec-audio-base": "facebook/data2vec-audio-base",
    "data2vec-audio-large": "facebook/data2vec-audio-large",
    "w2v-bert-2": "facebook/w2v-bert-2.0",
    "whisper-tiny": "openai/whisper-tiny",
    "whisper-base": "openai/whisper-base",
    "whisper-small": "openai/whisper-small",
    "whisper-large-v3": "openai/whisper-large-v3",
}


@dataclass(frozen=True)
class _Family:
    """How to load one model_type: class in transformers, our encoder, and the config field that counts its layers."""

    model: str
    encoder: type[WaveformEncoder] | type[BertEncoder] | type[WhisperEncoder] = WaveformEncoder
    layers: str = "num_hidden_layers"


FAMILIES = {
    "hubert": _Family("HubertModel"),
    "wav2vec2": _Family("Wav2Vec2Model"),
    "wavlm": _Family("WavLMModel"),
    "data2vec-audio": _Family("Data2VecAudioModel"),
    "wav2vec2-bert": _Family("Wav2Vec2BertModel", BertEncoder),
    "whisper": _Family("models.whisper.modeling_whisper.WhisperEncoder", WhisperEncoder, "encoder_layers"),
}


def load_transformer(
    name: str, *, layer: int | None, padding: str, arithmetic: Arithmetic, half: bool = False
) -> TransformerEncoder:
    """The encoder of a checkpoint, cut at `layer`; see `load_encoder`."""
    source = _locate(name)
    with quiet_transformers(local=os.path.isdir(source)):
        config = _read_config(source)
        if config.model_type not in FAMILIES:
            raise ValueError(f"{source} is a {config.model_type!r} model; known families: {', '.join(FAMILIES)}")
        family = FAMILIES[config.model_type]
        chosen = _choose_layer(config, family, layer, source)
        _cut_config(config, family, chosen)
        model = _read_model(source, config, family)
        if half:
            round_to_half(canonical_names(model.state_dict()), source)
        preprocessor = _read_preprocessor(source)
    return family.encoder(Cut(model, chosen, source, preprocessor), padding=padding, arithmetic=arithmetic)


def _locate(name: str) -> str:
    """A local directory as it is, a short name as its hub id, and a hub id as it is."""
    if os.path.isdir(name):
        return name
    if name in MODELS:
        return MODELS[name]
    # A hub id is "owner/model"; anything else with a slash was meant as a path.
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
        return name
    known = ", ".join([*FILTERBANKS, *MODELS])
    raise ValueError(f"unknown features {name!r}; known: {known}; a Hugging Face hub id or a local directory works too")


def _read_config(source: str) -> Any:
    from transformers import AutoConfig

    if os.path.isdir(source) and not Path(source, "config.json").is_file():
        raise ValueError(f"{source} holds no config.json, so it is no transformers checkpoint")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise ValueError(_unreachable(source, error)) from error


def _unreachable(source: str, error: OSError) -> str:
    why = f"cannot get {source} from the Hugging Face hub ({str(error).splitlines()[0]})"
    return f"{why}. Check the name and the network, or give a local directory instead"


def _choose_layer(config: Any, family: _Family, layer: int | None, source: str) -> int:
    total = getattr(config, family.layers)
    chosen = getattr(config, "unitkit_layer", max(1, total // 2)) if layer is None else layer
    if not 0 <= chosen <= total:
        raise ValueError(f"{source} has no layer {chosen}; known: 0 (input of the first layer) to {total}")
    return chosen


def _cut_config(config: Any, family: _Family, layer: int) -> None:
    """Make the config build layers 1..layer only, without training-time masking, adapters or layer drop."""
    setattr(config, family.layers, layer)
    off = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0, "encoder_layerdrop": 0.0}
    flags = {"apply_spec_augment": False, "add_adapter": False, "use_intermediate_ffn_before_adapter": False}
    for key, value in {**off, **flags}.items():
        if hasattr(config, key):
            setattr(config, key, value)


def _read_model(path: str, config: Any, family: _Family) -> Any:
    """The cut model in float32 with every weight it uses found; pickled weights are refused."""
    import transformers

    loader: Any = transformers
    for part in family.model.split("."):
        loader = getattr(loader, part)
    names = {r"^(model\.)?encoder\.": ""} if family.encoder is WhisperEncoder else None
    try:
        model, found = loader.from_pretrained(
            path, config=config, use_safetensors=True, dtype=torch.float32, key_mapping=names, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(_no_safetensors(path, error)) from error
    if missing := {key for key in found["missing_keys"] if not _is_final_norm(key, config)}:
        raise ValueError(f"{path} lacks {len(missing)} weights of {family.model}, such as {min(missing)}")
    return model


def _no_safetensors(source: str, error: OSError) -> str:
    if not os.path.isdir(source):
        return _unreachable(source, error)
    return (
        f"{source} holds no model.safetensors. Pickled weights (pytorch_model.bin) can run code and are not read; "
        'convert them once where you trust them: python -c "from transformers import AutoModel; '
        f"AutoModel.from_pretrained('{source}', weights_only=True).save_pretrained('{source}')\""
    )


def _is_final_norm(key: str, config: Any) -> bool:
    """The norm after the last layer, which we take out and do not save."""
    if config.model_type == "whisper":
        return key.startswith("layer_norm.")
    return getattr(config, "do_stable_layer_norm", False) and key.startswith("encoder.layer_norm.")


def _read_preprocessor(source: str) -> dict[str, Any]:
    """preprocessor_config.json, or nothing where there is none."""
    from transformers import FeatureExtractionMixin

    try:
        return FeatureExtractionMixin.get_feature_extractor_dict(source)[0]
    except OSError:
        return {}

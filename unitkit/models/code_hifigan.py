"""Reads unit vocoders in the `code_hifigan` layout of fairseq and speech-resynthesis into a `UnitVocoder`."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import HifiganConfig, VocoderError, upsampling_factors

NAMES = {  # theirs -> ours; residual blocks are renumbered by stage in `_our_name`
    "dict": "units.0",
    "spkr": "speaker",
    "conv_pre": "core.pre",
    "conv_post": "core.post",
    "dur_predictor.conv1.0": "durations.convs.0",
    "dur_predictor.conv2.0": "durations.convs.1",
    "dur_predictor.ln1": "durations.norms.0",
    "dur_predictor.ln2": "durations.norms.1",
    "dur_predictor.proj": "durations.out",
}


def import_code_hifigan(
    checkpoint: str | os.PathLike[str], config: str | os.PathLike[str] | None = None, *, tokenizer: str
) -> UnitVocoder:
    """Builds the vocoder of a checkpoint `{"generator": ...}`; `tokenizer` is the fingerprint of the units it speaks.

    `config` is the checkpoint's JSON; without it, 16 kHz, hop 320 and dilations 1, 3, 5 are taken for granted.
    """
    weights = _fold(_read(Path(checkpoint)))
    facts = json.loads(Path(config).read_text()) if config else {}
    model = UnitVocoder(_config(weights, facts, tokenizer=tokenizer)).fold()
    per_stage = len(model.config.hifigan.kernels)
    renamed = {_our_name(name, per_stage): value for name, value in weights.items()}
    expected = model.state_dict()
    wrong = [n for n, v in renamed.items() if n in expected and v.shape != expected[n].shape]
    odd = sorted(set(renamed) ^ set(expected)) + wrong
    if odd:
        raise VocoderError(
            f"{checkpoint}: these weights are missing, unknown or of another shape: {', '.join(odd[:6])}"
        )
    model.load_state_dict(renamed)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise VocoderError(f"{path}: holds more than weights, and a pickle may run code: not loaded") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("generator"), dict):
        raise VocoderError(f"{path}: not a code_hifigan checkpoint, which is a dict with a 'generator'")
    return {name: value.float() for name, value in stored["generator"].items()}


def _fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins each pair weight_g, weight_v (length and direction, per first dimension) into a weight."""
    plain = {}
    for name, value in weights.items():
        if name.endswith(".weight_v"):
            length = weights[f"{name[:-1]}g"]
            norm = value.flatten(1).norm(dim=1).view_as(length)
            plain[name.removesuffix("_v")] = value * (length / norm)
        elif not name.endswith(".weight_g"):
            plain[name] = value
    return plain


def _config(weights: dict[str, Tensor], facts: dict[str, Any], *, tokenizer: str) -> VocoderConfig:
    foreign = sorted({name.split(".")[0] for name in weights if not _known(name)})
    if foreign:
        raise VocoderError(f"this kind of code_hifigan is not supported: it has {', '.join(foreign)}")
    if "spkr.bias" in weights:
        raise VocoderError("this code_hifigan takes speaker vectors; only a table of speakers is supported")
    stages = len({name.split(".")[1] for name in weights if name.startswith("ups.")})
    blocks = len({name.split(".")[1] for name in weights if name.startswith("resblocks.")})
    rates = tuple(facts.get("upsample_rates", (5, 4, 4, 2, 2)))
    hop = facts.get("code_hop_size", torch.tensor(rates).prod().item())
    dilations = {tuple(d) for d in facts.get("resblock_dilation_sizes", [(1, 3, 5)])}
    if rates != upsampling_factors(hop) or len(rates) != stages or len(dilations) != 1:
        raise VocoderError(f"upsample_rates {rates} for hop {hop}, dilations {dilations}: not the layout made here")
    kernels = tuple(weights[f"resblocks.{i}.convs1.0.weight"].shape[2] for i in range(blocks // stages))
    n_units, unit_dim = weights["dict.weight"].shape
    speakers, speaker_dim = weights["spkr.weight"].shape if "spkr.weight" in weights else (0, 128)
    rate = facts.get("sampling_rate", 16000)
    durations = "dur_predictor.proj.weight" in weights
    return VocoderConfig(
        tokenizer=tokenizer,
        rate_hz=rate / hop,
        n_units=n_units,
        sample_rate=rate,
        core="hifigan",
        hifigan=HifiganConfig(
            channels=weights["conv_pre.weight"].shape[0],
            kernels=kernels,
            dilations=dilations.pop(),
            narrowest=weights["conv_post.weight"].shape[1],
        ),
        unit_dim=unit_dim,
        speakers=tuple(str(i) for i in range(speakers)),
        speaker_dim=speaker_dim,
        durations=durations,
        duration_dim=weights["dur_predictor.proj.weight"].shape[1] if durations else 128,
    )


def _known(name: str) -> bool:
    return name.rpartition(".")[0] in NAMES or bool(re.match(r"(ups\.\d+|resblocks\.\d+\.convs[12]\.\d+)\.", name))


def _our_name(name: str, per_stage: int) -> str:
    owner, _, leaf = name.rpartition(".")
    if owner in NAMES:
        return f"{NAMES[owner]}.{leaf}"
    block = re.fullmatch(r"resblocks\.(\d+)\.convs([12])\.(\d+)", owner)
    if block is None:
        return f"core.{name}"
    index, kind, layer = int(block[1]), ("dilated", "plain")[int(block[2]) - 1], block[3]
    return f"core.blocks.{index // per_stage}.{index % per_stage}.{kind}.{layer}.{leaf}"

"""What a thing is, for `unitkit info`: tokenizers, unit files, manifests, models, recordings."""

import re
from dataclasses import asdict
from pathlib import Path

from unitkit import audio
from unitkit.manifest import read_manifest
from unitkit.models.storage import kind_of
from unitkit.tokenizer import Tokenizer
from unitkit.units import UnitsHeader, bitrate, read_header, read_units

PARTS = {  # of a model's directory, by kind
    "seq2seq": ("listener", "tokenizer", "unit_bpe", "vocoder", "text.model"),
    "frame": ("speaker", "vocoder", "tokenizer"),
    "tts": ("voices.safetensors", "speaker", "vocoder"),
    "soft": ("listener",),
    "acoustic": ("vocoder",),
}


def header_of(tokenizer: str, *, n_units: int | None = None, rate_hz: float = 50.0) -> UnitsHeader:
    """The unit-file header of a tokenizer given by directory, bundled name, or bare 12-hex fingerprint."""
    if not re.fullmatch(r"[0-9a-f]{12}", tokenizer):
        return Tokenizer.load(tokenizer, device="cpu").header()
    if n_units is None:
        raise ValueError(f"a bare fingerprint ({tokenizer}) does not say how many units there are: add --units")
    return UnitsHeader(tokenizer, rate_hz, n_units)


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, object]:
    """What `unitkit info` says of a tokenizer."""
    facts: dict[str, object] = {
        "fingerprint": tokenizer.fingerprint,
        "units": f"{tokenizer.n_units} × {tokenizer.codebooks} codebook(s) at {tokenizer.rate_hz:g} Hz",
        "sample rate": f"{tokenizer.sample_rate} Hz",
    }
    facts |= {f"encoder {name}": value for name, value in tokenizer.encoder.settings().items()}
    report = {name: value for name, value in tokenizer.quantizer.report.items() if name != "per_codebook"}
    return facts | {f"k-means {name}": value for name, value in report.items()}


def describe(path: str) -> tuple[str, dict[str, object]]:
    """Title and facts of a tokenizer, unit file, manifest, model directory or audio file; for `unitkit info`."""
    at = Path(path)
    if not at.exists():
        return "tokenizer", tokenizer_facts(Tokenizer.load(path, device="cpu"))
    if at.is_dir():
        return _describe_directory(at)
    if at.suffix != ".jsonl":
        return "audio", asdict(audio.info(at))
    first = at.open(encoding="utf-8").readline()
    if '"unitkit"' in first:
        header = read_header(at)
        rate = bitrate(read_units(at))
        return "units", asdict(header) | {"utterances": sum(1 for _ in read_units(at))} | asdict(rate)
    rows = list(read_manifest(at))
    seconds = sum(row.duration or 0.0 for row in rows)
    speakers, langs = ({getattr(row, name) for row in rows if getattr(row, name)} for name in ("speaker", "lang"))
    words = sum(len((row.text or "").split()) for row in rows)
    return "manifest", {
        "utterances": len(rows),
        "minutes": seconds / 60,
        "speakers": ", ".join(sorted(speakers)) or "not given",
        "languages": ", ".join(sorted(langs)) or "not given",
        "words": words,
    }


def _describe_directory(at: Path) -> tuple[str, dict[str, object]]:
    if (at / "tokenizer.json").exists():
        return "tokenizer", tokenizer_facts(Tokenizer.load(at, device="cpu"))
    if (at / "config.yaml").exists() and (at / "model.safetensors").exists():
        return _describe_model(at)
    if (at / "manifest.jsonl").exists():
        return describe(str(at / "manifest.jsonl"))
    raise ValueError(f"{at}: neither a tokenizer, a model, nor a synthesis directory")


def _describe_model(at: Path) -> tuple[str, dict[str, object]]:
    """From the files alone: what kind the weights say they are, how many, and the config beside them."""
    from math import prod

    from omegaconf import OmegaConf
    from safetensors import safe_open

    kind = kind_of(at) or "model"
    with safe_open(at / "model.safetensors", "np") as file:
        size = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 no dict
    facts: dict[str, object] = {"parameters": f"{size / 1e6:.2f} M"}
    if kind in PARTS:
        facts["beside it"] = _beside(at, PARTS[kind])
    settings = OmegaConf.to_container(OmegaConf.load(at / "config.yaml"))
    assert isinstance(settings, dict)
    return _title(at, kind), facts | {str(name): value for name, value in settings.items()}


def _title(at: Path, kind: str) -> str:
    """What a model of a kind is called, by what stands beside it."""
    if kind == "seq2seq" and (at / "text.model").is_file():
        return "recogniser"
    if kind == "seq2seq" and all((at / name).is_dir() for name in ("listener", "vocoder")):
        return "translator"
    return {"frame": "converter"}.get(kind, kind)


def _beside(at: Path, parts: tuple[str, ...]) -> str:
    """Which of the parts a model's directory holds."""
    found = [name for name in parts if (at / name).exists()]
    return ", ".join(found) or f"none of {', '.join(parts)}"

"""Speech to discrete units and back.  Names load on first use, so `import unitkit` is instant; types: __init__.pyi."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AudioError": "audio",
    "FingerprintError": "units",
    "SoftTokenizer": "pipeline",
    "SoftUnits": "soft",
    "Recognizer": "pipeline",
    "TTS": "pipeline",
    "Tokenizer": "tokenizer",
    "Translation": "pipeline",
    "Translator": "pipeline",
    "UnitBPE": "bpe",
    "Units": "units",
    "Utterance": "manifest",
    "Vocab": "units",
    "Vocoder": "pipeline",
    "VoiceConverter": "pipeline",
    "bitrate": "units",
    "read_manifest": "manifest",
    "read_units": "units",
    "segment": "segments",
    "write_manifest": "manifest",
    "write_units": "units",
}
__all__ = [
    "TTS",
    "AudioError",
    "FingerprintError",
    "Recognizer",
    "SoftTokenizer",
    "SoftUnits",
    "Tokenizer",
    "Translation",
    "Translator",
    "UnitBPE",
    "Units",
    "Utterance",
    "Vocab",
    "Vocoder",
    "VoiceConverter",
    "bitrate",
    "read_manifest",
    "read_units",
    "segment",
    "write_manifest",
    "write_units",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unitkit' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"unitkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

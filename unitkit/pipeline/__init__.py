"""Whole systems with one call: load a directory, call it.  Also bulk work with them, and what `unitkit info` prints."""

from unitkit.pipeline.facts import describe, header_of, tokenizer_facts
from unitkit.pipeline.reading import speak
from unitkit.pipeline.speak import Vocoder, synthesise
from unitkit.pipeline.translator import Translation, Translator, translate
from unitkit.pipeline.tts import TTS, Spoken, Voice
from unitkit.pipeline.work import Done, Step
from unitkit.units import FingerprintError

__all__ = [
    "TTS",
    "Done",
    "FingerprintError",
    "Spoken",
    "Step",
    "Translation",
    "Translator",
    "Vocoder",
    "Voice",
    "describe",
    "header_of",
    "speak",
    "synthesise",
    "tokenizer_facts",
    "translate",
]

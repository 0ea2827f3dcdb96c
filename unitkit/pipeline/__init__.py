"""Whole systems with one call: load a directory, call it.  Also bulk work with them, and what `unitkit info` prints."""

from unitkit.pipeline.converter import VoiceConverter, convert
from unitkit.pipeline.facts import describe, header_of, tokenizer_facts
from unitkit.pipeline.speak import Vocoder, synthesise
from unitkit.pipeline.translator import Translation, Translator, translate
from unitkit.pipeline.work import Done, Step
from unitkit.units import FingerprintError

__all__ = [
    "Done",
    "FingerprintError",
    "Step",
    "Translation",
    "Translator",
    "Vocoder",
    "VoiceConverter",
    "convert",
    "describe",
    "header_of",
    "synthesise",
    "tokenizer_facts",
    "translate",
]

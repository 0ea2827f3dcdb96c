"""Whole systems with one call: load a directory, call it.  Also bulk work with them, and what `unitkit info` prints."""

from unitkit.pipeline.facts import describe, header_of, tokenizer_facts
from unitkit.pipeline.made import Made, Step
from unitkit.pipeline.speak import Vocoder, synthesise
from unitkit.pipeline.translator import Translation, Translator, translate
from unitkit.units import FingerprintError

__all__ = [
    "FingerprintError",
    "Made",
    "Step",
    "Translation",
    "Translator",
    "Vocoder",
    "describe",
    "header_of",
    "synthesise",
    "tokenizer_facts",
    "translate",
]

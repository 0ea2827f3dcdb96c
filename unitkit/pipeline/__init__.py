"""Whole systems with one call: load a directory, call it.  Also bulk work with them, and what `unitkit info` prints."""

from unitkit.pipeline.facts import describe, header_of, tokenizer_facts
from unitkit.pipeline.soft import SoftTokenizer, encode_soft
from unitkit.pipeline.speak import Vocoder, synthesise
from unitkit.pipeline.translator import Step, Translated, Translation, Translator, translate
from unitkit.units import FingerprintError

__all__ = [
    "FingerprintError",
    "SoftTokenizer",
    "Step",
    "Translated",
    "Translation",
    "Translator",
    "Vocoder",
    "describe",
    "encode_soft",
    "header_of",
    "synthesise",
    "tokenizer_facts",
    "translate",
]

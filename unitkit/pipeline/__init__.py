"""Whole systems with one call: load a directory, call it.  Also bulk work with them, and what `unitkit info` prints."""

from unitkit.pipeline.converter import VoiceConverter, convert
from unitkit.pipeline.facts import describe, header_of, tokenizer_facts
from unitkit.pipeline.reading import speak
from unitkit.pipeline.recognizer import Recognizer, Transcript
from unitkit.pipeline.soft import SoftTokenizer, encode_soft
from unitkit.pipeline.speak import Vocoder, synthesise
from unitkit.pipeline.transcribe import Source, Transcribed, Written, sources_of_units, transcribe
from unitkit.pipeline.translator import Translation, Translator, translate
from unitkit.pipeline.tts import TTS, Spoken, Voice
from unitkit.pipeline.work import Done, Step
from unitkit.units import FingerprintError

__all__ = [
    "TTS",
    "Done",
    "FingerprintError",
    "Recognizer",
    "SoftTokenizer",
    "Source",
    "Spoken",
    "Step",
    "Transcribed",
    "Transcript",
    "Translation",
    "Translator",
    "Vocoder",
    "Voice",
    "VoiceConverter",
    "Written",
    "convert",
    "describe",
    "encode_soft",
    "header_of",
    "sources_of_units",
    "speak",
    "synthesise",
    "tokenizer_facts",
    "transcribe",
    "translate",
]

"""Directories of tiny untrained models of every kind, for a tokenizer: what they say is noise of the right length."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from unitkit.audio import Mel
from unitkit.models.frame import Bins, FrameConfig, FrameModel, Size
from unitkit.models.heads import HeadConfig
from unitkit.models.listen import Listener
from unitkit.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unitkit.models.speaker import SpeakerConfig, SpeakerEncoder, SpeakerNet
from unitkit.models.tts import TextToUnits, TtsConfig
from unitkit.models.unit_input import UnitInput
from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import IstftConfig
from unitkit.pieces import Pieces
from unitkit.tokenizer import Tokenizer
from unitkit.units import UnitsHeader
from unitkit.voices import Voices

ISTFT = IstftConfig(dim=16, blocks=1, hidden=16)


def vocoder(path: Path, tok: UnitsHeader, **more: object) -> Path:
    """Units to speech; its durations are a few frames."""
    torch.manual_seed(1)
    settings = {"tokenizer": tok.tokenizer, "rate_hz": tok.rate_hz, "n_units": tok.n_units, "codebooks": tok.codebooks}
    model = UnitVocoder(VocoderConfig(**(settings | {"istft": ISTFT, "unit_dim": 8, "duration_dim": 8} | more)))  # type: ignore[arg-type]
    if model.durations is not None:
        nn.init.constant_(model.durations.out.bias, 1.5)
    model.save(path)
    return path


def encoder() -> SpeakerEncoder:
    """Hears voices, as vectors of 6 numbers."""
    torch.manual_seed(2)
    return SpeakerEncoder(SpeakerNet(SpeakerConfig(hidden=8, layers=1, dim=6)))


def converter(path: Path, tok: UnitsHeader) -> Path:
    """Another voice, melody or rhythm."""
    torch.manual_seed(3)
    mel = Mel(n_mels=20)
    config = FrameConfig(
        tokenizer=tok.tokenizer, n_units=tok.n_units, mel=mel, dim=16, layers=1, vector_dim=8, hearing_hidden=8,
        hearing_layers=1, f0=Bins(-12.0, 12.0, 16, 2.0), energy=Bins(-6.0, 6.0, 16, 1.0), durations=Size(8),
        voicing=Size(8), f0_size=Size(8), energy_size=Size(8),
    )  # fmt: skip
    FrameModel(config).save(path)
    spoken = UnitsHeader(mel.fingerprint, mel.rate_hz, 1)
    vocoder(path / "vocoder", spoken, features_dim=mel.n_mels, sample_rate=mel.sample_rate)
    return path


def tts(path: Path, tok: UnitsHeader) -> Path:
    """Text in two languages by three voices, or any."""
    torch.manual_seed(4)
    ear = encoder()
    config = TtsConfig(
        tokenizer=tok.tokenizer, n_units=tok.n_units, rate_hz=tok.rate_hz, symbols=" .abcdefghijklmnopqrstuvwxyz",
        longest=100, langs=("en", "es"), speakers={"bob": ["es", "en"], "ann": ["en"], "cid": ["en", "es"]},
        speaker_vector_dim=6, speaker_encoder=ear.checksum(), dim=16, encoder_layers=1, decoder_layers=1, lang_dim=4,
        aligner_dim=8, duration_dim=8,
    )  # fmt: skip
    model = TextToUnits(config)
    nn.init.constant_(model.durations.leave.bias, 1.5)
    model.save(path)
    draw = np.random.default_rng(0)
    Voices.of({name: draw.random(6) for name in config.speakers}, encoder=ear.checksum()).save(
        path / "voices.safetensors"
    )
    ear.save(path / "speaker")
    vocoder(path / "vocoder", tok, speaker_dim=8, speaker_vector_dim=6, speaker_encoder=ear.checksum())
    return path


def translator(path: Path, tok: UnitsHeader) -> Path:
    """Speech to units and a text."""
    torch.manual_seed(5)
    listener = Listener.make("logmel@100")
    text = {"target_text": HeadConfig(kind="ctc", at="decoder", layer=1, target="target_text")}
    config = Seq2SeqConfig(
        tokenizer=tok.tokenizer, n_units=tok.n_units, rate_hz=tok.rate_hz, features="logmel@100",
        features_dim=listener.dim, target_letters=" abcdef", target_lang="en", dim=16, encoder_layers=1,
        decoder_layers=2, attention_heads=2, hidden=16, conv_channels=16, heads=text,
    )  # fmt: skip
    Seq2Seq(config).save(path)
    listener.save(path / "listener")
    vocoder(path / "vocoder", tok)
    return path


def recognizer(path: Path, tok: UnitsHeader) -> Path:
    """Units to a text."""
    torch.manual_seed(6)
    pieces = Pieces.train(["a bad cab", "face it", "had a bag"], 16, kind="char", langs=("en", "es"))
    units = UnitInput(tok, True, None)
    config = Seq2SeqConfig(
        target="text", tokenizer=pieces.fingerprint, pieces=pieces.n_pieces, langs=pieces.langs, source="units",
        source_tokenizer=tok.tokenizer, source_units=tok.n_units,
        source_rate_hz=tok.rate_hz, dim=16, encoder_layers=1, decoder_layers=1, attention_heads=2, hidden=16, ctc=0.3,
        source_codebooks=tok.codebooks,
    )  # fmt: skip
    Seq2Seq(config).save(path)
    pieces.save(path)
    units.save(path)
    return path


def all_of(folder: Path, tokenizer: str) -> dict[str, Path]:
    """Every kind, by the name of its option."""
    tok = Tokenizer.load(tokenizer, device="cpu").header()
    made = {"vocoder": vocoder, "converter": converter, "tts": tts, "translator": translator, "recognizer": recognizer}
    return {name: make(folder / name, tok) for name, make in made.items()}

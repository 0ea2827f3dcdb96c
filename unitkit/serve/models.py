"""The models behind the page: loaded once, before it opens, with errors that name the option to mend."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from unitkit.pipeline import TTS, Recognizer, Translator, Vocoder, VoiceConverter
from unitkit.tokenizer import BUNDLED, DEFAULT, Tokenizer, pick_device
from unitkit.units import FingerprintError, check_fingerprint
from unitkit.voices import SpeakerModel


@dataclass(frozen=True)
class Models:
    """The tokenizer, and what is there besides; `ear` makes the speaker vectors of a vocoder that takes them."""

    tokenizer: Tokenizer
    vocoder: Vocoder | None = None
    converter: VoiceConverter | None = None
    tts: TTS | None = None
    translator: Translator | None = None
    recognizer: Recognizer | None = None
    ear: SpeakerModel | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        if self.vocoder is None:
            return
        check_fingerprint(self.tokenizer.fingerprint, self.vocoder.tokenizer, what="the vocoder for this tokenizer")
        c = self.vocoder.config
        if c.speaker_vector_dim and (self.ear is None or self.ear.checksum() != c.speaker_encoder):
            raise ValueError(
                f"the vocoder takes voices as vectors of speaker encoder {c.speaker_encoder!r}: put that encoder into "
                "its speaker/, or name with --tts a model that has it"
            )


def load_models(
    *,
    tokenizer: str | None = None,
    vocoder: str | Path | None = None,
    converter: str | Path | None = None,
    tts: str | Path | None = None,
    translator: str | Path | None = None,
    translator_vocoder: str | Path | None = None,
    recognizer: str | Path | None = None,
    device: str = "auto",
) -> Models:
    """Load what is named, and of the rest what is bundled.

    Raises:
        FingerprintError: a model belongs to another tokenizer; names the option and both.
        ValueError: a directory is not what its option takes; names the option.
    """
    where = pick_device(device)
    with _blaming("--tokenizer", tokenizer):
        tok = Tokenizer.load(tokenizer or DEFAULT, device=where)
    voice, speech = _bundled("vocoder", vocoder), _bundled("tts", tts)
    with _blaming("--tts", tts):
        said = TTS.load(speech, device=where) if speech is not None else None
    with _blaming("--vocoder", vocoder):
        vocoded = Vocoder.load(voice, device=where) if voice is not None else None
        if vocoder is None and vocoded is not None and vocoded.tokenizer != tok.fingerprint:
            vocoded = None  # the bundled one is for the bundled tokenizer, and nobody asked for it
        ear = _ear(vocoded, voice, said, where) if vocoded is not None and voice is not None else None
        Models(tok, vocoded, ear=ear)
    return Models(
        tok,
        vocoded,
        _converter(_bundled("converter", converter), converter, tokenizer, where),
        said,
        _translator(translator, translator_vocoder, where),
        _recognizer(_bundled("recognizer", recognizer), recognizer, tokenizer, where),
        ear,
    )


@contextmanager
def _blaming(option: str, given: str | Path | None) -> Iterator[None]:
    """Errors name the option that brought them, or say that what is bundled is at fault."""
    who = f"{option} {given}" if given is not None else f"{option} (bundled)"
    try:
        yield
    except FingerprintError as error:
        raise FingerprintError(f"{who}: {error}") from error
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{who}: {error}") from error


def _bundled(name: str, given: str | Path | None) -> str | Path | None:
    """What was given, else the bundled model of that name where there is one."""
    if given is not None:
        return given
    return BUNDLED / name if (BUNDLED / name / "config.yaml").is_file() else None


def _ear(vocoder: Vocoder, folder: str | Path, tts: TTS | None, device: str) -> SpeakerModel | None:
    """Of a vocoder that takes speaker vectors: the encoder in its speaker/, else that of the model of text."""
    if not vocoder.config.speaker_vector_dim:
        return None
    if (Path(folder) / "speaker").is_dir():
        from unitkit.models.speaker import SpeakerEncoder

        return SpeakerEncoder.load(Path(folder) / "speaker", device=device)
    return tts.encoder if tts is not None else None


def _converter(
    folder: str | Path | None, given: str | Path | None, tokenizer: str | None, device: str
) -> VoiceConverter | None:
    """With the tokenizer it has or that is bundled; where there is none, with the one that was named."""
    if folder is None:
        return None
    with _blaming("--converter", given):
        try:
            return VoiceConverter.load(folder, device=device)
        except FingerprintError:
            if tokenizer is None:
                raise
            return VoiceConverter.load(folder, tokenizer=tokenizer, device=device)


def _translator(folder: str | Path | None, vocoder: str | Path | None, device: str) -> Translator | None:
    if folder is None:
        if vocoder is not None:
            raise ValueError(f"--translator-vocoder {vocoder}: whose? name the translator with --translator")
        return None
    with _blaming("--translator", folder):
        found = Translator.load(folder, vocoder=vocoder, device=device)
        if found.listener is None:
            raise ValueError("it reads text, not speech: this page translates recordings")
        return found


def _recognizer(
    folder: str | Path | None, given: str | Path | None, tokenizer: str | None, device: str
) -> Recognizer | None:
    """With the tokenizer it has or that is bundled; where there is none, with the one that was named."""
    if folder is None:
        return None
    with _blaming("--recognizer", given):
        found = Recognizer.load(folder, device=device)
        if found.listener is not None or found.tokenizer is not None:
            return found
        if tokenizer is not None:
            return Recognizer.load(folder, tokenizer=tokenizer, device=device)
        wanted = found.model.config.source_tokenizer
        raise FingerprintError(
            f"it reads units of tokenizer {wanted!r}, which is neither in its tokenizer/ nor bundled; "
            "name that tokenizer with --tokenizer"
        )

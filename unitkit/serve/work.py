"""What the tabs of the page do: checked recordings and texts in, wavs, units and texts out.  No page in here."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, TypeVar

import numpy as np

from unitkit import audio
from unitkit.audio import AudioError
from unitkit.manifest import Utterance
from unitkit.pipeline.speak import prosody_of
from unitkit.serve.models import Models
from unitkit.units import Units, UnitsHeader, read_units, write_units

T = TypeVar("T")
File: TypeAlias = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for: `seconds` of a recording, `megabytes` of a file, `characters` of a text."""

    seconds: float = 30.0
    megabytes: float = 20.0
    characters: int = 300

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for option, value in (("seconds", self.seconds), ("mb", self.megabytes), ("chars", self.characters)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"--max-{option} {value}: a number above 0")


@dataclass(frozen=True, eq=False)
class Result:
    """What a tab has made: a wav (samples,) at `rate` Hz, units at frame level, a text, and whose units they are."""

    tokenizer: str  # fingerprint; "" of a model that knows no units
    name: str = ""
    wav: np.ndarray | None = None
    rate: int = 16000
    units: Units | None = None
    text: str | None = None
    spoken: bool = True  # whether the wav is made of the units, not the recording that they were made of
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The functions behind the tabs.  Errors are ValueErrors (or OSErrors) meant for who is at the page."""

    models: Models
    limits: Limits = field(default_factory=Limits)

    # ------------------------------------------------------------------------------------------------ what is given

    def recording(self, path: File, rate: int, *, what: str = "a recording") -> tuple[Utterance, np.ndarray]:
        """A recording that is neither too big nor too long, and its wav (samples,) at `rate` Hz."""
        if path is None:
            raise ValueError(f"There is nothing to hear yet: upload or record {what}.")
        self._small(path)
        most, seconds = self.limits.seconds, audio.info(path).duration
        wav = audio.read(path, rate, duration=most + 1) if seconds <= most else np.zeros(0, np.float32)
        if (seconds := max(seconds, len(wav) / rate)) > most + 1e-3:  # headers may be wrong
            raise AudioError(path, f"{seconds:.1f} s long; this page takes {most:g} s at most (--max-seconds)")
        if not np.isfinite(wav).all():
            raise AudioError(path, "holds NaN or infinity")
        return Utterance(Path(path).stem, os.fspath(path)), wav

    def written(self, text: str | None) -> str:
        """A text that is not too long."""
        text = (text or "").strip()
        if not text:
            raise ValueError("There is nothing to say yet: write a text.")
        if len(text) > self.limits.characters:
            most = self.limits.characters
            raise ValueError(f"{len(text)} characters; this page takes {most} at most (--max-chars)")
        return text

    def unit_file(self, path: File, pasted: str | None) -> Units:
        """The first utterance of a unit file, uploaded or pasted."""
        if path is not None:
            self._small(path)
            return self._first(Path(path))
        if not (pasted or "").strip():
            raise ValueError("There are no units yet: upload or paste a unit file, such as the tab Encode makes.")
        if len(pasted or "") > self.limits.megabytes * 1e6:
            raise ValueError(f"over {self.limits.megabytes:g} MB of units; this page takes no more (--max-mb)")
        with TemporaryDirectory(prefix="unitkit-") as folder:
            file = Path(folder) / "pasted.jsonl"
            file.write_text((pasted or "").strip() + "\n", encoding="utf-8")
            return self._first(file)

    def _first(self, path: Path) -> Units:
        found = next(read_units(path, tokenizer=self.models.tokenizer.fingerprint), None)
        if found is None:
            raise ValueError(f"{path.name}: a header and no units")
        if found.duration > self.limits.seconds:
            most = self.limits.seconds
            raise ValueError(f"{found.id}: {found.duration:.1f} s of units; this page takes {most:g} s (--max-seconds)")
        return found

    def _small(self, path: str | os.PathLike[str]) -> None:
        size = os.path.getsize(path) / 1e6
        if size > self.limits.megabytes:
            raise AudioError(path, f"{size:.1f} MB; this page takes {self.limits.megabytes:g} MB at most (--max-mb)")

    # ------------------------------------------------------------------------------------------------ what is made

    def encode(self, path: File) -> Result:
        """Units of a recording."""
        tok = self.models.tokenizer
        utterance, wav = self.recording(path, tok.sample_rate)
        return Result(tok.fingerprint, utterance.id, wav, tok.sample_rate, tok.encode(utterance), spoken=False)

    def resynthesise(
        self,
        path: File = None,
        *,
        unit_file: File = None,
        pasted: str | None = None,
        speaker: str | None = None,
        lang: str | None = None,
        predicted: bool = False,
        voice: File = None,
    ) -> Result:
        """Speech of the units of a recording; or, without one, of a unit file.

        Args:
            path: the recording.
            unit_file: or a file of units, whose first utterance is spoken; or `pasted`, its text.
            speaker: of a vocoder that knows several.
            lang: likewise.
            predicted: merge runs of units, and have the vocoder predict how long each is.
            voice: a recording whose voice a vocoder of speaker vectors takes; left out: that of `path`.
        """
        vocoder = _there(self.models.vocoder)
        tok = self.models.tokenizer
        if path is not None:
            utterance, _ = self.recording(path, tok.sample_rate)
            units, heard = tok.encode(utterance), utterance
        else:
            units, heard = self.unit_file(unit_file, pasted), None
        durations = "predicted" if predicted else "frames"
        c = vocoder.config
        if heard is None and (c.f0 or c.energy):
            raise ValueError("This vocoder takes F0 or energy of a recording: give it one instead of units.")
        f0, energy = prosody_of(vocoder, heard, units.n_frames, durations)
        wav = vocoder(
            units,
            speaker=speaker if len(c.speakers) > 1 else None,
            lang=lang if len(c.langs) > 1 else None,
            f0=f0,
            energy=energy,
            durations=durations,
            vector=self._vector(voice if voice is not None else path),
        )
        if predicted:
            short = units.dedup()[0]
            units = short.expand(vocoder.durations(short))
        return Result(vocoder.tokenizer, units.id, wav, vocoder.sample_rate, units)

    def _vector(self, path: File) -> np.ndarray | None:
        """The speaker vector (n,) of a recording, for a vocoder that takes one."""
        ear = self.models.ear
        if ear is None:
            return None
        return ear(self.recording(path, ear.sample_rate, what="one whose voice to take")[1])

    def convert(self, source: File, reference: File, *, mode: str = "speaker", exact_pitch: bool = False) -> Result:
        """What is said in `source`, with what `mode` takes from `reference`."""
        converter = _there(self.models.converter)
        rate = converter.tokenizer.sample_rate
        said, wav = self.recording(source, rate, what="what is to be said (source)")
        other, _ = self.recording(reference, rate, what="whose voice, melody or rhythm to take (reference)")
        made, units = converter.convert(said, other, mode=mode, exact_pitch=exact_pitch)
        spoken = converter.say(made, wav)
        return Result(converter.tokenizer.fingerprint, said.id, spoken, converter.sample_rate, units)

    def speak(
        self,
        text: str | None,
        *,
        language: str | None = None,
        speaker: str | None = None,
        voice: File = None,
        speed: float = 1.0,
    ) -> Result:
        """A text spoken by a speaker that the model knows by name, or in the voice of a recording."""
        tts = _there(self.models.tts)
        text = self.written(text)
        if speaker is not None and speaker not in tts.speakers:  # a name only: never a path of this machine
            raise ValueError(f"speaker {speaker!r}: known are {', '.join(tts.speakers) or 'none by name'}")
        who: str | Utterance | None = speaker
        if voice is not None:
            who = self.recording(voice, tts.encoder.sample_rate if tts.encoder is not None else 16000)[0]
        line = tts.line(text, tts.voice(who, language=language), language=language, label="speech")
        (made,) = tts.say([line], speed=speed)
        notes = {"voice": line.voice.name or ("the recording's" if voice is not None else ""), "language": line.lang}
        notes["left out, for the model cannot say it"] = made.left_out
        return Result(made.units.tokenizer, "speech", made.wav, made.sample_rate, made.units, text, notes=notes)

    def translate(self, path: File, *, speaker: str | None = None) -> Result:
        """Speech in another language: wav, units as they are spoken, and the text if the model writes one."""
        translator = _there(self.models.translator)
        listener = _there(translator.listener)
        utterance, _ = self.recording(path, listener.sample_rate)
        known = translator.vocoder.config.speakers
        made = translator(utterance, speaker=(speaker or known[0]) if len(known) > 1 else None)
        name, units = f"{utterance.id}-translated", made.frames
        return Result(units.tokenizer, name, made.wav, made.sample_rate, units, made.text)

    def transcribe(self, path: File, *, lang: str | None = None) -> Result:
        """The text of a recording."""
        recognizer = _there(self.models.recognizer)
        hears = recognizer.listener if recognizer.listener is not None else _there(recognizer.tokenizer)
        utterance, _ = self.recording(path, hears.sample_rate)
        (found,) = recognizer.write([recognizer.hear(utterance)], lang=lang)
        c = recognizer.model.config
        notes = {"language": found.lang or ""} | ({"hears": c.features} if c.source == "features" else {})
        return Result(c.source_tokenizer, utterance.id, text=found.text, notes=notes)


def unit_text(units: Units) -> str:
    """A unit file of one utterance, as text: a header and a row."""
    header = UnitsHeader(units.tokenizer, units.rate_hz, units.n_units, units.codebooks)
    named = units if units.id else header.units(units.ids, "units")
    with TemporaryDirectory(prefix="unitkit-") as folder:
        path = Path(folder) / "units.jsonl"
        write_units(path, header, [named])
        return path.read_text(encoding="utf-8")


def _there(model: T | None) -> T:
    """A model that the tab needs; the page has no button where it is missing."""
    if model is None:
        raise ValueError("This page was started without the model that this takes.")
    return model

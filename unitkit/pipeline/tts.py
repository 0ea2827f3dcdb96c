"""Text to speech through units, with one call."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from torch import Tensor, from_numpy

from unitkit import audio
from unitkit.frontends import write
from unitkit.pipeline.given import Speech, model_folder, name_of, vocoder_beside, wav_of
from unitkit.pipeline.speak import Vocoder
from unitkit.text import Letters, plain, sentences
from unitkit.tokenizer import pick_device
from unitkit.units import Units, check_fingerprint
from unitkit.voices import SpeakerModel, Voices

if TYPE_CHECKING:
    from unitkit.models.seq2seq import Seq2Seq
    from unitkit.models.tts import TextToUnits

Speaker: TypeAlias = Speech  # or a name
BATCH = 8  # texts spoken together
LONGEST = 120  # characters at once, of models that do not say what they were trained on
DEFAULT = "tts"  # name of the bundled model


@dataclass(frozen=True, eq=False)
class Spoken:
    """What was said: `wav` (samples,) float32, its units at frame level, and the symbols that the model cannot say."""

    wav: np.ndarray
    sample_rate: int
    units: Units
    left_out: str = ""


@dataclass(frozen=True, eq=False)
class Voice:
    """Whose voice: a name that the vocoder knows, or a speaker vector (dim,); and the languages it is heard in."""

    name: str | None = None
    vector: np.ndarray | None = None
    langs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For settings: the name, or the vector in short."""
        return self.name or ("" if self.vector is None else sha256(self.vector.tobytes()).hexdigest()[:12])


@dataclass(frozen=True)
class Line:
    """A text ready to be spoken: token ids of its parts, none longer than the model knows."""

    parts: list[np.ndarray]
    lang: str
    voice: Voice
    label: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class TTS:
    """Text to speech: `TTS.load("exp/tts")("Please hold.", speaker="allison")` gives a wav (samples,)."""

    model: "TextToUnits | Seq2Seq"
    vocoder: Vocoder
    voices: Voices | None = None  # those that can be named
    encoder: SpeakerModel | None = None  # hears those that cannot
    known: dict[str, list[str]] = field(default_factory=dict)  # languages of the named voices, the most heard first

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        c, v = self.model.config, self.vocoder.config
        check_fingerprint(c.tokenizer, self.vocoder.tokenizer, what="the vocoder for this model of text")
        if v.f0 or v.energy:
            raise ValueError("this vocoder takes F0 or energy of a recording: take one with f0=false energy=false")
        if self._reduced and not self.vocoder.predicts_durations:
            raise ValueError("this model makes reduced units: take a vocoder with durations=true")
        made_by = [_vectors(config)[0] for config in (c, v) if _vectors(config)[1]]
        if len(set(made_by)) > 1:
            raise ValueError(
                f"the model takes vectors of speaker encoder {made_by[0]!r}, its vocoder of {made_by[1]!r}: train both "
                "on the vectors of one"
            )
        if made_by and self.voices is not None:
            self.voices.check(made_by[0], self._vector_dim, what="the voices of this model")
        if made_by and self.encoder is not None and self.encoder.checksum() != made_by[0]:
            raise ValueError(
                f"the speaker encoder here is {self.encoder.checksum()!r}, but this model was trained with "
                f"{made_by[0]!r}: take that one"
            )

    @classmethod
    def load(
        cls,
        directory: str | Path = DEFAULT,
        *,
        vocoder: str | Path | None = None,
        voices: str | Path | None = None,
        device: str = "auto",
    ) -> "TTS":
        """Load a model directory of `recipes/train_tts.py`, or of `recipes/train_s2ut.py` with model.source=text.

        The vocoder is in its vocoder/, or in a vocoder/ beside it, or in the directory given; `voices` is a file of
        recipes/speaker_vectors.py with more speakers by name.
        """
        from unitkit.models.seq2seq import Seq2Seq
        from unitkit.models.storage import kind_of
        from unitkit.models.tts import TextToUnits

        folder, where = model_folder(directory), pick_device(device)
        model: TextToUnits | Seq2Seq
        if kind_of(folder) == "seq2seq":
            model, known = Seq2Seq.load(folder, device=where), {}
            if model.config.source != "text":
                raise ValueError(f"{folder} reads {model.config.source}, not text: train it with model.source=text")
        else:
            model = TextToUnits.load(folder, device=where)
            known = model.config.speakers
        spoken = Vocoder.load(vocoder_beside(folder, vocoder), device=where)
        named = Voices.load(folder / "voices.safetensors") if (folder / "voices.safetensors").is_file() else None
        if voices is not None:
            more = Voices.load(voices)
            named = more if named is None else named.with_more(more)
        return cls(model, spoken, named, _encoder(folder / "speaker", where), known)

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it makes."""
        return self.vocoder.sample_rate

    @property
    def languages(self) -> tuple[str, ...]:
        """Those it can be asked for; none where it has one and does not say which."""
        config: Any = self.model.config
        return tuple(config.langs) or tuple(filter(None, [getattr(config, "source_lang", "")]))

    @property
    def speakers(self) -> tuple[str, ...]:
        """Voices that can be named, the most heard in training first."""
        if self.takes_vectors:
            names = self.voices.names if self.voices is not None else ()
            return (
                *(name for name in self.known if name in names),
                *(name for name in names if name not in self.known),
            )
        return self.vocoder.config.speakers

    @property
    def takes_vectors(self) -> bool:
        """Whether voices are speaker vectors, so that any can be asked for."""
        return self._vector_dim > 0

    @property
    def _reduced(self) -> bool:
        return bool(getattr(self.model.config, "reduced", False))

    @overload
    def __call__(
        self,
        text: list[str] | tuple[str, ...],
        *,
        speaker: Speaker | None = None,
        language: str | None = None,
        speed: float = 1.0,
        beam: int = 10,
        rate: int | None = None,
    ) -> list[np.ndarray]: ...
    @overload
    def __call__(
        self,
        text: str,
        *,
        speaker: Speaker | None = None,
        language: str | None = None,
        speed: float = 1.0,
        beam: int = 10,
        rate: int | None = None,
    ) -> np.ndarray: ...
    def __call__(
        self,
        text: Any,
        *,
        speaker: Speaker | None = None,
        language: str | None = None,
        speed: float = 1.0,
        beam: int = 10,
        rate: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Speak a text, or a list of them with the same results as one by one: wavs (samples,) at `sample_rate`.

        Args:
            text: of any length; a long one is spoken in parts that end where sentences do.
            speaker: a name of `speakers`; or a recording to take the voice from: a path, an `Utterance`, a wav
                (samples,) at `rate` Hz, or its speaker vector (dim,). Left out: the most heard one of those who speak
                mostly the language.
            language: one of `languages`; left out: the first of them that the speaker is heard in, or the first.
            speed: of speech; 2 is twice as fast.
            beam: hypotheses kept by a model that goes unit by unit.
            rate: of a wav; by default the speaker encoder's.
        """
        given = list(text) if isinstance(text, list | tuple) else [text]
        voice = self.voice(speaker, language=language, rate=rate)
        made = self.say([self.line(one, voice, language=language) for one in given], speed=speed, beam=beam)
        wavs = [one.wav for one in made]
        return wavs if isinstance(text, list | tuple) else wavs[0]

    def voice(self, speaker: Speaker | None = None, *, language: str | None = None, rate: int | None = None) -> Voice:
        """Whose voice a speaker is; arguments as of a call."""
        if not self.takes_vectors:
            return self._named(speaker)
        if speaker is None:
            name, lang = self._default(language)
            return Voice(name, self._named_vector(name), (lang,))
        if isinstance(speaker, str) and self.voices is not None and speaker in self.voices:
            return Voice(speaker, self._named_vector(speaker), tuple(self.known.get(speaker, ())))
        return Voice(None, self._heard(speaker, rate))

    def _default(self, language: str | None) -> tuple[str, str]:
        """The voice to take where none is asked for: of those who speak mostly the language the most heard one."""
        lang, names = self.language(language), self.speakers
        mostly = (name for name in names if self.known.get(name, ("",))[0] == lang)
        also = (name for name in names if lang in self.known.get(name, ()))
        name = next(mostly, None) or next(also, None) or next(iter(names), None)
        if name is None:
            raise ValueError("this model has no voice of its own: give a recording to take one from, with speaker=")
        return name, lang

    def _named_vector(self, name: str) -> np.ndarray | None:
        return self.voices[name] if self.voices is not None else None

    def _named(self, speaker: Speaker | None) -> Voice:
        known = self.vocoder.config.speakers
        if speaker is None and len(known) < 2:
            return Voice()
        if not isinstance(speaker, str) or speaker not in known:
            names = ", ".join(known) or "one voice without a name"
            raise ValueError(f"speaker {_short(speaker)}: this model has {names}; choose with speaker= (--speaker)")
        return Voice(speaker if len(known) > 1 else None)

    def _heard(self, speaker: Speaker, rate: int | None) -> np.ndarray:
        """The vector (dim,) of a recording."""
        if isinstance(speaker, np.ndarray | Tensor) and tuple(speaker.shape) == (self._vector_dim,):
            vector = np.asarray(speaker, np.float32)
            return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-9))
        if isinstance(speaker, str) and not os.path.exists(speaker):
            names = ", ".join(self.speakers) or "none"
            raise ValueError(f"speaker {speaker!r} is neither a known voice nor a recording; known voices: {names}")
        if self.encoder is None:
            raise ValueError(
                f"speaker {_short(speaker)}: this model has no speaker/ to hear new voices with; known voices: "
                f"{', '.join(self.speakers) or 'none'}"
            )
        wav = wav_of(speaker, self.encoder.sample_rate, rate=rate)
        try:
            return self.encoder(wav)
        except ValueError as error:  # silent or too short, and the encoder does not know which file
            raise audio.AudioError(name_of(speaker), str(error)) from error

    @property
    def _vector_dim(self) -> int:
        return _vectors(self.model.config)[1] or _vectors(self.vocoder.config)[1]

    def language(self, asked: str | None, voice: Voice | None = None) -> str:
        """The language to speak: the one asked for, the first that the voice is heard in, or the first of all."""
        known = self.languages
        if asked is None:  # by the model's order: in which of several a voice was heard most says little of a text
            own = next((lang for lang in known if voice is not None and lang in voice.langs), None)
            return own or next(iter(known), "")
        if known and asked not in known:
            raise ValueError(f"language {asked!r}: this model speaks {', '.join(known)}")
        return asked

    def line(self, text: str, voice: Voice, *, language: str | None = None, label: str = "") -> Line:
        """A text made ready; one in which there is nothing to say is an error."""
        if not isinstance(text, str):
            raise ValueError(f"a text is a string, not {type(text).__name__}")
        lang = self.language(language, voice)
        tokens, left_out = self._tokens([text], lang)
        if not tokens[0].size:
            what = label or _short(text)
            raise ValueError(f"{what}: nothing in this text that the model can say; it knows {self._knows}")
        longest = getattr(self.model.config, "longest", 0) or LONGEST
        if len(tokens[0]) > longest:
            share = longest / len(tokens[0])
            tokens, _ = self._tokens(sentences(text, longest=max(1, int(len(text) * share))), lang)
        return Line([one for one in tokens if one.size], lang, voice, label, left_out)

    @property
    def _knows(self) -> str:
        config: Any = self.model.config
        symbols = config.symbols if hasattr(config, "symbols") else config.source_letters
        return repr(symbols) if symbols else "any letter"

    def _tokens(self, texts: list[str], lang: str) -> tuple[list[np.ndarray], str]:
        """Token ids of each text, none where it says nothing, and the symbols of all that are left out."""
        config: Any = self.model.config
        if not hasattr(config, "front_end"):
            letters = Letters(config.source_letters)
            left = "".join(dict.fromkeys(s for text in texts for s in plain(text) if s not in letters.letters))
            return [letters.encode(text) for text in texts], left
        front = config.front_end
        written = write(config.front, texts, [lang] * len(texts))
        tokens = [front.encode(one) for one in written]
        said = [one if len(one) > 2 else one[:0] for one in tokens]  # bos and eos alone say nothing
        return said, "".join(dict.fromkeys("".join(front.unknown(one) for one in written)))

    def say(self, lines: Sequence[Line], *, speed: float = 1.0, beam: int = 10, batch: int = BATCH) -> list[Spoken]:
        """Speak what `line` has made ready, each as it would be alone."""
        if not (math.isfinite(speed) and 0.1 <= speed <= 10):
            raise ValueError(f"speed {speed!r}: between 0.1 and 10; 1 is as in training")
        if beam < 1 or batch < 1:
            raise ValueError(f"beam {beam} and batch {batch}: at least 1")
        parts = sorted(
            ((len(part), i, k) for i, line in enumerate(lines) for k, part in enumerate(line.parts)), reverse=True
        )
        said: dict[tuple[int, int], np.ndarray] = {}
        for start in range(0, len(parts), batch):
            group = [(i, k) for _, i, k in parts[start : start + batch]]
            found = self._units([(lines[i], lines[i].parts[k]) for i, k in group], speed, beam)
            said |= dict(zip(group, found, strict=True))
        return [
            self._spoken(line, np.concatenate([said[i, k] for k in range(len(line.parts))]))
            for i, line in enumerate(lines)
        ]

    def _units(self, parts: Sequence[tuple[Line, np.ndarray]], speed: float, beam: int) -> list[np.ndarray]:
        """Units (frames[, codebooks]) of texts as tokens."""
        from unitkit.models.tts import TextToUnits

        tokens = [part for _, part in parts]
        if isinstance(self.model, TextToUnits):
            c = self.model.config
            vectors = [line.voice.vector for line, _ in parts if line.voice.vector is not None]
            made = self.model.generate(
                tokens,
                langs=[line.lang for line, _ in parts] if len(c.langs) > 1 else (),
                vectors=np.stack(vectors) if c.speaker_vector_dim else None,
                speed=speed,
            )
            return [units for units, _ in made]
        found = self.model.generate([from_numpy(one) for one in tokens], beam=beam)
        return [self._timed(one.units, speed) for one in found]

    def _timed(self, ids: np.ndarray, speed: float) -> np.ndarray:
        """Units as one said them unit by unit, at frame level and at another speed."""
        c: Any = self.model.config
        units, durations = Units(ids, c.rate_hz, c.n_units, c.tokenizer).dedup()
        if self._reduced:
            durations = self.vocoder.durations(units)
        ends = np.rint(durations.cumsum() / speed).astype(np.int64)
        return np.repeat(units.ids, np.diff(ends, prepend=0).clip(min=1), axis=0)

    def _spoken(self, line: Line, ids: np.ndarray) -> Spoken:
        c, v = self.model.config, self.vocoder.config
        units = Units(ids, c.rate_hz, c.n_units, c.tokenizer, line.label)
        lang = line.lang if len(v.langs) > 1 else None
        vector = line.voice.vector if v.speaker_vector_dim else None
        name = line.voice.name if len(v.speakers) > 1 else None
        wav = self.vocoder(units, speaker=name, lang=lang, vector=vector)
        return Spoken(wav, self.sample_rate, units, line.left_out)

    def settings(self) -> dict[str, object]:
        """All that changes speech, but for the arguments of the call; fit for JSON."""
        from unitkit.models.storage import checksum

        facts = {
            "model": checksum(self.model.config, self.model.state_dict()),
            "vocoder": self.vocoder.checksum(),
            "voices": self.voices.checksum() if self.voices is not None else "",
            "tokenizer": self.vocoder.tokenizer,
        }
        return dict(json.loads(json.dumps(facts)))


def _vectors(config: Any) -> tuple[str, int]:
    """Which speaker encoder's vectors a model takes, and their size; 0 where it takes none."""
    return getattr(config, "speaker_encoder", ""), getattr(config, "speaker_vector_dim", 0)


def _encoder(folder: Path, device: str) -> SpeakerModel | None:
    if not folder.is_dir():
        return None
    from unitkit.models.speaker import SpeakerEncoder

    return SpeakerEncoder.load(folder, device=device)


def _short(what: object) -> str:
    text = f"of shape {tuple(what.shape)}" if isinstance(what, np.ndarray | Tensor) else repr(what)
    return text if len(text) <= 60 else f"{text[:57]}...'"

"""Speech to speech in another language through units: one call, and many recordings into a directory."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from torch import from_numpy

from unitkit.encode import locked, refuse_duplicates
from unitkit.manifest import Utterance
from unitkit.models.storage import checksum
from unitkit.pipeline.given import Heard, Speech, by_length, check_sizes, hear, vocoder_beside
from unitkit.pipeline.speak import Vocoder
from unitkit.pipeline.work import Done, Log, Step, named, part, work
from unitkit.text import Letters
from unitkit.tokenizer import pick_device
from unitkit.units import Units, UnitsHeader, check_fingerprint

if TYPE_CHECKING:
    from unitkit.models.listen import Listener
    from unitkit.models.seq2seq import Hypothesis, Seq2Seq

BATCH = 8  # utterances decoded together


@dataclass(frozen=True, eq=False)
class Translation:
    """What was said in the other language; `wav` is empty where the model finds nothing to say."""

    wav: np.ndarray  # (samples,) float32
    sample_rate: int
    units: Units  # reduced
    durations: np.ndarray  # (runs,) frames of each unit, as they were spoken
    text: str | None  # of the model's own text output, None if it has none
    score: float  # log probability of the units by their number

    @property
    def frames(self) -> Units:
        """The units at frame level."""
        return self.units.expand(self.durations)


@dataclass(frozen=True)
class Translator:
    """Speech to speech: `Translator.load("exp/s2ut")("es.wav")` gives a `Translation`."""

    model: "Seq2Seq"
    listener: "Listener | None"  # None: a model of text, which reads what the rows of a manifest say
    vocoder: Vocoder

    def __post_init__(self) -> None:
        """Refuse a vocoder of other units, or one that needs what a translation does not have."""
        c = self.vocoder.config
        check_fingerprint(self.model.config.tokenizer, self.vocoder.tokenizer, what="the vocoder for this translator")
        if self.model.config.reduced and not self.vocoder.predicts_durations:
            raise ValueError("this translator makes reduced units: take a vocoder with durations=true")
        if c.f0 or c.energy:
            raise ValueError("this vocoder takes F0 or energy of a recording: take one with f0=false energy=false")
        if self.listener is not None and self.listener.dim != self.model.config.features_dim:
            raise ValueError(
                f"the listener gives {self.listener.dim} numbers a frame, the model takes "
                f"{self.model.config.features_dim}: they do not belong together"
            )

    @classmethod
    def load(cls, directory: str | Path, *, vocoder: str | Path | None = None, device: str = "auto") -> "Translator":
        """Load a model directory of `recipes/train_s2ut.py`.

        The vocoder is in its vocoder/, or in a vocoder/ beside it, where the recipe leaves one; or give a directory.
        """
        from unitkit.models.listen import Listener
        from unitkit.models.seq2seq import Seq2Seq

        folder, where = Path(directory), pick_device(device)
        model = Seq2Seq.load(folder, device=where)
        reads, hears = model.config.source == "text", (folder / "listener").is_dir()
        if not reads and (model.config.source != "features" or not hears):
            raise ValueError(
                f"{folder} cannot hear: its source is {model.config.source} and it has {'a' if hears else 'no'} "
                "listener/; a translator of speech has source=features and a listener; train_s2ut.py writes both"
            )
        voice = vocoder_beside(folder, vocoder)
        listener = None if reads else Listener.load(folder / "listener", device=where)
        return cls(model, listener, Vocoder.load(voice, device=where))

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it makes."""
        return self.vocoder.sample_rate

    @overload
    def __call__(
        self,
        speech: list[Any] | tuple[Any, ...],
        *,
        beam: int = 10,
        speaker: str | None = None,
        batch: int = BATCH,
        rate: int | None = None,
    ) -> list[Translation]: ...
    @overload
    def __call__(
        self,
        speech: Speech,
        *,
        beam: int = 10,
        speaker: str | None = None,
        batch: int = BATCH,
        rate: int | None = None,
    ) -> Translation: ...
    def __call__(
        self, speech: Any, *, beam: int = 10, speaker: str | None = None, batch: int = BATCH, rate: int | None = None
    ) -> Translation | list[Translation]:
        """Translate a recording, or a list of them with the same results as one by one.

        Args:
            speech: path, `Utterance` or wav (samples,) at `rate` Hz.
            beam: hypotheses kept in the search; 1 is greedy.
            speaker: whose voice, where the vocoder knows several.
            batch: recordings decoded together.
            rate: of wavs; by default the listener's (16 kHz).

        Raises:
            AudioError: a recording is damaged, too short or too long; names it.
        """
        check_sizes(beam, batch)
        given = list(speech) if isinstance(speech, list | tuple) else [speech]
        who = self.voice(speaker)
        heard = [self._hear(one, rate) for one in given]
        found = self._search(heard, beam, batch)
        made = [self._say(h, one.label, who) for h, one in zip(found, heard, strict=True)]
        return made if isinstance(speech, list | tuple) else made[0]

    def stream(
        self,
        speech: Speech,
        *,
        beam: int = 10,
        seconds: float = 0.5,
        speaker: str | None = None,
        rate: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The wav of a call in pieces (samples,) of `seconds`, spoken as soon as all the units are found."""
        check_sizes(beam, 1)
        who, heard = self.voice(speaker), self._hear(speech, rate)
        (found,) = self._search([heard], beam, 1)
        units, durations = self._timed(found, heard.label)
        return self.vocoder.stream(units, durations=durations, seconds=seconds, speaker=who, lang=self._lang)

    def voice(self, speaker: str | None, *, of: str | None = None) -> str | None:
        """Whose voice to take: `speaker`, or the one `of` the recording if the vocoder knows it; else an error."""
        known = self.vocoder.config.speakers
        if speaker is None and len(known) < 2:
            return None
        name = speaker if speaker is not None else of if of in known else None
        if name not in known:
            names = ", ".join(known) or "no names"
            raise ValueError(f"speaker {speaker!r}: this vocoder knows {names}; choose with speaker= (--speaker)")
        return name

    def settings(self) -> dict[str, object]:
        """All that changes a translation, but for the arguments of the call; fit for JSON."""
        facts = {
            "model": checksum(self.model.config, self.model.state_dict()),
            "listener": self.listener.settings() if self.listener is not None else "text",
            "vocoder": self.vocoder.checksum(),
            "tokenizer": self.vocoder.tokenizer,
        }
        return dict(json.loads(json.dumps(facts, default=str)))

    @property
    def _lang(self) -> str | None:
        return self.model.config.target_lang if len(self.vocoder.config.langs) > 1 else None

    def _read(self, speech: Speech) -> Heard:
        if not isinstance(speech, Utterance) or not speech.text:
            raise ValueError(
                f"{getattr(speech, 'id', speech)!r}: this model reads text: give a manifest whose rows have it"
            )
        tokens = Letters(self.model.config.source_letters).encode(speech.text)
        if not len(tokens):
            raise ValueError(f"{speech.id}: {speech.text!r} has no letter that this model knows")
        return Heard(from_numpy(tokens), speech.id, speech.id)

    def _hear(self, speech: Speech, rate: int | None = None) -> Heard:
        if self.listener is None:
            return self._read(speech)
        c = self.model.config
        return hear(self.listener, speech, rate=rate, most=c.max_positions * 2 ** len(c.conv_kernels))

    def _search(self, heard: Sequence[Heard], beam: int, batch: int) -> list["Hypothesis"]:
        """The best hypothesis of each, decoded in batches of similar length."""
        found: dict[int, Hypothesis] = {}
        for group in by_length([len(one.features) for one in heard], batch):
            made = self.model.generate([heard[i].features for i in group], beam=beam)
            found |= dict(zip(group, made, strict=True))
        return [found[i] for i in range(len(heard))]

    def _timed(self, found: "Hypothesis", label: str) -> tuple[Units, np.ndarray]:
        """Reduced units and their durations (runs,) in frames."""
        c = self.model.config
        # A model of reduced units may still say one twice; a run is one unit to the vocoder's durations.
        units, durations = Units(found.units, c.rate_hz, c.n_units, c.tokenizer, label).dedup()
        return units, self.vocoder.durations(units) if c.reduced else durations

    def _say(self, found: "Hypothesis", label: str, speaker: str | None) -> Translation:
        units, durations = self._timed(found, label)
        wav = self.vocoder(units, durations=durations, speaker=speaker, lang=self._lang)
        return Translation(wav, self.sample_rate, units, durations, found.texts.get("target_text"), found.score)


# -------------------------------------------------------------------------------------------- many recordings


def translate(
    translator: Translator,
    utterances: Sequence[Utterance],
    out: str | Path,
    *,
    beam: int = 10,
    batch: int = BATCH,
    speaker: str | None = None,
    on_progress: Callable[[Step], None] | None = None,
) -> Done:
    """Translate recordings into the directory `out`: manifest.jsonl + wavs, units.jsonl, and the sources' source.jsonl.

    Rows have the sources' ids and order, the target language and the model's text; units are at frame level, as spoken.
    Without `speaker`, a vocoder that knows the voice of a source takes it.  Interrupted work goes on; what was made of
    the same recording with the same settings is kept.  Bad recordings are left out, and listed in the result and
    in manifest.rejects.jsonl.
    """
    out = Path(out)
    check_sizes(beam, batch)
    refuse_duplicates(utterances)
    voices = {u.id: translator.voice(speaker, of=u.speaker) for u in utterances}
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / "manifest.jsonl"), _log(out, translator, beam, speaker) as log:
        return work(utterances, _steps(translator, utterances, log, voices, beam, batch), log, on_progress)


def _steps(
    translator: Translator,
    utterances: Sequence[Utterance],
    log: Log,
    voices: dict[str, str | None],
    beam: int,
    batch: int,
) -> Iterator[Step]:
    """Recordings as they are done: those there already, then the others from long to short, a batch at a time."""
    left = []
    for utterance in utterances:
        if (step := log.kept(utterance)) is not None:
            yield step
        else:
            left.append(utterance)
    if batch > 1:
        left.sort(key=lambda u: -(u.duration or 0.0))
    for start in range(0, len(left), batch):
        group = left[start : start + batch]
        heard: dict[str, Heard] = {}
        for utterance in group:
            try:
                heard[utterance.id] = translator._hear(utterance)
            except (ValueError, OSError) as error:
                yield Step(utterance, bad=named(utterance, error))
        found = translator._search(list(heard.values()), beam, batch)
        for utterance, best in zip((u for u in group if u.id in heard), found, strict=True):
            made = translator._say(best, utterance.id, voices[utterance.id])
            yield log.add(Step(utterance, made.frames, made.text), made.wav, made.sample_rate)


def _log(out: Path, translator: Translator, beam: int, speaker: str | None) -> Log:
    c, reads = translator.model.config, translator.listener is None
    return Log(
        out,
        translator.settings() | {"beam": beam, "speaker": speaker},
        header=UnitsHeader(c.tokenizer, c.rate_hz, c.n_units),
        row=lambda step: Utterance(step.source.id, "", lang=c.target_lang or None, text=step.text),
        part=(lambda u: (*part(u), u.text)) if reads else part,
    )

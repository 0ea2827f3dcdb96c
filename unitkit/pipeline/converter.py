"""Speech in another's voice, melody or rhythm through units: one call, and many recordings into a directory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from unitkit import audio
from unitkit.augment import limit
from unitkit.encode import locked, refuse_duplicates
from unitkit.manifest import ManifestError, Utterance
from unitkit.models.storage import checksum
from unitkit.pipeline.given import Speech, as_utterance, model_folder, name_of, part_beside, vocoder_beside, wav_of
from unitkit.pipeline.speak import Vocoder
from unitkit.pipeline.work import Done, Log, Step, named, part, work
from unitkit.tokenizer import Tokenizer, bundled_as, pick_device
from unitkit.units import FingerprintError, Units, UnitsHeader, check_fingerprint

if TYPE_CHECKING:
    from unitkit.models.frame import Contours, Converted, FrameModel, Vectors
    from unitkit.models.speaker import SpeakerEncoder

DEFAULT = "converter"  # name of the bundled model
LONGEST_REFERENCE = 30.0  # seconds of it that are heard


@dataclass(frozen=True)
class VoiceConverter:
    """Speech as another would say it: `VoiceConverter.load("exp/converter")("a.wav", "b.wav", mode="speaker")`."""

    model: "FrameModel"
    tokenizer: Tokenizer
    vocoder: Vocoder
    speaker: "SpeakerEncoder | None" = None  # where the model takes the vectors of one
    _heard: dict[Any, "Vectors"] = field(default_factory=dict)  # of the last reference, for many sources

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        c = self.model.config
        check_fingerprint(c.tokenizer, self.tokenizer.fingerprint, what="the tokenizer for this converter")
        if self.vocoder.tokenizer != c.mel.fingerprint:
            raise FingerprintError(
                f"the vocoder for this converter: it speaks {self.vocoder.tokenizer!r}, the model makes log-mels "
                f"{c.mel.fingerprint!r}; train one on mels of recipes/mels.py"
            )
        if not self.vocoder.model.config.frames_alone:
            raise ValueError("the vocoder wants more than mels: train one with data.names=false, without F0 and energy")
        heard = (self.speaker.dim, self.speaker.checksum()) if self.speaker is not None else (0, "")
        if heard != (c.speaker_dim, c.speaker_encoder):
            raise ValueError(
                f"the model takes {c.speaker_dim} numbers of speaker encoder {c.speaker_encoder!r}, the one here gives "
                f"{heard[0]} and is {heard[1]!r}: they do not belong together"
            )

    @classmethod
    def load(
        cls,
        directory: str | Path = DEFAULT,
        *,
        tokenizer: str | Path | None = None,
        vocoder: str | Path | None = None,
        device: str = "auto",
    ) -> "VoiceConverter":
        """Load a model directory of `recipes/train_vc.py`; without one, the converter that is bundled.

        The vocoder is in its vocoder/, or in a vocoder/ beside it; the tokenizer in its tokenizer/ or beside it, or one
        of those that are bundled; or name their directories.
        """
        from unitkit.models.frame import FrameModel
        from unitkit.models.speaker import SpeakerEncoder

        folder, where = model_folder(directory), pick_device(device)
        model = FrameModel.load(folder, device=where)
        voice = vocoder_beside(folder, vocoder)
        words = tokenizer or part_beside(folder, "tokenizer") or bundled_as(model.config.tokenizer)
        if words is None:
            raise FingerprintError(
                f"{folder} takes units of tokenizer {model.config.tokenizer!r}, which is neither in its tokenizer/ nor "
                "bundled; name its directory with tokenizer= (--tokenizer)"
            )
        speaker = SpeakerEncoder.load(folder / "speaker", device=where) if model.config.speaker_dim else None
        return cls(model, Tokenizer.load(words, device=where), Vocoder.load(voice, device=where), speaker)

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it makes."""
        return self.vocoder.sample_rate

    @overload
    def __call__(
        self,
        source: list[Any] | tuple[Any, ...],
        reference: Any,
        *,
        mode: str = "speaker",
        exact_pitch: bool = False,
        rate: int | None = None,
    ) -> list[np.ndarray]: ...
    @overload
    def __call__(
        self,
        source: Speech,
        reference: Speech,
        *,
        mode: str = "speaker",
        exact_pitch: bool = False,
        rate: int | None = None,
    ) -> np.ndarray: ...
    def __call__(
        self,
        source: Any,
        reference: Any,
        *,
        mode: str = "speaker",
        exact_pitch: bool = False,
        rate: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """What is said in `source` (samples,), as loud, with what `mode` takes from `reference`.

        Args:
            source: path, `Utterance` or wav (samples,) at `rate` Hz; or a list.
            reference: likewise; one for all of a list, or as many.  At most its first 30 s are heard.
            mode: rhythm, pitch-energy, prosody (both), speaker, all; or copy, which takes nothing.
            exact_pitch: F0 and energy of the source instead of predicted ones; with modes speaker and copy.
            rate: of wavs; by default the tokenizer's (16 kHz).

        Raises:
            AudioError: a recording is damaged or too short; names it.
        """
        several = isinstance(source, list | tuple)
        sources = list(source) if several else [source]
        references = list(reference) if isinstance(reference, list | tuple) else [reference] * len(sources)
        if len(references) != len(sources):
            raise ValueError(f"{len(references)} references for {len(sources)} sources: give one, or as many")
        made = [
            self.say(self.convert(one, other, mode=mode, exact_pitch=exact_pitch, rate=rate)[0], self._wav(one, rate))
            for one, other in zip(sources, references, strict=True)
        ]
        return made if several else made[0]

    def convert(
        self,
        source: Speech,
        reference: Speech,
        *,
        mode: str = "speaker",
        exact_pitch: bool = False,
        rate: int | None = None,
    ) -> tuple["Converted", Units]:
        """What a call makes a wav of: the mel with its prosody, and the units at frame level, as they are spoken."""
        wav = self._wav(source, rate)
        units, heard = self._units(source, wav), self._at_mel(source, wav, rate)
        contours = self._contours(heard, units) if exact_pitch else None
        made = self.model.convert(
            units, self._vectors(source, heard), self._reference(reference, rate), mode=mode, contours=contours
        )
        return made, units.dedup()[0].expand(made.durations.cpu().numpy())

    def say(self, made: "Converted", like: np.ndarray) -> np.ndarray:
        """The wav (samples,) of a mel, as loud as another."""
        (wav,) = self.vocoder.model.generate([made.mel])
        found, wanted = (float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (wav.numpy(), like))
        return limit(wav.numpy() * np.float32(wanted / found if found > 1e-5 else 1.0))

    def settings(self) -> dict[str, object]:
        """All that changes a conversion, but for the arguments of the call; fit for JSON."""
        return {
            "model": checksum(self.model.config, self.model.state_dict()),
            "speaker": self.speaker.checksum() if self.speaker is not None else None,
            "vocoder": self.vocoder.checksum(),
            "tokenizer": self.tokenizer.fingerprint,
        }

    # ----------------------------------------------------------------------------------------------------- its parts

    def _wav(self, speech: Speech, rate: int | None) -> np.ndarray:
        """At the tokenizer's rate."""
        return wav_of(speech, self.tokenizer.sample_rate, rate=rate)

    def _units(self, speech: Speech, wav: np.ndarray) -> Units:
        """Of the source; an error names it."""
        if len(wav) < self.tokenizer.encoder.min_samples:
            raise audio.AudioError(name_of(speech), f"{len(wav)} samples are too short for a unit")
        label = "" if isinstance(speech, np.ndarray | Tensor) else as_utterance(speech).id
        units = self.tokenizer.encode(wav, rate=self.tokenizer.sample_rate)
        return Units(units.ids, units.rate_hz, units.n_units, units.tokenizer, label)

    def _contours(self, wav: np.ndarray, units: Units) -> "Contours":
        c = self.model.config
        fitted = c.fitted(wav, len(units))
        hertz = audio.f0(fitted, c.mel.sample_rate, hop_samples=c.unit_hop)
        return self.model.contours(hertz, audio.spectra(fitted, c.mel)[1])

    def _at_mel(self, speech: Speech, wav: np.ndarray, rate: int | None) -> np.ndarray:
        """At the mel's rate, as the model heard recordings in training; `wav` is at the tokenizer's."""
        wanted, had = self.model.config.mel.sample_rate, self.tokenizer.sample_rate
        return wav if wanted == had else wav_of(speech, wanted, rate=rate or had)

    def _reference(self, speech: Speech, rate: int | None) -> "Vectors":
        """Kept for the next source: many are often given one reference."""
        key = None if isinstance(speech, np.ndarray | Tensor) else part(as_utterance(speech))
        if key is None or key not in self._heard:
            most = round(LONGEST_REFERENCE * self.model.config.mel.sample_rate)
            found = self._vectors(speech, self._at_mel(speech, self._wav(speech, rate), rate)[:most])
            if key is None:
                return found
            self._heard.clear()
            self._heard[key] = found
        return self._heard[key]

    def _vectors(self, speech: Speech, wav: np.ndarray) -> "Vectors":
        rate = self.model.config.mel.sample_rate
        if not wav.any() or len(wav) / rate < self.tokenizer.encoder.min_samples / self.tokenizer.sample_rate:
            raise audio.AudioError(name_of(speech), "silent or too short: it has no voice")
        given = None
        if self.speaker is not None:
            given = self.speaker(audio.resample(wav, rate, self.speaker.sample_rate))
        with torch.inference_mode():
            return self.model.vectors(self.model.hear(wav), given)


# ------------------------------------------------------------------------------------------------- many recordings


def convert(
    converter: VoiceConverter,
    sources: Sequence[Utterance],
    references: Sequence[Utterance],
    out: str | Path,
    *,
    mode: str = "speaker",
    exact_pitch: bool = False,
    on_progress: Callable[[Step], None] | None = None,
) -> Done:
    """Convert recordings into the directory `out`: manifest.jsonl + wavs, units.jsonl, source.jsonl, reference.jsonl.

    One reference is for all; of several, each source takes the one with its id.  Rows have the sources' ids, order,
    languages and texts, and the speaker whose voice was taken; units are at frame level, as spoken.  Interrupted work
    goes on; what was made of the same recordings with the same settings is kept.  Bad recordings are left out, and
    listed in the result and in manifest.rejects.jsonl.
    """
    from unitkit.models.frame import MODES

    out, c = Path(out), converter.model.config
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: known are {', '.join(MODES)}")
    refuse_duplicates(sources)
    pairs = paired(sources, references)
    out.mkdir(parents=True, exist_ok=True)
    log = Log(
        out,
        converter.settings() | {"mode": mode, "exact_pitch": exact_pitch},
        header=UnitsHeader(c.tokenizer, c.rate_hz, c.n_units),
        row=lambda step: _row(step, "speaker" in MODES[mode]),
    )
    with locked(out / "manifest.jsonl"), log:
        return work(sources, _steps(converter, pairs, log, mode, exact_pitch), log, on_progress)


def paired(sources: Sequence[Utterance], references: Sequence[Utterance]) -> list[tuple[Utterance, Utterance]]:
    """Each source with its reference: the only one, or the one with its id."""
    if len(references) == 1:
        return [(source, references[0]) for source in sources]
    by_id = {reference.id: reference for reference in references}
    if lacking := [source.id for source in sources if source.id not in by_id]:
        raise ManifestError(
            f"{len(lacking)} sources have no reference with their id ({', '.join(lacking[:5])}): give one reference "
            "for all, or a manifest of references with the ids of the sources"
        )
    return [(source, by_id[source.id]) for source in sources]


def _row(step: Step, voice: bool) -> Utterance:
    who = step.reference if voice and step.reference is not None else step.source
    return Utterance(step.source.id, "", speaker=who.speaker, lang=step.source.lang, text=step.source.text)


def _steps(
    converter: VoiceConverter, pairs: Sequence[tuple[Utterance, Utterance]], log: Log, mode: str, exact_pitch: bool
) -> Iterator[Step]:
    for source, reference in pairs:
        if (kept := log.kept(source, reference)) is not None:
            yield kept
            continue
        try:
            made, units = converter.convert(source, reference, mode=mode, exact_pitch=exact_pitch)
            wav = converter.say(made, converter._wav(source, None))
        except FingerprintError:
            raise
        except (ValueError, OSError) as error:
            yield Step(source, bad=named(source, error), reference=reference)
            continue
        yield log.add(Step(source, units, source.text, reference=reference), wav, converter.sample_rate)

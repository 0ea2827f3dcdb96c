"""Many texts spoken into a directory, with what was finished kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from unitkit.encode import locked, refuse_duplicates
from unitkit.manifest import Utterance
from unitkit.pipeline.tts import BATCH, TTS, Line, Speaker, Voice
from unitkit.pipeline.work import Done, Log, Part, Step, work
from unitkit.units import UnitsHeader


class Script(Log):
    """A directory of spoken texts: what counts is what the rows say, not the recordings they may name."""

    def _same(self, one: Utterance, before: Utterance, wav: Path) -> bool:
        return self._part(one) == self._part(before)


def speak(
    tts: TTS,
    utterances: Sequence[Utterance],
    out: str | Path,
    *,
    speaker: Speaker | None = None,
    language: str | None = None,
    speed: float = 1.0,
    beam: int = 10,
    batch: int = BATCH,
    on_progress: Callable[[Step], None] | None = None,
) -> Done:
    """Speak the texts of utterances into the directory `out`: manifest.jsonl + wavs, units.jsonl and source.jsonl.

    Rows have the texts' ids and order.  Without `speaker` and `language` those of a row are taken, and where it names
    none, the voice most heard in the language.  Interrupted work goes on; what was made of the same text with the same
    settings is kept.  Texts that cannot be spoken are left out, and listed in the result and in manifest.rejects.jsonl.
    """
    out, c = Path(out), tts.model.config
    refuse_duplicates(utterances)
    asked = tts.voice(speaker, language=language) if speaker is not None else None
    out.mkdir(parents=True, exist_ok=True)

    def said(one: Utterance) -> Part:
        return one.text, one.speaker, one.lang

    def row(step: Step) -> Utterance:
        who = asked.name if asked else step.source.speaker
        return replace(step.source, speaker=who, lang=language or step.source.lang, start=None)

    header = UnitsHeader(c.tokenizer, c.rate_hz, c.n_units, getattr(c, "codebooks", 1))
    settings = tts.settings() | {"speaker": asked.label if asked else None, "language": language}
    settings |= {"speed": speed, "beam": beam}
    with locked(out / "manifest.jsonl"), Script(out, settings, header=header, row=row, part=said) as script:
        steps = _steps(tts, utterances, script, asked, language, (speed, beam, batch))
        return work(utterances, steps, script, on_progress)


def _steps(
    tts: TTS,
    utterances: Sequence[Utterance],
    script: Script,
    asked: Voice | None,
    language: str | None,
    how: tuple[float, int, int],
) -> Iterator[Step]:
    """Utterances as they are done: those there already at once, the others a batch at a time."""
    speed, beam, batch = how
    group: list[tuple[Utterance, Line]] = []
    for utterance in utterances:
        if (step := script.kept(utterance)) is not None:
            yield step
            continue
        try:
            group.append((utterance, _line(tts, utterance, asked, language)))
        except (ValueError, OSError) as error:
            why = str(error)
            yield Step(utterance, bad=why if utterance.id in why else f"{utterance.id}: {why}")
        if len(group) == batch:
            yield from _said(tts, group, script, speed, beam)
            group = []
    yield from _said(tts, group, script, speed, beam)


def _line(tts: TTS, one: Utterance, asked: Voice | None, language: str | None) -> Line:
    lang = language or one.lang
    if not one.text:
        raise ValueError(f"{one.id}: no text in this row")
    if asked is None:
        several = tts.takes_vectors or len(tts.vocoder.config.speakers) > 1
        name = one.speaker if several else None
        if name is not None and name not in tts.speakers:
            known = ", ".join(tts.speakers) or "none"
            raise ValueError(f"speaker {name!r} is unknown; known voices: {known}; or choose one with --speaker")
        asked = tts.voice(name, language=lang)
    return tts.line(one.text, asked, language=lang, label=one.id)


def _said(tts: TTS, group: Sequence[tuple[Utterance, Line]], script: Script, speed: float, beam: int) -> Iterator[Step]:
    made = tts.say([line for _, line in group], speed=speed, beam=beam, batch=max(1, len(group)))
    for (utterance, _), one in zip(group, made, strict=True):
        yield script.add(Step(utterance, one.units, utterance.text), one.wav, one.sample_rate)

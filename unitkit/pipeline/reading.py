"""Many texts spoken into a directory, with what was finished kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from unitkit.encode import locked, refuse_duplicates
from unitkit.manifest import Utterance
from unitkit.pipeline.made import Folder, Made, Step
from unitkit.pipeline.tts import BATCH, TTS, Line, Speaker, Voice
from unitkit.units import UnitsHeader


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
) -> Made:
    """Speak the texts of utterances into the directory `out`: manifest.jsonl + wavs, units.jsonl and source.jsonl.

    Rows have the texts' ids and order.  Without `speaker` and `language` those of a row are taken, and where it names
    none, the voice most heard in the language.  Interrupted work goes on; what was made of the same text with the same
    settings is kept.  Texts that cannot be spoken are left out, and listed in the result and in manifest.rejects.jsonl.
    """
    out, c = Path(out), tts.model.config
    refuse_duplicates(utterances)
    asked = tts.voice(speaker, language=language) if speaker is not None else None
    out.mkdir(parents=True, exist_ok=True)

    def same(one: Utterance) -> tuple[str | None, ...]:
        return one.text, one.speaker, one.lang

    def row(step: Step) -> Utterance:
        who = asked.name if asked else step.source.speaker
        return replace(step.source, speaker=who, lang=language or step.source.lang)

    header = UnitsHeader(c.tokenizer, c.rate_hz, c.n_units, getattr(c, "codebooks", 1))
    settings = tts.settings() | {"speaker": asked.label if asked else None, "language": language}
    settings |= {"speed": speed, "beam": beam}
    done = Made()
    with locked(out / "manifest.jsonl"), Folder(out, settings, header, same=same, row=row) as folder:
        steps = done.of(_steps(tts, utterances, folder, asked, language, (speed, beam, batch)), utterances, on_progress)
        folder.finish(steps, done.bad)
    return done


def _steps(
    tts: TTS,
    utterances: Sequence[Utterance],
    folder: Folder,
    asked: Voice | None,
    language: str | None,
    how: tuple[float, int, int],
) -> Iterator[Step]:
    """Utterances as they are done: those there already at once, the others a batch at a time."""
    speed, beam, batch = how
    group: list[tuple[Utterance, Line]] = []
    for utterance in utterances:
        if (step := folder.kept(utterance)) is not None:
            yield step
            continue
        try:
            group.append((utterance, _line(tts, utterance, asked, language)))
        except (ValueError, OSError) as error:
            why = str(error)
            yield Step(utterance, bad=why if utterance.id in why else f"{utterance.id}: {why}")
        if len(group) == batch:
            yield from _said(tts, group, folder, speed, beam)
            group = []
    yield from _said(tts, group, folder, speed, beam)


def _line(tts: TTS, one: Utterance, asked: Voice | None, language: str | None) -> Line:
    lang = language or one.lang
    if not one.text:
        raise ValueError(f"{one.id}: no text in this row")
    if asked is None:
        several = tts.takes_vectors or len(tts.vocoder.model.config.speakers) > 1
        name = one.speaker if several else None
        if name is not None and name not in tts.speakers:
            known = ", ".join(tts.speakers) or "none"
            raise ValueError(f"speaker {name!r} is unknown; known voices: {known}; or choose one with --speaker")
        asked = tts.voice(name, language=lang)
    return tts.line(one.text, asked, language=lang, label=one.id)


def _said(tts: TTS, group: Sequence[tuple[Utterance, Line]], folder: Folder, speed: float, beam: int) -> Iterator[Step]:
    made = tts.say([line for _, line in group], speed=speed, beam=beam, batch=max(1, len(group)))
    for (utterance, _), one in zip(group, made, strict=True):
        yield folder.add(utterance, one.wav, one.sample_rate, units=one.units, text=utterance.text)

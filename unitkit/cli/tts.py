"""The verb speak: text to speech."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unitkit.cli.show import Device, app, console, errors, finish, progress

if TYPE_CHECKING:
    from unitkit.manifest import Utterance
    from unitkit.pipeline import TTS, Step

SOUND = (".wav", ".flac")


@app.command()
def speak(
    text: Annotated[
        str,
        typer.Argument(help="What to say; a manifest (.jsonl) or a text file (.txt, a line each); - reads a text."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="One .wav; or a directory for manifest.jsonl and wavs.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model directory, or the name of a bundled model.")
    ] = "tts",
    speaker: Annotated[
        str | None, typer.Option(help="A voice by name, or a recording to take it from; left out: a manifest's own.")
    ] = None,
    language: Annotated[str | None, typer.Option("--language", "-l", help="Language, where it speaks several.")] = None,
    speed: Annotated[float, typer.Option(help="Of speech; 2 is twice as fast.")] = 1.0,
    vocoder: Annotated[
        Path | None, typer.Option(help="Vocoder directory; left out: the model's own, or the one beside it.")
    ] = None,
    voices: Annotated[
        Path | None, typer.Option(help="More voices by name, a file of recipes/speaker_vectors.py.")
    ] = None,
    beam: Annotated[int, typer.Option(min=1, help="Hypotheses kept by a model that goes unit by unit.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Texts spoken together.")] = 8,
    device: Device = "auto",
) -> None:
    """Speak a text, or many.  Resumes, keeps order, skips and lists bad texts (exit status 1).

    Examples:

      unitkit speak "Thank you for calling." -o out.wav

      unitkit speak "Gracias por llamar." -m exp/tts -o out.wav --speaker ef_dora --language es --speed 1.2

      unitkit speak "Whose voice is this?" -m exp/tts -o out.wav --speaker me.wav

      unitkit speak test.jsonl -m exp/tts -o exp/spoken
    """
    from unitkit.pipeline import TTS

    rows = texts(text)
    alone = out.suffix.lower() in SOUND and not out.is_dir()
    if alone and rows is not None:
        raise ValueError(f"{out} is one file for the {len(rows)} texts of {text}: give -o a directory")
    tts = TTS.load(model, vocoder=vocoder, voices=voices, device=device)
    if rows is None and alone:
        _one(tts, sys.stdin.read() if text == "-" else text, out, speaker, language, (speed, beam))
        return
    if rows is None:
        raise ValueError(f"{out}: one text goes to one file, such as {out}.wav; a directory is for a manifest")
    _many(tts, rows, out, speaker, language, (speed, beam, batch))


def texts(given: str) -> "list[Utterance] | None":
    """The rows of a manifest or a text file; None where the words themselves are the text."""
    from unitkit.manifest import Utterance, read_manifest

    path = Path(given)
    if path.suffix not in (".jsonl", ".txt") or " " in given.strip():
        return None
    if not path.is_file():
        raise ValueError(f"{given}: no such file")
    if path.suffix == ".jsonl":
        return list(read_manifest(path))
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    place = str(path.resolve())
    return [Utterance(f"{path.stem}-{n:04d}", place, text=line) for n, line in enumerate(lines, 1) if line]


def _one(tts: "TTS", text: str, out: Path, speaker: str | None, language: str | None, how: tuple[float, int]) -> None:
    from unitkit import audio

    speed, beam = how
    line = tts.line(text, tts.voice(speaker, language=language), language=language)
    (made,) = tts.say([line], speed=speed, beam=beam)
    audio.write(out, made.wav, made.sample_rate)
    who = f", {line.voice.name}" if line.voice.name else ""
    seconds = len(made.wav) / made.sample_rate
    console.print(
        f"{out}: {seconds:.2f} s{who}{f', {line.lang}' if line.lang else ''}", soft_wrap=True, highlight=False
    )
    if made.left_out:
        errors.print(f"left out, for the model does not know them: {escape(made.left_out)}", soft_wrap=True)


def _many(
    tts: "TTS",
    rows: "list[Utterance]",
    out: Path,
    speaker: str | None,
    language: str | None,
    how: tuple[float, int, int],
) -> None:
    import time

    from unitkit.pipeline import speak as speak_all

    started, (speed, beam, batch) = time.monotonic(), how
    with progress("speak", len(rows)) as advance:

        def tell(step: "Step") -> None:
            advance(1)
            if step.bad is not None:
                errors.print(f"[red]bad:[/] {escape(step.bad)}", soft_wrap=True)

        try:
            done = speak_all(
                tts,
                rows,
                out,
                speaker=speaker,
                language=language,
                speed=speed,
                beam=beam,
                batch=batch,
                on_progress=tell,
            )
        except KeyboardInterrupt:
            errors.print("stopped; the same command goes on from here")
            raise
    console.print(
        f"{out}/manifest.jsonl: {done.made} spoken, {done.kept} kept, {len(done.bad)} bad; "
        f"{done.seconds:.1f} s of speech in {time.monotonic() - started:.1f} s",
        soft_wrap=True,
    )
    finish([(row.id, reason) for row, reason in done.bad])

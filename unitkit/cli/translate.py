"""The verb translate: speech in one language to speech in another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unitkit.cli.show import Device, Inputs, app, console, errors, finish, progress, utterances

if TYPE_CHECKING:
    from unitkit.manifest import Utterance
    from unitkit.pipeline import Step, Translator

SOUND = (".wav", ".flac")


@app.command()
def translate(
    inputs: Inputs,
    model: Annotated[Path, typer.Option("--model", "-m", help="Translator directory.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for manifest.jsonl, units.jsonl and wavs; or one .wav.")
    ],
    vocoder: Annotated[
        Path | None, typer.Option(help="Vocoder directory; left out: the translator's own, or the one beside it.")
    ] = None,
    beam: Annotated[int, typer.Option(min=1, help="Hypotheses kept in the search; 1 is greedy.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Recordings decoded together.")] = 8,
    speaker: Annotated[
        str | None, typer.Option(help="Whose voice, for all; left out: the source's, where the vocoder knows it.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print what was said in each recording.")] = False,
    device: Device = "auto",
) -> None:
    """Translate speech into speech.  Resumes, keeps order, skips and lists bad files (exit status 1).

    Examples:

      unitkit translate es.wav -m exp/s2ut -o en.wav

      unitkit translate recordings/ -m exp/s2ut -o exp/translated --verbose

      unitkit translate test.jsonl -m exp/s2ut -o exp/greedy --beam 1 --vocoder exp/vocoder --speaker allison

    A model of text (train_s2ut.py with model.source=text) speaks the texts of a manifest's rows.
    """
    from unitkit.pipeline import Translator

    given = utterances(inputs)
    alone = out.suffix.lower() in SOUND and not out.is_dir()
    if alone and len(given) > 1:
        raise ValueError(f"{out} is one file for {len(given)} recordings: give -o a directory")
    translator = Translator.load(model, vocoder=vocoder, device=device)
    if alone:
        _one(translator, given[0], out, beam, speaker)
    else:
        _many(translator, given, out, beam, batch, speaker, verbose or len(given) == 1)


def _one(translator: "Translator", source: "Utterance", out: Path, beam: int, speaker: str | None) -> None:
    from unitkit import audio

    speaker = translator.voice(speaker, of=source.speaker)
    try:
        made = translator(source, beam=beam, speaker=speaker)
    except (audio.AudioError, OSError) as error:
        finish([(source.audio, str(error))])
        return
    audio.write(out, made.wav, made.sample_rate)
    seconds = len(made.wav) / made.sample_rate
    console.print(f"{out}: {seconds:.2f} s, {len(made.units)} units", soft_wrap=True, highlight=False)
    if made.text is not None:
        console.print(escape(made.text), soft_wrap=True, highlight=False)


def _many(
    translator: "Translator",
    given: list["Utterance"],
    out: Path,
    beam: int,
    batch: int,
    speaker: str | None,
    verbose: bool,
) -> None:
    import time

    from unitkit.pipeline import translate as translate_all

    started = time.monotonic()
    with progress("translate", len(given)) as advance:

        def tell(step: "Step") -> None:
            advance(1)
            if step.bad is not None:
                errors.print(f"[red]bad:[/] {escape(step.bad)}", soft_wrap=True)
            elif verbose and step.units is not None:
                said = f"{step.units.duration:.2f} s" + (f": {step.text}" if step.text is not None else "")
                console.print(escape(f"{step.source.id}: {said}"), soft_wrap=True, highlight=False)

        try:
            done = translate_all(translator, given, out, beam=beam, batch=batch, speaker=speaker, on_progress=tell)
        except KeyboardInterrupt:
            errors.print("stopped; the same command goes on from here")
            raise
    console.print(
        f"{out}/manifest.jsonl: {done.made} translated, {done.kept} kept, {len(done.bad)} bad; "
        f"{done.seconds:.1f} s of speech in {time.monotonic() - started:.1f} s",
        soft_wrap=True,
    )
    finish([(source.audio, reason) for source, reason in done.bad])

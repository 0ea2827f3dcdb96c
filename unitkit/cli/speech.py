"""Verbs on speech made from units: vocode, report."""

from pathlib import Path
from typing import Annotated

import typer

from unitkit.cli.show import Device, app, console, progress


@app.command()
def vocode(
    units: Annotated[Path, typer.Argument(help="Unit file, or folder of soft units, to speak.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for manifest.jsonl and wavs.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Vocoder directory, or the name of a bundled one.")
    ] = "vocoder",
    like: Annotated[
        Path | None, typer.Option(help="Manifest whose text, speaker and language are copied by id.")
    ] = None,
    durations: Annotated[
        str, typer.Option(help="frames (as encoded) or predicted (deduplicate, then predict).")
    ] = "frames",
    speaker: Annotated[str | None, typer.Option(help="Speaker name, for all utterances.")] = None,
    lang: Annotated[str | None, typer.Option(help="Language name, for all utterances.")] = None,
    shuffle: Annotated[int | None, typer.Option(help="Seed: shuffle the frames first (the control).")] = None,
    voices: Annotated[
        Path | None, typer.Option(help="Speaker vectors by utterance or speaker, for a vocoder that takes them.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Turn a unit file into speech: a directory with manifest.jsonl and wavs.

    Examples:

      unitkit vocode units.jsonl -o spoken                   units of the default tokenizer, by the bundled vocoder

      unitkit vocode units/test.jsonl -m exp/vocoder -o exp/synth

      unitkit vocode units/test.jsonl -m exp/vocoder -o exp/dedup --durations predicted --like data/test.jsonl
    """
    from unitkit.pipeline import Vocoder, synthesise
    from unitkit.voices import Voices

    vocoder = Vocoder.load(model, device=device)
    with progress("vocode", None) as advance:
        done = synthesise(
            vocoder,
            units,
            out,
            like=like,
            durations=durations,
            speaker=speaker,
            lang=lang,
            shuffle=shuffle,
            voices=Voices.load(voices) if voices else None,
            on_progress=lambda _: advance(1),
        )
    console.print(f"{out}/manifest.jsonl: {done} utterances", soft_wrap=True)


@app.command()
def report(
    exp: Annotated[Path, typer.Argument(help="Experiment directory of a recipe.")],
    reference: Annotated[Path, typer.Option(help="Manifest of the original recordings.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page to write.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Resynthesis from units",
    source: Annotated[Path | None, typer.Option(help="Of translations: manifest of what was translated.")] = None,
    units: Annotated[
        Path | None, typer.Option(help="Units of the originals, where they are not in the experiment's units/.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: players, unit timelines, curves, scores.

    Examples:

      unitkit report exp/en-mini-istft --reference data/en/test.jsonl -o report.html

      unitkit report exp/seen --reference exp/data/seen.jsonl -o report.html --title "Speech from text"
    """
    from unitkit.report import report_experiment

    page = report_experiment(exp, reference, out, title=title, source=source, units=units)
    console.print(str(page.resolve()), soft_wrap=True)

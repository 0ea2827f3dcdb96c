"""The verb transcribe: speech or units to text."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unitkit.cli.show import Device, Inputs, app, console, errors, finish, progress, utterances

if TYPE_CHECKING:
    from unitkit.pipeline import Source, Written


@app.command()
def transcribe(
    inputs: Inputs,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Recogniser directory, or the name of a bundled one.")
    ] = "recognizer",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Manifest to write; left out: texts are printed only.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Of a model of units with none beside it: directory or bundled name."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Of unit files: manifest whose recordings, speakers, languages are copied by id."),
    ] = None,
    beam: Annotated[int, typer.Option(min=1, help="Hypotheses kept in the search.")] = 10,
    ctc_weight: Annotated[
        float | None, typer.Option(help="How much CTC counts beside the decoder, 0 to 1; left out: as in training.")
    ] = None,
    lang: Annotated[str | None, typer.Option(help="Language spoken; left out: the model finds out.")] = None,
    longest: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds; longer recordings are cut at quiet places; 0: never; left out: the model's."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Utterances decoded together.")] = 8,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every text.")] = False,
    device: Device = "auto",
) -> None:
    """Write down what is said.  Resumes, keeps order, skips and lists bad files (exit status 1).

    Examples:

      unitkit transcribe call.wav                                   by the bundled recogniser

      unitkit transcribe recordings/ -m exp/asr -o exp/texts.jsonl --beam 5

      unitkit transcribe units/test.jsonl -m exp/asr -o exp/texts.jsonl --like data/test.jsonl

    A model of units makes them with its own tokenizer, or with the one that --tokenizer names; a unit file needs none.
    """
    from unitkit.pipeline import Recognizer
    from unitkit.pipeline import transcribe as transcribe_all

    given = _sources(inputs, like)
    recognizer = Recognizer.load(model, tokenizer=tokenizer, device=device)
    alone, shown = len(given) == 1, verbose or out is None or len(given) == 1
    with progress("transcribe", len(given)) as advance:
        try:
            done = transcribe_all(
                recognizer,
                given,
                out,
                beam=beam,
                ctc_weight=ctc_weight,
                lang=lang,
                longest=longest,
                batch=batch,
                on_progress=_teller(advance, shown=shown, named=not alone),
            )
        except KeyboardInterrupt:
            if out is not None:
                errors.print("stopped; the same command goes on from here")
            raise
    if out is not None:
        console.print(f"{out}: {done.made} transcribed, {done.kept} kept, {len(done.bad)} bad", soft_wrap=True)
    finish([(source.audio, reason) for source, reason in done.bad])


def _teller(advance: Callable[[float], None], *, shown: bool, named: bool) -> "Callable[[Written], None]":
    """What is printed as sources are done."""

    def tell(step: "Written") -> None:
        advance(1)
        if step.bad is not None:
            errors.print(f"[red]bad:[/] {escape(step.bad)}", soft_wrap=True)
        elif shown and step.row is not None:
            said = step.row.text or ""
            line = f"{step.row.id}: {said}" if named else said
            console.print(escape(line), soft_wrap=True, highlight=False)

    return tell


def _sources(inputs: list[str], like: Path | None) -> "list[Source]":
    """Utterances of unit files, and those of all other inputs."""
    from unitkit.manifest import read_manifest
    from unitkit.pipeline import Source, sources_of_units

    rows = list(read_manifest(like)) if like else []
    files = [one for one in inputs if _holds_units(one)]
    found = [source for one in files for source in sources_of_units(one, like=rows)]
    if like and not files:
        raise ValueError(f"--like {like} is for unit files, and none of the inputs is one")
    others = [one for one in inputs if one not in files]
    return [*found, *(Source(one) for one in (utterances(others) if others else []))]


def _holds_units(path: str) -> bool:
    """Whether this is a unit file: its first line says so."""
    if not path.endswith(".jsonl") or not Path(path).is_file():
        return False
    with open(path, encoding="utf-8") as file:
        return file.readline().startswith('{"unitkit"')

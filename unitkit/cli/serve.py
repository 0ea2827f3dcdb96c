"""The verb serve: a page in the browser to try things on."""

from pathlib import Path
from typing import Annotated

import typer

from unitkit.cli.show import Device, Tok, app, console, errors


@app.command()
def serve(
    tokenizer: Tok = None,
    vocoder: Annotated[Path | None, typer.Option(help="Vocoder directory, for Resynthesise.")] = None,
    converter: Annotated[Path | None, typer.Option(help="Converter directory, for Convert.")] = None,
    tts: Annotated[Path | None, typer.Option(help="Directory of a model of text, for Speak.")] = None,
    translator: Annotated[Path | None, typer.Option(help="Translator directory, for Translate.")] = None,
    translator_vocoder: Annotated[
        Path | None, typer.Option(help="Its vocoder; left out: the translator's own, or the one beside it.")
    ] = None,
    recognizer: Annotated[Path | None, typer.Option(help="Recogniser directory, for Transcribe.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    max_seconds: Annotated[float, typer.Option(help="Longest recording, in seconds.")] = 30.0,
    max_mb: Annotated[float, typer.Option(help="Largest file, in MB.")] = 20.0,
    max_chars: Annotated[int, typer.Option(help="Longest text, in characters.")] = 300,
    queue: Annotated[int, typer.Option(min=1, help="How many may wait; one is served at a time.")] = 8,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    device: Device = "auto",
) -> None:
    """Show a page to try things on: encode, resynthesise, convert, speak, translate, transcribe.

    A tab whose model is not named, and not bundled, says what makes one.  Ctrl-C ends it.

    Examples:

      unitkit serve

      unitkit serve --vocoder exp/vocoder --converter exp/converter --tts exp/tts --open

      unitkit serve -t mini-100 --translator exp/es-en/pretrained --recognizer exp/asr --port 8000
    """
    from unitkit.serve import LOCAL, Limits, Work, check_gradio, hold_port, load_models
    from unitkit.serve import serve as serve_page

    check_gradio()
    limits = Limits(max_seconds, max_mb, max_chars)
    with hold_port(host, port) as bound:
        models = load_models(
            tokenizer=tokenizer,
            vocoder=vocoder,
            converter=converter,
            tts=tts,
            translator=translator,
            translator_vocoder=translator_vocoder,
            recognizer=recognizer,
            device=device,
        )
        if host not in LOCAL:
            errors.print(f"[yellow]anyone who can reach {host} can use this page: it asks for no password[/]")
        serve_page(Work(models, limits), bound, queue=queue, browser=browser, on_ready=_ready)


def _ready(url: str) -> None:
    console.print(f"{url}   (Ctrl-C ends it)", soft_wrap=True, highlight=False)

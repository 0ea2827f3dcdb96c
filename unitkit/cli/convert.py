"""The verb convert: speech in another's voice, melody or rhythm."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unitkit.cli.show import Device, app, console, errors, finish, progress, utterances

if TYPE_CHECKING:
    from unitkit.manifest import Utterance
    from unitkit.pipeline import Step, VoiceConverter

SOUND = (".wav", ".flac")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="What is said: a file, directory, glob or manifest (.jsonl).")],
    reference: Annotated[
        str, typer.Argument(help="Whose voice, melody or rhythm: a file, or a manifest with the sources' ids.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for manifest.jsonl, units.jsonl and wavs; or one .wav.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Converter directory, or the name of a bundled one.")
    ] = "converter",
    mode: Annotated[
        str,
        typer.Option(
            help="What the reference gives: rhythm, pitch-energy, prosody (both), speaker, all; with copy, nothing."
        ),
    ] = "speaker",
    exact_pitch: Annotated[
        bool, typer.Option("--exact-pitch", help="Keep the source's F0 and energy; modes speaker and copy.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer directory; left out: the converter's own, or a bundled one.")
    ] = None,
    vocoder: Annotated[
        Path | None, typer.Option(help="Vocoder directory; left out: the converter's own, or the one beside it.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Say what one recording says with the voice, melody or rhythm of another.

    Resumes, keeps order, skips and lists bad files (exit status 1).

    Examples:

      unitkit convert source.wav reference.wav -m exp/converter -o out.wav

      unitkit convert recordings/ reference.wav -m exp/converter -o exp/converted --mode rhythm

      unitkit convert source.jsonl reference.jsonl -m exp/converter -o exp/converted --mode all

    In the last, each source takes the reference with its id.
    """
    from unitkit.pipeline import VoiceConverter

    sources, references = utterances([source]), utterances([reference])
    alone = out.suffix.lower() in SOUND and not out.is_dir()
    if alone and len(sources) > 1:
        raise ValueError(f"{out} is one file for {len(sources)} recordings: give -o a directory")
    converter = VoiceConverter.load(model, tokenizer=tokenizer, vocoder=vocoder, device=device)
    if alone:
        _one(converter, sources[0], references, out, mode, exact_pitch)
    else:
        _many(converter, sources, references, out, mode, exact_pitch)


def _one(
    converter: "VoiceConverter",
    source: "Utterance",
    references: list["Utterance"],
    out: Path,
    mode: str,
    exact_pitch: bool,
) -> None:
    from unitkit import audio
    from unitkit.pipeline.converter import paired

    ((_, reference),) = paired([source], references)
    try:
        wav = converter(source, reference, mode=mode, exact_pitch=exact_pitch)
    except (audio.AudioError, OSError) as error:
        finish([(source.audio, str(error))])
        return
    audio.write(out, wav, converter.sample_rate)
    console.print(f"{out}: {len(wav) / converter.sample_rate:.2f} s, mode {mode}", soft_wrap=True, highlight=False)


def _many(
    converter: "VoiceConverter",
    sources: list["Utterance"],
    references: list["Utterance"],
    out: Path,
    mode: str,
    exact_pitch: bool,
) -> None:
    import time

    from unitkit.pipeline import convert as convert_all

    started = time.monotonic()
    with progress("convert", len(sources)) as advance:

        def tell(step: "Step") -> None:
            advance(1)
            if step.bad is not None:
                errors.print(f"[red]bad:[/] {escape(step.bad)}", soft_wrap=True)

        try:
            done = convert_all(
                converter, sources, references, out, mode=mode, exact_pitch=exact_pitch, on_progress=tell
            )
        except KeyboardInterrupt:
            errors.print("stopped; the same command goes on from here")
            raise
    console.print(
        f"{out}/manifest.jsonl: {done.made} converted, {done.kept} kept, {len(done.bad)} bad; "
        f"{done.seconds:.1f} s of speech in {time.monotonic() - started:.1f} s",
        soft_wrap=True,
    )
    finish([(utterance.audio, reason) for utterance, reason in done.bad])

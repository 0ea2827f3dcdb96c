"""Verbs between unit files and those of peers: export, import."""

from pathlib import Path
from typing import Annotated

import typer

from unitkit.cli.show import app, console

# Spelt out, for reading the table itself would load numpy for every --help; a test compares the two.
FORMATS = (
    "gslm, bare, km, unit, textless, kaldi, s2ut, parquet, resynthesis, dgslm, dgslm-lines, slamkit, slamkit-tokens, "
    "discophon, minimal-hubert, unit-hifigan, npz, npy or dusted"
)
Format = Annotated[str, typer.Option("--format", "-f", help=f"{FORMATS}.")]
AnyFormat = Annotated[str, typer.Option("--format", "-f", help=f"{FORMATS}; auto goes by the name and first line.")]
Manifest = Annotated[Path | None, typer.Option(help="Manifest of the utterances (names and order).")]


@app.command("export")
def export_(
    units: Annotated[Path, typer.Argument(help="Unit file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, or folder (npy, dusted).")],
    format: Format,
    manifest: Manifest = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Write deduplicated units and their durations, where that is usual.")
    ] = False,
) -> None:
    """Write units in a peer's format.  The fingerprint goes along where the format has a place for it.

    Example: unitkit export units.jsonl -o train.km --format km --manifest train.jsonl
    """
    from unitkit.formats import export_units

    count = export_units(units, out, format=format, manifest=manifest, reduced=reduced)
    console.print(f"{out}: {count} utterances ({format})", soft_wrap=True)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A peer's unit file, or folder of arrays.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Unit file to write.")],
    format: AnyFormat = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Directory, name or bare fingerprint; npz and parquet know it."),
    ] = None,
    manifest: Manifest = None,
    durations: Annotated[Path | None, typer.Option(help="File of `id|3 1 2` frames, for deduplicated units.")] = None,
    frame_level: Annotated[bool, typer.Option("--frame-level", help="Vouch that units are not deduplicated.")] = False,
    units: Annotated[
        int | None, typer.Option("--units", "-k", help="Units per codebook, with a bare fingerprint.")
    ] = None,
    rate_hz: Annotated[float, typer.Option(help="Frame rate in Hz, with a bare fingerprint.")] = 50.0,
) -> None:
    """Read a peer's unit file.  Units mean nothing without their tokenizer, so it must be named.

    Example: unitkit import train.km -o units.jsonl --format km --manifest train.jsonl -t exp/tok
    """
    from unitkit.formats import detect, import_units
    from unitkit.pipeline import header_of
    from unitkit.units import read_header

    format = detect(path) if format == "auto" else format
    count = import_units(
        path,
        out,
        format=format,
        header=header_of(tokenizer, n_units=units, rate_hz=rate_hz) if tokenizer else None,
        manifest=manifest,
        durations=durations,
        frame_level=frame_level,
    )
    console.print(f"{out}: {count} utterances ({format}), tokenizer {read_header(out).tokenizer}", soft_wrap=True)

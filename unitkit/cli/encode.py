"""Verbs from audio to units: fit, encode."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unitkit.cli.show import Device, Inputs, Tok, app, console, errors, finish, progress, table, ticking, utterances

if TYPE_CHECKING:
    from unitkit.encode import Progress as Encoded
    from unitkit.manifest import Utterance


@app.command()
def fit(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new tokenizer.")],
    features: Annotated[
        str, typer.Option(help="mfcc, logmel, a known SSL name, a hub id, or a local directory.")
    ] = "mfcc",
    layer: Annotated[int | None, typer.Option(help="Layer of an SSL encoder, 1-based (0 = its input).")] = None,
    units: Annotated[int, typer.Option("--units", "-k", help="Units per codebook.")] = 100,
    codebooks: Annotated[int, typer.Option(help="Codebooks (with --kind residual or product).")] = 1,
    kind: Annotated[str, typer.Option(help="plain, residual or product.")] = "plain",
    max_frames: Annotated[
        int, typer.Option(help="Frames kept for k-means: the memory bound, a seeded sample.")
    ] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Seed of sample and initialisation.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a bad file instead of skipping it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a different tokenizer at --out.")] = False,
    device: Device = "auto",
) -> None:
    """Fit a tokenizer: encoder features, then k-means.

    Examples:

      unitkit fit recordings/ -o exp/tok --features logmel -k 200

      unitkit fit train.jsonl -o exp/tok --features facebook/hubert-base-ls960 --layer 6 -k 100
    """
    from unitkit.pipeline import tokenizer_facts
    from unitkit.tokenizer import Tokenizer

    found = utterances(inputs)
    bad: list[tuple[str, str]] = []

    def on_error(utterance: "Utterance", error: Exception) -> None:
        bad.append((utterance.audio, str(error)))
        errors.print(f"[red]bad:[/] {escape(str(error))}", soft_wrap=True)

    with progress("fit", len(found)) as advance:
        tokenizer = Tokenizer.fit(
            ticking(found, advance),
            features=features,
            layer=layer,
            units=units,
            codebooks=codebooks if kind != "plain" or codebooks == 1 else _refuse_plain(codebooks),
            kind=kind,
            max_frames=max_frames,
            seed=seed,
            device=device,
            on_error=None if strict else on_error,
        )
    tokenizer.save(out, overwrite=overwrite)
    console.print(table(f"tokenizer {tokenizer.fingerprint}", {"directory": out, **tokenizer_facts(tokenizer)}))
    finish(bad)


@app.command()
def encode(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The unit file to write (JSONL).")],
    tokenizer: Tok = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a bad file instead of skipping it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Encode anew even if --out exists.")] = False,
    device: Device = "auto",
) -> None:
    """Encode audio into a unit file.  Resumes, keeps order, skips and lists bad files (exit status 1).

    Examples:

      unitkit encode recordings/ -o units.jsonl

      unitkit encode train.jsonl -t exp/tok -o exp/units/train.jsonl

      find . -name '*.flac' | unitkit encode - -o units.jsonl --strict
    """
    from unitkit.encode import encode_files
    from unitkit.tokenizer import DEFAULT, Tokenizer

    found = utterances(inputs)
    tok = Tokenizer.load(tokenizer or DEFAULT, device=device)
    with progress("encode", sum(u.duration or 0.0 for u in found) / 3600, unit="h") as advance:

        def on_progress(step: "Encoded") -> None:
            advance(step.seconds / 3600)
            if step.bad:
                errors.print(f"[red]bad:[/] {escape(step.bad)}", soft_wrap=True)

        summary = encode_files(tok, found, out, strict=strict, overwrite=overwrite, on_progress=on_progress)
    console.print(
        f"{out}: {summary.encoded} encoded, {summary.kept} kept, {len(summary.bad)} bad; "
        f"{summary.seconds / 60:.1f} min of audio in {summary.elapsed:.1f} s "
        f"({summary.hours_per_hour:.0f} hours per hour); tokenizer {tok.fingerprint}",
        soft_wrap=True,
    )
    finish([(u.audio, reason) for u, reason in summary.bad])


def _refuse_plain(codebooks: int) -> int:
    raise ValueError(f"--codebooks {codebooks} needs --kind residual or --kind product, not plain")

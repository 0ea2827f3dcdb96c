"""The command line: one verb each, thin over the library.  `unitkit VERB --help` has examples."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from unitkit.encode import Progress as Encoded
    from unitkit.manifest import Utterance

app = typer.Typer(
    name="unitkit",
    help="Speech to discrete units and back.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
errors = Console(stderr=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Tok = Annotated[
    str | None, typer.Option("--tokenizer", "-t", help="Directory or bundled name; bundled default if left out.")
]
Inputs = Annotated[
    list[str], typer.Argument(help="Files, directories, globs, a manifest (.jsonl), or - for a list on stdin.")
]


def main() -> None:
    """Entry point: expected errors become one clear line and exit status 2."""
    # Idle OpenMP threads spin by default: beside another busy process that made encoding eight times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(70) from None  # a fault of ours: never 1, which says that bad files were skipped


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

    utterances = _utterances(inputs)
    bad: list[tuple[str, str]] = []

    def on_error(utterance: "Utterance", error: Exception) -> None:
        bad.append((utterance.audio, str(error)))
        errors.print(f"[red]bad:[/] {escape(str(error))}", soft_wrap=True)

    with _progress("fit", len(utterances)) as advance:
        tokenizer = Tokenizer.fit(
            _ticking(utterances, advance),
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
    console.print(_table(f"tokenizer {tokenizer.fingerprint}", {"directory": out, **tokenizer_facts(tokenizer)}))
    _finish(bad)


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

    utterances = _utterances(inputs)
    tok = Tokenizer.load(tokenizer or DEFAULT, device=device)
    with _progress("encode", sum(u.duration or 0.0 for u in utterances) / 3600, unit="h") as advance:

        def on_progress(step: "Encoded") -> None:
            advance(step.seconds / 3600)
            if step.bad:
                errors.print(f"[red]bad:[/] {escape(step.bad)}", soft_wrap=True)

        summary = encode_files(tok, utterances, out, strict=strict, overwrite=overwrite, on_progress=on_progress)
    console.print(
        f"{out}: {summary.encoded} encoded, {summary.kept} kept, {len(summary.bad)} bad; "
        f"{summary.seconds / 60:.1f} min of audio in {summary.elapsed:.1f} s "
        f"({summary.hours_per_hour:.0f} hours per hour); tokenizer {tok.fingerprint}",
        soft_wrap=True,
    )
    _finish([(u.audio, reason) for u, reason in summary.bad])


@app.command()
def vocode(
    units: Annotated[Path, typer.Argument(help="Unit file to speak.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Vocoder directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for manifest.jsonl and wavs.")],
    like: Annotated[
        Path | None, typer.Option(help="Manifest whose text, speaker and language are copied by id.")
    ] = None,
    durations: Annotated[
        str, typer.Option(help="frames (as encoded) or predicted (deduplicate, then predict).")
    ] = "frames",
    speaker: Annotated[str | None, typer.Option(help="Speaker name, for all utterances.")] = None,
    lang: Annotated[str | None, typer.Option(help="Language name, for all utterances.")] = None,
    shuffle: Annotated[int | None, typer.Option(help="Seed: shuffle the frames first (the control).")] = None,
    device: Device = "auto",
) -> None:
    """Turn a unit file into speech: a directory with manifest.jsonl and wavs.

    Examples:

      unitkit vocode units/test.jsonl -m exp/vocoder -o exp/synth

      unitkit vocode units/test.jsonl -m exp/vocoder -o exp/dedup --durations predicted --like data/test.jsonl
    """
    from unitkit.pipeline import Vocoder, synthesise

    vocoder = Vocoder.load(model, device=device)
    with _progress("vocode", None) as advance:
        done = synthesise(
            vocoder,
            units,
            out,
            like=like,
            durations=durations,
            speaker=speaker,
            lang=lang,
            shuffle=shuffle,
            on_progress=lambda _: advance(1),
        )
    console.print(f"{out}/manifest.jsonl: {done} utterances", soft_wrap=True)


@app.command()
def score(
    systems: Annotated[list[Path], typer.Argument(help="Synthesis directories (with manifest.jsonl).")],
    reference: Annotated[Path, typer.Option(help="Manifest of the original recordings.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Scores, one JSON line each; rows are replaced by name.")],
    control: Annotated[Path | None, typer.Option(help="Synthesis directory of the shuffled control.")] = None,
    reference_units: Annotated[
        Path | None, typer.Option(help="Units of the originals, for the unit error rate.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Comma-separated; all = every metric that is installed.")] = "all",
    recognizer: Annotated[
        str, typer.Option(help="auto, whisper-base, whisper-tiny.en or a CTranslate2 folder.")
    ] = "auto",
    lang: Annotated[str, typer.Option(help="Language of the transcripts.")] = "en",
    split: Annotated[str, typer.Option(help="Name of the split in the score rows.")] = "test",
) -> None:
    """Score syntheses against the originals: WER, mel, MCD, F0, speaker, MOS, unit error rate, each with a control.

    Example:

      unitkit score exp/synth/frames --control exp/synth/shuffled --reference data/test.jsonl -o exp/scores.jsonl
    """
    from unitkit.metrics.score import score_directories, table

    rows = score_directories(
        systems,
        reference,
        control=control,
        reference_units=reference_units,
        metrics=metrics,
        recognizer=recognizer,
        lang=lang,
        split=split,
        out=out,
        note=lambda text: errors.print(f"[dim]{escape(text)}[/]"),
    )
    console.print(table(rows))


@app.command()
def report(
    exp: Annotated[Path, typer.Argument(help="Experiment directory of a recipe.")],
    reference: Annotated[Path, typer.Option(help="Manifest of the original recordings.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page to write.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Resynthesis from units",
) -> None:
    """Write one self-contained HTML page: players, unit timelines, curves, scores."""
    from unitkit.report import report_experiment

    console.print(str(report_experiment(exp, reference, out, title=title).resolve()), soft_wrap=True)


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="Tokenizer, unit file, manifest, model directory or audio file.")],
) -> None:
    """Say what a thing is: fingerprint, rates, sizes, bitrate.

    Examples: unitkit info units.jsonl · unitkit info exp/vocoder · unitkit info prompts-mfcc100
    """
    from unitkit.pipeline import describe

    title, facts = describe(path)
    console.print(_table(title, facts))


@app.command()
def doctor() -> None:
    """Check this machine: what works, what is missing, what is broken and how to mend it (exit status 1 if broken)."""
    from unitkit.doctor import examine

    checks = examine()
    grid = Table("", "", "", "mend", box=None, show_header=False)
    colours = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    for check in checks:
        grid.add_row(check.name, f"[{colours[check.state]}]{check.state}[/]", escape(check.detail), escape(check.mend))
    console.print(grid)
    raise typer.Exit(1 if any(check.state == "broken" for check in checks) else 0)


Format = Annotated[str, typer.Option("--format", "-f", help="gslm, km, s2ut, npz or parquet.")]
Manifest = Annotated[Path | None, typer.Option(help="Manifest of the utterances (names and order).")]


@app.command("export")
def export_(
    units: Annotated[Path, typer.Argument(help="Unit file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    format: Format,
    manifest: Manifest = None,
    reduced: Annotated[bool, typer.Option("--reduced", help="Write deduplicated units (gslm, s2ut).")] = False,
) -> None:
    """Write units in a peer's format.  The fingerprint goes along where the format has a place for it.

    Example: unitkit export units.jsonl -o train.km --format km --manifest train.jsonl
    """
    from unitkit.formats import export_units

    count = export_units(units, out, format=format, manifest=manifest, reduced=reduced)
    console.print(f"{out}: {count} utterances ({format})", soft_wrap=True)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A peer's unit file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Unit file to write.")],
    format: Format,
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
    from unitkit.formats import import_units
    from unitkit.pipeline import header_of
    from unitkit.units import read_header

    count = import_units(
        path,
        out,
        format=format,
        header=header_of(tokenizer, n_units=units, rate_hz=rate_hz) if tokenizer else None,
        manifest=manifest,
        durations=durations,
        frame_level=frame_level,
    )
    console.print(f"{out}: {count} utterances, tokenizer {read_header(out).tokenizer}", soft_wrap=True)


def _utterances(inputs: list[str]) -> list["Utterance"]:
    from unitkit.encode import with_durations
    from unitkit.manifest import discover

    found = with_durations(discover(inputs))
    if not found:
        raise ValueError(f"no audio found in {', '.join(inputs)}")
    return found


def _refuse_plain(codebooks: int) -> int:
    raise ValueError(f"--codebooks {codebooks} needs --kind residual or --kind product, not plain")


def _ticking(utterances: "Iterable[Utterance]", advance: Callable[[float], None]) -> "Iterator[Utterance]":
    for utterance in utterances:
        yield utterance
        advance(1)


@contextmanager
def _progress(verb: str, total: float | None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """A bar on standard error: done, elapsed, ETA, and hours of audio per hour where the unit is hours."""
    columns = [TextColumn(verb), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    count = (
        TextColumn("{task.completed:.2f}/{task.total:.2f} h, {task.fields[speed]:.0f} h/h")
        if unit
        else MofNCompleteColumn()
    )
    with Progress(*columns, count, console=errors, transient=not sys.stderr.isatty()) as bar:
        task = bar.add_task(verb, total=total, speed=0.0)

        def advance(amount: float) -> None:
            bar.advance(task, amount)
            elapsed = bar.tasks[0].elapsed or 0.0
            bar.update(task, speed=bar.tasks[0].completed * 3600 / elapsed if elapsed else 0.0)

        yield advance


def _table(title: str, facts: dict[str, object]) -> Table:
    grid = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in facts.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        grid.add_row(f"[bold]{escape(name)}[/]", escape(shown))
    return grid


def _finish(bad: list[tuple[str, str]]) -> None:
    if not bad:
        return
    errors.print(f"\n[bold red]{len(bad)} bad file(s), skipped:[/]")
    for _, reason in bad:
        errors.print(f"  {escape(reason)}", soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()

"""Verbs from audio to units: fit, encode, merge."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unitkit.cli.show import Device, Inputs, Tok, app, console, errors, finish, progress, table, ticking, utterances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from unitkit.encode import Progress as Encoded
    from unitkit.encode import Summary
    from unitkit.manifest import Utterance
    from unitkit.workers import Loader, Options


SHORT_SECONDS = 30.0  # no encoder's window is shorter
WORTH_MEASURING = 10  # clips: measuring what windows change costs about four clips' worth of encoding


@app.command()
def fit(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new tokenizer.")],
    features: Annotated[
        str | None, typer.Option(help="mfcc (the default), logmel, a known SSL name, a hub id, or a directory.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer of an SSL encoder, 1-based (0 = its input).")] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Round the encoder's weights to float16 first: half the bytes on disk.")
    ] = False,
    encoder_of: Annotated[
        str | None,
        typer.Option(help="Take encoder and layer of this tokenizer (directory or bundled name) and share its files."),
    ] = None,
    units: Annotated[int | None, typer.Option("--units", "-k", help="Units per codebook, by default 100.")] = None,
    codebooks: Annotated[
        int | None, typer.Option(help="Codebooks, by default 1 (more with --kind residual or product).")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="plain (the default), residual or product.")] = None,
    standardize: Annotated[
        bool, typer.Option(help="Scale every dimension to unit variance first; without, centroids fit peers' formats.")
    ] = True,
    max_frames: Annotated[
        int | None, typer.Option(help="Frames kept for k-means, a seeded sample. By default what 2 GB in all allow.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of sample and initialisation.")] = 0,
    card: Annotated[
        Path | None, typer.Option(help="Text file for the card: licences, scores, limits.", exists=True, dir_okay=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a bad file instead of skipping it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a different tokenizer at --out.")] = False,
    device: Device = "auto",
) -> None:
    """Fit a tokenizer: encoder features, then k-means; features with a codebook of their own need no fit.

    Examples:

      unitkit fit recordings/ -o exp/tok --features logmel -k 200

      unitkit fit train.jsonl -o exp/tok --features facebook/hubert-base-ls960 --layer 6 -k 100

      unitkit fit train.jsonl -o exp/tok-500 --encoder-of exp/tok -k 500
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
            half=half,
            encoder_of=encoder_of,
            units=units,
            codebooks=codebooks,
            kind=kind,
            standardize=standardize,
            max_frames=max_frames,
            seed=seed,
            device=device,
            on_error=None if strict else on_error,
        )
    tokenizer.provenance["data"] = ", ".join(inputs)
    words = card.read_text(encoding="utf-8") if card else ""
    tokenizer.save(out, card=words, overwrite=overwrite, encoder_of=encoder_of)
    console.print(table(f"tokenizer {tokenizer.fingerprint}", {"directory": out, **tokenizer_facts(tokenizer)}))
    finish(bad)


@app.command()
def encode(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The unit file to write (JSONL); a folder for soft units.")],
    tokenizer: Tok = None,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes, one thread each.")] = 1,
    shard: Annotated[
        str | None,
        typer.Option(help="Encode this part only: 3/10, or auto (Slurm array task, torchrun rank); then `merge`."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Where the workers run: local, or ray (a cluster).")] = "local",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a bad file instead of skipping it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Encode anew even if --out exists.")] = False,
    device: Device = "auto",
    backend: Annotated[str, typer.Option(help="Arithmetic of the encoder: auto, plain, fast or openvino.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or int8; left out: what the tokenizer was made with.")
    ] = None,
) -> None:
    """Encode audio into a unit file.  Resumes, keeps order, skips and lists bad files (exit status 1).

    Examples:

      unitkit encode recordings/ -o units.jsonl --workers 4

      unitkit encode train.jsonl -t exp/tok -o exp/units/train.jsonl

      find . -name '*.flac' | unitkit encode - -o units.jsonl --strict

      unitkit encode train.jsonl -t exp/soft -o exp/soft-units    (a soft tokenizer: a folder of vectors)

      unitkit encode train.jsonl -o units.jsonl --shard 3/10    (and the other nine; then unitkit merge units.jsonl)
    """
    from unitkit.models.storage import kind_of
    from unitkit.workers import Loader, Options

    if tokenizer is not None and kind_of(tokenizer) == "soft":
        if shard is not None or workers != 1 or engine != "local" or backend != "auto" or precision is not None:
            raise ValueError(f"{tokenizer} makes soft units: leave out --shard, --workers, --engine, --backend, ...")
        return _encode_soft(tokenizer, inputs, out, strict=strict, overwrite=overwrite, device=device)
    if shard is not None and (workers != 1 or engine != "local"):
        raise ValueError("--shard is one process: leave out --workers and --engine, or take more and smaller shards")
    loader, options = Loader(tokenizer, device, precision, backend), Options(strict=strict, overwrite=overwrite)
    try:
        if shard is not None:
            _encode_shard(loader, inputs, out, shard, options)
        else:
            _encode_all(loader, inputs, out, workers, engine, options)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here")
        raise


def _encode_soft(tokenizer: str, inputs: list[str], out: Path, *, strict: bool, overwrite: bool, device: str) -> None:
    from unitkit.pipeline import SoftTokenizer, encode_soft

    given = utterances(inputs)
    soft = SoftTokenizer.load(tokenizer, device=device)
    with _shown(given) as tell:
        summary = encode_soft(soft, given, out, strict=strict, overwrite=overwrite, on_progress=tell)
    _conclude(out, summary)


def _encode_all(loader: "Loader", inputs: list[str], out: Path, workers: int, engine: str, options: "Options") -> None:
    from unitkit.encode import encode_files
    from unitkit.workers import encode_parallel

    given = utterances(inputs)
    with _shown(given) as tell:
        if workers == 1 and engine == "local":
            tok = loader.load()
            summary = encode_files(
                tok, given, out, strict=options.strict, overwrite=options.overwrite, on_progress=tell
            )
        else:
            summary = encode_parallel(
                loader, given, out, workers=workers, engine=engine, options=options, on_progress=tell
            )
    if summary.encoded:
        _tell_of_windows(loader, given)
    _conclude(out, summary)


def _encode_shard(loader: "Loader", inputs: list[str], out: Path, shard: str, options: "Options") -> None:
    from unitkit.manifest import discover
    from unitkit.shards import encode_shard, parse_shard, tasks

    number, total = parse_shard(shard)
    # The cut goes by the manifest alone, alike in every process: no header of another shard's audio is read.
    task = tasks(list(discover(inputs)), out, total)[number - 1]
    with _shown(task.utterances) as tell:
        summary = encode_shard(
            loader.load(), task, strict=options.strict, overwrite=options.overwrite, on_progress=tell
        )
    _conclude(task.shard.path, summary)


@contextmanager
def _shown(found: "Sequence[Utterance]") -> "Iterator[Callable[[Encoded], None]]":
    """A bar in hours of audio where all durations are known, else in files; bad files are named as they come."""
    hours = all(u.duration is not None for u in found)
    total = sum(u.duration or 0.0 for u in found) / 3600 if hours else float(len(found))
    with progress("encode", total, unit="h" if hours else "") as advance:

        def tell(step: "Encoded") -> None:
            advance(step.seconds / 3600 if hours else 1.0)
            if step.bad:
                errors.print(f"[red]bad:[/] {escape(step.bad)}", soft_wrap=True)

        yield tell


def _tell_of_windows(loader: "Loader", given: "Sequence[Utterance]") -> None:
    """Long recordings were encoded in windows: say so, and how many units that changes, measured on one of them."""
    if max((u.duration or 0.0 for u in given), default=0.0) <= SHORT_SECONDS:
        return  # no encoder has shorter windows
    from unitkit.tokenizer import DEFAULT
    from unitkit.verify import CLIP_SECONDS, verify

    tok = loader.load()
    window = tok.window_s
    if window is None:
        console.print("long recordings were read in blocks, which changes no unit")
        return
    long = [u for u in given if (u.duration or 0.0) > window]
    line = f"{len(long)} recording(s) longer than {window:g} s were encoded in windows"
    if not long:
        return
    if sum(u.duration or 0.0 for u in long) < WORTH_MEASURING * CLIP_SECONDS:
        console.print(f"{line}; `unitkit verify --modes windows` measures what that changes", soft_wrap=True)
        return
    source = loader.tokenizer or DEFAULT
    check = verify(source, long[:1], modes=["windows"], device=loader.device, seconds=CLIP_SECONDS)[-1]
    found = check.note if check.skipped else f"{check.share:.3%} of units differ from whole ({check.note})"
    console.print(f"{line}: {found}", soft_wrap=True)


def _conclude(out: Path, summary: "Summary") -> None:
    from unitkit.soft import read_soft_header
    from unitkit.units import read_header

    fingerprint = (read_soft_header if out.is_dir() else read_header)(out).tokenizer
    console.print(
        f"{out}: {summary.encoded} encoded, {summary.kept} kept, {len(summary.bad)} bad; "
        f"{summary.seconds / 60:.1f} min of audio in {summary.elapsed:.1f} s "
        f"({summary.hours_per_hour:.0f} hours per hour); tokenizer {fingerprint}",
        soft_wrap=True,
    )
    finish([(u.audio, reason) for u, reason in summary.bad])


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="The unit file; its shards lie in OUT.shards.")],
    clean: Annotated[bool, typer.Option("--clean", help="Remove the shards once they are merged.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace units of another tokenizer.")] = False,
) -> None:
    """Merge the shards of `encode --shard` in the manifest's order; missing or damaged ones are named (exit status 2).

    Examples:

      unitkit merge units.jsonl

      unitkit merge units.jsonl --clean
    """
    from unitkit.shards import merge_shards

    summary = merge_shards(out, clean=clean, overwrite=overwrite)
    done = f"{summary.encoded} utterances, {summary.seconds / 3600:.2f} hours"
    if summary.kept:
        done = f"{summary.kept} utterances, merged before; no shards are left"
    console.print(f"{out}: {done}, {len(summary.bad)} bad", soft_wrap=True)
    finish([(u.audio, reason) for u, reason in summary.bad])

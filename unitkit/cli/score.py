"""The verb score: syntheses against originals, conversions, unit files against phones, and sweeps over tokenizers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from unitkit.cli.show import Device, app, console, errors, finish, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unitkit.manifest import Utterance
    from unitkit.metrics.rows import ScoreRow
    from unitkit.metrics.unit_scores import AbxTask
    from unitkit.sweep import EncoderSpec, SweepData, SweepOptions, SweepRow

DEFAULT = "syntheses"


class _Score(TyperGroup):
    """`score DIR ...` is `score syntheses DIR ...`: the word may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the word in front where the first one is no subcommand; `units --sweep` is `sweep`."""
        if args[:1] == ["units"] and "--sweep" in args:
            args = ["sweep", *(one for one in args[1:] if one != "--sweep")]
        return super().parse_args(ctx, args if args and args[0] in self.commands else [DEFAULT, *args])


scores = typer.Typer(
    cls=_Score,
    help="Score syntheses; `score conversions` conversions, `score units` unit files, `score sweep` series of them.",
)
app.add_typer(scores, name="score")


def _say(text: str) -> None:
    errors.print(f"[dim]{escape(text)}[/]", soft_wrap=True)


@scores.command(DEFAULT)
def syntheses(
    systems: Annotated[
        list[Path], typer.Argument(help="Synthesis directories (with manifest.jsonl), or manifests of transcripts.")
    ],
    reference: Annotated[Path, typer.Option(help="Manifest of the original recordings.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Scores, one JSON line each; rows are replaced by name.")],
    control: Annotated[Path | None, typer.Option(help="Synthesis directory of the shuffled control.")] = None,
    reference_units: Annotated[
        Path | None, typer.Option(help="Units of the originals, for the unit error rate.")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Comma-separated; all = every metric of a resynthesis that is installed; of a translation, by name: "
            "asr_bleu, text_bleu; of transcripts, text_wer, text_cer."
        ),
    ] = "all",
    recognizer: Annotated[
        str, typer.Option(help="auto, whisper-base, whisper-tiny.en or a CTranslate2 folder.")
    ] = "auto",
    lang: Annotated[str, typer.Option(help="Language of the transcripts.")] = "en",
    split: Annotated[str, typer.Option(help="Name of the split in the score rows.")] = "test",
    min_words: Annotated[
        int,
        typer.Option(help="Score only utterances whose reference text has so many words; give --split a name for it."),
    ] = 0,
) -> None:
    """Score syntheses against the originals: WER, mel, MCD, F0, speaker, MOS, unit error rate, each with a control.

    The word `syntheses` may be left out. `unitkit score units` scores unit files against phones and parallel sentences,
    `unitkit score sweep` whole series of tokenizers; each has its own --help.

    Examples:

      unitkit score exp/synth/frames --control exp/synth/shuffled --reference data/test.jsonl -o exp/scores.jsonl

      unitkit score exp/english --reference data/en.jsonl --metrics asr_bleu,text_bleu --min-words 4 -o exp/scores.jsonl

      unitkit score exp/texts.jsonl --reference data/test.jsonl --metrics text_wer,text_cer -o exp/scores.jsonl

      unitkit score units exp/units/test.jsonl --manifest data/test.jsonl --alignments data/phones.tsv
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
        min_words=min_words,
        out=out,
        note=_say,
    )
    console.print(table(rows))


@scores.command()
def conversions(
    systems: Annotated[list[Path], typer.Argument(help="Directories made by `unitkit convert`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Scores, one JSON line each; rows are replaced by name.")],
    source_units: Annotated[Path | None, typer.Option(help="Units of the sources, by the ids of the pairs.")] = None,
    reference_units: Annotated[Path | None, typer.Option(help="Units of the references, by the same ids.")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Conversions of mode copy, from which what moved is counted, in place of sources."),
    ] = None,
    metrics: Annotated[str, typer.Option(help="Comma-separated; all = every one.")] = "all",
    recognizer: Annotated[
        str, typer.Option(help="auto, whisper-base, whisper-tiny.en or a CTranslate2 folder.")
    ] = "auto",
    lang: Annotated[str, typer.Option(help="Language of rows that name none.")] = "en",
    split: Annotated[str, typer.Option(help="Name of the split in the score rows.")] = "test",
) -> None:
    """Score conversions: what moved towards the reference, and what stayed with the source.

    The column original has the same of the sources as they were, control of the references or other recordings of
    their speakers. Tempo and durations need the units of both.

    Examples:

      unitkit score conversions exp/speaker exp/rhythm --source-units pairs/source.units.jsonl
      --reference-units pairs/reference.units.jsonl --baseline exp/copy -o exp/scores.jsonl
    """
    from unitkit.metrics.rows import table
    from unitkit.metrics.score_conversion import score_conversions

    rows = score_conversions(
        systems,
        source_units=source_units,
        reference_units=reference_units,
        baseline=baseline,
        metrics=metrics,
        recognizer=recognizer,
        lang=lang,
        split=split,
        out=out,
        note=_say,
    )
    console.print(table(rows))


def _option(names: str, help: str) -> Any:
    return typer.Option(*names.split(), help=help)


Aligned = Annotated[Path | None, _option("--alignments", "Phone alignments: id, start, end, phone.")]
Prefix = Annotated[str, _option("--alignments-prefix", "Put before their ids, such as en/.")]
Items = Annotated[Path | None, _option("--items", "ABX item file; else items are made of the alignments.")]
Kind = Annotated[str, _option("--kind", "ABX items made of the alignments: phoneme or triphone.")]
Context = Annotated[str, _option("--context", "ABX: any, or within (between the same two phones).")]
Silence = Annotated[bool, _option("--silence/--no-silence", "Count silence as a phone in PNMI and purity.")]


@scores.command()
def units(
    files: Annotated[list[str], typer.Argument(help="Unit files: named by their stems in the rows, or label=file.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest with speakers and texts; only its utterances are scored.")
    ] = None,
    alignments: Aligned = None,
    alignments_prefix: Prefix = "",
    items: Items = None,
    kind: Kind = "phoneme",
    context: Context = "any",
    silence: Silence = True,
    metrics: Annotated[str, typer.Option(help="Comma-separated; all = every one.")] = "all",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Scores, one JSON line each; rows are replaced by name.")
    ] = None,
    split: Annotated[str, typer.Option(help="Name of the split in the score rows.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of controls and ABX samples.")] = 0,
) -> None:
    """Score unit files: PNMI, purity, boundaries, ABX, UED, units used, bitrate, each beside its control.

    PNMI, purity and boundaries need alignments, UED a manifest with speakers and texts, ABX both (or an item file).
    What is missing is said in the table. With --sweep it is `unitkit score sweep`, with options of its own.

    Examples:

      unitkit score units exp/units/test.jsonl --manifest data/test.jsonl --alignments data/phones.tsv -o scores.jsonl

      unitkit score units a=exp/a/test.jsonl b=exp/b/test.jsonl --manifest data/test.jsonl --metrics ued,bitrate
    """
    from unitkit.metrics.alignments import read_alignments
    from unitkit.metrics.items import read_items
    from unitkit.metrics.rows import table, write_scores
    from unitkit.metrics.unit_scores import score_units
    from unitkit.sweep import labelled_files

    phones = read_alignments(alignments, prefix=alignments_prefix) if alignments else None
    given = read_items(items) if items else []
    rows: list[ScoreRow] = []
    for label, path in labelled_files(files):
        rows += score_units(
            path,
            phones,
            manifest=manifest,
            items=given,
            metrics=metrics,
            system=label,
            split=split,
            task=_task(items, kind=kind, context=context, seed=seed),
            silence=silence,
            seed=seed,
            progress=_say,
        )
    if out is not None:
        write_scores(out, rows)
    console.print(table(rows))


def _task(items: Path | None, *, kind: str, context: str, seed: int) -> "AbxTask":
    """What ABX compares; an item file's name stands for the kind of its items."""
    from unitkit.metrics.abx import CONTEXTS
    from unitkit.metrics.items import KINDS
    from unitkit.metrics.unit_scores import AbxTask

    for option, value, known in (("--kind", kind, KINDS), ("--context", context, CONTEXTS)):
        if value not in known:
            raise ValueError(f"unknown {option} {value!r}; known: {', '.join(known)}")
    return AbxTask(kind=items.name if items else kind, context=context, seed=seed)


@scores.command()
def sweep(
    encoders: Annotated[
        list[str],
        typer.Option(
            "--encoder", help="name, name:layers or label=name:layers, layers as 2,4 or 4-8 or all; may be repeated."
        ),
    ],
    train: Annotated[Path, typer.Option(help="Manifest that units are fitted on.")],
    test: Annotated[Path, typer.Option(help="Manifest that they are scored on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for sweep.jsonl, sweep.md and sweep.svg.")],
    units: Annotated[str, typer.Option("--units", "-k", help="Numbers of units.")] = "100",
    alignments: Aligned = None,
    alignments_prefix: Prefix = "",
    items: Items = None,
    kind: Kind = "phoneme",
    context: Context = "any",
    silence: Silence = True,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated; left out: those of the table below.")] = None,
    features: Annotated[bool, typer.Option("--features", help="ABX of each layer's features as well.")] = False,
    max_frames: Annotated[int, typer.Option(help="Frames kept for k-means, a seeded sample.")] = 100_000,
    memory: Annotated[float, typer.Option(help="GB of features held: how many layers share a run.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of samples, fits, controls and ABX.")] = 0,
    device: Device = "auto",
) -> None:
    """Fit, encode and score encoders, layers and numbers of units; a table, a chart, and rows with fingerprints.

    By default PNMI, ABX, UED and bitrates. An encoder is run once for many layers and all numbers of units. Finished
    cells are rows of sweep.jsonl and are not computed again. `unitkit fit` with the same data, layer, units, frames and
    seed makes any of the tokenizers. `unitkit score units --sweep` is the same command.

    Examples:

      unitkit score sweep --encoder mfcc --encoder whisper-base:2,4,6 --encoder mine=exp/hubert:all --units 100,500
      --train data/train.jsonl --test data/test.jsonl --alignments data/phones.tsv -o exp/sweep
    """
    from unitkit.metrics.unit_scores import check_metrics
    from unitkit.sweep import METRICS, SweepData, SweepOptions, parse_encoders, parse_units
    from unitkit.sweep.tables import grid

    options = SweepOptions(
        metrics=METRICS if metrics is None else tuple(check_metrics(metrics)),
        max_frames=max_frames,
        seed=seed,
        task=_task(items, kind=kind, context=context, seed=seed),
        silence=silence,
        features=features,
        memory_gb=memory,
        device=device,
    )
    data = SweepData(train, test, alignments, alignments_prefix, items)
    rows, bad = _swept(parse_encoders(encoders), parse_units(units), data, options, out)
    console.print(grid(rows))
    _write(rows, out, data, options)
    finish(bad)


def _swept(
    specs: "Sequence[EncoderSpec]", units: "Sequence[int]", data: "SweepData", options: "SweepOptions", out: Path
) -> "tuple[list[SweepRow], list[tuple[str, str]]]":
    """The rows under a bar of cells, and the bad files, each once."""
    from unitkit.sweep import plan, read_rows
    from unitkit.sweep import sweep as run

    bad: dict[str, str] = {}

    def on_error(utterance: "Utterance", error: Exception) -> None:
        if utterance.audio not in bad:
            errors.print(f"[red]bad:[/] {escape(str(error))}", soft_wrap=True)
        bad[utterance.audio] = str(error)

    cells = plan(specs, units, data, options=options)
    asked = {cell.key for cell in cells}
    missing = asked - set(read_rows(out / "sweep.jsonl"))
    _say(f"{len(asked)} cells, {len(asked) - len(missing)} of them finished before")
    with progress("sweep", len(missing)) as advance:
        rows = run(cells, data, out=out, options=options, progress=advance, note=_say, on_error=on_error)
    return rows, list(bad.items())


def _write(rows: "Sequence[SweepRow]", out: Path, data: "SweepData", options: "SweepOptions") -> None:
    """sweep.md and sweep.svg; no chart where nothing can be drawn."""
    from unitkit.manifest import atomic_text
    from unitkit.sweep.chart import drawable, svg
    from unitkit.sweep.tables import markdown

    about = (
        f"Fitted on `{data.train}` (at most {options.max_frames} frames, seed {options.seed}), "
        f"scored on `{data.test}`; s is the seconds of fitting and scoring, with an equal share of the encoder's runs."
    )
    drawn = drawable(rows)
    with atomic_text(out / "sweep.md") as file:
        file.write(markdown(rows, about=about) + ("\n![scores over layers](sweep.svg)\n" if drawn else ""))
    if drawn:
        with atomic_text(out / "sweep.svg") as file:
            file.write(svg(rows))
    console.print(f"{out}/sweep.jsonl, sweep.md{', sweep.svg' if drawn else ''}: {len(rows)} rows", soft_wrap=True)

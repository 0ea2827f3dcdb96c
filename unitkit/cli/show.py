"""What the verbs share: options, progress bar, tables, the list of bad files."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from unitkit.manifest import Utterance

# What is used most comes first in the help; verbs that are not here come last, by name.
VERBS = (
    *("encode", "fit", "vocode", "speak", "convert", "transcribe", "translate", "score", "report", "serve"),
    *("info", "verify", "doctor", "merge", "export", "import"),
)


class Verbs(TyperGroup):
    """The verbs in an order of use."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names as the help lists them."""
        places = {verb: place for place, verb in enumerate(VERBS)}
        return sorted(self.commands, key=lambda verb: (places.get(verb, len(places)), verb))


app = typer.Typer(
    name="unitkit",
    cls=Verbs,
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


def utterances(inputs: list[str]) -> list["Utterance"]:
    """What the arguments name, with durations; none at all is an error."""
    from unitkit.encode import with_durations
    from unitkit.manifest import discover

    found = with_durations(discover(inputs))
    if not found:
        raise ValueError(f"no audio found in {', '.join(inputs)}")
    return found


def ticking(utterances: "Iterable[Utterance]", advance: Callable[[float], None]) -> "Iterator[Utterance]":
    """The utterances, each followed by one step of the bar."""
    for utterance in utterances:
        yield utterance
        advance(1)


@contextmanager
def progress(verb: str, total: float | None, unit: str = "") -> Iterator[Callable[[float], None]]:
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


def table(title: str, facts: dict[str, object]) -> Table:
    """Facts as two columns."""
    grid = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in facts.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        grid.add_row(f"[bold]{escape(name)}[/]", escape(shown))
    return grid


def finish(bad: list[tuple[str, str]]) -> None:
    """List the bad files, if any, and end with exit status 1."""
    if not bad:
        return
    errors.print(f"\n[bold red]{len(bad)} bad file(s), skipped:[/]")
    for _, reason in bad:
        errors.print(f"  {escape(reason)}", soft_wrap=True)
    raise typer.Exit(1)

"""Verbs that tell: info, doctor."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from unitkit.cli.show import app, console, table


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="Tokenizer, unit file, manifest, model directory or audio file.")],
) -> None:
    """Say what a thing is: fingerprint, rates, sizes, bitrate.

    Examples: unitkit info units.jsonl · unitkit info exp/vocoder · unitkit info mini
    """
    from unitkit.pipeline import describe

    title, facts = describe(path)
    console.print(table(title, facts))


@app.command()
def doctor() -> None:
    """Check this machine: what works, what is missing, what is broken and how to mend it (exit status 1 if broken).

    Examples:

      unitkit doctor
    """
    from unitkit.doctor import examine

    checks = examine()
    grid = Table("", "", "", "mend", box=None, show_header=False)
    colours = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    for check in checks:
        grid.add_row(check.name, f"[{colours[check.state]}]{check.state}[/]", escape(check.detail), escape(check.mend))
    console.print(grid)
    raise typer.Exit(1 if any(check.state == "broken" for check in checks) else 0)

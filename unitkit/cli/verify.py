"""The verb that checks promises: verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unitkit.cli.show import Device, app, console, errors, utterances

if TYPE_CHECKING:
    from unitkit.verify import Check

SHOWN = 10  # utterances named below the table, per row
COLOURS = {"ok": "green", "FAIL": "bold red", "reported": "yellow", "skipped": "dim"}


@app.command()
def verify(
    tokenizer: Annotated[str, typer.Argument(help="Directory or bundled name of a tokenizer.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Files, directories, globs, a manifest (.jsonl), or - for a list on stdin.")
    ],
    against: Annotated[
        Path | None, typer.Option(help="A unit file to recompute; the other checks are left out, but for --modes.")
    ] = None,
    modes: Annotated[
        str | None,
        typer.Option(
            help="Which checks, separated by commas: again, chunked, batched, windows, streamed, plain, bfloat16, "
            "openvino. All by default."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Audio to use; 10 by default, all with --against. 0 = all.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compute the units again in every other way and compare: batched, in blocks, streamed, other engines, bfloat16.

    Where unitkit promises that no unit changes, one changed unit is a failure; elsewhere the changed share is reported.
    Exit status: 0 all promises kept, 1 one was broken, 2 the check could not be made (wrong tokenizer, no audio).

    Examples:

      unitkit verify mini recordings/

      unitkit verify exp/tok test.jsonl --against exp/units/test.jsonl

      unitkit verify exp/tok dev.jsonl --modes batched,bfloat16 --minutes 30
    """
    from unitkit import verify as library

    limit = minutes if minutes is not None else (10.0 if against is None else 0.0)
    checks = library.verify(
        tokenizer,
        utterances(inputs),
        against=against,
        modes=None if modes is None else [mode.strip() for mode in modes.split(",") if mode.strip()],
        device=device,
        seconds=limit * 60 if limit else None,
        on_progress=lambda mode: errors.print(f"[dim]{mode} ...[/]"),
    )
    console.print(f"{'check':<18}{'frames':>9} {'changed':>8} {'share':>9} {'promised':>8}  verdict", highlight=False)
    for check in checks:
        console.print(_row(check), soft_wrap=True, highlight=False)
    for check in checks:
        _details(check)
    broken = [check.mode for check in checks if check.verdict == "FAIL"]
    kept = sum(check.verdict == "ok" for check in checks)
    if broken:
        console.print(f"[bold red]FAIL[/]: {escape(', '.join(broken))}; {kept} promise(s) kept", soft_wrap=True)
        raise typer.Exit(1)
    console.print(f"[green]ok[/]: {kept} promise(s) kept, none broken")


def _row(check: "Check") -> str:
    """One line of the table, however narrow the terminal."""
    numbers = f"{check.frames:>9} {check.changed:>8} {check.share:>9.3%} " if not check.skipped else " " * 29
    promised = f"{'' if check.skipped else '0' if check.promised else '-':>8}"
    verdict = f"[{COLOURS[check.verdict]}]{check.verdict:<8}[/]"
    return f"{check.mode:<18}{numbers}{promised}  {verdict}  {escape(check.note)}"


def _details(check: "Check") -> None:
    """Name utterances where something is wrong; of measured differences the table says enough."""
    if check.verdict not in ("FAIL", "skipped") or not check.details:
        return
    for line in check.details[:SHOWN]:
        errors.print(f"  {check.mode}: {escape(line)}", soft_wrap=True)
    if len(check.details) > SHOWN:
        errors.print(f"  {check.mode}: and {len(check.details) - SHOWN} more")

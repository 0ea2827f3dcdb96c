"""What a recipe calls: its run.sh with programs that only write down how they were called."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EGS = ROOT / "egs"
Run = Callable[..., list[list[str]]]


def recorder(folder: Path, *given: str) -> Run:
    """A function that runs `egs/<recipe>/run.sh` with `given` and other words; returns the calls, word by word.

    Paths in `folder` and of recipes/ are shown from there.
    """
    log = folder / "calls"
    for name in ("unitkit", "python"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        line = 'for word in "${0##*/}" "$@"; do printf "%q " "$word"; done >> "$CALLS"; echo >> "$CALLS"'
        program.write_text(f"#!/usr/bin/env bash\n{line}\n")
        program.chmod(0o755)

    def run(recipe: str, *words: str) -> list[list[str]]:
        log.write_text("")
        env = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(log)}
        done = subprocess.run(
            ["bash", EGS / recipe / "run.sh", *given, *words], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return [
            [word.replace(f"{folder}/", "").replace(f"{ROOT}/recipes/", "") for word in shlex.split(line)]
            for line in log.read_text().splitlines()
        ]

    return run


def of(calls: list[list[str]], program: str) -> list[list[str]]:
    """The arguments of every call of a recipe ("pair.py") or a verb ("encode")."""
    return [call[2:] for call in calls if call[1] == program]


def after(call: list[str], name: str) -> list[str]:
    """What follows an option, up to the next one."""
    rest = call[call.index(name) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))]

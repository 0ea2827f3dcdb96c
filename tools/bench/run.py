"""Run all benchmarks and write BENCHMARKS.md:  python tools/bench/run.py [--quick] [name ...]"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import Row, machine, table

HERE = Path(__file__).resolve().parent
SHARED = {"run.py", "side_by_side.py"}


def main() -> None:
    """Each benchmark in a process of its own, one after the other."""
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.name not in SHARED}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*scripts, []], help="which; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller runs; BENCHMARKS.md is left alone")
    args = parser.parse_args()
    chosen = args.names or list(scripts)
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch, "rows.jsonl")
        for name in chosen:
            print(f"\n## {name}", flush=True)
            command = [sys.executable, str(scripts[name]), "--json", str(results), *(["--quick"] * args.quick)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    if not args.quick and not args.names:
        write(rows, HERE.parents[1] / "BENCHMARKS.md")


def write(rows: list[dict[str, object]], path: Path) -> None:
    """The rows of each script under its name, with the command that makes them again."""
    lines = [
        "# Benchmarks",
        "",
        "Made by the scripts of `make bench`; each runs alone by the command above its table. One thread, CPU time,",
        "sides in turn, medians where a row does not say otherwise; results are compared before they are timed.",
        "",
        f"{datetime.date.today()}, {machine()}.",
    ]
    for script in dict.fromkeys(str(row["script"]) for row in rows):
        mine = [Row(**{k: v for k, v in row.items() if k != "script"}) for row in rows if row["script"] == script]  # type: ignore[arg-type]
        lines += ["", f"`python tools/bench/{script}`", "", table(mine)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{path}")


if __name__ == "__main__":
    main()

"""What the benchmarks share: sides run in turn on one thread, CPU time, medians, one table, one JSON line per row.

A benchmark is a script that makes `Row`s and hands them to `report`.  It compares in one run, checks that both sides
give equal results first, and quotes the ratio of medians: machines are shared and noisy, ratios are not.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Row:
    """One comparison: `ratio` is how many times better we are; `equal` says whether the results agree, and how well."""

    work: str
    ours: str
    peer: str
    ratio: float
    equal: str
    target: str = ""


def interleaved(sides: dict[str, Callable[[], object]], *, repeats: int, warmup: bool = True) -> dict[str, float]:
    """Median CPU seconds of this process for each side; sides take turns, so that noise meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + warmup):
        for name, run in sides.items():
            start = time.process_time()
            run()
            if turn >= warmup:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    # getrusage would start a child at the peak of its parent; the kernel's own count starts with the program.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options every benchmark has: --quick for a smaller run, --json for the rows."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a smaller run, to see that it works")
    made.add_argument("--json", type=Path, help="append the rows to this file")
    return made


def report(rows: Sequence[Row], json_path: Path | None = None) -> None:
    """Print the rows, and append them to `json_path` if given."""
    print(table(rows), flush=True)
    if json_path is not None:
        with open(json_path, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({**asdict(row), "script": Path(sys.argv[0]).name}) + "\n")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| work | ours | peer | ratio | equal results? | target |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.work} | {r.ours} | {r.peer} | {r.ratio:.2f}× | {r.equal} | {r.target} |" for r in rows]
    return "\n".join(lines)


def machine() -> str:
    """Processor, cores and the versions that matter, in one line."""
    import importlib.metadata as metadata

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    packages = ("torch", "transformers", "faiss-cpu", "scikit-learn", "openvino", "numpy")
    found = []
    for name in packages:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}; {', '.join(found)}"

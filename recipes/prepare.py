"""Prepare a corpus: find or fetch its audio and write one manifest per split.

Examples:
  python recipes/prepare.py prompts downloads data lang=en        data/{train,dev,test}.jsonl, fetched if need be
  python recipes/prepare.py prompts downloads data lang=en,es     two languages in one set of manifests
  python recipes/prepare.py folder ~/recordings data speaker_from_parent=true
  python recipes/prepare.py librispeech /corpora/LibriSpeech data subsets=train-clean-100,dev-clean,test-clean
  python recipes/prepare.py ljspeech /corpora/LJSpeech-1.1 data
  python recipes/prepare.py vctk /corpora/VCTK-Corpus-0.92 data mic=mic2
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from unitkit import audio
from unitkit.manifest import Utterance, write_manifest

CORPORA = Path(__file__).resolve().parent / "corpora"
GIVEN = ("root", "out", "left_out")  # what this program hands to a corpus; the rest are the user's key=value


class PrepareError(ValueError):
    """A corpus or an option that does not exist, or a corpus in which nothing was found."""


@dataclass
class Result:
    """What was prepared: utterances per split, bad files as (path, reason), prompts left out on purpose by reason."""

    splits: dict[str, list[Utterance]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def known_corpora() -> list[str]:
    """Return the names of the corpora: the files of recipes/corpora."""
    return sorted(path.stem for path in CORPORA.glob("*.py") if not path.stem.startswith("_"))


def load_corpus(name: str) -> ModuleType:
    """Import recipes/corpora/<name>.py."""
    if name not in known_corpora():
        raise PrepareError(f"unknown corpus {name!r}; known: {', '.join(known_corpora())}")
    spec = importlib.util.spec_from_file_location(f"corpora.{name}", CORPORA / f"{name}.py")
    if spec is None or spec.loader is None:
        raise PrepareError(f"{CORPORA / name}.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def corpus_options(corpus: ModuleType) -> dict[str, inspect.Parameter]:
    """Return the key=value options of a corpus: the keyword arguments of its `utterances`."""
    parameters = inspect.signature(corpus.utterances, eval_str=True).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in GIVEN}


def parse_options(corpus: ModuleType, pairs: Sequence[str]) -> dict[str, str | int | bool]:
    """Turn ["lang=en"] into {"lang": "en"}, with the type that the corpus asks for."""
    known = corpus_options(corpus)
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            listed = ", ".join(f"{name}={_shown(parameter.default)}" for name, parameter in known.items()) or "none"
            raise PrepareError(f"unknown option {pair!r}; options of this corpus with their defaults: {listed}")
        options[key] = _typed(key, value, kind=known[key].annotation)
    return options


def prepare(corpus: ModuleType, root: Path, out: Path, *, options: dict[str, str | int | bool]) -> Result:
    """Walk a corpus, read each duration, write <out>/<split>.jsonl; bad files are kept in the result, not raised."""
    result = Result()
    given = {"out": out, "left_out": lambda name, reason: result.left_out.append((name, reason))}
    asked = inspect.signature(corpus.utterances).parameters
    found = corpus.utterances(root, **{name: value for name, value in given.items() if name in asked}, **options)
    for split, utterance in _shown_progress(found):
        try:
            timed = (
                utterance if utterance.duration else replace(utterance, duration=audio.info(utterance.audio).duration)
            )
        except audio.AudioError as error:
            result.bad.append((error.path, error.reason))
        else:
            result.splits.setdefault(split, []).append(timed)
    if not result.splits:
        raise PrepareError(
            f"{root}: nothing usable found ({len(result.bad)} bad files, {len(result.left_out)} left out)"
        )
    for stale in {"train", "dev", "test"} - set(result.splits):  # a leftover split might share rows with a new one
        (out / f"{stale}.jsonl").unlink(missing_ok=True)
    for split, rows in result.splits.items():
        write_manifest(out / f"{split}.jsonl", rows)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, 1 when files were bad and skipped, 2 when nothing could be done."""
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__, epilog=_epilog(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", help=f"one of: {', '.join(known_corpora())}")
    parser.add_argument("root", type=Path, help="where the corpus is, or is downloaded to")
    parser.add_argument("out", type=Path, help="where the manifests go, and audio that has to be decoded")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the corpus, see below")
    given = parser.parse_args(argv)
    console = Console(stderr=True, highlight=False)
    try:
        corpus = load_corpus(given.corpus)
        options = parse_options(corpus, given.options)
        result = prepare(corpus, given.root, given.out, options=options)
    except (ValueError, RuntimeError, OSError) as error:
        console.print(f"prepare.py: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    _summary(result, given.out, console=console)
    return 1 if result.bad else 0


def _shown_progress(found: Iterator[tuple[str, Utterance]]) -> Iterator[tuple[str, Utterance]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed} utterances"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[id]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, id="")
        for split, utterance in found:
            yield split, utterance
            progress.update(task, advance=1, id=utterance.id[:60])


def _summary(result: Result, out: Path, *, console: Console) -> None:
    for split, rows in sorted(result.splits.items()):
        minutes = sum(row.duration or 0.0 for row in rows) / 60
        console.print(f"{out / split}.jsonl: {len(rows)} utterances, {minutes:.1f} min", markup=False, soft_wrap=True)
    for reason, count in Counter(reason for _, reason in result.left_out).most_common():
        names = [name for name, why in result.left_out if why == reason]
        console.print(
            f"left out, {reason}: {count} ({', '.join(names[:4])}{', ...' if count > 4 else ''})", markup=False
        )
    for path, reason in result.bad:
        console.print(f"bad file skipped: {path}: {reason}", style="red", markup=False, soft_wrap=True)


def _epilog() -> str:
    lines = ["corpora and their options:"]
    for name in known_corpora():
        corpus = load_corpus(name)
        options = " ".join(f"{key}={_shown(value.default)}" for key, value in corpus_options(corpus).items())
        lines.append(f"  {name:<12} {(corpus.__doc__ or '').splitlines()[0]}\n{'':<15}{options}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _typed(key: str, value: str, *, kind: type) -> str | int | bool:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise PrepareError(f"{key}={value}: expected true or false")
        return value.lower() == "true"
    try:
        return int(value) if kind is int else value
    except ValueError as error:
        raise PrepareError(f"{key}={value}: expected a whole number") from error


if __name__ == "__main__":
    sys.exit(main())

"""Baselines that a speech-to-speech translation must beat, and what a pretrained recogniser-translator makes of it.

copy: for each test recording, the training recording whose source units are closest; its target units are the
"translation".  Closest: edit distance of the deduplicated units over the longer of the two.  With --random SEED any
training recording, the control: what is gained by looking at the source at all.  Vocode the units to score the speech.

whisper-translate: Whisper turns each recording into English text, written as the texts of a manifest.  Score them with
`unitkit score DIR --metrics text_bleu`, or speak them with a text-to-speech system for the cascade.

Examples:
  python recipes/baselines.py copy --train-source-units exp/units/train.es.jsonl \\
      --train-target-units exp/units/train.en.jsonl --test-source-units exp/units/test.es.jsonl -o exp/copy/units.jsonl
  python recipes/baselines.py whisper-translate data/es/test.jsonl -o exp/whisper/manifest.jsonl
"""

import argparse
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from unitkit import audio
from unitkit.manifest import Utterance, atomic_text, read_manifest, write_manifest
from unitkit.metrics.base import require
from unitkit.metrics.recognise import RATE, Recognizer
from unitkit.units import Units, UnitsError, read_header, read_units, write_units

console = Console(stderr=True, highlight=False)


class Choice(NamedTuple):
    """A test utterance, the training utterance that it copies, and how far their source units are apart (0 to 1)."""

    test: str
    train: str
    distance: float


# ------------------------------------------------------------------------------------------------------- copying


def choose(train: dict[str, Units], test: dict[str, Units], *, seed: int | None = None) -> list[Choice]:
    """The closest training utterance of each test utterance, the first of equals; with `seed`, any one."""
    if not train:
        raise UnitsError("no training utterances to copy from")
    known, generator = {id_: runs(units) for id_, units in train.items()}, np.random.default_rng(seed)
    ids, found = list(known), []
    for id_, units in test.items():
        query = runs(units)
        if seed is None:
            apart = {other: distance(query, sequence) for other, sequence in known.items()}
            nearest = min(apart, key=apart.__getitem__)
        else:
            nearest = ids[generator.integers(len(ids))]
        found.append(Choice(id_, nearest, distance(query, known[nearest])))
    return found


def runs(units: Units) -> list[Hashable]:
    """Deduplicated units, one symbol a run; with several codebooks, a symbol is a frame's units together."""
    ids = units.dedup()[0].ids.tolist()
    return [tuple(row) for row in ids] if units.codebooks > 1 else ids


def distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Edit distance over the longer length: 0 the same, 1 nothing in common."""
    levenshtein = require("rapidfuzz.distance", package="rapidfuzz").Levenshtein
    return float(levenshtein.normalized_distance(one, other))


def copy(train_source: Path, train_target: Path, test_source: Path, out: Path, *, seed: int | None) -> list[Choice]:
    """Write the target units of the chosen training utterances under the test ids, and what was chosen beside them."""
    read_header(train_source).check_same(read_header(test_source), what=str(test_source))
    train, test = ({one.id: one for one in read_units(path)} for path in (train_source, test_source))
    if leaked := [id_ for id_ in test if id_ in train]:
        raise UnitsError(f"{test_source}: {named(leaked)} also in {train_source}; a test utterance would copy itself")
    targets = {one.id: one for one in read_units(train_target) if one.id in train}
    if missing := [id_ for id_ in train if id_ not in targets]:
        raise UnitsError(f"{train_target}: no units of {named(missing)} that {train_source} has; encode them as well")
    choices = choose(train, test, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_units(out, read_header(train_target), (replace(targets[one.train], id=one.test) for one in choices))
    with atomic_text(out.with_suffix(".tsv")) as file:
        file.write("id\tcopied\tdistance\n")
        file.writelines(f"{one.test}\t{one.train}\t{one.distance:.4f}\n" for one in choices)
    return choices


def named(ids: Sequence[str]) -> str:
    """How many, and the first five by name."""
    return f"{len(ids)} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})"


# --------------------------------------------------------------------------------------------------- translating


def translated(rows: Iterable[Utterance], judge: Recognizer) -> Iterator[Utterance]:
    """The rows with the English translation of what is said as their text; their languages guide the recogniser."""
    for row in rows:
        lang = row.lang.replace("_", "-").split("-")[0].lower() if row.lang else None
        start, length = (row.start or 0.0), (row.duration if row.start is not None else None)
        wav = audio.read(row.audio, RATE, start=start, duration=length)
        yield replace(row, lang="en", text=judge(wav, lang=lang, task="translate"))


# ------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """The two commands and their options."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("copy", help="target units of the closest training source")
    for name in ("--train-source-units", "--train-target-units", "--test-source-units"):
        one.add_argument(name, type=Path, required=True, metavar="UNITS.jsonl")
    one.add_argument("-o", "--out", type=Path, required=True, help="unit file; the choices go beside it as .tsv")
    one.add_argument("--random", type=int, metavar="SEED", help="copy any training target: the control")
    other = commands.add_parser("whisper-translate", help="English texts of a pretrained recogniser-translator")
    other.add_argument("manifest", type=Path)
    other.add_argument("-o", "--out", type=Path, required=True, help="manifest with the translations as texts")
    other.add_argument("--recognizer", default="whisper-base", help="whisper-base or a CTranslate2 folder")
    other.add_argument("--threads", type=int, default=1)
    return top


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    given = parser().parse_args(words)
    try:
        if given.command == "copy":
            paths = (given.train_source_units, given.train_target_units, given.test_source_units)
            apart = [one.distance for one in copy(*paths, given.out, seed=given.random)]
            console.print(
                f"{given.out}: {len(apart)} utterances, mean distance {np.mean(apart or [0]):.3f}", soft_wrap=True
            )
        else:
            rows = list(read_manifest(given.manifest))
            judge = Recognizer.load(given.recognizer, threads=given.threads)
            bar = track(rows, "translating", console=console)
            count = write_manifest(given.out, translated(bar, judge))
            console.print(f"{given.out}: {count} utterances by {judge.signature}", soft_wrap=True)
    except (ValueError, OSError) as error:
        console.print(f"baselines.py: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Choose who is converted into whom: pairs of recordings for `unitkit convert` and `unitkit score conversions`.

Every source voice and every reference voice comes as often as the others, never with itself; a reference speaks at
least --reference-seconds and may speak another language.  OUT gets source.jsonl and reference.jsonl with one id a pair:
the source's, "--" and the reference's voice.

Examples:
  python recipes/conversions.py exp/pairs/unseen --sources prompts/test.jsonl --references made/test.jsonl -n 60
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from unitkit.manifest import Utterance, read_manifest, write_manifest

Pair = tuple[Utterance, Utterance]


class PairsError(ValueError):
    """Too few recordings to choose from."""


def by_voice(rows: Sequence[Utterance], draw: random.Random) -> dict[str, list[Utterance]]:
    """Rows of each voice in random order, voices sorted."""
    found: dict[str, list[Utterance]] = {}
    for row in sorted(rows, key=lambda row: row.id):
        found.setdefault(row.speaker or "", []).append(row)
    for some in found.values():
        draw.shuffle(some)
    return dict(sorted(found.items()))


def choose(sources: Sequence[Utterance], references: Sequence[Utterance], count: int, *, seed: int) -> list[Pair]:
    """`count` pairs; voices take turns, and so do the recordings of each."""
    draw = random.Random(seed)
    said, heard = (by_voice(rows, draw) for rows in (sources, references))
    if not said or not heard:
        raise PairsError(f"{len(sources)} sources and {len(references)} references are left: loosen the limits")
    if len(said.keys() | heard.keys()) < 2:
        raise PairsError(f"all recordings are of one voice, {next(iter(said))!r}: nothing to convert into")
    speaking = {voice: cycle(rows) for voice, rows in said.items()}
    listened = {voice: cycle(rows) for voice, rows in heard.items()}
    voices = [(a, b) for a in said for b in heard if a != b]
    draw.shuffle(voices)
    pairs: dict[str, Pair] = {}
    for a, b in cycle(voices):
        if len(pairs) >= count:
            break
        source, reference = next(speaking[a]), next(listened[b])
        name = f"{source.id}--{b}"
        if name in pairs:
            raise PairsError(f"{len(pairs)} pairs, then {name} comes again: ask for fewer than {count}")
        pairs[name] = replace(source, id=name), replace(reference, id=name)
    return sorted(pairs.values(), key=lambda pair: pair[0].id)


def usable(row: Utterance, *, seconds: tuple[float, float], words: int) -> bool:
    """Whether a row has so many words, and lasts so long."""
    return seconds[0] <= (row.duration or 0.0) <= seconds[1] and len((row.text or "").split()) >= words


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sources", type=Path, nargs="+", required=True, help="manifests of what is said")
    parser.add_argument("--references", type=Path, nargs="+", required=True, help="manifests of voices")
    parser.add_argument("-n", type=int, default=60, help="pairs")
    parser.add_argument("--seconds", type=float, nargs=2, default=(1.5, 8.0), help="shortest and longest source")
    parser.add_argument("--words", type=int, default=3, help="fewest words of a source")
    parser.add_argument("--reference-seconds", type=float, default=2.5, help="shortest reference")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    sources, references = (
        [row for path in paths for row in read_manifest(path)] for paths in (given.sources, given.references)
    )
    pairs = choose(
        [row for row in sources if usable(row, seconds=tuple(given.seconds), words=given.words)],
        [row for row in references if usable(row, seconds=(given.reference_seconds, 30.0), words=0)],
        given.n,
        seed=given.seed,
    )
    write_manifest(given.out / "source.jsonl", (source for source, _ in pairs))
    write_manifest(given.out / "reference.jsonl", (reference for _, reference in pairs))
    voices = {reference.speaker for _, reference in pairs}
    print(f"{given.out}: {len(pairs)} pairs, into {len(voices)} voices", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

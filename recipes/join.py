"""Join manifests into one.  Paths go on pointing at the same recordings; an id in two of them is an error.

Examples:
  python recipes/join.py data/train.jsonl prompts/train.jsonl made/train.jsonl
  python recipes/join.py data/some.jsonl data/train.jsonl --every 4          every fourth row
  python recipes/join.py data/en.jsonl made/test.jsonl --lang en             one language
  python recipes/join.py data/unseen.jsonl data/test.jsonl --speaker p225    one speaker; --without leaves one out
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from unitkit.manifest import Utterance, read_manifest, write_manifest


def joined(
    paths: Sequence[Path],
    *,
    every: int = 1,
    langs: Sequence[str] = (),
    speakers: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Iterator[Utterance]:
    """Rows of all manifests in their order, every `every`-th from the first of those that are wanted.

    Wanted are those of `langs` and `speakers`, where any are given, but for the speakers in `without`.
    """
    rows = (
        row
        for path in paths
        for row in read_manifest(path)
        if (not langs or row.lang in langs) and (not speakers or row.speaker in speakers) and row.speaker not in without
    )
    return islice(rows, 0, None, every)


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--every", type=int, default=1, help="keep one row of so many")
    parser.add_argument("--lang", action="append", default=[], help="keep this language; may be given again")
    parser.add_argument("--speaker", action="append", default=[], help="keep this speaker; may be given again")
    parser.add_argument("--without", action="append", default=[], help="leave this speaker out; may be given again")
    given = parser.parse_args(words)
    if given.every < 1:
        parser.error(f"--every {given.every}: at least 1")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = joined(given.manifests, every=given.every, langs=given.lang, speakers=given.speaker, without=given.without)
    count = write_manifest(given.out, rows)
    print(f"{given.out}: {count} utterances", file=sys.stderr)
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

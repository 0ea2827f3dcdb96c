"""Show translations in words: what was said, what it means, what the model wrote, what a recogniser hears in it.

Examples:
  python recipes/read_back.py exp/es-en/synth/pretrained --source data/es-en/test.source.jsonl \\
      --target data/es-en/test.target.jsonl --n 5
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics.recognise import Recognizer


def chosen(rows: Sequence[Utterance], n: int, *, min_words: int = 4) -> list[Utterance]:
    """`n` rows spread evenly over those of `min_words` or more, in their order; nobody picks them."""
    long = [row for row in rows if len((row.text or "").split()) >= min_words]
    count = min(n, len(long))
    return [long[(2 * i + 1) * len(long) // (2 * count)] for i in range(count)]


def table(directory: Path, source: Path, target: Path, *, n: int, recognizer: str) -> str:
    """A markdown table of `n` translations."""
    spoken = {row.id: row for row in read_manifest(directory / "manifest.jsonl")}
    said = {row.id: row.text or "" for row in read_manifest(source)}
    rows = [row for row in read_manifest(target) if row.id in spoken and row.id in said]
    hear = Recognizer.load(recognizer)
    lines = ["| said | meaning | model's text | recogniser on its speech |", "|---|---|---|---|"]
    for row in chosen(rows, n):
        made = spoken[row.id]
        heard = hear(made.audio, lang=row.lang)
        lines.append("| " + " | ".join([said[row.id], row.text or "", made.text or "–", heard]) + " |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="what `unitkit translate` made")
    parser.add_argument("--source", type=Path, required=True, help="manifest of what was said")
    parser.add_argument("--target", type=Path, required=True, help="manifest with the same in the target language")
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--recognizer", default="auto")
    given = parser.parse_args(words)
    try:
        print(table(given.directory, given.source, given.target, n=given.n, recognizer=given.recognizer))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"read_back.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

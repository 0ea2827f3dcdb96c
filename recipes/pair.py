"""Pair recordings of two languages that say the same: two manifests with the same ids, a parallel corpus.

What a recording says is named by its id, once the parts that name its language and its voice are taken off and slashes
are dots: the prompts es/digits/1 and en/digits/1, and the made en/af_heart/digits.1, are partners.  A source pairs with
every target of its name; the id of a pair is the source's, with @voice of the target where there are several.

Examples:
  python recipes/pair.py -o data/test --source es/test.jsonl --target en/test.jsonl
  python recipes/pair.py -o data/train --source es/train.jsonl made/es/manifest.jsonl \\
      --target en/train.jsonl made/en/manifest.jsonl --max-seconds 15 --forbid es/test.jsonl en/test.jsonl
"""

import argparse
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest
from unitkit.text import plain

Pair = tuple[Utterance, Utterance]  # source and target, of one id


@dataclass(frozen=True)
class Wanted:
    """Which pairs are kept: words of the target's text, seconds of the longer side, texts that neither side may say."""

    min_words: int = 0
    max_seconds: float = 0.0  # 0 = any
    forbidden: frozenset[str] = frozenset()  # as said() gives them

    def refuses(self, pair: Pair) -> str:
        """Why a pair is left out, or ""."""
        texts = [said(row.text or "") for row in pair]
        if self.forbidden.intersection(texts) - {""}:
            return "says a forbidden text"
        if self.max_seconds and any(_seconds(row) > self.max_seconds for row in pair):
            return f"longer than {self.max_seconds:g} s"
        if len(texts[1].split()) < self.min_words:
            return f"under {self.min_words} words"
        return ""


@dataclass
class Paired:
    """Pairs in the order of the sources, ids without a partner, and how many pairs were left out for which reason."""

    pairs: list[Pair] = field(default_factory=list)
    lonely_sources: list[str] = field(default_factory=list)
    lonely_targets: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def said(text: str) -> str:
    """Plain words without their accents, which transcripts are not of one mind about."""
    letters = unicodedata.normalize("NFD", plain(text))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def name_of(row: Utterance) -> str:
    """What a recording says, by name: its id without language and voice."""
    parts = row.id.split("/")
    for known in (row.lang, row.speaker):
        if len(parts) > 1 and parts[0] == known:
            parts = parts[1:]
    return ".".join(parts)


def pair(sources: Iterable[Utterance], targets: Iterable[Utterance], wanted: Wanted, *, first: bool = False) -> Paired:
    """Join by name; with `first` a source takes only the first target of its name."""
    by_name: dict[str, list[Utterance]] = {}
    for target in targets:
        by_name.setdefault(name_of(target), []).append(target)
    out, met = Paired(), set[str]()
    for source in sources:
        found = by_name.get(name_of(source), [])
        met.update(target.id for target in found)
        if not found:
            out.lonely_sources.append(source.id)
        for made in _with_ids(source, found[:1] if first else found):
            if reason := wanted.refuses(made):
                out.left_out[reason] += 1
            else:
                out.pairs.append(made)
    out.lonely_targets = [target.id for group in by_name.values() for target in group if target.id not in met]
    return out


def _with_ids(source: Utterance, targets: Sequence[Utterance]) -> Iterator[Pair]:
    voices = Counter(target.speaker for target in targets)
    for target in targets:
        if voices[target.speaker] > 1:
            same = ", ".join(one.id for one in targets if one.speaker == target.speaker)
            raise ManifestError(f"{source.id} has several partners of voice {target.speaker}: {same}; give --first")
        id_ = source.id if len(targets) == 1 else f"{source.id}@{target.speaker}"
        yield replace(source, id=id_), replace(target, id=id_)


def _seconds(row: Utterance) -> float:
    if row.duration is None:
        raise ManifestError(f"{row.audio} has no duration, which --max-seconds needs (recipes/prepare.py adds it)")
    return row.duration


def main(words: Sequence[str]) -> int:
    """Command line; returns 0, 1 when there is no pair, 2 when the manifests cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", required=True, help="OUT.source.jsonl and OUT.target.jsonl are written")
    parser.add_argument("--source", type=Path, nargs="+", required=True, help="manifests")
    parser.add_argument("--target", type=Path, nargs="+", required=True, help="manifests")
    parser.add_argument("--first", action="store_true", help="one pair a source: with the first target of its name")
    parser.add_argument("--min-words", type=int, default=0, help="of the target's text")
    parser.add_argument("--max-seconds", type=float, default=0.0, help="of either side; 0 = any (the default)")
    parser.add_argument(
        "--forbid", type=Path, nargs="+", default=[], help="manifests of what no side may say: test sets"
    )
    given = parser.parse_args(words)
    try:
        forbidden = frozenset(said(row.text) for row in _rows(given.forbid) if row.text)
        wanted = Wanted(given.min_words, given.max_seconds, forbidden)
        found = pair(_rows(given.source), _rows(given.target), wanted, first=given.first)
        for side, name in enumerate(("source", "target")):
            write_manifest(f"{given.out}.{name}.jsonl", (both[side] for both in found.pairs))
    except (ValueError, OSError) as error:
        print(f"pair.py: {error}", file=sys.stderr)
        return 2
    _report(found, given.out)
    return 0 if found.pairs else 1


def _rows(paths: Sequence[Path]) -> Iterator[Utterance]:
    return (row for path in paths for row in read_manifest(path))


def _report(found: Paired, out: str) -> None:
    minutes = [sum(both[side].duration or 0.0 for both in found.pairs) / 60 for side in (0, 1)]
    print(f"{out}: {len(found.pairs)} pairs, {minutes[0]:.1f} and {minutes[1]:.1f} min", file=sys.stderr)
    for reason, count in found.left_out.most_common():
        print(f"left out, {reason}: {count}", file=sys.stderr)
    for side, lonely in (("source", found.lonely_sources), ("target", found.lonely_targets)):
        some = f" ({', '.join(lonely[:4])}{', ...' if len(lonely) > 4 else ''})" if lonely else ""
        print(f"{side} without a partner: {len(lonely)}{some}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Choose the few minutes of prepared prompts that are shipped in samples/.

Example (the languages are prepared first with recipes/prepare.py prompts downloads data/<lang> lang=<lang>):
  python tools/make_samples.py samples data/en=6.5 data/es=3
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest

HELD_OUT = {"test": 16, "dev": 6}  # prompts per language; the rest of the minutes is train
SECONDS = (1.0, 12.0)
LEAST_WORDS = 2


def suits(utterance: Utterance) -> bool:
    """Return whether a prompt is long enough to be heard as speech and short enough to train on."""
    words = len((utterance.text or "").split())
    return words >= LEAST_WORDS and SECONDS[0] <= (utterance.duration or 0.0) <= SECONDS[1]


def prompt_name(utterance: Utterance) -> str:
    """Return the name that a prompt has in every language: the id without "<lang>/"."""
    return utterance.id.partition("/")[2]


def spoken(utterance: Utterance) -> str:
    """Return the words alone, lower-cased."""
    return " ".join(re.findall(r"\w+", (utterance.text or "").lower()))


def unseen(splits: dict[str, list[Utterance]]) -> dict[str, list[Utterance]]:
    """Drop held-out prompts whose words are also a train prompt: a few exist in two takes under two names."""
    trained = {spoken(row) for row in splits["train"]}
    return {s: [row for row in rows if s == "train" or spoken(row) not in trained] for s, rows in splits.items()}


def rank(utterances: Iterable[Utterance], *, shared: set[str]) -> list[Utterance]:
    """Order prompts: those that all languages have first, then by a hash of the name, the same in each language."""
    return sorted(
        utterances, key=lambda u: (prompt_name(u) not in shared, hashlib.sha256(prompt_name(u).encode()).digest())
    )


def choose(splits: dict[str, list[Utterance]], *, minutes: float, shared: set[str]) -> dict[str, list[Utterance]]:
    """Pick HELD_OUT prompts of test and dev, then train prompts until `minutes` are full, each in its own split."""
    ranked = {split: rank(filter(suits, rows), shared=shared) for split, rows in splits.items()}
    chosen = {split: ranked[split][:count] for split, count in HELD_OUT.items()}
    seconds = sum(row.duration or 0.0 for rows in chosen.values() for row in rows)
    train = []
    for row in ranked["train"]:
        if seconds >= minutes * 60:
            break
        train.append(row)
        seconds += row.duration or 0.0
    return {split: sorted(rows, key=lambda row: row.id) for split, rows in {"train": train, **chosen}.items()}


def read_splits(folder: Path) -> dict[str, list[Utterance]]:
    """Return the prepared manifests of one language by split."""
    return {split: list(read_manifest(folder / f"{split}.jsonl")) for split in ("train", "dev", "test")}


def copy(chosen: dict[str, list[Utterance]], folder: Path) -> None:
    """Replace `folder` by the chosen recordings (byte for byte) and their manifests."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, rows in chosen.items():
        copied = []
        for row in rows:
            target = folder / "wav" / f"{prompt_name(row)}.flac"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(row.audio, target)
            copied.append(replace(row, audio=str(target)))
        write_manifest(folder / f"{split}.jsonl", copied)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, or 2 when a prepared folder cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the samples folder; <out>/<lang> is replaced")
    parser.add_argument("prepared", nargs="+", metavar="folder=minutes", help="prepared prompts of one language")
    given = parser.parse_args(argv)
    try:
        wanted = {
            Path(folder): float(minutes) for folder, _, minutes in (item.rpartition("=") for item in given.prepared)
        }
        data = {folder: unseen(read_splits(folder)) for folder in wanted}
    except (ManifestError, ValueError) as error:
        print(f"make_samples.py: {error}", file=sys.stderr)
        return 2
    names = [{prompt_name(u) for rows in splits.values() for u in rows if suits(u)} for splits in data.values()]
    for folder, splits in data.items():
        chosen = choose(splits, minutes=wanted[folder], shared=set.intersection(*names))
        lang = chosen["train"][0].lang or folder.name
        copy(chosen, given.out / lang)
        for split, rows in chosen.items():
            print(f"{lang} {split}: {len(rows)} prompts, {sum(row.duration or 0.0 for row in rows) / 60:.2f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())

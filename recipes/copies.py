"""Changed copies of recordings, for more speech to learn from: faster or slower, higher or lower, nothing else.

Every recording gets -n copies, each at a speed of 0.88 to 1.12 and, half of them, up to three semitones higher or
lower, drawn from --seed and the recording's id; OUT/manifest.jsonl has them under the ids "<id>~1" and so on, with the
texts and speakers of the recordings.  A copy that is there is not made again.

Examples:
  python recipes/copies.py data/train.jsonl -o data/copies -n 2
  python recipes/join.py data/more.jsonl data/train.jsonl data/copies/manifest.jsonl
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unitkit import audio
from unitkit.augment import Augment, augment
from unitkit.cli.show import progress
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.pipeline.speak import file_name
from unitkit.recording import read_speech

RATE = 16000
CHANGES = Augment(speed=1.0, speed_factor=(0.88, 1.12), pitch=0.5, reverb=0.0, noise=0.0, babble=0.0, gain=0.0)


def draw_of(row: Utterance, copy: int, seed: int) -> np.random.Generator:
    """What changes a copy is decided by: the same whatever else the manifest has."""
    digest = hashlib.sha256(f"{seed} {copy} {row.id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def make(row: Utterance, copy: int, out: Path, seed: int) -> Utterance:
    """Writes one copy, if it is not there, and returns its row."""
    name = f"{row.id}~{copy}"
    path = out / f"wav-{seed}" / f"{file_name(name)}.flac"
    if not path.exists():
        wav = augment(read_speech(row, RATE), RATE, draw_of(row, copy, seed), config=CHANGES)
        audio.write(path, wav, RATE)
    return replace(row, id=name, audio=str(path.resolve()), start=None, duration=audio.info(path).duration)


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code, 1 when a recording was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("-n", "--number", type=int, default=2, help="copies of each recording")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    if given.number < 1:
        parser.error(f"-n {given.number}: at least 1")
    rows, made, left = list(read_manifest(given.manifest)), [], []
    with progress("copies", len(rows)) as advance:
        for row in rows:
            try:
                made += [make(row, copy, given.out, given.seed) for copy in range(1, given.number + 1)]
            except (audio.AudioError, OSError, ValueError) as error:
                left.append(f"{row.id}: {error}")
            advance(1)
    for line in left:
        print(f"left out: {line}", file=sys.stderr)
    count = write_manifest(given.out / "manifest.jsonl", made)
    print(f"{given.out / 'manifest.jsonl'}: {count} copies of {len(rows) - len(left)} recordings", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

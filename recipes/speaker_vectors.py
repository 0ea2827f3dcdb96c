"""Speaker vectors of recordings, for models that take any voice: recipes/speaker_vectors.py ENCODER MANIFEST -o OUT.

ENCODER is the directory of a speaker encoder (recipes/train_speaker.py). A recording that cannot be heard is listed and
left out, with exit status 1. With --seconds there is one vector a speaker, of so much of what comes first, and --rest
takes the manifest of what comes after. --add keeps the voices of another file beside them.

Examples:
  python recipes/speaker_vectors.py exp/speaker data/train.jsonl -o exp/voices/train.safetensors
  python recipes/speaker_vectors.py exp/speaker data/test.jsonl -o exp/unseen.safetensors --seconds 8 --rest rest.jsonl
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unitkit import audio
from unitkit.cli.show import progress
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.recording import read_speech
from unitkit.tokenizer import pick_device
from unitkit.voices import SpeakerModel, Voices


def heard(
    encoder: SpeakerModel, utterances: Sequence[Utterance]
) -> tuple[dict[str, np.ndarray], list[tuple[Utterance, str]]]:
    """Vectors (dim,) by id, and what could not be heard, with the reason."""
    vectors, bad = {}, []
    with progress("listen", len(utterances)) as advance:
        for utterance in utterances:
            try:
                vectors[utterance.id] = encoder(read_speech(utterance, encoder.sample_rate))
            except (audio.AudioError, ValueError, OSError) as error:
                bad.append((utterance, str(error)))
            advance(1)
    return vectors, bad


def first_of_each(utterances: Sequence[Utterance], seconds: float) -> tuple[list[Utterance], list[Utterance]]:
    """The first recordings of every speaker until they last `seconds`, and the others."""
    had: dict[str, float] = {}
    first: list[Utterance] = []
    rest: list[Utterance] = []
    for utterance in utterances:
        if utterance.speaker is None:
            raise ValueError(f"{utterance.id}: no speaker is named; --seconds makes one voice of each speaker")
        enough = had.get(utterance.speaker, 0.0) >= seconds
        (rest if enough else first).append(utterance)
        if not enough:
            had[utterance.speaker] = had.get(utterance.speaker, 0.0) + (utterance.duration or 0.0)
    return first, rest


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    from unitkit.models.speaker import SpeakerEncoder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="one voice a speaker, of so much of the first speech")
    parser.add_argument("--rest", type=Path, help="with --seconds: where the manifest of the other recordings goes")
    parser.add_argument("--add", type=Path, help="other voices, kept beside these in the file")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(words)
    if given.rest and given.seconds is None:
        parser.error("--rest is what --seconds leaves: give both")
    rows = list(read_manifest(given.manifest))
    rows, rest = (rows, []) if given.seconds is None else first_of_each(rows, given.seconds)
    encoder = SpeakerEncoder.load(given.encoder, device=pick_device(given.device))
    vectors, bad = heard(encoder, rows)
    for utterance, why in bad:
        print(f"left out: {utterance.id}: {why}", file=sys.stderr)
    voices = Voices.of(vectors, encoder=encoder.checksum())
    if given.seconds is not None:
        groups: dict[str, list[str]] = {}
        for row in (one for one in rows if one.id in vectors):
            groups.setdefault(str(row.speaker), []).append(row.id)
        voices = voices.means(groups)
    if given.add:
        voices = Voices.load(given.add).with_more(voices)
    voices.save(given.out)
    if given.rest:
        given.rest.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(given.rest, rest)
    print(f"{given.out}: {len(voices)} voices of {voices.dim} numbers, encoder {voices.encoder}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

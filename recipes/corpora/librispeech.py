"""LibriSpeech: read English, 1000 hours, about 2500 speakers (openslr.org/12, CC BY 4.0), as it is unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unitkit.manifest import ManifestError, Utterance

KNOWN = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)


def utterances(root: Path, *, subsets: str = "") -> Iterator[tuple[str, Utterance]]:
    """Yield (split, utterance) of the subsets named (with commas), or of all that are there.

    The train-* subsets become "train", dev-clean "dev", test-clean "test"; dev-other and test-other keep their names.
    """
    root = Path(root)
    if not any((root / name).is_dir() for name in KNOWN) and (root / "LibriSpeech").is_dir():
        root = root / "LibriSpeech"  # the folder in which the archives unpack
    wanted = subsets.split(",") if subsets else [name for name in KNOWN if (root / name).is_dir()]
    if not wanted:
        raise ManifestError(f"{root}: none of the LibriSpeech folders is here: {', '.join(KNOWN)}")
    for subset in wanted:
        if subset not in KNOWN:
            raise ManifestError(f"subsets={subset}: unknown subset; known: {', '.join(KNOWN)}")
        if not (root / subset).is_dir():
            raise ManifestError(f"{root / subset}: no such directory; unpack {subset}.tar.gz there")
        for utterance in read_subset(root / subset):
            yield split_of(subset), utterance


def split_of(subset: str) -> str:
    """Return the split a subset belongs to; "other" stays apart from "clean", as results are quoted for each."""
    head, _, kind = subset.partition("-")
    return subset if head != "train" and kind == "other" else head


def read_subset(folder: Path) -> Iterator[Utterance]:
    """Yield the utterances of one subset: speaker/chapter/speaker-chapter.trans.txt and the FLAC files it lists."""
    for transcript in sorted(folder.glob("*/*/*.trans.txt")):
        for number, line in enumerate(transcript.read_text(encoding="utf-8").splitlines(), start=1):
            name, space, text = line.partition(" ")
            if not space:
                raise ManifestError(f"{transcript}:{number}: expected 'id TEXT', found {line[:60]!r}")
            audio = transcript.parent / f"{name}.flac"
            yield Utterance(id=name, audio=str(audio), speaker=name.split("-")[0], lang="en", text=text)

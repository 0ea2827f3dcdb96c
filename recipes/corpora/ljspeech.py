"""LJ Speech 1.1: one English reader, 24 hours (keithito.com/LJ-Speech-Dataset, public domain), as it is unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unitkit.manifest import ManifestError, Utterance, hash_split


def utterances(root: Path, *, dev: int = 1, test: int = 4, raw_text: bool = False) -> Iterator[tuple[str, Utterance]]:
    """Yield (split, utterance) in the order of metadata.csv; the split is a hash of the id, in percent.

    The text is the normalised column (numbers spelt out), or the raw one with raw_text=true.
    """
    root = Path(root)
    table = root / "metadata.csv"
    if not table.exists() and (root / "LJSpeech-1.1" / "metadata.csv").exists():
        table = root / "LJSpeech-1.1" / "metadata.csv"  # the folder in which the archive unpacks
    if not table.exists():
        raise ManifestError(f"{table}: no such file; give the folder LJSpeech-1.1 of the unpacked archive")
    # Not the csv module: some texts open a quote that they never close, which it would run over several rows.
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split("|")
        if len(columns) not in (2, 3):
            raise ManifestError(f"{table}:{number}: expected 'id|raw|normalised', found {line[:60]!r}")
        name, text = columns[0], columns[1] if raw_text else columns[-1]
        audio = table.parent / "wavs" / f"{name}.wav"
        utterance = Utterance(id=name, audio=str(audio), speaker="lj", lang="en", text=text)
        yield hash_split(name, dev=dev, test=test), utterance

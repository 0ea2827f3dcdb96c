"""Any folder of audio, with transcripts beside it or without: a.wav + a.txt, transcripts.tsv or metadata.csv."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from unitkit.manifest import ManifestError, Utterance, discover, hash_split

TABLES = {"transcripts.tsv": "\t", "metadata.csv": "|"}


def utterances(
    root: Path, *, lang: str = "", speaker: str = "", speaker_from_parent: bool = False, dev: int = 8, test: int = 12
) -> Iterator[tuple[str, Utterance]]:
    """Yield (split, utterance) for every audio file below `root`; the split is a hash of its path without suffix.

    A transcript is <name>.txt beside the file, or a row `name<TAB>text` / `name|text` of a table in `root`, where the
    name is the file's path below `root` or its last part, with or without suffix. `dev` and `test` are percentages.
    """
    root = Path(root)
    if not root.is_dir():
        raise ManifestError(f"{root}: no such directory")
    if speaker and speaker_from_parent:
        raise ManifestError(f"speaker={speaker} and speaker_from_parent=true: give one of them")
    texts = read_tables(root)
    for found in discover([root]):
        audio = Path(found.audio)
        named = replace(
            found,
            speaker=audio.parent.name if speaker_from_parent else speaker or None,
            lang=lang or None,
            text=transcript(audio, root=root, texts=texts),
        )
        yield hash_split(found.id, dev=dev, test=test), named


def read_tables(root: Path) -> dict[str, str]:
    """Return name -> text from the tables in `root`; where a row has more columns the last is the text."""
    texts: dict[str, str] = {}
    for name, separator in TABLES.items():
        path = root / name
        if not path.exists():
            continue
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            key, found, rest = line.partition(separator)
            if not found and line.strip():
                raise ManifestError(f"{path}:{number}: expected 'name{separator!r}text', found {line[:60]!r}")
            if key.strip():
                texts[key.strip()] = rest.split(separator)[-1].strip()
    return texts


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it, e.g. with iconv"
        ) from None


def transcript(audio: Path, *, root: Path, texts: dict[str, str]) -> str | None:
    """Return the text of one file: from the file beside it, else from the tables, else None."""
    beside = audio.with_suffix(".txt")
    if beside.exists():
        return " ".join(read_text(beside).split()) or None
    path = audio.relative_to(os.path.abspath(root))
    for name in (path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem):
        if name in texts:
            return texts[name] or None
    return None

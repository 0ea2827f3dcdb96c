"""VCTK 0.92 and 0.80: about 110 English readers of many accents, 44 hours (Edinburgh DataShare, CC BY 4.0)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from unitkit.manifest import ManifestError, Utterance, hash_split

LAYOUTS = {"wav48_silence_trimmed": "_{mic}.flac", "wav48": ".wav"}  # 0.92, 0.80


def utterances(
    root: Path,
    *,
    left_out: Callable[[str, str], None],
    mic: str = "mic1",
    accents: str = "",
    without_text: bool = False,
    dev: int = 3,
    test: int = 7,
) -> Iterator[tuple[str, Utterance]]:
    """Yield (split, utterance); the split is a hash of the sentence, in percent: test sentences are new in any voice.

    Speakers can be chosen by accent (`accents=English,Scottish`, after speaker-info.txt). Recordings without a
    transcript (all of p315) are left out, for their sentences may be test sentences; without_text=true trains on them.
    """
    root, folder = find(Path(root))
    if mic not in ("mic1", "mic2"):
        raise ManifestError(f"mic={mic}: unknown microphone; known: mic1, mic2")
    suffix = LAYOUTS[folder.name].format(mic=mic)
    chosen = speakers_by_accent(root, accents)
    for audio in sorted(folder.glob(f"*/*{suffix}")):
        name, speaker = audio.name.removesuffix(suffix), audio.parent.name
        if chosen is not None and speaker not in chosen:
            continue
        text = read_text(root / "txt" / speaker / f"{name}.txt")
        if text is None and not without_text:
            left_out(name, "no transcript")
            continue
        split = "train" if text is None else hash_split(sentence_key(text), dev=dev, test=test)
        yield split, Utterance(id=name, audio=str(audio), speaker=speaker, lang="en", text=text)


def find(root: Path) -> tuple[Path, Path]:
    """Return (the corpus folder, its folder of recordings), for either version."""
    for name in LAYOUTS:
        for top in (root, root / "VCTK-Corpus-0.92", root / "VCTK-Corpus"):
            if (top / name).is_dir():
                return top, top / name
    raise ManifestError(f"{root}: has neither {' nor '.join(LAYOUTS)}; give the folder of the unpacked archive")


def speakers_by_accent(root: Path, accents: str) -> set[str] | None:
    """Return the speakers with one of the accents (commas between), or None for all of them."""
    if not accents:
        return None
    wanted = {accent.strip().lower() for accent in accents.split(",")}
    found = read_accents(root / "speaker-info.txt")
    if unknown := wanted - {accent.lower() for accent in found.values()}:
        raise ManifestError(
            f"accents={', '.join(sorted(unknown))}: unknown; known: {', '.join(sorted(set(found.values())))}"
        )
    return {speaker for speaker, accent in found.items() if accent.lower() in wanted}


def read_accents(path: Path) -> dict[str, str]:
    """Return speaker -> accent from speaker-info.txt; version 0.80 leaves out the p of p225."""
    if not path.exists():
        raise ManifestError(f"{path}: no such file, needed to choose speakers by accent")
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {f"p{row[0]}" if row[0].isdigit() else row[0]: row[3] for row in rows if len(row) > 3}


def read_text(path: Path) -> str | None:
    """Return the transcript, or None where there is none."""
    return " ".join(path.read_text(encoding="utf-8").split()) or None if path.exists() else None


def sentence_key(text: str) -> str:
    """Return the words alone, lower-cased: the same sentence is punctuated differently for different speakers."""
    return " ".join(re.findall(r"[\w']+", text.lower()))

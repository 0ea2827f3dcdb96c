"""Fisher Spanish: 160 hours of telephone talk (LDC2010S01, LDC2010T04) with English translations by Post et al. 2013.

The translations and the splits are those of github.com/joshua-decoder/fisher-callhome-corpus.  English speech does not
come with it; recipes/manufacture.py speaks the translations, as the papers had them spoken.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unitkit import audio
from unitkit.manifest import ManifestError, Utterance, atomic_text

SPLITS = ("train", "dev", "dev2", "test")
SIDES = ("source", "target")
RATE = 8000
MARKUP = [(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]", " "), (r"[()+*/#]", "")]


@dataclass(frozen=True)
class Line:
    """One line of a transcript: who speaks when (seconds), and what."""

    channel: int
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Talk:
    """An utterance of the parallel corpus: lines of one call that were translated as one."""

    id: str
    call: str
    lines: tuple[Line, ...]
    translation: str

    @property
    def span(self) -> tuple[float, float]:
        """Seconds of the call, from the first line's start to the last one's end."""
        return min(line.start for line in self.lines), max(line.end for line in self.lines)


@dataclass(frozen=True)
class Parts:
    """Recordings and transcripts by call, and the folder of the translations (with mapping/ and corpus/ldc/)."""

    recordings: dict[str, Path]
    transcripts: dict[str, Path]
    translations: Path


def utterances(
    root: Path,
    *,
    out: Path,
    left_out: Callable[[str, str], None],
    side: str = "source",
    made: str = "",
    voice: str = "af_heart",
    longest: int = 30,
) -> Iterator[tuple[str, Utterance]]:
    """Yield (split, utterance) in the order of the mapping, ids the same on both sides; dev and test: reference 0.

    `root` holds LDC2010S01, LDC2010T04 and fisher-callhome-corpus, or what is in them. side=source cuts each utterance
    out of its channel into a file below `out`, and writes <out>/translations.jsonl for manufacture.py; side=target
    yields what that made in `voice`, in the folder `made`. Utterances over `longest` seconds are left out.
    """
    if side not in SIDES:
        raise ManifestError(f"side={side}: unknown side; known: {', '.join(SIDES)}")
    if side == "target" and not made:
        raise ManifestError(
            "side=target: give made=folder, where manufacture.py spoke translations.jsonl of the source"
        )
    parts, kept = find(Path(root)), []
    for split in SPLITS:
        for talk in read_split(split, parts):
            if reason := unusable(talk, longest=longest):
                left_out(talk.id, reason)
            else:
                kept.append((split, talk))
    if side == "target":
        yield from _spoken(kept, Path(made), voice, left_out)
        return
    with atomic_text(Path(out) / "translations.jsonl") as file:
        rows = ({"id": talk.id, "en": talk.translation} for _, talk in kept)
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for split, talk in kept:
        try:
            yield split, _cut(talk, parts, Path(out))
        except audio.AudioError as error:
            left_out(talk.id, error.reason)


def unusable(talk: Talk, *, longest: float) -> str:
    """Why an utterance is left out, or ""."""
    start, end = talk.span
    if not re.search(r"\w", talk.translation):
        return "no translation"
    if end - start > longest:
        return f"longer than {longest:g} s"
    return "no duration" if end <= start else ""


def _cut(talk: Talk, parts: Parts, out: Path) -> Utterance:
    if talk.call not in parts.recordings:
        raise audio.AudioError(f"{talk.call}.sph", "no such recording")
    start, end = talk.span
    channel, flac = talk.lines[0].channel, out / "wav" / talk.call / f"{talk.id}.flac"
    if not flac.exists():
        audio.write(
            flac,
            audio.read(parts.recordings[talk.call], RATE, start=start, duration=end - start, channel=channel),
            RATE,
        )
    text = " ".join(line.text for line in talk.lines if line.text)
    return Utterance(id=talk.id, audio=str(flac), speaker=f"{talk.call}-{'AB'[channel]}", lang="es", text=text or None)


def _spoken(
    talks: list[tuple[str, Talk]], made: Path, voice: str, left_out: Callable[[str, str], None]
) -> Iterator[tuple[str, Utterance]]:
    for split, talk in talks:
        flac = made / "wav" / "en" / voice / f"{talk.id}.flac"
        if flac.is_file():
            yield split, Utterance(id=talk.id, audio=str(flac), speaker=voice, lang="en", text=talk.translation)
        else:
            left_out(talk.id, f"not in {made}, voice {voice}")


# ---------------------------------------------------------------- the three parts


def find(root: Path) -> Parts:
    """Find the three parts anywhere below `root`: the archives of the LDC unpack in more than one way."""
    recordings, transcripts = ({path.stem: path for path in sorted(root.rglob(f"*.{end}"))} for end in ("sph", "tdf"))
    for found, what in ((recordings, ".sph recordings (LDC2010S01)"), (transcripts, ".tdf transcripts (LDC2010T04)")):
        if not found:
            raise ManifestError(f"{root}: no {what} below it; unpack or link them there")
    mapping = next(iter(sorted(root.rglob("mapping/fisher_train"))), None)
    if mapping is None:
        source = "https://github.com/joshua-decoder/fisher-callhome-corpus"
        raise ManifestError(f"{root}: no mapping/fisher_train below it; git clone {source} there")
    return Parts(recordings, transcripts, mapping.parents[1])


def read_split(split: str, parts: Parts) -> Iterator[Talk]:
    """Yield the utterances of a split: a line of the mapping names a call and lines of its transcript, as 12_14."""
    mapping = parts.translations / "mapping" / f"fisher_{split}"
    english = parts.translations / "corpus/ldc" / (f"fisher_{split}.en" + (".0" if split != "train" else ""))
    rows, texts = _lines(mapping), _lines(english)
    if len(rows) != len(texts):
        raise ManifestError(
            f"{mapping} has {len(rows)} lines, {english} {len(texts)}: they belong to different versions"
        )
    calls: dict[str, list[Line]] = {}
    for number, (row, text) in enumerate(zip(rows, texts, strict=True), start=1):
        match = re.fullmatch(r"(\S+) (\d+(?:_\d+)*)", row.strip())
        if not match:
            raise ManifestError(f"{mapping}:{number}: expected 'call line_line', found {row[:60]!r}")
        call, wanted = match[1], [int(part) for part in match[2].split("_")]
        if call not in calls:
            if call not in parts.transcripts:
                raise ManifestError(f"{mapping}:{number}: there is no transcript {call}.tdf")
            calls[call] = read_transcript(parts.transcripts[call])
        if not 1 <= min(wanted) <= max(wanted) <= len(calls[call]):
            raise ManifestError(f"{mapping}:{number}: {call} has {len(calls[call])} lines, {match[2]} was asked for")
        yield Talk(f"{call}-{match[2]}", call, tuple(calls[call][i - 1] for i in wanted), clean(text))


def read_transcript(path: Path) -> list[Line]:
    """Read a .tdf: a header, notes that begin with ;;MM, and lines `file channel start end speaker … transcript …`."""
    found = []
    for number, line in enumerate(_lines(path), start=1):
        if ";;MM" in line or line.startswith("file;unicode"):
            continue
        columns = line.split("\t")
        try:
            found.append(Line(int(columns[1]), float(columns[2]), float(columns[3]), clean(columns[7])))
        except (IndexError, ValueError) as error:
            raise ManifestError(f"{path}:{number}: expected tab-separated columns, found {line[:60]!r}") from error
    return found


def clean(text: str) -> str:
    """Words without markup: tags, braces, brackets with what is in them, and signs of unclear or broken words."""
    for pattern, instead in MARKUP:
        text = re.sub(pattern, instead, text)
    return " ".join(text.split())


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ManifestError(f"{path}: no such file")
    # Only a line feed ends a line, and an empty line is one: the texts are joined by their line numbers.
    return [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")]

"""Weak supervision: texts in the target language for speech that has no translation, to be spoken and encoded.

Speech of one language -> text of the other, by Whisper (into English only), or by any translator of texts whose output
is at hand (--texts: rows of id and text).  What is plainly wrong is dropped: nothing said, the same few words over and
over, the same text for many recordings, a length that cannot be a translation's.  The rest is for
`manufacture.py --texts OUT --each 1`, whose speech `pair.py` joins with the recordings.  A run that was stopped goes
on where it was: what Whisper heard is kept in OUT.<recognizer>.heard.

Examples:
  python recipes/weak.py asr/es.jsonl -o weak.jsonl --target en
  python recipes/weak.py asr/fr.jsonl -o weak.jsonl --target es --texts translated.jsonl
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from unitkit.audio import AudioError
from unitkit.manifest import ManifestError, Utterance, atomic_text, read_manifest
from unitkit.metrics.recognise import RATE, Recognizer
from unitkit.recording import read_speech
from unitkit.text import plain

LOOP = re.compile(r"\b(\w.*?)(?: \1\b){3,}")  # something said four times and more without a pause


@dataclass(frozen=True)
class Limits:
    """What a translation can be: its letters over those of the text or by second of the speech, how often it occurs."""

    ratio: float = 2.5  # longer or shorter than the speaker's own text by at most so much
    slowest: float = 3.0  # letters a second, where the speaker's own text is unknown
    fastest: float = 30.0
    most_same: int = 3  # recordings with one text; more is what a recogniser says to noise


def doubt(row: Utterance, text: str, limits: Limits) -> str:
    """Why a text cannot be the translation of a recording, or ""."""
    said, own = plain(text), plain(row.text or "")
    if not re.search(r"\w", said):
        return "nothing said"
    if LOOP.search(said):
        return "says the same over and over"
    if own and not 1 / limits.ratio <= len(said) / len(own) <= limits.ratio:
        return f"over {limits.ratio:g} times longer or shorter than what it translates"
    if not own and row.duration and not limits.slowest <= len(said) / row.duration <= limits.fastest:
        return f"not {limits.slowest:g} to {limits.fastest:g} letters a second"
    return ""


def texts_to_say(
    rows: Sequence[Utterance], translations: Mapping[str, str], target: str, limits: Limits
) -> tuple[list[dict[str, str]], Counter[str]]:
    """Rows {"id", source language: own text, target: translation} for manufacture.py; and what was left out and why.

    The id is the recording's without its language, as pair.py names it.
    """
    often = Counter(plain(text) for text in translations.values())
    kept, left = [], Counter[str]()
    for row in rows:
        if row.lang == target:
            raise ManifestError(f"{row.id} is of the target language {target} already")
        text = " ".join(translations.get(row.id, "").split())
        reason = "no translation" if row.id not in translations else doubt(row, text, limits)
        if not reason and often[plain(text)] > limits.most_same:
            reason = f"the same text for over {limits.most_same} recordings"
        if reason:
            left[reason] += 1
            continue
        own = {row.lang: " ".join(row.text.split())} if row.lang and row.text else {}
        kept.append({"id": row.id.removeprefix(f"{row.lang}/").replace("/", "."), **own, target: text})
    return kept, left


def read_texts(path: Path) -> dict[str, str]:
    """Texts by id, of JSON rows that have both; a manifest with translations as texts is one."""
    texts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line) if line.strip() else {"id": "", "text": ""}
        if not isinstance(row, dict) or "id" not in row:
            raise ManifestError(f"{path}:{number}: expected a row with id and text, found {line[:60]!r}")
        texts[str(row["id"])] = str(row.get("text") or "")
    return {name: text for name, text in texts.items() if name}


def heard(
    rows: Sequence[Utterance], translate: Callable[[Utterance], str], log: Path, console: Console
) -> dict[str, str]:
    """Translations by id; each is added to `log` at once, and not made again. Recordings that fail are named."""
    known = read_texts(log) if log.exists() else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        for row in track(rows, "translating", console=console, transient=True):
            if row.id in known:
                continue
            try:
                known[row.id] = translate(row)
            except AudioError as error:
                console.print(f"bad file skipped: {error}", style="red", markup=False, soft_wrap=True)
                continue
            file.write(json.dumps({"id": row.id, "text": known[row.id]}, ensure_ascii=False) + "\n")
            file.flush()
    return known


def whisper(name: str, *, threads: int) -> Callable[[Utterance], str]:
    """Whisper as a translator into English."""
    recognizer = Recognizer.load(name, threads=threads)
    return lambda row: recognizer(read_speech(row, RATE), lang=row.lang, task="translate")


def _translations(given: argparse.Namespace, rows: Sequence[Utterance], console: Console) -> dict[str, str]:
    if given.texts:
        return read_texts(given.texts)
    if given.target != "en":
        raise ManifestError(f"--target {given.target}: Whisper translates into en only; give --texts")
    log = given.out.with_name(f"{given.out.name}.{Path(given.recognizer).name}.heard")
    return heard(rows, whisper(given.recognizer, threads=given.threads), log, console)


def main(words: Sequence[str]) -> int:
    """Command line; returns 0, 1 when nothing is left, 2 when nothing could be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="speech, with its own texts where they are known")
    parser.add_argument("-o", "--out", type=Path, required=True, help="rows for manufacture.py --texts")
    parser.add_argument("--target", required=True, help="language of the translations")
    parser.add_argument("--texts", type=Path, help="translations by id, instead of Whisper's")
    parser.add_argument("--recognizer", default="whisper-base", help="whisper-base or a CTranslate2 folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ratio", type=float, default=Limits.ratio, help="longest translation over what it translates")
    parser.add_argument("--most-same", type=int, default=Limits.most_same, help="recordings that may share a text")
    given = parser.parse_args(words)
    console = Console(stderr=True, highlight=False)
    try:
        rows = list(read_manifest(given.manifest))
        limits = Limits(ratio=given.ratio, most_same=given.most_same)
        kept, left = texts_to_say(rows, _translations(given, rows, console), given.target, limits)
        with atomic_text(given.out) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    except (ValueError, RuntimeError, OSError) as error:
        console.print(f"weak.py: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    for line in _summary(given.out, rows, kept, left):
        console.print(line, markup=False, soft_wrap=True)
    return 0 if kept else 1


def _summary(out: Path, rows: Sequence[Utterance], kept: Sequence[dict[str, str]], left: Counter[str]) -> Iterator[str]:
    yield f"{out}: {len(kept)} of {len(rows)} recordings have a text to say"
    for reason, count in left.most_common():
        yield f"left out, {reason}: {count}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

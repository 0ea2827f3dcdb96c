"""Align English speech with its text: when each phone starts and ends, as the table `unitkit.metrics.alignments` reads.

    pip install 'unitkit[align]'
    python recipes/align_prompts.py data/en/test.jsonl exp/phones.tsv

The aligner is pocketsphinx with the US English model and dictionary that its package brings: no download.  A recording
that one setting cannot align is tried with the next of `LADDER`; the rest are named and left out.  On speech with known
times (flite) its boundaries are 9 to 10 ms off in the median, and 81 to 90 % lie within 20 ms.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest
from unitkit.metrics.alignments import Phone, write_alignments

RATE = 16_000  # samples a second that the model wants
FRAMES = 100  # frames a second that it counts in


@dataclass(frozen=True)
class Setting:
    """One way to align: cepstral mean of the whole recording ("batch") or running ("live"), beams, silence around."""

    cmn: str
    beam: float | None = None  # None: pocketsphinx's own, which aligns more than wider ones
    pad_s: float = 0.0


# The first aligns 517 of 552 prompts by itself, the others fewer; they are for what it leaves.
LADDER = (
    Setting("batch"),
    Setting("live"),
    Setting("batch", beam=1e-80),
    Setting("batch", pad_s=0.2),
    Setting("live", beam=1e-80, pad_s=0.2),
)

# Words of the prompts that CMUdict lacks, misspellings included as they are spoken.
WORDS = {
    "backtick": "B AE K T IH K",
    "caret": "K EH R AH T",
    "dahdi": "D AA D IY",
    "digium": "D IH JH IY AH M",
    "exclaimation": "EH K S K L AH M EY SH AH N",
    "forevermore": "F ER EH V ER M AO R",
    "fourtieth": "F AO R T IY AH TH",
    "iax": "AY EY EH K S",
    "indentified": "AY D EH N T AH F AY D",
    "ivr": "AY V IY AA R",
    "lowercase": "L OW ER K EY S",
    "mgcp": "EH M JH IY S IY P IY",
    "pbx": "P IY B IY EH K S",
    "prepend": "P R IY P EH N D",
    "prepending": "P R IY P EH N D IH NG",
    "represenatives": "R EH P R AH Z EH N T AH T IH V Z",
    "rerecord": "R IY R IH K AO R D",
    "semicolon": "S EH M IY K OW L AH N",
    "touchtone": "T AH CH T OW N",
    "umute": "AH N M Y UW T",
    "undelete": "AH N D IH L IY T",
    "undeleted": "AH N D IH L IY T IH D",
    "unistim": "Y UW N AH S T IH M",
    "unmute": "AH N M Y UW T",
    "unmuted": "AH N M Y UW T IH D",
    "uppercase": "AH P ER K EY S",
    "waldo's": "W AO L D OW Z",
    "witheld": "W IH TH HH EH L D",
    "www": "D AH B AH L Y UW D AH B AH L Y UW D AH B AH L Y UW",
    "xray": "EH K S R EY",
}

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPOKEN = {"*": "star", "#": "pound", "&": "and", "%": "percent", "@": "at"}


class AlignError(ValueError):
    """A recording that cannot be aligned, or a program that is not there."""


@dataclass
class Report:
    """How many recordings each setting aligned, and which failed, with the reason."""

    by_setting: dict[Setting, int] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)


def words(text: str) -> list[str]:
    """Words as the dictionary spells them: lower case, single digits and signs as they are spoken.

    Longer numbers raise AlignError: 500 may be "five hundred" or "five oh oh".
    """
    text = text.lower().replace("’", "'")
    if number := re.search(r"\d[\d.,]*\d", text):
        raise AlignError(f"the text has the number {number[0]}; write it in words, as it is spoken")
    text = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
    text = re.sub(r"[*#&%@]", lambda sign: f" {SPOKEN[sign[0]]} ", text)
    return [word for part in re.findall(r"[a-z']+", text) if (word := part.strip("'"))]


class Aligner:
    """pocketsphinx with one decoder a setting, made at its first use."""

    def __init__(self) -> None:
        try:
            import pocketsphinx
        except ModuleNotFoundError as error:
            raise AlignError("pocketsphinx is not installed; pip install 'unitkit[align]'") from error
        self._library: Any = pocketsphinx
        self._decoders: dict[Setting, Any] = {}

    def __call__(self, wav: np.ndarray, text: str) -> tuple[list[Phone], Setting]:
        """Phones of a recording (samples,) at 16 kHz, and the setting that found them."""
        spoken, why = words(text), ""
        if not spoken:
            raise AlignError("no words in the text")
        for setting in LADDER:
            try:
                return self._align(wav, spoken, setting), setting
            except RuntimeError as error:  # what pocketsphinx raises where a pass ends nowhere
                why = str(error)
        raise AlignError(f"none of {len(LADDER)} settings aligns it ({why})")

    def _align(self, wav: np.ndarray, spoken: list[str], setting: Setting) -> list[Phone]:
        decoder = self._decoder(setting)
        if unknown := [word for word in spoken if decoder.lookup_word(word) is None]:
            raise AlignError(f"not in the dictionary: {', '.join(unknown)}; add them to WORDS in {__file__}")
        pad = np.zeros(round(setting.pad_s * RATE), dtype=np.float32)
        samples = np.concatenate([pad, wav, pad])
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        decoder.set_align_text(" ".join(spoken))
        _decode(decoder, pcm)
        decoder.set_alignment()  # a second pass, for the phones inside the words
        _decode(decoder, pcm)
        alignment = decoder.get_alignment()
        if alignment is None:
            raise RuntimeError("no alignment")
        return _phones(alignment, shift=setting.pad_s, end=len(wav) / RATE)

    def _decoder(self, setting: Setting) -> Any:
        if setting not in self._decoders:
            beams = {name: setting.beam for name in ("beam", "wbeam", "pbeam")} if setting.beam else {}
            decoder = self._library.Decoder(lm=None, cmn=setting.cmn, loglevel="FATAL", **beams)
            for word, spelling in WORDS.items():
                if decoder.lookup_word(word) is None:
                    decoder.add_word(word, spelling, update=False)
            self._decoders[setting] = decoder
        return self._decoders[setting]


def _decode(decoder: Any, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def _phones(alignment: Any, *, shift: float, end: float) -> list[Phone]:
    """Phones in seconds of the recording without the padding: cut to it, empty ones left out."""
    found = []
    for word in alignment:
        for entry in word:
            start = max(entry.start / FRAMES - shift, 0.0)
            stop = min((entry.start + entry.duration) / FRAMES - shift, end)
            if stop > start:
                found.append(Phone(round(start, 3), round(stop, 3), entry.name))
    if not any(not phone.silent for phone in found):
        raise RuntimeError("nothing but silence")
    return found


def aligned(utterances: Iterable[Utterance], report: Report) -> Iterator[tuple[str, list[Phone]]]:
    """(id, phones) of each utterance that can be aligned; `report` is filled on the way."""
    aligner = Aligner()
    for utterance in utterances:
        try:
            start, length = (utterance.start or 0.0), (utterance.duration if utterance.start is not None else None)
            wav = audio.read(utterance.audio, RATE, start=start, duration=length)
            phones, setting = aligner(wav, utterance.text or "")
        except (AlignError, audio.AudioError) as error:
            report.failed.append((utterance.id, str(error)))
            continue
        report.by_setting[setting] = report.by_setting.get(setting, 0) + 1
        yield utterance.id, phones


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, 1 when recordings were left out, 2 when nothing could be done."""
    parser = argparse.ArgumentParser(
        prog="align_prompts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="English recordings with their text (JSONL)")
    parser.add_argument("out", type=Path, help="the table to write: id, start, end, phone")
    given = parser.parse_args(argv)
    console, report = Console(stderr=True, highlight=False), Report()
    try:
        utterances = [one for one in read_manifest(given.manifest) if (one.lang or "en").startswith("en")]
        shown = track(utterances, "aligning", console=console, transient=True)
        written = write_alignments(given.out, aligned(shown, report))
    except (ValueError, OSError) as error:
        console.print(f"align_prompts.py: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    for setting, count in report.by_setting.items():
        console.print(f"{count} aligned with {setting}", markup=False)
    for id_, why in report.failed:
        console.print(f"left out: {id_}: {why}", style="red", markup=False, soft_wrap=True)
    console.print(f"{given.out}: {written} of {len(utterances)} recordings", markup=False, soft_wrap=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())

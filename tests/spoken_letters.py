"""Recordings that small models can learn to write down: each letter a tone, each space a burst of noise."""

from pathlib import Path

import numpy as np

from unitkit import audio
from unitkit.manifest import Utterance

RATE = 16_000
TONES = {"a": 300.0, "b": 700.0, "c": 1500.0, "d": 3200.0}  # Hz


def spoken(text: str, draw: np.random.Generator) -> np.ndarray:
    """A wav (samples,) that says `text`."""
    parts = [np.zeros(800)]
    for letter in text:
        n = int(draw.integers(1600, 2400))
        if letter == " ":
            parts.append(0.3 * draw.normal(size=n))
        else:
            parts.append(0.3 * np.sin(2 * np.pi * TONES[letter] * np.arange(n) / RATE + draw.uniform(0, 6)))
        parts.append(np.zeros(800))
    wav = np.concatenate(parts)
    return (wav + 0.002 * draw.normal(size=len(wav))).astype(np.float32)


def utterances(folder: Path, n: int, *, seed: int, langs: tuple[str, ...] = ("en",)) -> list[Utterance]:
    """`n` recordings in `folder`, of one to three words of one to three letters each."""
    draw, rows = np.random.default_rng(seed), []
    for index in range(n):
        words = [
            "".join(draw.choice(list(TONES), size=int(draw.integers(1, 4)))) for _ in range(int(draw.integers(1, 4)))
        ]
        path, text = folder / f"{seed}-{index}.wav", " ".join(words)
        wav = spoken(text, draw)
        audio.write(path, wav, RATE)
        lang = langs[index % len(langs)]
        rows.append(
            Utterance(f"{lang}/{seed}-{index}", str(path), len(wav) / RATE, speaker="tones", lang=lang, text=text)
        )
    return rows

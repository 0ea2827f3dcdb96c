"""Units drawn over a recording: the shape of its waveform and a strip of coloured blocks, as reports and pages show."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unitkit.units import Units


@dataclass(frozen=True)
class Block:
    """A run of one unit: `start` and `width` in percent of the time axis."""

    unit: int
    start: float
    width: float
    colour: str
    title: str


def flac_base64(wav: np.ndarray, rate: int) -> str:
    """Base64 of a 16-bit FLAC: lossless, half the size of wav, and every current browser plays it."""
    return _encoded(wav, rate, "FLAC")


def wav_base64(wav: np.ndarray, rate: int) -> str:
    """Base64 of a 16-bit wav, which everything opens."""
    return _encoded(wav, rate, "WAV")


def _encoded(wav: np.ndarray, rate: int, format: str) -> str:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1, 1), rate, format=format, subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()


def envelope(wav: np.ndarray, columns: int) -> str:
    """SVG path of the lowest and highest sample per column, in a box of `columns` by 200."""
    edges = np.linspace(0, len(wav), max(2, min(columns, len(wav))) + 1).astype(int)
    high = np.round(100 - 100 * np.maximum.reduceat(wav, edges[:-1])).astype(int)
    low = np.round(100 - 100 * np.minimum.reduceat(wav, edges[:-1])).astype(int)
    x = np.linspace(0, columns, len(high)).round(1)
    there = " ".join(f"{a:g} {b}" for a, b in zip(x, high, strict=True))
    back = " ".join(f"{a:g} {b}" for a, b in zip(x[::-1], low[::-1] + 1, strict=True))  # + 1: silence is a line too
    return f"M{there} {back}Z"


def strips(units: Units, seconds: float) -> list[list[Block]]:
    """Runs of equal units on a time axis of `seconds`, a list for each codebook."""
    books = units.ids[:, None] if units.ids.ndim == 1 else units.ids  # (frames, codebooks)
    return [list(_blocks(replace(units, ids=books[:, i]), i, seconds)) for i in range(books.shape[1])]


def _blocks(units: Units, codebook: int, seconds: float) -> Iterator[Block]:
    reduced, durations = units.dedup()
    start = 0
    for unit, frames in zip(reduced.ids.tolist(), durations.tolist(), strict=True):
        begin, end = start / units.rate_hz, (start + frames) / units.rate_hz
        title = f"unit {unit} · {begin:.2f}–{end:.2f} s · {frames} frame{'s' if frames > 1 else ''}"
        yield Block(unit, 100 * begin / seconds, 100 * (end - begin) / seconds, unit_colour(unit, codebook), title)
        start += frames


def unit_colour(unit: int, codebook: int = 0) -> str:
    """The CSS colour of a unit: the same on every page, neighbouring ids far apart, light enough for dark text."""
    hue = (unit * 0.618034 + codebook * 0.27) % 1 * 360
    return f"hsl({hue:.0f} {(48, 64, 36)[unit % 3]}% {(68, 80, 60)[unit // 3 % 3]}%)"

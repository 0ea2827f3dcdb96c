"""Distances between log-mel spectra, and the alignment (dynamic time warping) they are measured along.

Cepstra follow SPTK: ln|S| = c0 + sum c_k cos(k w), here with the mel axis as w.  Mel-cepstral distortion,
10/ln10 sqrt(2 sum (c_k - c'_k)^2), is then the RMS difference in dB of the two smoothed spectra, level left out.
"""

from dataclasses import dataclass

import numpy as np

from unitkit import audio
from unitkit.metrics.base import signature

RATE = 16_000  # everything is compared at this rate, whatever the recordings have
HOP = 160  # 10 ms
N_FFT = 1024
N_MELS = 80
N_CEPSTRA = 13
FLOOR = 1e-5
RADIUS = 2000  # frames (20 s): alignments of shorter recordings are exact, memory for long ones stays linear

MEL_SIGNATURE = signature("mel", {"rate": RATE, "mels": N_MELS, "hop": HOP, "log": "ln", "align": "dtw"})
MCD_SIGNATURE = signature(
    "mcd", {"rate": RATE, "mels": N_MELS, "hop": HOP, "cepstra": f"1-{N_CEPSTRA}", "unit": "dB", "align": "dtw"}
)


@dataclass(frozen=True)
class SpectralDistance:
    """Of one pair of recordings: mean L1 of log-mel (natural log) and mean MCD (dB) along `path` (steps, 2)."""

    mel: float
    mcd: float
    path: np.ndarray


def log_mel(wav: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz -> (frames, 80): natural log of mel magnitudes, a frame every 10 ms, floor 1e-5."""
    padded = np.pad(np.asarray(wav, dtype=np.float32), N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    magnitude = np.abs(np.fft.rfft(frames * window, axis=1)).astype(np.float32)
    filters = audio.mel_filters(RATE, n_fft=N_FFT, n_mels=N_MELS)
    return np.log(np.maximum(magnitude @ filters.T, FLOOR))


def mel_cepstra(logs: np.ndarray) -> np.ndarray:
    """(frames, mels) natural-log magnitudes -> (frames, 13): cepstra 1 to 13 of the mel axis, level (c0) left out."""
    n_mels = logs.shape[1]
    angles = np.pi * np.outer(np.arange(n_mels) + 0.5, np.arange(1, N_CEPSTRA + 1)) / n_mels
    return logs @ (2.0 / n_mels * np.cos(angles)).astype(logs.dtype)


def compare(synthesis: np.ndarray, original: np.ndarray) -> SpectralDistance:
    """Distances between two recordings (samples,) at 16 kHz along the path that aligns their mel-cepstra."""
    ours, theirs = log_mel(synthesis), log_mel(original)
    ours_cepstra, theirs_cepstra = mel_cepstra(ours), mel_cepstra(theirs)
    path = dtw(ours_cepstra, theirs_cepstra)
    i, j = path.T
    return SpectralDistance(
        mel=float(np.abs(ours[i] - theirs[j]).mean()),
        mcd=mel_cepstral_distortion(ours_cepstra[i], theirs_cepstra[j]),
        path=path,
    )


def mel_cepstral_distortion(ours: np.ndarray, theirs: np.ndarray) -> float:
    """MCD in dB between aligned mel-cepstra (frames, 13), mean over frames."""
    squares = np.square(ours.astype(np.float64) - theirs).sum(axis=1)
    return float(10 / np.log(10) * np.sqrt(2 * squares).mean())


def dtw(a: np.ndarray, b: np.ndarray, *, radius: int = RADIUS) -> np.ndarray:
    """Cheapest monotone alignment of a (n, dim) and b (m, dim) by Euclidean distance: (steps, 2) index pairs.

    Steps are (1,1), (1,0) and (0,1), all of weight one, the diagonal first among equals; pairs farther than about
    `radius` frames from the straight line between the corners are not considered.
    """
    if len(a) == 0 or len(b) == 0:
        raise ValueError(f"cannot align {len(a)} with {len(b)} frames: both need at least one")
    n, m = len(a), len(b)
    before, last = np.full(n + 1, np.inf), np.full(n + 1, np.inf)  # costs of the two anti-diagonals before, by i + 1
    moves: list[tuple[int, np.ndarray]] = []
    for diagonal in range(n + m - 1):
        low, high = _band(diagonal, n, m, radius=max(radius, 2))
        local = np.sqrt(np.square(a[low:high] - b[diagonal - high + 1 : diagonal - low + 1][::-1]).sum(axis=1))
        options = np.stack([before[low:high], last[low:high], last[low + 1 : high + 1]])
        if diagonal == 0:
            options[0] = 0.0
        move = options.argmin(axis=0)
        moves.append((low, move.astype(np.int8)))
        before, last = last, np.full(n + 1, np.inf)
        last[low + 1 : high + 1] = local + np.take_along_axis(options, move[None], axis=0)[0]
    return _backtrack(moves, n, m)


def _band(diagonal: int, n: int, m: int, *, radius: int) -> tuple[int, int]:
    """Half-open range of i on the anti-diagonal i + j = diagonal that lies in the table and near its diagonal."""
    low, high = max(0, diagonal - m + 1), min(n - 1, diagonal)
    span = n + m - 2
    if span:
        slack = radius * max(n, m)
        low = max(low, -((slack - diagonal * (n - 1)) // span))
        high = min(high, (slack + diagonal * (n - 1)) // span)
    return low, high + 1


def _backtrack(moves: list[tuple[int, np.ndarray]], n: int, m: int) -> np.ndarray:
    """Follow the stored moves (0 diagonal, 1 down in a, 2 along b) from the last pair to the first."""
    i, j = n - 1, m - 1
    path = [(i, j)]
    while i or j:
        low, move = moves[i + j]
        step = move[i - low]
        i, j = i - (step != 2), j - (step != 1)
        path.append((i, j))
    return np.array(path[::-1])

"""Slow, obvious filterbanks in plain numpy: one frame, one filter, one coefficient at a time."""

import math

import numpy as np


def kaldi_log_mels(wav: np.ndarray, n_mels: int) -> np.ndarray:
    """Natural log mel energies (frames, n_mels) as Kaldi's compute-fbank-feats defines them, without dither."""
    window = [(0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) ** 0.85 for i in range(400)]
    rows = []
    for start in range(0, len(wav) - 400 + 1, 160):
        frame = wav[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        emphasised = [frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(400)]
        padded = np.zeros(512)
        padded[:400] = np.array(emphasised) * window
        power = np.abs(np.fft.fft(padded)[:257]) ** 2
        rows.append([math.log(max(mel_energy(power, m, n_mels), np.finfo(np.float32).eps)) for m in range(n_mels)])
    return np.array(rows)


def mel_energy(power: np.ndarray, index: int, n_mels: int) -> float:
    """One triangle of n_mels between 20 Hz and 8 kHz, straight in mel."""
    low, high = hz_to_mel(20), hz_to_mel(8000)
    step = (high - low) / (n_mels + 1)
    left, centre, right = (low + (index + k) * step for k in range(3))
    total = 0.0
    for bin_index, value in enumerate(power):
        mel = hz_to_mel(bin_index * 16000 / 512)
        if left < mel <= centre:
            total += value * (mel - left) / (centre - left)
        elif centre < mel < right:
            total += value * (right - mel) / (right - centre)
    return total


def hz_to_mel(hertz: float) -> float:
    """Kaldi's mel scale."""
    return 1127 * math.log(1 + hertz / 700)


def mfcc(wav: np.ndarray) -> np.ndarray:
    """13 liftered cepstra of 23 mels: (frames, 13)."""
    log_mels = kaldi_log_mels(wav, 23)
    result = np.zeros((len(log_mels), 13))
    for order in range(13):
        scale = math.sqrt((1 if order == 0 else 2) / 23) * (1 + 11 * math.sin(math.pi * order / 22))
        for frame, mels in enumerate(log_mels):
            result[frame, order] = scale * sum(mels[m] * math.cos(math.pi * order * (m + 0.5) / 23) for m in range(23))
    return result


def delta(features: np.ndarray) -> np.ndarray:
    """HTK regression over two frames on either side; beyond the ends the end frames repeat."""
    last = len(features) - 1
    rows = []
    for t in range(len(features)):
        slope = sum(n * (features[min(t + n, last)] - features[max(t - n, 0)]) for n in (1, 2))
        rows.append(slope / (2 * (1 + 4)))
    return np.array(rows)


def mfcc39(wav: np.ndarray) -> np.ndarray:
    """Cepstra, deltas and deltas of deltas at 100 Hz: (frames, 39)."""
    static = mfcc(wav)
    return np.concatenate([static, delta(static), delta(delta(static))], axis=1)

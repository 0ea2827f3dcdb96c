"""Augmentation of wavs, features and units: each change a pure function of its arguments.

Only `speed` moves speech in time. The others keep the length and the place of every sound (pitch to within its search
of 10 ms), so the frames of a wav and of its augmented copy belong together, as denoising objectives need.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # power falls with frequency to this exponent
LOWEST_HZ = 20.0  # coloured noise has no power below, where brown noise would keep nearly all of it
QUIET = 1e-5  # a root mean square below this is silence: no signal-to-noise ratio can be set


@dataclass(frozen=True)
class Augment:
    """Probabilities of each change, and the ranges its strength is drawn from, evenly."""

    speed: float = 0.3
    speed_factor: tuple[float, float] = (0.9, 1.1)
    pitch: float = 0.3
    pitch_semitones: tuple[float, float] = (-3.0, 3.0)
    reverb: float = 0.2
    reverb_rt60: tuple[float, float] = (0.1, 0.6)  # seconds
    reverb_direct_db: tuple[float, float] = (3.0, 15.0)  # energy of the direct sound over that of the echoes
    noise: float = 0.3
    noise_snr_db: tuple[float, float] = (5.0, 25.0)
    babble: float = 0.2
    babble_snr_db: tuple[float, float] = (5.0, 20.0)
    babble_voices: tuple[int, int] = (1, 5)
    gain: float = 0.5
    gain_db: tuple[float, float] = (-12.0, 6.0)

    def __post_init__(self) -> None:
        for name in ("speed", "pitch", "reverb", "noise", "babble", "gain"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name}={getattr(self, name)} is a probability: 0 to 1")
        for name in ("speed_factor", "reverb_rt60"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"augment.{name}={getattr(self, name)} must be positive")


def augment(
    wav: np.ndarray, rate: int, draw: np.random.Generator, *, config: Augment, others: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Changes of `config`, drawn, in the order of a recording; float32 in -1..1. `others` are utterances for babble.

    The same generator state gives the same wav. An empty or silent wav comes back without noise.
    """
    out = np.asarray(wav, np.float32)
    if not len(out):
        return out
    if draw.random() < config.speed:
        out = speed(out, draw.uniform(*config.speed_factor))
    if draw.random() < config.pitch:
        out = pitch(out, rate, draw.uniform(*config.pitch_semitones))
    if draw.random() < config.reverb:
        response = room(rate, draw.uniform(*config.reverb_rt60), draw, direct_db=draw.uniform(*config.reverb_direct_db))
        out = reverb(out, response)
    if draw.random() < config.babble and others:
        voices = int(draw.integers(config.babble_voices[0], config.babble_voices[1] + 1))
        crowd = babble(others, len(out), draw, voices=voices)
        out = mix(out, crowd, draw.uniform(*config.babble_snr_db))
    if draw.random() < config.noise:
        colour = list(COLOURS)[int(draw.integers(len(COLOURS)))]
        out = mix(out, coloured(len(out), rate, draw, colour=colour), draw.uniform(*config.noise_snr_db))
    if draw.random() < config.gain:
        out = gain(out, draw.uniform(*config.gain_db))
    return limit(out)


def speed(wav: np.ndarray, factor: float) -> np.ndarray:
    """Faster (factor > 1) and higher, as a tape: round(len(wav) / factor) samples."""
    import soxr

    if not factor > 0:
        raise ValueError(f"speed factor {factor} must be positive")
    return _fit(soxr.resample(np.asarray(wav, np.float32), factor, 1.0, quality="HQ"), round(len(wav) / factor))


def pitch(wav: np.ndarray, rate: int, semitones: float, *, formants: bool = True) -> np.ndarray:
    """F0 and formants times 2 ** (semitones / 12), the same number of samples: stretched in time, then speeded.

    Without `formants` these stay where they were, and only F0 moves.
    """
    ratio = 2 ** (semitones / 12)
    moved = _fit(speed(stretch(wav, rate, ratio), ratio), len(wav))
    return moved if formants or not len(wav) else _shaped(moved, np.asarray(wav, np.float32), rate)


def _shaped(wav: np.ndarray, like: np.ndarray, rate: int) -> np.ndarray:
    """The wav with the spectral envelope, 32 ms by 32 ms, and the level of another of the same length."""
    size = 4 * round(0.008 * rate)
    hop, window = size // 4, np.hanning(size + 1)[:-1].astype(np.float32)
    both = [np.pad(one, (size - hop, 2 * size)) for one in (wav, like)]
    frames = [np.lib.stride_tricks.sliding_window_view(one, size)[::hop] * window for one in both]
    ours, theirs = (np.fft.rfft(one, axis=1) for one in frames)
    gain = np.exp(np.clip(_envelope(theirs, rate) - _envelope(ours, rate), -4, 4))
    made = np.fft.irfft(ours * gain, size, axis=1) * window
    out, weight = np.zeros(len(made) * hop + size), np.zeros(len(made) * hop + size)
    for quarter in range(4):  # every fourth frame: these do not overlap
        some = made[quarter::4]
        place = slice(quarter * hop, quarter * hop + some.size)
        out[place] += some.ravel()
        weight[place] += np.tile(window**2, len(some))
    shaped = (out / np.maximum(weight, 1e-3))[size - hop : size - hop + len(wav)]
    level = _rms(shaped)  # valleys between harmonics pull at the envelope's level
    return (shaped * (_rms(like) / level if level > QUIET else 1.0)).astype(np.float32)


def _envelope(spectrum: np.ndarray, rate: int) -> np.ndarray:
    """Log magnitudes (frames, bins), smooth: their cepstra below 2 ms, where no voice has its period."""
    cepstra = np.fft.irfft(np.log(np.abs(spectrum) + 1e-5), axis=1)
    cepstra[:, round(0.002 * rate) : -round(0.002 * rate)] = 0
    return np.fft.rfft(cepstra, axis=1).real


def stretch(wav: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Longer by `factor` at the same pitch, by WSOLA: round(len(wav) * factor) samples.

    Windows of 30 ms are laid down every 15 ms; each is taken, within 10 ms of its place, where it goes on best from the
    one before (Verhelst and Roelands, 1993).
    """
    if not factor > 0:
        raise ValueError(f"stretch factor {factor} must be positive")
    source = np.asarray(wav, np.float32)
    hop, reach = round(0.015 * rate), round(0.010 * rate)
    length = round(len(source) * factor)
    window = np.hanning(2 * hop + 1)[:-1].astype(np.float32)  # windows a hop apart add up to one
    padded = np.pad(source, (hop + reach, 3 * hop + 2 * reach))
    out = np.zeros(length + 4 * hop, np.float32)
    follows: np.ndarray | None = None
    for start in range(0, length + hop, hop):
        # place: first sample of the window in `padded`, whose origin lies hop + reach before the wav
        place = min(round(start / factor), len(source)) + reach
        if follows is not None:
            place += _best_lag(padded[place - reach : place + reach + 2 * hop], follows) - reach
        out[start : start + 2 * hop] += window * padded[place : place + 2 * hop]
        follows = padded[place + hop : place + 3 * hop]
    return out[hop : hop + length]


def _best_lag(region: np.ndarray, pattern: np.ndarray) -> int:
    """Where in `region` the normalised correlation with `pattern` is highest."""
    pattern = pattern[: min(len(pattern), len(region))]
    likeness = np.correlate(region, pattern, mode="valid")
    power = np.cumsum(np.concatenate([[0.0], region.astype(np.float64) ** 2]))
    norm = np.sqrt(np.maximum(power[len(pattern) :] - power[: -len(pattern)], 1e-8))
    return int(np.argmax(likeness / norm))


def room(rate: int, rt60: float, draw: np.random.Generator, *, direct_db: float = 10.0) -> np.ndarray:
    """Impulse response: the direct sound (1.0), then noise that falls by 60 dB in `rt60` seconds.

    `direct_db` is the energy of the direct sound over that of all echoes; these begin after 2 ms.
    """
    if not rt60 > 0:
        raise ValueError(f"reverberation time {rt60} s must be positive")
    times = np.arange(max(2, round(rt60 * rate))) / rate
    tail = draw.standard_normal(len(times)) * 10 ** (-3 * times / rt60)
    tail[times < 0.002] = 0.0
    energy = float(np.sum(tail**2))
    if energy > 0:
        tail *= math.sqrt(10 ** (-direct_db / 10) / energy)
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverb(wav: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The wav in a room, at its own level (root mean square) and length; what rings on past the end is cut."""
    size = 1 << (len(wav) + len(response) - 2).bit_length()
    spectrum = np.fft.rfft(np.asarray(wav, np.float64), size) * np.fft.rfft(np.asarray(response, np.float64), size)
    wet = np.fft.irfft(spectrum, size)[: len(wav)]
    level = _rms(wet)
    return (wet * (_rms(wav) / level if level > QUIET else 1.0)).astype(np.float32)


def coloured(n_samples: int, rate: int, draw: np.random.Generator, *, colour: str = "white") -> np.ndarray:
    """Gaussian noise (n_samples,) of root mean square 1 above 20 Hz: white, pink (-3 dB/octave) or brown (-6)."""
    if colour not in COLOURS:
        raise ValueError(f"unknown colour {colour!r}; known: {', '.join(COLOURS)}")
    size = max(2, n_samples)
    spectrum = np.fft.rfft(draw.standard_normal(size))
    frequencies = np.fft.rfftfreq(size, 1 / rate)
    shape = np.maximum(frequencies, LOWEST_HZ) ** (-COLOURS[colour] / 2)
    if np.any(frequencies >= LOWEST_HZ):
        shape[frequencies < LOWEST_HZ] = 0.0
    noise = np.fft.irfft(spectrum * shape, size)[:n_samples]
    return (noise / max(_rms(noise), QUIET)).astype(np.float32)


def babble(others: Sequence[np.ndarray], n_samples: int, draw: np.random.Generator, *, voices: int) -> np.ndarray:
    """`voices` of the given utterances at once, equally loud, from drawn places and round again; (n_samples,) float32.

    An utterance is taken twice only when there are fewer than `voices`; silent ones are left out.
    """
    loud = [np.asarray(one, np.float32) for one in others if _rms(one) > QUIET]
    crowd = np.zeros(n_samples, np.float32)
    if not loud:
        return crowd
    order = np.resize(draw.permutation(len(loud)), voices)
    for index in order:
        voice = np.roll(loud[index], -int(draw.integers(len(loud[index]))))
        crowd += np.resize(voice, n_samples) / np.float32(_rms(voice))
    return crowd


def mix(wav: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Wav plus noise of the same length, scaled to this ratio of powers; where either is silent, the wav as it is."""
    if len(wav) != len(noise):
        raise ValueError(f"a wav of {len(wav)} samples and noise of {len(noise)} cannot be mixed")
    signal, background = _rms(wav), _rms(noise)
    if signal < QUIET or background < QUIET:
        return np.asarray(wav, np.float32)
    return (np.asarray(wav) + np.asarray(noise) * (signal / background * 10 ** (-snr_db / 20))).astype(np.float32)


def gain(wav: np.ndarray, db: float) -> np.ndarray:
    """Louder or softer by `db`."""
    return np.asarray(wav, np.float32) * np.float32(10 ** (db / 20))


def limit(wav: np.ndarray) -> np.ndarray:
    """The wav, turned down as a whole where its peak passes 1: nothing is clipped."""
    peak = float(np.abs(wav).max(initial=0.0))
    return wav / np.float32(peak) if peak > 1 else wav


def _rms(wav: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(wav, dtype=np.float64)))) if len(wav) else 0.0


def _fit(wav: np.ndarray, length: int) -> np.ndarray:
    """Cut, or padded with zeros, at the end: resampling ends a sample early or late."""
    return np.pad(wav[:length], (0, max(0, length - len(wav)))).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Masks:
    """SpecAugment: stretches of frames and of dimensions that are hidden, each of up to a width."""

    times: int = 2
    seconds: float = 0.5  # of a stretch of frames, and at most a fifth of the whole
    bands: int = 1
    share: float = 0.3  # of the dimensions, for a stretch of them


def mask_features(features: np.ndarray, draw: np.random.Generator, *, config: Masks, rate_hz: float) -> np.ndarray:
    """Features (frames, dim) with the stretches of `config` hidden.  Park et al. 2019 (1904.08779)."""
    frames, dim = features.shape
    longest = min(int(config.seconds * rate_hz), frames // 5)
    out = mask_bands(features, draw, count=config.times, widest=longest, axis=0)
    return mask_bands(out, draw, count=config.bands, widest=int(config.share * dim), axis=1)


def mask_bands(features: np.ndarray, draw: np.random.Generator, *, count: int, widest: int, axis: int) -> np.ndarray:
    """`count` stretches of features (frames, dim) along `axis`, each of 0 to `widest`, set to the mean.

    The mean is that of the whole, so that normalised features get zeros.
    """
    out = np.array(features)
    for _ in range(count if widest > 0 else 0):
        width = int(draw.integers(widest + 1))
        start = int(draw.integers(features.shape[axis] - width + 1))
        stretch = slice(start, start + width)
        out[stretch if axis == 0 else (slice(None), stretch)] = features.mean()
    return out


@dataclass(frozen=True)
class Holes:
    """BART's text infilling: spans of Poisson length become one mask each."""

    masked: float = 0.0  # share of the units; 0: no holes
    span: float = 3.5  # mean length
    random: float = 0.1  # share of the spans that become another unit instead of the mask


def holes(tokens: np.ndarray, draw: np.random.Generator, *, config: Holes, mask: int) -> np.ndarray:
    """Tokens (n,) with spans of them, `config.masked` of all, each replaced by one `mask` or by another token."""
    left = round(config.masked * len(tokens))
    out: list[int] = []
    begins = draw.random(len(tokens)) < config.masked / max(config.span, 1.0)
    position = 0
    while position < len(tokens):
        span = min(int(draw.poisson(config.span)), left, len(tokens) - position) if begins[position] else -1
        if span < 0:
            out.append(int(tokens[position]))
            position += 1
            continue
        other = int(tokens[int(draw.integers(len(tokens)))])
        out.append(other if draw.random() < config.random else mask)
        position, left = position + max(span, 0), left - span
        if span == 0:  # a mask where nothing is missing, then the token itself
            out.append(int(tokens[position]))
            position += 1
    return np.array(out, np.int64)


@dataclass(frozen=True)
class Stretches:
    """Time masking of units: stretches of neighbours, of which each becomes the mask token."""

    times: int = 0  # stretches; 0: none
    share: float = 0.05  # of the whole, at most, in one stretch


def mask_tokens(tokens: np.ndarray, draw: np.random.Generator, *, config: Stretches, mask: int) -> np.ndarray:
    """Tokens (n,) or (n, codebooks) with the stretches of `config` hidden; a row becomes one mask and nothing else."""
    out = np.array(tokens)
    rows, widest = out if out.ndim > 1 else out[:, None], int(config.share * len(out))
    for _ in range(config.times if widest > 0 else 0):
        width = int(draw.integers(widest + 1))
        start = int(draw.integers(len(out) - width + 1))
        rows[start : start + width] = 0  # pad, which has no embedding
        rows[start : start + width, 0] = mask
    return out

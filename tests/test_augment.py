"""Augmentation: each change does what it says, by the number, and none harms silence, short wavs or the range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.augment import (
    COLOURS,
    Augment,
    augment,
    babble,
    coloured,
    gain,
    limit,
    mix,
    pitch,
    reverb,
    room,
    speed,
    stretch,
)

RATE = 16000
EVERYTHING = Augment(speed=1, pitch=1, reverb=1, noise=1, babble=1, gain=1)


def power(wav: np.ndarray) -> float:
    return float(np.mean(wav.astype(np.float64) ** 2))


def vowel(f0: float, seconds: float = 1.0) -> np.ndarray:
    """A harmonic sound: 20 partials that fall off, as a voice's do."""
    times = np.arange(round(seconds * RATE)) / RATE
    partials = [np.sin(2 * np.pi * f0 * k * times) / k for k in range(1, 21) if f0 * k < 7000]
    return (0.2 * np.sum(partials, axis=0)).astype(np.float32)


def measured_f0(wav: np.ndarray) -> float:
    """F0 by autocorrelation of the middle half second, to a fraction of a sample."""
    middle = wav[len(wav) // 2 - 4000 : len(wav) // 2 + 4000].astype(np.float64)
    likeness = np.correlate(middle, middle, mode="full")[len(middle) - 1 :]
    low, high = RATE // 500, RATE // 60
    lag = low + int(np.argmax(likeness[low:high]))
    left, top, right = likeness[lag - 1 : lag + 2]
    return RATE / (lag + 0.5 * (left - right) / (left - 2 * top + right))


def test_snr_is_exact() -> None:
    wav, draw = vowel(120), np.random.default_rng(0)
    for snr in (-5.0, 0.0, 12.5, 30.0):
        for colour in COLOURS:
            noisy = mix(wav, coloured(len(wav), RATE, draw, colour=colour), snr)
            assert 10 * np.log10(power(wav) / power(noisy - wav)) == pytest.approx(snr, abs=0.1)


@pytest.mark.parametrize(("colour", "slope"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_colours_fall_off_as_they_should(colour: str, slope: float) -> None:
    noise = coloured(1 << 18, RATE, np.random.default_rng(1), colour=colour)
    assert power(noise) == pytest.approx(1.0, rel=1e-3)
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)
    octaves = [100 * 2**k for k in range(6)]
    levels = [10 * np.log10(spectrum[(frequencies >= f) & (frequencies < 1.2 * f)].mean()) for f in octaves]
    assert np.polyfit(range(6), levels, 1)[0] == pytest.approx(slope, abs=0.3)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 1.37])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    fast = speed(vowel(150, 2.0), factor)
    assert len(fast) == round(2 * RATE / factor)
    assert measured_f0(fast) == pytest.approx(150 * factor, rel=0.005)


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.0, 1.15, 1.5])
def test_stretch_keeps_pitch_and_level(factor: float) -> None:
    wav = vowel(150, 2.0)
    long = stretch(wav, RATE, factor)
    assert len(long) == round(len(wav) * factor)
    assert measured_f0(long) == pytest.approx(150, rel=0.01)
    assert power(long) == pytest.approx(power(wav), rel=0.1)


def test_stretch_by_one_is_the_wav_itself() -> None:
    wav = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    np.testing.assert_allclose(stretch(wav, RATE, 1.0), wav, atol=1e-5)


@pytest.mark.parametrize("semitones", [-4.0, -1.5, 0.0, 2.0, 5.0])
@pytest.mark.parametrize("f0", [95.0, 210.0])
def test_pitch_moves_f0_and_not_length(f0: float, semitones: float) -> None:
    wav = vowel(f0, 1.5)
    moved = pitch(wav, RATE, semitones)
    assert len(moved) == len(wav)
    assert measured_f0(moved) == pytest.approx(f0 * 2 ** (semitones / 12), rel=0.01)


@pytest.mark.parametrize("semitones", [-3.0, 3.0])
def test_pitch_leaves_sounds_in_their_place(semitones: float) -> None:
    """A burst between silences stays within 10 ms of where it was."""
    wav = np.zeros(2 * RATE, np.float32)
    wav[12000:18000] = vowel(130, 6000 / RATE)
    moved = pitch(wav, RATE, semitones)
    loud = np.flatnonzero(np.abs(moved) > 0.02)
    assert abs(loud[0] - 12000) <= 0.011 * RATE and abs(loud[-1] - 18000) <= 0.011 * RATE


@pytest.mark.parametrize("semitones", [-5.0, 4.0])
def test_pitch_may_leave_formants_where_they_were(semitones: float) -> None:
    """A voice with one strong formant at 1500 Hz: F0 moves either way, the formant only with it if asked to."""
    times, f0, factor = np.arange(RATE) / RATE, 120.0, 2 ** (semitones / 12)
    harmonics = [k * f0 for k in range(1, 40)]
    wav = sum(np.exp(-(((hz - 1500) / 250) ** 2)) * np.sin(2 * np.pi * hz * times) for hz in harmonics) * 0.1
    wav = (wav + 0.02 * sum(np.sin(2 * np.pi * hz * times) for hz in harmonics)).astype(np.float32)

    def formant(some: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(some * np.hanning(len(some)))) ** 2
        hertz = np.fft.rfftfreq(len(some), 1 / RATE)
        near = (hertz > 600) & (hertz < 2600)
        return float((power * hertz)[near].sum() / power[near].sum())

    both, only = (pitch(wav, RATE, semitones, formants=flag) for flag in (True, False))
    assert len(only) == len(wav) and formant(wav) == pytest.approx(1500, rel=0.03)
    assert formant(both) == pytest.approx(1500 * factor, rel=0.08)
    assert formant(only) == pytest.approx(1500, rel=0.06)
    for moved in (both, only):
        assert measured_f0(moved) == pytest.approx(f0 * factor, rel=0.01)
    assert power(only) == pytest.approx(power(wav), rel=0.3)
    assert len(pitch(wav[:0], RATE, 2.0, formants=False)) == 0


@pytest.mark.parametrize("rt60", [0.15, 0.3, 0.8])
def test_reverb_decays_by_60_db_in_rt60(rt60: float) -> None:
    """Schroeder's backward integral of the response, its slope from -5 to -25 dB."""
    response = room(RATE, rt60, np.random.default_rng(2))[1:].astype(np.float64)
    left = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2))
    fit = np.flatnonzero((left < -5) & (left > -25))
    slope = np.polyfit(fit / RATE, left[fit], 1)[0]  # dB a second
    assert -60 / slope == pytest.approx(rt60, rel=0.1)


def test_direct_sound_over_echoes() -> None:
    response = room(RATE, 0.4, np.random.default_rng(3), direct_db=7.0).astype(np.float64)
    assert 10 * np.log10(response[0] ** 2 / np.sum(response[1:] ** 2)) == pytest.approx(7.0, abs=0.1)


def test_reverb_is_a_convolution_at_the_same_level() -> None:
    wav, response = vowel(120, 0.3), room(RATE, 0.2, np.random.default_rng(4))
    wet = reverb(wav, response)
    expected = np.convolve(wav.astype(np.float64), response.astype(np.float64))[: len(wav)]
    np.testing.assert_allclose(wet, expected * np.sqrt(power(wav) / np.mean(expected**2)), atol=1e-5)
    np.testing.assert_allclose(reverb(wav, np.ones(1, np.float32)), wav, atol=1e-6)


def test_babble_is_made_of_the_others() -> None:
    others = [np.zeros(500, np.float32), vowel(100, 0.2), 0.01 * vowel(137, 0.5)]  # no partial in common
    one = babble(others, 9000, np.random.default_rng(5), voices=1)
    assert power(one) == pytest.approx(1.0, rel=0.1) and len(one) == 9000
    two = babble(others, 48000, np.random.default_rng(5), voices=2)
    assert power(two) == pytest.approx(2.0, rel=0.2)  # equally loud, whatever their own level
    assert not babble([np.zeros(500, np.float32)], 100, np.random.default_rng(0), voices=3).any()


def test_gain_and_limit() -> None:
    wav = vowel(120)
    assert 10 * np.log10(power(gain(wav, -6.0)) / power(wav)) == pytest.approx(-6.0, abs=1e-3)
    loud = limit(gain(wav, 40.0))
    assert np.abs(loud).max() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(loud / np.abs(loud).max(), wav / np.abs(wav).max(), atol=1e-6)


def test_the_same_seed_gives_the_same_wav() -> None:
    wav, others = vowel(120), [vowel(180), vowel(90)]
    first, second, third = (
        augment(wav, RATE, np.random.default_rng(seed), config=EVERYTHING, others=others) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, second)
    assert len(first) != len(third) or not np.array_equal(first, third)


def test_nothing_asked_nothing_changed() -> None:
    wav = vowel(120)
    off = Augment(speed=0, pitch=0, reverb=0, noise=0, babble=0, gain=0)
    np.testing.assert_array_equal(augment(wav, RATE, np.random.default_rng(0), config=off), wav)


@pytest.mark.parametrize("n_samples", [0, 1, 2, 37, 400, 5000])
def test_silence_and_short_wavs(n_samples: int) -> None:
    for wav in (np.zeros(n_samples, np.float32), np.full(n_samples, 0.5, np.float32)):
        out = augment(wav, RATE, np.random.default_rng(0), config=EVERYTHING, others=[vowel(100)])
        assert out.dtype == np.float32 and np.isfinite(out).all() and np.abs(out).max(initial=0) <= 1
        assert wav.any() or not out.any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.floats(1e-4, 1.0), n_samples=st.integers(1, 12000))
def test_always_finite_and_in_range(seed: int, level: float, n_samples: int) -> None:
    draw = np.random.default_rng(seed)
    wav = (level * draw.uniform(-1, 1, n_samples)).astype(np.float32)
    out = augment(wav, RATE, draw, config=EVERYTHING, others=[wav, vowel(140, 0.3)])
    assert np.isfinite(out).all() and np.abs(out).max(initial=0) <= 1 and out.dtype == np.float32
    assert n_samples / 1.1 - 1 <= len(out) <= n_samples / 0.9 + 1


@pytest.mark.parametrize(
    ("wrong", "named"), [({"noise": 1.5}, "noise=1.5"), ({"speed_factor": (0.0, 1.0)}, "speed_factor")]
)
def test_wrong_settings_are_named(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Augment(**wrong)

"""Spectral distances and pitch errors against constructed differences and a slow alignment."""

import numpy as np
import pytest

from unitkit import audio
from unitkit.metrics import pitch, spectral


def slow_dtw_cost(a: np.ndarray, b: np.ndarray) -> float:
    """Total cost of the cheapest alignment, cell by cell."""
    table = np.full((len(a) + 1, len(b) + 1), np.inf)
    table[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            step = min(table[i, j], table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = np.linalg.norm(a[i] - b[j]) + step
    return float(table[-1, -1])


def path_cost(a: np.ndarray, b: np.ndarray, path: np.ndarray) -> float:
    return float(np.linalg.norm(a[path[:, 0]] - b[path[:, 1]], axis=1).sum())


def tone(hz: float, *, seconds: float = 0.5, level: float = 0.3) -> np.ndarray:
    time = np.arange(int(16_000 * seconds)) / 16_000
    return (level * sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 8))).astype(np.float32)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (9, 1), (12, 12), (23, 14), (8, 31)])
def test_dtw_is_as_cheap_as_the_slow_one_and_monotone(n: int, m: int) -> None:
    rng = np.random.default_rng(n * 100 + m)
    a, b = rng.normal(size=(n, 3)), rng.normal(size=(m, 3))
    path = spectral.dtw(a, b)
    assert path_cost(a, b, path) == pytest.approx(slow_dtw_cost(a, b))
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [n - 1, m - 1]
    assert set(map(tuple, np.diff(path, axis=0).tolist())) <= {(1, 1), (1, 0), (0, 1)}


@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 37), (20, 90), (2, 50), (50, 2)])
def test_narrow_band_stays_near_the_diagonal_and_reaches_the_end(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    path = spectral.dtw(a, b, radius=3)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [n - 1, m - 1]
    off = np.abs(path[:, 0] * (m - 1) - path[:, 1] * (n - 1)) / max(n, m)
    assert off.max() <= 3
    assert path_cost(a, b, path) >= slow_dtw_cost(a, b) - 1e-9


def test_dtw_undoes_a_repetition() -> None:
    a = np.random.default_rng(1).normal(size=(20, 4))
    path = spectral.dtw(np.repeat(a, 3, axis=0), a)
    assert path_cost(np.repeat(a, 3, axis=0), a, path) == 0
    assert np.array_equal(path[:, 1], np.repeat(np.arange(20), 3))


def test_dtw_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="0 with 3 frames"):
        spectral.dtw(np.zeros((0, 2)), np.zeros((3, 2)))


def test_a_recording_is_at_distance_zero_of_itself_and_distances_are_symmetric() -> None:
    rng = np.random.default_rng(0)
    a = tone(120) + 0.01 * rng.normal(size=8000).astype(np.float32)
    b = tone(200, seconds=0.6) + 0.01 * rng.normal(size=9600).astype(np.float32)
    same = spectral.compare(a, a)
    assert (same.mel, same.mcd) == (0, 0)
    there, back = spectral.compare(a, b), spectral.compare(b, a)
    assert there.mcd > 1 and there.mcd == pytest.approx(back.mcd, rel=0.02)
    assert there.mel == pytest.approx(back.mel, rel=0.02)


def test_mel_distance_of_a_level_change_is_its_logarithm_and_mcd_does_not_see_it() -> None:
    noise = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1
    found = spectral.compare(noise * 2, noise)
    assert found.mel == pytest.approx(np.log(2), rel=1e-3)
    assert found.mcd == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("order", [1, 5, 13])
def test_mcd_of_one_cepstral_ripple_is_its_amplitude_in_db(order: int) -> None:
    ripple = 0.7 * np.cos(np.pi * order * (np.arange(80) + 0.5) / 80)
    flat = np.zeros((10, 80))
    cepstra = spectral.mel_cepstra(flat + ripple)
    assert cepstra[0, order - 1] == pytest.approx(0.7)
    distance = spectral.mel_cepstral_distortion(cepstra, spectral.mel_cepstra(flat))
    assert distance == pytest.approx(10 / np.log(10) * np.sqrt(2) * 0.7)
    assert distance == pytest.approx(20 / np.log(10) * np.sqrt(np.mean(ripple**2)) * 1.0)  # RMS difference in dB


def test_ripples_above_the_thirteenth_cepstrum_are_not_seen() -> None:
    ripple = np.cos(np.pi * 14 * (np.arange(80) + 0.5) / 80)[None]
    assert np.abs(spectral.mel_cepstra(ripple)).max() < 1e-12


def test_log_mel_frames_and_floor() -> None:
    assert spectral.log_mel(np.zeros(1600, np.float32)).shape == (11, 80)
    assert np.allclose(spectral.log_mel(np.zeros(1600, np.float32)), np.log(1e-5))


def test_log_mel_is_the_magnitude_spectrum_around_every_tenth_millisecond() -> None:
    wav = np.random.default_rng(0).normal(size=8000) * 0.1
    found = spectral.log_mel(wav.astype(np.float32))
    filters = audio.mel_filters(16_000, n_fft=1024, n_mels=80)
    turn = np.exp(-2j * np.pi * np.outer(np.arange(513), np.arange(1024)) / 1024)
    for frame in (0, 7, 50):
        centred = np.array([wav[s] if 0 <= s < 8000 else 0.0 for s in range(frame * 160 - 512, frame * 160 + 512)])
        bell = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
        assert np.allclose(found[frame], np.log(filters @ np.abs(turn @ (bell * centred))), atol=1e-3)
    assert len(found) == 51


def test_pitch_errors_of_a_known_shift() -> None:
    theirs = np.array([0, 100, 100, 200, 200, 0], dtype=np.float32)
    ours = np.array([0, 110, 100, 190, 0, 50], dtype=np.float32)
    found = pitch.pitch_errors(ours, theirs)
    assert (found.both_voiced, found.voicing_differs, found.frames) == (3, 2, 6)
    assert found.squared_hz == pytest.approx(200)
    assert pitch.f0_rmse_hz([found], align="frames").value == pytest.approx(np.sqrt(200 / 3))
    assert pitch.voicing_error([found], align="frames").value == pytest.approx(100 * 2 / 6)


def test_an_octave_is_1200_cents_and_corpora_are_pooled_over_frames() -> None:
    octave = pitch.pitch_errors(np.full(10, 200.0), np.full(10, 100.0))
    exact = pitch.pitch_errors(np.full(30, 150.0), np.full(30, 150.0))
    assert pitch.f0_rmse_cents([octave], align="frames").value == pytest.approx(1200)
    assert pitch.f0_rmse_cents([octave, exact], align="frames").value == pytest.approx(600)  # 1200 sqrt(10 / 40)


def test_pitch_follows_a_path() -> None:
    theirs = np.array([100, 200, 0], dtype=np.float32)
    ours = np.repeat(theirs, 2)
    path = np.array([(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])  # one beyond both ends
    found = pitch.pitch_errors(ours, theirs, path=path)
    assert (found.squared_hz, found.voicing_differs, found.frames) == (0, 0, 7)
    assert pitch.pitch_errors(ours, theirs).voicing_differs == 1  # frame by frame they do not fit


def test_pitch_refuses_an_empty_track() -> None:
    with pytest.raises(ValueError, match="0 and 3 frames"):
        pitch.pitch_errors(np.zeros(0), np.ones(3))

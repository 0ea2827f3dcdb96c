"""Streams: units as audio arrives, as many as offline, the same where a frame's reach is finite."""

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_encoders import CHECKPOINTS, model_of

from unitkit.encoders import Encoder, load_encoder
from unitkit.encoders.running import Running
from unitkit.quantizers import KMeans
from unitkit.stream import Stream
from unitkit.tokenizer import Tokenizer

torch.set_num_threads(1)
RATE = 16000
FILTERBANKS = [
    (name, padding) for name in ("mfcc", "mfcc@100", "logmel", "logmel@100") for padding in ("none", "center")
]


def noise(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Noise whose loudness and colour drift, so that units change."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * np.cumsum(300 + 200 * np.sin(2 * np.pi * 1.7 * t)) / rate)
    return ((0.05 + 0.2 * np.abs(np.sin(3 * t))) * (tone + 0.3 * rng.standard_normal(len(t)))).astype(np.float32)


def tokenizer_of(encoder: Encoder, n_units: int = 40) -> Tokenizer:
    """Centroids that are frames of other audio."""
    features = encoder(noise(20, 99))
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:n_units]
    quantizer = KMeans(features[chosen][None], torch.zeros(encoder.dim), torch.ones(encoder.dim))
    return Tokenizer(encoder, quantizer, recipe={})


def cut(wav: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """The wav in parts of the sizes given, from the start of the list again when it is used up."""
    parts, position, index = [], 0, 0
    while position < len(wav):
        parts.append(wav[position : position + sizes[index % len(sizes)]])
        position, index = position + sizes[index % len(sizes)], index + 1
    return parts


def streamed(stream: Stream, parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*(stream.push(part).ids for part in parts), stream.finish().ids])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    for name in CHECKPOINTS:
        model_of(name).save_pretrained(root / name)
    return {name: root / name for name in CHECKPOINTS}


@pytest.mark.parametrize(("features", "padding"), FILTERBANKS)
@settings(max_examples=12, deadline=None)
@given(n_samples=st.integers(0, 30000), sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_a_filterbank_stream_is_the_whole_recording(
    features: str, padding: str, n_samples: int, sizes: list[int]
) -> None:
    encoder = load_encoder(features, padding=padding)
    tok = tokenizer_of(encoder)
    wav = noise(2, 1)[:n_samples]
    units = streamed(tok.stream(), cut(wav, [max(size, 1 + n_samples // 50) for size in sizes]))
    assert len(units) == encoder.n_frames(n_samples)
    if len(wav) >= encoder.min_samples:
        np.testing.assert_array_equal(units, tok.encode(wav, rate=RATE).ids)


def test_one_long_push_is_the_same_and_costs_no_more_than_it_must() -> None:
    tok = tokenizer_of(load_encoder("mfcc"))
    wav = noise(61, 2)
    np.testing.assert_array_equal(streamed(tok.stream(), [wav]), tok.encode(wav, rate=RATE).ids)


def test_several_codebooks() -> None:
    encoder = load_encoder("mfcc")
    features = encoder(noise(20, 99))
    quantizer = KMeans.fit(features.numpy(), 8, codebooks=2, kind="residual", seed=0)
    tok = Tokenizer(encoder, quantizer, recipe={})
    wav = noise(1.5, 3)
    units = streamed(tok.stream(), cut(wav, [700]))
    assert units.shape == (encoder.n_frames(len(wav)), 2)
    np.testing.assert_array_equal(units, tok.encode(wav, rate=RATE).ids)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_any_rate_is_resampled_as_offline(rate: int) -> None:
    tok = tokenizer_of(load_encoder("mfcc"))
    wav = noise(2.3, 4, rate)
    units = streamed(tok.stream(rate), cut(wav, [rate // 50, 1, 999]))
    np.testing.assert_array_equal(units, tok.encode(wav, rate=rate).ids)
    assert len(soxr.resample(wav, rate, RATE)) == pytest.approx(2.3 * RATE, abs=1)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_transformers_give_every_frame_and_agree_when_they_hear_enough(name: str, checkpoints: dict[str, Path]) -> None:
    encoder = load_encoder(str(checkpoints[name]), layer=2)
    tok = tokenizer_of(encoder)
    wav = noise(6.5, 5)
    units = streamed(tok.stream(), cut(wav, [1600, 333]))
    offline = tok.encode(wav, rate=RATE).ids
    assert len(units) == len(offline) == encoder.n_frames(len(wav))
    assert len(np.unique(units)) > 3
    # A stream that waits for everything has nothing else to see, up to the last bits of its running statistics.
    short = wav[: 2 * RATE]
    patient = streamed(tok.stream(lookahead=10.0), cut(short, [1600]))
    assert np.mean(patient == tok.encode(short, rate=RATE).ids) > 0.98


def test_how_audio_is_cut_changes_no_unit_of_a_transformer_that_does_not_normalise(
    checkpoints: dict[str, Path],
) -> None:
    """Steps fall at fixed frames when pushes are smaller than a step."""
    tok = tokenizer_of(load_encoder(str(checkpoints["whisper"]), layer=2))
    wav = noise(5, 6)
    one = streamed(tok.stream(), cut(wav, [320]))
    np.testing.assert_array_equal(one, streamed(tok.stream(), cut(wav, [320, 160, 160])))


@pytest.mark.parametrize("name", ["hubert-base", "hubert-large", "w2v-bert", "whisper"])
def test_running_statistics_end_as_those_of_the_recording(name: str, checkpoints: dict[str, Path]) -> None:
    encoder = load_encoder(str(checkpoints[name]), layer=2)
    wav = noise(3, 7)
    running = Running(encoder)  # type: ignore[arg-type]
    for part in cut(wav, [1, 4000, 160, 33]):
        running.add(part)
    expected = encoder(wav)
    error = (running.features(wav) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-4


@pytest.mark.parametrize(
    ("features", "rate"), [("mfcc", RATE), ("mfcc", 44100), ("logmel", RATE), ("hubert-base", RATE)]
)
def test_no_unit_waits_longer_than_the_look_ahead(features: str, rate: int, checkpoints: dict[str, Path]) -> None:
    tok = tokenizer_of(
        load_encoder(str(checkpoints.get(features, features)), layer=2 if features in checkpoints else None)
    )
    stream = tok.stream(rate, lookahead=0.5 if features in checkpoints else None)
    assert stream.lookahead <= 0.5
    step, given_units = rate // 100, 0
    for index, part in enumerate(cut(noise(3, 8, rate), [step])):
        given_units += stream.push(part).n_frames
        heard = (index + 1) * step / rate
        due = int((heard - stream.lookahead) * tok.rate_hz - 1e-6)  # frames that ended that long ago
        assert given_units >= due, (heard, given_units)


def test_what_cannot_be_streamed_is_refused(checkpoints: dict[str, Path]) -> None:
    tok = tokenizer_of(load_encoder("mfcc"))
    with pytest.raises(ValueError, match=r"look-ahead of 0\.01 s is too short: this stream needs 0\.045 s"):
        tok.stream(lookahead=0.01)
    with pytest.raises(ValueError, match="positive"):
        tok.stream(0)
    stream = tok.stream()
    for wrong, message in [
        (np.zeros(100, np.int16), "int16"),
        (np.zeros((2, 100), np.float32), r"\(2, 100\)"),
        (np.array([np.nan], np.float32), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream.push(wrong)
    assert stream.finish().n_frames == 0
    with pytest.raises(ValueError, match="finished"):
        stream.push(np.zeros(10, np.float32))


def test_memory_does_not_grow(checkpoints: dict[str, Path]) -> None:
    for encoder in (load_encoder("mfcc"), load_encoder(str(checkpoints["hubert-base"]), layer=1)):
        stream = tokenizer_of(encoder).stream()
        held = []
        for _ in range(12):
            stream.push(noise(1, 9))
            held.append(len(stream._held))
        assert max(held) <= (5 + stream.lookahead) * RATE

"""Recordings in blocks: the same bits however they are cut, the statistics of the whole, bounded memory."""

import tracemalloc
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_encoders import tiny, wav_of
from torch import Tensor

from unitkit.encoders import FILTERBANKS, blocks, filterbanks

WAV = wav_of(16000 * 5 + 123)
MODELS = ["hubert-base", "hubert-large", "wavlm-base", "data2vec-audio", "w2v-bert", "whisper"]
CASES = [*((name, "plain") for name in (*FILTERBANKS, *MODELS)), ("hubert-base", "fast"), ("wavlm-large", "fast")]


def shorten(patch: pytest.MonkeyPatch, encoder: Any) -> None:
    """Windows, chunks and blocks so short that five seconds have several of each."""
    patch.setattr(filterbanks, "CHUNK_SAMPLES", 5000)
    patch.setattr(filterbanks, "BLOCK_FRAMES", 70)
    if encoder.exact_context is None:
        patch.setattr(encoder, "window_s", 1.5)
        patch.setattr(encoder, "context_s", 0.4)


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_blocks_give_the_bits_of_one_array(name: str, engine: str) -> None:
    encoder = tiny(name, engine=engine, padding="center" if name in ("mfcc", "logmel@100", "wavlm-base") else "none")

    @settings(max_examples=12, deadline=None, database=None)
    @given(length=st.integers(encoder.min_samples, len(WAV)), cuts=st.lists(st.integers(0, len(WAV)), max_size=6))
    def check(length: int, cuts: list[int]) -> None:
        wav = WAV[:length]
        pieces = list(encoder.pieces(lambda: np.split(wav, sorted(cuts))))
        assert torch.equal(torch.cat(pieces), encoder(wav))
        assert len(torch.cat(pieces)) == encoder.n_frames(length)

    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, encoder)
        assert len(list(encoder.pieces(lambda: [WAV]))) > 1
        check()


@pytest.mark.parametrize("name", FILTERBANKS)
def test_filterbanks_of_a_part_with_context_are_those_of_the_whole(name: str) -> None:
    encoder = tiny(name, padding="center")
    whole, context = encoder(WAV), encoder.exact_context
    first, last = 100, 120  # frames
    start = first - -(-context // encoder.hop)
    part = encoder(WAV[start * encoder.hop : last * encoder.hop + context])
    torch.testing.assert_close(part[first - start : last - start], whole[first:last], atol=0, rtol=1e-6)
    nearer = WAV[start * encoder.hop : last * encoder.hop + context].copy()
    nearer[: first * encoder.hop - start * encoder.hop - context] = 0  # beyond the context nothing matters
    torch.testing.assert_close(encoder(nearer)[first - start : last - start], part[first - start : last - start])


def conv_features(encoder: Any, wav: np.ndarray) -> list[Tensor]:
    """What comes out of the convolutions, window by window."""
    caught: list[Tensor] = []
    hook = encoder.model.feature_projection.register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
    encoder(wav)
    hook.remove()
    return caught


@pytest.mark.parametrize("name", ["hubert-base", "wav2vec2-large", "w2v-bert"])
def test_windows_are_run_with_the_statistics_of_the_recording(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny(name)
    wav = np.concatenate([0.02 * WAV, WAV, 10 * WAV[:40000]])  # each window has statistics of its own
    (whole,) = conv_features(encoder, wav)
    monkeypatch.setattr(encoder, "window_s", 2.0)
    monkeypatch.setattr(encoder, "context_s", 0.5)
    parts = conv_features(encoder, wav)
    joints = [start for start, _, _ in blocks.windows(len(whole), 100, 25)]
    assert len(parts) == len(joints) > 4
    for start, part in zip(joints, parts, strict=True):
        torch.testing.assert_close(part, whole[start : start + len(part)], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["hubert-base", "hubert-large", "mhubert", "data2vec-audio", "w2v-bert"])
def test_windowed_is_the_whole_but_for_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 0 has no attention yet and a positional convolution that reaches less far than the context."""
    encoder, attended = tiny(name, layer=0), tiny(name, layer=2)
    wav = np.concatenate([0.1 * WAV, WAV])
    whole, whole_attended = encoder(wav), attended(wav)
    for one in (encoder, attended):
        monkeypatch.setattr(one, "window_s", 2.0)
        monkeypatch.setattr(one, "context_s", 0.5)
    windowed = encoder(wav)
    assert windowed.shape == whole.shape
    assert ((windowed - whole).norm(dim=1) / whole.norm(dim=1)).max() < 1e-5
    assert ((attended(wav) - whole_attended).norm(dim=1) / whole_attended.norm(dim=1)).max() > 1e-3


def test_a_window_of_whisper_is_that_stretch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions and the peak that floors the mels start anew in each window."""
    encoder = tiny("whisper")
    monkeypatch.setattr(encoder, "window_s", 2.0)
    monkeypatch.setattr(encoder, "context_s", 0.5)
    whole = encoder(WAV)
    assert torch.equal(whole[:50], encoder(WAV[:32000])[:50])
    assert torch.equal(whole[50:100], encoder(WAV[8000:40000])[25:75])


def test_windows_cover_every_frame_once_with_context() -> None:
    for n_frames in (1, 99, 100, 101, 180, 181, 1000, 1001):
        windows = list(blocks.windows(n_frames, 100, 10))
        kept = [frame for _, first, stop in windows for frame in range(first, stop)]
        assert kept == list(range(n_frames))
        for start, first, stop in windows:
            assert start >= 0 and stop <= min(start + 100, n_frames)
            assert first - start >= 10 or first == 0
            assert start + 100 - stop >= 10 or stop == n_frames


ROWS = torch.arange(200.0)


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=9), size=st.integers(1, 60))
def test_streams_of_rows(cuts: list[int], size: int) -> None:
    cut = ROWS.tensor_split(sorted(cuts))
    found = list(blocks.chunks(cut, size))
    assert torch.equal(torch.cat(found), ROWS)
    assert all(len(chunk) == size for chunk in found[:-1]) and 0 < len(found[-1]) <= size
    spans = [(start, start + size) for start in range(0, 230, max(1, size // 2))]
    for (start, stop), rows in zip(spans, blocks.slices(cut, spans), strict=True):
        assert torch.equal(rows, ROWS[start:stop])
    kept = []
    for rows, first, stop in blocks.with_context(cut, 4):
        kept.append(rows[first:stop])
        assert first >= 4 or rows[0] == 0
        assert len(rows) - stop >= 4 or rows[-1] == ROWS[-1]
        assert torch.equal(rows, torch.arange(float(rows[0]), float(rows[-1]) + 1))
    assert torch.equal(torch.cat(kept), ROWS)
    assert torch.equal(torch.cat(list(blocks.padded(cut, 3))), torch.nn.functional.pad(ROWS, (3, 3)))


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(1, 4999), max_size=9), offset=st.sampled_from([0.0, 1.0, 1e4]))
def test_moments(cuts: list[int], offset: float) -> None:
    rows = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)).double() + offset
    moments = blocks.Moments()
    for block in rows.tensor_split(sorted(set(cuts))):
        moments.add(block)
    assert moments.count == 5000
    torch.testing.assert_close(moments.mean, rows.mean(dim=0))
    for unbiased in (False, True):
        torch.testing.assert_close(moments.variance(unbiased=unbiased), rows.var(dim=0, unbiased=unbiased))


def seconds_of_noise(n: int, heard: list[int]) -> Iterator[np.ndarray]:
    for second in range(n):
        heard[0] = second
        yield wav_of(16000, second)


@pytest.mark.parametrize("name", ["mfcc", "hubert-base"])
def test_pieces_come_while_the_recording_is_read(name: str) -> None:
    """After the first passes, a piece needs no more than its window: nothing is held but that."""
    encoder = tiny(name)
    heard = [0]
    for number, piece in enumerate(encoder.pieces(lambda: seconds_of_noise(200, heard))):
        ahead = heard[0] + 1 - (number + 1) * 30 if name == "mfcc" else heard[0] + 1 - (52 * number + 60)
        assert ahead <= 10 and piece.shape[1] == encoder.dim
    assert heard == [199]


def test_memory_is_that_of_two_windows() -> None:
    encoder = tiny("mfcc")
    peaks = []
    for minutes in (1, 4):
        tracemalloc.start()  # sees numpy, not torch: the blocks themselves
        frames = sum(len(piece) for piece in encoder.pieces(partial(seconds_of_noise, 60 * minutes, [0])))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert frames == encoder.n_frames(16000 * 60 * minutes)
    assert peaks[1] < 1.5 * peaks[0]


def test_errors_come_before_features() -> None:
    encoder = tiny("hubert-base")
    with pytest.raises(ValueError, match="wav of 0 samples is too short"):
        next(encoder.pieces(lambda: []))
    with pytest.raises(ValueError, match="wav of 300 samples is too short"):
        next(encoder.pieces(lambda: [WAV[:150], WAV[:150]]))
    with pytest.raises(ValueError, match="NaN"):
        next(encoder.pieces(lambda: [WAV, WAV * np.float32("nan")]))
    assert not torch.is_inference_mode_enabled()
    pieces = encoder.pieces(lambda: [WAV])
    next(pieces)
    assert not torch.is_inference_mode_enabled()  # nor between pieces

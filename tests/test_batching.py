"""Padded batches against one wav at a time: features to 1e-5 of a frame's length, and the same units."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_encoders import CHECKPOINTS, model_of, tiny, wav_of
from torch import Tensor

from unitkit.encoders import FILTERBANKS, batching, plain
from unitkit.quantizers import KMeans

N_UNITS = 100
LONGEST = 10 * 16000  # in every batch, so that all others are padded, most of them a lot
EXAMPLES = 16
FRAMES = 100_000 // len(CHECKPOINTS) + 1  # of each model: 10^5 in all


def units(features: Tensor, centroids: Tensor) -> Tensor:
    return torch.cdist(features.double(), centroids.double()).argmin(dim=1)


def centroids_of(encoder: Any) -> Tensor:
    """K-means with random frames for centroids: as many decisions as possible are close ones."""
    features = encoder(wav_of(10 * 16000, seed=77))
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:N_UNITS]]


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_batched_equals_alone(name: str) -> None:
    encoder = tiny(name)
    centroids = centroids_of(encoder)
    quantizer = KMeans(centroids[None], torch.zeros(encoder.dim), torch.ones(encoder.dim))
    frames = recomputed = 0

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(more=st.lists(st.integers(0, 160_000), min_size=1, max_size=5), seed=st.integers(0, 99))
    def check(more: list[int], seed: int) -> None:
        nonlocal frames, recomputed
        lengths = [*(encoder.min_samples + n for n in more), LONGEST]
        wavs = [wav_of(length, seed + place) for place, length in enumerate(lengths)]
        for wav, found in zip(wavs, encoder.batch(wavs, max_frames=10**6), strict=True):
            alone = encoder(wav)
            assert found.dtype == torch.float32 and not found.is_inference() and found.shape == alone.shape
            error = (found - alone).norm(dim=1) / alone.norm(dim=1)
            assert error.max() < 1e-5
            # Close calls, which this error might turn, are computed again alone by the tokenizer; no other may change.
            decided = ~quantizer.undecided(found, relative=1e-5)
            assert torch.equal(quantizer.assign(found)[decided], quantizer.assign(alone)[decided])
            frames, recomputed = frames + len(found), recomputed + int((~decided).sum())

    check()
    assert frames >= FRAMES and recomputed < 0.01 * frames


def padded_by_transformers(name: str, wavs: list[np.ndarray]) -> Tensor:
    """The first wav's last hidden state as people get it: one padded batch and its attention mask."""
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wav) for wav in wavs], batch_first=True)
    mask = torch.zeros(rows.shape, dtype=torch.long)
    for row, wav in zip(mask, wavs, strict=True):
        row[: len(wav)] = 1
    with torch.no_grad():
        return model_of(name)(rows, attention_mask=mask).last_hidden_state[0]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("name", ["hubert-base", "wavlm-base", "wav2vec2-base"])
def test_transformers_own_padding_changes_units_of_group_norm_models(name: str) -> None:
    """So that the test above can fail."""
    encoder = tiny(name, layer=4)
    wavs = [wav_of(5 * 16000, seed=1), wav_of(10 * 16000, seed=2)]
    alone, theirs, ours = encoder(wavs[0]), padded_by_transformers(name, wavs), encoder.batch(wavs, max_frames=10**6)[0]
    centroids = centroids_of(encoder)
    share = (units(theirs[: len(alone)], centroids) != units(alone, centroids)).double().mean()
    assert share > 0.25  # 0.53 to 0.58
    assert torch.equal(units(ours, centroids), units(alone, centroids))


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-large", "whisper"])
def test_batches_of_any_size_come_back_in_order(name: str) -> None:
    encoder = tiny(name)
    wavs = [wav_of(encoder.min_samples + 1700 * n, seed=n) for n in (9, 2, 30, 0, 17, 2, 5)]
    alone = [encoder(wav) for wav in wavs]
    for max_frames in (1, 60, 200, None):
        for found, expected in zip(encoder.batch(wavs, max_frames=max_frames), alone, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert encoder.batch([]) == []
    assert torch.equal(encoder.batch([torch.from_numpy(wavs[0])])[0], alone[0])


def test_wavs_beyond_a_window_go_through_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny("hubert-base")
    monkeypatch.setattr(encoder, "window_s", 2.0)
    monkeypatch.setattr(encoder, "context_s", 0.5)
    wavs = [wav_of(16000 * seconds, seed=seconds) for seconds in (1, 7, 2, 3)]
    for wav, found in zip(wavs, encoder.batch(wavs), strict=True):
        torch.testing.assert_close(found, encoder(wav), atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder.batch(wavs)[1], encoder(wavs[1]))


@pytest.mark.parametrize("name", [*FILTERBANKS, "hubert-base", "whisper"])
def test_engines_of_the_cpu_and_filterbanks_batch_bit_for_bit(name: str) -> None:
    encoder = tiny(name, engine="auto" if name != "whisper" else "plain")
    wavs = [wav_of(12345, seed=1), wav_of(23456, seed=2)]
    batched = encoder.batch(wavs, max_frames=1 if name == "whisper" else None)
    assert all(torch.equal(found, encoder(wav)) for found, wav in zip(batched, wavs, strict=True))


def test_a_bad_wav_is_named_by_its_place() -> None:
    encoder = tiny("hubert-base")
    good = wav_of(16000)
    with pytest.raises(ValueError, match=r"wavs\[1\]: wav of 399 samples is too short"):
        encoder.batch([good, good[:399]])
    with pytest.raises(ValueError, match=r"wavs\[2\]: wav holds NaN"):
        encoder.batch([good, good, good * np.float32("nan")])
    with pytest.raises(ValueError, match=r"wavs\[0\]: expected float samples"):
        encoder.batch([np.zeros((2, 16000), np.float32)])


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 500), max_size=30), max_frames=st.integers(1, 2000))
def test_buckets_hold_everything_once_and_stay_within_the_bound(lengths: list[int], max_frames: int) -> None:
    found = list(batching.buckets(lengths, max_frames))
    assert sorted(index for bucket in found for index in bucket) == list(range(len(lengths)))
    for bucket in found:
        longest = max(lengths[index] for index in bucket)
        assert len(bucket) == 1 or len(bucket) * longest <= max_frames
    for bucket, following in pairwise(found):
        assert max(lengths[i] for i in bucket) <= min(lengths[i] for i in following)
        assert (len(bucket) + 1) * lengths[following[0]] > max_frames  # none is smaller than it must be


def test_the_bound_comes_from_free_memory_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_of("hubert-base").config
    device, gigabyte = torch.device("cuda"), 2**30
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * gigabyte)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: gigabyte)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * gigabyte, 80 * gigabyte))
    found = batching.frames_that_fit(config, device, 500)
    assert found * batching.bytes_per_frame(config, 500) == pytest.approx(4 * gigabyte, rel=1e-3)
    assert batching.frames_that_fit(config, device, 3000) <= found
    assert batching.frames_that_fit(config, torch.device("cpu"), 500) == batching.CPU_FRAMES


def test_bytes_of_a_frame_of_hubert_base() -> None:
    config = SimpleNamespace(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, conv_stride=[5] + 6 * [2], conv_dim=[512] * 7
    )
    assert batching.bytes_per_frame(config, 100) == 4 * 3 * 64 * 512  # three tensors of the first convolution
    assert batching.bytes_per_frame(config, 3000) == 4 * (8 * 768 + 2 * 3072 + 6 * 12 * 3000)  # attention of a minute


def test_full_rows_need_no_mask() -> None:
    device = torch.device("cpu")
    assert plain.row_mask([7, 7], 7, device) is None
    mask = plain.row_mask([2, 0, 3], 3, device)
    assert mask is not None and mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]


@pytest.mark.parametrize("name", ["hubert-base", "data2vec-audio", "whisper"])
def test_eager_attention_takes_the_mask_too(name: str) -> None:
    encoder = tiny(name, layer=2)
    wavs = [wav_of(20000, seed=1), wav_of(50000, seed=2)]
    expected = encoder.batch(wavs)
    encoder.model.set_attn_implementation("eager")
    try:
        for found, other in zip(encoder.batch(wavs), expected, strict=True):
            torch.testing.assert_close(found, other, atol=1e-5, rtol=1e-5)
    finally:
        encoder.model.set_attn_implementation("sdpa")

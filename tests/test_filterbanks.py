"""MFCC and log-mel against slow references, torchaudio where it imports, and transformers."""

import numpy as np
import pytest
import torch
from reference_encoders import WAV, delta, kaldi_log_mels, mfcc39

from unitkit.encoders import filterbanks, load_encoder


@pytest.mark.parametrize(("name", "frames"), [("mfcc", 49), ("mfcc@100", 98), ("logmel", 49), ("logmel@100", 98)])
def test_one_second_gives_the_documented_frames(name: str, frames: int) -> None:
    assert load_encoder(name).n_frames(16000) == frames
    assert load_encoder(name, padding="center").n_frames(16000) == (50 if frames == 49 else 100)


def test_mfcc_equals_the_slow_reference() -> None:
    wav = np.concatenate([WAV[:4000], np.zeros(1500, np.float32), 0.5 * WAV[:1234]])  # digital silence as well
    expected = mfcc39(wav)
    np.testing.assert_allclose(load_encoder("mfcc@100")(wav).numpy(), expected, atol=2e-4, rtol=1e-5)
    np.testing.assert_allclose(load_encoder("mfcc")(wav).numpy(), expected[::2], atol=2e-4, rtol=1e-5)


def test_log_mel_equals_the_slow_reference() -> None:
    wav = WAV[:4321]
    expected = kaldi_log_mels(wav, 80)
    np.testing.assert_allclose(load_encoder("logmel@100")(wav).numpy(), expected, atol=1e-5, rtol=1e-5)
    stacked = load_encoder("logmel")(wav).numpy()
    np.testing.assert_allclose(stacked[:, :80], expected[0 : 2 * len(stacked) : 2], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(stacked[:, 80:], expected[1 : 2 * len(stacked) : 2], atol=1e-5, rtol=1e-5)


def test_deltas_of_a_ramp() -> None:
    ramp = np.arange(10.0)[:, None] * 3
    found = filterbanks.deltas(torch.from_numpy(ramp)).numpy()
    np.testing.assert_allclose(found[2:-2], 3)
    np.testing.assert_allclose(found, delta(ramp))


def test_mfcc_equals_torchaudio_where_it_works() -> None:
    try:
        import torchaudio.compliance.kaldi as kaldi
        from torchaudio.functional import compute_deltas
    except (ImportError, OSError) as error:
        pytest.skip(f"torchaudio does not import: {error}")
    wav = torch.from_numpy(WAV)[None]
    static = kaldi.mfcc(wav, sample_frequency=16000, use_energy=False).T  # the call in HuBERT's recipe
    first = compute_deltas(static)
    expected = torch.cat([static, first, compute_deltas(first)]).T
    torch.testing.assert_close(load_encoder("mfcc@100")(WAV), expected, atol=2e-3, rtol=1e-4)
    mels = kaldi.fbank(wav, sample_frequency=16000, num_mel_bins=80)
    torch.testing.assert_close(load_encoder("logmel@100")(WAV), mels, atol=2e-3, rtol=1e-4)


def test_filterbanks_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_encoder("mfcc")(WAV)
    monkeypatch.setattr(filterbanks, "BLOCK_FRAMES", 7)
    torch.testing.assert_close(load_encoder("mfcc")(WAV), whole, atol=1e-6, rtol=0)


def test_whisper_log_mels_equal_transformers() -> None:
    for n_mels in (80, 128):
        import transformers

        extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
        expected = extractor(WAV, sampling_rate=16000, return_tensors="pt").input_features[0]
        padded = torch.nn.functional.pad(torch.from_numpy(WAV), (0, 480000 - len(WAV)))
        found = filterbanks.whisper_log_mels(padded, n_mels=n_mels)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

"""What encoders are tested against: slow filterbanks in plain numpy, and tiny random models run by transformers."""

import math
import re
import tempfile
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

WAV = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
N_LAYERS = 4
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {**SMALL, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BERT = {"hidden_size": 32, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "intermediate_size": 48}
WHISPER = {
    "d_model": 32,
    "encoder_layers": N_LAYERS,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
CHECKPOINTS = {  # name -> (transformers class without Model/Config, fields)
    "hubert-base": ("Hubert", SMALL),
    "hubert-large": ("Hubert", LARGE),
    "wav2vec2-base": ("Wav2Vec2", SMALL),
    "wav2vec2-large": ("Wav2Vec2", LARGE),
    "wavlm-base": ("WavLM", SMALL),
    "wavlm-large": ("WavLM", LARGE),
    "mhubert": ("Hubert", {**SMALL, "conv_pos_batch_norm": True, "feat_proj_layer_norm": False}),
    "data2vec-audio": ("Data2VecAudio", {**SMALL, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}),
    "data2vec-audio-large": ("Data2VecAudio", {**SMALL, "num_conv_pos_embeddings": 5, "conv_bias": True}),
    "w2v-bert": ("Wav2Vec2Bert", BERT),
    "w2v-bert-large": ("Wav2Vec2Bert", {**BERT, "hidden_size": 48, "hidden_act": "relu", "num_attention_heads": 3}),
    "whisper": ("Whisper", WHISPER),
    "whisper-large": ("Whisper", {**WHISPER, "num_mel_bins": 128, "d_model": 48, "encoder_attention_heads": 3}),
}


@cache
def model_of(name: str) -> Any:
    """A tiny random model whose weights are far from their start, so that every norm and bias matters."""
    import transformers

    family, fields = CHECKPOINTS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@cache
def tiny(name: str, *, layer: int = 3, engine: str = "plain", precision: str = "float32", padding: str = "none") -> Any:
    """Our encoder of that model, or a filterbank of that name."""
    from unitkit.encoders import FILTERBANKS, load_encoder

    if name in FILTERBANKS:
        return load_encoder(name, padding=padding)
    with tempfile.TemporaryDirectory() as folder:
        model_of(name).save_pretrained(folder)
        return load_encoder(folder, layer=layer, padding=padding, engine=engine, precision=precision)


def wav_of(n_samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose loudness rises and falls, off zero: no two stretches of it have the same statistics."""
    rng = np.random.default_rng(seed)
    loudness = 0.05 * np.exp(1.5 * np.sin(np.arange(n_samples) / rng.uniform(2000, 20000) + rng.uniform(0, 6)))
    return (loudness * rng.standard_normal(n_samples) + 0.02).astype(np.float32)


def in_layers(names: Iterable[str], *numbers: int) -> list[str]:
    """The parameters of transformer layers, counted from 1 (not those of convolutions or of Whisper's decoder)."""
    pattern = "|".join(rf"layers\.{number - 1}\." for number in numbers)
    return [name for name in names if re.match(rf"(model\.)?(encoder\.)?({pattern})", name)]


def layers_of(name: str, inputs: Tensor) -> list[Tensor]:
    """What transformers' own model puts out at the input of layer 1 and after each layer, caught by hooks."""
    model = model_of(name)
    encoder, caught = model.encoder, []
    first = encoder.layers[0].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    hooks = [
        layer.register_forward_hook(lambda _, args, out: caught.append(out[0] if isinstance(out, tuple) else out))
        for layer in encoder.layers
    ]
    with torch.no_grad():
        (encoder if name.startswith("whisper") else model)(inputs)
    for hook in (first, *hooks):
        hook.remove()
    return [output[0] for output in caught]


def official_inputs(name: str, normalize: bool) -> Tensor:
    """What transformers' feature extractor of the family makes of WAV."""
    import transformers

    if name.startswith("w2v-bert"):
        extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)
        return extractor(WAV, sampling_rate=16000, return_tensors="pt").input_features
    if name.startswith("whisper"):
        extractor = transformers.WhisperFeatureExtractor(feature_size=model_of(name).config.num_mel_bins)
        return extractor(WAV, sampling_rate=16000, return_tensors="pt").input_features
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    return extractor(WAV, sampling_rate=16000, return_tensors="pt").input_values


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

"""Transformers speech models as encoders: what goes in, how frames are counted, and the layer that comes out."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from unitkit.encoders.filterbanks import FIELD, HOP, JSON, WavEncoder, log_mel_energies, whisper_log_mels

WINDOW_SECONDS, CONTEXT_SECONDS = 60, 4  # long recordings: window, and the context dropped at each joint
WHISPER_CONTEXT_SECONDS, WHISPER_PAD_SECONDS = 2, 2

# Config fields that change features without showing in the weights.
_COMMON = ("num_attention_heads", "hidden_act", "layer_norm_eps", "position_embeddings_type")
_WAVEFORM = ("do_stable_layer_norm", "feat_extract_norm", "feat_extract_activation", "conv_kernel", "conv_stride")
_POSITION = ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm", "max_bucket_distance")
_RELATIVE = ("left_max_position_embeddings", "right_max_position_embeddings")
_WHISPER = ("encoder_attention_heads", "activation_function")
ARCHITECTURE = _COMMON + _WAVEFORM + _POSITION + _RELATIVE + _WHISPER


class TransformerEncoder(WavEncoder):
    """A transformers speech model cut after layer `layer`; subclasses know what goes in and how frames are counted."""

    window_s: float = WINDOW_SECONDS
    context_s: float = CONTEXT_SECONDS
    normalize: bool = False

    def __init__(self, model: Any, *, layer: int, source: str, preprocessor: dict[str, Any], padding: str) -> None:
        """`model` already ends at `layer`; `source` says where it came from and is no part of the settings."""
        self.model = model.requires_grad_(False).eval()
        self.config = model.config
        self.layer, self.source = layer, source
        self.name = self.config.model_type
        self.padding = self._known_padding(padding)
        self.dim = self.config.hidden_size

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        raise NotImplementedError

    def settings(self) -> dict[str, JSON]:
        """Everything that changes the features; "weights" is the sha256 of the parameters used."""
        return {
            "features": self.name,
            "layer": self.layer,
            "convention": "after_residual",
            "normalize": self.normalize,
            "padding": self.padding,
            "sample_rate": self.sample_rate,
            "rate_hz": self.rate_hz,
            "window_s": self.window_s,
            "context_s": self.context_s,
            "architecture": _architecture(self.config),
            "weights": self.weights,
        }

    @cached_property
    def weights(self) -> str:
        """sha256 over name, shape and float32 bytes of every parameter and buffer used."""
        digest = hashlib.sha256()
        for name, tensor in sorted(_canonical_names(self.model.state_dict()).items()):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json of the cut model."""
        self.config.unitkit_layer = self.layer  # the default layer of a reload
        weights = {
            name: tensor.cpu().contiguous() for name, tensor in _canonical_names(self.model.state_dict()).items()
        }
        with quiet_transformers(local=True):
            self.config.save_pretrained(directory)
            self._feature_extractor().save_pretrained(directory)
        # Bytes first: save_file makes a file that only its owner may read.
        Path(directory, "model.safetensors").write_bytes(serialize(weights, metadata={"format": "pt"}))

    def to(self, device: str | torch.device) -> Self:
        """Move to a device and return the encoder."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def _encode(self, signal: Tensor) -> Tensor:
        prepared = self._prepare(signal)
        parts = []
        for start, kept, stop in _windows(self.n_frames(len(signal)), self._window_frames, self._context_frames):
            hidden = self._run(prepared, start, min(start + self._window_frames, self.n_frames(len(signal))))
            parts.append(hidden[kept - start : stop - start])
        return torch.cat(parts)

    @property
    def _window_frames(self) -> int:
        return int(self.window_s * self.rate_hz)

    @property
    def _context_frames(self) -> int:
        return int(self.context_s * self.rate_hz)

    def _prepare(self, signal: Tensor) -> Tensor:
        """What the windows are cut from, made once for the whole recording."""
        raise NotImplementedError

    def _run(self, prepared: Tensor, start: int, stop: int) -> Tensor:
        """Layer output (stop - start, dim) of the frames start .. stop."""
        raise NotImplementedError

    def _feature_extractor(self) -> Any:
        """The transformers front-end that matches, to be saved beside the weights."""
        raise NotImplementedError


class WaveformEncoder(TransformerEncoder):
    """HuBERT, wav2vec 2.0 and XLS-R, WavLM, data2vec-audio: convolutions on the waveform, then layers."""

    paddings = ("none", "center")

    def __init__(self, model: Any, *, layer: int, source: str, preprocessor: dict[str, Any], padding: str) -> None:
        """The final norm of a pre-norm model is taken out: we want the layer, not the model's output."""
        if getattr(model.config, "do_stable_layer_norm", False):
            model.encoder.layer_norm = nn.Identity()
        super().__init__(model, layer=layer, source=source, preprocessor=preprocessor, padding=padding)
        by_style = getattr(self.config, "feat_extract_norm", "layer") != "group"
        self.normalize = bool(preprocessor.get("do_normalize", by_style))
        self.sample_rate = preprocessor.get("sampling_rate", 16000)
        self.hop, self.field = _hop_and_field(self.config.conv_kernel, self.config.conv_stride)
        self.pad = (self.field - self.hop) // 2 if padding == "center" else 0
        self.min_samples = self.field - 2 * self.pad

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        return max(0, (n_samples + 2 * self.pad - self.field) // self.hop + 1) if n_samples >= self.min_samples else 0

    def _prepare(self, signal: Tensor) -> Tensor:
        if self.normalize:
            signal = (signal - signal.mean()) / torch.sqrt(signal.var(unbiased=False) + 1e-7)
        return nn.functional.pad(signal, (self.pad, self.pad))

    def _run(self, prepared: Tensor, start: int, stop: int) -> Tensor:
        # The samples after the last frame go in as well: group norm averages over them.
        last = (stop - 1) * self.hop + self.field
        end = len(prepared) if last + self.hop > len(prepared) else last
        return self.model(prepared[None, start * self.hop : end]).last_hidden_state[0]

    def _feature_extractor(self) -> Any:
        from transformers import Wav2Vec2FeatureExtractor

        return Wav2Vec2FeatureExtractor(do_normalize=self.normalize, sampling_rate=self.sample_rate)


class BertEncoder(TransformerEncoder):
    """w2v-BERT 2.0: Kaldi log-mels, normalised per bin over the recording, stacked in pairs, then conformer layers."""

    hop = 320
    min_samples = FIELD + HOP
    normalize = True  # per mel bin

    def __init__(self, model: Any, *, layer: int, source: str, preprocessor: dict[str, Any], padding: str) -> None:
        """An odd last log-mel frame is dropped, which is what masking it amounts to."""
        super().__init__(model, layer=layer, source=source, preprocessor=preprocessor, padding=padding)
        self.n_mels = self.config.feature_projection_input_dim // 2

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        return ((n_samples - FIELD) // HOP + 1) // 2 if n_samples >= self.min_samples else 0

    def _prepare(self, signal: Tensor) -> Tensor:
        mels = log_mel_energies(signal * 2**15, n_mels=self.n_mels)  # Kaldi's 16-bit scale
        mels = (mels - mels.mean(dim=0)) / torch.sqrt(mels.var(dim=0) + 1e-7)
        whole = len(mels) // 2
        return mels[: 2 * whole].reshape(whole, 2 * self.n_mels).float()

    def _run(self, prepared: Tensor, start: int, stop: int) -> Tensor:
        return self.model(prepared[None, start:stop]).last_hidden_state[0]

    def _feature_extractor(self) -> Any:
        from transformers import SeamlessM4TFeatureExtractor

        return SeamlessM4TFeatureExtractor(feature_size=self.n_mels, num_mel_bins=self.n_mels, padding_value=1.0)


class WhisperEncoder(TransformerEncoder):
    """Whisper's encoder on the audio and 2 s of zeros after it; padding="full" takes zeros up to 30 s, as Whisper does.

    Full windows cost ten times more on short clips for slightly better units (k-means of whisper-base layer 4 on short
    prompts: PNMI .577 and .591). The zeros are in the settings ("pad_s"). Frames after the audio are cut off.
    """

    hop = 320
    min_samples = 320
    context_s = WHISPER_CONTEXT_SECONDS
    paddings = ("none", "full")

    def __init__(self, model: Any, *, layer: int, source: str, preprocessor: dict[str, Any], padding: str) -> None:
        """The model is only the encoder half; its final norm is taken out."""
        model.layer_norm = nn.Identity()
        super().__init__(model, layer=layer, source=source, preprocessor=preprocessor, padding=padding)
        self.window_s = self.config.max_source_positions / self.rate_hz
        self.pad_s = self.window_s if padding == "full" else WHISPER_PAD_SECONDS
        self.dim = self.config.d_model

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        return n_samples // self.hop

    def settings(self) -> dict[str, JSON]:
        """Everything that changes the features."""
        return {**super().settings(), "pad_s": self.pad_s}

    def _prepare(self, signal: Tensor) -> Tensor:
        return signal

    def _run(self, prepared: Tensor, start: int, stop: int) -> Tensor:
        last = stop * self.hop
        end = len(prepared) if last + self.hop > len(prepared) else last
        length = min(self._window_frames, stop - start + int(self.pad_s * self.rate_hz)) * self.hop
        piece = prepared[start * self.hop : end][:length]
        mels = whisper_log_mels(nn.functional.pad(piece, (0, length - len(piece))), n_mels=self.config.num_mel_bins)
        model = self.model
        hidden = nn.functional.gelu(model.conv1(mels[None]))
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)  # (1, frames, dim)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        for block in model.layers:
            output = block(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden[0, : stop - start]

    def _feature_extractor(self) -> Any:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self.config.num_mel_bins)


def _windows(n_frames: int, window: int, context: int) -> Iterator[tuple[int, int, int]]:
    """(start of the window, first frame kept, end of the frames kept); every window is full where there are several."""
    if n_frames <= window:
        yield 0, 0, n_frames
        return
    step = window - 2 * context
    for kept in range(0, n_frames, step):
        yield min(max(0, kept - context), n_frames - window), kept, min(kept + step, n_frames)


def _architecture(config: Any) -> dict[str, JSON]:
    """The fields of ARCHITECTURE this config has, as they look after a trip through JSON."""
    found = {key: getattr(config, key) for key in ARCHITECTURE if hasattr(config, key)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _hop_and_field(kernels: list[int], strides: list[int]) -> tuple[int, int]:
    """Hop and receptive field in samples of stacked convolutions."""
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return hop, field


def _canonical_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old and new torch name the two halves of a weight norm differently; the hash must not see it."""
    renamed = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    result = {}
    for name, tensor in weights.items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        result[name] = tensor
    return result


@contextmanager
def quiet_transformers(*, local: bool) -> Iterator[None]:
    """No reports of the layers we leave out on purpose; download bars stay."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

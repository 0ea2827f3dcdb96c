"""The families of transformers speech models: what goes in, how frames are counted, and how a padded batch is run."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

import unitkit.encoders.engines as engines
import unitkit.encoders.plain as plain
from unitkit.encoders.batching import padded_rows
from unitkit.encoders.blocks import Moments, chunks, hop_and_field, padded
from unitkit.encoders.filterbanks import BLOCK_FRAMES, FIELD, HOP, JSON, log_mel_blocks, whisper_log_mels
from unitkit.encoders.group_norm import WindowSums
from unitkit.encoders.transformer import Cut, Norm, Samples, Survey, TransformerEncoder

WHISPER_CONTEXT_SECONDS, WHISPER_PAD_SECONDS = 2, 2


class WaveformEncoder(TransformerEncoder):
    """HuBERT, wav2vec 2.0 and XLS-R, WavLM, data2vec-audio: convolutions on the waveform, then layers."""

    paddings = ("none", "center")

    def __init__(self, cut: Cut, *, padding: str, arithmetic: engines.Arithmetic = engines.FLOAT32) -> None:
        """The final norm of a pre-norm model is taken out: we want the layer, not the model's output."""
        if getattr(cut.model.config, "do_stable_layer_norm", False):
            cut.model.encoder.layer_norm = nn.Identity()
        super().__init__(cut, padding=padding, arithmetic=arithmetic)
        by_style = getattr(self.config, "feat_extract_norm", "layer") != "group"
        self.normalize = bool(cut.preprocessor.get("do_normalize", by_style))
        self.sample_rate = cut.preprocessor.get("sampling_rate", 16000)
        self.hop, self.field = hop_and_field(self.config.conv_kernel, self.config.conv_stride)
        self.pad = (self.field - self.hop) // 2 if padding == "center" else 0
        self.min_samples = self.field - 2 * self.pad
        self.grouped = isinstance(self.model.feature_extractor.conv_layers[0].layer_norm, nn.GroupNorm)
        self._built: engines.Engine | None = None

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        return max(0, (n_samples + 2 * self.pad - self.field) // self.hop + 1) if n_samples >= self.min_samples else 0

    def to(self, device: str | torch.device) -> Self:
        """Move to a device and return the encoder."""
        self._built = None
        return super().to(device)

    def _survey(self, samples: Samples) -> Survey:
        moments, total = Moments(), 0
        for chunk in samples():
            total += len(chunk)
            if self.normalize:
                moments.add(chunk)
        survey = Survey(self.n_frames(total))
        if self.normalize:
            deviation = torch.sqrt(moments.variance(unbiased=False) + 1e-7)
            survey = Survey(self.n_frames(total), moments.mean, deviation)
        return replace(survey, norm=self._group_norm(samples, survey)) if self.grouped else survey

    def _group_norm(self, samples: Samples, survey: Survey) -> tuple[Tensor, Tensor]:
        first = self.model.feature_extractor.conv_layers[0]
        sums = WindowSums(self.config.conv_kernel[0], self.config.conv_stride[0])
        for block in self._inputs(samples, survey):
            sums.add(block)
        norm = first.layer_norm
        return sums.affine(first.conv.weight, norm.weight, norm.bias, norm.eps)

    def _inputs(self, samples: Samples, survey: Survey) -> Iterator[Tensor]:
        chunks = samples()
        if survey.mean is not None:
            chunks = (((chunk.double() - survey.mean) / survey.deviation).float() for chunk in chunks)
        return padded(chunks, self.pad)

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        return start * self.hop, (stop - 1) * self.hop + self.field

    def _run(self, rows: Tensor, n_frames: int, survey: Survey) -> Tensor:
        if self.engine == "plain":
            return super()._run(rows, n_frames, survey)
        if self._built is None:
            self._built = engines.build(self.engine, self.model, layer=self.layer, precision=self.arithmetic.precision)
        return self._built.hidden(rows, norm=survey.norm)

    def _forward(self, rows: list[Tensor], lengths: list[int], norms: list[Norm | None]) -> list[Tensor]:
        signals = padded_rows(rows).to(self.device)
        norm = None
        if self.grouped:
            scales, shifts = zip(*(norm for norm in norms if norm is not None), strict=True)
            norm = torch.stack(scales).float().to(self.device), torch.stack(shifts).float().to(self.device)
        with self._precision():
            hidden = plain.waveform_hidden(self.model, signals, lengths, norm)
        return [row[:length].float() for row, length in zip(hidden, lengths, strict=True)]

    def _feature_extractor(self) -> Any:
        from transformers import Wav2Vec2FeatureExtractor

        return Wav2Vec2FeatureExtractor(do_normalize=self.normalize, sampling_rate=self.sample_rate)


class BertEncoder(TransformerEncoder):
    """w2v-BERT 2.0: Kaldi log-mels, normalised per bin over the recording, stacked in pairs, then conformer layers."""

    hop = 320
    min_samples = FIELD + HOP
    normalize = True  # per mel bin

    def __init__(self, cut: Cut, *, padding: str, arithmetic: engines.Arithmetic = engines.FLOAT32) -> None:
        """An odd last log-mel frame is dropped, which is what masking it amounts to."""
        super().__init__(cut, padding=padding, arithmetic=arithmetic)
        self.n_mels = self.config.feature_projection_input_dim // 2

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        return ((n_samples - FIELD) // HOP + 1) // 2 if n_samples >= self.min_samples else 0

    def _mels(self, samples: Samples) -> Iterator[Tensor]:
        device = "cpu" if self.device.type == "mps" else self.device  # which has no double precision
        scaled = (chunk.to(device) * 2**15 for chunk in samples())  # Kaldi's 16-bit scale
        return log_mel_blocks(scaled, n_mels=self.n_mels)

    def _survey(self, samples: Samples) -> Survey:
        moments = Moments()
        for mels in self._mels(samples):
            moments.add(mels)
        deviation = torch.sqrt(moments.variance(unbiased=True) + 1e-7)
        return Survey(moments.count // 2, moments.mean, deviation)

    def _inputs(self, samples: Samples, survey: Survey) -> Iterator[Tensor]:
        for mels in chunks(self._mels(samples), 2 * BLOCK_FRAMES):
            pairs = len(mels) // 2
            yield ((mels - survey.mean) / survey.deviation)[: 2 * pairs].reshape(pairs, 2 * self.n_mels).float()

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        return start, stop

    def _forward(self, rows: list[Tensor], lengths: list[int], norms: list[Norm | None]) -> list[Tensor]:
        mels = padded_rows(rows).to(self.device)
        # Zeros beyond a row: the convolutions of the conformer look back only, so the mask of transformers is enough.
        mask = plain.row_mask(lengths, mels.shape[1], mels.device)
        with self._precision():
            hidden = self.model(mels, attention_mask=mask).last_hidden_state
        return [row[:length].float() for row, length in zip(hidden, lengths, strict=True)]

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
    statistics = None  # the floor of the mels is set by the peak of each window
    paddings = ("none", "full")

    def __init__(self, cut: Cut, *, padding: str, arithmetic: engines.Arithmetic = engines.FLOAT32) -> None:
        """The model is only the encoder half; its final norm is taken out."""
        cut.model.layer_norm = nn.Identity()
        super().__init__(cut, padding=padding, arithmetic=arithmetic)
        self.window_s = self.config.max_source_positions / self.rate_hz
        self.pad_s = self.window_s if padding == "full" else WHISPER_PAD_SECONDS
        self.dim = self.config.d_model

    def n_frames(self, n_samples: int) -> int:
        """Frames that a wav of `n_samples` gives."""
        return n_samples // self.hop

    def settings(self) -> dict[str, JSON]:
        """Everything that changes the features."""
        return {**super().settings(), "pad_s": self.pad_s}

    def _width(self, n_frames: int) -> int:
        return min(self._window_frames, n_frames + int(self.pad_s * self.rate_hz))

    def _survey(self, samples: Samples) -> Survey:
        return Survey(self.n_frames(sum(len(chunk) for chunk in samples())))

    def _inputs(self, samples: Samples, survey: Survey) -> Iterator[Tensor]:
        return samples()

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        return start * self.hop, (stop + 1) * self.hop  # with what follows the last frame, less than a hop

    def _forward(self, rows: list[Tensor], lengths: list[int], norms: list[Norm | None]) -> list[Tensor]:
        widths = [self._width(length) for length in lengths]
        mels = padded_rows([self._mels(row, width * self.hop).T for row, width in zip(rows, widths, strict=True)])
        with self._precision():
            hidden = plain.whisper_hidden(self.model, mels.transpose(1, 2), widths)
        return [row[:length].float() for row, length in zip(hidden, lengths, strict=True)]

    def _mels(self, samples: Tensor, length: int) -> Tensor:
        """Log-mels (n_mels, frames) of the samples and zeros up to `length`, their floor by their own peak."""
        piece = samples[:length].to(self.device)
        return whisper_log_mels(nn.functional.pad(piece, (0, length - len(piece))), n_mels=self.config.num_mel_bins)

    def _feature_extractor(self) -> Any:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self.config.num_mel_bins)

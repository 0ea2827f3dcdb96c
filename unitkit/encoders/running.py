"""A transformer on audio that is still arriving: windows with the statistics of everything heard so far."""

import numpy as np
import torch
from torch import Tensor

from unitkit.encoders.blocks import Moments
from unitkit.encoders.families import BertEncoder, WaveformEncoder
from unitkit.encoders.filterbanks import HOP, log_mel_blocks
from unitkit.encoders.group_norm import WindowSums
from unitkit.encoders.transformer import Survey, TransformerEncoder


class Running:
    """What an encoder normalises with, kept up as samples arrive, and windows encoded with it.

    The encoder itself takes mean, deviation and group norm from the whole recording; here they are those of the past,
    so features come closer to its own the longer the audio runs. Memory does not grow.
    """

    def __init__(self, encoder: TransformerEncoder) -> None:
        """Nothing heard yet."""
        self.encoder = encoder
        self._moments = Moments()  # of the samples, or of each mel bin
        self._tail = torch.zeros(0)  # samples whose mel frames are not yet complete
        self._sums: WindowSums | None = None
        if isinstance(encoder, WaveformEncoder) and encoder.grouped:
            self._sums = WindowSums(encoder.config.conv_kernel[0], encoder.config.conv_stride[0])

    def add(self, samples: np.ndarray) -> None:
        """Hear the next samples (n,) float32."""
        block = torch.from_numpy(samples)
        if not len(block):
            return
        if isinstance(self.encoder, BertEncoder):
            self._add_mels(block)
        elif self.encoder.normalize:
            self._moments.add(block)
        if self._sums is not None:
            # Once normalised by what was known then, as the model sees it; base models mostly do not normalise.
            self._sums.add(self._normalized(block))

    def features(self, samples: np.ndarray) -> Tensor:
        """One stretch (n,) of what was heard, no longer than a window, to (frames, dim) float32."""
        encoder, block = self.encoder, torch.from_numpy(samples)
        with encoder._computing():
            survey = self._survey(encoder.n_frames(len(block)))
            rows = torch.cat(list(encoder._inputs(lambda: iter([block]), survey)))
            found = encoder._run(rows, survey.n_frames, survey)
        return found.clone()

    def _survey(self, n_frames: int) -> Survey:
        mean, deviation = self._statistics()
        if self._sums is None:
            return Survey(n_frames, mean, deviation)
        first = self.encoder.model.feature_extractor.conv_layers[0]
        weight, norm = first.conv.weight, first.layer_norm
        return Survey(n_frames, mean, deviation, self._sums.affine(weight, norm.weight, norm.bias, norm.eps))

    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        if not self._moments.count:
            return None, None
        unbiased = isinstance(self.encoder, BertEncoder) and self._moments.count > 1
        return self._moments.mean, torch.sqrt(self._moments.variance(unbiased=unbiased) + 1e-7)

    def _normalized(self, block: Tensor) -> Tensor:
        mean, deviation = self._statistics()
        return block if mean is None else ((block.double() - mean) / deviation).float()

    def _add_mels(self, block: Tensor) -> None:
        heard = torch.cat([self._tail, block])
        n_mels = self.encoder.config.feature_projection_input_dim // 2
        n_frames = 0
        for mels in log_mel_blocks([heard.to(self.encoder.device) * 2**15], n_mels=n_mels):
            self._moments.add(mels)
            n_frames += len(mels)
        self._tail = heard[n_frames * HOP :].clone()

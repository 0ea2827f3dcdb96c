"""Transformers speech models as encoders: settings, windows over long recordings, and padded batches of short ones."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

import unitkit.encoders.engines as engines
from unitkit.encoders.batching import buckets, frames_that_fit
from unitkit.encoders.blocks import slices, windows
from unitkit.encoders.filterbanks import JSON, OpenWav, Wav, WavEncoder
from unitkit.encoders.weights import digest, write_weights

WINDOW_SECONDS, CONTEXT_SECONDS = 60, 4  # long recordings: window, and the context dropped at each joint

# Config fields that change features without showing in the weights.
_COMMON = ("num_attention_heads", "hidden_act", "layer_norm_eps", "position_embeddings_type")
_WAVEFORM = ("do_stable_layer_norm", "feat_extract_norm", "feat_extract_activation", "conv_kernel", "conv_stride")
_POSITION = ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm", "max_bucket_distance")
_RELATIVE = ("left_max_position_embeddings", "right_max_position_embeddings")
_WHISPER = ("encoder_attention_heads", "activation_function")
ARCHITECTURE = _COMMON + _WAVEFORM + _POSITION + _RELATIVE + _WHISPER


Norm = tuple[Tensor, Tensor]
Samples = Callable[[], Iterator[Tensor]]  # checked chunks of a recording, from the start each time


@dataclass(frozen=True)
class Cut:
    """A transformers model that ends at `layer`; `source` says where it came from and is no part of the settings."""

    model: Any
    layer: int
    source: str
    preprocessor: dict[str, Any]  # preprocessor_config.json, or nothing


@dataclass(frozen=True)
class Survey:
    """What a first pass over a recording finds: frames, and the statistics of the whole that windows are run with."""

    n_frames: int
    mean: Tensor | None = None  # of the samples or of each mel bin, where the encoder normalises
    deviation: Tensor | None = None
    norm: Norm | None = None  # scale and shift (channels,) of the first group norm


class TransformerEncoder(WavEncoder):
    """A transformers speech model cut after layer `layer`; subclasses know what goes in and how frames are counted."""

    window_s: float = WINDOW_SECONDS
    context_s: float = CONTEXT_SECONDS
    normalize: bool = False
    statistics: str | None = "recording"  # what normalisations average over; None where there is none

    def __init__(self, cut: Cut, *, padding: str, arithmetic: engines.Arithmetic = engines.FLOAT32) -> None:
        """Raises ValueError for a padding the family does not know."""
        self.model = cut.model.requires_grad_(False).eval()
        self.config = self.model.config
        self.layer, self.source = cut.layer, cut.source
        self.name = self.config.model_type
        self.padding = self._known_padding(padding)
        self.dim = self.config.hidden_size
        self.arithmetic = arithmetic

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
            **({"statistics": self.statistics} if self.statistics else {}),
            "architecture": _architecture(self.config),
            "weights": self.weights,
            **self._arithmetic_settings(),
        }

    def _arithmetic_settings(self) -> dict[str, JSON]:
        """float32 gives the same units on every engine and is not named; anything else makes another tokenizer."""
        if self.arithmetic.precision == "float32":
            return {}
        return {"arithmetic": f"{self.engine} {self.arithmetic.precision}"}

    @property
    def engine(self) -> str:
        """What computes: "plain", "fast" or "openvino"."""
        return engines.resolve(self.arithmetic, self.config, self.device)

    @cached_property
    def weights(self) -> str:
        """sha256 over name, shape and float32 bytes of every parameter and buffer used."""
        return digest(canonical_names(self.model.state_dict()))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json of the cut model."""
        self.config.unitkit_layer = self.layer  # the default layer of a reload
        with quiet_transformers(local=True):
            self.config.save_pretrained(directory)
            self._feature_extractor().save_pretrained(directory)
        write_weights(canonical_names(self.model.state_dict()), Path(directory, "model.safetensors"))

    def to(self, device: str | torch.device) -> Self:
        """Move to a device and return the encoder."""
        self.device = torch.device(device)
        engines.resolve(self.arithmetic, self.config, self.device)  # or say what does not go together
        self.model.to(self.device)
        return self

    def batch(self, wavs: Sequence[Wav], *, max_frames: int | None = None) -> list[Tensor]:
        """Features of several wavs in their order, as of one at a time to 1e-5 of a frame's length.

        Wavs of like length share padded batches of at most `max_frames` frames, padding included; by default as many as
        the memory takes. Wavs longer than a window go alone, and so do all on the engines for the CPU, where padding is
        slower than one at a time. Raises ValueError naming the wav that is too short or not finite.
        """
        lengths = [self._checked_length(index, wav) for index, wav in enumerate(wavs)]
        features: list[Tensor | None] = [None] * len(wavs)
        together = [index for index, n_frames in enumerate(lengths) if n_frames <= self._window_frames]
        if self.engine != "plain":
            together = []
        widths = [self._width(lengths[index]) for index in together]
        if max_frames is None:
            max_frames = frames_that_fit(self.config, self.device, max(widths, default=1))
        for bucket in buckets(widths, max_frames):
            if len(bucket) > 1:
                chosen = [together[position] for position in bucket]
                for index, found in zip(chosen, self._together([wavs[index] for index in chosen]), strict=True):
                    features[index] = found
        return [self(wav) if found is None else found for wav, found in zip(wavs, features, strict=True)]

    def _checked_length(self, index: int, wav: Wav) -> int:
        """Frames of the wav; a wav at fault is named by its place in the list."""
        try:
            return self.n_frames(sum(len(chunk) for chunk in self._samples(lambda: [wav])))
        except ValueError as error:
            raise ValueError(f"wavs[{index}]: {error}") from error

    def _together(self, wavs: Sequence[Wav]) -> list[Tensor]:
        """Features of wavs no longer than a window, in one padded batch."""
        with self._computing():
            found = self.differentiable(wavs)
        return [features.clone() for features in found]  # outside, so that they are ordinary tensors

    def differentiable(self, wavs: Sequence[Wav]) -> list[Tensor]:
        """Features of wavs no longer than a window, from one padded batch, with gradients, for fine-tuning.

        None flow through the statistics of the input and of the first group norm. Weights learn where they are set to.
        """
        rows, surveys = [], []
        with torch.no_grad():
            for wav in wavs:
                samples = self._held(partial(_one_block, wav))
                surveys.append(self._survey(samples))
                rows.append(torch.cat(list(self._inputs(samples, surveys[-1]))))
        return self._forward(rows, [survey.n_frames for survey in surveys], [survey.norm for survey in surveys])

    def _stream(self, open_wav: OpenWav) -> Iterator[Tensor]:
        samples = self._held(open_wav)
        survey = self._survey(samples)
        window = self._window_frames
        joints = list(windows(survey.n_frames, window, self._context_frames))
        spans = (self._span(start, min(start + window, survey.n_frames)) for start, _, _ in joints)
        inputs = slices(self._inputs(samples, survey), spans)
        for (start, first, stop), rows in zip(joints, inputs, strict=True):
            n_frames = min(window, survey.n_frames - start)
            yield self._run(rows, n_frames, survey)[first - start : stop - start]

    def _held(self, open_wav: OpenWav) -> Samples:
        """The chunks of a recording. One that is no longer than a window is read once, others once for each pass."""
        limit = (self.window_s + 1) * self.sample_rate
        held: list[Tensor] = []
        total = 0
        for chunk in self._samples(open_wav):
            held.append(chunk)
            total += len(chunk)
            if total > limit:
                return lambda: self._samples(open_wav)
        return lambda: iter(held)

    @property
    def _window_frames(self) -> int:
        return int(self.window_s * self.rate_hz)

    @property
    def _context_frames(self) -> int:
        return int(self.context_s * self.rate_hz)

    def _width(self, n_frames: int) -> int:
        """Frames that go through the model for a wav of `n_frames`."""
        return n_frames

    def _survey(self, samples: Samples) -> Survey:
        """Statistics of the whole recording."""
        raise NotImplementedError

    def _inputs(self, samples: Samples, survey: Survey) -> Iterator[Tensor]:
        """The recording as the model takes it, in blocks of rows that windows are cut from."""
        raise NotImplementedError

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """The rows of `_inputs` that the frames start .. stop need."""
        raise NotImplementedError

    def _run(self, rows: Tensor, n_frames: int, survey: Survey) -> Tensor:
        """Layer output (n_frames, dim) float32 of one window."""
        return self._forward([rows], [n_frames], [survey.norm])[0]

    def _forward(self, rows: list[Tensor], lengths: list[int], norms: list[Norm | None]) -> list[Tensor]:
        """Layer outputs (frames, dim) float32 of a padded batch, through transformers' own modules."""
        raise NotImplementedError

    def _precision(self) -> AbstractContextManager[Any]:
        """bfloat16 for the model alone: what goes in is made, and the statistics taken, in full."""
        if self.arithmetic.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _feature_extractor(self) -> Any:
        """The transformers front-end that matches, to be saved beside the weights."""
        raise NotImplementedError


def _one_block(wav: Wav) -> list[Wav]:
    return [wav]


def _architecture(config: Any) -> dict[str, JSON]:
    """The fields of ARCHITECTURE this config has, as they look after a trip through JSON."""
    found = {key: getattr(config, key) for key in ARCHITECTURE if hasattr(config, key)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def canonical_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
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

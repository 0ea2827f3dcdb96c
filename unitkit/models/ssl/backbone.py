"""The encoder that is trained, in one of transformers' layouts, so that `load_encoder` reads what is saved."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.encoders import load_encoder
from unitkit.encoders.families import WHISPER_PAD_SECONDS
from unitkit.encoders.filterbanks import FIELD, HOP, log_mel_blocks, whisper_log_mels
from unitkit.encoders.transformer import quiet_transformers
from unitkit.models.ssl.blocks import SslError, scale_gradient

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # 50 Hz at 16 kHz, all models
N_MELS = 80
PAD = 2 * HOP * 50 * WHISPER_PAD_SECONDS  # samples of silence that Whisper's layout hears after the speech
LAYOUTS = {  # class and configuration in transformers
    "hubert": ("HubertModel", "HubertConfig"),
    "data2vec-audio": ("Data2VecAudioModel", "Data2VecAudioConfig"),
    "wav2vec2-bert": ("Wav2Vec2BertModel", "Wav2Vec2BertConfig"),
    "whisper": ("models.whisper.modeling_whisper.WhisperEncoder", "WhisperConfig"),
}


@dataclass(frozen=True)
class EncoderConfig:
    """A transformer on a front end; the defaults are the small size, which trains on two CPU cores.

    `layout`: "hubert" (convolutions with group norm on the waveform), "data2vec-audio" (with layer norm, as DinoSR
    and data2vec have it, and a deeper positional convolution), "wav2vec2-bert" (Kaldi log-mels in pairs and
    conformer layers: transformers' layout for log-mel input) or "whisper" (its log-mels, two convolutions, 2 s of
    silence after the speech).  `start` is the directory of an encoder of this layout and these dimensions, whose
    front end and first layers training begins with.
    """

    layout: str = "hubert"
    start: str = ""
    dim: int = 192
    layers: int = 6
    heads: int = 4
    hidden: int = 768
    conv_dims: tuple[int, ...] = (64, 96, 128, 192, 192, 192, 192)  # of the layouts on the waveform
    dropout: float = 0.1
    input_dropout: float = 0.1
    layerdrop: float = 0.0  # in distributed training 0: all processes must use the same layers
    feature_grad: float = 0.1  # scale of the gradient that the convolutions get

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.layout not in LAYOUTS:
            raise SslError(f"layout {self.layout!r} is unknown; known: {', '.join(LAYOUTS)}")
        if self.dim % self.heads or self.dim % 16:
            raise SslError(f"dim {self.dim} is not a multiple of heads {self.heads} and of 16")
        if len(self.conv_dims) != len(KERNELS):
            raise SslError(f"conv_dims {self.conv_dims}: one number for each of {len(KERNELS)} convolutions")

    @property
    def mels(self) -> bool:
        """Whether the front end is a filterbank in pairs."""
        return self.layout == "wav2vec2-bert"

    @property
    def whisper(self) -> bool:
        """Whether it is Whisper's."""
        return self.layout == "whisper"


BASE = EncoderConfig(dim=768, layers=12, heads=12, hidden=3072, conv_dims=(512,) * 7, layerdrop=0.05)  # the papers'


class Passed(NamedTuple):
    """Of each layer its output and its feed-forward output before the residual, (batch, frames, dim).

    The latter are left out in Whisper's layout.
    """

    outputs: list[Tensor]
    results: list[Tensor]


def transformers_config(config: EncoderConfig) -> Any:
    """The configuration of transformers for an encoder."""
    import transformers

    if config.whisper:
        return transformers.WhisperConfig(
            d_model=config.dim,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.hidden,
            num_mel_bins=N_MELS,
            dropout=config.dropout,
            encoder_layerdrop=config.layerdrop,
            decoder_layers=0,
        )
    shared: dict[str, Any] = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,  # ours: the teacher takes the features without it
        "layerdrop": config.layerdrop,
        "mask_time_prob": 0.05,  # any number above 0 makes the mask embedding
    }
    if config.mels:
        shared |= {"feature_projection_input_dim": 2 * N_MELS, "conformer_conv_dropout": config.dropout}
    else:
        shared |= {"conv_dim": config.conv_dims, "conv_kernel": KERNELS, "conv_stride": STRIDES}
    return getattr(transformers, LAYOUTS[config.layout][1])(**shared)


def _new(config: EncoderConfig) -> Any:
    """A model of the layout, with random weights or those of `config.start`."""
    import transformers

    kind: Any = transformers
    for part in LAYOUTS[config.layout][0].split("."):
        kind = getattr(kind, part)
    model = kind(transformers_config(config))
    if config.start:
        _begin_with(model, config)
    if config.whisper:
        model.layer_norm = nn.Identity()  # the units are of a layer, never of what follows the last
    return model


def _begin_with(model: nn.Module, config: EncoderConfig) -> None:
    """Takes the front end and the first layers of another encoder; its mask embedding, if any, was not kept."""
    other: Any = load_encoder(config.start, layer=config.layers, engine="plain")
    if getattr(other, "name", None) != config.layout:
        raise SslError(f"start={config.start!r} is {getattr(other, 'name', 'no transformer')!r}, not {config.layout!r}")
    own, found = model.state_dict(), other.model.state_dict()
    for name, tensor in found.items():
        if name not in own or own[name].shape != tensor.shape:
            shape = list(own[name].shape) if name in own else None
            raise SslError(f"start={config.start!r}: {name} is {list(tensor.shape)} there, {shape} here")
    model.load_state_dict(found, strict=False)


class Backbone(nn.Module):
    """Wavs of one length (batch, samples) to the outputs of all layers.

    No padding: batches are crops of one length, as in the papers, so that the statistics of group norm and of the
    log-mels are those of speech.  They are taken over the crop, where `load_encoder` takes them over the recording.
    """

    hop = 2 * HOP

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        fields = {"wav2vec2-bert": FIELD + HOP, "whisper": self.hop}  # Whisper's frames reach beyond, into the padding
        self.field = fields.get(config.layout, FIELD)  # samples that a frame sees
        self.model = _new(config)

    def features(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        """What the mask covers and the layers take (batch, frames, dim), and the mean square of the features.

        In Whisper's layout the frames of the silence that it hears after the speech come with them.
        """
        if self.config.whisper:
            more = PAD - wav.shape[1] % self.hop  # so that a last piece of a frame does not add one
            mels = torch.stack([whisper_log_mels(F.pad(row.float(), (0, more)), n_mels=N_MELS) for row in wav])
            hidden = F.gelu(self.model.conv2(F.gelu(self.model.conv1(mels)))).transpose(1, 2)
            return hidden, hidden.new_zeros(())
        if self.config.mels:
            features = torch.stack([normalised_mels(row) for row in wav])
            return self.model.feature_projection(features)[0], features.new_zeros(())
        if self.config.layout == "data2vec-audio":
            wav = normalised(wav)
        features = scale_gradient(self.model.feature_extractor(wav), self.config.feature_grad)
        projected = self.model.feature_projection(features.transpose(1, 2))
        projected = projected[0] if isinstance(projected, tuple) else projected
        return projected, features.float().square().mean()

    def masked(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features with dropout, and the mask embedding where `mask` (batch, frames) is true."""
        features = F.dropout(features, self.config.input_dropout, self.training)
        # Whisper's layout has no mask embedding.
        cover = features.new_zeros(()) if self.config.whisper else self.model.masked_spec_embed.to(features.dtype)
        return torch.where(mask[:, :, None], cover, features)

    def forward(self, wav: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Outputs of the layers, each (batch, frames, dim)."""
        features, _ = self.features(wav)
        outputs = self.through(features if mask is None else self.masked(features, mask)).outputs
        return [x[:, : wav.shape[1] // self.hop] for x in outputs] if self.config.whisper else outputs

    def through(self, features: Tensor) -> Passed:
        """What `features` and `masked` gave, through the layers."""
        if not self.config.whisper:
            return through_layers(self.model.encoder, features)
        hidden, outputs = features + self.model.embed_positions.weight[: features.shape[1]], []
        for layer in self.model.layers:
            hidden = layer(hidden, None)
            outputs.append(hidden)
        return Passed(outputs, [])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes config.json, model.safetensors and preprocessor_config.json, as `load_encoder` reads them."""
        import transformers

        if self.config.mels:
            extractor: Any = transformers.SeamlessM4TFeatureExtractor(
                feature_size=N_MELS, num_mel_bins=N_MELS, padding_value=1.0
            )
        elif self.config.whisper:
            extractor = transformers.WhisperFeatureExtractor(feature_size=N_MELS)
        else:
            extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=self.config.layout == "data2vec-audio")
        with quiet_transformers(local=True):
            self.model.save_pretrained(directory)
            extractor.save_pretrained(directory)
        Path(directory, "model.safetensors").chmod(0o644)  # made so that only its owner may read

    def restore(self, directory: str | os.PathLike[str]) -> Self:
        """Takes the weights that `save` wrote."""
        with quiet_transformers(local=True):
            self.model = type(self.model).from_pretrained(os.fspath(directory), use_safetensors=True)
        if self.config.whisper:
            self.model.layer_norm = nn.Identity()
        return self


def through_layers(encoder: nn.Module, features: Tensor) -> Passed:
    """Features (batch, frames, dim) through transformers' `model.encoder`, layer drop included."""
    parts: Any = encoder
    conformer = hasattr(parts.layers[0], "ffn2")
    hidden, positions = features, {}
    if conformer:
        hidden = parts.dropout(hidden)
        if parts.embed_positions is not None:
            positions = {"relative_position_embeddings": parts.embed_positions(hidden)}
    else:
        hidden = parts.dropout(parts.layer_norm(hidden + parts.pos_conv_embed(hidden)))
    outputs: list[Tensor] = []
    results: list[Tensor] = []
    for layer in parts.layers:
        if encoder.training and parts.config.layerdrop and float(torch.rand(())) < parts.config.layerdrop:
            outputs.append(hidden)
            results.append(torch.zeros_like(hidden))
            continue
        last = layer.ffn2 if conformer else layer.feed_forward
        hook = last.register_forward_hook(lambda module, given, made: results.append(made))
        try:
            hidden = layer(hidden, **positions)
        finally:
            hook.remove()
        outputs.append(hidden)
    return Passed(outputs, results)


def normalised(wav: Tensor) -> Tensor:
    """(batch, samples) with zero mean and unit variance in each row."""
    variance, mean = torch.var_mean(wav, dim=1, keepdim=True, correction=0)
    return (wav - mean) / torch.sqrt(variance + 1e-7)


@torch.no_grad()
def normalised_mels(wav: Tensor) -> Tensor:
    """Kaldi log-mels of (samples,), each bin normalised, in pairs: (frames, 2 * N_MELS) at 50 Hz."""
    mels = torch.cat(list(log_mel_blocks([wav.float() * 2**15], n_mels=N_MELS)))
    variance, mean = torch.var_mean(mels, dim=0)
    pairs = len(mels) // 2
    scaled = (mels - mean) / torch.sqrt(variance + 1e-7)
    return scaled[: 2 * pairs].reshape(pairs, 2 * N_MELS).float()


def chosen_sizes(n_units: Sequence[int]) -> tuple[int, ...]:
    """The number of units of each target, checked."""
    if not n_units or min(n_units) < 2:
        raise SslError(f"targets with {list(n_units)} units: each needs at least 2")
    return tuple(n_units)

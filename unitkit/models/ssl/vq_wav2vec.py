"""vq-wav2vec (Baevski et al. 2020): quantized convolutional features that predict those of the next frames."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.encoders.blocks import hop_and_field
from unitkit.encoders.convolutional import QUANTIZERS as QUANTIZERS
from unitkit.encoders.convolutional import ConvConfig, ConvEncoder
from unitkit.models.ssl.blocks import Losses, SslError, straight_through
from unitkit.models.ssl.storage import Stored
from unitkit.quantizers import KMeans


@dataclass(frozen=True)
class VqConfig(ConvConfig):
    """Encoder, quantizer, causal context and predictions; the defaults are the small size (k-means learns fastest)."""

    context_kernels: tuple[int, ...] = (3,) * 7
    steps: int = 8  # frames ahead that are predicted
    negatives: int = 10  # from the same utterance
    dropout: float = 0.0
    commitment: float = 0.25  # k-means: weight of drawing features to their code
    diversity: float = 0.05  # gumbel: weight of the share of perplexity that is missing
    temperature: float = 2.0  # gumbel: falls by `cooling` at each step, to `coldest`
    cooling: float = 0.999995
    coldest: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        try:
            super().__post_init__()
        except ValueError as error:
            raise SslError(str(error)) from error


PAPER = VqConfig(
    dim=512,
    kernels=(10, 8, 4, 4, 4, 1, 1, 1),
    strides=(5, 4, 2, 2, 2, 1, 1, 1),
    context_kernels=tuple(range(2, 14)),
    codes=320,
)


class Quantized(NamedTuple):
    """Quantized features (batch, dim, frames), codes (batch, frames, groups), loss and measures of the quantizer."""

    features: Tensor
    codes: Tensor
    loss: Tensor
    logs: Losses


class KmeansCodes(nn.Module):
    """The nearest code to each group of a projection; the gradient passes straight through."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config, size = config, config.dim // config.groups
        self.projection = nn.Sequential(
            nn.Conv1d(config.dim, config.dim, 1, groups=config.groups, bias=False),
            nn.GroupNorm(config.groups, config.dim),
        )
        self.centroids = nn.Parameter(0.01 * torch.randn(config.codes, size))

    def nearest(self, projected: Tensor) -> Tensor:
        """(batch, dim, frames) to codes (batch, frames, groups)."""
        rows = self._rows(projected)
        return (self.centroids.square().sum(1) / 2 - rows @ self.centroids.T).argmin(-1)

    def _rows(self, projected: Tensor) -> Tensor:
        batch, _, frames = projected.shape
        return projected.transpose(1, 2).reshape(batch, frames, self.config.groups, -1)

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        projected = self.projection(z)
        codes = self.nearest(projected)
        chosen = self.centroids[codes].flatten(2).transpose(1, 2)
        latent = F.mse_loss(chosen, projected.detach())
        commitment = F.mse_loss(projected, chosen.detach())
        loss = latent + self.config.commitment * commitment
        return Quantized(straight_through(projected, chosen), codes, loss, {"codebook": loss.detach()})


class GumbelCodes(nn.Module):
    """A code drawn for each group by Gumbel softmax; in evaluation the most likely one."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        outputs = nn.Linear(2 * config.dim, config.groups * config.codes)
        nn.init.normal_(outputs.weight)
        nn.init.zeros_(outputs.bias)
        self.logits = nn.Sequential(nn.Linear(config.dim, 2 * config.dim), nn.ReLU(), outputs)
        self.centroids = nn.Parameter(torch.empty(config.codes, config.dim // config.groups).uniform_())

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        c = self.config
        logits = self.logits(z.transpose(1, 2)).float().unflatten(2, (c.groups, c.codes))
        codes = logits.argmax(-1)
        if self.training:
            onehot = F.gumbel_softmax(logits, tau=temperature, hard=True)
        else:
            onehot = F.one_hot(codes, c.codes).to(logits.dtype)
        shares = logits.softmax(-1).flatten(0, 1).mean(0)  # (groups, codes)
        entropy = -torch.xlogy(shares, shares).sum(1)
        soft = entropy.exp().sum()
        limit = c.groups * c.codes
        features = (onehot @ self.centroids).flatten(2).transpose(1, 2)
        logs = {"soft_perplexity": soft.detach() / c.groups}
        return Quantized(features, codes, c.diversity * (limit - soft) / limit, logs)


class Convolutions(nn.Module):
    """Wav (batch, samples) to features (batch, dim, frames), compressed by log(1 + |x|)."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for kernel, stride in zip(config.kernels, config.strides, strict=True):
            convolution = nn.Conv1d(channels, config.dim, kernel, stride=stride, bias=False)
            layers += [convolution, nn.Dropout(config.dropout), nn.GroupNorm(1, config.dim), nn.ReLU()]
            channels = config.dim
        self.layers = nn.Sequential(*layers)

    def forward(self, wav: Tensor) -> Tensor:
        return torch.log1p(self.layers(wav[:, None]).abs())


class Context(nn.Module):
    """Causal convolutions with residual connections: (batch, dim, frames) to the same shape."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.ReplicationPad1d((kernel - 1, 0)),
                nn.Conv1d(config.dim, config.dim, kernel),
                nn.Dropout(config.dropout),
                nn.GroupNorm(1, config.dim),
                nn.ReLU(),
            )
            for kernel in config.context_kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (layer(x) + x) * math.sqrt(0.5)
        return x


def negative_frames(batch: int, frames: int, count: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(batch, count, frames): for each frame `count` others of the same utterance, never the frame itself."""
    drawn = torch.randint(0, frames - 1, (batch, count, frames), device=device)
    return drawn + (drawn >= torch.arange(frames, device=device))


def contrastive_loss(
    predicted: Sequence[Tensor], truth: Tensor, others: Tensor, *, offset: int
) -> tuple[Tensor, Tensor]:
    """wav2vec's loss: tell the true frame `offset + k` ahead from others, k = 0, 1, ... by step.

    Args:
        predicted: for each step (batch, dim, frames).
        truth: (batch, dim, frames).
        others: frame numbers (batch, negatives, frames) that stand beside each true frame.

    Returns the mean of -log sigmoid(true) - mean log sigmoid(-other), and how often the true one scores highest.
    """
    batch, dim, frames = truth.shape
    index = others.flatten(1)[:, None].expand(-1, dim, -1)
    false = truth.gather(2, index).view(batch, dim, -1, frames)
    losses, wins = [], []
    for step, guess in enumerate(predicted[: max(1, frames - offset)]):
        ahead = offset + step
        near = guess[..., : frames - ahead]
        positive = (near * truth[..., ahead:]).sum(1)
        negative = torch.einsum("bdt,bdnt->bnt", near, false[..., ahead:])
        losses.append((F.softplus(-positive) + F.softplus(negative).mean(1)).flatten())
        wins.append((positive > negative.amax(1)).flatten())
    return torch.cat(losses).mean(), torch.cat(wins).float().mean()


class VqWav2Vec(Stored[VqConfig]):
    """Encoder, quantizer, context and predictions; `units` gives the codes of a wav.

    A directory that `save` wrote is an encoder to `load_encoder`, and to `Tokenizer.fit` all of a tokenizer.
    """

    schema = VqConfig
    sample_rate = 16000

    def __init__(self, config: VqConfig) -> None:
        super().__init__(config)
        self.codes = (config.codes,) * config.groups
        self.hop, self.field = hop_and_field(config.kernels, config.strides)
        self.encoder = Convolutions(config)
        self.quantizer = KmeansCodes(config) if config.quantizer == "kmeans" else GumbelCodes(config)
        self.context = Context(config)
        self.predictor = nn.Conv1d(config.dim, config.steps * config.dim, 1)
        self.offset = math.ceil(self.field / self.hop)  # below it a target would share samples with the context
        self.temperature = config.temperature

    @property
    def rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    def advance(self, step: int) -> None:
        """Cools the Gumbel softmax down."""
        c = self.config
        self.temperature = max(c.coldest, c.temperature * c.cooling**step)

    def forward(self, wav: Tensor, targets: Tensor | None = None) -> tuple[Losses, Tensor]:
        """Wavs (batch, samples) to losses and use of the codes (groups, codes); units from outside are not used."""
        c = self.config
        z = self.encoder(wav)
        with torch.autocast(wav.device.type, enabled=False):  # which code is nearest is decided in float32
            quantized = self.quantizer(z.float(), self.temperature)
        truth = quantized.features
        batch, _, frames = truth.shape
        if frames <= self.offset:
            raise SslError(f"crops of {frames} frames: more than {self.offset} are needed to predict ahead")
        predicted = self.predictor(self.context(truth)).chunk(c.steps, dim=1)
        others = negative_frames(batch, frames, c.negatives, device=wav.device)
        contrast, accuracy = contrastive_loss(predicted, truth, others, offset=self.offset)
        counts = torch.stack([torch.bincount(row, minlength=c.codes) for row in quantized.codes.flatten(0, 1).T])
        chance = torch.full_like(accuracy, 1 / (c.negatives + 1))
        logs = {"contrast": contrast, "accuracy": accuracy, "chance": chance, **quantized.logs}
        return {"loss": contrast + quantized.loss, **logs}, counts

    def features(self, wav: Tensor) -> Tensor:
        """What the k-means quantizer sees of wavs (batch, samples): (batch, frames, dim), a slice of dim per group."""
        if not isinstance(self.quantizer, KmeansCodes):
            raise SslError("only the k-means quantizer compares features with centroids")
        return self.quantizer.projection(self.encoder(wav)).transpose(1, 2)

    def as_kmeans(self) -> KMeans:
        """The k-means quantizer as the tokenizer's: its units of `features` are the codes that `units` gives."""
        if not isinstance(self.quantizer, KmeansCodes):
            raise SslError("only the k-means quantizer compares features with centroids")
        return KMeans.of_codebooks(self.quantizer.centroids.detach().expand(self.config.groups, -1, -1).contiguous())

    @torch.no_grad()
    def units(self, wav: Tensor) -> Tensor:
        """Codes of a wav (samples,) of any length: (frames, groups), those of a tokenizer made of the objective."""
        encoder = ConvEncoder(self.config, self.state_dict())
        assert encoder.codebooks is not None
        return KMeans.of_codebooks(encoder.codebooks).assign(encoder(wav)).view(-1, self.config.groups)

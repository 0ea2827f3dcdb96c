"""The two ways from a per-frame condition to a waveform: HiFi-GAN's upsampling, and an inverse STFT."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1  # of HiFi-GAN's leaky rectifiers
UPSAMPLING = {  # hop -> factors of HiFi-GAN's stages, the largest first; other hops are factorised
    160: (5, 4, 4, 2),
    256: (8, 8, 2, 2),
    320: (5, 4, 4, 2, 2),
    480: (6, 5, 4, 2, 2),
    640: (5, 4, 4, 4, 2),
}


class VocoderError(ValueError):
    """A condition that this vocoder lacks or does not know; the text names the known ones."""


@dataclass(frozen=True)
class HifiganConfig:
    """HiFi-GAN core; the defaults are the reference size of the unit vocoders (13.2 M parameters)."""

    channels: int = 512
    kernels: tuple[int, ...] = (3, 7, 11)  # one residual block each, per stage
    dilations: tuple[int, ...] = (1, 3, 5)
    narrowest: int = 8  # channels halve at every stage, but not below this


@dataclass(frozen=True)
class IstftConfig:
    """ConvNeXt blocks and an inverse STFT: everything but the last step runs at frame rate."""

    dim: int = 256
    blocks: int = 6
    hidden: int = 768
    kernel: int = 7
    upsample: int = 1  # STFT frames per unit frame; the window is four STFT hops long


def upsampling_factors(hop: int) -> tuple[int, ...]:
    """Factors of HiFi-GAN's stages whose product is `hop`, none above 8 where that can be had."""
    if hop in UPSAMPLING:
        return UPSAMPLING[hop]
    factors: list[int] = []
    left = hop
    for prime in (p for p in range(2, hop + 1) if all(p % q for q in range(2, int(p**0.5) + 1))):
        while left % prime == 0:
            factors.append(prime)
            left //= prime
    while len(factors) > 4:  # merge the two smallest: five stages of 2 cost more than one of 8
        factors.sort()
        if factors[0] * factors[1] > 8:
            break
        factors[:2] = [factors[0] * factors[1]]
    return tuple(sorted(factors, reverse=True)) or (1,)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class _ResBlock(nn.Module):
    """Residual pairs of a dilated and a plain convolution (HiFi-GAN's block "1")."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.reach = sum((d + 1) * (kernel - 1) // 2 for d in dilations)  # samples on either side
        self.dilated = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.plain = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            y = dilated(_masked(F.leaky_relu(x, SLOPE), mask))
            x = x + plain(_masked(F.leaky_relu(y, SLOPE), mask))
        return x


class HifiganCore(nn.Module):
    """Condition (batch, dim, frames) -> wav (batch, frames * hop)."""

    def __init__(self, config: HifiganConfig, dim: int, *, hop: int) -> None:
        super().__init__()
        self.factors = upsampling_factors(hop)
        widths = [max(config.narrowest, config.channels // 2**i) for i in range(len(self.factors) + 1)]
        self.pre = nn.Conv1d(dim, widths[0], 7, padding=3)
        self.ups = nn.ModuleList(_upsampler(w, v, f) for w, v, f in zip(widths, widths[1:], self.factors, strict=False))
        self.blocks = nn.ModuleList(
            nn.ModuleList(_ResBlock(w, kernel, config.dilations) for kernel in config.kernels) for w in widths[1:]
        )
        self.post = nn.Conv1d(widths[-1], 1, 7, padding=3)
        self._initialise()
        self.set_weight_norm(True)

    def _initialise(self) -> None:
        # The paper draws everything with std 0.01. That is silence for narrow networks (a factor of ten per stage),
        # which they take hundreds of steps to leave; here the main path keeps its level and the residuals start small.
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, std=0.01)
        for up, factor in zip(self.ups, self.factors, strict=True):
            nn.init.normal_(up.weight, std=math.sqrt(factor / (up.in_channels * up.kernel_size[0])))
        nn.init.normal_(self.post.weight, std=0.1 / math.sqrt(self.post.in_channels * 7))

    @property
    def margin(self) -> int:
        """Frames on either side that can change a frame's samples."""
        reach, rate = 3.0, 1.0
        widest = max((b.reach for b in self.blocks[0]), default=0)
        for factor in self.factors:
            reach, rate = reach + 2 / rate, rate * factor
            reach += widest / rate
        return math.ceil(reach + 3 / rate)

    def set_weight_norm(self, on: bool) -> None:
        """Adds or folds the weight normalisation of every convolution."""
        for module in self.modules():
            if not isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                continue
            if on and not parametrize.is_parametrized(module, "weight"):
                weight_norm(module)
            elif not on and parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = _masked(self.pre(_masked(x, mask)), mask)
        for factor, up, blocks in zip(self.factors, self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, SLOPE))
            mask = None if mask is None else mask.repeat_interleave(factor, dim=2)
            x = _masked(x, mask)
            x = _masked(sum(block(x, mask) for block in blocks) / len(blocks), mask)
        return torch.tanh(self.post(F.leaky_relu(x))).squeeze(1)


def _upsampler(width: int, narrower: int, factor: int) -> nn.ConvTranspose1d:
    """A transposed convolution that makes exactly `factor` samples of one; odd factors need an odd kernel."""
    kernel = 2 * factor + factor % 2
    return nn.ConvTranspose1d(width, narrower, kernel, factor, padding=(kernel - factor) // 2)


class _ConvNext(nn.Module):
    """Depthwise convolution, then a two-layer network on every frame; scaled residual."""

    def __init__(self, config: IstftConfig) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(config.dim, config.dim, config.kernel, padding=config.kernel // 2, groups=config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.widen = nn.Linear(config.dim, config.hidden)
        self.narrow = nn.Linear(config.hidden, config.dim)
        self.scale = nn.Parameter(torch.full((config.dim,), 1 / config.blocks))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.norm(self.depthwise(_masked(x, mask)).transpose(1, 2))  # (batch, frames, dim)
        y = self.scale * self.narrow(F.gelu(self.widen(y)))
        return x + y.transpose(1, 2)


class IstftCore(nn.Module):
    """Condition (batch, dim, frames) -> wav (batch, frames * hop) through magnitudes and phases."""

    def __init__(self, config: IstftConfig, dim: int, *, hop: int) -> None:
        super().__init__()
        if hop % config.upsample:
            raise VocoderError(
                f"istft.upsample={config.upsample} does not divide the hop of {hop} samples: set model.istft.upsample=1"
            )
        self.upsample = config.upsample
        self.hop = hop // config.upsample
        self.n_fft = 4 * self.hop
        self.embed = nn.Conv1d(dim, config.dim * config.upsample, 7, padding=3)
        self.norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(_ConvNext(config) for _ in range(config.blocks))
        self.last_norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, self.n_fft + 2)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.margin = 3 + -(-(config.blocks * (config.kernel // 2) + 2) // config.upsample)  # frames that matter
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(_masked(x, mask))
        batch, _, frames = x.shape
        # Each frame becomes `upsample` STFT frames: the channels are dealt out in time.
        x = x.view(batch, -1, self.upsample, frames).transpose(2, 3).reshape(batch, -1, frames * self.upsample)
        mask = None if mask is None else mask.repeat_interleave(self.upsample, dim=2)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        x = self.head(self.last_norm(x.transpose(1, 2)))  # (batch, frames, n_fft + 2)
        with torch.autocast(x.device.type, enabled=False):  # the Fourier transform knows no bf16
            return self._inverse(x.float(), mask)

    def _inverse(self, x: Tensor, mask: Tensor | None) -> Tensor:
        log_magnitude, phase = x.chunk(2, dim=2)
        magnitude = log_magnitude.clamp(max=5.0).exp()
        frames = torch.fft.irfft(torch.polar(magnitude, phase), n=self.n_fft) * self.window
        power = self.window.square().expand(1, frames.shape[1], -1)
        if mask is not None:
            frames, power = frames * mask.transpose(1, 2), power * mask.transpose(1, 2)
        wav, envelope = self._overlap_add(frames), self._overlap_add(power)
        return wav / envelope.clamp(min=1e-4)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(batch, frames, n_fft) -> (batch, frames * hop): the edges that reach beyond the frames are cut off."""
        batch, n_frames, _ = frames.shape
        quarters = frames.view(batch, n_frames, 4, self.hop)
        out = sum(F.pad(quarters[:, :, i], (0, 0, i, 3 - i)) for i in range(4))
        start, length = (self.n_fft - self.hop) // 2, n_frames * self.hop
        return out.reshape(batch, -1)[:, start : start + length]

"""Judges of a waveform (multi-period, multi-scale, multi-resolution) and the losses of a vocoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from unitkit.audio import mel_filters

Verdict = tuple[Tensor, list[Tensor]]  # scores (batch, n) and the feature maps that led to them


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Which judges, and how wide: `width` 1 is the reference size (MPD 41 M, MSD 30 M parameters)."""

    kinds: tuple[str, ...] = ("mpd", "msd")  # mpd | msd | mrd
    width: float = 1.0
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    scales: int = 3
    resolutions: tuple[int, ...] = (512, 1024, 2048)  # FFT sizes of the mrd; the hop is a quarter


def _scaled(channels: int, width: float) -> int:
    return max(4, round(channels * width / 4) * 4)


class PeriodJudge(nn.Module):
    """Sees every `period`-th sample in a column."""

    def __init__(self, period: int, width: float) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(_scaled(c, width) for c in (32, 128, 512, 1024, 1024))]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3 if i < 4 else 1, 1), padding=(2, 0)))
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.out = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wav: Tensor) -> Verdict:
        """Wav (batch, samples) -> verdict."""
        wav = F.pad(wav[:, None], (0, -wav.shape[1] % self.period), mode="reflect")
        x = wav.view(wav.shape[0], 1, -1, self.period)
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        x = self.out(x)
        return x.flatten(1), [*maps, x]


class ScaleJudge(nn.Module):
    """Grouped 1-d convolutions on the waveform, average-pooled `pools` times."""

    LAYERS = (
        (128, 15, 1, 1),
        (128, 41, 2, 4),
        (256, 41, 2, 16),
        (512, 41, 4, 16),
        (1024, 41, 4, 16),
        (1024, 41, 1, 16),
    )

    def __init__(self, pools: int, width: float) -> None:
        super().__init__()
        self.pools = pools
        norm = weight_norm if pools else spectral_norm  # the first scale is the one that sees every sample
        layers, before = [], 1
        for channels, kernel, stride, groups in (*self.LAYERS, (1024, 5, 1, 1)):
            after = _scaled(channels, width)
            groups = math.gcd(groups, math.gcd(before, after))
            layers.append(norm(nn.Conv1d(before, after, kernel, stride, padding=kernel // 2, groups=groups)))
            before = after
        self.convs = nn.ModuleList(layers)
        self.out = norm(nn.Conv1d(before, 1, 3, padding=1))

    def forward(self, wav: Tensor) -> Verdict:
        """Wav (batch, samples) -> verdict."""
        x = wav[:, None]
        for _ in range(self.pools):
            x = F.avg_pool1d(x, 4, 2, padding=2)
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        x = self.out(x)
        return x.flatten(1), [*maps, x]


class ResolutionJudge(nn.Module):
    """2-d convolutions on the magnitude of an STFT."""

    def __init__(self, n_fft: int, width: float) -> None:
        super().__init__()
        self.n_fft = n_fft
        c = _scaled(32, width)
        shapes = [(1, c, 9, 1), (c, c, 9, 2), (c, c, 9, 2), (c, c, 9, 2), (c, c, 3, 1)]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, k), (1, s), padding=(1, k // 2))) for a, b, k, s in shapes
        )
        self.out = weight_norm(nn.Conv2d(c, 1, (3, 3), padding=(1, 1)))
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, wav: Tensor) -> Verdict:
        """Wav (batch, samples) -> verdict."""
        x = magnitudes(wav, self.n_fft, self.window).transpose(1, 2)[:, None]  # (batch, 1, frames, bins)
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        x = self.out(x)
        return x.flatten(1), [*maps, x]


class Discriminators(nn.Module):
    """All judges of a config; wav (batch, samples) -> one verdict each."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        judges: list[nn.Module] = []
        for kind in config.kinds:
            match kind:
                case "mpd":
                    judges += [PeriodJudge(period, config.width) for period in config.periods]
                case "msd":
                    judges += [ScaleJudge(pools, config.width) for pools in range(config.scales)]
                case "mrd":
                    judges += [ResolutionJudge(n_fft, config.width) for n_fft in config.resolutions]
                case _:
                    raise ValueError(f"discriminator {kind!r} is unknown; known: mpd, msd, mrd")
        self.judges = nn.ModuleList(judges)

    def forward(self, wav: Tensor) -> list[Verdict]:
        """One verdict per judge."""
        return [judge(wav) for judge in self.judges]


def judge_loss(real: Sequence[Verdict], fake: Sequence[Verdict], *, kind: str = "lsgan") -> Tensor:
    """What the judges minimise: real is 1, fake is 0 (lsgan), or beyond a margin (hinge)."""
    total = real[0][0].new_zeros((), dtype=torch.float32)
    for (r, _), (f, _) in zip(real, fake, strict=True):
        r, f = r.float(), f.float()
        match kind:
            case "lsgan":
                total = total + (r - 1).square().mean() + f.square().mean()
            case "hinge":
                total = total + F.relu(1 - r).mean() + F.relu(1 + f).mean()
            case _:
                raise ValueError(f"GAN loss {kind!r} is unknown; known: lsgan, hinge")
    return total


def fool_loss(fake: Sequence[Verdict], *, kind: str = "lsgan") -> Tensor:
    """What the generator minimises."""
    scores = [f.float() for f, _ in fake]
    return sum((s - 1).square().mean() if kind == "lsgan" else F.relu(1 - s).mean() for s in scores)


def feature_loss(real: Sequence[Verdict], fake: Sequence[Verdict]) -> Tensor:
    """Mean absolute difference of the judges' feature maps, summed over maps and judges."""
    pairs = ((r, f) for (_, rs), (_, fs) in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True))
    return sum((r.detach().float() - f.float()).abs().mean() for r, f in pairs)


def magnitudes(wav: Tensor, n_fft: int, window: Tensor, *, hop: int = 0) -> Tensor:
    """|STFT| (batch, bins, frames) in float32, centred with zeros; hop 0 = a quarter of the window."""
    with torch.autocast(wav.device.type, enabled=False):
        spectrum = torch.stft(
            wav.float(),
            n_fft,
            hop or n_fft // 4,
            window=window,
            pad_mode="constant",
            return_complex=True,
        )
        return torch.view_as_real(spectrum).square().sum(-1).clamp(min=1e-9).sqrt()


class LogMel(nn.Module):
    """Wav (batch, samples) -> natural log of the mel magnitudes (batch, mels, frames)."""

    def __init__(self, rate: int, *, n_fft: int = 1024, hop: int = 256, n_mels: int = 80) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        filters = torch.from_numpy(mel_filters(rate, n_fft=n_fft, n_mels=n_mels))
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """See the class."""
        spectrum = magnitudes(wav, self.n_fft, self.window, hop=self.hop)
        return torch.log((self.filters @ spectrum).clamp(min=1e-5))


@dataclass(frozen=True)
class LossConfig:
    """Weights of the vocoder's losses; the adversarial part is off unless `gan`."""

    mel: float = 45.0
    stft: float = 0.0  # multi-resolution STFT: spectral convergence + log magnitude
    stft_sizes: tuple[int, ...] = (512, 1024, 2048)
    durations: float = 1.0
    gan: bool = False
    gan_start: int = 0  # step at which the judges come in
    gan_kind: str = "lsgan"  # lsgan | hinge
    adversarial: float = 1.0
    features: float = 2.0
    mel_sizes: tuple[int, ...] = (1024,)  # FFT sizes of the mel loss; the hop is a quarter


class SpectralLoss(nn.Module):
    """The losses that need no judge: mel L1 and multi-resolution STFT."""

    def __init__(self, config: LossConfig, rate: int) -> None:
        super().__init__()
        self.config = config
        self.mels = nn.ModuleList(
            LogMel(rate, n_fft=n, hop=n // 4, n_mels=80 if n >= 1024 else n // 16) for n in config.mel_sizes
        )
        for size in config.stft_sizes:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Wavs (batch, samples) -> unweighted "mel" and, where its weight is not 0, "stft"."""
        losses = {"mel": sum((mel(real) - mel(fake)).abs().mean() for mel in self.mels) / len(self.mels)}
        if self.config.stft:
            sizes = self.config.stft_sizes
            losses["stft"] = sum(self._resolution(real, fake, size) for size in sizes) / len(sizes)
        return losses

    def _resolution(self, real: Tensor, fake: Tensor, size: int) -> Tensor:
        window = getattr(self, f"window_{size}")
        r, f = magnitudes(real, size, window), magnitudes(fake, size, window)
        convergence = torch.linalg.norm(r - f) / torch.linalg.norm(r).clamp(min=1e-6)
        return convergence + (torch.log(r.clamp(min=1e-5)) - torch.log(f.clamp(min=1e-5))).abs().mean()


class MelJudge(nn.Module):
    """Says of every frame of a mel (batch, frames, n_mels) how true it looks; residual convolutions, in time only."""

    def __init__(self, n_mels: int, *, width: int = 256, blocks: int = 5) -> None:
        super().__init__()
        self.enter = nn.Conv1d(n_mels, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(2 * blocks))
        self.out = nn.Conv1d(width, 1, 3, padding=1)

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Scores (batch, frames) of a natural log-mel; what is outside `mask` counts as zero."""
        keep = mask[:, None].to(mel.dtype)
        x = self.enter((mel + 5).transpose(1, 2) / 3 * keep)
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.2) * keep), 0.2) * keep)
        return self.out(F.leaky_relu(x, 0.2) * keep).squeeze(1)

"""DinoSR (Liu et al. 2023) and SpidR (2025): predict online clusters of an averaged teacher's layers."""

import copy
import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.ssl.backbone import BASE, Backbone, EncoderConfig, through_layers
from unitkit.models.ssl.blocks import Losses, SslError, blend, full_lengths, majority, scored, span_mask
from unitkit.models.ssl.storage import Stored

VARIANTS = ("dinosr", "spidr")
SETTLED = 1e-7  # SpidR's teacher stands still once it takes less than this from its student


@dataclass(frozen=True)
class DinoConfig:
    """Self-distillation with online codebooks.

    DinoSR predicts all codebooks from the student's last layer; SpidR predicts that of layer l from the student's
    layer l, has no layer drop, and lets the teacher's share rise exponentially.  Sources: DinoSR's code and settings;
    of SpidR what its paper says (its code may not be copied).
    """

    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(layout="data2vec-audio", feature_grad=1.0, input_dropout=0.0)
    )
    variant: str = "dinosr"
    top_layers: int = 3  # teacher layers with a codebook
    codes: int = 64
    code_decay: float = 0.9
    teacher_start: float = 0.99  # share of itself that the teacher keeps in a step
    teacher_end: float = 0.999  # dinosr: reached after teacher_steps
    teacher_steps: int = 1000  # dinosr: length of the linear rise; spidr: time constant of the exponential one
    freeze_step: int = 0  # from here on teacher and front end stand still; 0 = never
    mask_starts: float = 0.08
    mask_span: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.variant not in VARIANTS:
            raise SslError(f"variant {self.variant!r} is unknown; known: {', '.join(VARIANTS)}")
        if not 1 <= self.top_layers <= self.encoder.layers:
            raise SslError(f"top_layers {self.top_layers}: the encoder has {self.encoder.layers} layers")
        if self.encoder.layout == "whisper":
            raise SslError("DinoSR takes features before the residual: layouts hubert, data2vec-audio, wav2vec2-bert")
        if self.variant == "spidr" and self.encoder.layerdrop:
            raise SslError("spidr predicts from every layer: set encoder.layerdrop=0")


_PAPER_ENCODER = replace(BASE, layout="data2vec-audio", feature_grad=1.0, input_dropout=0.0)
PAPER = DinoConfig(
    encoder=_PAPER_ENCODER,
    top_layers=8,
    codes=256,
    teacher_start=0.999,
    teacher_end=0.9999,
    teacher_steps=30_000,
    freeze_step=200_000,
)
PAPER_SPIDR = DinoConfig(
    encoder=replace(_PAPER_ENCODER, layerdrop=0.0),
    variant="spidr",
    top_layers=8,
    codes=256,
    teacher_start=0.999,
    teacher_steps=20_000,
)


def teacher_share(config: DinoConfig, step: int) -> float:
    """The share of itself that the teacher keeps when optimizer step `step` (counted from 1) is done; 1 = frozen."""
    c = config
    if c.freeze_step and step >= c.freeze_step:
        return 1.0
    if c.variant == "spidr":
        taken = (1 - c.teacher_start) * math.exp(-step / c.teacher_steps)
        return 1 - taken if taken >= SETTLED else 1.0
    return c.teacher_end + (c.teacher_start - c.teacher_end) * max(0.0, 1 - step / c.teacher_steps)


class OnlineCodebook(nn.Module):
    """Codes that follow what falls to them: an exponential average over the steps in which a code was hit."""

    sums: Tensor
    counts: Tensor

    def __init__(self, codes: int, dim: int, *, decay: float) -> None:
        super().__init__()
        self.decay = decay
        start = F.instance_norm(torch.randn(codes, dim).T[None])[0].T  # each dimension normalised over the codes
        self.register_buffer("sums", start.contiguous())
        self.register_buffer("counts", torch.ones(codes))

    @property
    def centroids(self) -> Tensor:
        """(codes, dim)"""
        return self.sums / self.counts[:, None]

    def nearest(self, x: Tensor) -> Tensor:
        """The code of each row of x (rows, dim), by Euclidean distance."""
        centroids = self.centroids
        return (centroids.square().sum(1) / 2 - x.float() @ centroids.T).argmin(1)

    @torch.no_grad()
    def update(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Moves the codes that were chosen and leaves the others as they are; returns the hits (codes,)."""
        hits = torch.bincount(chosen, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, x.float())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(hits)
            torch.distributed.all_reduce(sums)
        hit = hits > 0
        self.counts.copy_(torch.where(hit, self.decay * self.counts + (1 - self.decay) * hits, self.counts))
        moved = self.decay * self.sums + (1 - self.decay) * sums
        self.sums.copy_(torch.where(hit[:, None], moved, self.sums))
        return hits


class Dino(Stored[DinoConfig]):
    """Student, teacher, codebooks and heads; `backbone` is the student, which is what is kept afterwards.

    The teacher is an average of the student's transformer layers; the positional convolution is copied and the front
    end shared.  Its targets are feed-forward outputs before the residual, normalised over time in each channel.
    """

    schema = DinoConfig
    moved: Tensor

    def __init__(self, config: DinoConfig) -> None:
        super().__init__(config)
        self.codes = (config.codes,) * config.top_layers
        self.backbone = Backbone(config.encoder)
        self.hop, self.field = self.backbone.hop, self.backbone.field
        self.teacher = copy.deepcopy(self.backbone.model.encoder).requires_grad_(False)
        dim = config.encoder.dim
        self.codebooks = nn.ModuleList(
            OnlineCodebook(config.codes, dim, decay=config.code_decay) for _ in range(config.top_layers)
        )
        self.heads = nn.ModuleList(nn.Linear(dim, config.codes) for _ in range(config.top_layers))
        self.register_buffer("moved", torch.zeros((), dtype=torch.long))  # steps that the teacher has followed
        self.frozen = False

    def train(self, mode: bool = True) -> "Dino":
        """Never the teacher, which has no dropout."""
        super().train(mode)
        self.teacher.eval()
        return self

    def advance(self, step: int) -> None:
        """Lets the teacher follow the step that is done; nothing happens a second time for the same `step`."""
        self.frozen = bool(self.config.freeze_step) and step >= self.config.freeze_step
        if step <= int(self.moved):
            return
        self.moved.fill_(step)
        keep = teacher_share(self.config, step)
        if keep < 1:
            blend(self.teacher, self.backbone.model.encoder, keep, copied=("pos_conv_embed.",))

    def targets(self, features: Tensor) -> list[Tensor]:
        """Features before the mask to what the top layers' codebooks cluster, each (batch, frames, dim) float32."""
        with torch.no_grad():
            results = through_layers(self.teacher, features.detach()).results[-self.config.top_layers :]
            return [F.instance_norm(r.float().transpose(1, 2)).transpose(1, 2) for r in results]

    def forward(self, wav: Tensor, targets: Tensor | None = None) -> tuple[Losses, Tensor]:
        """Wavs (batch, samples) to losses and hits of the codes (codebooks, codes); units from outside are not used."""
        c = self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features, _ = self.backbone.features(wav)
        mask = span_mask(full_lengths(features), features.shape[1], probability=c.mask_starts, span=c.mask_span)
        layers = self.targets(features)
        outputs = self.backbone.through(self.backbone.masked(features, mask)).outputs[-c.top_layers :]
        losses, accuracies, chances, counts = [], [], [], []
        for index, (book, head) in enumerate(zip(self.codebooks, self.heads, strict=True)):
            wanted = layers[index][mask]
            with torch.autocast(wav.device.type, enabled=False):
                chosen = book.nearest(wanted)
                hits = book.update(wanted, chosen) if self.training else torch.bincount(chosen, minlength=c.codes)
            student = outputs[index] if c.variant == "spidr" else outputs[-1]
            score = scored(head(student[mask]), chosen)
            losses.append(score.loss)
            accuracies.append(score.accuracy)
            chances.append(majority(chosen))
            counts.append(hits)
        loss = torch.stack(losses).mean()
        logs = {"loss": loss, "accuracy": torch.stack(accuracies).mean(), "chance": torch.stack(chances).mean()}
        return logs, torch.stack(counts)

    @torch.inference_mode()
    def units(self, wav: Tensor) -> Tensor:
        """Units of a wav (samples,) by the student's heads: (frames, codebooks), the top layer's last."""
        outputs = self.backbone(wav[None])[-self.config.top_layers :]
        chosen = outputs if self.config.variant == "spidr" else [outputs[-1]] * len(outputs)
        return torch.stack([head(x[0]).argmax(1) for head, x in zip(self.heads, chosen, strict=True)], dim=1)

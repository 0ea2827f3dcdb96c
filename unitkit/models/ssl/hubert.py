"""HuBERT: predict the units of masked frames (Hsu et al. 2021); iterations differ only in the units that teach."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.ssl.backbone import BASE, Backbone, EncoderConfig, chosen_sizes
from unitkit.models.ssl.blocks import IGNORED, Losses, Scored, full_lengths, majority, scored, span_mask
from unitkit.models.ssl.storage import Stored


@dataclass(frozen=True)
class HubertConfig:
    """Masked prediction of units; several targets (codebooks, or unit files) have a head each."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    tokenizers: tuple[str, ...] = ()  # fingerprints of the units that teach
    n_units: tuple[int, ...] = ()  # of each target
    final_dim: int = 128
    temperature: float = 0.1
    masked_weight: float = 1.0
    unmasked_weight: float = 0.0
    feature_penalty: float = 10.0  # on the mean square of the convolutions' output
    mask_starts: float = 0.08  # share of frames at which a span begins
    mask_span: int = 10


PAPER = HubertConfig(encoder=BASE, final_dim=256)


class UnitHead(nn.Module):
    """Cosine of a projection with an embedding of each unit, over a temperature: (frames, dim) to (frames, units)."""

    def __init__(self, dim: int, n_units: int, *, final_dim: int, temperature: float) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, final_dim)
        self.units = nn.Parameter(torch.empty(n_units, final_dim).uniform_())
        self.temperature = temperature

    def forward(self, hidden: Tensor) -> Tensor:
        projected = self.projection(hidden).float()
        return F.normalize(projected, dim=-1) @ F.normalize(self.units.float(), dim=-1).T / self.temperature


class Hubert(Stored[HubertConfig]):
    """The encoder with a head per target; `backbone` is what is kept afterwards."""

    schema = HubertConfig

    def __init__(self, config: HubertConfig) -> None:
        super().__init__(config)
        self.codes = chosen_sizes(config.n_units)
        self.backbone = Backbone(config.encoder)
        self.hop, self.field = self.backbone.hop, self.backbone.field
        self.heads = nn.ModuleList(
            UnitHead(config.encoder.dim, n, final_dim=config.final_dim, temperature=config.temperature)
            for n in self.codes
        )

    def advance(self, step: int) -> None:
        """Nothing here depends on the number of the step."""

    def forward(self, wav: Tensor, targets: Tensor) -> tuple[Losses, Tensor]:
        """Wavs (batch, samples) and units (batch, frames, targets) to losses and counts of predicted units."""
        c = self.config
        features, size = self.backbone.features(wav)
        frames = targets.shape[1]  # there may be more features: silence after the speech
        mask = span_mask(full_lengths(targets), features.shape[1], probability=c.mask_starts, span=c.mask_span)
        hidden = self.backbone.through(self.backbone.masked(features, mask)).outputs[-1][:, :frames]
        mask = mask[:, :frames]
        covered = self._scores(hidden, targets, mask)
        masked = torch.stack([s.loss for s in covered]).mean()
        loss = c.masked_weight * masked + c.feature_penalty * size
        losses = {"masked": masked, "accuracy": torch.stack([s.accuracy for s in covered]).mean()}
        if c.unmasked_weight:
            losses["unmasked"] = torch.stack([s.loss for s in self._scores(hidden, targets, ~mask)]).mean()
            loss = loss + c.unmasked_weight * losses["unmasked"]
        chance = torch.stack([majority(targets[..., head][mask]) for head in range(len(self.codes))]).mean()
        counts = torch.stack([F.pad(s.counts, (0, max(self.codes) - len(s.counts))) for s in covered])
        return {"loss": loss, **losses, "chance": chance, "features": size.detach()}, counts

    def _scores(self, hidden: Tensor, targets: Tensor, chosen: Tensor) -> list[Scored]:
        """Of each head, over the frames that `chosen` (batch, frames) names and that have a unit."""
        found = []
        for index, head in enumerate(self.heads):
            here = chosen & (targets[..., index] != IGNORED)
            found.append(scored(head(hidden[here]), targets[..., index][here]))
        return found

"""HuBERT: predict the units of masked frames (Hsu et al. 2021); iterations differ only in the units that teach."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.ssl.backbone import BASE, Backbone, EncoderConfig, chosen_sizes
from unitkit.models.ssl.blocks import IGNORED, Losses, Scored, SslError, full_lengths, majority, scored, span_mask
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
    anchor_weight: float = 0.0  # of staying with what `encoder.start` makes of the clean speech, at the last layer
    feature_penalty: float = 10.0  # on the mean square of the convolutions' output
    mask_starts: float = 0.08  # share of frames at which a span begins
    mask_span: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.anchor_weight and not self.encoder.start:
            raise SslError("anchor_weight holds the encoder to the one it begins with: set encoder.start")


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
        self._beginning: list[Backbone] = []  # in a list: no part of the model, made when training needs it

    def advance(self, step: int) -> None:
        """Nothing here depends on the number of the step."""

    def forward(self, wav: Tensor, targets: Tensor, clean: Tensor | None = None) -> tuple[Losses, Tensor]:
        """Wavs (batch, samples) and units (batch, frames, targets) to losses and counts of predicted units.

        `clean`, for the anchor, are the wavs before they were changed.
        """
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
        if c.anchor_weight:
            if clean is None:
                raise SslError("anchor_weight needs the clean wavs beside the changed ones")
            losses["anchor"] = self._anchor(hidden, clean)
            loss = loss + c.anchor_weight * losses["anchor"]
        chance = torch.stack([majority(targets[..., head][mask]) for head in range(len(self.codes))]).mean()
        counts = torch.stack([F.pad(s.counts, (0, max(self.codes) - len(s.counts))) for s in covered])
        return {"loss": loss, **losses, "chance": chance, "features": size.detach()}, counts

    def _anchor(self, hidden: Tensor, clean: Tensor) -> Tensor:
        """Mean square of hidden (batch, frames, dim) minus what the beginning makes of `clean`, in its deviations."""
        if not self._beginning:
            self._beginning.append(Backbone(self.config.encoder).to(clean.device).eval())
        with torch.no_grad():
            wanted = self._beginning[0](clean)[-1].float()
        deviation = wanted.flatten(0, 1).std(0) + 1e-5
        return ((hidden.float() - wanted) / deviation).square().mean()

    def _scores(self, hidden: Tensor, targets: Tensor, chosen: Tensor) -> list[Scored]:
        """Of each head, over the frames that `chosen` (batch, frames) names and that have a unit."""
        found = []
        for index, head in enumerate(self.heads):
            here = chosen & (targets[..., index] != IGNORED)
            found.append(scored(head(hidden[here]), targets[..., index][here]))
        return found

"""Pairs of a source and a target, for models of both: made into batches, and judged beside a control."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unitkit.models.seq2seq import Pairs
from unitkit.units import Vocab

Example = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]  # a source, its target, texts for heads


def collate_pairs(examples: Sequence[Example]) -> Pairs:
    """Pads sources, targets and texts to the longest."""

    def padded(arrays: Sequence[np.ndarray]) -> Tensor:
        rows = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    sources, targets, texts = zip(*examples, strict=True)
    lengths = torch.tensor([len(source) for source in sources])
    return Pairs(padded(sources), lengths, padded(targets), {n: padded([t[n] for t in texts]) for n in texts[0]})


class PairLosses:
    """Losses of examples, without label smoothing, and the main one with each source put beside another target."""

    def __init__(self, examples: Sequence[Example], batch: int, *, main: str = "units") -> None:
        """`main` names the loss that stands for all; the others are told with it."""
        others = [*examples[1:], *examples[:1]]
        shuffled = [(other[0], own[1], own[2]) for own, other in zip(examples, others, strict=True)]
        order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
        cut = [order[i : i + batch] for i in range(0, len(order), batch)]
        self.real = [collate_pairs([examples[i] for i in some]) for some in cut]
        self.control = [collate_pairs([shuffled[i] for i in some]) for some in cut]
        self.main = main

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The metrics of a model in eval mode; `loss` is nats a token."""
        found, control = self._measure(model, self.real), self._measure(model, self.control)
        named = {name: value for name, value in found.items() if name not in ("loss", self.main)}
        return {"loss": found[self.main], "loss_other_source": control[self.main], **named}

    def _measure(self, model: nn.Module, batches: Sequence[Pairs]) -> dict[str, float]:
        device, totals, weight = next(model.parameters()).device, dict[str, float](), 0
        for batch in batches:
            n = int((batch.target != Vocab.pad).sum())
            for name, value in model(batch.to(device)).items():
                totals[name] = totals.get(name, 0.0) + n * float(value)
            weight += n
        return {name: value / weight for name, value in totals.items()}

"""Partial fine-tuning by the names of parameters, and a listener that learns together with what it hears for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from unitkit.models.listen import Listener

LNA = ("layer_norm", "layernorm", "self_attn", "attention.")  # norms and self-attention, as transformers names them


def trainable(module: nn.Module, what: str, *, attention: Sequence[str] = ()) -> list[str]:
    """Lets only some parameters learn; returns their names.

    `what`: "all", "frozen", "lna" (norms and self-attention, and what `attention` names: Popuri et al. 2022), or parts
    of names with commas; a parameter learns if any of them is in its name. A name that fits nothing is an error.
    Parameters that never learn, such as sinusoids, stay as they are.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    match what:
        case "all":
            parts: Sequence[str] = ("",)
        case "frozen":
            parts = ()
        case "lna":
            parts = [part for part in (*LNA, *attention) if any(part in name for name in named)]
        case _:
            parts = [part.strip() for part in what.split(",")]
    if idle := [part for part in parts if not any(part in name for name in named)]:
        raise ValueError(f"no parameter has {idle[0]!r} in its name; names are like {', '.join(sorted(named)[:3])}")
    for name, parameter in named.items():
        parameter.requires_grad_(any(part in name for part in parts))
    return [name for name, parameter in named.items() if parameter.requires_grad]


Head = TypeVar("Head", bound=nn.Module)


class Hearing(nn.Module, Generic[Head]):
    """A listener whose weights learn, in front of a model: batches have wavs (batch, samples) as their `source`."""

    def __init__(self, listener: Listener, head: Head, *, what: str) -> None:
        """`what` of the listener learns; see `trainable`."""
        super().__init__()
        self.head = head
        self.heard = (listener,)  # in a tuple: an encoder is no module, and its copies must be ours
        self.net: Any = listener.encoder.model  # type: ignore[attr-defined]
        self.net.requires_grad_(True)
        trainable(self.net, what)

    @property
    def listener(self) -> Listener:
        """The listener, with the weights as they are now."""
        self.heard[0].encoder.model = self.net  # type: ignore[attr-defined]
        return self.heard[0]

    def forward(self, batch: Any, *rest: Any) -> dict[str, Tensor]:
        """The head's losses of a batch, a dataclass with `source` and `lengths`, whose source are wavs."""
        wavs = [wav[:n] for wav, n in zip(batch.source, batch.lengths.tolist(), strict=True)]
        encoder: Any = self.listener.encoder
        encoder.device = batch.source.device
        features = encoder.differentiable(wavs)
        lengths = torch.tensor([len(f) for f in features], device=batch.lengths.device)
        padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
        return self.head(replace(batch, source=padded, lengths=lengths), *rest)

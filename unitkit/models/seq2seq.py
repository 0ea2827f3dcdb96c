"""Speech, text or units to units or text, one after another: translators, recognisers, unit mBART, in one model.

The decoder is that of transformers' MBart, the encoder its Transformer or a Branchformer.  In front of the encoder:
convolutions that shorten features (S2UT's subsampler; with one kernel the length adaptor of Enhanced S2UT), or an
embedding of letters or units.  Side heads read any layer (`unitkit.models.heads`); a CTC head on the decoder gives text
and units in one pass, CTC on the encoder's output takes part in the search, or is all there is.  With `stack` r > 1 the
decoder makes r units a step.  Lee et al. 2021 (2107.05604), Popuri et al. 2022 (2204.02967), Watanabe et al. 2017.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.beam import beam_search
from unitkit.models.branchformer import Branchformer
from unitkit.models.ctc_prefix import CtcPrefix
from unitkit.models.front import Subsampler, TokenEmbedding, inside
from unitkit.models.heads import SideHead, ctc_loss, diagonal_loss, smoothed
from unitkit.models.mbart import Stack, mbart, stacked, with_eos
from unitkit.models.seq2seq_config import (
    PAPER,
    PAPER_ASR,
    PAPER_BART,
    PAPER_ENHANCED,
    Seq2SeqConfig,
    Seq2SeqError,
    head_size,
    letters_of,
    mask_token,
    source_size,
)
from unitkit.models.storage import read_model, save_model
from unitkit.text import Letters
from unitkit.units import Vocab

__all__ = [
    "PAPER",
    "PAPER_ASR",
    "PAPER_BART",
    "PAPER_ENHANCED",
    "Hypothesis",
    "Pairs",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Seq2SeqError",
    "mask_token",
    "source_size",
    "stacked",
    "with_eos",
]


@dataclass(frozen=True)
class Pairs:
    """A batch: `source` (batch, frames, dim) or tokens (batch, n [, codebooks]), `target` tokens (batch, m), `texts`.

    Texts are the heads'.  Targets and texts are padded with 0 and have neither bos nor eos.
    """

    source: Tensor
    lengths: Tensor
    target: Tensor
    texts: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Pairs":
        """The same batch on `device`."""
        texts = {name: value.to(device, non_blocking=non_blocking) for name, value in self.texts.items()}
        named = (f.name for f in fields(self) if f.name != "texts")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in named}
        return Pairs(**moved, texts=texts)


@dataclass(frozen=True)
class Hypothesis:
    """What was found: unit ids (n,), its score by its length, and what the CTC heads on the decoder read, by target.

    Of a model that writes text, `units` are its tokens without pad, bos and eos, counted from 0.
    """

    units: np.ndarray
    score: float
    texts: dict[str, str]


class Seq2Seq(nn.Module):
    """See the module's text; `forward` trains, `generate` translates."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        if config.n_targets < 2:
            what = "n_units" if config.target == "units" else "pieces"
            raise Seq2SeqError(f"{what} {config.n_targets}: targets need at least 2 {what.removeprefix('n_')}")
        if config.source == "features" and config.features_dim < 1:
            raise Seq2SeqError("features_dim is not set: it is the listener's dim")
        self.config, self.vocab = config, Vocab(config.n_targets)
        self.front: Any = front_of(config)
        with torch.no_grad():
            self.inner: Any = mbart(config)
        self.blocks = blocks_of(config)
        self.ctc = nn.Linear(config.dim, len(self.vocab)) if config.ctc else None
        if config.ctc == 1:  # what nobody asks for would be saved with the rest
            for owner, name in ((self.inner, "lm_head"), (self.inner.model, "decoder"), (self.inner.model, "shared")):
                delattr(owner, name)
            self.inner.model.encoder.embed_tokens = None
        self.stack = Stack(config.stack, self.inner, config.dim) if config.stack > 1 else None
        self.heads = nn.ModuleDict(
            {name: SideHead(head, head_size(config, head), config.dim) for name, head in config.heads.items()}
        )
        self._check_heads()

    def _check_heads(self) -> None:
        config = self.config
        for name, head in config.heads.items():
            most = config.encoder_layers if head.at == "encoder" else config.decoder_layers
            if not 1 <= head.layer <= most:
                raise Seq2SeqError(f"heads.{name}.layer {head.layer}: the {head.at} has layers 1 to {most}")
            if head.at == "decoder" and (config.stack > 1 or config.ctc == 1):
                raise Seq2SeqError(f"heads.{name}: a head on the decoder needs one, and stack 1, not {config.stack}")

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Source as in `Pairs` to memory (batch, positions, dim) and its mask."""
        return self._encoded(source, lengths)[:2]

    def _encoded(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        x, lengths = self.front(source, lengths)
        if x.shape[1] > self.config.max_positions:
            raise Seq2SeqError(f"{x.shape[1]} positions after subsampling: this model has {self.config.max_positions}")
        mask = inside(lengths, x.shape[1])
        if self.blocks is not None:
            memory, layers = self.blocks(x, mask)
            return memory, mask, layers
        found = self.inner.model.encoder(inputs_embeds=x, attention_mask=mask.long(), output_hidden_states=True)
        return found.last_hidden_state, mask, found.hidden_states

    def forward(self, batch: Pairs, progress: float = 0.0) -> dict[str, Tensor]:
        """Losses of a batch: `loss` is their weighted sum, `units` or `attention` the decoder's.

        Labels are smoothed, and attention guided, in training only: in eval mode the losses are nats a token.
        `progress` (0..1) is of training.
        """
        memory, mask, encoder_layers = self._encoded(batch.source, batch.lengths)
        labels, share = with_eos(batch.target), self.config.ctc
        losses: dict[str, Tensor] = {}
        decoder_layers: tuple[Tensor, ...] = ()
        total = memory.new_zeros(())
        if share < 1:
            losses, told, decoder_layers = self._told(memory, mask, labels, progress)
            total = total + (1 - share) * told
        if self.ctc is not None:
            losses["ctc"] = ctc_loss(self.ctc(memory), mask.sum(1), batch.target)
            total = total + share * losses["ctc"]
        for name, head in self.heads.items():
            own = self.config.heads[name]
            layers, keys = (encoder_layers, mask) if own.at == "encoder" else (decoder_layers, labels != Vocab.pad)
            losses[name] = head(layers[own.layer], keys, batch.texts[own.target])
            total = total + own.weight_at(progress) * losses[name]
        return losses | {"loss": total}

    def _told(
        self, memory: Tensor, mask: Tensor, labels: Tensor, progress: float
    ) -> tuple[dict[str, Tensor], Tensor, tuple[Tensor, ...]]:
        """The decoder's losses, their weighted sum, and the outputs of its layers."""
        guide = self.config.guide * max(0.0, 1 - progress / self.config.guide_until) if self.training else 0.0
        logits, layers, attentions = self._decoded(memory, mask, labels, look=guide > 0)
        flat = labels if self.stack is None else stacked(labels, self.stack.r)
        total = smoothed(logits, flat, smoothing=self.config.label_smoothing if self.training else 0.0)
        losses = {"units" if self.config.target == "units" else "attention": total}
        losses["accuracy"] = ((logits.argmax(-1) == flat) & (flat != Vocab.pad)).sum() / (flat != Vocab.pad).sum()
        if attentions is not None:
            keys = flat.flatten(2).any(2) if flat.ndim == 3 else flat != Vocab.pad
            losses["guide"] = diagonal_loss(attentions, keys.sum(1), mask.sum(1))
            total = total + guide * losses["guide"]
        return losses, total, layers

    def _decoded(
        self, memory: Tensor, mask: Tensor, labels: Tensor, *, look: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Logits (batch, m, [r,] vocabulary) of labels that end with eos, and the outputs of the decoder's layers.

        With `look` also where the layers look in the source: (batch, layers × heads, m, positions).
        """
        given: dict[str, Tensor] = {"encoder_hidden_states": memory, "encoder_attention_mask": mask.long()}
        if self.stack is None:
            before = F.pad(labels[:, :-1], (1, 0), value=Vocab.bos)
            given |= {"input_ids": before}
        else:
            steps = stacked(labels, self.stack.r)
            before = torch.cat([torch.full_like(steps[:, :1], Vocab.bos), steps[:, :-1]], dim=1)
            given |= {"inputs_embeds": self.stack.embed(before)}
        if look:
            self.plain_attention()  # which is the one that shows its weights
        found = self.inner.model.decoder(
            **given, use_cache=False, output_hidden_states=True, output_attentions=look or None
        )
        attentions = torch.cat(found.cross_attentions, dim=1) if look else None
        if self.stack is not None:
            return self.stack.logits(found.last_hidden_state), found.hidden_states, attentions
        logits = self.inner.lm_head(found.last_hidden_state) + self.inner.final_logits_bias
        return logits, found.hidden_states, attentions

    def plain_attention(self) -> "Seq2Seq":
        """Attention step by step in place of torch's fused one, whose gradients take twice the time on a CPU."""
        for part in (self.inner, *(head.decoder for head in self.heads.values() if hasattr(head, "decoder"))):
            part.set_attn_implementation("eager")
        return self

    @torch.inference_mode()
    def generate(
        self,
        sources: Sequence[Tensor],
        *,
        beam: int = 10,
        ratio: float = 1.0,
        extra: int = 200,
        length_penalty: float = 1.0,
        method: str = "fast",
        ctc_weight: float | None = None,
        first: Sequence[int] | None = None,
    ) -> list[Hypothesis]:
        """The best hypothesis of each source, features (frames, dim) or tokens (n [, codebooks]), by beam search.

        A hypothesis has at most `ratio` × encoder positions + `extra` units.  `method` "transformers" uses its
        `generate` in place of ours; the units are the same.  `ctc_weight`: how much CTC counts in the scores, as much
        as in training if left out.  `first`: the token that each hypothesis begins with, -1 for any.
        """
        if not sources:
            return []
        weight = self._weight(ctc_weight)
        device = self.inner.device
        memories = [self.encode(s[None].to(device), torch.tensor([len(s)], device=device))[0][0] for s in sources]
        memory = nn.utils.rnn.pad_sequence(memories, batch_first=True)
        mask = inside(torch.tensor([len(m) for m in memories], device=device), memory.shape[1])
        limits = [min(int(ratio * len(m)) + extra, self.config.max_positions - 1) for m in memories]
        limits = [max(1, n // self.config.stack) for n in limits]
        if method == "fast":
            found = beam_search(
                self.inner if weight < 1 else None,
                memory,
                mask,
                beam=beam,
                max_new=limits,
                length_penalty=length_penalty,
                stack=self.stack,
                scorer=CtcPrefix(self._ctc_logs(memories), weight=weight, beam=beam) if weight else None,
                first=None if first is None else torch.tensor(first, device=device),
            )
        elif method == "transformers" and self.stack is None and not weight and first is None:
            found = self._by_transformers(memories, limits, beam, length_penalty)
        else:
            raise Seq2SeqError(
                f"method {method!r} with stack {self.config.stack} and ctc_weight {weight}: fast, or transformers with "
                "stack 1 and without CTC"
            )
        texts = [self._texts(m, tokens) for m, (tokens, _) in zip(memories, found, strict=True)]
        return [Hypothesis(self.vocab.decode(t), score, text) for (t, score), text in zip(found, texts, strict=True)]

    def _weight(self, asked: float | None) -> float:
        """How much CTC counts in the search."""
        share = self.config.ctc
        weight = share if asked is None else asked
        if not 0 <= weight <= 1 or (weight > 0 and self.ctc is None) or (weight < 1 and share == 1):
            kind = {0.0: "no CTC, so 0", 1.0: "CTC only, so 1"}.get(share, "both, so anything from 0 to 1")
            raise Seq2SeqError(f"ctc_weight {weight}: this model has {kind}")
        return weight

    def _ctc_logs(self, memories: Sequence[Tensor]) -> list[Tensor]:
        """Log probabilities (positions, vocabulary) of CTC, source by source, so that each is as it is alone."""
        assert self.ctc is not None
        return [self.ctc(memory).float().log_softmax(1) for memory in memories]

    def _by_transformers(
        self, memories: Sequence[Tensor], limits: Sequence[int], beam: int, length_penalty: float
    ) -> list[tuple[np.ndarray, float]]:
        from transformers.modeling_outputs import BaseModelOutput

        found = []
        for memory, limit in zip(memories, limits, strict=True):
            out = self.inner.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=memory[None]),
                attention_mask=torch.ones(1, len(memory), dtype=torch.long, device=memory.device),
                num_beams=beam,
                max_new_tokens=limit,
                length_penalty=length_penalty,
                early_stopping=False,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
            tokens = out.sequences[0, 1:].cpu().numpy()
            ends = np.flatnonzero(tokens == Vocab.eos)
            score = float(out.sequences_scores[0]) if beam > 1 else math.nan
            found.append((tokens[: ends[0]] if len(ends) else tokens, score))
        return found

    def _texts(self, memory: Tensor, tokens: np.ndarray) -> dict[str, str]:
        """What the CTC heads read in one pass over the finished hypothesis."""
        heads = {name: own for name, own in self.config.heads.items() if own.kind == "ctc" and "text" in own.target}
        if not heads:
            return {}
        mask = torch.ones(1, len(memory), dtype=torch.bool, device=memory.device)
        layers: dict[str, tuple[Tensor, ...]] = {}
        if any(own.at == "decoder" for own in heads.values()):
            labels = torch.as_tensor(np.append(tokens, Vocab.eos), device=memory.device)[None]
            layers["decoder"] = self._decoded(memory[None], mask, labels)[1]
        out = {}
        for name, own in heads.items():
            if own.at == "decoder":  # heads on the encoder are for training: its layers are not kept
                head: Any = self.heads[name]
                read = head.greedy(layers["decoder"][own.layer][0])
                out[own.target] = Letters(letters_of(self.config, own)).decode(read)
        return out

    def save(self, directory: str | os.PathLike[str], *, card: str = "") -> None:
        """Writes config.yaml, model.safetensors and card.md; the listener beside them is the recipe's business."""
        skip = self._implied()
        kept = {name: value for name, value in self.state_dict().items() if name not in skip}
        text = card or f"# Seq2Seq\n\nTokenizer: `{self.config.tokenizer}`\n"
        save_model(directory, self.config, kept, kind="seq2seq", card=text)

    def _implied(self) -> set[str]:
        """Names of weights that are others' or that follow from the config."""
        tied = {"inner.lm_head.weight"} | {f"inner.model.{half}.embed_tokens.weight" for half in ("encoder", "decoder")}
        if self.config.positions == "sinusoidal":
            tied |= {f"inner.model.{half}.embed_positions.weight" for half in ("encoder", "decoder")}
        return tied

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> "Seq2Seq":
        """Loads a model directory, ready for inference."""
        config, weights = read_model(directory, Seq2SeqConfig, what="a seq2seq model", error=Seq2SeqError)
        model = cls(config)
        missing, unknown = model.load_state_dict(weights, strict=False)
        if wrong := [*(set(missing) - model._implied()), *unknown]:
            raise Seq2SeqError(f"{directory}: model.safetensors does not fit config.yaml: {min(wrong)}")
        return model.to(device).eval()

    def start_from(self, other: "Seq2Seq", *, parts: Sequence[str] = ("encoder", "decoder")) -> list[str]:
        """Takes another model's encoder, decoder, front, heads or ctc; returns the names it took.

        The decoder's units must be those of the same tokenizer.
        """
        encoder = "inner.model.encoder." if self.blocks is None else "blocks."
        known = {
            "encoder": encoder,
            "decoder": "inner.model.decoder.",
            "front": "front.",
            "heads": "heads.",
            "ctc": "ctc.",
        }
        if unknown := set(parts) - set(known):
            raise Seq2SeqError(f"parts {', '.join(sorted(unknown))}: known are {', '.join(known)}")
        if {"decoder", "ctc"} & set(parts) and other.config.tokenizer != self.config.tokenizer:
            raise Seq2SeqError(
                f"a decoder of units of {other.config.tokenizer!r} cannot begin one for {self.config.tokenizer!r}"
            )
        here, there = (c.reads for c in (self.config, other.config))
        if "front" in parts and here != there:
            raise Seq2SeqError(f"a front of {there} cannot begin one of {here}: leave front out of the parts")
        prefixes = tuple(known[part] for part in parts) + (("inner.model.shared.",) if "decoder" in parts else ())
        own, found = self.state_dict(), other.state_dict()
        taken = {k: v for k, v in found.items() if k.startswith(prefixes) and k in own}
        if lacking := [k for k in own if k.startswith(prefixes) and k not in found]:
            raise Seq2SeqError(f"{lacking[0]} is not in the other model: are there as many layers in it?")
        if other_sizes := [k for k, v in taken.items() if own[k].shape != v.shape]:
            name = other_sizes[0]
            raise Seq2SeqError(f"{name} has the sizes {list(found[name].shape)} there, {list(own[name].shape)} here")
        self.load_state_dict(taken, strict=False)
        return sorted(taken)


def front_of(config: Seq2SeqConfig) -> nn.Module:
    """What stands before the encoder."""
    if config.source == "features":
        return Subsampler(
            config.features_dim,
            config.dim,
            channels=config.conv_channels,
            kernels=config.conv_kernels,
            norm=config.features_norm,
        )
    return TokenEmbedding(
        source_size(config),
        config.dim,
        inner=config.embedding_dim,
        channels=config.conv_channels,
        kernels=config.unit_kernels if config.source == "units" else (),
    )


def blocks_of(config: Seq2SeqConfig) -> Branchformer | None:
    """The encoder, where it is not MBart's."""
    if config.blocks == "transformer":
        return None
    return Branchformer(
        config.dim,
        layers=config.encoder_layers,
        heads=config.attention_heads,
        hidden=config.hidden,
        gated=config.branch_hidden,
        kernel=config.branch_kernel,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )

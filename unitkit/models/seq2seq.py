"""Speech, text or units to units, one after another: S2UT, text-to-unit models and unit mBART, in one model.

Encoder and decoder are transformers' MBart.  In front of the encoder: convolutions that shorten features (S2UT's
subsampler; with one kernel the length adaptor of Enhanced S2UT), or an embedding of letters or units.  Side heads read
any layer (`unitkit.models.heads`); a CTC head on the decoder gives text and units in one pass.  With `stack` r > 1 the
decoder makes r units a step.  Lee et al. 2021 (2107.05604), Popuri et al. 2022 (2204.02967).
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitkit.models.beam import beam_search
from unitkit.models.front import Subsampler, TokenEmbedding, inside, sinusoids
from unitkit.models.heads import HeadConfig, SideHead, diagonal_loss, smoothed
from unitkit.models.storage import read_model, save_model
from unitkit.text import Letters
from unitkit.units import Vocab

SOURCES = ("features", "text", "units")


class Seq2SeqError(ValueError):
    """A model that cannot be built, loaded or fed; the text names the value and what is known."""


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The model; what the units and texts say about themselves is filled in by the recipe.  The defaults are small."""

    tokenizer: str = ""  # fingerprint of the target units
    n_units: int = 0
    rate_hz: float = 50.0
    reduced: bool = True  # targets without repetitions; their durations are the vocoder's business
    stack: int = 1  # units made in one step
    source: str = "features"  # features | text | units
    features: str = ""  # what the listener hears, for people to read
    features_dim: int = 0
    source_tokenizer: str = ""  # of source units: as input, or as what a head predicts
    source_units: int = 0
    source_letters: str = ""
    target_letters: str = ""
    source_lang: str = ""
    target_lang: str = ""
    dim: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 3
    attention_heads: int = 4
    hidden: int = 1024
    conv_channels: int = 512
    conv_kernels: tuple[int, ...] = (5, 5)  # each halves the number of frames
    features_norm: bool = False  # layer norm of what is heard: for features of speech models
    dropout: float = 0.1
    attention_dropout: float = 0.0  # of attention weights; 0 takes half the time on a CPU
    activation_dropout: float = 0.0
    positions: str = "sinusoidal"  # sinusoidal | learned
    max_positions: int = 2048
    label_smoothing: float = 0.2
    guide: float = 0.0  # weight of a loss that holds the attention to the source near the diagonal; see `diagonal_loss`
    guide_until: float = 0.5  # share of training in which it falls to 0
    heads: dict[str, HeadConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise Seq2SeqError(f"source {self.source!r}: known are {', '.join(SOURCES)}")
        if self.positions not in ("sinusoidal", "learned"):
            raise Seq2SeqError(f"positions {self.positions!r}: known are sinusoidal, learned")
        if self.dim % self.attention_heads:
            raise Seq2SeqError(f"dim {self.dim} is not a multiple of attention_heads {self.attention_heads}")
        if self.stack < 1 or any(kernel % 2 == 0 for kernel in self.conv_kernels):
            raise Seq2SeqError(f"stack {self.stack} is at least 1, kernels {self.conv_kernels} are odd")


# The Fisher model of the S2UT paper: 27 M parameters; attention heads on layers 6 and 8, text by CTC on the decoder.
PAPER = Seq2SeqConfig(
    encoder_layers=12,
    decoder_layers=6,
    hidden=2048,
    conv_channels=1024,
    attention_dropout=0.1,
    activation_dropout=0.1,
    heads={
        "source": HeadConfig(at="encoder", layer=6, target="source_text", weight=8.0),
        "target": HeadConfig(at="encoder", layer=8, target="target_text", weight=8.0),
        "text": HeadConfig(kind="ctc", at="decoder", layer=3, target="target_text", weight=1.6),
    },
)
# Enhanced S2UT: a wav2vec 2.0 encoder (the listener), one convolution, and the decoder of a unit mBART.
PAPER_ENHANCED = Seq2SeqConfig(
    dim=1024,
    encoder_layers=0,
    decoder_layers=12,
    attention_heads=16,
    hidden=4096,
    conv_kernels=(3,),
    features_norm=True,
    attention_dropout=0.1,
    activation_dropout=0.1,
    positions="learned",
)
PAPER_BART = replace(PAPER_ENHANCED, encoder_layers=12, source="units")


@dataclass(frozen=True)
class Pairs:
    """A batch: `source` (batch, frames, dim) or tokens (batch, n), `target` unit tokens (batch, m), heads' `texts`.

    Targets and texts are padded with 0 and have neither bos nor eos.
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
    """A translation: unit ids (n,), its log probability by its length, and what the CTC heads read, by their target."""

    units: np.ndarray
    score: float
    texts: dict[str, str]


def source_size(config: Seq2SeqConfig) -> int:
    """Tokens that the input has; units have one more, that hides a unit (`mask_token`)."""
    if config.source == "text":
        return len(Letters(config.source_letters))
    return len(Vocab(config.source_units)) + 1


def mask_token(config: Seq2SeqConfig) -> int:
    """What hides units from a unit mBART."""
    return len(Vocab(config.source_units))


def mbart(config: Seq2SeqConfig) -> Any:
    """transformers' MBart of a config, its positions replaced by sinusoids where wanted."""
    import transformers

    inner = transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(
            vocab_size=len(Vocab(config.n_units)),
            d_model=config.dim,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.attention_heads,
            decoder_attention_heads=config.attention_heads,
            encoder_ffn_dim=config.hidden,
            decoder_ffn_dim=config.hidden,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            activation_function="relu",
            max_position_embeddings=config.max_positions,
            scale_embedding=True,
            init_std=config.dim**-0.5,  # theirs, 0.02, is for 1024 dimensions: in fewer attention stays flat for long
            pad_token_id=Vocab.pad,
            bos_token_id=Vocab.bos,
            eos_token_id=Vocab.eos,
            decoder_start_token_id=Vocab.bos,
            forced_eos_token_id=None,
        )
    )
    if config.positions == "sinusoidal":
        for half in (inner.model.encoder, inner.model.decoder):
            half.embed_positions.requires_grad_(False).weight.copy_(sinusoids(config.max_positions + 2, config.dim))
    return inner


class Stack(nn.Module):
    """r units in one step: their embeddings side by side to one vector, and one vector to r of them."""

    def __init__(self, r: int, inner: Any, dim: int) -> None:
        super().__init__()
        self.r = r
        self.down = nn.Linear(r * dim, dim, bias=False)
        self.up = nn.Linear(dim, r * dim)
        self._inner = (inner,)  # in a tuple, so that its weights are not ours as well

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (..., r) to (..., dim)."""
        return self.down(self._inner[0].model.decoder.embed_tokens(tokens).flatten(-2))

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder output (..., dim) to (..., r, vocabulary)."""
        inner = self._inner[0]
        return inner.lm_head(self.up(hidden).unflatten(-1, (self.r, -1))) + inner.final_logits_bias


class Seq2Seq(nn.Module):
    """See the module's text; `forward` trains, `generate` translates."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        if config.n_units < 2:
            raise Seq2SeqError(f"n_units {config.n_units}: targets need at least 2 units")
        if config.source == "features" and config.features_dim < 1:
            raise Seq2SeqError("features_dim is not set: it is the listener's dim")
        self.config, self.vocab = config, Vocab(config.n_units)
        self.front: Any = (
            Subsampler(
                config.features_dim,
                config.dim,
                channels=config.conv_channels,
                kernels=config.conv_kernels,
                norm=config.features_norm,
            )
            if config.source == "features"
            else TokenEmbedding(source_size(config), config.dim)
        )
        with torch.no_grad():
            self.inner: Any = mbart(config)
        self.stack = Stack(config.stack, self.inner, config.dim) if config.stack > 1 else None
        self.heads = nn.ModuleDict(
            {name: SideHead(head, head_size(config, head), config.dim) for name, head in config.heads.items()}
        )
        for name, head in config.heads.items():
            most = config.encoder_layers if head.at == "encoder" else config.decoder_layers
            if not 1 <= head.layer <= most:
                raise Seq2SeqError(f"heads.{name}.layer {head.layer}: the {head.at} has layers 1 to {most}")
            if config.stack > 1 and head.at == "decoder":
                raise Seq2SeqError(f"heads.{name}: a head on the decoder needs stack 1, not {config.stack}")

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Source (batch, frames, dim) or tokens (batch, n) to memory (batch, positions, dim) and its mask."""
        return self._encoded(source, lengths)[:2]

    def _encoded(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        x, lengths = self.front(source, lengths)
        if x.shape[1] > self.config.max_positions:
            raise Seq2SeqError(f"{x.shape[1]} positions after subsampling: this model has {self.config.max_positions}")
        mask = inside(lengths, x.shape[1])
        found = self.inner.model.encoder(inputs_embeds=x, attention_mask=mask.long(), output_hidden_states=True)
        return found.last_hidden_state, mask, found.hidden_states

    def forward(self, batch: Pairs, progress: float = 0.0) -> dict[str, Tensor]:
        """Losses of a batch: `loss` is their weighted sum, `units` the decoder's; `progress` (0..1) is of training.

        Labels are smoothed, and attention guided, in training only: in eval mode the losses are nats a token.
        """
        memory, mask, encoder_layers = self._encoded(batch.source, batch.lengths)
        labels = with_eos(batch.target)
        guide = self.config.guide * max(0.0, 1 - progress / self.config.guide_until) if self.training else 0.0
        logits, decoder_layers, attentions = self._decoded(memory, mask, labels, look=guide > 0)
        flat = labels if self.stack is None else stacked(labels, self.stack.r)
        losses = {"units": smoothed(logits, flat, smoothing=self.config.label_smoothing if self.training else 0.0)}
        losses["accuracy"] = ((logits.argmax(-1) == flat) & (flat != Vocab.pad)).sum() / (flat != Vocab.pad).sum()
        total = losses["units"]
        if attentions is not None:
            keys = flat.flatten(2).any(2) if flat.ndim == 3 else flat != Vocab.pad
            losses["guide"] = diagonal_loss(attentions, keys.sum(1), mask.sum(1))
            total = total + guide * losses["guide"]
        for name, head in self.heads.items():
            own = self.config.heads[name]
            layers, keys = (encoder_layers, mask) if own.at == "encoder" else (decoder_layers, labels != Vocab.pad)
            losses[name] = head(layers[own.layer], keys, batch.texts[own.target])
            total = total + own.weight_at(progress) * losses[name]
        return losses | {"loss": total}

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
    ) -> list[Hypothesis]:
        """The best hypothesis of each source, features (frames, dim) or tokens (n,), by beam search.

        A hypothesis has at most `ratio` × encoder positions + `extra` units.  `method` "transformers" uses its
        `generate` in place of ours; the units are the same.
        """
        if not sources:
            return []
        device = self.inner.device
        memories = [self.encode(s[None].to(device), torch.tensor([len(s)], device=device))[0][0] for s in sources]
        memory = nn.utils.rnn.pad_sequence(memories, batch_first=True)
        mask = inside(torch.tensor([len(m) for m in memories], device=device), memory.shape[1])
        limits = [min(int(ratio * len(m)) + extra, self.config.max_positions - 1) for m in memories]
        limits = [max(1, n // self.config.stack) for n in limits]
        if method == "fast":
            found = beam_search(
                self.inner, memory, mask, beam=beam, max_new=limits, length_penalty=length_penalty, stack=self.stack
            )
        elif method == "transformers" and self.stack is None:
            found = self._by_transformers(memories, limits, beam, length_penalty)
        else:
            raise Seq2SeqError(f"method {method!r} with stack {self.config.stack}: fast, or transformers with stack 1")
        texts = [self._texts(m, tokens) for m, (tokens, _) in zip(memories, found, strict=True)]
        return [Hypothesis(self.vocab.decode(t), score, text) for (t, score), text in zip(found, texts, strict=True)]

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
        """Takes another model's encoder, decoder, front or heads; returns the names it took.

        The decoder's units must be those of the same tokenizer.
        """
        known = {half: f"inner.model.{half}." for half in ("encoder", "decoder")} | {
            "front": "front.",
            "heads": "heads.",
        }
        if unknown := set(parts) - set(known):
            raise Seq2SeqError(f"parts {', '.join(sorted(unknown))}: known are {', '.join(known)}")
        if "decoder" in parts and other.config.tokenizer != self.config.tokenizer:
            raise Seq2SeqError(
                f"a decoder of units of {other.config.tokenizer!r} cannot begin one for {self.config.tokenizer!r}"
            )
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


def with_eos(target: Tensor) -> Tensor:
    """Targets (batch, m), padded with 0, to labels (batch, m + 1) with an eos after each row."""
    labels = F.pad(target, (0, 1))
    ends = (target != Vocab.pad).sum(1, keepdim=True)
    return labels.scatter(1, ends, Vocab.eos)


def stacked(labels: Tensor, r: int) -> Tensor:
    """Labels (batch, m) to steps (batch, steps, r), padded at the end."""
    return F.pad(labels, (0, -labels.shape[1] % r)).unflatten(1, (-1, r))


def letters_of(config: Seq2SeqConfig, head: HeadConfig) -> str:
    """The letters of a head's text."""
    return config.source_letters if head.target == "source_text" else config.target_letters


def head_size(config: Seq2SeqConfig, head: HeadConfig) -> int:
    """Tokens that a head tells apart."""
    if head.target == "source_units":
        return len(Vocab(config.source_units))
    letters = letters_of(config, head)
    if not letters:
        raise Seq2SeqError(f"a head on {head.target} needs texts: the manifest of that side has none")
    return len(Letters(letters))

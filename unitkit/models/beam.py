"""Beam search of our own over the decoder of a transformers MBart: the tokens of its `generate`, in less time.

Keys and values of the source are made once and shared by all beams of an utterance.  Those of the beams stay where they
were written: every beam sees its own ancestors through a mask, so that nothing moves when beams are chosen, and what no
beam descends from any more is thrown out now and then.  Beams share most of their past, so little is left.

A `Scorer` joins scores of another kind with the decoder's, as CTC does in recognition, or stands in for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DEAD = -1e9  # the score of what cannot be: finite, as in transformers, so that ties fall as they do there
ROOM = 8  # steps between two prunings of the cache
PACK_FROM = 5  # rows from which packed weights are faster than plain ones
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
UNSUPPORTED = {  # settings of `generate` that would change its tokens, and the value at which they do not
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
}

Found = list[tuple[np.ndarray, float]]


class BeamError(ValueError):
    """A model or a request that this search does not do."""


class Stack(Protocol):
    """A decoder whose steps make r tokens each, independent of one another given the steps before."""

    r: int

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (n, r) to the decoder's input (n, dim)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The decoder's output (n, dim) to scores (n, r, vocabulary)."""


class Scorer(Protocol):
    """Scores of the beams' next tokens from elsewhere, kept in step with the beams."""

    def join(self, gains: Tensor) -> Tensor:
        """The decoder's log probabilities (batch, beam, vocabulary) to those that count; they are at most 0."""

    def follow(self, parents: Tensor, tokens: Tensor) -> None:
        """Beams become children of `parents` (batch, beam), longer by `tokens` (batch, beam)."""

    def keep(self, left: Tensor) -> None:
        """Of the batch, the utterances `left` only."""


@torch.inference_mode()
def beam_search(
    inner: Any,
    memory: Tensor,
    mask: Tensor,
    *,
    beam: int,
    max_new: Sequence[int],
    length_penalty: float = 1.0,
    stack: Stack | None = None,
    scorer: Scorer | None = None,
    first: Tensor | None = None,
) -> Found:
    """Tokens up to eos and log probability / length ** penalty, for each row of `memory` (batch, positions, dim).

    The tokens are those of `inner.generate` with `num_beams=beam`, `early_stopping=False` (beam 1: greedy) and
    `max_new_tokens` of the row; the length counts the eos.  With a `stack`, `max_new` counts steps of r tokens: the
    search is over joint choices, those with the same tokens up to an eos being one, and what follows an eos is cut.

    A `scorer` says what counts in place of the decoder's log probabilities; `first` (batch,) are tokens that the rows
    begin with, -1 for any.  `inner` None, which needs a scorer that asks for nothing of the decoder, saves its time.
    """
    if inner is not None:
        _check(inner, memory, mask, beam=beam, max_new=max_new)
    if stack is not None and (scorer is not None or first is not None):
        raise BeamError("a scorer and first tokens are for one token a step: leave them out, or the stack")
    if inner is None and scorer is None:
        raise BeamError("no decoder and no scorer: one of them must say what counts")
    decoder: _Decoder | _Silent
    decoder = _Silent(memory, beam) if inner is None else _Decoder(inner, memory, mask, beam=beam, stack=stack)
    search: _Search = (
        _Greedy(decoder, max_new, length_penalty)
        if beam == 1 and scorer is None and first is None
        else _Beams(decoder, max_new, length_penalty, scorer=scorer, first=first)
    )
    tokens = torch.full((len(memory) * beam, decoder.r), decoder.start, device=memory.device)
    found: list[tuple[np.ndarray, float] | None] = [None] * len(memory)
    rows = np.arange(len(memory))
    for step in range(1, max(max_new) + 1):
        tokens, over = search.advance(decoder.step(tokens), step)
        if over is None or not (over := over.cpu()).any():
            continue
        for i in over.nonzero()[:, 0].tolist():
            found[rows[i]] = search.result(i)
        rows = rows[~over.numpy()]
        if not len(rows):
            break
        left = (~over).nonzero()[:, 0].to(memory.device)
        tokens = tokens.unflatten(0, (-1, beam))[left].flatten(0, 1)
        decoder.keep(left)
        search.keep(left)
    return [one for one in found if one is not None]


def _check(inner: Any, memory: Tensor, mask: Tensor, *, beam: int, max_new: Sequence[int]) -> None:
    """Refuse what would give other tokens than `generate`, or none."""
    activation = inner.config.activation_function
    if activation not in ACTIVATIONS:
        raise BeamError(f"activation function {activation!r}: known are {', '.join(ACTIVATIONS)}; use inner.generate")
    for name, harmless in UNSUPPORTED.items():
        if (value := getattr(inner.generation_config, name, None)) not in (None, harmless):
            raise BeamError(f"generation_config.{name} is {value!r}; set it to {harmless!r}, or use inner.generate")
    if not isinstance(inner.generation_config.eos_token_id, int):
        raise BeamError(f"eos_token_id {inner.generation_config.eos_token_id!r}: give the config one number")
    if beam < 1 or len(max_new) != len(memory) or min(max_new, default=1) < 1:
        raise BeamError(f"beam {beam} and max_new {list(max_new)} for {len(memory)} rows: one a row, each at least 1")
    positions = inner.model.decoder.embed_positions
    if max(max_new, default=1) > (known := len(positions.weight) - positions.offset):
        raise BeamError(f"max_new {max(max_new)}: the decoder has {known} positions; ask for fewer")
    if mask.shape != memory.shape[:2] or not bool(mask.bool().any(1).all()):
        raise BeamError(f"mask {tuple(mask.shape)} of memory {tuple(memory.shape)}: (batch, positions), no row empty")


# ---- the decoder, one step at a time


class _Linear:
    """One linear map of several that take the same input; packed for the processor where that is faster."""

    def __init__(self, *parts: Any, rows: int) -> None:
        self.weight = torch.cat([part.weight for part in parts]) if len(parts) > 1 else parts[0].weight
        self.bias = torch.cat([part.bias for part in parts]) if len(parts) > 1 else parts[0].bias
        # oneDNN's kernels, those of torch.compile: about twice as fast as MKL's at 10 to 80 rows, slower for one
        fits = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 and rows >= PACK_FROM
        known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows) if fits and known else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """A layer norm without the calls of a module around it."""
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return partial(F.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=eps)


def _attend(queries: Tensor, past: Tensor, mask: Tensor | None, *, heads: int) -> Tensor:
    """Queries (batch * beam, dim) to sums of values, of keys and values (batch, slots, 2 dim)."""
    batch, size = len(past), queries.shape[1] // heads
    q = queries.view(batch, -1, heads, size).transpose(1, 2)  # (batch, heads, beam, size)
    k, v = past.view(batch, -1, 2, heads, size).permute(2, 0, 3, 1, 4)  # (batch, heads, slots, size) each
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(queries.shape)


class _Layer:
    """A decoder layer and what it looks back on: `source` (batch, positions, 2 dim), `past` (batch, slots, 2 dim)."""

    def __init__(self, layer: Any, memory: Tensor, *, beam: int, activation: str) -> None:
        own, cross, linear = layer.self_attn, layer.encoder_attn, partial(_Linear, rows=len(memory) * beam)
        self.heads = own.num_heads
        self.activation = ACTIVATIONS[activation]
        self.own_norm, self.cross_norm = _norm(layer.self_attn_layer_norm), _norm(layer.encoder_attn_layer_norm)
        self.last_norm = _norm(layer.final_layer_norm)
        self.qkv, self.own_out = linear(own.q_proj, own.k_proj, own.v_proj), linear(own.out_proj)
        self.query, self.cross_out = linear(cross.q_proj), linear(cross.out_proj)
        self.up, self.down = linear(layer.fc1), linear(layer.fc2)
        self.source = torch.cat([cross.k_proj(memory), cross.v_proj(memory)], dim=2)
        self.past = memory.new_zeros(len(memory), 0, self.source.shape[2])

    def __call__(self, x: Tensor, used: int, visible: Tensor | None, mask: Tensor | None) -> Tensor:
        """Input (batch * beam, dim) to output; its keys and values go to the last of the `used` slots."""
        dim = x.shape[1]
        qkv = self.qkv(self.own_norm(x))
        new = qkv[:, dim:].view(len(self.past), -1, 2 * dim)
        self.past[:, used - new.shape[1] : used] = new
        x = x + self.own_out(_attend(qkv[:, :dim], self.past[:, :used], visible, heads=self.heads))
        x = x + self.cross_out(_attend(self.query(self.cross_norm(x)), self.source, mask, heads=self.heads))
        return x + self.down(self.activation(self.up(self.last_norm(x))))

    def keep(self, left: Tensor) -> None:
        """Of the batch, the utterances `left` only."""
        self.source, self.past = self.source[left], self.past[left]


class _Decoder:
    """The decoder of `inner` with a cache of slots; a beam sees those of its ancestors."""

    def __init__(self, inner: Any, memory: Tensor, mask: Tensor, *, beam: int, stack: Stack | None) -> None:
        body = inner.model.decoder
        self.start, self.eos = inner.generation_config.decoder_start_token_id, inner.generation_config.eos_token_id
        self.beam, self.stack, self.r = beam, stack, 1 if stack is None else stack.r
        self.embed = body.embed_tokens
        self.positions = body.embed_positions.weight[body.embed_positions.offset :]
        self.first_norm, self.last_norm = _norm(body.layernorm_embedding), _norm(body.layer_norm)
        activation = inner.config.activation_function
        self.layers = [_Layer(layer, memory, beam=beam, activation=activation) for layer in body.layers]
        self.output, self.bias = inner.lm_head.weight, inner.final_logits_bias[0]
        hidden = torch.zeros_like(mask, dtype=memory.dtype).masked_fill(~mask.bool(), float("-inf"))
        self.mask = None if bool(mask.all()) else hidden[:, None, None]  # (batch, 1, 1, positions)
        # what each beam sees, as a term of its attention scores: 0 or -inf, (batch, beam, slots)
        self.visible = memory.new_zeros(len(memory), beam, 0)
        self.alone = memory.new_full((beam, beam), float("-inf")).fill_diagonal_(0)  # a new slot is seen by its own
        self.used = self.steps = 0

    def step(self, tokens: Tensor) -> Tensor:
        """The latest tokens (batch * beam, r) of all beams to logits (batch * beam, r, vocabulary) of the next ones."""
        if self.used + self.beam > self.visible.shape[2]:
            self._prune()
        self.visible[:, :, self.used : self.used + self.beam] = self.alone
        self.used += self.beam
        visible = None if self.beam == 1 else self.visible[:, None, :, : self.used]
        mask = None if self.mask is None else self.mask.expand(-1, -1, self.beam, -1)
        x = self.embed(tokens[:, 0]) if self.stack is None else self.stack.embed(tokens)
        x = self.first_norm(x + self.positions[self.steps])
        for layer in self.layers:
            x = layer(x, self.used, visible, mask)
        self.steps += 1
        x = self.last_norm(x)
        logits = F.linear(x, self.output, self.bias)[:, None] if self.stack is None else self.stack.logits(x)
        return logits.float()

    def follow(self, parents: Tensor) -> None:
        """Beams become children of `parents` (batch, beam): they see what those saw."""
        seen = self.visible[:, :, : self.used]
        self.visible[:, :, : self.used] = seen.gather(1, parents[:, :, None].expand_as(seen))

    def keep(self, left: Tensor) -> None:
        """Of the batch, the utterances `left` only."""
        self.visible, self.mask = self.visible[left], None if self.mask is None else self.mask[left]
        for layer in self.layers:
            layer.keep(left)

    def _prune(self) -> None:
        """Move the slots that some beam sees to the front of a new cache with room for some steps."""
        seen = (self.visible[:, :, : self.used] == 0).any(1)  # (batch, slots)
        size = int(seen.sum(1).max()) if self.used else 0
        slots = seen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
        room = max(ROOM * self.beam, 64)
        visible = self.visible.gather(2, slots[:, None].expand(-1, self.beam, -1))
        self.visible = F.pad(visible, (0, room), value=float("-inf"))
        flat = (slots + torch.arange(len(slots), device=slots.device)[:, None] * self.layers[0].past.shape[1]).flatten()
        for layer in self.layers:
            kept = layer.past.flatten(0, 1).index_select(0, flat).unflatten(0, (len(slots), -1)) if size else layer.past
            layer.past = F.pad(kept, (0, 0, 0, room))
        self.used = size


class _Silent:
    """No decoder: all tokens are alike to it."""

    r, stack, start, eos = 1, None, 1, 2

    def __init__(self, memory: Tensor, beam: int) -> None:
        self.output, self.beam = memory, beam

    def step(self, tokens: Tensor) -> Tensor:
        return self.output.new_zeros(len(tokens), 1, 1)

    def follow(self, parents: Tensor) -> None:
        pass

    def keep(self, left: Tensor) -> None:
        pass


# ---- the search


class _Search(Protocol):
    """What is kept of the hypotheses while they grow."""

    def advance(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Logits of a step (from 1) to the tokens chosen (batch * beam, r), and which utterances are over (batch,)."""

    def result(self, i: int) -> tuple[np.ndarray, float]:
        """Tokens and score of an utterance that is over."""

    def keep(self, left: Tensor) -> None:
        """Of the batch, the utterances `left` only."""


def _cut(words: Tensor, steps: int, eos: int) -> np.ndarray:
    """Tokens (steps, r) of a hypothesis up to its eos."""
    tokens = words[:steps].flatten().cpu().numpy()
    ends = np.flatnonzero(tokens == eos)
    return tokens[: ends[0]] if len(ends) else tokens


class _Greedy:
    """The best token of each place, until an eos."""

    def __init__(self, decoder: "_Decoder | _Silent", max_new: Sequence[int], length_penalty: float) -> None:
        device, batch = decoder.output.device, len(max_new)
        self.eos, self.penalty = decoder.eos, length_penalty
        self.limits = torch.tensor(max_new, device=device)
        self.words = torch.full((batch, max(max_new, default=0), decoder.r), self.eos, device=device)
        self.scores = torch.zeros(batch, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    def advance(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        tokens = logits.argmax(2)
        self.words[:, step - 1] = tokens
        ends = tokens == self.eos
        counted = ends.cumsum(1) - ends.long() == 0  # up to and with the first eos
        gains = logits.log_softmax(2).gather(2, tokens[:, :, None])[:, :, 0]
        self.scores += (gains * counted).sum(1)
        self.lengths += counted.sum(1)
        return tokens, ends.any(1) | (step >= self.limits)

    def result(self, i: int) -> tuple[np.ndarray, float]:
        score = float(self.scores[i] / int(self.lengths[i]) ** self.penalty)
        return _cut(self.words[i], int(self.limits[i]), self.eos), score

    def keep(self, left: Tensor) -> None:
        self.limits, self.words = self.limits[left], self.words[left]
        self.scores, self.lengths = self.scores[left], self.lengths[left]


@dataclass(frozen=True)
class _Candidates:
    """Continuations of an utterance's beams, best first; enough of them do not end for all beams to go on."""

    scores: Tensor  # (batch, n) log probabilities
    parents: Tensor  # (batch, n) beams that they continue
    tokens: Tensor  # (batch, n, r)
    ends: Tensor  # (batch, n) bool: an eos is among the tokens
    lengths: Tensor | int  # (batch, n) tokens so far, up to and with the eos


def _singles(logits: Tensor, scores: Tensor, eos: int, step: int) -> _Candidates:
    """Of logits (batch, beam, 1, vocabulary); see `_of_gains`."""
    return _of_gains(logits[:, :, 0].log_softmax(2), scores, eos, step)


def _of_gains(gains: Tensor, scores: Tensor, eos: int, step: int) -> _Candidates:
    """Of log probabilities (batch, beam, vocabulary): with one eos a beam, twice the beams are enough."""
    beam, vocabulary = gains.shape[1:]
    every = (gains + scores[:, :, None]).flatten(1)
    best, at = every.topk(min(2 * beam, every.shape[1]))
    tokens = at % vocabulary
    return _Candidates(best, at // vocabulary, tokens[:, :, None], tokens == eos, step)


def _joint(logits: Tensor, scores: Tensor, eos: int, step: int) -> _Candidates:
    """Of logits (batch, beam, r, vocabulary): the best joint choices, exactly; what would follow an eos is summed over.

    Place by place, the best prefixes without an eos and each with an eos after it: a choice among the n best has a
    prefix among the n best, as all prefixes go on alike.
    """
    batch, beam, r, _ = logits.shape
    gains = logits.log_softmax(3)
    alive, words = scores[:, :, None], torch.full((batch, beam, 1, 0), eos, device=logits.device)
    pool, pooled, lengths = [], [], []
    for place in range(r):
        pool.append(alive + gains[:, :, place, eos, None])
        pooled.append(F.pad(words, (0, r - place), value=eos))
        lengths.append(torch.full_like(pool[-1], (step - 1) * r + place + 1))
        others = gains[:, :, place].index_fill(2, torch.tensor(eos, device=logits.device), float("-inf"))
        others, tokens = others.topk(min(beam, others.shape[2] - 1))
        every = (alive[..., None] + others[:, :, None]).flatten(2)
        alive, at = every.topk(min(beam, every.shape[2]))
        prefix, last = at // others.shape[2], at % others.shape[2]
        before = words.gather(2, prefix[..., None].expand(-1, -1, -1, place))
        words = torch.cat([before, tokens.gather(2, last)[..., None]], dim=3)
    pool, pooled, lengths = [*pool, alive], [*pooled, words], [*lengths, torch.full_like(alive, step * r)]
    every, at = torch.cat(pool, dim=2).flatten(1).sort(dim=1, descending=True)
    tokens = torch.cat(pooled, dim=2).flatten(1, 2)
    tokens = tokens.gather(1, at[:, :, None].expand(-1, -1, r))
    sizes = torch.cat(lengths, dim=2).flatten(1).gather(1, at)
    parents = at // (at.shape[1] // beam)
    return _Candidates(every, parents, tokens, (tokens == eos).any(2), sizes)


class _Beams:
    """Live beams and the best finished hypotheses, chosen and given up as transformers does."""

    def __init__(
        self,
        decoder: "_Decoder | _Silent",
        max_new: Sequence[int],
        length_penalty: float,
        *,
        scorer: Scorer | None = None,
        first: Tensor | None = None,
    ) -> None:
        self.decoder, self.penalty, self.beam = decoder, length_penalty, decoder.beam
        self.scorer, self.first = scorer, first
        device, size = decoder.output.device, (len(max_new), decoder.beam)
        self.shortest = min(max_new, default=0)
        self.limits = torch.tensor(max_new, device=device)
        self.scores = torch.full(size, DEAD, device=device)
        self.scores[:, 0] = 0  # all beams begin alike
        self.words = torch.full((*size, max(max_new, default=0), decoder.r), decoder.eos, device=device)
        self.done_scores = torch.full(size, DEAD, device=device)
        self.done_words = self.words.clone()
        self.done = torch.zeros(size, dtype=torch.bool, device=device)
        self.open = torch.ones(len(max_new), dtype=torch.bool, device=device)  # a live beam can still win
        self.some = self.full = False  # some utterance has a finished hypothesis; has as many as beams

    def advance(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        candidates = self._candidates(logits.unflatten(0, self.scores.shape), step)
        last = step >= self.shortest
        stops = candidates.ends | (step >= self.limits)[:, None] if last else candidates.ends
        finished = bool(stops[:, : self.beam].any())
        if finished:
            self._finish(candidates, stops, step)
        self.scores, chosen = (candidates.scores + stops * DEAD).topk(self.beam)
        parents = candidates.parents.gather(1, chosen)
        tokens = candidates.tokens.gather(1, chosen[:, :, None].expand(-1, -1, self.decoder.r))
        self.words[:, :, : step - 1] = _taken(self.words[:, :, : step - 1], parents)
        self.words[:, :, step - 1] = tokens
        self.decoder.follow(parents)
        if self.scorer is not None:
            self.scorer.follow(parents, tokens[:, :, 0])
        self.some |= finished
        look = finished or self.full or (self.some and self.penalty == 0)
        return tokens.flatten(0, 1), self._over(step) if look else None

    def _candidates(self, logits: Tensor, step: int) -> _Candidates:
        """Of logits (batch, beam, r, vocabulary), and what the scorer and the first tokens make of them."""
        if self.scorer is None and self.first is None:
            make = _singles if self.decoder.stack is None else _joint
            return make(logits, self.scores, self.decoder.eos, step)
        gains = logits[:, :, 0].log_softmax(2)
        if self.scorer is not None:
            gains = self.scorer.join(gains)
        if self.first is not None and step == 1:
            others = torch.arange(gains.shape[2], device=gains.device) != self.first[:, None]
            gains = gains.masked_fill((others & (self.first >= 0)[:, None])[:, None], DEAD)
        return _of_gains(gains, self.scores, self.decoder.eos, step)

    def _finish(self, candidates: _Candidates, stops: Tensor, step: int) -> None:
        """Take those of the best candidates that stop among the finished ones."""
        first = slice(self.beam)
        parents, lengths = candidates.parents[:, first], candidates.lengths
        scores = candidates.scores[:, first]
        stopped = stops[:, first] & self.open[:, None] & scores.isfinite()
        scores = scores / (lengths if isinstance(lengths, int) else lengths[:, first]) ** self.penalty
        scores = torch.cat([self.done_scores, scores.masked_fill(~stopped, DEAD)], dim=1)
        words = _taken(self.words, parents)
        words[:, :, step - 1] = candidates.tokens[:, first]
        self.done_scores, best = scores.topk(self.beam)
        self.done_words = _taken(torch.cat([self.done_words, words], dim=1), best)
        self.done = torch.cat([self.done, stopped], dim=1).gather(1, best)
        self.full = bool(self.done.all(1).any())

    def _over(self, step: int) -> Tensor:
        """Which utterances are at their limit, or have finished hypotheses that no live beam beats at this length."""
        hope = self.scores[:, 0] / (step * self.decoder.r) ** self.penalty
        self.open &= ~self.done.all(1) | (hope > self.done_scores.amin(1))
        if self.penalty == 0:  # scores only fall then: what is behind the best now stays there
            self.open &= self.scores[:, 0] > self.done_scores[:, 0]
        return ~self.open | (step >= self.limits)

    def result(self, i: int) -> tuple[np.ndarray, float]:
        return _cut(self.done_words[i, 0], int(self.limits[i]), self.decoder.eos), float(self.done_scores[i, 0])

    def keep(self, left: Tensor) -> None:
        self.limits, self.scores, self.words = self.limits[left], self.scores[left], self.words[left]
        self.done_scores, self.done_words = self.done_scores[left], self.done_words[left]
        self.done, self.open = self.done[left], self.open[left]
        if self.scorer is not None:
            self.scorer.keep(left)


def _taken(words: Tensor, rows: Tensor) -> Tensor:
    """Of words (batch, n, steps, r) the rows (batch, m)."""
    return words.gather(1, rows[:, :, None, None].expand(-1, -1, *words.shape[2:]))

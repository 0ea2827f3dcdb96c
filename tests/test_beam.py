"""Beam search beside transformers' own, on models trained until outputs vary; joint choices beside brute force."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from unitkit.models.beam import BeamError, _joint, _singles, beam_search

PAD, BOS, EOS, VOCABULARY, DIM = 0, 1, 2, 28, 32
BEAMS = (1, 2, 5, 10)
NOISE = 2.0  # of the sources that are searched: more than in training, so that hypotheses compete


def mbart(activation: str, *, layers: int = 2) -> Any:
    config = transformers.MBartConfig(
        vocab_size=VOCABULARY, d_model=DIM, encoder_layers=1, decoder_layers=layers, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0,
        activation_function=activation, scale_embedding=activation == "relu", pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS, decoder_start_token_id=BOS, forced_eos_token_id=None, init_std=0.1,
    )  # fmt: skip
    return transformers.MBartForConditionalGeneration(config)


def sources(lengths: list[int], *, seed: int, noise: float = NOISE) -> tuple[Tensor, Tensor, Tensor]:
    """Memory (batch, positions, DIM) of random tokens, its mask, and the tokens: vectors and places are fixed."""
    draw = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=draw)
    vectors, places = torch.randn(VOCABULARY, DIM, generator=fixed), torch.randn(16, DIM, generator=fixed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    disturbance = noise * torch.randn(*mask.shape, DIM, generator=draw)
    return vectors[tokens] + places[: max(lengths)] + disturbance, mask, tokens.masked_fill(~mask, PAD)


def train(model: Any, *, steps: int) -> None:
    """Say each source token and then another one that depends on it; an eos after the last pair."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(steps):
        memory, mask, tokens = sources([4 + (step * 7 + i * 5) % 7 for i in range(24)], seed=step, noise=0.3)
        pairs = torch.stack([tokens, (tokens * 7) % (VOCABULARY - 3) + 3], dim=2).masked_fill(~mask[:, :, None], PAD)
        labels = torch.nn.functional.pad(pairs.flatten(1), (0, 1))
        labels = labels.scatter(1, 2 * mask.sum(1, keepdim=True), EOS)
        before = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=BOS)
        labels = labels.masked_fill(labels == PAD, -100)
        given = {"encoder_outputs": BaseModelOutput(memory), "attention_mask": mask.long()}
        loss = model(**given, decoder_input_ids=before, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module", params=["gelu", "relu"])
def model(request: pytest.FixtureRequest) -> Any:
    """Trained until it says what it hears; relu also scales embeddings and has sinusoids for positions."""
    torch.manual_seed(0)
    inner = mbart(request.param)
    if request.param == "relu":
        angles = torch.arange(66)[:, None] / 100 ** (torch.arange(DIM // 2) / (DIM // 2))
        weight = inner.model.decoder.embed_positions.requires_grad_(False).weight
        weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
    train(inner, steps=150)
    inner.final_logits_bias += torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(2)) / 4
    return inner.eval()


def cut(tokens: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(tokens == EOS)
    return tokens[: ends[0]] if len(ends) else tokens


def generated(model: Any, memory: Tensor, mask: Tensor, *, beam: int, max_new: int, penalty: float = 1.0) -> Any:
    """What transformers finds: tokens and, for more than one beam, scores."""
    out = model.generate(
        encoder_outputs=BaseModelOutput(memory), attention_mask=mask.long(), num_beams=beam, max_new_tokens=max_new,
        length_penalty=penalty, early_stopping=False, do_sample=False, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    scores = out.sequences_scores.tolist() if beam > 1 else [None] * len(memory)
    return list(zip([cut(row[1:].numpy()) for row in out.sequences], scores, strict=True))


def same(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted)
    for (tokens, score), (peer, peer_score) in zip(found, wanted, strict=True):
        assert tokens.tolist() == peer.tolist()
        assert peer_score is None or score == pytest.approx(peer_score, abs=1e-4)


@pytest.mark.parametrize("beam", BEAMS)
def test_tokens_and_scores_of_generate(model: Any, beam: int) -> None:
    memory, mask, _ = sources([10, 4, 7, 1, 9, 5], seed=-1)
    found = beam_search(model, memory, mask, beam=beam, max_new=[45] * 6)
    same(found, generated(model, memory, mask, beam=beam, max_new=45))
    assert len(set(np.concatenate([tokens for tokens, _ in found]).tolist())) > 12  # not the same few tokens
    assert len({len(tokens) for tokens, _ in found}) > 2
    alone = [beam_search(model, memory[i : i + 1], mask[i : i + 1], beam=beam, max_new=[45])[0] for i in range(6)]
    same(found, alone)


def test_beams_find_other_and_better_hypotheses(model: Any) -> None:
    """Else the comparisons above would show little."""
    memory, mask, _ = sources([10, 8, 7, 9] * 2, seed=-2)
    greedy, wide = (beam_search(model, memory, mask, beam=beam, max_new=[45] * 8) for beam in (1, 10))
    assert sum(a.tolist() != b.tolist() for (a, _), (b, _) in zip(greedy, wide, strict=True)) > 1
    assert np.mean([score for _, score in wide]) > np.mean([score for _, score in greedy])


@pytest.mark.parametrize("beam", BEAMS)
def test_each_row_has_its_own_limit(model: Any, beam: int) -> None:
    memory, mask, _ = sources([8] * 7, seed=-3, noise=0.5)  # 16 tokens as a rule
    limits = [5, 1, 2, 60, 16, 17, 9]
    found = beam_search(model, memory, mask, beam=beam, max_new=limits)
    for i, limit in enumerate(limits):
        same(found[i : i + 1], generated(model, memory[i : i + 1], mask[i : i + 1], beam=beam, max_new=limit))
    assert [len(found[i][0]) for i in (0, 1, 2)] == [5, 1, 2]


@pytest.mark.parametrize("penalty", [0, 0.6, 2, -1.0])
def test_length_penalties(model: Any, penalty: float) -> None:
    memory, mask, _ = sources([10, 3, 6, 8], seed=-4)
    found = beam_search(model, memory, mask, beam=5, max_new=[40] * 4, length_penalty=penalty)
    same(found, generated(model, memory, mask, beam=5, max_new=40, penalty=penalty))


def test_greedy_score_is_the_log_probability_by_length(model: Any) -> None:
    memory, mask, _ = sources([6], seed=-5)
    tokens, score = beam_search(model, memory, mask, beam=1, max_new=[40], length_penalty=0.5)[0]
    whole = torch.tensor([[BOS, *tokens.tolist(), EOS]])
    with torch.inference_mode():
        logits = model(encoder_outputs=BaseModelOutput(memory), decoder_input_ids=whole[:, :-1]).logits
    gains = logits.log_softmax(2).gather(2, whole[:, 1:, None]).sum()
    assert score == pytest.approx(float(gains) / (len(tokens) + 1) ** 0.5, abs=1e-4)


def test_a_long_way_without_an_eos(model: Any) -> None:
    """The cache is pruned many times; all beams run to the limit, and what they share is found again."""
    memory, mask, _ = sources([10, 6], seed=-6)
    bias = model.final_logits_bias[0, EOS].item()
    try:
        model.final_logits_bias[0, EOS] = -30
        found = beam_search(model, memory, mask, beam=10, max_new=[62, 62])
        same(found, generated(model, memory, mask, beam=10, max_new=62))
        assert [len(tokens) for tokens, _ in found] == [62, 62]
    finally:
        model.final_logits_bias[0, EOS] = bias


# ---- several tokens a step


def outcomes(gains: Tensor) -> dict[tuple[int, ...], float]:
    """Probability of what remains of each of the V^r joint choices when the places after an eos are cut."""
    found: dict[tuple[int, ...], float] = {}
    places = gains.exp().tolist()
    for choice in itertools.product(range(gains.shape[1]), repeat=len(gains)):
        kept = choice[: choice.index(EOS) + 1] if EOS in choice else choice
        found[kept] = found.get(kept, 0.0) + math.prod(map(list.__getitem__, places, choice))
    return found


@pytest.mark.parametrize(("r", "vocabulary", "beam"), [(1, 7, 3), (2, 6, 4), (3, 5, 6), (4, 4, 10), (5, 4, 3)])
def test_joint_choices_are_those_of_brute_force(r: int, vocabulary: int, beam: int) -> None:
    draw = torch.Generator().manual_seed(r)
    for _ in range(3):
        logits = 2 * torch.randn(2, beam, r, vocabulary, generator=draw, dtype=torch.float64)
        scores = -3 * torch.rand(2, beam, generator=draw, dtype=torch.float64)
        got = _joint(logits, scores, EOS, 4)
        for i in range(2):
            every = [
                (float(scores[i, parent]) + math.log(chance), parent, kept)
                for parent in range(beam)
                for kept, chance in outcomes(logits[i, parent].log_softmax(1)).items()
            ]
            every.sort(reverse=True)
            check(got, i, every[:beam], range(beam))
            alive = [one for one in every if EOS not in one[2]][:beam]  # those that go on
            check(got, i, alive, (~got.ends[i]).nonzero()[:beam, 0].tolist())


def check(got: Any, i: int, wanted: list[tuple[float, int, tuple[int, ...]]], places: Any) -> None:
    """Scores, parents, tokens, ends and lengths of the candidates at `places` of utterance i, in step 4."""
    for at, (score, parent, kept) in zip(places, wanted, strict=False):
        r = got.tokens.shape[2]
        assert float(got.scores[i, at]) == pytest.approx(score, abs=1e-9)
        assert int(got.parents[i, at]) == parent and bool(got.ends[i, at]) == (EOS in kept)
        assert got.tokens[i, at, : len(kept)].tolist() == list(kept)
        assert int(got.lengths[i, at]) == 3 * r + len(kept)


def test_joint_choices_of_one_are_single_choices() -> None:
    logits = torch.randn(3, 4, 1, 11, generator=torch.Generator().manual_seed(0))
    scores = -torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    single, joint = _singles(logits, scores, EOS, 1), _joint(logits, scores, EOS, 1)
    for name in ("scores", "parents", "tokens", "ends"):
        assert torch.equal(getattr(single, name)[:, :4], getattr(joint, name)[:, :4])


class Plain:
    """A stack of one: the model's own embedding and output."""

    r = 1

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def embed(self, tokens: Tensor) -> Tensor:
        return self.inner.model.decoder.embed_tokens(tokens[:, 0])

    def logits(self, hidden: Tensor) -> Tensor:
        return (self.inner.lm_head(hidden) + self.inner.final_logits_bias)[:, None]


@pytest.mark.parametrize("beam", BEAMS)
def test_a_stack_of_one_is_no_stack(model: Any, beam: int) -> None:
    memory, mask, _ = sources([9, 4, 6], seed=-7)
    limits = [45, 6, 45]
    plain = beam_search(model, memory, mask, beam=beam, max_new=limits)
    same(beam_search(model, memory, mask, beam=beam, max_new=limits, stack=Plain(model)), plain)


class Table:
    """Steps of r tokens whose distributions depend on the number of the step and on the first token before it."""

    def __init__(self, tables: Tensor, dim: int) -> None:
        self.tables = tables  # (steps, first token before, r, vocabulary)
        self.r = tables.shape[2]
        self.dim, self.step = dim, -1
        self.before = torch.zeros(0, dtype=torch.long)

    def embed(self, tokens: Tensor) -> Tensor:
        self.step, self.before = self.step + 1, tokens[:, 0]
        return torch.zeros(len(tokens), self.dim)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.tables[self.step, self.before]


def best_of_all(gains: Tensor) -> tuple[float, list[int]]:
    """The most probable sequence of two steps by brute force."""
    every = []
    for first, chance in outcomes(gains[0, BOS]).items():
        if EOS in first:
            every.append((math.log(chance), list(first)))
        else:
            every += [(math.log(chance * p), [*first, *second]) for second, p in outcomes(gains[1, first[0]]).items()]
    return max(every)


def test_two_steps_are_those_of_brute_force() -> None:
    model, lengths = mbart("relu", layers=1).eval(), set()
    memory, mask, _ = sources([3], seed=0)
    for seed in range(12):
        gains = (1.5 * torch.randn(2, 5, 2, 5, generator=torch.Generator().manual_seed(seed))).log_softmax(3)
        score, wanted = best_of_all(gains)
        table = Table(gains, DIM)
        tokens, found = beam_search(model, memory, mask, beam=32, max_new=[2], length_penalty=0, stack=table)[0]
        assert tokens.tolist() == cut(np.array(wanted)).tolist() and found == pytest.approx(score, abs=1e-5)
        lengths.add(len(tokens))
    assert len(lengths) > 1


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("length", [1, 5, 6, 7, 8])
def test_nothing_of_the_tail_is_lost(length: int, beam: int) -> None:
    """Sequences that end inside a step, at its end and at its beginning; what is after the eos costs nothing."""
    model, r = mbart("relu", layers=1).eval(), 3
    memory, mask, _ = sources([3], seed=0)
    words = [*(3 + (5 * i) % 20 for i in range(length)), EOS]
    tables = torch.zeros(4, VOCABULARY, r, VOCABULARY)
    for i, word in enumerate(words):
        tables[i // r, :, i % r, word] = 9.0
    tokens, score = beam_search(model, memory, mask, beam=beam, max_new=[4], stack=Table(tables, DIM))[0]
    assert tokens.tolist() == words[:-1]
    each = 9 - math.log(math.exp(9) + VOCABULARY - 1)
    assert score == pytest.approx(each, abs=1e-5)  # the same for all tokens and the eos: the mean


# ---- refusals


def test_what_is_not_supported_is_refused() -> None:
    memory, mask, _ = sources([3, 2], seed=0)

    def refused(model: Any, match: str, beam: int = 2, limits: tuple[int, ...] = (4, 4), seen: Tensor = mask) -> None:
        with pytest.raises(BeamError, match=match):
            beam_search(model, memory, seen, beam=beam, max_new=limits)

    refused(mbart("silu"), "'silu': known are gelu, relu")
    model = mbart("relu")
    model.generation_config.forced_eos_token_id = EOS
    refused(model, "forced_eos_token_id is 2; set it to None")
    model = mbart("relu")
    refused(model, "each at least 1", beam=0)
    refused(model, "one a row", limits=(4,))
    refused(model, "each at least 1", limits=(4, 0))
    refused(model, "has 64 positions", limits=(65, 2))
    refused(model, "no row empty", seen=mask & torch.tensor([[True], [False]]))

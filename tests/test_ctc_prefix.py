"""CTC prefix scores and the searches that use them, beside sums and searches over everything there is."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unitkit.models.beam import BeamError, beam_search
from unitkit.models.ctc_prefix import CtcPrefix

BOS, EOS, V, DIM = 1, 2, 6, 16


def texts_of(logs: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every text: the sum over the alignments (frames,) that say it."""
    chances, found = logs.exp().tolist(), dict[tuple[int, ...], float]()
    for path in itertools.product(range(logs.shape[1]), repeat=len(logs)):
        text = tuple(token for token, _ in itertools.groupby(path) if token)
        found[text] = found.get(text, 0.0) + math.prod(chances[t][token] for t, token in enumerate(path))
    return found


def some_logs(*lengths: int, seed: int = 0, blank: float = 0.0) -> list[Tensor]:
    """Log probabilities (length, V) each, that bos and eos have no part in, as in a trained model."""
    draw = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(length, V, generator=draw, dtype=torch.float64) for length in lengths]
    for one in logits:
        one[:, 0] += blank
    return [one.index_fill(1, torch.tensor([BOS, EOS]), -40.0).log_softmax(1) for one in logits]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 10_000))
def test_prefixes_by_adding_up_all_alignments(lengths: list[int], seed: int) -> None:
    """Of every utterance of a padded batch, of prefixes that follow one another at random, and as whole texts."""
    logs, beam, draw = some_logs(*lengths, seed=seed), 3, np.random.default_rng(seed)
    every = [texts_of(one) for one in logs]
    scorer, said = CtcPrefix(logs, weight=1.0, beam=beam), [[()] * beam for _ in logs]
    for _ in range(max(lengths) + 1):
        scorer.join(torch.zeros(len(logs), beam, 1))
        for row, beams in enumerate(said):
            for place, prefix in enumerate(beams):
                for token in range(3, V):
                    longer = (*prefix, token)
                    wanted = sum(p for text, p in every[row].items() if text[: len(longer)] == longer)
                    assert float(scorer.found[row, place, token].exp()) == pytest.approx(wanted, abs=1e-9)
                assert float(scorer.found[row, place, EOS].exp()) == pytest.approx(every[row].get(prefix, 0), abs=1e-9)
        parents, tokens = draw.integers(beam, size=(len(logs), beam)), draw.integers(3, V, size=(len(logs), beam))
        said = [[(*said[row][parents[row, i]], int(tokens[row, i])) for i in range(beam)] for row in range(len(logs))]
        scorer.follow(torch.from_numpy(parents), torch.from_numpy(tokens))


def test_what_is_over_leaves_the_others_alone() -> None:
    logs = some_logs(5, 4, 3)
    both, alone = CtcPrefix(logs, weight=0.5, beam=2), CtcPrefix(logs[2:], weight=0.5, beam=2)
    gains = torch.zeros(3, 2, V)
    both.join(gains), alone.join(gains[:1])
    tokens = torch.tensor([[3, 4]] * 3)
    (
        both.follow(torch.zeros(3, 2, dtype=torch.long), tokens),
        alone.follow(torch.zeros(1, 2, dtype=torch.long), tokens[:1]),
    )
    both.keep(torch.tensor([2]))
    assert torch.allclose(both.join(gains[:1]), alone.join(gains[:1]), atol=1e-6)


def test_a_long_recording_stays_finite() -> None:
    logits = torch.full((1500, V), -30.0)
    logits[:, 0] = 0.0
    logits[700, 3], logits[700, 0] = 5.0, -5.0
    scorer = CtcPrefix([logits.log_softmax(1), logits[:10].log_softmax(1)], weight=1.0, beam=1)
    for token in (3, 4, 4, 4):
        more = scorer.join(torch.zeros(2, 1, 1))
        assert bool(more.isfinite().all()) and bool((more <= 0).all())
        scorer.follow(torch.zeros(2, 1, dtype=torch.long), torch.tensor([[token], [token]]))
    assert float(scorer.before[0, 0]) < -50  # nobody says 4
    with pytest.raises(ValueError, match="weight 0"):
        CtcPrefix([logits], weight=0, beam=1)


# ---------------------------------------------------------------- in the search


@pytest.fixture(scope="module")
def inner() -> Any:
    torch.manual_seed(3)
    config = transformers.MBartConfig(
        vocab_size=V, d_model=DIM, encoder_layers=0, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=32, max_position_embeddings=32, dropout=0.0,
        activation_function="relu", pad_token_id=0, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS,
        forced_eos_token_id=None, init_std=0.6,
    )  # fmt: skip
    model = transformers.MBartForConditionalGeneration(config).eval()
    model.final_logits_bias[0, EOS] -= 6  # texts of some length
    return model


def told(inner: Any, memory: Tensor, text: tuple[int, ...]) -> float:
    """The decoder's log probability of a whole text."""
    whole = torch.tensor([[BOS, *text, EOS]])
    with torch.inference_mode():
        hidden = inner.model.decoder(input_ids=whole[:, :-1], encoder_hidden_states=memory, use_cache=False)
        logits = inner.lm_head(hidden.last_hidden_state) + inner.final_logits_bias
    return float(logits.log_softmax(2)[0].gather(1, whole[0, 1:, None]).sum())


def best(inner: Any, memory: Tensor, logs: Tensor, weight: float, start: int | None = None) -> tuple[float, list[int]]:
    """The best text of all that CTC can write, by the joint score; `start`: the token that it must begin with."""
    scores = []
    for text, chance in texts_of(logs).items():
        if chance <= 0 or min(text, default=3) < 3 or (start is not None and text[:1] != (start,)):
            continue
        joint = weight * math.log(chance)
        joint += 0 if weight == 1 else (1 - weight) * told(inner, memory, text)
        scores.append((joint, list(text)))
    return max(scores)


@pytest.mark.parametrize("weight", [0.3, 0.7, 1.0])
def test_joint_search_finds_the_best_of_all_texts(inner: Any, weight: float) -> None:
    """Each alone and all in one padded batch; the beam is wider than texts are many."""
    lengths, found_texts = (5, 4, 3), set()
    for seed in range(3):
        memory = torch.randn(3, 5, DIM, generator=torch.Generator().manual_seed(seed))
        logs = [one.float() for one in some_logs(*lengths, seed=seed, blank=-4)]
        mask = torch.arange(5) < torch.tensor(lengths)[:, None]
        scorer = CtcPrefix(logs, weight=weight, beam=300)
        model = inner if weight < 1 else None
        together = beam_search(model, memory, mask, beam=300, max_new=[6] * 3, length_penalty=0, scorer=scorer)
        for i, (tokens, score) in enumerate(together):
            one = memory[i : i + 1, : lengths[i]]
            wanted, text = best(inner, one, logs[i], weight)
            assert tokens.tolist() == text and score == pytest.approx(wanted, abs=1e-4)
            found_texts.add(tuple(text))
    assert len(found_texts) > 4


def test_ctc_changes_what_the_decoder_alone_would_say(inner: Any) -> None:
    memory = torch.randn(4, 5, DIM, generator=torch.Generator().manual_seed(8))
    mask, logs = torch.ones(4, 5, dtype=torch.bool), [one.float() for one in some_logs(5, 5, 5, 5, seed=4, blank=-4)]
    plain = beam_search(inner, memory, mask, beam=8, max_new=[6] * 4, length_penalty=0)
    joint = beam_search(
        inner, memory, mask, beam=8, max_new=[6] * 4, length_penalty=0, scorer=CtcPrefix(logs, weight=0.5, beam=8)
    )
    assert [t.tolist() for t, _ in plain] != [t.tolist() for t, _ in joint]


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_text_that_begins_as_told(inner: Any, weight: float) -> None:
    memory = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(9))
    mask, logs = torch.ones(2, 5, dtype=torch.bool), [one.float() for one in some_logs(5, 5, seed=5, blank=-4)]
    free = [best(inner, memory[i : i + 1], logs[i], weight)[1] for i in range(2)]
    forced = next(token for token in range(3, V) if [token] != free[0][:1])
    scorer = CtcPrefix(logs, weight=weight, beam=300) if weight else None
    found = beam_search(
        inner if weight < 1 else None, memory, mask, beam=300, max_new=[6, 6], length_penalty=0, scorer=scorer,
        first=torch.tensor([forced, -1]),
    )  # fmt: skip
    assert found[0][0][0] == forced
    if weight:  # without CTC there are texts longer than these lists
        assert found[0][0].tolist() == best(inner, memory[:1], logs[0], weight, start=forced)[1]
        assert found[1][0].tolist() == free[1]


def test_what_does_not_go_together(inner: Any) -> None:
    memory, mask = torch.zeros(1, 2, DIM), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(BeamError, match="no decoder and no scorer"):
        beam_search(None, memory, mask, beam=2, max_new=[3])
    with pytest.raises(BeamError, match="without a stack|or the stack"):
        stack: Any = object()
        beam_search(inner, memory, mask, beam=2, max_new=[3], stack=stack, first=torch.tensor([3]))

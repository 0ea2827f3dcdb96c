"""The aligner's parts against slow obvious ones: the prior, the sum over alignments, the best alignment."""

from itertools import combinations, product
from math import comb, gamma, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.models.aligner import (
    BLANK,
    Aligner,
    AlignerError,
    beta_binomial,
    binarisation,
    forward_sum,
    monotonic_durations,
)

torch.set_num_threads(1)
Sizes = list[tuple[int, int]]


def lengths(sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of tokens and of frames of each row."""
    return torch.tensor([n for n, _ in sizes]), torch.tensor([f for _, f in sizes])


def compositions(frames: int, tokens: int) -> list[list[int]]:
    """All the ways in which tokens, one frame at least each, can share the frames."""
    cuts = combinations(range(1, frames), tokens - 1)
    return [np.diff([0, *cut, frames]).tolist() for cut in cuts]


def test_the_prior_is_beta_binomial() -> None:
    sizes = [(5, 9), (1, 4), (7, 7)]
    prior = beta_binomial(*lengths(sizes), 7, 9)

    def beta(a: float, b: float) -> float:
        return gamma(a) * gamma(b) / gamma(a + b)

    for row, (tokens, frames) in enumerate(sizes):
        for f, k in product(range(frames), range(tokens)):
            n, a, b = tokens - 1, f + 1, frames - f
            slow = comb(n, k) * beta(k + a, n - k + b) / beta(a, b)
            assert float(prior[row, f, k]) == pytest.approx(log(slow), abs=1e-4)
        assert torch.allclose(prior[row, :frames, :tokens].exp().sum(1), torch.ones(frames), atol=1e-4)
    assert prior[0, :9, :5].argmax(1).tolist() == sorted(prior[0, :9, :5].argmax(1).tolist())


@pytest.mark.parametrize("sizes", [[(1, 1)], [(2, 3)], [(3, 3), (2, 5), (1, 4)], [(3, 5), (2, 2)]])
def test_the_sum_over_alignments_is_that_of_all_of_them(sizes: Sizes) -> None:
    """Every string of tokens and blanks that says 1, 2, …, n once repeats are merged and blanks dropped."""
    torch.manual_seed(0)
    scores = torch.randn(len(sizes), max(f for _, f in sizes), max(n for n, _ in sizes))
    slow = []
    for row, (tokens, frames) in zip(scores, sizes, strict=True):
        full = torch.cat([torch.full((frames, 1), BLANK), row[:frames, :tokens]], dim=1).double().log_softmax(1)
        total = 0.0
        for path in product(range(tokens + 1), repeat=frames):
            said = [a for a, b in zip(path, (None, *path[:-1]), strict=True) if a != b and a]
            if said == list(range(1, tokens + 1)):
                total += float(full[torch.arange(frames), torch.tensor(path)].sum().exp())
        slow.append(-log(total) / tokens)
    assert float(forward_sum(scores, *lengths(sizes))) == pytest.approx(np.mean(slow), rel=1e-4)


def test_the_gradient_of_the_sum_is_that_of_the_numbers() -> None:
    torch.manual_seed(0)
    scores, sizes = torch.randn(2, 5, 3, requires_grad=True), lengths([(3, 5), (2, 4)])
    forward_sum(scores, *sizes).backward()
    assert scores.grad is not None
    for place in ((0, 0, 0), (0, 3, 2), (1, 2, 1), (1, 4, 0), (1, 1, 2)):
        step = torch.zeros_like(scores)
        step[place] = 1e-2
        with torch.no_grad():
            slope = (forward_sum(scores + step, *sizes) - forward_sum(scores - step, *sizes)) / 2e-2
        assert float(scores.grad[place]) == pytest.approx(float(slope), abs=2e-3)
    assert not scores.grad[1, 4].any() and not scores.grad[1, :, 2].any()  # behind the row's ends


@given(
    st.lists(st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 8))), min_size=1, max_size=4),
    st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_the_best_alignment_is_the_best_of_all(sizes: Sizes, seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.standard_normal((len(sizes), max(f for _, f in sizes), max(n for n, _ in sizes))).astype(np.float32)
    found = monotonic_durations(torch.from_numpy(scores), *lengths(sizes))
    for row, durations, (tokens, frames) in zip(scores, found.tolist(), sizes, strict=True):
        assert sum(durations) == frames and not any(durations[tokens:]) and min(durations[:tokens]) >= 1

        def worth(durations: list[int], row: np.ndarray = row, frames: int = frames) -> float:
            return float(row[np.arange(frames), np.repeat(np.arange(len(durations)), durations)].sum(dtype=np.float64))

        best = max(map(worth, compositions(frames, tokens)))
        assert worth(durations[:tokens]) == pytest.approx(best, abs=1e-4)


def test_too_few_frames_are_an_error() -> None:
    with pytest.raises(AlignerError, match="3 frames for 4 tokens"):
        monotonic_durations(torch.zeros(2, 5, 4), *lengths([(2, 5), (4, 3)]))


def test_binarisation_reads_the_own_tokens_probability() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 5, 3)
    durations = torch.tensor([[2, 1, 2], [1, 2, 0]])
    own = [[0, 0, 1, 2, 2], [0, 1, 1]]
    said = [scores[i].log_softmax(1)[f, k] for i, row in enumerate(own) for f, k in enumerate(row)]
    assert float(binarisation(scores, durations)) == pytest.approx(-float(torch.stack(said).mean()), rel=1e-5)


def test_a_padded_row_is_scored_as_it_would_be_alone() -> None:
    torch.manual_seed(0)
    aligner = Aligner(4, 6, 8, temperature=0.1)
    keys, queries, sizes = torch.randn(2, 5, 4), torch.randn(2, 9, 6), lengths([(3, 7), (5, 9)])
    together = aligner(keys, queries, *sizes)
    alone = aligner(keys[:1, :3], queries[:1, :7], *lengths([(3, 7)]))
    assert torch.allclose(together[0, :7, :3], alone[0], atol=1e-5)
    together = together.detach()
    assert float(together[0, 7:].max()) == float(together[0, :, 3:].max()) == -1e4
    assert torch.allclose(forward_sum(together[:1], *lengths([(3, 7)])), forward_sum(alone, *lengths([(3, 7)])))


def test_a_hidden_alignment_is_found() -> None:
    """Each token of an alphabet sounds like a vector of its own; nothing says when. Mismatched pairs stay unaligned."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    voices = torch.randn(12, 10)
    sizes, tokens, truth = [], [], []
    for _ in range(24):
        n = int(draw.integers(4, 9))
        letters = draw.permutation(12)[:n]
        durations = draw.choice([2, 3, 4, 9], n)  # so that any text fits any row
        sizes.append((n, int(durations.sum())))
        tokens.append(torch.from_numpy(letters))
        truth.append(torch.from_numpy(np.repeat(np.arange(n), durations)))
    key_lengths, query_lengths = lengths(sizes)
    queries = [voices[t[w]] + 0.3 * torch.randn(len(w), 10) for t, w in zip(tokens, truth, strict=True)]
    padded = [torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (tokens, queries)]

    def agreement(order: list[int]) -> float:
        """Share of frames that are given to their own token after training on texts in this order."""
        torch.manual_seed(1)
        table, aligner = torch.nn.Embedding(12, 10), Aligner(10, 10, 16)
        adam = torch.optim.Adam([*table.parameters(), *aligner.parameters()], 1e-2)
        for _ in range(70):
            scores = aligner(table(padded[0][order]), padded[1], key_lengths[order], query_lengths)
            adam.zero_grad()
            forward_sum(scores, key_lengths[order], query_lengths).backward()
            adam.step()
        with torch.no_grad():
            scores = aligner(table(padded[0]), padded[1], key_lengths, query_lengths)
        found = monotonic_durations(scores, key_lengths, query_lengths)
        same = [
            (np.repeat(np.arange(n), row[:n]) == true.numpy()).mean()
            for row, true, (n, _) in zip(found.numpy(), truth, sizes, strict=True)
        ]
        return float(np.mean(same))

    assert agreement(list(range(24))) > 0.9
    assert agreement([*range(1, 24), 0]) < 0.65

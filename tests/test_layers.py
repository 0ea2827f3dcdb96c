"""Shared blocks: padding changes nothing, lengths and bins agree with slow obvious ones."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.models.layers import ConvNorm, VariancePredictor, expected_value, regulate, soft_bins


def test_a_padded_row_comes_out_as_it_would_alone() -> None:
    torch.manual_seed(0)
    predictor = VariancePredictor(6, 8, layers=3, out=5, condition=2).eval()
    x, condition = torch.randn(1, 7, 6), torch.randn(1, 2)
    alone = predictor(x, torch.ones(1, 7, dtype=torch.bool), condition)
    padded = torch.cat([x, torch.randn(1, 4, 6)], dim=1)
    mask = torch.arange(11)[None] < 7
    assert torch.allclose(predictor(padded, mask, condition)[:, :7], alone, atol=1e-6)
    other = predictor(x, torch.ones(1, 7, dtype=torch.bool), condition + 1)
    assert not torch.allclose(other, alone, atol=1e-3)  # the utterance's vector is heard


def test_depth_widens_what_a_block_sees() -> None:
    block = ConvNorm(4, depth=2).eval()
    x = torch.zeros(1, 21, 4)
    x[0, 10] = torch.tensor([1.0, -1.0, 2.0, -2.0])
    mask = torch.ones(1, 21, dtype=torch.bool)
    quiet = block(torch.zeros_like(x), mask)
    changed = (block(x, mask) - quiet).abs().sum(2)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [5, 10, 15]  # dilated by 2 × 2 + 1


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_regulate_repeats_each_step(durations: list[list[int]]) -> None:
    if not any(map(sum, durations)):
        return
    x = torch.randn(len(durations), 3, 2)
    out, lengths = regulate(x, torch.tensor(durations))
    for i, row in enumerate(durations):
        slow = [x[i, step] for step, n in enumerate(row) for _ in range(n)]
        assert int(lengths[i]) == len(slow)
        if slow:
            assert torch.equal(out[i, : len(slow)], torch.stack(slow))
        assert not out[i, len(slow) :].any()


@given(st.floats(-250, 250))
@settings(max_examples=50, deadline=None)
def test_bins_give_back_the_value(value: float) -> None:
    target = soft_bins(torch.tensor(value), low=-250, high=250, bins=200, sigma=2)
    assert target.shape == (200,) and 0.9 < float(target.max()) <= 1
    logits = torch.logit(target.clamp(1e-6, 1 - 1e-6))
    assert abs(float(expected_value(logits, low=-250, high=250)) - value) < 8  # three bins, at the ends the most

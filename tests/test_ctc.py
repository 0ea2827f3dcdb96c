"""CTC models: the loss against all alignments, padding that changes nothing, blanks filled, learning, storage."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.metrics.units import unit_errors
from unitkit.models.ctc import (
    BLANK,
    CtcConfig,
    CtcError,
    CtcModel,
    collapsed,
    fill_blanks,
    frames_needed,
    pad_features,
    pad_targets,
    reduced,
)
from unitkit.units import Units

torch.set_num_threads(1)
TINY = CtcConfig(
    n_units=3, features_dim=6, features_hz=50.0, rate_hz=50.0, tokenizer="5a5a5a5a5a5a", dim=16, layers=2, heads=2,
    hidden=32, kernel=3, dropout=0.0,
)  # fmt: skip
FRAMES = st.lists(st.integers(BLANK, 3), max_size=30).map(lambda ids: np.array(ids, np.int64))


def tiny(**changes) -> CtcModel:
    torch.manual_seed(0)
    return CtcModel(replace(TINY, **changes)).eval()


def slow_loss(logits: torch.Tensor, target: list[int], blank: int) -> float:
    """Minus the log of the summed probability of every frame sequence that reads as the target."""
    table = logits.double().softmax(1).tolist()
    total = 0.0
    for path in itertools.product(range(blank + 1), repeat=len(table)):
        if [k for k, _ in itertools.groupby(path) if k != blank] == target:
            total += math.prod(row[k] for row, k in zip(table, path, strict=True))
    return -math.log(total)


def test_the_loss_is_that_of_all_alignments():
    model = tiny()
    rows, targets = [torch.randn(6, 6), torch.randn(5, 6)], [[0, 2, 1], [1, 1]]
    batch = (*pad_features(rows), *pad_targets([np.array(t) for t in targets]))
    with torch.no_grad():
        scores, lengths = model.scores(*batch[:2])
        found = model(*batch)
    slow = [slow_loss(s[:n], t, 3) for s, n, t in zip(scores, lengths, targets, strict=True)]
    assert found["loss"].item() == pytest.approx(sum(slow) / 5, rel=1e-5)
    assert found["short"].item() == 0
    best = [s[:n].argmax(1) for s, n in zip(scores, lengths, strict=True)]
    assert found["blank"].item() == pytest.approx(float((torch.cat(best) == 3).float().mean()))
    for greedy, expected in zip(model.greedy(rows), best, strict=True):
        assert np.array_equal(greedy, np.where(expected == 3, BLANK, expected))


def test_what_is_too_short_for_its_target_teaches_nothing():
    model = tiny()
    long, short = torch.randn(6, 6), torch.randn(4, 6)
    targets = [np.array([0, 2, 1]), np.array([1, 1, 2, 2])]  # the second needs six frames
    assert [frames_needed(t) for t in targets] == [3, 6]
    alone = model(*pad_features([long]), *pad_targets(targets[:1]))
    both = model(*pad_features([long, short]), *pad_targets(targets))
    assert both["short"].item() == 0.5 and both["loss"].item() == pytest.approx(alone["loss"].item(), rel=1e-5)
    nothing = model(*pad_features([short]), *pad_targets(targets[1:]))
    nothing["loss"].backward()
    assert nothing["loss"].item() == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("stride", [1, 2])
def test_in_a_batch_as_alone(stride):
    model = tiny(stride=stride)
    rows = [torch.randn(n, 6) for n in (23, 1, 12, 7)]
    with torch.no_grad():
        together, lengths = model.scores(*pad_features(rows))
        assert lengths.tolist() == [math.ceil(len(row) / stride) for row in rows]
        for row, found, n in zip(rows, together, lengths, strict=True):
            alone, (own,) = model.scores(row[None], torch.tensor([len(row)]))
            assert own == n and torch.allclose(alone[0], found[:n], atol=1e-5)
    assert all(map(np.array_equal, model.greedy(rows), (model.greedy([row])[0] for row in rows)))
    assert model.greedy([]) == []


@given(FRAMES)
@settings(deadline=None)
def test_filling_blanks_and_merging_runs_gives_back_what_was_read(frames):
    filled = fill_blanks(frames)
    assert len(filled) == (len(frames) if (frames != BLANK).any() else 0)
    assert not (filled == BLANK).any() and np.array_equal(filled[frames[: len(filled)] != BLANK], frames[frames != -1])
    units = Units(filled, 50.0, 4, "5a5a5a5a5a5a")
    assert np.array_equal(units.dedup()[0].ids, reduced(frames))


@given(FRAMES)
@settings(deadline=None)
def test_reading_is_merging_runs_and_leaving_out_blanks(frames):
    assert collapsed(frames).tolist() == [k for k, _ in itertools.groupby(frames.tolist()) if k != BLANK]
    assert reduced(frames).tolist() == [k for k, _ in itertools.groupby(f for f in frames.tolist() if f != BLANK)]
    assert len(frames) >= frames_needed(collapsed(frames))


def test_letters_may_stand_twice_and_units_not():
    frames = np.array([BLANK, 1, 1, BLANK, 1, 2, BLANK, 2, 0])
    units = tiny()
    text = tiny(targets="text", letters="eal", n_units=0, tokenizer="", rate_hz=0.0)
    assert units.read(frames).tolist() == [1, 2, 0]
    assert text.text(frames) == "aalle"
    assert text.blank == 3 and text.head.out_features == 4
    with pytest.raises(CtcError, match="writes units, not text"):
        units.text(frames)


def spoken(words: np.ndarray, voice: np.ndarray, draw: np.random.Generator) -> torch.Tensor:
    """Features of a sequence of units said by a voice: each for two to five frames, silence in between, noise."""
    frames = np.repeat(voice[words], draw.integers(2, 6, len(words)), axis=0)
    frames = np.insert(frames, np.sort(draw.integers(0, len(frames), 4)), 0.0, axis=0)
    return torch.from_numpy(frames + 0.2 * draw.standard_normal(frames.shape)).float()


def test_it_learns_to_read_two_voices_as_one():
    """The second voice says everything otherwise; after training both are read as the same units, in unseen words."""
    draw = np.random.default_rng(0)
    voices = [draw.standard_normal((10, 12)) for _ in range(2)]
    said = [reduced(draw.integers(0, 10, 9)) for _ in range(48)]
    rows = [(spoken(words, voice, draw), words) for words in said for voice in voices]
    torch.manual_seed(0)
    model = CtcModel(replace(TINY, n_units=10, features_dim=12, dim=48, heads=4, hidden=96, layers=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)

    def error_rate() -> float:
        model.eval()
        found = [Units(model.read(ids), 50.0, 10, "x") for ids in model.greedy([row for row, _ in rows[64:]])]
        pairs = [unit_errors(a, Units(b, 50.0, 10, "x")) for a, (_, b) in zip(found, rows[64:], strict=True)]
        return sum(wrong for wrong, _ in pairs) / sum(of for _, of in pairs)

    before = error_rate()
    model.train()
    for _ in range(80):
        batch = [rows[i] for i in draw.integers(0, 64, 16)]
        losses = model(*pad_features([row for row, _ in batch]), *pad_targets([words for _, words in batch]))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    after = error_rate()
    assert before > 0.8 and after < 0.15, (before, after)


def test_a_round_trip(tmp_path):
    model = tiny(stride=2)
    model.save(tmp_path / "m", card="# Mine\n")
    again = CtcModel.load(tmp_path / "m")
    row = torch.randn(30, 6)
    assert again.config == model.config and not again.training
    assert np.array_equal(again.greedy([row])[0], model.greedy([row])[0])
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["card.md", "config.yaml", "model.safetensors"]
    assert (tmp_path / "m" / "card.md").read_text() == "# Mine\n"
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(CtcError, match=r"m is not a CTC model directory: it has no model\.safetensors"):
        CtcModel.load(tmp_path / "m")


def test_starting_from_another_model():
    other = tiny()
    torch.manual_seed(1)
    same, new = CtcModel(TINY), CtcModel(replace(TINY, tokenizer="0b0b0b0b0b0b", n_units=7))
    head = new.head.weight.clone()
    assert same.take(other) and torch.equal(same.head.weight, other.head.weight)
    assert not new.take(other) and torch.equal(new.head.weight, head)
    assert torch.equal(new.stem.weight, other.stem.weight)
    with pytest.raises(CtcError, match="layers is 2 in the model to start from, but 3 here"):
        CtcModel(replace(TINY, layers=3)).take(other)


def test_the_default_size():
    model = CtcModel(CtcConfig(n_units=100, features_dim=512))
    assert 1_600_000 < sum(p.numel() for p in model.parameters()) < 1_700_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": "mels"}, "targets 'mels': choose units or text"),
        ({"heads": 3}, "dim 16 is not a multiple of twice the heads, 6"),
        ({"kernel": 4}, "kernel 4 is not an odd number"),
        ({"stride": 3}, "stride 3: choose 1 or 2"),
        ({"n_units": 0}, r"n_units \(0\) and features_dim \(6\) must be 1 or more"),
        ({"targets": "text"}, r"letters \(0\) and"),
    ],
)
def test_refused_settings(changes, words):
    with pytest.raises(CtcError, match=words):
        CtcModel(replace(TINY, **changes))


def test_refused_input():
    model = tiny()
    with pytest.raises(CtcError, match=r"shape \(1, 4, 5\): expected \(batch, frames, 6\)"):
        model.greedy([torch.zeros(4, 5)])
    with pytest.raises(CtcError, match="without frames"):
        model.greedy([torch.zeros(4, 6), torch.zeros(0, 6)])


@pytest.mark.parametrize(
    ("features", "stride", "units", "repeat"), [(50, 1, 50, 1), (50, 2, 50, 2), (100, 2, 50, 1), (50, 2, 25, 1)]
)
def test_unit_frames_a_frame(features, stride, units, repeat):
    config = replace(TINY, features_hz=float(features), stride=stride, rate_hz=float(units))
    assert config.repeat == repeat


def test_rates_that_do_not_go_together():
    with pytest.raises(
        CtcError, match=r"features at 100 Hz with stride 1 cannot give units at 50 Hz: set model\.stride=2"
    ):
        _ = replace(TINY, features_hz=100.0).repeat

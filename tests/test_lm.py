"""BERT on units: what is masked, what counts, padding without effect, and that it learns which unit follows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_ssl import late, learn

from unitkit.models.lm import PAPER, PAPER_SMALL, BertConfig, UnitBert, joint_units, pad_units, split_units
from unitkit.models.ssl.blocks import IGNORED, SslError, span_mask
from unitkit.units import Vocab

torch.set_num_threads(1)
TINY = BertConfig(n_units=12, dim=32, layers=2, heads=2, hidden=64, dropout=0.0, max_frames=80)


def tiny(**changes: float) -> UnitBert:
    torch.manual_seed(0)
    return UnitBert(replace(TINY, **changes))


@given(st.integers(2, 400), st.integers(1, 4), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_joint_units_are_one_to_one(n_units, codebooks, frames):
    ids = np.random.default_rng(frames).integers(0, n_units, (frames, codebooks))
    joint = joint_units(ids, n_units)
    assert joint.shape == (frames,) and np.array_equal(split_units(joint, n_units, codebooks), ids)
    assert not frames or joint.max() < n_units**codebooks
    if codebooks == 2:
        assert np.array_equal(joint, ids[:, 0] * n_units + ids[:, 1])  # vq-wav2vec's token


def test_masked_frames_are_hidden_kept_or_replaced():
    model = tiny(codebooks=2, kept=0.1, replaced=0.2)
    units = torch.randint(0, 12, (40, 70, 2))
    mask = span_mask(torch.full((40,), 70), 70, probability=0.05, span=10)
    torch.manual_seed(1)
    tokens = model.disturbed(units, mask)
    plain = units + torch.tensor([Vocab.first, Vocab.first + 12])
    assert torch.equal(tokens[~mask], plain[~mask])
    hidden = (tokens == model.backbone.mask_token).all(2)
    assert model.backbone.mask_token == len(Vocab(12, 2)) and not (hidden & ~mask).any()
    assert float(hidden[mask].float().mean()) == pytest.approx(0.7, abs=0.05)
    other = (tokens != plain).any(2) & ~hidden
    assert float(other[mask].float().mean()) == pytest.approx(0.2 * (1 - 1 / 144), abs=0.05)
    drawn = tokens[other] - torch.tensor([Vocab.first, Vocab.first + 12])
    assert int(drawn.min()) >= 0 and int(drawn.max()) < 12


def test_the_loss_is_that_of_the_masked_frames():
    model = tiny(codebooks=2).eval()
    units, lengths = pad_units([np.random.default_rng(i).integers(0, 12, (n, 2)) for i, n in enumerate((70, 40))])
    assert (units[1, 40:] == IGNORED).all()
    torch.manual_seed(5)
    with torch.no_grad():
        losses, counts = model(units, lengths)
    torch.manual_seed(5)
    mask = span_mask(lengths, 70, probability=0.05, span=10)
    with torch.no_grad():
        inside = torch.arange(70) < lengths[:, None]
        hidden = model.transform(model.backbone(model.disturbed(units, mask), inside)[-1][mask])
        table = model.backbone.model.embeddings.word_embeddings.weight
        logits = [hidden @ table[3 + 12 * book : 15 + 12 * book].T + model.bias[book] for book in range(2)]
        wanted = sum(F.cross_entropy(logits[book], units[..., book][mask]) for book in range(2)) / 2
    assert float(losses["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    assert torch.equal(counts, torch.stack([torch.bincount(row.argmax(1), minlength=12) for row in logits]))


def test_padding_has_no_effect():
    model = tiny().eval()
    rows = [np.random.default_rng(i).integers(0, 12, (n, 1)) for i, n in enumerate((70, 31))]
    units, lengths = pad_units(rows)
    inside = torch.arange(70) < lengths[:, None]
    with torch.no_grad():
        together = model.backbone(units.clamp(min=0) + model.first, inside)
    for layer in range(3):
        alone = model.features(rows[1], layer=layer)
        assert alone.shape == (31, 32) and torch.allclose(together[layer][1, :31], alone, atol=1e-5)


def walks(count: int, frames: int) -> list[np.ndarray]:
    """Sequences in which each unit is held for three frames and the next is five further: easy to tell."""
    steps = np.arange(frames) // 3
    return [((start + 5 * steps) % 12)[:, None] for start in range(count)]


def test_it_learns_which_units_go_together():
    model = tiny(dim=64, hidden=128, mask_span=4, mask_starts=0.08)
    rows = learn(model, pad_units(walks(12, 60)), steps=260, lr=1e-3)
    assert late(rows, "loss") < 0.7 * rows[0]["loss"]
    assert late(rows, "accuracy") > 2 * late(rows, "chance")


def test_a_round_trip(tmp_path):
    model = tiny(tokenizer="5a5a5a5a5a5a").eval()
    model.save(tmp_path)
    again = UnitBert.load(tmp_path)
    ids = walks(1, 30)[0][:, 0]
    assert again.config == model.config
    assert torch.equal(again.features(ids, layer=2), model.features(ids, layer=2))
    import transformers

    inner = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False)  # as any BERT
    tokens = torch.from_numpy(ids)[None] + Vocab.first
    assert torch.allclose(inner(tokens).last_hidden_state[0], model.features(ids, layer=2), atol=1e-6)
    with pytest.raises(SslError, match=r"shape \(90, 1\): this model takes \(frames, 1\), 80 frames at most"):
        model.features(np.zeros(90, int), layer=1)


def test_paper_sizes():
    with torch.device("meta"):
        base = UnitBert(replace(PAPER, n_units=13_500)).backbone.model
        small = UnitBert(replace(PAPER_SMALL, n_units=320, codebooks=2)).backbone.model
    assert sum(p.numel() for p in base.encoder.parameters()) == 85_054_464  # BERT base without its embeddings
    assert (small.config.hidden_size, small.config.num_attention_heads, len(small.encoder.layer)) == (512, 8, 12)
    torch.manual_seed(0)
    model = UnitBert(replace(PAPER, n_units=320, codebooks=2)).train()
    losses, counts = model(torch.randint(0, 320, (1, 40, 2)), torch.tensor([40]))
    losses["loss"].backward()
    assert counts.shape == (2, 320) and torch.isfinite(losses["loss"])
    with pytest.raises(SslError, match="n_units 0"):
        UnitBert(BertConfig())
    with pytest.raises(SslError, match="kept 0.9 and replaced 0.2"):
        BertConfig(kept=0.9, replaced=0.2)

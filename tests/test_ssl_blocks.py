"""What the objectives share, against slow references; the encoder against transformers' own forward pass."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unitkit.encoders import load_encoder
from unitkit.models.ssl.backbone import BASE, LAYOUTS, Backbone, EncoderConfig, through_layers, transformers_config
from unitkit.models.ssl.blocks import (
    IGNORED,
    CodeUse,
    SslError,
    blend,
    majority,
    perplexity,
    scale_gradient,
    scored,
    span_mask,
    straight_through,
    units_at,
)

torch.set_num_threads(1)
TINY = {"dim": 32, "layers": 2, "heads": 2, "hidden": 64, "conv_dims": (8, 8, 8, 16, 16, 16, 16)}


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 12), st.floats(0, 0.3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_spans_lie_within_their_rows(lengths, span, probability, minimum):
    mask = span_mask(torch.tensor(lengths), 60, probability=probability, span=span, minimum=minimum)
    for row, length in zip(mask, lengths, strict=True):
        assert not row[length:].any()
        runs = np.diff(np.flatnonzero(np.diff(np.r_[0, row.numpy(), 0])))[::2]
        assert (runs >= span).all()
        assert int(row.sum()) <= span * max(minimum, int(np.ceil(probability * length)))
        if length <= span:
            assert not row.any()
        elif minimum:
            assert row.any()


def slow_spans(length: int, probability: float, span: int, random: np.random.Generator) -> np.ndarray:
    """As fairseq draws them for one row."""
    row = np.zeros(length, bool)
    count = int(probability * length + random.random())
    for start in random.choice(length - span + 1, count, replace=False):
        row[start : start + span] = True
    return row


def test_as_much_is_masked_as_the_papers_mask():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    ours = span_mask(torch.full((2000,), 100), 100, probability=0.08, span=10).float()
    theirs = np.stack([slow_spans(100, 0.08, 10, random) for _ in range(2000)])
    assert abs(float(ours.mean()) - theirs.mean()) < 0.01
    assert np.abs(ours.mean(0).numpy() - theirs.mean(0)).max() < 0.06  # at each place, the edges included


def test_units_meet_the_frames_that_start_with_them():
    ids = np.arange(20)
    assert units_at(ids, 3, 4, ratio=1.0)[:, 0].tolist() == [3, 4, 5, 6]
    assert units_at(ids, 3, 4, ratio=2.0)[:, 0].tolist() == [6, 8, 10, 12]  # 100 Hz units, 50 Hz frames
    assert units_at(ids, 3, 4, ratio=0.5)[:, 0].tolist() == [1, 2, 2, 3]
    assert units_at(ids, 17, 5, ratio=1.0)[:, 0].tolist() == [17, 18, 19, IGNORED, IGNORED]
    pairs = np.stack([ids, ids + 100], axis=1)
    assert units_at(pairs, 0, 2, ratio=1.0).tolist() == [[0, 100], [1, 101]]


def test_scores_by_hand():
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 5), torch.tensor([0, 4, IGNORED, 2, 2, IGNORED, 1])
    score = scored(logits, targets)
    kept = [i for i in range(7) if targets[i] != IGNORED]
    loss = -sum(float(logits[i, targets[i]] - torch.logsumexp(logits[i], 0)) for i in kept) / len(kept)
    assert float(score.loss) == pytest.approx(loss, abs=1e-6)
    assert float(score.accuracy) == pytest.approx(sum(int(logits[i].argmax() == targets[i]) for i in kept) / len(kept))
    assert score.counts.sum() == len(kept)
    assert float(majority(targets)) == pytest.approx(2 / 5)
    nothing = scored(logits, torch.full((7,), IGNORED))
    assert float(nothing.loss) == 0 and float(nothing.accuracy) == 0


def test_perplexity_and_the_alarm():
    counts = torch.tensor([[5, 5, 5, 5], [9, 0, 0, 0], [1, 1, 0, 0]])
    assert perplexity(counts).tolist() == pytest.approx([4.0, 1.0, 2.0])
    use = CodeUse((4, 4, 4), bound=0.3, grace=2, window=2)
    found = use.add(counts)
    assert found["perplexity"] == pytest.approx(1.0) and found["used"] == 0.25 and found["collapsed"] == 1
    assert use.alarm(1) is None  # still young
    assert "step 2: codes collapse: perplexity 1.0 of codebook 1 is below 1.2 (0.3 of its 4 codes)" in use.alarm(2)
    assert use.alarm(3) is None  # said once
    use.add(torch.full((3, 4), 7))
    assert float(use.add(torch.full((3, 4), 7))["used"]) == 1  # the first step has left the window
    assert use.alarm(4) is None
    use.add(counts)
    use.add(counts)
    assert use.alarm(5) is not None  # said again when it happens again


def test_averages_exactly():
    torch.manual_seed(0)
    old, new = (nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(2, 2)}).double() for _ in range(2))
    start = {name: value.clone() for name, value in old.named_parameters()}
    for _ in range(3):
        blend(old, new, 0.9, copied=("b.",))
    for name, value in new.named_parameters():
        wanted = value if name.startswith("b.") else 0.9**3 * start[name] + (1 - 0.9**3) * value
        assert torch.allclose(old.get_parameter(name), wanted, rtol=0, atol=1e-15)


def test_gradients_scaled_and_straight_through():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    scale_gradient(x, 0.1).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 0.1)) and torch.equal(scale_gradient(x, 0.1), x)
    y = torch.tensor([1.0, -2.0], requires_grad=True)
    made = straight_through(y, torch.tensor([5.0, 6.0], requires_grad=True))
    (made * torch.tensor([3.0, 4.0])).sum().backward()
    assert made.tolist() == [5.0, 6.0] and y.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "whisper"])
def test_layers_are_those_of_transformers(layout):
    """The same as transformers' forward pass with the same mask, and the results are what the residual adds."""
    torch.manual_seed(0)
    backbone = Backbone(EncoderConfig(layout=layout, **TINY)).eval()
    wav = torch.randn(2, 39 * backbone.hop + backbone.field) * 0.1
    features, _ = backbone.features(wav)
    mask = span_mask(torch.tensor([40, 40]), 40, probability=0.05, span=5)
    with torch.no_grad():
        ours = backbone.through(backbone.masked(features, mask))
        hidden = features.clone()
        hidden[mask] = backbone.model.masked_spec_embed
        theirs = backbone.model.encoder(hidden, output_hidden_states=True).last_hidden_state
    assert features.shape == (2, 40, 32) and len(ours.outputs) == len(ours.results) == 2
    assert torch.allclose(ours.outputs[-1], theirs, atol=1e-5)
    layer = backbone.model.encoder.layers[1]
    final = layer.final_layer_norm
    seen = []
    handle = final.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    before = (layer.ffn2_layer_norm if layout == "wav2vec2-bert" else layer.layer_norm).register_forward_hook(
        lambda module, given, made: seen.append(given[0] if layout == "wav2vec2-bert" else made)
    )
    with torch.no_grad():
        result = through_layers(backbone.model.encoder, backbone.masked(features, mask)).results[1]
    handle.remove(), before.remove()
    residual, total = seen
    share = 0.5 if layout == "wav2vec2-bert" else 1.0
    assert torch.allclose(residual + share * result, total, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_is_an_encoder(layout, tmp_path):
    """`load_encoder` gives the features that were trained, and batches give those of one at a time."""
    torch.manual_seed(0)
    backbone = Backbone(EncoderConfig(layout=layout, **TINY)).eval()
    backbone.save(tmp_path)
    wavs = [torch.randn(n) * 0.1 for n in (16000, 9000, 12345)]
    for layer in (1, 2):
        encoder = load_encoder(tmp_path, layer=layer)
        assert encoder.rate_hz == 16000 / backbone.hop
        for wav in wavs:
            with torch.no_grad():
                wanted = backbone(wav[None])[layer - 1][0]
            found = encoder(wav)
            assert found.shape == wanted.shape
            assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    plain = load_encoder(tmp_path, layer=2, engine="plain")
    for alone, together in zip([plain(w) for w in wavs], plain.batch(wavs), strict=True):
        assert float(((alone - together).norm(dim=1) / alone.norm(dim=1)).max()) < 1e-5
    again = Backbone(EncoderConfig(layout=layout, **TINY)).restore(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(wavs[0][None])[-1], backbone(wavs[0][None])[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_begins_with_another_encoder(layout, tmp_path):
    """Front end and first layers are the other's; what cannot be taken over is named."""
    torch.manual_seed(0)
    other = Backbone(EncoderConfig(layout=layout, **TINY)).eval()
    other.save(tmp_path)
    ours = Backbone(EncoderConfig(layout=layout, start=str(tmp_path), **{**TINY, "layers": 1})).eval()
    wav = torch.randn(1, 8000) * 0.1
    with torch.no_grad():
        assert torch.equal(ours(wav)[-1], other(wav)[0])
    with pytest.raises(SslError, match=r"start=.* is \[.*\] there, \[.*\] here"):
        Backbone(EncoderConfig(layout=layout, start=str(tmp_path), **{**TINY, "hidden": 96}))
    different = "hubert" if layout != "hubert" else "whisper"
    with pytest.raises(SslError, match=f"'{layout}', not '{different}'"):
        Backbone(EncoderConfig(layout=different, start=str(tmp_path), **TINY))


@pytest.mark.parametrize("layout", ["hubert", "data2vec-audio"])
def test_the_paper_size_is_the_published_one(layout):
    """The same shapes as transformers' base models, whose defaults are those of the papers."""
    ours = transformers_config(replace(BASE, layout=layout))
    default = getattr(transformers, LAYOUTS[layout][1])()
    with torch.device("meta"):
        model, published = (getattr(transformers, LAYOUTS[layout][0])(config) for config in (ours, default))
    shapes = [{name: tuple(value.shape) for name, value in m.state_dict().items()} for m in (model, published)]
    assert shapes[0] == shapes[1]
    if layout == "hubert":
        assert sum(p.numel() for p in model.parameters()) == 94_371_712  # facebook/hubert-base-ls960


def test_encoders_that_cannot_be_say_so():
    with pytest.raises(SslError, match="layout 'x' is unknown; known: hubert, data2vec-audio, wav2vec2-bert, whisper"):
        EncoderConfig(layout="x")
    with pytest.raises(SslError, match="dim 100 is not a multiple of heads 4 and of 16"):
        EncoderConfig(dim=100)
    with pytest.raises(SslError, match="conv_dims"):
        EncoderConfig(conv_dims=(8, 8))


def test_dropout_and_layer_drop_are_for_training_only():
    torch.manual_seed(0)
    backbone = Backbone(EncoderConfig(**{**TINY, "layers": 4}, layerdrop=0.5))
    wav = torch.randn(1, 8000)
    same = [backbone.eval()(wav)[-1] for _ in range(2)]
    assert torch.equal(*same)
    outputs = [backbone.train()(wav) for _ in range(6)]
    skipped = [torch.equal(x, y) for made in outputs for x, y in pairwise(made)]
    assert any(skipped) and not all(skipped)
    assert not torch.equal(outputs[0][-1], outputs[1][-1])

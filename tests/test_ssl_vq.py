"""vq-wav2vec: the loss pair by pair, both quantizers by hand, and codes that a tokenizer gives as well."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_ssl import late, learn, slow_contrast, speech

from unitkit.models.ssl.blocks import SslError, perplexity
from unitkit.models.ssl.vq_wav2vec import (
    PAPER,
    QUANTIZERS,
    GumbelCodes,
    KmeansCodes,
    VqConfig,
    VqWav2Vec,
    contrastive_loss,
    negative_frames,
)

torch.set_num_threads(1)


def tiny(quantizer: str = "kmeans", **changes: float) -> VqWav2Vec:
    torch.manual_seed(0)
    return VqWav2Vec(replace(VqConfig(quantizer=quantizer, dim=32, codes=16, context_kernels=(3, 3)), **changes))


def test_others_are_never_the_frame_itself():
    torch.manual_seed(0)
    others = negative_frames(50, 6, 20)
    assert others.shape == (50, 20, 6) and int(others.min()) == 0 and int(others.max()) == 5
    assert not (others == torch.arange(6)).any()
    share = torch.bincount(others[:, :, 2].flatten(), minlength=6) / 1000
    assert share[2] == 0 and torch.allclose(share[[0, 1, 3, 4, 5]], torch.full((5,), 0.2), atol=0.05)


def test_the_contrast_pair_by_pair():
    torch.manual_seed(0)
    truth, predicted = torch.randn(2, 4, 9), [torch.randn(2, 4, 9) for _ in range(3)]
    others = negative_frames(2, 9, 5)
    loss, accuracy = contrastive_loss(predicted, truth, others, offset=2)
    wanted = slow_contrast(predicted, truth, others, offset=2)
    assert (float(loss), float(accuracy)) == pytest.approx(wanted, rel=1e-5)
    nothing = contrastive_loss([torch.zeros(2, 4, 9)] * 3, truth, others, offset=2)[0]
    assert float(nothing) == pytest.approx(2 * math.log(2))
    short = contrastive_loss([torch.zeros(2, 4, 9)] * 12, truth, others, offset=2)[0]  # more steps than frames
    assert float(short) == pytest.approx(2 * math.log(2))


def test_kmeans_codes_by_hand():
    torch.manual_seed(0)
    quantizer = KmeansCodes(VqConfig(dim=8, codes=5))
    with torch.no_grad():
        quantizer.centroids.normal_()
    z = torch.randn(2, 8, 7, requires_grad=True)
    made = quantizer(z, 1.0)
    projected = quantizer.projection(z)
    for group in range(2):
        part = projected[:, 4 * group : 4 * group + 4].transpose(1, 2)
        codes = torch.cdist(part, quantizer.centroids.expand(2, -1, -1)).argmin(2)
        assert torch.equal(made.codes[..., group], codes)
        assert torch.allclose(made.features[:, 4 * group : 4 * group + 4].transpose(1, 2), quantizer.centroids[codes])
    distance = (made.features - projected).square().mean()
    assert float(made.loss.detach()) == pytest.approx(1.25 * float(distance.detach()), rel=1e-5)
    weight = torch.randn_like(made.features)
    straight = torch.autograd.grad((made.features * weight).sum(), z, retain_graph=True)[0]
    identity = torch.autograd.grad((projected * weight).sum(), z, retain_graph=True)[0]
    assert torch.allclose(straight, identity, atol=1e-6)
    pulled = torch.autograd.grad(made.loss, quantizer.centroids)[0]
    rows = projected.transpose(1, 2).reshape(-1, 4)
    chosen = made.codes.flatten()
    error = torch.zeros(5, 4).index_add_(0, chosen, (quantizer.centroids[chosen] - rows).detach())
    assert torch.allclose(pulled, 2 * error / rows.numel(), atol=1e-6)


def test_gumbel_codes_are_drawn_in_training_and_certain_in_evaluation():
    torch.manual_seed(0)
    quantizer = GumbelCodes(VqConfig(quantizer="gumbel", dim=8, codes=5, diversity=1.0))
    z = torch.randn(2, 8, 50)
    calm = quantizer.eval()(z, 2.0)
    logits = quantizer.logits(z.transpose(1, 2)).unflatten(2, (2, 5))
    assert torch.equal(calm.codes, logits.argmax(3))
    for group in range(2):
        wanted = quantizer.centroids[calm.codes[..., group]]
        assert torch.equal(calm.features[:, 4 * group : 4 * group + 4].transpose(1, 2), wanted)
    drawn = quantizer.train()(z, 2.0)
    rows = drawn.features.transpose(1, 2).reshape(-1, 4)
    assert torch.cdist(rows, quantizer.centroids).amin(1).max() < 1e-5  # a code each, not a mixture
    assert not torch.equal(drawn.features, calm.features)
    shares = logits.softmax(3).flatten(0, 1).mean(0)
    soft = torch.exp(-(shares * shares.log()).sum(1)).sum()
    assert float(calm.loss.detach()) == pytest.approx(float((10 - soft.detach()) / 10), rel=1e-5)
    drawn.features.sum().backward()
    assert quantizer.logits[0].weight.grad.abs().sum() > 0  # the gradient passes


def test_frames_of_the_paper():
    model = VqWav2Vec(PAPER)
    assert (model.hop, model.field, model.offset, model.rate_hz) == (160, 465, 3, 100.0)
    assert [layer[1].kernel_size[0] for layer in model.context.layers] == list(range(2, 14))
    wav = torch.randn(1, 4000)
    losses, counts = model.train()(wav)
    losses["loss"].backward()
    assert counts.shape == (2, 320) and counts.sum(1).tolist() == [(4000 - 465) // 160 + 1] * 2
    assert torch.isfinite(losses["loss"]) and model.encoder.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_units_of_a_wav(quantizer, tmp_path):
    model = tiny(quantizer).train()
    wav = speech(150, hop=160, field=465)[0]
    units = model.units(wav)
    assert units.shape == (150, 2) and int(units.min()) >= 0 and int(units.max()) < 16 and model.training
    model.save(tmp_path)
    again = VqWav2Vec.load(tmp_path)
    assert again.config == model.config and torch.equal(again.units(wav), units)
    bounds = perplexity(torch.stack([torch.bincount(row, minlength=16) for row in units.T]))
    assert float(bounds.min()) >= 1 and float(bounds.max()) <= 16


def test_the_tokenizers_quantizer_gives_the_same_units():
    model = tiny().eval()
    with torch.no_grad():
        model.quantizer.centroids.normal_()
    wav = speech(150, hop=160, field=465)[0]
    with torch.no_grad():
        features = model.features(wav[None])[0]
    assert features.shape == (150, 32)
    assert np.array_equal(model.as_kmeans().assign(features), model.units(wav))
    with pytest.raises(SslError, match="only the k-means quantizer"):
        tiny("gumbel").as_kmeans()


def test_the_gumbel_softmax_cools_down():
    model = tiny("gumbel", temperature=2.0, cooling=0.9, coldest=0.5)
    seen = []
    for step in (0, 1, 5, 100):
        model.advance(step)
        seen.append(model.temperature)
    assert seen == pytest.approx([2.0, 1.8, 2 * 0.9**5, 0.5])


def test_kmeans_learns_to_predict():
    model = tiny()
    rows = learn(model, (speech(150, hop=160, field=465),), steps=100, lr=2e-3)
    assert rows[0]["contrast"] == pytest.approx(2 * math.log(2), rel=0.02)
    assert late(rows, "contrast") < 0.95 * 2 * math.log(2)
    assert late(rows, "accuracy") > 1.3 * late(rows, "chance")
    assert float(perplexity(rows[-1]["counts"]).min()) > 16 / 8


def test_gumbel_trains_and_keeps_its_codes():
    model = tiny("gumbel")
    rows = learn(model, (speech(150, hop=160, field=465),), steps=60, lr=2e-3)
    assert late(rows, "contrast") < rows[0]["contrast"]
    assert late(rows, "soft_perplexity") > 16 / 2 and float(perplexity(rows[-1]["counts"]).min()) > 16 / 8


def test_settings_that_cannot_be_say_so():
    with pytest.raises(SslError, match="quantizer 'x' is unknown; known: kmeans, gumbel"):
        VqConfig(quantizer="x")
    with pytest.raises(SslError, match="dim 33"):
        VqConfig(dim=33)
    with pytest.raises(SslError, match="crops of 2 frames: more than 3 are needed"):
        tiny()(torch.zeros(1, 160 + 465))

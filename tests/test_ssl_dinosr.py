"""DinoSR and SpidR: codebooks and teacher in closed form, the losses by hand, and that both learn without collapse."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference_ssl import late, learn, speech

from unitkit.encoders import load_encoder
from unitkit.models.ssl.backbone import EncoderConfig, through_layers
from unitkit.models.ssl.blocks import CodeUse, SslError, perplexity, span_mask
from unitkit.models.ssl.dinosr import PAPER, PAPER_SPIDR, VARIANTS, Dino, DinoConfig, OnlineCodebook, teacher_share

torch.set_num_threads(1)
TINY = {"dim": 64, "layers": 3, "heads": 2, "hidden": 128, "conv_dims": (16, 16, 32, 32, 32, 32, 32)}
STILL = EncoderConfig(**TINY, layout="data2vec-audio", dropout=0.0, input_dropout=0.0, feature_grad=1.0)


def tiny(variant: str = "dinosr", **changes: float) -> Dino:
    torch.manual_seed(0)
    return Dino(replace(DinoConfig(encoder=STILL, variant=variant, top_layers=2, codes=16), **changes))


def test_codes_that_were_hit_move_and_others_stay():
    torch.manual_seed(0)
    book = OnlineCodebook(5, 3, decay=0.9)
    assert torch.allclose(book.sums.mean(0), torch.zeros(3), atol=1e-6) and book.counts.tolist() == [1.0] * 5
    assert torch.allclose(book.sums.var(0, correction=0), torch.ones(3), atol=1e-3)
    sums, counts = book.sums.double(), book.counts.double()
    for _ in range(4):
        x = torch.randn(6, 3) * 2
        chosen = book.nearest(x)
        assert torch.equal(chosen, torch.cdist(x, book.centroids).argmin(1))
        before = book.sums.clone()
        hits = book.update(x, chosen)
        for code in range(5):
            mine = x[chosen == code].double()
            if len(mine):
                sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(0)
                counts[code] = 0.9 * counts[code] + 0.1 * len(mine)
            else:
                assert torch.equal(book.sums[code], before[code])  # to the bit
        assert hits.tolist() == [int((chosen == code).sum()) for code in range(5)]
        assert torch.allclose(book.sums.double(), sums, atol=1e-6)
        assert torch.allclose(book.counts.double(), counts, atol=1e-6)
    assert torch.allclose(book.centroids.double(), sums / counts[:, None], atol=1e-5)


def test_the_teachers_schedules():
    rising = DinoConfig(encoder=STILL, teacher_start=0.99, teacher_end=0.999, teacher_steps=100, freeze_step=150)
    assert teacher_share(rising, 0) == pytest.approx(0.99) and teacher_share(rising, 50) == pytest.approx(0.9945)
    assert teacher_share(rising, 100) == teacher_share(rising, 149) == pytest.approx(0.999)
    assert teacher_share(rising, 150) == 1.0
    slowing = DinoConfig(encoder=STILL, variant="spidr", teacher_start=0.99, teacher_steps=100)
    assert teacher_share(slowing, 100) == pytest.approx(1 - 0.01 * math.exp(-1))
    last = 100 * math.log(0.01 / 1e-7)
    assert teacher_share(slowing, math.floor(last)) < 1 and teacher_share(slowing, math.ceil(last)) == 1.0


def test_the_teacher_follows_exactly():
    """Layers and norms by the average, the positional convolution as it is; once for each step; nothing when frozen."""
    model = tiny(teacher_start=0.9, teacher_end=0.9, freeze_step=5)
    student, teacher = model.backbone.model.encoder, model.teacher
    expected = {name: value.double().clone() for name, value in teacher.named_parameters()}
    model.advance(0)
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        for name, value in student.named_parameters():
            keep = 0.0 if name.startswith("pos_conv_embed.") else 0.9
            expected[name] = keep * expected[name] + (1 - keep) * value.double()
        model.advance(step)
        model.advance(step)  # the second batch of an accumulated step
    for name, value in teacher.named_parameters():
        assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    assert not any(value.requires_grad for value in teacher.parameters())
    frozen = {name: value.clone() for name, value in teacher.named_parameters()}
    with torch.no_grad():
        student.layers[0].layer_norm.weight.zero_()
    model.advance(5)
    assert model.frozen and all(torch.equal(value, frozen[name]) for name, value in teacher.named_parameters())


def test_a_frozen_front_end_learns_nothing_more():
    model, wav = tiny(freeze_step=2), speech(40, hop=320, field=400)[:2]
    for step, learns in ((1, True), (2, False)):
        model.train().advance(step)
        model.zero_grad()
        model(wav)[0]["loss"].backward()
        assert (model.backbone.model.feature_extractor.conv_layers[0].conv.weight.grad is not None) == learns
        assert model.backbone.model.encoder.layers[0].layer_norm.weight.grad is not None


def test_targets_are_normalised_results_of_the_unmasked_teacher():
    model, wav = tiny().train(), speech(40, hop=320, field=400)[:2]
    features, _ = model.backbone.features(wav)
    targets = model.targets(features)
    results = through_layers(model.teacher, features).results[-2:]
    for target, result in zip(targets, results, strict=True):
        mean, deviation = result.mean(1, keepdim=True), result.std(1, correction=0, keepdim=True)
        assert torch.allclose(target, (result - mean) / torch.sqrt(deviation**2 + 1e-5), atol=1e-4)
        assert not target.requires_grad
    assert not model.teacher.training and model.backbone.training


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_by_hand(variant):
    model, wav = tiny(variant).eval(), speech(40, hop=320, field=400)[:2]
    torch.manual_seed(3)
    mask = span_mask(torch.tensor([40, 40]), 40, probability=0.08, span=10)
    torch.manual_seed(3)
    with torch.no_grad():
        losses, counts = model(wav)
        features, _ = model.backbone.features(wav)
        targets = model.targets(features)
        outputs = model.backbone.through(model.backbone.masked(features, mask)).outputs
        wanted = []
        for index in range(2):
            chosen = torch.cdist(targets[index][mask], model.codebooks[index].centroids).argmin(1)
            student = outputs[1 + index] if variant == "spidr" else outputs[2]
            wanted.append(F.cross_entropy(model.heads[index](student[mask]), chosen))
            assert torch.equal(counts[index], torch.bincount(chosen, minlength=16))
    assert float(losses["loss"]) == pytest.approx(float(sum(wanted)) / 2, rel=1e-5)
    assert model.codebooks[0].counts.tolist() == [1.0] * 16  # evaluation moves no code


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_without_collapse(variant):
    model = tiny(variant)
    wav = speech(75, hop=320, field=400)
    rows = learn(model, (wav,), steps=60, lr=1e-3)
    assert late(rows, "loss") < 0.85 * rows[0]["loss"]
    assert late(rows, "accuracy") > 1.3 * late(rows, "chance")
    assert float(perplexity(rows[-1]["counts"]).min()) > 16 / 8


def test_dead_codes_set_off_the_alarm():
    model, use = tiny().train(), CodeUse((16, 16), bound=0.1, grace=0)
    model.codebooks[1].sums[1:] += 1000.0  # out of reach of any frame
    with torch.no_grad():
        logs = use.add(model(speech(75, hop=320, field=400))[1])
    assert logs["collapsed"] == 1 and float(logs["perplexity"]) == pytest.approx(1.0)
    assert "perplexity 1.0 of codebook 1 is below 1.6 (0.1 of its 16 codes), 6% of them in use" in use.alarm(0)


def test_a_round_trip_keeps_codebooks_units_and_encoder(tmp_path):
    model, wav = tiny("spidr"), speech(75, hop=320, field=400)
    learn(model, (wav,), steps=2, lr=1e-3)
    model.eval().save(tmp_path)
    again = Dino.load(tmp_path)
    state, found = model.state_dict(), again.state_dict()
    assert state.keys() == found.keys() and all(torch.equal(state[name], found[name]) for name in state)
    assert found["codebooks.0.counts"].max() > 1 and int(found["moved"]) == 1
    units = again.units(wav[0])
    assert units.shape == (75, 2) and torch.equal(units, model.units(wav[0]))
    features = load_encoder(tmp_path, layer=3)(wav[0])
    assert torch.equal(units[:, 1], again.heads[1](features).argmax(1))  # the tokenizer's features, the same units


def test_settings_that_cannot_be_say_so():
    with pytest.raises(SslError, match="variant 'x' is unknown; known: dinosr, spidr"):
        DinoConfig(variant="x")
    with pytest.raises(SslError, match="top_layers 9: the encoder has 6 layers"):
        DinoConfig(top_layers=9)
    with pytest.raises(SslError, match=r"encoder\.layerdrop=0"):
        DinoConfig(encoder=EncoderConfig(layerdrop=0.1), variant="spidr")


@pytest.mark.parametrize("paper", [PAPER, PAPER_SPIDR], ids=VARIANTS)
def test_a_step_at_paper_size(paper):
    torch.manual_seed(0)
    model = Dino(paper).train()
    assert (len(model.codebooks), model.codebooks[0].sums.shape) == (8, (256, 768))
    model.advance(0)
    losses, counts = model(speech(30, hop=320, field=400)[:1])
    losses["loss"].backward()
    assert counts.shape == (8, 256) and 0 < float(losses["loss"].detach()) < 2 * math.log(256)
    before = model.teacher.layers[11].layer_norm.bias.clone()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.advance(1)
    moved = model.teacher.layers[11].layer_norm.bias - before
    student = model.backbone.model.encoder.layers[11].layer_norm.bias - before
    assert torch.allclose(moved, (1 - teacher_share(paper, 1)) * student, rtol=1e-2, atol=1e-9) and moved.any()

"""HuBERT: the loss by hand, what the switches do, and that it learns real units from real speech."""

from dataclasses import replace

import pytest
import torch
from reference_ssl import N_UNITS, late, learn, mfcc_units, slow_cosine_loss, speech

from unitkit.models.ssl.backbone import EncoderConfig
from unitkit.models.ssl.blocks import IGNORED, SslError, span_mask
from unitkit.models.ssl.hubert import PAPER, Hubert, HubertConfig, UnitHead

torch.set_num_threads(1)
TINY = {"dim": 64, "layers": 2, "heads": 2, "hidden": 128, "conv_dims": (16, 16, 32, 32, 32, 32, 32)}
STILL = {**TINY, "dropout": 0.0, "input_dropout": 0.0}


def tiny(*n_units: int, layout: str = "hubert", **changes: float) -> Hubert:
    torch.manual_seed(0)
    encoder = EncoderConfig(layout=layout, **STILL, feature_grad=1.0)
    return Hubert(replace(HubertConfig(encoder=encoder, final_dim=32, n_units=n_units), **changes))


def run(model: Hubert, wav: torch.Tensor, targets: torch.Tensor) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Losses, counts and the mask that they were computed under."""
    n_frames, c = targets.shape[1], model.config
    torch.manual_seed(3)
    mask = span_mask(torch.full((len(wav),), n_frames), n_frames, probability=c.mask_starts, span=c.mask_span)
    torch.manual_seed(3)
    return *model(wav, targets), mask


def test_cosines_over_a_temperature():
    torch.manual_seed(0)
    head = UnitHead(6, 4, final_dim=3, temperature=0.1)
    hidden, targets = torch.randn(5, 6), torch.tensor([0, 3, 1, 1, 2])
    found = torch.nn.functional.cross_entropy(head(hidden), targets)
    wanted = slow_cosine_loss(head.projection(hidden), head.units, targets.tolist(), temperature=0.1)
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-5)


def test_the_loss_is_that_of_the_masked_frames():
    model, wav = tiny(5, 9), speech(40, hop=320, field=400)[:2]
    targets = torch.stack([torch.randint(0, 5, (2, 40)), torch.randint(0, 9, (2, 40))], dim=2)
    targets[0, :20, 0] = IGNORED
    with torch.no_grad():
        losses, counts, mask = run(model, wav, targets)
    features, size = model.backbone.features(wav)
    hidden = model.backbone.through(model.backbone.masked(features, mask)).outputs[-1]
    wanted = []
    for index, head in enumerate(model.heads):
        chosen = mask & (targets[..., index] != IGNORED)
        units = targets[..., index][chosen].tolist()
        wanted.append(slow_cosine_loss(head.projection(hidden[chosen]), head.units, units, temperature=0.1))
        assert counts[index].sum() == len(units) and counts[0, 5:].sum() == 0
    masked = sum(wanted) / 2
    assert float(losses["masked"]) == pytest.approx(masked, rel=1e-4)
    assert float(losses["loss"]) == pytest.approx(masked + 10 * float(size.detach()), rel=1e-4)
    assert float(losses["features"]) == pytest.approx(float(size.detach()))


def test_unmasked_frames_count_when_asked():
    wav, targets = speech(40, hop=320, field=400)[:2], mfcc_units()[:2, :40, None]
    plain, _, mask = run(tiny(N_UNITS), wav, targets)
    changed = torch.where(mask[:, :, None], targets, (targets + 1) % N_UNITS)
    same, _, _ = run(tiny(N_UNITS), wav, changed)
    assert float(same["loss"].detach()) == float(plain["loss"].detach())  # weight 0: what is not masked teaches nothing
    model = tiny(N_UNITS, unmasked_weight=0.5, masked_weight=0.25, feature_penalty=0.0)
    losses, _, _ = run(model, wav, targets)
    assert float(losses["loss"]) == pytest.approx(
        0.25 * float(losses["masked"]) + 0.5 * float(losses["unmasked"]), rel=1e-5
    )
    other, _, _ = run(tiny(N_UNITS, unmasked_weight=0.5), wav, changed)
    assert float(other["unmasked"]) != float(losses["unmasked"])


def test_the_front_end_gets_a_tenth_of_the_gradient():
    wav, targets = speech(40, hop=320, field=400)[:2], mfcc_units()[:2, :40, None]
    grads = []
    for scale in (1.0, 0.1):
        torch.manual_seed(0)
        model = Hubert(HubertConfig(encoder=EncoderConfig(**STILL, feature_grad=scale), n_units=(N_UNITS,)))
        losses, _, _ = run(model, wav, targets)
        losses["loss"].backward()
        grads.append(model.backbone.model.feature_extractor.conv_layers[0].conv.weight.grad)
    assert torch.allclose(0.1 * grads[0], grads[1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("layout", "lr", "steps"), [("hubert", 2e-3, 110), ("wav2vec2-bert", 2e-3, 70), ("whisper", 4e-3, 110)]
)
def test_it_learns_the_units_of_masked_speech(layout, lr, steps):
    model = tiny(N_UNITS, layout=layout, feature_penalty=1.0)
    wav, targets = speech(75, hop=model.hop, field=model.field), mfcc_units()[:, :75, None]
    rows = learn(model, (wav, targets), steps=steps, lr=lr)
    assert late(rows, "masked") < 0.7 * rows[0]["masked"]
    assert late(rows, "accuracy") > 2 * late(rows, "chance")
    use = rows[-1]["counts"].float()
    assert (use > 0).sum() > N_UNITS / 2  # not one answer for everything


def test_a_round_trip_keeps_everything(tmp_path):
    model = tiny(5, 9).eval()
    model.save(tmp_path, card="# A card\n")
    again = Hubert.load(tmp_path)
    assert again.config == model.config and not again.training
    state, found = model.state_dict(), again.state_dict()
    assert state.keys() == found.keys() and all(torch.equal(state[name], found[name]) for name in state)
    assert (tmp_path / "card.md").read_text() == "# A card\n"
    (tmp_path / "objective.safetensors").unlink()
    with pytest.raises(SslError, match="holds no Hubert: it has no objective.safetensors"):
        Hubert.load(tmp_path)


def test_a_model_without_units_says_so():
    with pytest.raises(SslError, match=r"targets with \[\] units"):
        Hubert(HubertConfig())


def test_a_step_at_paper_size():
    torch.manual_seed(0)
    model = Hubert(replace(PAPER, n_units=(500,))).train()
    wav, targets = speech(30, hop=320, field=400)[:1], mfcc_units()[:1, :30, None]
    losses, counts = model(wav, targets)
    losses["loss"].backward()
    assert counts.shape == (1, 500) and torch.isfinite(losses["loss"])
    before = model.backbone.model.encoder.layers[11].feed_forward.output_dense.weight.clone()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(before, model.backbone.model.encoder.layers[11].feed_forward.output_dense.weight)


@pytest.mark.parametrize("layout", ["hubert", "wav2vec2-bert", "whisper"])
def test_the_anchor_is_where_training_began(layout, tmp_path):
    """By hand at the beginning and after the encoder has moved; the beginning itself neither moves nor is kept."""
    tiny(5, layout=layout).eval().backbone.save(tmp_path)
    encoder = EncoderConfig(layout=layout, **STILL, feature_grad=1.0, start=str(tmp_path))
    torch.manual_seed(1)
    model = Hubert(HubertConfig(encoder=encoder, final_dim=32, n_units=(5,), mask_span=50, anchor_weight=2.0))
    wav = speech(40, hop=model.hop, field=model.field)[:2]
    targets = torch.randint(0, 5, (2, 40, 1))
    noisy = wav + 0.05 * torch.randn_like(wav)
    with torch.no_grad():
        assert float(model(wav, targets, wav)[0]["anchor"]) < 1e-8  # spans of 50 do not fit: nothing is masked
        beginning = model.backbone(wav)[-1]
        for parameter in model.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        losses, _ = model(noisy, targets, wav)
        moved = model.backbone(noisy)[-1]
    total = sum(
        (((row - wanted) / (beginning.reshape(-1, 64).std(0) + 1e-5)) ** 2).sum()
        for row, wanted in zip(moved, beginning, strict=True)
    )
    assert float(losses["anchor"]) == pytest.approx(float(total) / beginning.numel(), rel=1e-3)
    rest = losses["masked"] + 10 * losses["features"]
    assert float(losses["loss"]) == pytest.approx(float(rest + 2 * losses["anchor"]), rel=1e-4)
    with pytest.raises(SslError, match="clean wavs"):
        model(noisy, targets)
    assert not any("beginning" in name for name in model.state_dict())
    with pytest.raises(SslError, match="encoder.start"):
        HubertConfig(anchor_weight=1.0)

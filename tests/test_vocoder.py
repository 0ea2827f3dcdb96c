import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unitkit.models import code_hifigan
from unitkit.models.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    LogMel,
    LossConfig,
    SpectralLoss,
    feature_loss,
    fool_loss,
    judge_loss,
    magnitudes,
)
from unitkit.models.vocoder import (
    UnitVocoder,
    VocoderConfig,
    duration_loss,
    find_runs,
    n_parameters,
    normalise_f0,
)
from unitkit.models.wave_cores import HifiganConfig, IstftConfig, VocoderError, upsampling_factors
from unitkit.units import FingerprintError, Units

torch.set_num_threads(1)
SMALL = {
    "istft": {"core": "istft", "istft": IstftConfig(dim=32, blocks=2, hidden=64, upsample=2)},
    "hifigan": {"core": "hifigan", "hifigan": HifiganConfig(channels=32, kernels=(3, 5), dilations=(1, 3))},
}


def small(core: str, **more) -> UnitVocoder:
    torch.manual_seed(0)
    settings = {"n_units": 20, "unit_dim": 16, "tokenizer": "abc"} | SMALL[core] | more
    model = UnitVocoder(VocoderConfig(**settings)).eval()
    for p in model.parameters():  # the initial weights are so small that nothing would be compared
        if p.ndim > 1:
            nn.init.normal_(p, std=1 / math.sqrt(p[0].numel()))
    return model


@pytest.mark.parametrize("core", SMALL)
@pytest.mark.parametrize(("rate", "rate_hz"), [(16000, 50), (16000, 100), (22050, 50), (24000, 50), (16000, 25)])
def test_every_frame_is_one_hop_long(core, rate, rate_hz):
    istft = IstftConfig(dim=16, blocks=1, hidden=16, upsample=1)
    model = small(core, sample_rate=rate, rate_hz=rate_hz, istft=istft)
    for frames in (1, 2, 7):
        assert len(model.generate([torch.arange(frames)])[0]) == frames * rate // rate_hz


def test_hops_that_do_not_fit_are_errors_naming_both():
    with pytest.raises(VocoderError, match=r"16000.*62\.4"):
        UnitVocoder(VocoderConfig(sample_rate=16000, rate_hz=62.4))
    with pytest.raises(VocoderError, match="22050"):
        UnitVocoder(VocoderConfig(sample_rate=22050, rate_hz=60.6))
    with pytest.raises(VocoderError, match=r"upsample=2 does not divide the hop of 441.*upsample=1"):
        UnitVocoder(VocoderConfig(sample_rate=22050, istft=IstftConfig(upsample=2)))
    with pytest.raises(VocoderError, match="known: istft, hifigan"):
        UnitVocoder(VocoderConfig(core="wavenet"))


@pytest.mark.parametrize("hop", [1, 7, 80, 160, 200, 256, 300, 320, 441, 480, 512, 640, 882, 960])
def test_upsampling_factors_multiply_to_the_hop(hop):
    factors = upsampling_factors(hop)
    assert math.prod(factors) == hop and list(factors) == sorted(factors, reverse=True)
    assert len(factors) <= 7 and (max(factors) <= 8 or any(max(factors) % p == 0 for p in (7, 11, 13)))


def test_reference_sizes():
    model = UnitVocoder(VocoderConfig(n_units=100, core="hifigan", durations=False)).fold()
    assert n_parameters(model) == pytest.approx(13.2e6, rel=0.01)
    mpd = n_parameters(Discriminators(DiscriminatorConfig(kinds=("mpd",))))
    msd = n_parameters(Discriminators(DiscriminatorConfig(kinds=("msd",))))
    assert mpd + msd == pytest.approx(70.7e6, rel=0.005)
    assert 2e6 < n_parameters(UnitVocoder(VocoderConfig(n_units=100))) < 4e6


@pytest.mark.parametrize("core", SMALL)
def test_a_batch_gives_what_each_sequence_gives_alone(core):
    model = small(core, speakers=("a", "b"), speaker_dim=8, langs=("en", "es"), lang_dim=4)
    units = [torch.randint(0, 20, (n,)) for n in (31, 5, 17, 1)]
    together = model.generate(units, speaker="b", lang="es")
    for one, wav in zip(units, together, strict=True):
        alone = model.generate([one], speaker="b", lang="es")[0]
        assert len(wav) == len(one) * 320 and alone.std() > 1e-3
        assert (wav - alone).abs().max() < 1e-5
    assert (together[0] - model.generate(units, speaker="a", lang="es")[0]).abs().max() > 1e-3
    assert (together[0] - model.generate(units, speaker="b", lang="en")[0]).abs().max() > 1e-3


def test_any_voice_can_be_given_as_a_vector(tmp_path):
    model = small("istft", speaker_vector_dim=6, speaker_encoder="cafe", speaker_dim=8, codebooks=2)
    units = [torch.randint(0, 20, (n, 2)) for n in (9, 4)]
    voices = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    together = model.generate(units, vector=voices)
    for one, voice, wav in zip(units, voices, together, strict=True):
        assert (model.generate([one], vector=voice)[0] - wav).abs().max() < 1e-5
    assert (model.generate(units[:1], vector=voices[1])[0] - together[0]).abs().max() > 1e-3
    pieces = torch.cat(list(model.stream(units[0], vector=voices[0], seconds=0.05)))
    assert (pieces - together[0]).abs().max() < 1e-5
    for wrong, text in ((None, "pass vector="), (voices[0, :5], r"\(5,\): this vocoder takes \(6,\)")):
        with pytest.raises(VocoderError, match=text):
            model.generate(units[:1], vector=wrong)
    model.save(tmp_path)
    loaded = UnitVocoder.load(tmp_path)
    assert (loaded.generate(units[:1], vector=voices[0])[0] - together[0]).abs().max() < 1e-5


def test_a_vocoder_saved_before_there_were_vectors_is_read(tmp_path):
    model = small("istft", speakers=("a", "b"), speaker_dim=8)
    model.save(tmp_path)
    kept = [line for line in (tmp_path / "config.yaml").read_text().splitlines() if "speaker_vec" not in line]
    (tmp_path / "config.yaml").write_text("\n".join(line for line in kept if "speaker_enc" not in line))
    before, after = (net.generate([torch.arange(5)], speaker="b")[0] for net in (model, UnitVocoder.load(tmp_path)))
    assert (before - after).abs().max() < 1e-5


@pytest.mark.parametrize("core", SMALL)
def test_long_sequences_in_chunks_give_the_same_wav(core, monkeypatch):
    model = small(core)
    units = [torch.randint(0, 20, (n,)) for n in (150, 90)]
    whole = model.generate(units)
    monkeypatch.setattr("unitkit.models.vocoder.CHUNK", 40)
    for a, b in zip(whole, model.generate(units), strict=True):
        assert a.shape == b.shape and (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("core", SMALL)
def test_saved_model_speaks_the_same_and_holds_plain_weights(core, tmp_path):
    model = small(core, speakers=("a",), f0=True, f0_stats={"a": [5.0, 0.2]}, prosody_dim=4)
    f0 = [np.where(np.arange(9) > 3, 180.0, 0.0)]
    before = model.generate([torch.arange(9)], f0=f0)[0]
    assert torch.equal(before, model.generate([torch.arange(9)], f0=f0, speaker="a")[0])
    checksum = model.checksum()
    model.save(tmp_path / "m", card="a card")
    loaded = UnitVocoder.load(tmp_path / "m")
    assert loaded.config == model.config and loaded.checksum() == checksum
    assert not any("parametrizations" in name for name in loaded.state_dict())
    assert (loaded.generate([torch.arange(9)], f0=f0)[0] - before).abs().max() < 1e-5
    assert (tmp_path / "m" / "card.md").read_text() == "a card"
    with torch.no_grad():
        next(loaded.parameters()).add_(1e-3)
    assert loaded.checksum() != checksum
    with pytest.raises(VocoderError, match=r"has no config\.yaml"):
        UnitVocoder.load(tmp_path)


def test_folded_model_can_be_unfolded_and_trained_on():
    model = small("hifigan").fold()
    before = model.generate([torch.arange(5)])[0]
    assert (model.unfold().eval().generate([torch.arange(5)])[0] - before).abs().max() < 1e-5
    wav, _ = model.train()(torch.arange(5)[None])
    wav.square().sum().backward()
    assert all(p.grad is not None for p in model.core.parameters())


def test_units_of_another_tokenizer_are_refused():
    model = small("istft")
    assert len(model.generate([Units(np.arange(3), 50.0, 20, "abc")])[0]) == 960
    with pytest.raises(FingerprintError, match="abc"):
        model.generate([Units(np.arange(3), 50.0, 20, "other")])


def test_wrong_conditions_are_errors_that_name_the_known():
    model = small("istft", speakers=("anna", "bert"), f0=True)
    units, f0 = [torch.arange(4)], [np.full(4, 100.0)]
    for call, says in [
        (lambda: model.generate(units, f0=f0), "None is unknown.*anna, bert"),
        (lambda: model.generate(units, speaker="carl", f0=f0), "'carl' is unknown.*anna, bert"),
        (lambda: model.generate(units, speaker="anna"), "trained with f0"),
        (lambda: model.generate(units, speaker="anna", f0=[np.ones(3)]), r"\[3\] frames for units of \[4\]"),
        (lambda: model.generate([torch.tensor([3, 20])], speaker="anna", f0=f0), r"0\.\.19"),
        (lambda: model.generate([torch.zeros(4, 2).long()], speaker="anna", f0=f0), r"takes \(frames,\)"),
        (lambda: model.generate(units, speaker="anna", f0=f0, durations="guess"), "'guess'"),
        (lambda: model.generate(units, speaker="anna", f0=f0, durations=[[1, 2]]), "2.*4"),
        (lambda: small("istft", durations=False).generate(units, durations="predict"), "no duration predictor"),
        (lambda: small("istft").generate([Units(np.arange(3), 50.0, 20, "abc", reduced=True)]), "deduplicated"),
        (lambda: small("istft").generate(units, lang="xx"), "language 'xx'.*none"),
    ]:
        with pytest.raises(VocoderError, match=says):
            call()


@pytest.mark.parametrize(("more", "units"), [
    ({"codebooks": 2}, torch.randint(0, 20, (6, 2))),
    ({"features_dim": 5}, torch.randn(6, 5)),
    ({"energy": True, "f0": True}, torch.arange(6)),
])  # fmt: skip
def test_every_kind_of_input(more, units):
    model = small("istft", **more)
    f0 = [np.array([0, 100, 110, 120, 0, 0.0])] if "f0" in more else None
    energy = [np.linspace(0, 1, 6)] if "energy" in more else None
    wav = model.generate([units], f0=f0, energy=energy)[0]
    assert len(wav) == 6 * 320
    changed = model.generate([units.flip(0)], f0=f0, energy=energy)[0]
    assert (wav - changed).abs().max() > 1e-4
    if f0 is not None:
        assert (wav - model.generate([units], f0=[f0[0][::-1].copy()], energy=energy)[0]).abs().max() > 1e-4
        assert (wav - model.generate([units], f0=f0, energy=[energy[0][::-1].copy()])[0]).abs().max() > 1e-4


def test_normalised_f0_by_hand():
    f0 = np.array([0.0, math.exp(5.0), math.exp(5.4)])
    expected = [[0, 0], [0, 1], [2, 1]]
    np.testing.assert_allclose(normalise_f0(f0, [5.0, 0.2]), expected, atol=1e-6)
    np.testing.assert_allclose(normalise_f0(f0)[1:, 0], [-1, 1], atol=1e-6)
    assert not normalise_f0(np.zeros(3)).any()


def slow_runs(row: list) -> tuple[list, list[int]]:
    values, lengths = [], []
    for item in row:
        if values and values[-1] == item:
            lengths[-1] += 1
        else:
            values.append(item)
            lengths.append(1)
    return values, lengths


@pytest.mark.parametrize("codebooks", [1, 2])
def test_runs_equal_a_slow_loop(codebooks):
    torch.manual_seed(codebooks)
    units = torch.randint(0, 2, (5, 14, codebooks)).squeeze(-1)
    mask = torch.arange(14) < torch.tensor([14, 9, 1, 5, 13])[:, None]
    values, lengths, present = find_runs(units, mask)
    for i, n in enumerate(mask.sum(1).tolist()):
        expected_values, expected_lengths = slow_runs(units[i, :n].tolist())
        assert values[i][present[i]].tolist() == expected_values
        assert lengths[i][present[i]].tolist() == expected_lengths


def test_duration_loss_leaves_out_the_runs_that_were_cut():
    lengths = torch.tensor([[3, 2, 4, 0], [5, 1, 0, 0]])
    mask = lengths > 0
    right = torch.log1p(lengths.float())
    wrong = right + torch.tensor([[9.0, 1.0, 9.0, 9.0], [2.0, 9.0, 9.0, 9.0]])
    cut = torch.tensor([[True, True], [False, True]])
    assert duration_loss(right, lengths, mask, cut=cut) == 0
    assert duration_loss(wrong, lengths, mask, cut=cut) == pytest.approx((1 + 4) / 2)
    nothing_left = duration_loss(wrong, lengths, mask, cut=torch.ones(2, 2, dtype=torch.bool) & mask[:, :2])
    assert nothing_left == pytest.approx(1.0)


def test_predicted_durations_do_not_depend_on_the_batch():
    model = small("istft")
    units = [torch.tensor([3, 4, 5, 6, 7]), torch.tensor([1]), torch.tensor([9, 2, 9])]
    together = model.predict_durations(units)
    for one, frames in zip(units, together, strict=True):
        assert frames.tolist() == model.predict_durations([one])[0].tolist()
        assert len(frames) == len(one) and frames.min() >= 1
    with torch.no_grad():
        model.durations.out.weight.zero_()
        model.durations.out.bias.fill_(math.log(1 + 4.0))
    wavs = model.generate(units, durations="predict")
    assert [len(w) for w in wavs] == [4 * 320 * len(u) for u in units]
    assert len(model.generate([torch.tensor([1, 2])], durations=[[3, 5]])[0]) == 8 * 320
    wav = model.generate([np.array([1, 2])], durations="predict")[0].numpy()
    assert wav.dtype == np.float32 and wav.shape == (2 * 4 * 320,)


def test_judges_and_their_losses():
    config = DiscriminatorConfig(kinds=("mpd", "msd", "mrd"), width=1 / 32, resolutions=(256, 512))
    judges = Discriminators(config)
    real, fake = torch.randn(2, 4000), torch.randn(2, 4000, requires_grad=True)
    truth, verdicts = judges(real), judges(fake)
    assert len(verdicts) == 5 + 3 + 2
    (fool_loss(verdicts) + feature_loss(truth, verdicts)).backward()
    assert fake.grad.abs().sum() > 0
    for kind in ("lsgan", "hinge"):
        sure = [(torch.full((2, 3), 1.0), [])], [(torch.full((2, 3), 0.0 if kind == "lsgan" else -1.0), [])]
        assert judge_loss(*sure, kind=kind) == 0
        assert judge_loss(*sure[::-1], kind=kind) > 0
        assert fool_loss(sure[0], kind=kind) == 0
        assert fool_loss(sure[1], kind=kind) > 0
    assert feature_loss(truth, truth) == 0
    with pytest.raises(ValueError, match="known: mpd, msd, mrd"):
        Discriminators(DiscriminatorConfig(kinds=("cqt",)))
    with pytest.raises(ValueError, match="known: lsgan, hinge"):
        judge_loss(truth, verdicts, kind="wgan")


def test_log_mel_equals_a_plain_numpy_spectrogram():
    from unitkit.audio import mel_filters

    wav = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 0.1
    padded = np.pad(wav, 512)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = [padded[i : i + 1024] * window for i in range(0, len(wav) + 1, 256)]
    spectrum = np.abs(np.fft.rfft(frames, axis=1)).T
    expected = np.log(np.maximum(mel_filters(16000, n_fft=1024, n_mels=80) @ spectrum, 1e-5))
    np.testing.assert_allclose(LogMel(16000)(torch.from_numpy(wav)[None])[0].numpy(), expected, atol=2e-4)


def test_spectral_losses_are_zero_for_the_same_and_grow_with_the_difference():
    losses = SpectralLoss(LossConfig(stft=1.0, mel_sizes=(512, 1024)), 16000)
    wav, noise = torch.randn(2, 8000) * 0.1, torch.randn(2, 8000) * 0.1
    assert all(value == 0 for value in losses(wav, wav).values())
    near, far = losses(wav, wav + 0.01 * noise), losses(wav, noise)
    assert set(near) == {"mel", "stft"} and all(0 < near[k] < far[k] for k in near)
    quiet = torch.zeros(1, 4000, requires_grad=True)
    sum(losses(quiet.detach(), quiet).values()).backward()
    assert torch.isfinite(quiet.grad).all()
    assert magnitudes(wav, 512, torch.hann_window(512)).shape == (2, 257, 63)


def reference_checkpoint(path, *, channels=512, speakers=0, extra=()):
    """A checkpoint in the public layout, random weights; and its forward pass written out a second time."""
    random = torch.Generator().manual_seed(3)
    weights: dict[str, torch.Tensor] = {}

    def tensor(*shape):
        return torch.randn(*shape, generator=random) / math.sqrt(max(1, math.prod(shape[1:])))

    def conv(name, *shape, normed=True):
        if normed:
            weights[f"{name}.weight_v"] = tensor(*shape)
            weights[f"{name}.weight_g"] = (tensor(shape[0], 1, 1).abs() + 0.5) * 0.4
        else:
            weights[f"{name}.weight"] = tensor(*shape)

    weights["dict.weight"] = torch.randn(100, 128, generator=random)
    if speakers:
        weights["spkr.weight"] = torch.randn(speakers, 128, generator=random)
    conv("conv_pre", channels, 128 * (2 if speakers else 1), 7)
    weights["conv_pre.bias"] = tensor(channels)
    width = channels
    for i, (_, kernel) in enumerate(zip((5, 4, 4, 2, 2), (11, 8, 8, 4, 4), strict=True)):
        conv(f"ups.{i}", width, width // 2, kernel)
        width //= 2
        weights[f"ups.{i}.bias"] = tensor(width)
        for j, size in enumerate((3, 7, 11)):
            for kind in (1, 2):
                for k in range(3):
                    name = f"resblocks.{3 * i + j}.convs{kind}.{k}"
                    conv(name, width, width, size)
                    weights[f"{name}.bias"] = tensor(width)
    conv("conv_post", 1, width, 7)
    weights["conv_post.bias"] = tensor(1)
    for part in ("conv1", "conv2"):
        conv(f"dur_predictor.{part}.0", 128, 128, 3, normed=False)
        weights[f"dur_predictor.{part}.0.bias"] = tensor(128)
    for part in ("ln1", "ln2"):
        weights[f"dur_predictor.{part}.weight"], weights[f"dur_predictor.{part}.bias"] = tensor(128) + 1, tensor(128)
    weights["dur_predictor.proj.weight"], weights["dur_predictor.proj.bias"] = tensor(1, 128), tensor(1)
    for name in extra:
        weights[name] = tensor(4, 4)
    torch.save({"generator": weights}, path)
    return weights


def reference_forward(weights, x):
    """The public generator's arithmetic on (1, dim, frames)."""

    def conv(name, x, *, dilation=1, stride=0):
        v, g = weights[f"{name}.weight_v"], weights[f"{name}.weight_g"]
        w = torch.stack([g[i] * v[i] / torch.sqrt((v[i] ** 2).sum()) for i in range(len(v))])
        kernel, bias = w.shape[2], weights[f"{name}.bias"]
        if stride:
            return F.conv_transpose1d(x, w, bias, stride=stride, padding=(kernel - stride) // 2)
        return F.conv1d(x, w, bias, dilation=dilation, padding=dilation * (kernel - 1) // 2)

    x = conv("conv_pre", x)
    for i, rate in enumerate((5, 4, 4, 2, 2)):
        x = conv(f"ups.{i}", F.leaky_relu(x, 0.1), stride=rate)
        outs = []
        for j in range(3):
            y = x
            for k, dilation in enumerate((1, 3, 5)):
                z = conv(f"resblocks.{3 * i + j}.convs1.{k}", F.leaky_relu(y, 0.1), dilation=dilation)
                y = y + conv(f"resblocks.{3 * i + j}.convs2.{k}", F.leaky_relu(z, 0.1))
            outs.append(y)
        x = sum(outs) / 3
    return torch.tanh(conv("conv_post", F.leaky_relu(x)))


@pytest.mark.parametrize("speakers", [0, 200])
def test_imported_checkpoint_computes_what_its_layout_says(tmp_path, speakers):
    weights = reference_checkpoint(tmp_path / "g", channels=64, speakers=speakers)
    model = code_hifigan.import_code_hifigan(tmp_path / "g", tokenizer="abc")
    assert model.config.tokenizer == "abc" and model.config.rate_hz == 50.0
    units = torch.randint(0, 100, (12,))
    x = weights["dict.weight"][units].T[None]
    if speakers:
        x = torch.cat([x, weights["spkr.weight"][7][None, :, None].expand(1, -1, 12)], dim=1)
    wav = model.generate([units], speaker="7" if speakers else None)[0]
    expected = reference_forward(weights, x)[0, 0]
    assert expected.std() > 0.01 and (wav - expected).abs().max() < 1e-5
    y = weights["dict.weight"][units].T[None]
    for part, norm in (("conv1.0", "ln1"), ("conv2.0", "ln2")):
        p = f"dur_predictor.{part}"
        y = F.relu(F.conv1d(y, weights[f"{p}.weight"], weights[f"{p}.bias"], padding=1)).transpose(1, 2)
        n = f"dur_predictor.{norm}"
        y = F.layer_norm(y, (128,), weights[f"{n}.weight"], weights[f"{n}.bias"]).transpose(1, 2)
    y = F.linear(y.transpose(1, 2), weights["dur_predictor.proj.weight"], weights["dur_predictor.proj.bias"])[0, :, 0]
    assert model.predict_durations([units])[0].tolist() == torch.round(y.exp() - 1).clamp(min=1).long().tolist()


def test_reference_size_checkpoint_imports(tmp_path):
    weights = reference_checkpoint(tmp_path / "g")
    facts = {"upsample_rates": [5, 4, 4, 2, 2], "sampling_rate": 16000, "code_hop_size": 320,
             "resblock_dilation_sizes": [[1, 3, 5]] * 3}  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(facts))
    model = code_hifigan.import_code_hifigan(tmp_path / "g", tmp_path / "c.json", tokenizer="abc")
    stored = sum(v.numel() for name, v in weights.items() if not name.endswith("_g"))
    assert n_parameters(model) == stored and model.config.hifigan == HifiganConfig(narrowest=16)


def test_checkpoints_that_cannot_be_imported_say_why(tmp_path):
    path = tmp_path / "g"
    for content, says in [
        ({"weights": {}}, "a dict with a 'generator'"),
        ({"generator": print}, "may run code"),
    ]:
        torch.save(content, path)
        with pytest.raises(VocoderError, match=says):
            code_hifigan.import_code_hifigan(path, tokenizer="abc")
    reference_checkpoint(path, channels=64, extra=["f0_quant_embed.weight"])
    with pytest.raises(VocoderError, match="not supported: it has f0_quant_embed"):
        code_hifigan.import_code_hifigan(path, tokenizer="abc")
    weights = reference_checkpoint(path, channels=64)
    (tmp_path / "c.json").write_text(json.dumps({"upsample_rates": [8, 8, 5], "code_hop_size": 320}))
    with pytest.raises(VocoderError, match="not the layout"):
        code_hifigan.import_code_hifigan(path, tmp_path / "c.json", tokenizer="abc")
    del weights["conv_post.bias"]
    torch.save({"generator": weights}, path)
    with pytest.raises(VocoderError, match=r"core\.post\.bias"):
        code_hifigan.import_code_hifigan(path, tokenizer="abc")


@pytest.mark.parametrize("config", [
    VocoderConfig(core="hifigan"),
    VocoderConfig(core="istft", istft=IstftConfig(dim=512, blocks=8, hidden=1536, upsample=1)),
], ids=["hifigan", "istft"])  # fmt: skip
def test_paper_size_takes_a_training_step(config):
    torch.manual_seed(0)
    model = UnitVocoder(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = SpectralLoss(LossConfig(), 16000)
    units, real = torch.randint(0, 100, (1, 8)), torch.randn(1, 8 * 320) * 0.1
    mask, cut = torch.ones(1, 8, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)
    seen = []
    for _ in range(3):
        wav, durations = model(units, mask, cut=cut)
        loss = 45 * losses(real, wav)["mel"] + durations
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < seen[0]


def test_reference_size_judges_take_a_step():
    judges = Discriminators(DiscriminatorConfig())
    real, fake = torch.randn(1, 1600) * 0.1, torch.randn(1, 1600) * 0.1
    judge_loss(judges(real), judges(fake)).backward()
    assert all(p.grad is not None for p in judges.parameters())

"""The frame model: soft bins, padding that changes nothing, modes that change what they name, paper size, files."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.audio import Mel
from unitkit.models.discriminators import MelJudge
from unitkit.models.frame import (
    MODES,
    PAPER,
    Bins,
    Contours,
    FrameBatch,
    FrameConfig,
    FrameError,
    FrameModel,
    Size,
    Vectors,
)
from unitkit.models.hearing import Wav2Vec2Branch
from unitkit.models.source_filter import embedded
from unitkit.units import FingerprintError, Units

torch.set_num_threads(1)
TINY = FrameConfig(
    tokenizer="0123456789ab",
    n_units=12,
    mel=Mel(n_mels=20),
    dim=24,
    layers=2,
    vector_dim=8,
    hearing_hidden=16,
    hearing_layers=1,
    f0=Bins(-12.0, 12.0, 24, 1.0),
    energy=Bins(-6.0, 6.0, 24, 0.5),
    durations=Size(16),
    voicing=Size(16),
    f0_size=Size(16),
    energy_size=Size(16),
    dropout=0.0,
)


def model(config: FrameConfig = TINY) -> FrameModel:
    """Untrained; durations are of a few frames and depend on the vector."""
    torch.manual_seed(0)
    made = FrameModel(config).eval()
    with torch.no_grad():
        made.durations.leave.bias.fill_(1.5)
        made.durations.leave.weight.mul_(4)
    return made


def batch(lengths: list[int], config: FrameConfig = TINY, *, seed: int = 0, heard: int = 30) -> FrameBatch:
    """Random segments; what lies behind a row's end is noise."""
    torch.manual_seed(seed)
    n, rows, m = max(lengths), len(lengths), config.mel_frames(max(lengths))
    dim = config.mel.n_mels if config.hearing == "mel" else config.hearing_hidden
    ears = torch.randn(3, rows, heard, dim)
    voices = ears[1:] if not config.speaker_dim else torch.randn(2, rows, config.speaker_dim)
    ends = torch.tensor([heard - 4 * i for i in range(rows)])
    return FrameBatch(
        units=torch.randint(0, config.n_units, (rows, n)),
        lengths=torch.tensor(lengths),
        cut=torch.zeros(rows, 2, dtype=torch.bool),
        f0=torch.randn(rows, n) * 3,
        voiced=torch.rand(rows, n) > 0.4,
        energy=torch.randn(rows, m),
        mel=torch.randn(rows, m, config.mel.n_mels) - 4,
        heard=ears[0],
        heard_lengths=ends,
        voice=voices[0],
        voice_lengths=ends,
        shifted=voices[1],
        shifted_lengths=ends,
    )


def row(whole: FrameBatch, i: int, config: FrameConfig = TINY) -> FrameBatch:
    """One row alone, without padding."""
    n, heard = int(whole.lengths[i]), int(whole.heard_lengths[i])
    ends = {"units": n, "f0": n, "voiced": n, "energy": config.mel_frames(n), "mel": config.mel_frames(n)}
    ends |= {name: heard for name in ("heard", "voice", "shifted") if getattr(whole, name).ndim == 3}
    return FrameBatch(
        **{f.name: getattr(whole, f.name)[i : i + 1][:, slice(ends.get(f.name))] if f.name in ends
           else getattr(whole, f.name)[i : i + 1] for f in fields(FrameBatch)}
    )  # fmt: skip


@given(st.floats(-20, 20), st.integers(3, 60), st.floats(0.2, 4))
@settings(max_examples=60, deadline=None)
def test_soft_bins_are_a_blurred_place_on_the_scale(value: float, bins: int, sigma: float) -> None:
    scale = Bins(-12.0, 12.0, bins, sigma)
    places = np.linspace(-12, 12, bins)
    slow = [np.exp(-0.5 * ((place - min(max(value, -12), 12)) / sigma) ** 2) for place in places]
    assert np.allclose(scale.targets(torch.tensor([value]))[0], slow, atol=1e-4)


def test_what_bins_stand_for_is_the_mean_of_their_rows() -> None:
    table = torch.randn(5, 3)
    one = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    assert torch.allclose(embedded(one, table), table[2], atol=1e-4)
    assert torch.allclose(embedded(2 * one, table), table[2], atol=1e-4)  # how sure it is changes nothing
    assert torch.allclose(embedded(torch.tensor([0, 1.0, 0, 1, 0]), table), (table[1] + table[3]) / 2, atol=1e-4)


@pytest.mark.parametrize("config", [TINY, replace(TINY, speaker_dim=6), replace(TINY, mel=Mel(hop=256, n_mels=20))])
def test_padding_changes_no_row(config: FrameConfig) -> None:
    net, whole = model(config), batch([40, 23, 31], config)
    losses, mel = net(whole)
    alone = [net(row(whole, i, config)) for i in range(3)]
    for i, (_, one) in enumerate(alone):
        assert one.shape[1] == config.mel_frames(int(whole.lengths[i]))
        assert torch.allclose(mel[i, : one.shape[1]], one[0], atol=1e-4), i
    shares = {"voicing": whole.lengths, "mel": torch.tensor([one.shape[1] for _, one in alone])}
    for name, weights in shares.items():
        mean = sum(float(w) * float(ls[name]) for w, (ls, _) in zip(weights, alone, strict=True)) / float(weights.sum())
        assert float(losses[name]) == pytest.approx(mean, abs=1e-4)


def test_frames_of_units_and_mels() -> None:
    net = model()
    assert TINY.ratio == 1.6 and [TINY.mel_frames(n) for n in (1, 5, 6, 10)] == [1, 8, 9, 16]
    assert net.index(16).tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 9]
    for n in range(1, 400):
        for config in (TINY, replace(TINY, mel=Mel(sample_rate=22050, hop=256))):
            assert int((config.mel_frames(n) - 0.5) / config.ratio) < n


def test_in_training_the_mel_hears_half_of_the_truth() -> None:
    net, one = model(), batch([20])
    other = replace(one, f0=one.f0 + 5, energy=one.energy + 2)
    assert torch.equal(net(one)[1], net(other)[1])  # in use: only what is predicted
    net.train()
    assert not torch.allclose(net(one)[1], net(other)[1])


def vectors(net: FrameModel, seed: int) -> Vectors:
    torch.manual_seed(seed)
    return net.vectors(2 * torch.randn(50, TINY.mel.n_mels))


UNITS = Units(np.repeat(np.arange(10), [3, 1, 4, 2, 6, 2, 3, 5, 1, 2]), 50.0, 12, TINY.tokenizer, "a")


def test_a_mode_changes_what_it_names_and_leaves_the_rest() -> None:
    net = model()
    source, reference = vectors(net, 1), vectors(net, 2)
    base = net.convert(UNITS, source, reference, mode="copy")
    assert base.units.tolist() == list(range(10)) and base.durations.tolist() == UNITS.dedup()[1].tolist()
    assert base.mel.shape == (TINY.mel_frames(29), 20)
    made = {mode: net.convert(UNITS, source, reference, mode=mode) for mode in MODES}
    own = {mode: net.convert(UNITS, source, source, mode=mode) for mode in MODES}
    for mode, taken in MODES.items():
        one = made[mode]
        assert one.units.equal(base.units)
        rhythm, pitch = "rhythm" in taken, "pitch" in taken
        assert one.durations.equal(base.durations) != rhythm, mode
        assert len(one.f0) == int(one.durations.sum())
        if not rhythm:
            same = torch.allclose(one.f0, base.f0) and torch.allclose(one.energy, base.energy)
            assert same != pitch, mode
            assert torch.allclose(one.mel, base.mel) == (not taken), mode
        # with itself as the reference a mode gives the copy, but for single durations that the model sees otherwise
        expected = own["rhythm"] if rhythm else base
        assert torch.equal(own[mode].mel, expected.mel), mode
    assert made["prosody"].durations.equal(made["rhythm"].durations)
    assert made["all"].f0.equal(made["prosody"].f0) and not torch.allclose(made["all"].mel, made["prosody"].mel)
    assert made["speaker"].f0.equal(base.f0) and made["speaker"].voiced.equal(base.voiced)


@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.7])
def test_a_rhythm_changes_the_tempo_by_what_the_vectors_tell(bias: float) -> None:
    """Durations predicted too short or too long throughout make no difference; a rhythm half as fast does."""

    class Given(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            frames = torch.linspace(2, 6, x.shape[1]) * float(condition[0, 0]) * 2**bias
            return (frames[None] + 1).log()

    net = model()
    net.durations = Given()
    runs, durations = torch.arange(10), torch.tensor([3, 1, 4, 2, 6, 2, 3, 5, 1, 2])
    slow, same = (net.new_durations(runs, durations, torch.ones(2), torch.full((2,), x)) for x in (2.0, 1.0))
    assert same.sum() == 29 and slow.sum() == 58 and bool((slow > same).all())
    assert torch.allclose(slow.double(), torch.linspace(2, 6, 10).double() * 58 / 40, atol=1.0)


def test_vectors_are_taken_by_name() -> None:
    a, b = (Vectors(*(torch.full((2,), float(i + k)) for k in range(3))) for i in (0, 10))
    mixed = a.taking(b, MODES["pitch-energy"])
    assert (mixed.speaker[0], mixed.pitch[0], mixed.rhythm[0]) == (0, 11, 2)


def test_exact_pitch_is_what_is_given() -> None:
    net = model()
    source, reference = vectors(net, 1), vectors(net, 2)
    hertz = np.where(np.arange(29) % 3 > 0, 100.0 * 2 ** (np.arange(29) / 24), 0.0)
    contours = net.contours(hertz, np.full(TINY.mel_frames(29), np.e))
    assert float(contours.f0[contours.voiced].mean()) == pytest.approx(0, abs=1e-5)
    assert float(contours.f0[4] - contours.f0[1]) == pytest.approx(1.5, abs=1e-4)  # semitones
    assert contours.energy.tolist() == pytest.approx([1.0] * len(contours.energy))
    made = net.convert(UNITS, source, reference, mode="speaker", contours=contours)
    assert torch.allclose(made.f0, TINY.f0.targets(contours.f0)) and made.voiced.equal(contours.voiced)
    free = net.convert(UNITS, source, reference, mode="speaker")
    assert made.durations.equal(free.durations) and not torch.allclose(made.mel, free.mel)
    with pytest.raises(FrameError, match="mode 'rhythm' changes prosody: exact pitch goes with mode 'speaker'"):
        net.convert(UNITS, source, reference, mode="rhythm", contours=contours)
    with pytest.raises(FrameError, match="F0 of 28 and energy of 46 frames for 29 and 46"):
        cut = Contours(contours.f0[1:], contours.voiced[1:], contours.energy)
        net.convert(UNITS, source, reference, mode="speaker", contours=cut)
    linear = FrameModel(replace(TINY, f0_scale="hz", energy_scale="linear"))
    found = linear.contours(np.array([100.0, 0.0, 140.0]), np.array([3.0, 4.0]))
    assert found.f0.tolist() == [-20, 0, 20] and found.energy.tolist() == [3, 4]


def test_what_cannot_be_is_refused() -> None:
    net = model()
    one = vectors(net, 1)
    with pytest.raises(FrameError, match="mode 'pitch': known are copy, rhythm, pitch-energy, prosody, speaker, all"):
        net.convert(UNITS, one, one, mode="pitch")
    with pytest.raises(FingerprintError, match=r"feedfeedfeed.*0123456789ab"):
        net.convert(replace(UNITS, tokenizer="feedfeedfeed"), one, one)
    with pytest.raises(FrameError, match="this model hears voices itself"):
        net.vectors(torch.randn(9, 20), np.zeros(4, np.float32))
    with pytest.raises(FrameError, match="takes a speaker vector of 6"):
        FrameModel(replace(TINY, speaker_dim=6)).vectors(torch.randn(9, 20))
    with pytest.raises(FrameError, match="hearing 'ears': known are mel, wav2vec2"):
        FrameConfig(hearing="ears")
    with pytest.raises(FrameError, match="high is above low"):
        Bins(1.0, 1.0, 4, 1.0)
    with pytest.raises(FrameError, match=r"x: its units last 2\.00 s, its audio 1\.00 s; encode it again"):
        TINY.fitted(np.zeros(16000, np.float32), 100, name="x")
    assert len(TINY.fitted(np.zeros(16100, np.float32), 51)) == 51 * 320 == len(TINY.fitted(np.zeros(17000), 51))


def test_a_step_at_the_papers_size() -> None:
    net = FrameModel(PAPER)
    heads = sum(p.numel() for name, p in net.named_parameters() if not name.startswith(("hearing", "encoders")))
    assert heads == pytest.approx(41.7e6, rel=0.005)  # predictors and synthesiser, as counted in the paper's code
    assert not any(p.requires_grad for p in net.hearing.parameters())
    heard = net.hear(np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 0.1)
    assert heard.shape[1] == 768 and len(heard) == 11  # of 3628 samples at 16 kHz
    small = replace(batch([6], PAPER, heard=9), heard_lengths=torch.tensor([7]))
    before = net.units.weight.detach().clone()
    losses, mel = net(small)
    losses["loss"].backward()
    torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3).step()
    assert mel.shape == (1, 10, 80) and not torch.equal(net.units.weight, before)
    for name in ("pitch", "rhythm", "speaker"):
        assert float(net.encoders[name].leave.weight.grad.abs().sum()) > 0, name


def test_layers_of_wav2vec2_hear_no_padding() -> None:
    torch.manual_seed(0)
    branch = Wav2Vec2Branch(64, 5, layers=1).eval()
    heard = torch.randn(1, 9, 64)
    alone = branch(heard, torch.tensor([9]))
    padded = torch.cat([heard, torch.randn(1, 6, 64)], dim=1)
    kept = padded.clone()
    assert torch.allclose(branch(padded, torch.tensor([9])), alone, atol=1e-5)
    assert torch.equal(padded, kept)  # and what was heard is not written to


def test_the_judge_of_mels_hears_no_padding() -> None:
    torch.manual_seed(0)
    judge, mel = MelJudge(20, width=8, blocks=2), torch.randn(1, 12, 20)
    alone = judge(mel, torch.ones(1, 12, dtype=torch.bool))
    padded = torch.cat([mel, torch.randn(1, 5, 20)], dim=1)
    mask = torch.arange(17)[None] < 12
    assert torch.allclose(judge(padded, mask)[:, :12], alone, atol=1e-5)


def test_files(tmp_path) -> None:
    net = model(replace(TINY, f0_scale="hz"))
    net.save(tmp_path / "m", card="# Card\n")
    again = FrameModel.load(tmp_path / "m")
    assert again.config == net.config and not again.training and (tmp_path / "m" / "card.md").read_text() == "# Card\n"
    one = vectors(net, 1)
    assert torch.equal(net.convert(UNITS, one, one).mel, again.convert(UNITS, one, one).mel)
    with pytest.raises(FrameError, match=r"is not a frame model: it has no config\.yaml"):
        FrameModel.load(tmp_path)

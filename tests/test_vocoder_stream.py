"""A wav made piece by piece is the wav made at once, whatever the core, the length and the size of the pieces."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unitkit.models.vocoder import UnitVocoder, VocoderConfig
from unitkit.models.wave_cores import HifiganConfig, IstftConfig, VocoderError
from unitkit.pipeline import Vocoder
from unitkit.units import FingerprintError, Units

torch.set_num_threads(1)
CORES: dict[str, dict[str, Any]] = {
    "istft": {"core": "istft", "istft": IstftConfig(dim=24, blocks=2, hidden=32)},
    "istft, wide kernel": {"core": "istft", "istft": IstftConfig(dim=24, blocks=1, hidden=32, kernel=11)},
    "istft, 4 frames each": {"core": "istft", "istft": IstftConfig(dim=24, blocks=2, hidden=32, upsample=4)},
    "hifigan": {"core": "hifigan", "hifigan": HifiganConfig(channels=16, kernels=(3, 7), dilations=(1, 3))},
    "hifigan, one block": {"core": "hifigan", "hifigan": HifiganConfig(channels=16, kernels=(11,), dilations=(1, 5))},
}
N_UNITS = 20


def small(core: str, **more: Any) -> UnitVocoder:
    """A model whose weights are large enough that every frame in reach is heard."""
    torch.manual_seed(0)
    settings = {"n_units": N_UNITS, "unit_dim": 16, "tokenizer": "abc", "duration_dim": 8} | CORES[core] | more
    model = UnitVocoder(VocoderConfig(**settings)).eval().fold()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=1 / math.sqrt(p[0].numel()))
    return model


@pytest.mark.parametrize("core", CORES)
def test_pieces_together_are_the_whole(core: str) -> None:
    model = small(core)
    rng = np.random.default_rng(0)
    for frames in (1, 2, 7, 26, int(rng.integers(40, 70))):
        units = torch.from_numpy(rng.integers(0, N_UNITS, frames))
        whole = model.generate([units])[0]
        assert whole.std() > 1e-3
        for size in {1, 2, frames - 1 or 1, frames, 2 * frames, int(rng.integers(3, 25))}:
            pieces = list(model.stream(units, seconds=size / 50))
            assert [len(p) for p in pieces[:-1]] == [size * 320] * (len(pieces) - 1) and len(pieces[-1]) > 0
            assert (torch.cat(pieces) - whole).abs().max() < 1e-5, (frames, size)


@pytest.mark.parametrize("core", ["istft", "hifigan"])
def test_a_frame_less_of_context_would_be_heard(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with half the margin the pieces no longer fit."""
    model = small(core)
    units = torch.from_numpy(np.random.default_rng(1).integers(0, N_UNITS, 60))
    whole, margin = model.generate([units])[0], model.core.margin
    monkeypatch.setattr(type(model.core), "margin", margin // 2, raising=False)
    model.core.__dict__.pop("margin", None)
    assert (torch.cat(list(model.stream(units, seconds=0.2))) - whole).abs().max() > 1e-4


def test_every_condition_reaches_the_pieces() -> None:
    model = small("istft", speakers=("a", "b"), langs=("en", "es"), f0=True, energy=True, prosody_dim=4)
    units, rng = torch.arange(19), np.random.default_rng(2)
    f0, energy = rng.uniform(80, 300, 19), rng.uniform(0, 1, 19)
    whole = model.generate([units], speaker="b", lang="es", f0=[f0], energy=[energy])[0]
    pieces = model.stream(units, speaker="b", lang="es", f0=f0, energy=energy, seconds=0.1)
    assert (torch.cat(list(pieces)) - whole).abs().max() < 1e-5
    other = torch.cat(list(model.stream(units, speaker="a", lang="es", f0=f0, energy=energy)))
    assert (other - whole).abs().max() > 1e-3


@pytest.mark.parametrize("core", ["istft", "hifigan"])
def test_reduced_units_are_stretched_as_a_whole(core: str) -> None:
    model = small(core)
    nn.init.constant_(model.durations.out.bias, 1.5)  # a few frames a unit
    ids = np.random.default_rng(3).integers(0, N_UNITS, 30)
    units = Units(ids, 50.0, N_UNITS, "abc", reduced=True)
    (frames,) = model.predict_durations([torch.from_numpy(ids)])
    assert len(set(frames.tolist())) > 1
    whole = model.generate([units], durations="predict")[0]
    assert len(whole) == int(frames.sum()) * 320
    for given in ("predict", frames.numpy()):
        assert (torch.cat(list(model.stream(units, durations=given, seconds=0.3))) - whole).abs().max() < 1e-5
    spoken = Vocoder(model)
    assert np.abs(np.concatenate(list(spoken.stream(units, seconds=0.3))) - spoken(units)).max() < 1e-5


def test_the_first_piece_comes_before_the_rest_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small("istft"), []
    inner = model.core.forward
    monkeypatch.setattr(model.core, "forward", lambda x, mask=None: (seen.append(x.shape[2]), inner(x, mask))[1])
    pieces = model.stream(torch.randint(0, N_UNITS, (500,)), seconds=0.5)
    assert len(next(pieces)) == 8000
    assert seen == [25 + model.core.margin]  # of 500 frames


def test_bad_arguments_raise_at_once() -> None:
    model = small("istft")
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(VocoderError, match="seconds"):
            model.stream(torch.arange(5), seconds=seconds)
    with pytest.raises(VocoderError, match="deduplicated"):
        model.stream(Units(np.arange(5), 50.0, N_UNITS, "abc", reduced=True))
    with pytest.raises(FingerprintError, match="xyz"):
        model.stream(Units(np.arange(5), 50.0, N_UNITS, "xyz"))
    with pytest.raises(FingerprintError, match="xyz"):
        Vocoder(model).stream(Units(np.arange(5), 50.0, N_UNITS, "xyz"))


def test_nothing_to_say_is_no_piece() -> None:
    empty = Units(np.zeros(0, np.int64), 50.0, N_UNITS, "abc", reduced=True)
    vocoder = Vocoder(small("istft"))
    assert list(vocoder.stream(empty)) == [] and len(vocoder(empty)) == 0


def test_streaming_needs_no_gradients_and_leaves_their_setting_alone() -> None:
    pieces = small("istft").stream(torch.arange(10), seconds=0.1)
    assert torch.is_grad_enabled()
    first = next(pieces)
    assert torch.is_grad_enabled() and not first.requires_grad

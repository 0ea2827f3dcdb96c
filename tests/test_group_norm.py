"""Moments of a convolution's windows against torch's group norm of the whole wav."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_encoders import wav_of
from torch import Tensor, nn

from unitkit.encoders import group_norm
from unitkit.encoders.group_norm import WindowSums

WAV = torch.from_numpy(wav_of(20_011))


def parts(kernel: int = 10, stride: int = 5, *, bias: bool = False) -> tuple[nn.Conv1d, nn.GroupNorm]:
    torch.manual_seed(0)
    conv, norm = nn.Conv1d(1, 16, kernel, stride, bias=bias).double(), nn.GroupNorm(16, 16).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return conv.requires_grad_(False), norm.requires_grad_(False)


def affine(conv: nn.Conv1d, norm: nn.GroupNorm, blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    sums = WindowSums(conv.kernel_size[0], conv.stride[0])
    for block in blocks:
        sums.add(block)
    return sums.affine(conv.weight, norm.weight, norm.bias, norm.eps)


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (8, 4), (3, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_group_norm(kernel: int, stride: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norm, "CHUNK_WINDOWS", 100)
    conv, norm = parts(kernel, stride, bias=bias)
    scale, shift = affine(conv, norm, [WAV])
    plain = nn.functional.conv1d(WAV.double()[None], conv.weight, stride=stride)
    expected = norm(conv(WAV.double()[None, None]))[0]
    torch.testing.assert_close(scale[:, None] * plain + shift[:, None], expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, len(WAV)), max_size=8))
def test_bits_do_not_depend_on_blocks(cuts: list[int]) -> None:
    conv, norm = parts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_norm, "CHUNK_WINDOWS", 300)
        whole = affine(conv, norm, [WAV])
        blocks = affine(conv, norm, list(WAV.tensor_split(sorted(cuts))))
    assert torch.equal(whole[0], blocks[0]) and torch.equal(whole[1], blocks[1])


def test_asking_changes_nothing_and_silence_has_a_norm() -> None:
    conv, norm = parts()
    sums = WindowSums()
    sums.add(WAV[:4000])
    sums.affine(conv.weight, norm.weight, norm.bias, norm.eps)
    sums.add(WAV[4000:])
    found = sums.affine(conv.weight, norm.weight, norm.bias, norm.eps)
    assert torch.equal(found[0], affine(conv, norm, [WAV])[0])
    scale, shift = affine(conv, norm, [torch.full((4000,), 0.25)])
    torch.testing.assert_close(scale, norm.weight / norm.eps**0.5, rtol=1e-6, atol=0)
    assert torch.isfinite(shift).all()


def test_too_short_is_an_error() -> None:
    conv, norm = parts()
    with pytest.raises(ValueError, match="9 samples has no window of 10"):
        affine(conv, norm, [WAV[:9]])

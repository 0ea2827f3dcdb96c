"""Weights of an encoder: their hash, rounding to what float16 holds, and writing them in half the bytes if exact."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over name, shape and float32 bytes of every tensor: the same however the numbers are stored."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def round_to_half(weights: Mapping[str, Tensor], source: str) -> None:
    """Round floating-point tensors, in place, to float16's numbers; ValueError names a tensor beyond its range."""
    rounded = {name: tensor.half() for name, tensor in weights.items() if tensor.is_floating_point()}
    for name, half in rounded.items():
        if not half.isfinite().all():
            peak, most = float(weights[name].abs().max()), torch.finfo(torch.float16).max
            raise ValueError(
                f"{source}: {name} reaches {peak:g}, but float16 ends at {most:g}; leave half (--half) out to keep "
                "the weights in float32"
            )
    for name, half in rounded.items():
        weights[name].copy_(half)


def smallest(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; the float32 ones as float16 where all of them hold nothing but float16's numbers."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    halves = {name: tensor.half() for name, tensor in plain.items() if tensor.dtype == torch.float32}
    exact = all(torch.equal(half.float(), plain[name]) for name, half in halves.items())
    return {**plain, **halves} if exact else plain


def write_weights(weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write the tensors as safetensors that transformers reads, in float16 where that is exact."""
    # Bytes first: save_file makes a file that only its owner may read.
    Path(path).write_bytes(serialize(smallest(weights), metadata={"format": "pt"}))

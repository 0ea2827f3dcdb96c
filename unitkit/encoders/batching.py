"""Length buckets for padded batches, and how large a batch the memory takes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CPU_FRAMES = 3000  # on a CPU a batch takes no more memory than one window of a long recording


def buckets(lengths: Sequence[int], max_frames: int) -> Iterator[list[int]]:
    """Indices in batches of like length: rows times the longest are `max_frames` at most, unless one row is longer."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):  # the longest of a batch comes last
        if batch and (len(batch) + 1) * lengths[index] > max_frames:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded_rows(rows: Sequence[Tensor]) -> Tensor:
    """Tensors (length, ...) with zeros after them: (batch, longest, ...)."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def frames_that_fit(config: Any, device: torch.device, longest: int) -> int:
    """Padded frames of one batch whose longest row has `longest`.

    On CUDA half of the free memory (what torch holds and does not use is free) over the bytes of a frame; elsewhere
    CPU_FRAMES.
    """
    if device.type != "cuda":
        return CPU_FRAMES
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free / 2 / bytes_per_frame(config, longest))


def bytes_per_frame(config: Any, longest: int) -> int:
    """Memory of a frame at the widest point of the model, in float32.

    Convolutions: three tensors (in, out, activation) after the first one, which has hop / stride of them per frame.
    Layers: eight hidden states and two of the feed-forward. Attention: six tensors of scores, heads × longest, counted
    in full although flash kernels never write them, because those with a position bias do.
    """
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or config.encoder_ffn_dim
    heads = config.num_attention_heads
    front = 0
    if strides := getattr(config, "conv_stride", None):
        per_frame = 1
        for stride in strides[1:]:
            per_frame *= stride
        front = 3 * per_frame * config.conv_dim[0]
    return 4 * max(front, 8 * hidden + 2 * inner + 6 * heads * longest)

"""Frames for k-means out of a stream of any length, in bounded memory."""

from collections.abc import Iterable

import numpy as np

from unitkit.quantizers.errors import QuantizerError
from unitkit.quantizers.lloyd import projected_dim, subset_size

SCRATCH = 100_000_000  # bytes: chunks of every pass, the sample that the principal components come from
MAX_FRAMES = 1_000_000  # 5.6 hours at 50 Hz; more takes time and changes little


def sample_frames(chunks: Iterable[np.ndarray], max_frames: int, *, seed: int) -> np.ndarray:
    """A uniform sample of at most `max_frames` rows of a stream of (n, dim) chunks, in max_frames × dim × 4 bytes.

    Reservoir sampling: memory does not grow with the stream, and how it is cut into chunks changes nothing.
    """
    if max_frames < 1:
        raise QuantizerError(f"max_frames must be at least 1, not {max_frames}")
    rng, seen, sample = np.random.default_rng(seed), 0, np.empty((0, 0), np.float32)
    for chunk in chunks:
        if chunk.ndim != 2 or (seen and chunk.shape[1] != sample.shape[1]):
            raise QuantizerError(f"chunks must all be (n, dim); one is {chunk.shape} after dim {sample.shape[1]}")
        if not len(chunk):
            continue
        if not seen:
            sample = np.empty((max_frames, chunk.shape[1]), np.float32)  # pages are taken as they are filled
        free = min(max(max_frames - seen, 0), len(chunk))
        sample[seen : seen + free] = chunk[:free]
        rest = np.arange(seen + free, seen + len(chunk))
        slots = (rng.random(len(rest)) * (rest + 1)).astype(np.int64)
        kept = slots < max_frames
        sample[slots[kept]] = chunk[free:][kept]  # of equal slots the last one wins, as if one by one
        seen += len(chunk)
    if not seen:
        raise QuantizerError("no frames to sample from")
    return sample[: min(seen, max_frames)]


def frames_for_memory(dim: int, gigabytes: float, *, units: int) -> int:
    """How many frames of `dim` can be sampled and fitted (`overwrite=True`) in `gigabytes` (10⁹ bytes).

    At most MAX_FRAMES.  Counted are the sample, its projection, the subset that the search works on and scratch; what
    the process holds besides is not.  Raises if not even one frame a unit would fit.
    """
    coarse, searched, free = projected_dim(dim, units), subset_size(units), gigabytes * 1e9 - SCRATCH
    per_frame = 4 * dim + 4 * coarse * (coarse < dim) + 64
    frames = int(free / (per_frame + 4 * coarse))
    if frames > searched:
        frames = int((free - 4 * coarse * searched) / per_frame)
    if frames < units:
        raise QuantizerError(
            f"{gigabytes:.2f} GB hold {max(frames, 0)} frames of {dim} numbers, and {units} units need one frame each: "
            f"allow more memory, or say max_frames"
        )
    return min(frames, MAX_FRAMES)

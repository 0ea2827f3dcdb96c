"""Recordings as streams of blocks: cut anew at fixed places, sliced into windows, with running moments.

Everything downstream sees the same chunks however a recording was cut into blocks, so its features are the same bits.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

CHUNK_SAMPLES = 1 << 16  # samples handled at a time, counted from the start of the recording


def chunks(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of the blocks in chunks of exactly `size`; the last may be shorter, none is empty."""
    held: list[Tensor] = []
    n_held = 0
    for block in blocks:
        for part in block.split(size):
            held.append(part)
            n_held += len(part)
            if n_held >= size:
                whole = torch.cat(held)
                yield whole[:size]
                held, n_held = [whole[size:]], n_held - size
    if n_held:
        yield torch.cat(held)


def slices(blocks: Iterable[Tensor], spans: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Rows start .. stop of a stream for each span, whose starts never fall; a span is cut where the stream ends.

    Holds one span and a block. Spans may go on without end: stop asking when a slice comes out too short.
    """
    source = iter(blocks)
    held: list[Tensor] = []
    first = end = 0  # rows of the stream held: first .. end
    for start, stop in spans:
        while end < stop and (block := next(source, None)) is not None:
            held.append(block)
            end += len(block)
            while len(held) > 1 and first + len(held[0]) <= start:
                first += len(held.pop(0))
        while len(held) > 1 and first + len(held[0]) <= start:
            first += len(held.pop(0))
        rows = torch.cat(held) if held else torch.zeros(0)
        yield rows[max(0, start - first) : max(0, stop - first)]


def with_context(blocks: Iterable[Tensor], context: int) -> Iterator[tuple[Tensor, int, int]]:
    """(rows, first, stop): rows first .. stop are the next of the stream, with `context` rows of it on either side.

    There are fewer only where the stream begins and ends.
    """
    held: Tensor | None = None
    first = 0
    for block in blocks:
        held = block if held is None else torch.cat([held, block])
        stop = len(held) - context
        if stop > first:
            yield held, first, stop
            dropped = max(0, stop - context)
            held, first = held[dropped:], stop - dropped
    if held is not None and first < len(held):
        yield held, first, len(held)


def padded(samples: Iterable[Tensor], pad: int) -> Iterator[Tensor]:
    """The stream between `pad` zeros on either side."""
    if not pad:
        yield from samples
        return
    zeros = None
    for block in samples:
        if zeros is None:
            yield (zeros := block.new_zeros(pad))
        yield block
    if zeros is not None:
        yield zeros


def windows(n_frames: int, window: int, context: int) -> Iterator[tuple[int, int, int]]:
    """(start of the window, first frame kept, end of the frames kept); every window is full where there are several."""
    if n_frames <= window:
        yield 0, 0, n_frames
        return
    step = window - 2 * context
    for kept in range(0, n_frames, step):
        yield min(max(0, kept - context), n_frames - window), kept, min(kept + step, n_frames)


def hop_and_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Hop and receptive field in samples of stacked convolutions."""
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return hop, field


class Moments:
    """Count, mean and variance of the rows of a stream, in float64; the same bits for the same blocks."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.count = 0
        self.mean = self._squares = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, ...), n at least 1."""
        rows = rows.double()
        mean = rows.mean(dim=0)
        squares = ((rows - mean) ** 2).sum(dim=0)
        if not self.count:
            self.count, self.mean, self._squares = len(rows), mean, squares
            return
        count, total = len(rows), self.count + len(rows)
        change = mean - self.mean
        self._squares = self._squares + squares + change**2 * (self.count * count / total)
        self.mean = self.mean + change * (count / total)
        self.count = total

    def variance(self, *, unbiased: bool) -> Tensor:
        """Mean squared distance from the mean, or with n - 1 for n."""
        return self._squares / (self.count - 1 if unbiased else self.count)

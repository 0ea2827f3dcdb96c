"""Dynamic time warping of very many short pairs at once, as ABX needs it: the mean distance along the cheapest path.

Steps are (1,1), (1,0), (0,1), each frame pair on the path costs its distance once, and the sum is divided by the number
of pairs on the path.  Where two ways cost the same, the path keeps to fastabx's order, seen from the end: diagonal,
then along the second sequence, then along the first.  That matters for 0/1 distances, where such ties are common.

Pairs of one shape walk their anti-diagonals together, a step being a handful of tensor operations: 0.4 million pairs of
up to 12 frames a second on one core, without a compiler, and the same on a GPU.  Costs are float32, as in fastabx.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 15  # cells (pairs x frames of the first sequence) that walk together


class Pairs(NamedTuple):
    """Pairs to align: where each one's distance table starts in a flat tensor, its row stride, rows and columns."""

    offsets: Tensor
    strides: Tensor
    rows: Tensor
    columns: Tensor


def dtw(distances: Tensor, pairs: Pairs) -> Tensor:
    """(pairs,) mean distance along each pair's path; frame pair (i, j) is at distances[offset + i * stride + j]."""
    if len(pairs.offsets) == 0:
        return distances.new_empty(0)
    if int(pairs.rows.min()) < 1 or int(pairs.columns.min()) < 1:
        raise ValueError("cannot align sequences of 0 frames: both need at least one")
    found = distances.new_empty(len(pairs.offsets))
    shapes, kinds = torch.stack([pairs.rows, pairs.columns], dim=1).unique(dim=0, return_inverse=True)
    groups = torch.argsort(kinds, stable=True).split(torch.bincount(kinds).tolist())
    for (height, width), group in zip(shapes.tolist(), groups, strict=True):
        for some in group.split(max(1, CHUNK // height)):
            found[some] = _walk(distances, pairs.offsets[some], pairs.strides[some], height, width)
    return found


def _walk(distances: Tensor, offsets: Tensor, strides: Tensor, height: int, width: int) -> Tensor:
    """Pairs of one shape: cost and length of the best path to every cell, one anti-diagonal i + j = step at a time."""
    i = torch.arange(height, device=distances.device)[:, None]
    places = offsets + i * (strides - 1)  # (height, pairs); + step gives the place of (i, step - i)
    # Row i + 1 of a table belongs to frame i; row 0 and what lies off the band are walls.
    cost, length = (distances.new_full((3, height + 1, len(offsets)), wall) for wall in (torch.inf, 0.0))
    cost[0, 1], length[0, 1] = distances[places[0]], 1.0
    for step in range(1, height + width - 1):
        here, last, before = step % 3, (step - 1) % 3, (step - 2) % 3
        low, high = max(0, step - width + 1), min(height, step + 1)
        if low:  # row `low - 1` left the table: its stale cost, three steps old, becomes wall
            cost[here, low] = torch.inf
        diagonal, left, up = cost[before, low:high], cost[last, low + 1 : high + 1], cost[last, low:high]
        sideways = left <= up
        best = torch.where(sideways, left, up)
        steps = torch.where(sideways, length[last, low + 1 : high + 1], length[last, low:high])
        straight = diagonal <= best
        local = distances[step:][places[low:high]]
        torch.add(torch.where(straight, diagonal, best), local, out=cost[here, low + 1 : high + 1])
        torch.add(torch.where(straight, length[before, low:high], steps), 1.0, out=length[here, low + 1 : high + 1])
    end = (height + width - 2) % 3
    return cost[end, height] / length[end, height]

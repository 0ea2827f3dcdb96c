"""Fitting one codebook: k-means‖ and a search on a subset, Lloyd on all frames, first in few dimensions.

Most of the work happens on projections to the leading principal components, where a pass over all frames costs a tenth
of one over the features themselves.  The clusters found there are carried to all dimensions as the means of their
frames, and passes over the whole features finish.  Each phase runs until a pass gains little.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from unitkit.quantizers.products import Affine, lowest, two_lowest
from unitkit.quantizers.seeds import INITS

CELLS = 1 << 20  # rows × max(n_units, dim) of one step of a pass
SEARCH_ROUNDS = 10
COMPONENT_FRAMES = 4000  # frames that the principal components come from
GAIN = 2e-3  # relative gain of inertia below which the passes over all frames end


def subset_size(n_units: int) -> int:
    """Frames that the search works on: 100 a unit, at least 25,600."""
    return max(100 * n_units, 25_600)


def projected_dim(dim: int, n_units: int) -> int:
    """Principal components to work on first: 16 more for each doubling of the units; all of `dim` if it has few."""
    few = 16 * max((n_units - 1).bit_length() - 3, 2)
    return few if dim >= 2 * few else dim


def fitted(
    z: Tensor, n_units: int, *, init: str, iterations: int, rng: np.random.Generator, where: torch.device
) -> Tensor:
    """Centroids (n_units, dim) for `z` (rows, dim), on the CPU; some may have no frame where frames are repeated."""
    few = projected_dim(z.shape[1], n_units)
    rough = _projected(z, few, rng, where) if few < z.shape[1] else z
    chosen = np.sort(rng.permutation(len(z))[: subset_size(n_units)])
    subset = rough[torch.from_numpy(chosen)]
    centre = subset.mean(0)
    subset -= centre  # far from zero, float32 scores would lose the differences between distances
    first = torch.from_numpy(INITS[init](subset.numpy(), n_units, rng))
    centroids = _searched(subset.to(where), first.to(where), rng) + centre.to(where)
    del subset
    if few == z.shape[1]:
        return lloyd(z, centroids, iterations).cpu()
    centroids = lloyd(rough, centroids, iterations)
    ids = sweep(rough, centroids, sums=False).ids
    del rough
    means = _Sums(n_units, z.shape[1], where)
    for rows, units in zip(_split(z, n_units), ids.split(_step(z, n_units)), strict=True):
        means.add(rows.to(where), units)
    first = means.centroids(_random_rows(z, n_units, rng).to(where))
    return lloyd(z, first, iterations, before=means.inertia()).cpu()


def lloyd(z: Tensor, centroids: Tensor, iterations: int, *, before: float = float("inf")) -> Tensor:
    """Centroids after at most `iterations` passes over `z` (rows, dim), fewer once assigning anew gains little.

    Inertia is counted here less the mean square of `z`; `before` is what the centroids have on frames assigned earlier.
    """
    some = z[:: max(1, len(z) // 10_000)]  # enough to tell a small gain from a large one
    power = float(torch.linalg.vector_norm(some)) ** 2 / len(some)
    for _ in range(iterations):
        found = sweep(z, centroids)
        centroids = found.means.centroids(centroids)
        inertia = 2 * float(found.scores.mean(dtype=torch.float64))
        if not before - inertia > GAIN * (power + inertia):
            break
        before = found.means.inertia()
    return centroids


def settle(z: Tensor, centroids: Tensor, passes: int) -> Tensor:
    """Centroids after `passes` passes of Lloyd's algorithm over `z` (rows, dim)."""
    for _ in range(passes):
        centroids = sweep(z, centroids).means.centroids(centroids)
    return centroids


@dataclass(frozen=True)
class Sweep:
    """One pass: units, lowest and second lowest scores (rows,), and the sums of the frames of each unit.

    The second lowest take time: unless asked for they are those of no rows.
    """

    ids: Tensor
    scores: Tensor
    seconds: Tensor
    means: "_Sums"


def sweep(z: Tensor, centroids: Tensor, *, sums: bool = True, seconds: bool = False) -> Sweep:
    """Assign all of `z` (rows, dim) up to float32 rounding, where the centroids are."""
    where, assign = centroids.device, Affine.scores(centroids)
    means = _Sums(len(centroids), centroids.shape[1], where)
    # made whole, not listed: small results kept among large scratch would leave the heap full of holes
    found = Sweep(
        torch.empty(len(z), dtype=torch.long, device=where),
        torch.empty(len(z), device=where),
        torch.empty(len(z) if seconds else 0, device=where),
        means,
    )
    step = _step(z, len(centroids))
    for start in range(0, len(z), step):
        rows, part = z[start : start + step].to(where), slice(start, start + step)
        scores = assign(rows)
        if seconds:
            found.scores[part], found.ids[part], found.seconds[part] = two_lowest(scores)
        else:
            found.scores[part], found.ids[part] = lowest(scores)
        if sums:
            means.add(rows, found.ids[part])
    return found


class _Sums:
    """Sums and counts of the frames of each unit, added in one order on every device: no atomic additions."""

    def __init__(self, n_units: int, dim: int, where: torch.device) -> None:
        self.sums = torch.zeros(n_units, dim, device=where)
        self.counts = torch.zeros(n_units, dtype=torch.long, device=where)

    def add(self, rows: Tensor, ids: Tensor) -> None:
        """Add `rows` (n, dim) to the units `ids` (n,)."""
        counts = torch.bincount(ids, minlength=len(self.counts))
        if ids.device.type == "cpu" and len(self.counts) <= 1 << 15:
            order = torch.from_numpy(ids.numpy().astype(np.int16).argsort(kind="stable"))  # radix sort: 10 times faster
        else:
            order = ids.argsort(stable=True)
        self.sums += embedding_bag(order, rows, counts.cumsum(0) - counts, mode="sum")
        self.counts += counts

    def centroids(self, before: Tensor) -> Tensor:
        """The means (n_units, dim); units without frames stay where they were `before`."""
        return torch.where(self.counts[:, None] > 0, self.sums / self.counts.clamp(min=1)[:, None], before)

    def inertia(self) -> float:
        """Mean squared distance of the frames to the means, less their mean square."""
        squares = self.sums.double().square().sum(1) / self.counts.clamp(min=1)
        return -float(squares.sum() / self.counts.sum())


def _searched(z: Tensor, centroids: Tensor, rng: np.random.Generator) -> Tensor:
    """Better centroids (n_units, dim): add some in the worst cells, settle, take the most dispensable ones away.

    Lloyd alone stays where its start put it: two centroids in one cluster never part.  A round (after "breathing
    k-means", Fritzke 2020) is kept only if it lowers the inertia; else the next one moves half as many.
    """
    squares = z.square().sum(1).cpu().numpy()
    centroids = settle(z, centroids, 4)
    best = sweep(z, centroids)
    batch = start = max(1, len(centroids) // 3)
    for _ in range(SEARCH_ROUNDS):
        fresh = z[_far_frames(best, squares, batch, rng)]
        if not len(fresh):
            break
        moved = settle(z, torch.cat([best.means.centroids(centroids), fresh]), 2)
        found = sweep(z, moved, seconds=True)
        moved = settle(z, _without(found.means.centroids(moved), found, len(fresh)), 1)
        found = sweep(z, moved)
        if found.scores.mean(dtype=torch.float64) < best.scores.mean(dtype=torch.float64):
            best, centroids = found, moved
        else:
            batch = batch // 2 if batch > 1 else max(1, start // 2)
    return centroids


def _far_frames(found: Sweep, squares: np.ndarray, batch: int, rng: np.random.Generator) -> Tensor:
    """A frame out of each of the `batch` cells of largest error, drawn in proportion to its error."""
    units, n_units = found.ids.cpu().numpy(), len(found.means.counts)
    errors = np.maximum(squares + 2 * found.scores.cpu().numpy(), 0)
    worst = np.argsort(-np.bincount(units, errors, minlength=n_units), kind="stable")[:batch]
    by_unit = np.argsort(units, kind="stable")
    ends = np.cumsum(np.bincount(units, minlength=n_units))
    frames = []
    for unit in worst:
        members = by_unit[ends[unit - 1] if unit else 0 : ends[unit]]
        cumulated = np.cumsum(errors[members])
        if len(members) and cumulated[-1] > 0:
            drawn = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
            frames.append(members[min(drawn, len(members) - 1)])
    return torch.from_numpy(np.array(frames, np.int64)).to(found.ids.device)


def _without(centroids: Tensor, found: Sweep, n: int) -> Tensor:
    """`centroids` less the `n` whose frames lose least by going to their second nearest.

    A centroid next to one that goes stays, as long as others can go: it takes over the frames.
    """
    losses = (found.seconds - found.scores).cpu().numpy()
    losses = np.bincount(found.ids.cpu().numpy(), losses, minlength=len(centroids))
    between = torch.cdist(centroids, centroids).fill_diagonal_(torch.inf)
    neighbour, stays, gone = between.argmin(1).tolist(), set[int](), list[int]()
    order = np.argsort(losses, kind="stable").tolist()
    for unit in order:
        if len(gone) < n and unit not in stays:
            gone.append(unit)
            stays.add(neighbour[unit])
    gone += [unit for unit in order if unit not in gone][: n - len(gone)]
    kept = np.setdiff1d(np.arange(len(centroids)), gone)
    return centroids[torch.from_numpy(kept).to(centroids.device)]


def _projected(z: Tensor, few: int, rng: np.random.Generator, where: torch.device) -> Tensor:
    """`z` (rows, dim) on its `few` leading principal components (rows, few), on the CPU."""
    sample = z[torch.from_numpy(np.sort(rng.permutation(len(z))[:COMPONENT_FRAMES]))]
    mean = sample.mean(0)
    sample -= mean
    axes = torch.linalg.eigh(sample.T @ sample)[1][:, -few:].T.contiguous()
    project = Affine(axes.to(where), -(axes @ mean).to(where))
    out = torch.empty(len(z), few)
    for rows, into in zip(_split(z, few), _split(out, z.shape[1]), strict=True):
        into.copy_(project(rows.to(where)))
    return out


def _random_rows(z: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    return z[torch.from_numpy(rng.choice(len(z), n, replace=False))]


def _step(z: Tensor, n_units: int) -> int:
    return max(1, CELLS // max(n_units, z.shape[1]))


def _split(z: Tensor, n_units: int) -> tuple[Tensor, ...]:
    return z.split(_step(z, n_units))

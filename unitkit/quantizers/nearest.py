"""Exact nearest centroids: one float32 product screens, float64 settles what its rounding error cannot rule out.

The unit of a frame x is the lowest index j of least D_j, where z = (x - mean) / std in float32 and D_j is the float64
sum of (z - c_j)² in one fixed order.  Nothing else decides: batch, chunk, device and the screen below change nothing.

The screen computes s_j = h_j - x·w_j with w_j = c_j / std and h_j = |c_j|²/2 + mean·w_j, so that standardising costs no
pass over the data.  In exact arithmetic s_j = (|z - c_j|² - |z|²) / 2.  How far the computed s_j can be from
t_j = |c_j|²/2 - z·c_j, with u = 2⁻²⁴, n dimensions, R = max |w_j|, H = max |h_j|:

1. rounding z: each z_i is off by at most 2.01u |x_i - mean_i| / std_i, so z·c_j by 2.01u Σ (|x_i| + |mean_i|) |w_ji|,
   which is at most 2.01u (|x| + |mean|) R by Cauchy-Schwarz;
2. rounding w_j to float32: u |x| R;  rounding h_j: u H;
3. the dot product, in whatever order or blocks it is summed, fused or not: n·u |x| R / (1 - n·u);
4. the last addition, and adding the slack to the lowest score: 2u (|x| R + H) each;
5. what underflows: at most n numbers below 2⁻¹²⁶, each times |x|, a centroid's length, or 1.

Together less than E = u ((n + 12) |x| R + 4 |mean| R + 6 H) + n·10⁻³⁶ (1 + |x| + C), C = max |c_j|, plus the error of
the float64 distances themselves, 2⁻⁵³ (n + 8) (|z| + C)².  If s_j > s_best + 2E, then D_j > D_best: not j.
E is multiplied by 1.01 for the terms of second order (n < 100,000) and is infinite where the product could overflow.
With a float64 product, u is 2⁻⁵³ everywhere but in 1: that leaves 2⁻²² (|x| + |mean|) R in place of most of E.
A frame whose second lowest score is above that line is decided; the others are settled in float64 among the centroids
below it.  Where folding would make E loose (features far from zero or of very different scales), x is standardised
first and the same holds with mean 0 and std 1.
"""

import math

import torch
from torch import Tensor

from unitkit.quantizers.errors import QuantizerError
from unitkit.quantizers.products import Affine, two_lowest

CELLS_PER_CHUNK = 1 << 20  # rows × max(n_units, dim) handled at once: some 20 MB of scratch
LOOSE = 4.0  # folding is given up where it makes the error bound this many times larger


class Nearest:
    """Nearest of `centroids` (n_units, dim) for rows (x - mean) / std; holds every constant that the rows share.

    With `folded` False the rows given are standardised already.  `mean` and `std` (dim,) are needed all the same, to
    tell what a change of the features can do.
    """

    def __init__(self, centroids: Tensor, mean: Tensor, std: Tensor, *, folded: bool) -> None:
        self.centroids, self.mean, self.std, self.folded = centroids, mean, std, folded
        self.weights = centroids.double() / std.double()  # of features, whether or not they are used to screen
        used = self.weights if folded else centroids.double()
        shift = mean.double() if folded else torch.zeros_like(mean, dtype=torch.float64)
        self._half = centroids.double().square().sum(1) / 2 + used @ shift
        self._used, self._screens = used, dict[torch.dtype, Affine]()
        self._spread: Tensor | None = None
        self.reach, self.weight_reach = _longest(centroids), _longest(self.weights)
        used_reach, offset = _longest(used), float(self._half.abs().max())
        self._n, self._shift = centroids.shape[1], float(torch.linalg.vector_norm(shift))
        tiny = self._n * 1e-36
        standard = 2.0**-22 * used_reach  # rounding of standardised numbers, whatever the product is computed in
        self._slope, self._base = dict[torch.dtype, float](), dict[torch.dtype, float]()
        for kind, u, extra in ((torch.float32, 2.0**-24, 0.0), (torch.float64, 2.0**-53, standard)):
            self._slope[kind] = u * (self._n + 12) * used_reach + extra + tiny
            self._base[kind] = (4 * u * used_reach + extra) * self._shift + 6 * u * offset + tiny * (1 + self.reach)
        self._overflows = (1e37 - offset) / max(used_reach, 1e-300)
        self._finest = float(std.min())

    def __call__(self, x: Tensor) -> Tensor:
        """Units (rows,) of x (rows, dim); NaN and infinity are refused."""
        # float32 products may have been told to round to TF32 or bfloat16: then, and on GPUs always, float64
        single = x.device.type == "cpu" and torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")
        scores, lengths = self._screened(x, torch.float32 if single else torch.float64)
        best, nearest, second = two_lowest(scores)
        limit = best + (2 * self._error(lengths, scores.dtype)).to(scores.dtype)
        # "not greater" rather than "less": rows that overflowed to NaN in the screening count as undecided
        rows = (~(second > limit)).nonzero()[:, 0]
        if len(rows):
            z = standardized(x[rows], self.mean, self.std) if self.folded else x[rows]
            nearest[rows] = settled(z, self.centroids, ~(scores[rows] > limit[rows, None]))
        return nearest

    def undecided(self, x: Tensor, change: Tensor, rounding: Tensor) -> Tensor:
        """Rows (rows,) whose unit another row could have, made of features that differ by at most `change` (rows,).

        `change` is a Euclidean length in features before standardisation; `rounding` (rows,) bounds how much more than
        that the standardised numbers of the other row may move a score.  Moving features by d moves s_j - s_best by
        d·(w_best - w_j), at most |d| |w_best - w_j|: frames stay where every s_j is higher by more than that.
        """
        kind = torch.float64  # whatever the change, a float32 product would leave one frame in some hundred undecided
        scores, lengths = self._screened(x, kind)
        best, nearest, _ = two_lowest(scores)
        moved = change if self.folded else change / self._finest
        error = 2 * self._error(lengths, kind) + 2 * self._error(lengths + moved, kind) + rounding
        if self._spread is None:
            self._spread = _spread(self.weights)
        needed = change[:, None] * self._spread[nearest] + error[:, None]
        safe = scores.double() - best.double()[:, None] > needed
        return safe.scatter_(1, nearest[:, None], True).all(1).logical_not_()

    def _screened(self, x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scores (rows, n_units) in `kind` and upper bounds of the lengths (rows,) of x, in float64."""
        if kind not in self._screens:
            self._screens[kind] = Affine(-self._used.to(kind), self._half.to(kind))
        lengths = torch.linalg.vector_norm(x, dim=1).double()
        if not lengths.sum().isfinite() and not x.isfinite().all():
            raise QuantizerError("features hold NaN, infinity or numbers too large to compare")
        # squares below float32's range are lost from the norm: each row is at most n · 2⁻⁶² longer
        return self._screens[kind](x.to(kind)), lengths * 1.01 + x.shape[1] * 2.0**-62

    def _error(self, lengths: Tensor, kind: torch.dtype) -> Tensor:
        """E of the module's docstring (rows,) for a product in `kind`, for rows that are at most `lengths` long."""
        farthest = lengths.add(self._shift).div_(self._finest) if self.folded else lengths
        error = (farthest + self.reach).square_().mul_(2.0**-53 * (self._n + 8))
        error.add_(lengths, alpha=self._slope[kind]).add_(self._base[kind]).mul_(1.01)
        return error.masked_fill_(lengths >= self._overflows, math.inf)


def foldable(centroids: Tensor, mean: Tensor, std: Tensor) -> bool:
    """Whether the screen may work on features as they come: in range, and its bound not much looser for it."""
    if not 1e-9 < float(std.min()) <= float(std.max()) < 1e9 or not float(mean.abs().max()) < 1e9:
        return False
    typical = math.sqrt(float((mean.double().square() + std.double().square()).sum()))
    loose = typical * _longest(centroids.double() / std.double())
    return loose <= LOOSE * math.sqrt(len(std)) * _longest(centroids)


def standardized(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(features - mean) / std, in a new tensor."""
    z = features - mean
    z /= std  # element by element in float32: the same numbers on every device and in every batch
    return z


def settled(z: Tensor, centroids: Tensor, candidates: Tensor) -> Tensor:
    """The nearest candidate (rows,) by float64 distances; `candidates` is a mask (rows, n_units)."""
    row, unit = candidates.nonzero(as_tuple=True)
    pieces = max(1, CELLS_PER_CHUNK // z.shape[1])
    pairs = zip(row.split(pieces), unit.split(pieces), strict=True)
    found = torch.cat([distances(z[r], centroids[u]) for r, u in pairs])
    shortest = torch.full((len(z),), math.inf, dtype=torch.float64, device=z.device)
    shortest.scatter_reduce_(0, row, found, "amin")
    lowest = torch.full((len(z),), len(centroids), device=z.device)
    tied = found == shortest[row]
    return lowest.scatter_reduce_(0, row[tied], unit[tied], "amin")


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (rows,) of rows of `a` and `b`, in float64, added pairwise in an order that never changes."""
    terms = a.double().sub_(b.double()).square_() if a.dtype != torch.float64 else (a - b).square_()
    while (dim := terms.shape[1]) > 1:
        half = dim // 2
        folded = terms[:, :half].add_(terms[:, half : 2 * half])
        terms = torch.cat([folded, terms[:, 2 * half :]], dim=1) if dim % 2 else folded
    return terms[:, 0]


def _longest(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows.double(), dim=1).max())


def _spread(weights: Tensor) -> Tensor:
    """Upper bounds (n_units, n_units) of the distances between rows of `weights` (n_units, dim)."""
    squares = weights.square().sum(1)
    between = (squares[:, None] + squares - 2 * weights @ weights.T).clamp_(min=0).sqrt_()
    return between + 1e-5 * squares.max().sqrt()  # cancelling leaves at most √(4 (n + 4) 2⁻⁵³), less than 10⁻⁵

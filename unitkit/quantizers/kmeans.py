"""The k-means quantizer: fitted centroids, exact units of features, and which units a small change could turn."""

import time
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

import unitkit.quantizers.lloyd as lloyd
import unitkit.quantizers.nearest as nearest
from unitkit.quantizers.errors import QuantizerError
from unitkit.quantizers.nearest import Nearest, foldable, standardized
from unitkit.quantizers.repair import repaired, summary
from unitkit.quantizers.seeds import INITS

KINDS = ("plain", "residual", "product")
MOMENT_ROWS = 256  # rows of one step of mean and variance: they stay in the cache, and float32 adds up few numbers


class KMeans:
    """Units by nearest centroid.

    Features are standardised per dimension, (x - mean) / std, then compared with `centroids`, (codebooks, n_units,
    dim).  `residual`: each codebook quantizes what the ones before left over.  `product`: each codebook has its own
    equal part of the dimensions, and centroids are (codebooks, n_units, dim / codebooks).
    """

    def __init__(self, centroids: Tensor, mean: Tensor, std: Tensor, *, kind: str = "plain") -> None:
        self.centroids, self.mean, self.std, self.kind = centroids.float(), mean.float(), std.float(), kind
        self.codebooks, self.n_units, part = centroids.shape
        self.dim = len(mean)
        self.report: dict[str, Any] = {}
        self._stages: list[Nearest] = []
        self._made_of: list[tuple[int, int]] = []
        self._as_is = False  # whether standardising changes nothing
        check_layout(kind, self.codebooks, self.dim)
        if part * (self.codebooks if kind == "product" else 1) != self.dim:
            raise QuantizerError(f"centroids of {part} dimensions do not fit {self.dim}-dimensional features ({kind})")

    @classmethod
    def fit(
        cls,
        frames: np.ndarray | Tensor,
        n_units: int,
        *,
        codebooks: int = 1,
        kind: str = "plain",
        standardize: bool = True,
        init: str = "k-means||",
        iterations: int = 25,
        seed: int = 0,
        device: str = "auto",
        overwrite: bool = False,
    ) -> Self:
        """Fit to `frames` (n, dim); all of them are used.  With `overwrite` no copy of float32 frames is made.

        They are then standardised where they lie: the caller's array holds other numbers afterwards.  At most
        `iterations` passes are made in each phase (see `lloyd`), fewer once they gain little.  The same frames and seed
        give the same centroids bit for bit on one machine with one number of threads (`OMP_NUM_THREADS`, left as it
        is).  A cluster that no frame falls in is moved to the frames with the largest error, so that every unit is
        used; `report` says how many were.
        """
        given = frames
        frames = np.ascontiguousarray(frames, np.float32)
        if frames.ndim != 2 or not len(frames):
            raise QuantizerError(f"frames must be (n, dim), at least one; these are {frames.shape}")
        if not 1 <= n_units <= len(frames):
            raise QuantizerError(f"{n_units} units cannot be fitted to {len(frames)} frames: give more data")
        if init not in INITS:
            raise QuantizerError(f"unknown init {init!r}; known: {', '.join(INITS)}")
        check_layout(kind, codebooks, frames.shape[1])
        started, where = time.monotonic(), _where(device)
        mean, variance = _moments(torch.from_numpy(frames))
        std = _usable_std(mean, variance) if standardize else torch.ones(len(mean))
        mean = mean.float() if standardize else torch.zeros(len(mean))
        z = torch.from_numpy(frames)
        if (standardize or kind == "residual") and not overwrite and np.may_share_memory(frames, np.asarray(given)):
            z = z.clone()
        for rows in z.split(MOMENT_ROWS) if standardize else ():
            rows -= mean
            rows /= std
        part, books, report = frames.shape[1] // codebooks, [], []
        for book in range(codebooks):
            data = z[:, book * part : (book + 1) * part].contiguous() if kind == "product" else z
            rng = np.random.default_rng([seed, book])
            found = lloyd.fitted(data, n_units, init=init, iterations=iterations, rng=rng, where=where)
            centroids, ids, row = repaired(data, found, where, book)
            if kind == "residual":
                for rows, units in zip(z.split(MOMENT_ROWS), ids.split(MOMENT_ROWS), strict=True):
                    rows -= centroids[units]
            books.append(centroids)
            report.append(row)
        model = cls(torch.stack(books), mean, std, kind=kind)
        model.report = {
            "frames": len(frames),
            "dim": len(mean),
            "variance_per_frame": float((variance / std.double().square()).sum()),
            **summary(report, kind, n_units),
            "init": init,
            "iterations": iterations,
            "seed": seed,
            "backend": f"torch on {where}",
            "seconds": round(time.monotonic() - started, 3),
            "per_codebook": report,
        }
        return model

    @classmethod
    def of_codebooks(cls, books: Tensor) -> Self:
        """Learned codebooks (codebooks, n_units, dim), each for its own part of the features, taken as they are."""
        zeros = torch.zeros(books.shape[0] * books.shape[2], device=books.device)
        return cls(books, zeros, torch.ones_like(zeros), kind="product")

    @property
    def device(self) -> torch.device:
        """Where the centroids are."""
        return self.centroids.device

    def to(self, device: str | torch.device) -> Self:
        """Move to `device`; what has no float64 (Apple's GPUs) is served from the CPU."""
        device = "cpu" if torch.device(device).type == "mps" else device
        self.centroids, self.mean, self.std = (t.to(device) for t in (self.centroids, self.mean, self.std))
        return self

    @torch.no_grad()
    def assign(self, features: Tensor | np.ndarray) -> Tensor:
        """Exact nearest centroids of `features` (frames, dim): (frames,), or (frames, codebooks) if more than one.

        Ties go to the lowest index.  A frame's unit depends on nothing but the frame.
        """
        ids = torch.cat([self._assign_chunk(chunk) for chunk in self._chunks(features)])
        return ids[:, 0] if self.codebooks == 1 else ids

    @torch.no_grad()
    def undecided(self, features: Tensor | np.ndarray, *, relative: float) -> Tensor:
        """Frames (frames,) of `features` (frames, dim) that could have another unit were the features a little off.

        False is a promise: every x' with |x' - x| <= `relative` |x| (Euclidean, before standardisation) has the units
        of x, all codebooks of it.  True promises nothing.
        """
        if not relative >= 0:
            raise QuantizerError(f"relative must be at least 0, not {relative}")
        return torch.cat([self._undecided_chunk(chunk, relative) for chunk in self._chunks(features)])

    def _chunks(self, features: Tensor | np.ndarray) -> tuple[Tensor, ...]:
        features = torch.as_tensor(features).to(self.device, torch.float32)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise QuantizerError(f"features must be (frames, {self.dim}), not {tuple(features.shape)}")
        return features.split(max(1, nearest.CELLS_PER_CHUNK // max(self.n_units, self.dim)))

    def _nearest(self) -> list[Nearest]:
        """One screen a codebook, made when first needed and again if the tensors were changed."""
        made_of = [(id(t), t._version) for t in (self.centroids, self.mean, self.std)]
        if made_of != self._made_of:
            parts = self.codebooks if self.kind == "product" else 1
            pairs = list(zip(self.mean.tensor_split(parts), self.std.tensor_split(parts), strict=True))
            pairs = pairs if parts > 1 else pairs * self.codebooks
            fold = self.kind != "residual" and all(
                foldable(c, *pair) for c, pair in zip(self.centroids, pairs, strict=True)
            )
            self._stages = [Nearest(c, *pair, folded=fold) for c, pair in zip(self.centroids, pairs, strict=True)]
            self._as_is = not self.mean.any() and bool((self.std == 1).all())
            self._made_of = made_of
        return self._stages

    def _inputs(self, features: Tensor) -> Tensor:
        """What the screens take: features as they come, or standardised."""
        folded = self._nearest()[0].folded
        return features if folded or self._as_is else standardized(features, self.mean, self.std)

    def _assign_chunk(self, features: Tensor) -> Tensor:
        rest, part = self._inputs(features), self.centroids.shape[2]
        ids = []
        for book, (stage, centroids) in enumerate(zip(self._nearest(), self.centroids, strict=True)):
            product = self.kind == "product"
            ids.append(stage(rest[:, book * part : (book + 1) * part].contiguous() if product else rest))
            if self.kind == "residual":
                rest = rest - centroids[ids[-1]]
        return torch.stack(ids, dim=1)  # (frames, codebooks)

    def _undecided_chunk(self, features: Tensor, relative: float) -> Tensor:
        """A stage is asked only what frames of the same earlier units could do: others are undecided already.

        Rounding of the standardised numbers of both frames moves a score by at most 8.1u (|x| + |change| + |mean|) R;
        each subtraction of a centroid rounds once more, by u of what is left, which is less than |z| + ΣC (+ change).
        """
        rest, part, u = self._inputs(features), self.centroids.shape[2], 2.0**-24
        lengths = 1.01 * torch.linalg.vector_norm(features.double(), dim=1)
        change, left = relative * lengths, 1.01 * torch.linalg.vector_norm(rest.double(), dim=1)
        left += change / float(self.std.min())
        unsure = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        around = lengths + change + float(torch.linalg.vector_norm(self.mean.double()))
        for book, (stage, centroids) in enumerate(zip(self._nearest(), self.centroids, strict=True)):
            rounding = u * (8.1 * around * stage.weight_reach + 4.1 * book * left * stage.reach)
            product = self.kind == "product"
            rows = rest[:, book * part : (book + 1) * part].contiguous() if product else rest
            unsure |= stage.undecided(rows, change, rounding)
            if self.kind == "residual":
                rest = rest - centroids[stage(rows)]
                left = left + stage.reach
        return unsure

    def decode(self, ids: Tensor | np.ndarray) -> Tensor:
        """Features (frames, dim) that units (frames,) or (frames, codebooks) stand for."""
        ids = torch.as_tensor(ids).to(self.device, torch.long).reshape(len(ids), self.codebooks)
        parts = [centroids[column] for centroids, column in zip(self.centroids, ids.T, strict=True)]
        z = torch.cat(parts, dim=1) if self.kind == "product" else torch.stack(parts).sum(0)
        return z * self.std + self.mean

    def settings(self) -> dict[str, Any]:
        """What, beside the tensors of `state`, decides the units."""
        return {
            "type": "kmeans",
            "kind": self.kind,
            "n_units": self.n_units,
            "codebooks": self.codebooks,
            "dim": self.dim,
            "distance": "squared euclidean of standardized features, ties to the lowest unit",
        }

    def state(self) -> dict[str, Tensor]:
        """The tensors, on the CPU: centroids, mean and std."""
        tensors = {"centroids": self.centroids, "mean": self.mean, "std": self.std}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_state(cls, settings: dict[str, Any], state: dict[str, Tensor]) -> Self:
        """The inverse of `settings` and `state`."""
        if settings.get("type") != "kmeans":
            raise QuantizerError(f"unknown quantizer type {settings.get('type')!r}; known: kmeans")
        if missing := {"centroids", "mean", "std"} - set(state):
            raise QuantizerError(f"no tensors called {', '.join(sorted(missing))}")
        return cls(state["centroids"], state["mean"], state["std"], kind=settings["kind"])


def check_layout(kind: str, codebooks: int, dim: int) -> None:
    """Raise QuantizerError for an unknown kind, or one that cannot have so many codebooks of `dim` dimensions."""
    if kind not in KINDS:
        raise QuantizerError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if codebooks < 1 or (kind == "plain" and codebooks > 1):
        raise QuantizerError(f"kind {kind!r} cannot have {codebooks} codebooks; use residual or product for several")
    if kind == "product" and dim % codebooks:
        raise QuantizerError(f"{dim} dimensions cannot be split into {codebooks} equal parts for product k-means")


def _where(device: str) -> torch.device:
    """Where fitting computes: what has no float64 (Apple's GPUs) is served from the CPU."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return torch.device("cpu" if torch.device(name).type == "mps" else name)


def _moments(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (dim,) in float64, without a float64 copy of all frames; NaN and infinity are refused."""
    # accumulated, not listed: small results kept among large scratch would leave the heap full of holes
    mean = torch.zeros(frames.shape[1], dtype=torch.float64)
    for rows in frames.split(MOMENT_ROWS):
        mean += rows.sum(0)
    mean /= len(frames)
    if not mean.isfinite().all():
        raise QuantizerError(f"frames must be without NaN, infinity or numbers too large to add up: {frames.shape}")
    near, squares, scratch = mean.float(), torch.zeros_like(mean), torch.empty(MOMENT_ROWS, frames.shape[1])
    for rows in frames.split(MOMENT_ROWS):
        squares += torch.sub(rows, near, out=scratch[: len(rows)]).square_().sum(0)
    return mean, (squares / len(frames) - (mean - near).square()).clamp(min=0)


def _usable_std(mean: Tensor, variance: Tensor) -> Tensor:
    """Standard deviations, with 1 for a dimension that is constant up to float32 rounding."""
    std = variance.sqrt()
    return torch.where(std > 1e-6 * mean.abs(), std, 1.0).float()

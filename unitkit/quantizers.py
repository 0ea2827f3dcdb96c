"""K-means quantizers: fitted with faiss (or torch), assigned exactly, one class for plain, residual and product.

Exactness: a unit is the argmin of float64 distances summed in one fixed order, whatever the batch, chunk or device.
Assignment first screens all centroids with one matrix product, then recomputes in float64 every centroid that the
product's rounding error (a worst-case bound, not an estimate) could not rule out.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

KINDS = ("plain", "residual", "product")
CELLS_PER_CHUNK = 1 << 19  # rows × max(n_units, dim) handled at once: some 10 MB of scratch
QUICK_REPAIRS = 3  # rounds of dead-cluster repair that are followed by Lloyd iterations

Lloyd = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]  # frames, centroids, iterations, seed -> centroids


class QuantizerError(ValueError):
    """Data or settings from which no quantizer can be made."""


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
        _check_layout(kind, self.codebooks, self.dim)
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
    ) -> Self:
        """Fit to `frames` (n, dim); all of them are used, and one standardised copy of them is held in memory.

        The same frames and seed give the same centroids bit for bit on one machine with one number of threads
        (`OMP_NUM_THREADS`, left as it is).  A cluster that no frame falls in is moved to the frames with the
        largest error, so that every unit is used; `report` says how many were.
        """
        frames = np.ascontiguousarray(frames, np.float32)
        if frames.ndim != 2 or not np.isfinite(frames).all():
            raise QuantizerError(f"frames must be (n, dim) without NaN or infinity; these are {frames.shape}")
        if not 1 <= n_units <= len(frames):
            raise QuantizerError(f"{n_units} units cannot be fitted to {len(frames)} frames: give more data")
        if init not in INITS:
            raise QuantizerError(f"unknown init {init!r}; known: {', '.join(INITS)}")
        _check_layout(kind, codebooks, frames.shape[1])
        started = time.monotonic()
        backend, lloyd, where = _backend(device)
        mean, variance = _moments(frames)
        std = _usable_std(mean, variance) if standardize else torch.ones(len(mean))
        mean = mean.float() if standardize else torch.zeros(len(mean))
        z = _standardized(torch.from_numpy(frames), mean, std)
        part, books, rows = frames.shape[1] // codebooks, [], []
        for book in range(codebooks):
            data = z[:, book * part : (book + 1) * part].contiguous() if kind == "product" else z
            start = INITS[init](data.numpy(), n_units, np.random.default_rng([seed, book]))
            found = torch.from_numpy(lloyd(data.numpy(), start, iterations, seed))
            centroids, ids, row = _repaired(data, found, lambda d, c, n: lloyd(d, c, n, seed), where, book)
            if kind == "residual":
                for rows_of, ids_of in zip(z.split(65536), ids.split(65536), strict=True):
                    rows_of -= centroids[ids_of]
            books.append(centroids)
            rows.append(row)
        model = cls(torch.stack(books), mean, std, kind=kind)
        model.report = {
            "frames": len(frames),
            "dim": len(mean),
            "variance_per_frame": float((variance / std.double().square()).sum()),
            **_summary(rows, kind, n_units),
            "init": init,
            "iterations": iterations,
            "seed": seed,
            "backend": backend,
            "seconds": round(time.monotonic() - started, 3),
            "per_codebook": rows,
        }
        return model

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
        features = torch.as_tensor(features).to(self.device, torch.float32)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise QuantizerError(f"features must be (frames, {self.dim}), not {tuple(features.shape)}")
        rows = max(1, CELLS_PER_CHUNK // max(self.n_units, self.dim))
        ids = torch.cat([self._assign_chunk(chunk) for chunk in features.split(rows)])
        return ids[:, 0] if self.codebooks == 1 else ids

    def _assign_chunk(self, features: Tensor) -> Tensor:
        z, part = _standardized(features, self.mean, self.std), self.centroids.shape[2]
        if not z.sum(dtype=torch.float64).isfinite():  # one pass, and float32 cannot overflow a float64 sum
            raise QuantizerError("features hold NaN, infinity or numbers too large to compare")
        ids = []
        for book, centroids in enumerate(self.centroids):
            data = z[:, book * part : (book + 1) * part] if self.kind == "product" else z
            ids.append(_nearest_chunk(data, centroids))
            if self.kind == "residual":
                z = z - centroids[ids[-1]]
        return torch.stack(ids, dim=1)  # (frames, codebooks)

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


def _check_layout(kind: str, codebooks: int, dim: int) -> None:
    if kind not in KINDS:
        raise QuantizerError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if codebooks < 1 or (kind == "plain" and codebooks > 1):
        raise QuantizerError(f"kind {kind!r} cannot have {codebooks} codebooks; use residual or product for several")
    if kind == "product" and dim % codebooks:
        raise QuantizerError(f"{dim} dimensions cannot be split into {codebooks} equal parts for product k-means")


def _standardized(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    z = features - mean
    z /= std  # element by element in float32: the same numbers on every device and in every batch
    return z


def _moments(frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and variance (dim,) in float64, without a float64 copy of all frames."""
    starts = range(0, len(frames), 65536)
    mean = np.sum([frames[i : i + 65536].sum(0, dtype=np.float64) for i in starts], axis=0) / len(frames)
    squares = [np.square(frames[i : i + 65536] - mean).sum(0) for i in starts]  # float64, as mean is
    return torch.from_numpy(mean), torch.from_numpy(np.sum(squares, axis=0) / len(frames))


def _usable_std(mean: Tensor, variance: Tensor) -> Tensor:
    """Standard deviations, with 1 for a dimension that is constant up to float32 rounding."""
    std = variance.sqrt()
    return torch.where(std > 1e-6 * mean.abs(), std, 1.0).float()


# ---------------------------------------------------------------------------------------------- exact assignment


def _nearest_chunk(z: Tensor, centroids: Tensor) -> Tensor:
    """Index (rows,) of the nearest of `centroids` (n_units, dim) for each row of `z` (rows, dim)."""
    scores, slack = _screened(z, centroids)  # half the squared distance, less |z|²/2
    best, nearest = scores.min(dim=1)
    limit = best + slack
    # "not greater" rather than "less": rows that overflowed to NaN in the screening count as undecided
    undecided = (~(scores > limit[:, None])).sum(dim=1).ne(1).nonzero()[:, 0]
    if len(undecided):
        nearest[undecided] = _settled(z[undecided], centroids, ~(scores[undecided] > limit[undecided, None]))
    return nearest


def _screened(z: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Approximate scores (rows, n_units) and how far (rows,) above the lowest the true nearest can lie at most.

    With unit roundoff u, a dot product of `dim` terms is off by at most ~dim·u·|z|·|c| in whatever order it is summed;
    rounding |c|²/2 and the difference adds a few u·(|c|² + |z||c|).  Twice that covers two scores; the last term covers
    the rounding of the float64 distances themselves, and `tiny` products that underflow.
    """
    # float32 products may have been told to round to TF32 or bfloat16: then, and on GPUs always, float64
    full = z.device.type == "cpu" and torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")
    kind, u, tiny = (torch.float32, 2.0**-24, 1e-36) if full else (torch.float64, 2.0**-53, 1e-290)
    product = z.to(kind) @ centroids.to(kind).T
    half = centroids.double().square().sum(1).div(2).to(kind)
    length = torch.linalg.vector_norm(z, dim=1, dtype=torch.float64)
    reach = torch.linalg.vector_norm(centroids, dim=1, dtype=torch.float64).max()
    dim = z.shape[1]
    error = u * ((dim + 8) * length * reach + 4 * reach**2) + dim * tiny
    error += 2.0**-53 * (dim + 8) * (length + reach) ** 2
    return half - product, (2.02 * error).to(product.dtype) * (1 + 4 * u)


def _settled(z: Tensor, centroids: Tensor, candidates: Tensor) -> Tensor:
    """The nearest candidate (rows,) by float64 distances; `candidates` is a mask (rows, n_units)."""
    row, unit = candidates.nonzero(as_tuple=True)
    pieces = max(1, CELLS_PER_CHUNK // z.shape[1])
    pairs = zip(row.split(pieces), unit.split(pieces), strict=True)
    distances = torch.cat([_distances(z[r], centroids[u]) for r, u in pairs])
    shortest = torch.full((len(z),), math.inf, dtype=torch.float64, device=z.device)
    shortest.scatter_reduce_(0, row, distances, "amin")
    lowest = torch.full((len(z),), len(centroids), device=z.device)
    tied = distances == shortest[row]
    return lowest.scatter_reduce_(0, row[tied], unit[tied], "amin")


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (rows,) of rows of `a` and `b`, in float64, added pairwise in an order that never changes."""
    terms = (a.double() - b.double()).square()
    while (dim := terms.shape[1]) > 1:
        half = dim // 2
        folded = terms[:, :half] + terms[:, half : 2 * half]
        terms = torch.cat([folded, terms[:, 2 * half :]], dim=1)
    return terms[:, 0]


# -------------------------------------------------------------------------------------------------------- fitting


def _random(z: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    return z[rng.choice(len(z), n_units, replace=False)]


def _plus_plus(z: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ on a random subset of at most 20 frames a unit (at least 20,000)."""
    subset = z[rng.permutation(len(z))[: max(20 * n_units, 20_000)]]
    return _seeded_by_distance(subset, np.ones(len(subset)), n_units, rng)


def _parallel(z: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """k-means‖: five rounds that each draw about n_units far frames, then weighted k-means++ on what was drawn.

    Done on a random subset of at most 100 frames a unit (at least 20,000); the Lloyd iterations see all frames.
    """
    subset = z[rng.permutation(len(z))[: max(100 * n_units, 20_000)]]
    drawn = subset[rng.integers(len(subset), size=1)]
    nearest = np.zeros(len(subset), np.int64)
    squares = _rough_squares(subset, drawn)[:, 0]
    for _ in range(5):
        if not (total := squares.sum(dtype=np.float64)):
            break
        fresh = subset[rng.random(len(subset)) < n_units * squares / total]
        if len(fresh):
            index, found = _rough_nearest(subset, fresh)
            nearest = np.where(found < squares, index + len(drawn), nearest)
            squares, drawn = np.minimum(found, squares), np.concatenate([drawn, fresh])
    if len(drawn) < n_units:  # few frames, or few distinct ones: dead clusters are repaired afterwards
        return np.concatenate([drawn, _random(subset, n_units - len(drawn), rng)])
    return _seeded_by_distance(drawn, np.bincount(nearest, minlength=len(drawn)), n_units, rng)


def _seeded_by_distance(z: np.ndarray, weights: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """Weighted k-means++: each next centroid is a frame drawn in proportion to weight × squared distance."""
    norms = np.square(z).sum(1)
    chosen, squares = np.empty(n_units, np.int64), np.ones(len(z))
    for i in range(n_units):
        cumulated = np.cumsum(weights * squares)
        drawn = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
        chosen[i] = one = min(drawn, len(z) - 1)
        fresh = np.maximum(norms - 2 * (z @ z[one]) + norms[one], 0)
        squares = fresh.astype(np.float64) if i == 0 else np.minimum(squares, fresh)
    return z[chosen]


def _rough_squares(z: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances (rows, n_units) up to float32 rounding: good enough to start from."""
    squares = np.square(z).sum(1)[:, None] - 2 * (z @ centroids.T) + np.square(centroids).sum(1)
    return np.maximum(squares, 0, out=squares)


def _rough_nearest(z: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = max(1, CELLS_PER_CHUNK // len(centroids))
    chunks = [_rough_squares(z[i : i + rows], centroids) for i in range(0, len(z), rows)]
    return np.concatenate([c.argmin(1) for c in chunks]), np.concatenate([c.min(1) for c in chunks])


INITS = {"k-means||": _parallel, "k-means++": _plus_plus, "random": _random}


def _backend(device: str) -> tuple[str, Lloyd, torch.device]:
    """Name and function of the Lloyd iterations for `device`, and where exact assignment runs."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    where = torch.device("cpu" if torch.device(name).type == "mps" else name)  # MPS has no float64
    try:
        import faiss
    except ImportError:
        return f"torch on {where}", _torch_lloyd(where), where
    if where.type == "cpu":
        return f"faiss {faiss.__version__}", _faiss_lloyd(gpu=False), where
    if faiss.get_num_gpus() > 0:
        return f"faiss {faiss.__version__} on GPU", _faiss_lloyd(gpu=True), where
    return f"torch on {where}", _torch_lloyd(where), where


def _faiss_lloyd(*, gpu: bool) -> Lloyd:
    import faiss

    def run(z: np.ndarray, centroids: np.ndarray, iterations: int, seed: int) -> np.ndarray:
        n_units, dim = centroids.shape
        # faiss by itself trains on 256 frames a unit only; here it gets all of them
        kmeans = faiss.Kmeans(
            dim,
            n_units,
            niter=iterations,
            seed=seed,
            gpu=gpu,
            min_points_per_centroid=1,
            max_points_per_centroid=len(z),
        )
        kmeans.train(z, init_centroids=np.ascontiguousarray(centroids))
        return np.array(kmeans.centroids)

    return run


def _torch_lloyd(where: torch.device) -> Lloyd:
    def run(z: np.ndarray, centroids: np.ndarray, iterations: int, seed: int) -> np.ndarray:
        data, centres = torch.from_numpy(z), torch.from_numpy(centroids).to(where)
        for _ in range(iterations):
            sums, counts = torch.zeros_like(centres), torch.zeros(len(centres), device=where)
            for chunk in data.split(max(1, CELLS_PER_CHUNK // len(centres))):
                chunk = chunk.to(where)
                scores = centres.square().sum(1) / 2 - chunk @ centres.T
                one_hot = torch.nn.functional.one_hot(scores.argmin(1), len(centres)).to(chunk.dtype)
                sums += one_hot.T @ chunk  # a product, not index_add_, which on GPUs adds in random order
                counts += one_hot.sum(0)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        return centres.cpu().numpy()

    return run


def _repaired(
    z: Tensor,
    centroids: Tensor,
    lloyd: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    where: torch.device,
    book: int,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Centroids that are all used by `z`, the units (rows,) of `z`, and one row of the report.

    A dead cluster moves onto the frame with the largest error, at most one per cell and round.  A centroid that lies
    on a frame keeps at least that frame, so the rounds without Lloyd iterations end after n_units of them.
    """
    reseeded = 0
    for attempt in range(QUICK_REPAIRS + len(centroids) + 1):
        ids, errors = _assigned(z, centroids, where)
        counts = torch.bincount(ids, minlength=len(centroids))
        dead = (counts == 0).nonzero()[:, 0]
        if not len(dead):
            break
        worst = _worst_of_each_cell(ids, errors)[: len(dead)]
        if not len(worst):
            stage = f" in codebook {book + 1}" if book else ""
            raise QuantizerError(
                f"{len(centroids)} units asked for, but only {len(centroids) - len(dead)} distinct frames are there"
                f"{stage}: give more data or fewer units"
            )
        centroids[dead[: len(worst)]] = z[worst]
        reseeded += len(worst)
        if attempt < QUICK_REPAIRS:
            centroids = torch.from_numpy(lloyd(z.numpy(), centroids.numpy(), 3))
    share = counts.double() / len(z)
    used = share[share > 0]
    row = {
        "inertia_per_frame": float(errors.mean()),
        "units_used": len(used),
        "perplexity": float(torch.exp(-(used * used.log()).sum())),
        "min_share": float(share.min()),
        "max_share": float(share.max()),
        "reseeded": reseeded,
    }
    return centroids, ids, row


def _assigned(z: Tensor, centroids: Tensor, where: torch.device) -> tuple[Tensor, Tensor]:
    """Exact units (rows,) and float64 squared errors (rows,) of all frames."""
    ids, errors, there = [], [], centroids.to(where)
    for chunk in z.split(max(1, CELLS_PER_CHUNK // max(centroids.shape))):
        chunk = chunk.to(where)
        nearest = _nearest_chunk(chunk, there)
        ids.append(nearest.cpu())
        errors.append(_distances(chunk, there[nearest]).cpu())
    return torch.cat(ids), torch.cat(errors)


def _worst_of_each_cell(ids: Tensor, errors: Tensor) -> Tensor:
    """The frame of largest error in each cell that has any error, worst cell first."""
    order = errors.argsort(descending=True, stable=True)
    _, first = np.unique(ids[order].numpy(), return_index=True)
    worst = order[torch.from_numpy(np.sort(first))]
    return worst[errors[worst] > 0]


def _summary(rows: list[dict[str, Any]], kind: str, n_units: int) -> dict[str, Any]:
    """Report of all codebooks together: `inertia_per_frame` is the squared error of the whole quantizer."""
    inertia = [row["inertia_per_frame"] for row in rows]
    return {
        "inertia_per_frame": sum(inertia) if kind == "product" else inertia[-1],
        "units_used": sum(row["units_used"] for row in rows),
        "cluster_use": sum(row["units_used"] for row in rows) / (n_units * len(rows)),
        "perplexity": sum(row["perplexity"] for row in rows) / len(rows),
        "min_share": min(row["min_share"] for row in rows),
        "max_share": max(row["max_share"] for row in rows),
        "reseeded": sum(row["reseeded"] for row in rows),
    }

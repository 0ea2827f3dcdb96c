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
CELLS_PER_CHUNK = 1 << 21  # rows × max(n_units, dim) handled at once: some 40 MB of scratch
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
        (`OMP_NUM_THREADS`, which is left as it is).  A cluster that no frame falls in is moved to the frames with the
        largest error, so that every unit is used; `report` says how many were.
        """
        frames = np.ascontiguousarray(frames, np.float32)
        if frames.ndim != 2 or not np.isfinite(frames).all():
            raise QuantizerError(f"frames must be finite and (n, dim), not of shape {frames.shape} with NaN or infinity")
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
                z = z - centroids[ids]
            books.append(centroids)
            rows.append(row)
        model = cls(torch.stack(books), mean, std, kind=kind)
        model.report = {
            "frames": len(frames),
            "dim": len(mean),
            "variance_per_frame": float((variance / std.double().square()).sum()),
            **_summary(rows, kind),
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
        """Move to `device`."""
        self.centroids, self.mean, self.std = (t.to(device) for t in (self.centroids, self.mean, self.std))
        return self

    @torch.inference_mode()
    def assign(self, features: Tensor | np.ndarray) -> Tensor:
        """Exact nearest centroids of `features` (frames, dim): (frames,), or (frames, codebooks) if more than one.

        Ties go to the lowest index.  A frame's unit depends on nothing but the frame.
        """
        features = torch.as_tensor(features).to(self.device, torch.float32)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise QuantizerError(f"features must be (frames, {self.dim}), not {tuple(features.shape)}")
        if not features.isfinite().all():
            raise QuantizerError("features hold NaN or infinity")
        rows = max(1, CELLS_PER_CHUNK // max(self.n_units, self.dim))
        ids = torch.cat([self._assign_chunk(chunk) for chunk in features.split(rows)])
        return ids[:, 0] if self.codebooks == 1 else ids

    def _assign_chunk(self, features: Tensor) -> Tensor:
        z, part = _standardized(features, self.mean, self.std), self.centroids.shape[2]
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
        model = cls(state["centroids"], state["mean"], state["std"], kind=settings["kind"])
        if (found := model.settings()) != settings:
            raise QuantizerError(f"settings {settings} do not fit the tensors, which are {found}")
        return model


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
        if not seen and len(chunk):
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


def _moments(frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and variance (dim,) in float64, without a float64 copy of the frames."""
    blocks = [frames[i : i + 65536].astype(np.float64) for i in range(0, min(len(frames), 65536), 65536)]
    mean = sum(block.sum(0) for block in _blocks(frames)) / len(frames)
    variance = sum(np.square(block - mean).sum(0) for block in _blocks(frames)) / len(frames)
    del blocks
    return torch.from_numpy(mean), torch.from_numpy(variance)

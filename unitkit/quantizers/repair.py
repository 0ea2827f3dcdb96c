"""Every unit is used: dead clusters are moved to the frames with the largest error; and what a report says of a fit."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitkit.quantizers.errors import QuantizerError
from unitkit.quantizers.lloyd import settle
from unitkit.quantizers.nearest import CELLS_PER_CHUNK, Nearest

QUICK_REPAIRS = 3  # rounds of dead-cluster repair that are followed by Lloyd iterations


def repaired(z: Tensor, centroids: Tensor, where: torch.device, book: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
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
            centroids = settle(z, centroids.to(where), 3).cpu()
    share = counts.double() / len(z)
    used = share[share > 0]
    row = {
        "inertia_per_frame": float(errors.mean(dtype=torch.float64)),
        "units_used": len(used),
        "perplexity": float(torch.exp(-(used * used.log()).sum())),
        "min_share": float(share.min()),
        "max_share": float(share.max()),
        "reseeded": reseeded,
    }
    return centroids, ids, row


def _assigned(z: Tensor, centroids: Tensor, where: torch.device) -> tuple[Tensor, Tensor]:
    """Exact units (rows,) and squared errors (rows,) of all frames; an error is zero only on its centroid."""
    ids, errors, there = torch.empty(len(z), dtype=torch.long), torch.empty(len(z)), centroids.to(where)
    plain = torch.zeros(z.shape[1], device=where), torch.ones(z.shape[1], device=where)
    nearest = Nearest(there, *plain, folded=False)
    step = max(1, CELLS_PER_CHUNK // max(centroids.shape))
    for start in range(0, len(z), step):
        chunk, part = z[start : start + step].to(where), slice(start, start + step)
        units = nearest(chunk)
        ids[part] = units
        errors[part] = torch.linalg.vector_norm(chunk - there[units], dim=1).square_()
    return ids, errors


def _worst_of_each_cell(ids: Tensor, errors: Tensor) -> Tensor:
    """The frame of largest error in each cell that has any error, worst cell first."""
    order = errors.argsort(descending=True, stable=True)
    _, first = np.unique(ids[order].numpy(), return_index=True)
    worst = order[torch.from_numpy(np.sort(first))]
    return worst[errors[worst] > 0]


def summary(rows: list[dict[str, Any]], kind: str, n_units: int) -> dict[str, Any]:
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

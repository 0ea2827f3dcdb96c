"""K-means fit: ours beside scikit-learn's MiniBatchKMeans with fairseq's settings, interleaved, one thread.

    python tools/bench/kmeans.py [--frames 50000] [--dim 256] [--units 100] [--seeds 3]

Prints CPU seconds, held-out inertia per frame, and the ratios.  The features are a Zipf mixture with a decaying
spectrum: the shape of SSL features, not their content.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from unitkit.quantizers import KMeans


def features(frames: int, dim: int, *, seed: int) -> np.ndarray:
    """(frames, dim) float32: 1000 prototypes with Zipf weights, noise with a spectrum falling as 1/sqrt(d)."""
    rng = np.random.default_rng(7)
    spectrum = 1 / np.sqrt(1 + np.arange(dim))
    prototypes = rng.standard_normal((1000, dim)) * spectrum * 3
    weights = 1 / (1 + np.arange(1000))
    draw = np.random.default_rng(seed)
    which = draw.choice(1000, size=frames, p=weights / weights.sum())
    return (prototypes[which] + draw.standard_normal((frames, dim)) * spectrum).astype(np.float32)


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid."""
    return float(torch.cdist(torch.from_numpy(x), torch.from_numpy(centroids)).min(1).values.square().mean())


def ours(x: np.ndarray, units: int, seed: int) -> np.ndarray:
    """Centroids by `KMeans.fit`, in the features' own scale."""
    fitted = KMeans.fit(x, units, standardize=False, seed=seed, device="cpu")
    return fitted.decode(torch.arange(units)).numpy()


def peer(x: np.ndarray, units: int, seed: int) -> np.ndarray:
    """Centroids by scikit-learn with the settings of fairseq's learn_kmeans.py."""
    settings = {"batch_size": 10_000, "max_iter": 100, "tol": 0.0, "max_no_improvement": 100, "n_init": 20}
    model = MiniBatchKMeans(units, init="k-means++", reassignment_ratio=0.0, random_state=seed, **settings)
    return model.fit(x).cluster_centers_.astype(np.float32)


def main() -> None:
    """Run both sides in turn and print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 50_000), ("dim", 256), ("units", 100), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, held = features(args.frames, args.dim, seed=1), features(10_000, args.dim, seed=2)
    rows: dict[str, list[tuple[float, float]]] = {"unitkit": [], "scikit-learn": []}
    for seed in range(args.seeds):
        for name, side in (("unitkit", ours), ("scikit-learn", peer)):
            start = time.process_time()
            centroids = side(train, args.units, seed)
            rows[name].append((time.process_time() - start, inertia(held, centroids)))
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in rows.items()
    }
    for name, (seconds, loss) in medians.items():
        print(f"{name:>14}: {seconds:8.2f} CPU s, held-out inertia per frame {loss:.4f}")
    (a, x), (b, y) = medians["unitkit"], medians["scikit-learn"]
    print(f"unitkit takes 1/{b / a:.1f} of the CPU time; inertia {100 * (x / y - 1):+.2f} %")


if __name__ == "__main__":
    main()

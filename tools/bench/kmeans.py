"""K-means fit: ours beside scikit-learn as fairseq sets it, and faiss; same features, one thread, sides in turn.

    python tools/bench/kmeans.py [--quick] [--features FILE.npy]

Held-out inertia per frame says how good the centroids are.  The features are a Zipf mixture of 2000 prototypes with a
decaying spectrum: the shape of SSL features, not their content; --features takes real ones (rows, dim), of which the
last fifth is held out.  The last row is the memory of a fresh process that samples a long stream and fits.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from side_by_side import Row, parser, report

import numpy as np  # isort: skip  # after side_by_side, which sets the threads
import torch  # isort: skip

from unitkit.quantizers import KMeans

Fit = Callable[[np.ndarray, int, int], np.ndarray]
GIGABYTES = 2.0
STREAM = """
import sys
import numpy as np, torch
from unitkit.quantizers import KMeans, frames_for_memory, sample_frames
def peak_gb():
    # not ru_maxrss: a child starts with that of its parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e6
torch.set_num_threads(1)
frames, dim, units = map(int, sys.argv[1:4])
kept = frames_for_memory(dim, float(sys.argv[4]) - peak_gb(), units=units)
draw = np.random.default_rng(0)
block = draw.standard_normal((1000, dim), dtype=np.float32)
stream = (block[draw.permutation(1000)] * draw.random((1000, 1), dtype=np.float32) for _ in range(frames // 1000))
model = KMeans.fit(sample_frames(stream, kept, seed=0), units, overwrite=True)
print(model.report["frames"], peak_gb())
"""


def features(frames: int, dim: int, *, seed: int) -> np.ndarray:
    """(frames, dim) float32: 2000 prototypes with Zipf weights, noise with a spectrum falling as 1/sqrt(d)."""
    rng, draw = np.random.default_rng(7), np.random.default_rng(seed)
    spectrum = 1 / np.sqrt(1 + np.arange(dim))
    prototypes = rng.standard_normal((2000, dim)) * spectrum * 3
    weights = 1 / (1 + np.arange(2000))
    made = np.empty((frames, dim), np.float32)
    for rows in np.split(made, range(10_000, frames, 10_000)):
        which = draw.choice(2000, size=len(rows), p=weights / weights.sum())
        rows[:] = prototypes[which] + draw.standard_normal((len(rows), dim)) * spectrum
    return made


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid, in float64."""
    c = torch.from_numpy(centroids).double()
    lowest = [(c.square().sum(1) / 2 - rows.double() @ c.T).amin(1) for rows in torch.from_numpy(x).split(4096)]
    return float(np.square(x, dtype=np.float64).sum(1).mean() + 2 * torch.cat(lowest).mean())


def ours(x: np.ndarray, units: int, seed: int) -> np.ndarray:
    """Centroids by `KMeans.fit`, in the features' own scale."""
    return KMeans.fit(x, units, standardize=False, seed=seed, device="cpu").centroids[0].numpy()


def fairseq(x: np.ndarray, units: int, seed: int) -> np.ndarray:
    """Centroids by scikit-learn with the settings of fairseq's learn_kmeans.py."""
    from sklearn.cluster import MiniBatchKMeans

    settings = {"batch_size": 10_000, "max_iter": 100, "tol": 0.0, "max_no_improvement": 100, "n_init": 20}
    model = MiniBatchKMeans(units, init="k-means++", reassignment_ratio=0.0, random_state=seed, **settings)
    return model.fit(x).cluster_centers_.astype(np.float32)


def faiss(x: np.ndarray, units: int, seed: int, *, per_unit: int) -> np.ndarray:
    """Centroids by faiss, 25 iterations on at most `per_unit` frames a unit (its own default is 256)."""
    import faiss as library

    library.omp_set_num_threads(1)
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": per_unit}
    model = library.Kmeans(x.shape[1], units, niter=25, seed=seed, **limits)
    model.train(x)
    return np.array(model.centroids)


def compared(
    train: np.ndarray, held: np.ndarray, units: int, peers: Mapping[str, Fit], *, seeds: int, target: str
) -> list[Row]:
    """One row for each peer; `target` is what the first is held to."""
    sides: dict[str, Fit] = {"unitkit": ours, **peers}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(seeds):
        for name, side in sides.items():
            start = time.process_time()
            centroids = side(train, units, seed)
            seconds[name].append(time.process_time() - start)
            losses[name].append(inertia(held, centroids))
            print(f"K={units} seed {seed} {name}: {seconds[name][-1]:.2f} CPU s, {losses[name][-1]:.4f}", flush=True)
    cost = {name: statistics.median(values) for name, values in seconds.items()}
    loss = {name: statistics.median(values) for name, values in losses.items()}
    rows = []
    for name in peers:
        worst = max(a / b for a, b in zip(losses["unitkit"], losses[name], strict=True))
        equal = (
            f"held-out inertia {100 * (loss['unitkit'] / loss[name] - 1):+.2f} %, worst seed {100 * (worst - 1):+.2f} %"
        )
        work = f"k-means fit, K={units}, {len(train):,} × {train.shape[1]}, {seeds} seed{'s' * (seeds > 1)}"
        shown = f"{cost['unitkit']:.2f} CPU s", f"{name} {cost[name]:.2f} CPU s"
        rows.append(Row(work, *shown, cost[name] / cost["unitkit"], equal, target if name == "scikit-learn" else ""))
    return rows


def memory(frames: int, dim: int, units: int) -> Row:
    """Peak memory of a fresh process that samples a stream of `frames` and fits."""
    command = [sys.executable, "-c", STREAM, *map(str, (frames, dim, units, GIGABYTES))]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent)
    kept, peak = run.stdout.split()
    whole = frames * dim * 4 / 1e9
    work = f"k-means fit, K={units}, memory, stream of {frames:,} × {dim}"
    shown = f"{float(peak):.2f} GB, {int(kept):,} frames kept", f"all frames in memory {whole:.2f} GB"
    return Row(work, *shown, whole / float(peak), "sample of the stream", f"≤ {GIGABYTES} GB")


def main() -> None:
    """Compare at K = 100 over three seeds, at 500 and 2000 over one, then measure memory."""
    options = parser(__doc__)
    options.add_argument("--features", type=Path, help="real features, (rows, dim) float32 in a .npy file")
    args = options.parse_args()
    torch.set_num_threads(1)
    if args.features:
        found = np.load(args.features, mmap_mode="r")
        cut = len(found) * 4 // 5
        train, held = (np.ascontiguousarray(part, np.float32) for part in (found[:cut], found[cut:]))
    else:
        frames, dim = (20_000, 256) if args.quick else (200_000, 768)
        train, held = features(frames, dim, seed=1), features(frames // 10, dim, seed=2)
    default, full = (
        {"faiss default": partial(faiss, per_unit=256)},
        {"faiss all frames": partial(faiss, per_unit=10**9)},
    )
    target = "≥ 40×, inertia ≤ +0.3 %"
    rows = compared(
        train, held, 100, {"scikit-learn": fairseq, **default, **full}, seeds=1 if args.quick else 3, target=target
    )
    if not args.quick:
        rows += compared(train, held, 500, {**default, **full}, seeds=1, target="")
        rows += compared(train, held, 2000, default, seeds=1, target="")
    rows.append(memory(60_000 if args.quick else 3_000_000, 256 if args.quick else 768, 100))
    report(rows, args.json)


if __name__ == "__main__":
    main()

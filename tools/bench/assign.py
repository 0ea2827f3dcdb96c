"""Nearest centroids: ours beside fairseq's ApplyKmeans formula, faiss and scikit-learn; one thread, sides in turn.

    python tools/bench/assign.py [--quick]

Ours is checked against float64 brute force before anything is timed, and the frames that each peer gets wrong are
counted.  400-frame calls are utterances of 8 s; big calls are everything at once.
"""

from collections.abc import Callable, Sequence
from functools import partial

from side_by_side import Row, interleaved, parser, report

import numpy as np  # isort: skip  # after side_by_side, which sets the threads
import torch  # isort: skip
from torch import Tensor

from unitkit.quantizers import KMeans

DIM = 768
Assign = Callable[[Tensor], Tensor]


def data(frames: int, units: int) -> tuple[Tensor, Tensor]:
    """Features (frames, DIM) and centroids (units, DIM): the means of a Lloyd step from random frames."""
    draw = torch.Generator().manual_seed(units)
    spectrum = 1 / torch.sqrt(1 + torch.arange(DIM))
    prototypes = torch.randn(2000, DIM, generator=draw) * spectrum * 3
    x = prototypes[torch.randint(2000, (frames,), generator=draw)] + torch.randn(frames, DIM, generator=draw) * spectrum
    model = KMeans.fit(x, units, standardize=False, init="random", iterations=1, device="cpu")
    return x, model.centroids[0]


def brute_force(x: Tensor, centroids: Tensor) -> Tensor:
    """The argmin of float64 distances of differences."""
    wide = centroids.double()
    return torch.cat(
        [
            torch.cdist(rows.double(), wide, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
            for rows in x.split(512)
        ]
    )


def fairseq(centroids: Tensor) -> Assign:
    """The formula of fairseq's dump_km_label.py, ApplyKmeans, in torch."""
    transposed, norms = centroids.T.contiguous(), centroids.pow(2).sum(1)
    return lambda x: (x.pow(2).sum(1, keepdim=True) - 2 * torch.matmul(x, transposed) + norms).argmin(1)


def faiss(centroids: Tensor) -> Assign:
    """faiss IndexFlatL2."""
    import faiss as library

    library.omp_set_num_threads(1)
    index = library.IndexFlatL2(centroids.shape[1])
    index.add(centroids.numpy())
    return lambda x: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def sklearn(centroids: Tensor) -> Assign:
    """scikit-learn's KMeans.predict."""
    from sklearn.cluster import KMeans as Peer

    model = Peer(len(centroids), init=centroids.numpy(), n_init=1, max_iter=1).fit(centroids.numpy())
    model.cluster_centers_ = centroids.numpy()
    return lambda x: torch.from_numpy(model.predict(x.numpy()).astype(np.int64))


def over(side: Assign, calls: Sequence[Tensor]) -> None:
    """One call after the other."""
    for part in calls:
        side(part)


def compared(frames: int, units: int, *, repeats: int) -> list[Row]:
    """Rows for 400-frame and big calls at one K."""
    x, centroids = data(frames, units)
    sides: dict[str, Assign] = {
        "unitkit": KMeans(centroids[None], torch.zeros(DIM), torch.ones(DIM)).assign,
        # features as they come from an encoder, standardised by the quantizer: work that no peer does
        "unitkit standardising": KMeans(((centroids - x.mean(0)) / x.std(0))[None], x.mean(0), x.std(0)).assign,
        "fairseq formula": fairseq(centroids),
        "faiss IndexFlatL2": faiss(centroids),
        "scikit-learn predict": sklearn(centroids),
    }
    few = x[:: max(1, len(x) // 4000)]
    exact = brute_force(few, centroids)
    wrong = {name: int((side(few) != exact).sum()) for name, side in sides.items()}
    if wrong["unitkit"]:
        raise SystemExit(f"{wrong['unitkit']} units differ from float64 brute force")
    rows = []
    for size, name in ((400, "400-frame calls"), (len(x), "one call")):
        runs = {label: partial(over, side, x.split(size)) for label, side in sides.items()}
        seconds = {label: value * 1e6 / len(x) for label, value in interleaved(runs, repeats=repeats).items()}
        for peer in ("fairseq formula", "faiss IndexFlatL2", "scikit-learn predict"):
            own = f"{seconds['unitkit']:.2f} CPU s per 1M frames ({seconds['unitkit standardising']:.2f} standardising)"
            equal = f"0 of {len(few)} differ from float64; peer {wrong[peer]}"
            target = "≥ 1×" if peer == "fairseq formula" else ""
            work = f"assign, K={units}, {name}"
            rows.append(
                Row(work, own, f"{peer} {seconds[peer]:.2f}", seconds[peer] / seconds["unitkit"], equal, target)
            )
    return rows


def main() -> None:
    """All K, two sizes of call."""
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = []
    for units in (100, 500) if args.quick else (100, 500, 2000):
        rows += compared(8_000 if args.quick else 40_000, units, repeats=3 if args.quick else 5)
    report(rows, args.json)


if __name__ == "__main__":
    main()

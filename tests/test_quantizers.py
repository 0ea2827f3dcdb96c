"""K-means: exact assignment whatever the batch, seeded fits in which every unit is used, bounded sampling."""

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_units import nearest_exact, nearest_float64

from unitkit import quantizers
from unitkit.quantizers import INITS, KMeans, QuantizerError, sample_frames

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def plain(centroids: np.ndarray) -> KMeans:
    dim = centroids.shape[1]
    return KMeans(torch.from_numpy(centroids)[None], torch.zeros(dim), torch.ones(dim))


def blobs(n: int, dim: int = 6, clusters: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, dim)) * 4
    scale = np.linspace(0.1, 30, dim)
    return ((centres[rng.integers(clusters, size=n)] + rng.normal(size=(n, dim))) * scale + 7).astype(np.float32)


def near_ties(dim: int, n_units: int, n: int, gap: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points almost halfway between two centroids, nearer to one by about `gap` of their distance, far from zero."""
    rng = np.random.default_rng(seed)
    centroids = (rng.normal(size=(n_units, dim)) + rng.normal(size=dim) * 20).astype(np.float32)
    a, b = rng.integers(n_units, size=(2, n))
    sides = 0.5 + gap * rng.choice([-1.0, 0.0, 1.0], size=(n, 1))
    return (centroids[a] * sides + centroids[b] * (1 - sides)).astype(np.float32), centroids


# ----------------------------------------------------------------------------------------------------- assignment


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-7, 0.0])
def test_near_ties_are_settled_as_in_exact_arithmetic(gap: float, device: str) -> None:
    for seed in range(4):
        points, centroids = near_ties(dim=5, n_units=6, n=120, gap=gap, seed=seed)
        centroids[5] = centroids[2]  # a true tie besides
        found = plain(centroids).to(device).assign(points)
        assert found.tolist() == nearest_exact(points, centroids)


def test_the_naive_float32_formula_fails_on_those_near_ties() -> None:
    """Guards the test above: if this stopped failing, that one would prove nothing."""
    points, centroids = near_ties(dim=5, n_units=6, n=120, gap=1e-7, seed=0)
    scores = np.square(centroids).sum(1) - 2 * points @ centroids.T
    assert scores.argmin(1).tolist() != nearest_exact(points, centroids)


@pytest.mark.parametrize(("dim", "n_units"), [(39, 100), (768, 64), (1, 7), (13, 1)])
def test_equals_float64_brute_force(dim: int, n_units: int) -> None:
    rng = np.random.default_rng(dim)
    centroids = rng.normal(size=(n_units, dim)).astype(np.float32)
    points = np.r_[rng.normal(size=(300, dim)), near_ties(dim, n_units, 1, 1e-6, 0)[0]].astype(np.float32)
    assert np.array_equal(plain(centroids).assign(points), nearest_float64(points, centroids))


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (12, 3), elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    arrays(np.float32, (5, 3), elements=st.floats(-(2.0**20), 2.0**20, width=32)),
)
def test_any_numbers_against_exact_arithmetic(points: np.ndarray, centroids: np.ndarray) -> None:
    points[0], points[1] = centroids[4], (centroids[0] + centroids[1]) / 2
    found = plain(centroids).assign(points).tolist()
    exact = nearest_exact(points, centroids)
    squares = np.square(points[:, None].astype(np.float64) - centroids).sum(2)
    rows = range(len(points))
    # float64 itself may not tell two exact distances apart that differ by less than its own rounding
    assert all(
        f == e or squares[r, f] <= squares[r, e] * (1 + 1e-15) for r, f, e in zip(rows, found, exact, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4000), st.integers(0, 2**32 - 1), st.sampled_from(["plain", "residual", "product"]))
def test_chunks_and_batches_change_nothing(cells: int, seed: int, kind: str) -> None:
    points, centroids = near_ties(dim=8, n_units=10, n=90, gap=1e-7, seed=seed)
    model = plain(centroids)
    if kind != "plain":
        parts = centroids.reshape(2, 10, 4) if kind == "product" else np.stack([centroids, centroids / 50])
        model = KMeans(torch.from_numpy(parts.copy()), torch.zeros(8), torch.ones(8), kind=kind)
    whole = model.assign(points)
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, 91, size=5))
    pieces = torch.cat([model.assign(part) for part in np.split(points, cuts)])
    assert torch.equal(pieces, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizers, "CELLS_PER_CHUNK", cells)
        assert torch.equal(model.assign(points), whole)
    order = rng.permutation(90)
    assert torch.equal(model.assign(points[order]), whole[order])


def test_low_precision_products_do_not_reach_the_units() -> None:
    points, centroids = near_ties(dim=64, n_units=20, n=400, gap=1e-4, seed=3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = plain(centroids).assign(points)
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(found, nearest_float64(points, centroids))


def test_extreme_sizes() -> None:
    centroids = np.array([[1e30, 0], [-1e30, 0], [0, 3e-39]], np.float32)
    points = np.array([[2e30, 5], [-9e29, 1], [0, 2e-39], [0, 1e-39], [1e-20, 0]], np.float32)
    assert plain(centroids).assign(points).tolist() == [0, 1, 2, 2, 2]
    assert plain(centroids).assign(np.zeros((0, 2), np.float32)).shape == (0,)


def test_bad_features_are_refused() -> None:
    model = plain(np.eye(3, dtype=np.float32))
    for wrong in (np.zeros((2, 4)), np.zeros(3), np.array([[0, np.nan, 0]]), np.array([[0, np.inf, -np.inf]])):
        with pytest.raises(QuantizerError):
            model.assign(wrong.astype(np.float32))


# ------------------------------------------------------------------------------------------------------------ fit


@pytest.mark.parametrize("init", list(INITS))
def test_fit_is_seeded_uses_every_unit_and_reports_truly(init: str) -> None:
    frames = blobs(3000)
    model = KMeans.fit(frames, 40, init=init, seed=3)
    again = KMeans.fit(frames, 40, init=init, seed=3)
    other = KMeans.fit(frames, 40, init=init, seed=4)
    assert torch.equal(model.centroids, again.centroids) and not torch.equal(model.centroids, other.centroids)
    ids = model.assign(frames)
    counts = torch.bincount(ids, minlength=40)
    share = counts / counts.sum()
    z = (torch.from_numpy(frames) - model.mean) / model.std
    report = model.report
    assert (counts > 0).all() and report["units_used"] == 40 and report["frames"] == 3000
    assert report["cluster_use"] == 1.0
    assert report["inertia_per_frame"] == pytest.approx(
        float((z - model.centroids[0][ids]).square().sum(1).mean()), rel=1e-5
    )
    assert report["variance_per_frame"] == pytest.approx(6, rel=1e-5)  # standardised: one per dimension
    assert report["perplexity"] == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-5)
    assert (report["min_share"], report["max_share"]) == pytest.approx((float(share.min()), float(share.max())))


def test_finds_clear_clusters_as_well_as_the_truth() -> None:
    frames = blobs(4000, clusters=10)
    model = KMeans.fit(frames, 10, seed=0)
    assert model.report["inertia_per_frame"] < 0.35 * 6  # the blobs' own spread is about 1/17 of the variance


def test_all_frames_count_not_a_sample_of_256_per_unit() -> None:
    frames = np.zeros((5001, 1), np.float32)
    frames[:2500] = 1.0
    frames[-1] = 100.0  # one frame among thousands
    model = KMeans.fit(frames, 3, standardize=False, seed=1)
    assert sorted(model.centroids[0, :, 0].tolist()) == pytest.approx([0.0, 1.0, 100.0])


def test_standardizing_matters_and_is_folded_in() -> None:
    frames = blobs(2000)
    scaled = (frames * np.float32([1e4, 1, 1, 1, 1, 1])).astype(np.float32)
    same = KMeans.fit(frames, 8).assign(frames) == KMeans.fit(scaled, 8).assign(scaled)
    assert same.float().mean() > 0.99  # a dimension's scale does not decide
    raw = KMeans.fit(frames, 8, standardize=False)
    assert raw.mean.abs().sum() == 0 and (raw.std == 1).all()
    assert torch.allclose(raw.decode(torch.arange(8)), raw.centroids[0])


def test_constant_dimensions_do_no_harm() -> None:
    frames = blobs(500)
    frames[:, 2] = 1 / 3
    model = KMeans.fit(frames, 5)
    assert model.std[2] == 1 and model.report["units_used"] == 5


def test_dead_clusters_are_moved_until_all_are_used() -> None:
    rng = np.random.default_rng(0)
    frames = np.concatenate([np.zeros((2000, 2)), np.arange(1, 31)[:, None] * [1e3, 0] + rng.normal(size=(30, 2))])
    for init in INITS:
        model = KMeans.fit(frames, 31, init=init, iterations=1, seed=2)
        assert torch.bincount(model.assign(frames.astype(np.float32)), minlength=31).min() > 0
    assert model.report["reseeded"] > 0  # random initialisation lands on the zeros


def test_as_many_units_as_distinct_frames_and_one_more() -> None:
    frames = np.repeat(np.arange(21).reshape(7, 3) ** 2, 50, axis=0).astype(np.float32)  # whole numbers: exact means
    model = KMeans.fit(frames, 7, standardize=False)
    assert model.report["inertia_per_frame"] == 0
    with pytest.raises(QuantizerError, match="8 units asked for, but only 7 distinct"):
        KMeans.fit(frames, 8)
    with pytest.raises(QuantizerError, match="351 units cannot be fitted to 350 frames"):
        KMeans.fit(frames, 351)
    with pytest.raises(QuantizerError, match=r"only 1 distinct .* in codebook 2"):
        KMeans.fit(frames, 7, codebooks=2, kind="residual", standardize=False)


def test_residual_and_product_are_finer_and_decode_to_what_was_coded() -> None:
    frames = blobs(3000)
    z_error = {}
    for kind, codebooks in (("plain", 1), ("residual", 2), ("residual", 3), ("product", 3)):
        model = KMeans.fit(frames, 8, codebooks=codebooks, kind=kind)
        ids = model.assign(frames)
        assert ids.shape == ((3000, codebooks) if codebooks > 1 else (3000,)) and model.codebooks == codebooks
        error = ((model.decode(ids) - torch.from_numpy(frames)) / model.std).square().sum(1).mean()
        assert model.report["inertia_per_frame"] == pytest.approx(float(error), rel=1e-4)
        assert all(torch.bincount(column).numel() == 8 for column in ids.reshape(3000, -1).T)
        z_error[kind, codebooks] = float(error)
    assert z_error["residual", 3] < z_error["residual", 2] < z_error["plain", 1]
    assert z_error["product", 3] < z_error["plain", 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "product", "codebooks": 4}, "6 dimensions cannot be split into 4"),
        ({"kind": "plain", "codebooks": 2}, "'plain' cannot have 2 codebooks"),
        ({"kind": "tree"}, "unknown kind 'tree'; known: plain, residual, product"),
        ({"init": "best"}, "unknown init 'best'; known: k-means"),
    ],
)
def test_bad_options_name_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizerError, match=message):
        KMeans.fit(blobs(100), 4, **options)


def test_frames_with_nan_are_refused() -> None:
    frames = blobs(100)
    frames[3, 1] = np.nan
    with pytest.raises(QuantizerError, match="NaN"):
        KMeans.fit(frames, 4)


def test_without_faiss_torch_fits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, real = blobs(3000), builtins.__import__

    def no_faiss(name: str, *args: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args)

    with_faiss = KMeans.fit(frames, 30)
    monkeypatch.setattr(builtins, "__import__", no_faiss)
    model, again = KMeans.fit(frames, 30), KMeans.fit(frames, 30)
    assert model.report["backend"].startswith("torch") and with_faiss.report["backend"].startswith("faiss")
    assert torch.equal(model.centroids, again.centroids) and model.report["units_used"] == 30
    assert model.report["inertia_per_frame"] == pytest.approx(with_faiss.report["inertia_per_frame"], rel=0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_fit_is_seeded_and_units_are_those_of_the_cpu() -> None:
    frames = blobs(20000, dim=40, clusters=60)
    model, again = KMeans.fit(frames, 100, device="cuda"), KMeans.fit(frames, 100, device="cuda")
    assert torch.equal(model.centroids, again.centroids) and model.report["units_used"] == 100
    on_cpu = model.to("cpu").assign(frames)
    assert torch.equal(model.to("cuda").assign(frames).cpu(), on_cpu)
    points, centroids = near_ties(dim=40, n_units=50, n=2000, gap=1e-7, seed=0)
    assert torch.equal(plain(centroids).to("cuda").assign(points).cpu(), plain(centroids).assign(points))


@pytest.mark.parametrize(("kind", "codebooks"), [("plain", 1), ("residual", 2), ("product", 3)])
def test_state_round_trips(kind: str, codebooks: int) -> None:
    frames = blobs(400)
    model = KMeans.fit(frames, 9, codebooks=codebooks, kind=kind)
    copy = KMeans.from_state(model.settings(), model.state())
    assert copy.settings() == model.settings()
    assert torch.equal(copy.assign(frames), model.assign(frames))
    with pytest.raises(QuantizerError, match="unknown quantizer type 'fsq'"):
        KMeans.from_state({**model.settings(), "type": "fsq"}, model.state())
    with pytest.raises(QuantizerError, match="std"):
        KMeans.from_state(model.settings(), {k: v for k, v in model.state().items() if k != "std"})


# ------------------------------------------------------------------------------------------------------- sampling


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(sum), st.integers(1, 60), st.integers(0, 1000))
def test_sample_is_a_subset_independent_of_chunking(lengths: list[int], size: int, seed: int) -> None:
    rows = np.arange(sum(lengths), dtype=np.float32)[:, None] * [1, 10]
    chunks = np.split(rows, np.cumsum(lengths)[:-1])
    sample = sample_frames(iter(chunks), size, seed=seed)
    assert sample.dtype == np.float32 and len(sample) == min(size, len(rows))
    assert len(np.unique(sample[:, 0])) == len(sample) and np.array_equal(sample[:, 1], sample[:, 0] * 10)
    assert np.array_equal(sample, sample_frames([rows], size, seed=seed))


def test_sample_is_uniform() -> None:
    rows = np.arange(200, dtype=np.float32)[:, None]
    drawn = np.concatenate([sample_frames([rows], 20, seed=seed)[:, 0] for seed in range(1000)])
    times = np.bincount(drawn.astype(int), minlength=200)  # 100 expected each, standard deviation 9.5
    assert times.min() > 55 and times.max() < 150 and abs(times[:20].mean() - 100) < 8


def test_sample_memory_is_bounded_by_the_sample() -> None:
    import tracemalloc

    chunk = np.ones((1000, 8), np.float32)
    tracemalloc.start()
    sample_frames((chunk for _ in range(300)), 2000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 8 * 4 + 4 * chunk.nbytes


def test_sample_errors() -> None:
    with pytest.raises(QuantizerError, match="no frames"):
        sample_frames([np.zeros((0, 3), np.float32)], 5, seed=0)
    with pytest.raises(QuantizerError, match="max_frames"):
        sample_frames([np.zeros((1, 3), np.float32)], 0, seed=0)
    with pytest.raises(QuantizerError, match="dim"):
        sample_frames([np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32)], 5, seed=0)

"""K-means: exact assignment whatever the batch, seeded fits in which every unit is used, bounded sampling."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_units import nearest_exact, nearest_float64

from unitkit.quantizers import INITS, KINDS, KMeans, QuantizerError, frames_for_memory, lloyd, nearest, sample_frames

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
        patch.setattr(nearest, "CELLS_PER_CHUNK", cells)
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


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.3, 2.0), (1000.0, 1.0), (3.0, 1e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_standardising_in_the_screen_gives_the_units_of_standardised_features(
    mean: float, std: float, kind: str
) -> None:
    """Whether folded or not: the units are those of float32 (x - mean) / std by float64 distances."""
    rng = np.random.default_rng(4)
    points, centroids = near_ties(dim=8, n_units=10, n=300, gap=1e-6, seed=2)
    shift = (mean * rng.normal(size=8)).astype(np.float32)
    scale = (std * np.exp(rng.normal(size=8))).astype(np.float32)
    features = points * scale + shift
    parts = centroids.reshape(2, 10, 4).copy() if kind == "product" else centroids[None]  # residual: of one stage
    model = KMeans(torch.from_numpy(parts), torch.from_numpy(shift), torch.from_numpy(scale), kind=kind)
    z = (features - shift) / scale
    if kind == "product":
        expected = np.stack([nearest_float64(z[:, :4], parts[0]), nearest_float64(z[:, 4:], parts[1])], axis=1)
    else:
        expected = nearest_float64(z, centroids)
    assert np.array_equal(model.assign(features), expected)


def test_folding_is_chosen_where_it_is_tight() -> None:
    rng = np.random.default_rng(0)
    centroids = torch.from_numpy(rng.normal(size=(20, 16)).astype(np.float32))
    assert nearest.foldable(centroids, torch.zeros(16), torch.ones(16))
    assert nearest.foldable(centroids, torch.full((16,), 0.5), torch.full((16,), 30.0))
    assert not nearest.foldable(centroids, torch.full((16,), 100.0), torch.ones(16))
    assert not nearest.foldable(centroids, torch.zeros(16), torch.logspace(-3, 3, 16))


def test_changed_centroids_are_noticed() -> None:
    points, centroids = near_ties(dim=5, n_units=6, n=50, gap=0.4, seed=0)
    model = plain(centroids)
    before = model.assign(points)
    model.centroids.copy_(model.centroids.flip(1))
    assert torch.equal(model.assign(points), 5 - before)
    model.centroids = model.centroids.flip(1)
    assert torch.equal(model.assign(points), before)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
    st.floats(-7, -0.5),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_frames_not_undecided_keep_their_units(
    seed: int, kind: str, exponent: float, mean: float, scales: float
) -> None:
    """Changes of any direction up to the bound, the worst one (towards the second nearest) among them."""
    rng, relative = np.random.default_rng(seed), 10.0**exponent
    n_units, dim = int(rng.integers(2, 12)), 8
    shape = (1, n_units, dim) if kind == "plain" else (2, n_units, dim // 2 if kind == "product" else dim)
    centroids = rng.normal(size=shape) * np.array([1.0, 0.3])[: shape[0], None, None]
    shift, scale = mean * rng.normal(size=dim), np.exp(scales * rng.normal(size=dim))
    model = KMeans(torch.from_numpy(centroids), torch.from_numpy(shift), torch.from_numpy(scale), kind=kind)
    z = torch.from_numpy(rng.normal(size=(200, dim)).astype(np.float32))
    features = z * model.std + model.mean
    sure = ~model.undecided(features, relative=relative)
    before = model.assign(features)
    lengths = torch.linalg.vector_norm(features.double(), dim=1, keepdim=True)
    ways = [torch.from_numpy(rng.normal(size=(200, dim))) for _ in range(3)]
    weights = model.centroids.double() / model.std.double().reshape(
        model.mean.shape if kind != "product" else (2, 1, -1)
    )
    for other in range(n_units):
        away = weights[0, other] - weights[0][before.reshape(200, -1)[:, 0]]  # the gradient of what separates them
        ways.append(torch.nn.functional.pad(away, (0, dim - away.shape[1])))
    for way in ways:
        step = way / torch.linalg.vector_norm(way, dim=1, keepdim=True).clamp(min=1e-300) * lengths
        moved = (features.double() + step * relative * (1 - 1e-6)).float()
        allowed = torch.linalg.vector_norm(moved.double() - features.double(), dim=1) <= relative * lengths[:, 0]
        same = (model.assign(moved) == before).reshape(200, -1).all(1)
        assert same[sure & allowed].all()
    assert model.undecided(features, relative=0).float().mean() < 0.05 or scales or mean


def test_undecided_is_not_far_from_the_truth() -> None:
    """It finds most frames decided, and just the ones that a change of that size does turn are among the others."""
    frames = blobs(4000, dim=12, clusters=30)
    model = KMeans.fit(frames, 20)
    for relative, most in ((0.0, 0.002), (1e-5, 0.01), (1e-3, 0.35)):
        assert model.undecided(frames, relative=relative).float().mean() <= most
    halfway, centroids = near_ties(dim=5, n_units=6, n=120, gap=1e-7, seed=0)
    apart = nearest_float64(halfway * np.float32(1 + 1e-4), centroids) != nearest_float64(halfway, centroids)
    assert plain(centroids).undecided(halfway, relative=1e-4)[torch.from_numpy(apart)].all()
    with pytest.raises(QuantizerError, match="relative"):
        model.undecided(frames, relative=-1.0)


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
    scaled = (frames * np.array([1e4, 1, 1, 1, 1, 1])).astype(np.float32)
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


def test_dead_clusters_are_moved_until_all_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frames = np.concatenate([np.zeros((2000, 2)), np.arange(1, 31)[:, None] * [1e3, 0] + rng.normal(size=(30, 2))])
    for init in INITS:
        model = KMeans.fit(frames, 31, init=init, iterations=1, seed=2)
        assert torch.bincount(model.assign(frames.astype(np.float32)), minlength=31).min() > 0
    # the search finds them all by itself; without it, random initialisation lands on the zeros
    monkeypatch.setattr(lloyd, "SEARCH_ROUNDS", 0)
    model = KMeans.fit(frames, 31, init="random", iterations=1, seed=2)
    assert torch.bincount(model.assign(frames.astype(np.float32)), minlength=31).min() > 0
    assert model.report["reseeded"] > 0


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


def fairseq_settings(frames: np.ndarray, n_units: int, seed: int) -> np.ndarray:
    """Centroids by scikit-learn as fairseq's learn_kmeans.py sets it, but for the batch size."""
    cluster = pytest.importorskip("sklearn.cluster")
    settings = {"batch_size": 1000, "max_iter": 100, "tol": 0.0, "max_no_improvement": 100, "n_init": 20}
    model = cluster.MiniBatchKMeans(n_units, reassignment_ratio=0.0, random_state=seed, **settings)
    return model.fit(frames).cluster_centers_.astype(np.float32)


@pytest.mark.parametrize(("dim", "spectrum"), [(24, 0.5), (150, 0.5), (150, 0.0)])
def test_held_out_inertia_is_that_of_scikit_learn_or_lower(dim: int, spectrum: float) -> None:
    """In all dimensions at once, and by way of projections, also where no few components hold the variance."""
    rng = np.random.default_rng(1)
    scale = (1 + np.arange(dim)) ** -spectrum
    prototypes = rng.normal(size=(120, dim)) * scale * 2
    which = rng.choice(120, size=16_000, p=(1 / np.arange(1, 121)) / (1 / np.arange(1, 121)).sum())
    frames = (prototypes[which] + rng.normal(size=(16_000, dim)) * scale + 3).astype(np.float32)
    train, held = frames[:12_000], torch.from_numpy(frames[12_000:])
    ours = KMeans.fit(train, 40, standardize=False, seed=5).centroids[0]
    theirs = torch.from_numpy(fairseq_settings(train, 40, 5))
    inertia = [float(torch.cdist(held, c).min(1).values.square().mean()) for c in (ours, theirs)]
    assert inertia[0] <= inertia[1] * 1.003


def test_overwriting_changes_nothing_but_the_frames_given() -> None:
    for kind, codebooks in (("plain", 1), ("residual", 2), ("product", 2)):
        for standardize in (True, False):
            frames = blobs(2000)
            options: dict[str, Any] = {"codebooks": codebooks, "kind": kind, "standardize": standardize}
            kept = KMeans.fit(frames, 10, **options)
            assert np.array_equal(frames, blobs(2000))
            assert torch.equal(KMeans.fit(frames, 10, overwrite=True, **options).centroids, kept.centroids)
            assert np.array_equal(frames, blobs(2000)) == (not standardize and kind != "residual")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_fitting_takes_the_memory_that_was_counted() -> None:
    """Of `frames_for_memory`: a fresh process samples a longer stream, fits, and stays below what was promised."""
    code = """
import numpy as np, torch
from unitkit.quantizers import KMeans, frames_for_memory, sample_frames
def peak():  # not ru_maxrss: a child starts with that of its parent
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(1)
KMeans.fit(np.random.default_rng(0).standard_normal((300, 256), dtype=np.float32), 4)  # libraries are loaded
before = peak()
most = frames_for_memory(256, 0.5, units=50)
draw = np.random.default_rng(0)
stream = (draw.standard_normal((1000, 256), dtype=np.float32) for _ in range(most // 1000 + 20))
frames = sample_frames(stream, most, seed=0)
assert len(frames) == most
KMeans.fit(frames, 50, overwrite=True)
print(most * 1024, peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sample, grown = map(int, run.stdout.split())
    assert 0.25e9 < sample < grown < 0.5e9


def test_frames_for_memory_bounds_and_errors() -> None:
    assert frames_for_memory(39, 1.0, units=100) == 1_000_000
    assert 150_000 < frames_for_memory(768, 1.0, units=500) < 1e9 / 768 / 4
    with pytest.raises(QuantizerError, match="0 frames of 1024 numbers, and 100 units"):
        frames_for_memory(1024, 0.05, units=100)


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

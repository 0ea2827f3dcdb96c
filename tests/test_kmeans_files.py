"""Centroid files of every form: read, written, and joined with an encoder to a tokenizer."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_encoders import WAV, model_of
from safetensors.torch import save_file
from typer.testing import CliRunner

from unitkit import kmeans_files
from unitkit.cli import app
from unitkit.encoders import load_encoder
from unitkit.kmeans_files import NAMES, CentroidsError, Published, read_kmeans, tokenizer_from_kmeans, write_kmeans
from unitkit.pickled import PickledError
from unitkit.quantizers import KMeans
from unitkit.tokenizer import Tokenizer

torch.set_num_threads(1)
joblib = pytest.importorskip("joblib")
cluster = pytest.importorskip("sklearn.cluster")

SAMPLES = str(Path(__file__).resolve().parents[1] / "samples" / "en" / "dev.jsonl")
FRAMES = np.random.default_rng(1).standard_normal((300, 32)).astype(np.float32)
CENTERS = cluster.KMeans(7, n_init=1, random_state=0).fit(FRAMES).cluster_centers_
FORMS = {"npy": "km.npy", "npz": "km.npz", "safetensors": "km.safetensors", "torch": "km.pt", "sklearn": "km.bin"}


def fitted(kind: str) -> Any:
    model = getattr(cluster, kind)(7, n_init=1, random_state=0).fit(FRAMES)
    model.cluster_centers_ = CENTERS
    return model


def in_bshalls_dictionary(path: Path) -> None:
    """As bshall/hubert publishes it: a tensor; as its cluster.py writes it: an array."""
    torch.save({"n_features_in_": 32, "_n_threads": 4, "cluster_centers_": torch.from_numpy(CENTERS)}, path)


PEERS: dict[str, Callable[[Path], Any]] = {
    "km.bin": lambda path: joblib.dump(fitted("MiniBatchKMeans"), path),  # fairseq's learn_kmeans.py, textless, slamkit
    "small.joblib": lambda path: joblib.dump(fitted("KMeans"), path, compress=3),  # minimal_hubert
    "gslm.pkl": lambda path: path.write_bytes(pickle.dumps(fitted("MiniBatchKMeans"), 2)),
    "old.km": lambda path: joblib.dump(fitted("KMeans"), path, protocol=2, compress=("zlib", 3)),
    "kmeans100.pt": in_bshalls_dictionary,
    "array.pt": lambda path: torch.save({"n_features_in_": 32, "_n_threads": 4, "cluster_centers_": CENTERS}, path),
    "before-1.6.pt": lambda path: torch.save({"cluster_centers_": torch.from_numpy(CENTERS)}, path,
                                             _use_new_zipfile_serialization=False),
    "kmeans_10k.npy": lambda path: np.save(path, CENTERS),  # seamless
    "columns.npy": lambda path: np.save(path, np.asfortranarray(CENTERS)),
    "wide.npy": lambda path: np.save(path, CENTERS.astype(np.float64)),
    "km.npz": lambda path: np.savez(path, cluster_centers_=CENTERS, inertia=3.0),
    "one.npz": lambda path: np.savez_compressed(path, CENTERS),
    "km.safetensors": lambda path: save_file({"codebook": torch.from_numpy(CENTERS)}, path),
    "none-of-these.txt": lambda path: joblib.dump(CENTERS, path),
}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_peers_files_are_read(name: str, tmp_path: Path) -> None:
    PEERS[name](tmp_path / name)
    found = read_kmeans(tmp_path / name)
    assert np.array_equal(found.centroids[0].numpy(), CENTERS) and found.centroids.shape == (1, 7, 32)
    expected = np.square(FRAMES[:, None].astype(np.float64) - CENTERS).sum(-1).argmin(1)
    assert np.array_equal(found.assign(FRAMES).numpy(), expected)
    assert torch.equal(found.mean, torch.zeros(32)) and torch.equal(found.std, torch.ones(32))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_again(form: str, tmp_path: Path) -> None:
    quantizer = KMeans(torch.from_numpy(CENTERS)[None], torch.zeros(32), torch.ones(32))
    path = tmp_path / "new" / FORMS[form]
    write_kmeans(quantizer, path)
    again = read_kmeans(path)
    assert again.settings() == quantizer.settings()
    for name, tensor in quantizer.state().items():
        assert torch.equal(again.state()[name], tensor)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_peers_read_what_is_written(tmp_path: Path) -> None:
    """By the calls their own code makes."""
    quantizer = KMeans(torch.from_numpy(CENTERS)[None], torch.zeros(32), torch.ones(32))
    for form, name in FORMS.items():
        write_kmeans(quantizer, tmp_path / name, form=form)
    units = quantizer.assign(FRAMES).numpy()
    model = joblib.load(tmp_path / "km.bin")  # fairseq, GSLM: predict, or cluster_centers_
    assert np.array_equal(model.cluster_centers_, CENTERS) and np.array_equal(model.predict(FRAMES), units)
    checkpoint = torch.load(tmp_path / "km.pt", weights_only=True)  # bshall
    again = cluster.KMeans(7)
    again.__dict__["n_features_in_"] = checkpoint["n_features_in_"]
    again.__dict__["_n_threads"] = checkpoint["_n_threads"]
    again.__dict__["cluster_centers_"] = checkpoint["cluster_centers_"].numpy()
    assert np.array_equal(again.predict(FRAMES), units)
    assert np.array_equal(np.load(tmp_path / "km.npy"), CENTERS)  # seamless


@settings(deadline=None, max_examples=30)
@given(units=st.integers(1, 9), dim=st.integers(1, 12), form=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 99))
def test_round_trips_of_any_size(units: int, dim: int, form: str, seed: int, tmp_path_factory: Any) -> None:
    centers = torch.randn(1, units, dim, generator=torch.Generator().manual_seed(seed)) * 1e3
    path = tmp_path_factory.mktemp("km") / FORMS[form]
    write_kmeans(KMeans(centers, torch.zeros(dim), torch.ones(dim)), path)
    assert torch.equal(read_kmeans(path).centroids, centers)


@pytest.mark.parametrize(("kind", "books", "part"), [("plain", 1, 6), ("residual", 3, 6), ("product", 3, 2)])
def test_more_than_centroids_goes_to_safetensors_alone(kind: str, books: int, part: int, tmp_path: Path) -> None:
    quantizer = KMeans(torch.randn(books, 4, part), torch.randn(6), torch.rand(6) + 0.5, kind=kind)
    write_kmeans(quantizer, tmp_path / "km.safetensors")
    again = read_kmeans(tmp_path / "km.safetensors")
    assert again.settings() == quantizer.settings()
    assert torch.equal(again.assign(np.ones((3, 6))), quantizer.assign(np.ones((3, 6))))
    for form in sorted(set(FORMS) - {"safetensors"}):
        with pytest.raises(CentroidsError, match="other units|one codebook"):
            write_kmeans(quantizer, tmp_path / f"km-{form}", form=form)
    assert [one.name for one in tmp_path.iterdir()] == ["km.safetensors"]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("71 71 12 4 4 4 19 20 5\n"), "units .labels., not of centroids"),
    "nan.npy": (lambda path: np.save(path, np.full((2, 3), np.nan)), "NaN"),
    "flat.npy": (lambda path: np.save(path, np.zeros(6)), r"shape \(6,\)"),
    "ids.npy": (lambda path: np.save(path, np.zeros((2, 3), int)), "not int64"),
    "nothing.npy": (lambda path: np.save(path, np.zeros((0, 3))), r"shape \(0, 3\)"),
    "objects.npy": (lambda path: np.save(path, np.array([None]), allow_pickle=True), "objects"),
    "cut.npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, "
                                              b"'shape': (100000, 100000), }" + b" " * 40 + b"\n"), "damaged"),
    "cut.npz": (lambda path: path.write_bytes(b"PK\x03\x04aaaa"), "damaged zip"),
    "two.npz": (lambda path: np.savez(path, a=CENTERS, b=CENTERS), "holds a, b"),
    "cut.safetensors": (lambda path: path.write_bytes((20).to_bytes(8, "little") + b'{"a": 1' + b" " * 30), "damaged"),
    "unfitted.bin": (lambda path: joblib.dump(cluster.KMeans(3), path), "never fitted"),
    "dictionary.pt": (lambda path: torch.save({"model": {}}, path), "holds model"),
    "list.pkl": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "holds a list"),
    "std.npz": (lambda path: np.savez(path, centroids=CENTERS[None], mean=np.zeros(32), std=np.zeros(32)),
                "do not make"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_without_centroids(name: str, tmp_path: Path) -> None:
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(CentroidsError, match=message) as caught:
        read_kmeans(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_malicious_km_bin_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'touched'}",)

    model = fitted("MiniBatchKMeans")
    model.random_state = Trap()
    joblib.dump(model, tmp_path / "km.bin")
    with pytest.raises(PickledError, match="posix.system"):
        read_kmeans(tmp_path / "km.bin")
    run = CliRunner().invoke(app, ["import-kmeans", str(tmp_path / "km.bin"), "-o", str(tmp_path / "tok"), "--features",
                                   "mfcc"])  # fmt: skip
    assert isinstance(run.exception, PickledError) and not (tmp_path / "tok").exists()
    assert not (tmp_path / "touched").exists()


# --------------------------------------------------------------------------------------------------- tokenizers


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("hubert") / "checkpoint"
    model_of("hubert-base").save_pretrained(path)
    return path


@pytest.fixture
def km(tmp_path: Path) -> Path:
    joblib.dump(fitted("MiniBatchKMeans"), tmp_path / "km.bin")
    return tmp_path / "km.bin"


def test_centroids_and_encoder_make_a_tokenizer(hubert: Path, km: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_from_kmeans(km, features=hubert, layer=2)
    features = load_encoder(hubert, layer=2)(WAV).numpy()
    assert np.array_equal(tokenizer.encode(WAV, rate=16000).ids, joblib.load(km).predict(features))
    tokenizer.save(tmp_path / "tok")
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    again = Tokenizer.load((tmp_path / "tok").rename(tmp_path / "moved"))
    assert again.fingerprint == tokenizer.fingerprint
    assert np.array_equal(again.encode(WAV, rate=16000).ids, tokenizer.encode(WAV, rate=16000).ids)
    assert again.provenance["centroids"] == "km.bin"
    assert tokenizer_from_kmeans(km, features=hubert, layer=3).fingerprint != tokenizer.fingerprint
    centred = tokenizer_from_kmeans(km, features=hubert, layer=2, padding="center")
    assert centred.fingerprint != tokenizer.fingerprint and len(centred.encode(WAV, rate=16000).ids) == 50


def test_normalisation_can_be_overridden_and_stays_so(hubert: Path, km: Path, tmp_path: Path) -> None:
    plain = tokenizer_from_kmeans(km, features=hubert, layer=2)
    normal = tokenizer_from_kmeans(km, features=hubert, layer=2, normalize=True)
    assert normal.fingerprint != plain.fingerprint
    loud = 3 * WAV + 0.5
    scaled = (loud - loud.mean()) / np.sqrt(loud.var() + 1e-7)
    torch.testing.assert_close(normal.encoder(loud), plain.encoder(scaled), atol=1e-4, rtol=1e-4)
    normal.save(tmp_path / "tok")
    assert Tokenizer.load(tmp_path / "tok").encoder.settings()["normalize"] is True


def test_published_names(hubert: Path, km: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMES, "tiny", Published(str(hubert), 2, "center"))
    named = tokenizer_from_kmeans(km, name="tiny-km7")
    assert named.recipe == {"features": str(hubert), "layer": 2, "padding": "center"}
    assert tokenizer_from_kmeans(km, name="tiny", padding="none").recipe["padding"] == "none"
    with pytest.raises(CentroidsError, match="has 7 centroids, but 'tiny-km100' says 100"):
        tokenizer_from_kmeans(km, name="tiny-km100")
    for name, why in (
        ("cpc-big-ll6k-km100", "not on the hub"),
        ("xlsr2_1b_v2", "not on the hub"),
        ("mhubert-base-vp_en_es_fr-it3-L11-km7", "import-fairseq"),
    ):
        with pytest.raises(CentroidsError, match=why):
            tokenizer_from_kmeans(km, name=name.replace("km100", "km7"))
    converted = tokenizer_from_kmeans(km, name="tiny-km7", features=hubert, layer=1)
    assert converted.recipe["layer"] == 1
    with pytest.raises(CentroidsError, match="unknown name 'hubert-huge'; known"):
        tokenizer_from_kmeans(km, name="hubert-huge")


@pytest.mark.parametrize(
    ("name", "features", "layer", "units"),
    [
        ("hubert-base-ls960-km100", "facebook/hubert-base-ls960", 6, 100),
        ("hubert-base-ls960-layer-9-km500", "facebook/hubert-base-ls960", 9, 500),
        ("hubert_base_ls960_L9_km500", "facebook/hubert-base-ls960", 9, 500),
        ("mhubert-base-25hz", "slprl/mhubert-base-25hz", 11, None),
        ("mhubert-base-vp_mls_cv_8lang-km2000", None, 12, 2000),
        ("mhubert-base-vp_en_es_fr-it3-L11-km1000", None, 11, 1000),
    ],
)
def test_what_names_stand_for(name: str, features: str | None, layer: int, units: int | None) -> None:
    published, found = kmeans_files._published(name)
    assert (published.features, published.layer, found) == (features, layer, units)
    assert (published.features is None) == bool(published.missing)


def test_encoders_that_do_not_fit(hubert: Path, km: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((3, 768), np.float32))
    with pytest.raises(CentroidsError, match=r"centroids of 768 dimensions, .*checkpoint layer 2 gives 32"):
        tokenizer_from_kmeans(tmp_path / "wide.npy", features=hubert, layer=2)
    with pytest.raises(CentroidsError, match=r"of 32 dimensions, mfcc gives 39"):
        tokenizer_from_kmeans(km, features="mfcc")
    with pytest.raises(CentroidsError, match="say which layer"):
        tokenizer_from_kmeans(km, features=hubert)
    with pytest.raises(CentroidsError, match="features are missing"):
        tokenizer_from_kmeans(km)
    np.save(tmp_path / "mfcc.npy", np.zeros((3, 39), np.float32))
    with pytest.raises(CentroidsError, match="normalize cannot be set"):
        tokenizer_from_kmeans(tmp_path / "mfcc.npy", features="mfcc", normalize=True)


def test_the_verbs(hubert: Path, km: Path, tmp_path: Path) -> None:
    tok = tmp_path / "tok"
    run = CliRunner().invoke(app, ["import-kmeans", str(km), "--features", str(hubert), "--layer", "2", "-o", str(tok)])
    assert run.exit_code == 0 and Tokenizer.load(tok).fingerprint in run.output.replace("\n", "")
    for name in FORMS.values():
        run = CliRunner().invoke(app, ["export-kmeans", str(tok), "-o", str(tmp_path / "out" / name)])
        assert run.exit_code == 0, run.output
        assert np.array_equal(read_kmeans(tmp_path / "out" / name).centroids[0].numpy(), CENTERS)
    run = CliRunner().invoke(app, ["export-kmeans", "prompts-mfcc100", "-o", str(tmp_path / "km.npy")])
    assert isinstance(run.exception, CentroidsError) and "standardises features" in str(run.exception)
    run = CliRunner().invoke(app, ["export-kmeans", str(tok), "-o", str(tmp_path / "km.xyz")])
    assert "in which form? known" in str(run.exception)


def test_centroids_fitted_here_go_out_and_come_back(tmp_path: Path) -> None:
    """With --no-standardize the raw centroids say it all; with standardisation they would not, and that is refused."""
    for name, flag in (("plain", "--no-standardize"), ("scaled", "--standardize")):
        run = CliRunner().invoke(app, ["fit", SAMPLES, "-o", str(tmp_path / name), "-k", "8", flag])
        assert run.exit_code == 0, run.output
    km, back = str(tmp_path / "km.npy"), str(tmp_path / "back")
    assert CliRunner().invoke(app, ["export-kmeans", str(tmp_path / "plain"), "-o", km]).exit_code == 0
    assert CliRunner().invoke(app, ["import-kmeans", km, "--features", "mfcc", "-o", back]).exit_code == 0
    assert Tokenizer.load(tmp_path / "plain").fingerprint == Tokenizer.load(back).fingerprint
    run = CliRunner().invoke(app, ["export-kmeans", str(tmp_path / "scaled"), "-o", str(tmp_path / "no.npy")])
    assert isinstance(run.exception, ValueError) and "--no-standardize" in str(run.exception)

"""Centroid files of other programs, read and written without scikit-learn and without running pickled code.

A file of centroids says nothing about the features they belong to: `tokenizer_from_kmeans` joins them with an encoder,
by the name that their publisher gave them or by features and layer.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from unitkit.encoders import FILTERBANKS, load_encoder
from unitkit.encoders.families import WaveformEncoder
from unitkit.pickled import Record, read_pickled
from unitkit.quantizers import KMeans
from unitkit.tokenizer import Tokenizer, pick_device

ARRAYS = ("centroids", "cluster_centers_", "arr_0")  # names of the centroids in archives and dictionaries
SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "sklearn",
    ".joblib": "sklearn",
    ".km": "sklearn",
    ".pkl": "sklearn",
}


RATIO, ALLOWANCE = 100, 1 << 26  # archives: what they unpack to at most, by their size and anyway


class CentroidsError(ValueError):
    """A file that holds no usable centroids, or centroids that a form cannot hold."""


@dataclass(frozen=True)
class Published:
    """Encoder, layer and padding that published centroids were fitted with; `missing` says why there is no encoder."""

    features: str | None
    layer: int
    padding: str = "none"
    missing: str = ""


_FAIRSEQ = (
    "its encoder is a fairseq checkpoint, not on the hub: convert it (unitkit import-fairseq) and give --features"
)
_MHUBERT_25HZ = Published("slprl/mhubert-base-25hz", 11)
NAMES = {  # what textless, GSLM, fairseq, slamkit, bshall and seamless call the encoder of their centroids
    "hubert-base-ls960": Published("facebook/hubert-base-ls960", 6),
    "hubert-base-ls960-layer-9": Published("facebook/hubert-base-ls960", 9),
    "hubert_base_ls960_L9": Published("facebook/hubert-base-ls960", 9),
    "mhubert-base-25hz": _MHUBERT_25HZ,
    "slamkit-hubert-base": Published("facebook/hubert-base-ls960", 9, "center"),
    "slamkit-mhubert-base-25hz": Published("slprl/mhubert-base-25hz", 11, "center"),
    "mhubert-base-vp_mls_cv_8lang": Published(None, 12, missing=_FAIRSEQ),
    "mhubert-base-vp_en_es_fr": Published(None, 11, missing=_FAIRSEQ),
    "mhubert-base-vp_en_es_fr-it3-L11": Published(None, 11, missing=_FAIRSEQ),
    "bshall-hubert-discrete": Published(
        None, 7, "center", "its encoder is a torch.hub model of bshall/hubert, not on the Hugging Face hub"
    ),
    "cpc-big-ll6k": Published(None, 2, missing="its encoder is CPC, which is not on the hub and not an encoder here"),
    "xlsr2_1b_v2": Published(
        None, 35, missing="its encoder is seamless's own XLS-R checkpoint for fairseq2, which is not on the hub"
    ),
}


# ------------------------------------------------------------------------------------------------------ reading


def read_kmeans(path: str | os.PathLike[str]) -> KMeans:
    """The quantizer in a file of any form, told by its content: units are nearest centroids of raw features.

    Forms: scikit-learn's KMeans and MiniBatchKMeans (joblib or pickle: fairseq, GSLM, textless, slamkit), a torch
    dictionary with cluster_centers_ (bshall), .npy and .npz of (units, dim), safetensors (ours, standardisation and
    codebooks included).  Centroids become float32.  Raises `CentroidsError` or `PickledError` naming the file.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        head = file.read(16)
    if not head:
        raise CentroidsError(f"{name} is empty")
    if head.startswith(b"\x93NUMPY"):
        return _plain(_npy(name), name)
    if head.startswith(b"PK\x03\x04") and not _is_torch(name):
        return _npz(name)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(name):
        return _safetensors(name)
    if _is_text(head):
        raise CentroidsError(f"{name} is a text of units (labels), not of centroids: unitkit import reads it")
    return _plain(_centers(read_pickled(name), name), name)


def _is_torch(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CentroidsError(f"{path}: a damaged zip archive: {error}") from error
    if sum(member.file_size for member in members) > max(ALLOWANCE, RATIO * os.path.getsize(path)):
        raise CentroidsError(f"{path} unpacks to over {RATIO} times its size")
    return any(member.filename.rpartition("/")[2] == "data.pkl" for member in members)


def _is_text(head: bytes) -> bool:
    return all(48 <= byte < 58 or byte in b" \t\r\n" for byte in head)


def _npy(path: str) -> np.ndarray:
    try:
        return np.array(np.load(path, mmap_mode="r"))  # a map checks the size first: a header may say anything
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise CentroidsError(f"{path}: a damaged .npy file, or one of objects: {error}") from error


def _npz(path: str) -> KMeans:
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, SyntaxError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise CentroidsError(f"{path}: a damaged .npz file, or one of objects: {error}") from error
    if {"centroids", "mean", "std"} <= set(arrays) and arrays["centroids"].ndim == 3:
        return _ours({name: torch.from_numpy(np.array(one)) for name, one in arrays.items()}, path)
    return _plain(_centers(arrays, path), path)


def _safetensors(path: str) -> KMeans:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CentroidsError(f"{path}: a damaged safetensors file: {error}") from error
    if {"centroids", "mean", "std"} <= set(tensors):
        return _ours(tensors, path)
    return _plain(_centers({name: tensor.float().numpy() for name, tensor in tensors.items()}, path), path)


def _ours(tensors: dict[str, Tensor], path: str) -> KMeans:
    """A quantizer's own state; the kind shows in the shapes."""
    centroids, mean, std = (tensors[name] for name in ("centroids", "mean", "std"))
    if centroids.ndim != 3 or mean.shape != std.shape or mean.ndim != 1 or not (std > 0).all():
        raise CentroidsError(f"{path}: centroids {tuple(centroids.shape)}, mean and std do not make a quantizer")
    books, _, part = centroids.shape
    kind = "plain" if books == 1 else "residual" if part == len(mean) else "product"
    if not all(tensor.isfinite().all() for tensor in (centroids, mean, std)):
        raise CentroidsError(f"{path}: NaN or infinity among the numbers")
    return KMeans(centroids, mean, std, kind=kind)


def _centers(value: Any, path: str) -> np.ndarray:
    """The array of centroids in what a file holds."""
    if isinstance(value, Record):
        what, value = f"a {value.name}", value.fields
        if "cluster_centers_" not in value:
            raise CentroidsError(f"{path} holds {what} without cluster_centers_: no k-means, or one never fitted")
    if isinstance(value, dict):
        for name in ARRAYS:
            if isinstance(value.get(name), np.ndarray):
                return np.asarray(value[name])
        arrays = [one for one in value.values() if isinstance(one, np.ndarray) and one.ndim == 2]
        if len(arrays) == 1:
            return arrays[0]
        found = ", ".join(str(name)[:40] for name in list(value)[:8]) or "nothing"
        raise CentroidsError(f"{path} holds {found}; centroids are called {', '.join(ARRAYS)}, or are the one matrix")
    if not isinstance(value, np.ndarray):
        raise CentroidsError(f"{path} holds a {type(value).__name__}, not centroids (units, dim)")
    return value


def _plain(centers: np.ndarray, path: str) -> KMeans:
    if centers.ndim != 2 or not centers.size or centers.dtype.kind != "f":
        raise CentroidsError(f"{path}: centroids are float (units, dim), not {centers.dtype} of shape {centers.shape}")
    numbers = torch.from_numpy(np.array(centers, np.float32))
    if not numbers.isfinite().all():
        raise CentroidsError(f"{path}: NaN or infinity among the centroids")
    dim = numbers.shape[1]
    return KMeans(numbers[None], torch.zeros(dim), torch.ones(dim))


# ------------------------------------------------------------------------------------------------------ writing


def write_kmeans(quantizer: KMeans, path: str | os.PathLike[str], *, form: str | None = None) -> None:
    """Write centroids as "npy", "npz", "safetensors", "torch" (bshall's dictionary) or "sklearn" (joblib; fairseq's).

    By default the suffix of `path` decides.  All but safetensors hold raw centroids alone: a quantizer that
    standardises features or has several codebooks would give other units there, and is refused.
    """
    target, form = Path(path), form or SUFFIXES.get(Path(path).suffix.lower())
    if form not in WRITERS:
        known = ", ".join(sorted(WRITERS))
        raise CentroidsError(f"{target}: in which form? known: {known}; suffixes: {', '.join(SUFFIXES)}")
    if form != "safetensors":
        _refuse_more_than_centroids(quantizer, form)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}{target.suffix}")
    try:
        WRITERS[form](quantizer, scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _refuse_more_than_centroids(quantizer: KMeans, form: str) -> None:
    state = quantizer.state()
    if quantizer.codebooks > 1:
        raise CentroidsError(
            f"the form {form!r} holds one codebook, this quantizer has {quantizer.codebooks} ({quantizer.kind}): "
            "write safetensors, or fit one codebook"
        )
    if state["mean"].any() or (state["std"] != 1).any():
        raise CentroidsError(
            f"this quantizer standardises features, and distances to raw centroids would give other units; the form "
            f"{form!r} has no place for mean and std: write safetensors, or fit with --no-standardize"
        )


def _raw(quantizer: KMeans) -> np.ndarray:
    return quantizer.state()["centroids"][0].numpy()


def _write_npy(quantizer: KMeans, path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, _raw(quantizer))


def _write_npz(quantizer: KMeans, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, centroids=_raw(quantizer))


def _write_safetensors(quantizer: KMeans, path: Path) -> None:
    path.write_bytes(serialize(quantizer.state()))  # bytes first: save_file makes a file that only its owner may read


def _write_torch(quantizer: KMeans, path: Path) -> None:
    centers = torch.from_numpy(_raw(quantizer).copy())
    torch.save({"n_features_in_": quantizer.dim, "_n_threads": 1, "cluster_centers_": centers}, path)


def _write_sklearn(quantizer: KMeans, path: Path) -> None:
    """A MiniBatchKMeans whose predict works, as `joblib.load` of fairseq, GSLM and textless expects it."""
    try:
        import joblib
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ImportError(
            "writing scikit-learn's form takes scikit-learn and joblib: pip install scikit-learn"
        ) from error
    model = MiniBatchKMeans(n_clusters=quantizer.n_units, n_init=1)
    model.cluster_centers_ = _raw(quantizer).copy()
    model.n_features_in_, model._n_threads = quantizer.dim, 1
    joblib.dump(model, path)


WRITERS: dict[str, Callable[[KMeans, Path], None]] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "torch": _write_torch,
    "sklearn": _write_sklearn,
}


# --------------------------------------------------------------------------------------------------- tokenizers


def tokenizer_from_kmeans(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    features: str | os.PathLike[str] | None = None,
    layer: int | None = None,
    padding: str | None = None,
    normalize: bool | None = None,
    device: str = "auto",
) -> Tokenizer:
    """A tokenizer of the centroids in a file and an encoder: by published `name` (a key of NAMES, with or without
    "-km100"), or by `features` and `layer`, which go before those of the name.

    `normalize` overrides what the checkpoint says about its input, for peers that ignored it (GSLM's wav2vec 2.0).
    Raises `CentroidsError` where dimensions do not fit, the name is unknown, or its encoder is not to be had.
    """
    source, where = os.fspath(path), pick_device(device)
    published, units = _published(name) if name is not None else (None, None)
    quantizer = read_kmeans(source)
    if units is not None and units != quantizer.n_units:
        raise CentroidsError(f"{source} has {quantizer.n_units} centroids, but {name!r} says {units}")
    if published is not None:
        features = published.features if features is None else features
        layer = published.layer if layer is None else layer
        padding = published.padding if padding is None else padding
    if features is None:
        why = f"{name!r}: {published.missing}, layer {published.layer}" if published else "features are missing"
        raise CentroidsError(f"{why}; centroids mean nothing without their encoder (--features, --layer, or --name)")
    if layer is None and os.fspath(features) not in FILTERBANKS:
        raise CentroidsError(f"say which layer of {os.fspath(features)} the centroids were fitted to (--layer)")
    padding = padding or "none"
    encoder = load_encoder(features, layer=layer, padding=padding, device=where)
    if encoder.dim != quantizer.dim:
        at = f" layer {found}" if (found := encoder.settings().get("layer")) is not None else ""
        raise CentroidsError(
            f"{source} has centroids of {quantizer.dim} dimensions, {os.fspath(features)}{at} gives {encoder.dim}"
        )
    if normalize is not None:
        if not isinstance(encoder, WaveformEncoder):
            raise CentroidsError(f"{os.fspath(features)} does not take waveforms, so normalize cannot be set")
        encoder.normalize = normalize
    recipe = {"features": os.fspath(features), "layer": encoder.settings().get("layer"), "padding": padding}
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    provenance = {"centroids": Path(source).name, "sha256": digest, **({"name": name} if name else {})}
    return Tokenizer(encoder, quantizer.to(where), recipe=recipe, provenance=provenance)


def _published(name: str) -> tuple[Published, int | None]:
    """The entry of a name, and the number of units where it ends in one ("-km100", "_km500")."""
    stem, units = name, None
    for joint in ("-km", "_km"):
        head, found, tail = name.rpartition(joint)
        if found and tail.isdecimal():
            stem, units = head, int(tail)
    if stem not in NAMES:
        raise CentroidsError(f"unknown name {name!r}; known, with or without -km and a number: {', '.join(NAMES)}")
    return NAMES[stem], units

"""The hash of everything that makes units."""

import hashlib
import json
from typing import Any

from torch import Tensor

from unitkit.encoders import Encoder
from unitkit.quantizers import KMeans

FORMAT = 1
CONVENTIONS = {"channels": "mean", "resampling": "soxr HQ", "samples": "float32, full scale 1"}


def fingerprint(encoder: Encoder, quantizer: KMeans, settings: dict[str, Any] | None = None) -> str:
    """The first 12 hex digits of the hash; `settings` takes the place of the encoder's."""
    facts = {
        "format": FORMAT,
        "conventions": CONVENTIONS,
        "sample_rate": int(encoder.sample_rate),
        "rate_hz": float(encoder.rate_hz),
        "encoder": encoder.settings() if settings is None else settings,
        "quantizer": quantizer.settings(),
        "tensors": _hash_of(quantizer.state()),
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _hash_of(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.numpy()
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()

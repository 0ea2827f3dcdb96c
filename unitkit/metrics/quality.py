"""Predicted opinion scores, 1 to 5: DNSMOS (speechmos) and DistillMOS.  Neither is a human judgement; report both."""

import contextlib
import io
from functools import lru_cache
from typing import Any

import numpy as np

from unitkit.metrics.base import package_version, require, signature

RATE = 16_000


def dnsmos(wav: np.ndarray) -> float:
    """Overall DNSMOS P.835 of (samples,) at 16 kHz; clips under 9 s are repeated to 9 s by the predictor."""
    module = require("speechmos.dnsmos", package="--no-deps speechmos && pip install librosa onnxruntime")
    return float(module.run(np.clip(np.asarray(wav, dtype=np.float32), -1, 1), RATE)["ovrl_mos"])


def distillmos(wav: np.ndarray) -> float:
    """DistillMOS of (samples,) at 16 kHz; clips under 7.7 s are padded with zeros by the predictor."""
    torch = require("torch", package="torch")
    with torch.inference_mode():
        return float(_distillmos()(torch.from_numpy(np.asarray(wav, dtype=np.float32))[None]))


def dnsmos_signature() -> str:
    """Signature of a DNSMOS score."""
    return signature("dnsmos", {"scale": "ovrl-p835", "speechmos": package_version("speechmos")})


def distillmos_signature() -> str:
    """Signature of a DistillMOS score."""
    return signature("distillmos", {"distillmos": package_version("distillmos")})


@lru_cache(maxsize=1)
def _distillmos() -> Any:
    module = require("distillmos", package="--no-deps distillmos xls_r_sqa && pip install torchaudio")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights lie
        return module.ConvTransformerSQAModel().eval()

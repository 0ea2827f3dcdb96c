"""Speaker similarity: cosine between speaker embeddings (resemblyzer) of a synthesis and an original; equal error."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from unitkit.metrics.base import package_version, require, signature

RATE = 16_000


def embed(wav: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz -> (256,) speaker embedding of length 1; long silences are cut out first."""
    trim = require("resemblyzer.audio", package="--no-deps resemblyzer && pip install webrtcvad-wheels librosa")
    wav = np.asarray(wav, dtype=np.float32)
    if not np.any(wav):
        raise ValueError("a silent recording has no speaker")
    speech = trim.preprocess_wav(wav)
    return _encoder().embed_utterance(speech if len(speech) else wav)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings, 0 to 1."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def equal_error_rate(same: np.ndarray, different: np.ndarray) -> float:
    """Percent wrong at the threshold where as many pairs (n,) of one voice fall below as of two voices (m,) above."""
    if not len(same) or not len(different):
        raise ValueError(f"{len(same)} pairs of one voice, {len(different)} of two: an error rate needs both")
    thresholds = np.unique(np.concatenate([same, different, [np.inf]]))
    missed = np.searchsorted(np.sort(same), thresholds) / len(same)  # below the threshold
    false = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    best = int(np.argmin(np.abs(missed - false)))
    return float(50 * (missed[best] + false[best]))


def verification(vectors: np.ndarray, voices: Sequence[str]) -> dict[str, float]:
    """Equal error rate, and mean cosines, of all pairs of vectors (n, dim) of length 1 whose voices are named."""
    cosines, names = vectors @ vectors.T, np.asarray(voices)
    upper = np.triu(np.ones_like(cosines, dtype=bool), 1)
    alike = names[:, None] == names[None]
    same, different = cosines[upper & alike], cosines[upper & ~alike]
    return {
        "eer": equal_error_rate(same, different),
        "same": float(same.mean()),
        "different": float(different.mean()),
    }


def speaker_signature(compared: str = "same-utterance") -> str:
    """Signature of a similarity score."""
    return signature("speaker", {"model": f"resemblyzer-{package_version('resemblyzer')}", "compared": compared})


@lru_cache(maxsize=1)
def _encoder() -> Any:
    module = require("resemblyzer", package="--no-deps resemblyzer && pip install webrtcvad-wheels librosa")
    return module.VoiceEncoder("cpu", verbose=False)

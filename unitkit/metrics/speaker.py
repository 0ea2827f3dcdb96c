"""Speaker similarity: cosine between speaker embeddings (resemblyzer) of a synthesis and an original."""

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


def speaker_signature(compared: str = "same-utterance") -> str:
    """Signature of a similarity score."""
    return signature("speaker", {"model": f"resemblyzer-{package_version('resemblyzer')}", "compared": compared})


@lru_cache(maxsize=1)
def _encoder() -> Any:
    module = require("resemblyzer", package="--no-deps resemblyzer && pip install webrtcvad-wheels librosa")
    return module.VoiceEncoder("cpu", verbose=False)

"""A speaker encoder of ten lines, for tests of what only takes its vectors."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DIM, RATE = 4, 16000


class SpeakerEncoder:
    """How loud four bands of a wav are, (4,), of length 1; `seed` makes another one of it."""

    dim, sample_rate = DIM, RATE

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "cpu") -> "SpeakerEncoder":
        return cls(int((Path(directory) / "seed").read_text()))

    def save(self, directory: str | Path) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "seed").write_text(str(self.seed))

    def checksum(self) -> str:
        return f"{self.seed:012x}"

    def __call__(self, wav: np.ndarray) -> np.ndarray:
        if not np.any(wav):
            raise ValueError("a silent recording has no speaker")
        bands = np.array([part.mean() for part in np.array_split(np.abs(np.fft.rfft(wav)), DIM)])
        return np.roll(bands / np.linalg.norm(bands), self.seed).astype(np.float32)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts it where the real one is looked for."""
    module = ModuleType("unitkit.models.speaker")
    module.SpeakerEncoder = SpeakerEncoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unitkit.models.speaker", module)

"""Features of a corpus, computed once: kept on disk in half precision, and read from there by every later run."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np

from unitkit.augment import Augment, augment
from unitkit.manifest import Utterance
from unitkit.models.listen import Listener
from unitkit.recording import read_speech


class FeaturesError(ValueError):
    """Recordings that give no features; the text names them."""


class Features:
    """`features[i]` (frames, dim) float16 of the i-th utterance, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.ends = np.array(json.loads(path.with_suffix(".json").read_text())["ends"])
        self.flat = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.ends[index - 1] if index else 0 : self.ends[index]]

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each utterance."""
        return np.diff(self.ends, prepend=0)


def features_of(
    utterances: Sequence[Utterance],
    listener: Listener,
    folder: str | os.PathLike[str],
    *,
    changes: Augment | None = None,
    seed: int = 0,
    advance: Callable[[float], None] | None = None,
) -> Features:
    """Features of utterances in their order, from `folder` where they have been computed before.

    With `changes` every recording is changed first (speed, noise, …), a seed always giving the same.  A recording that
    cannot be heard is an error that names it, before anything is written.  `advance` is told of each one's seconds.
    """
    rows = [(u.id, u.audio, u.start, u.duration) for u in utterances]
    what = [listener.settings(), rows, astuple(changes) if changes else None, seed if changes else 0]
    key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = Path(folder) / f"{key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _compute(utterances, listener, path, changes, seed, advance)
    return Features(path)


def _compute(
    utterances: Sequence[Utterance],
    listener: Listener,
    path: Path,
    changes: Augment | None,
    seed: int,
    advance: Callable[[float], None] | None,
) -> None:
    found = []
    for index, utterance in enumerate(utterances):
        wav = read_speech(utterance, listener.sample_rate)
        if changes is not None:
            wav = _changed(wav, listener.sample_rate, (seed, index), changes=changes, utterances=utterances)
        if len(wav) < listener.min_samples:
            raise FeaturesError(f"{utterance.id}: {utterance.audio} is too short for a frame of features")
        found.append(listener(wav).cpu().numpy().astype(np.float16))
        if advance:
            advance(len(wav) / listener.sample_rate)
    ends = np.cumsum([len(one) for one in found]).tolist()
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(scratch, np.concatenate(found))
    path.with_suffix(".json").write_text(json.dumps({"ends": ends}))
    os.replace(scratch, path)


def _changed(
    wav: np.ndarray, rate: int, seeds: tuple[int, int], *, changes: Augment, utterances: Sequence[Utterance]
) -> np.ndarray:
    """The wav as `changes` has it, the babble made of other utterances of the corpus."""
    draw = np.random.default_rng(seeds)
    most = changes.babble_voices[1] if changes.babble else 0
    chosen = [utterances[int(i)] for i in draw.integers(len(utterances), size=most)]
    return augment(wav, rate, draw, config=changes, others=[read_speech(other, rate) for other in chosen])

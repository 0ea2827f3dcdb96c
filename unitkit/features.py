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
    """`features[i]` (frames, dim) float16 of the i-th utterance, from its own file."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.lengths = np.array([len(np.load(path, mmap_mode="r")) for path in self.paths])  # frames of each

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.load(self.paths[index])


def features_of(
    utterances: Sequence[Utterance],
    listener: Listener,
    folder: str | os.PathLike[str],
    *,
    changes: Augment | None = None,
    seed: int = 0,
    advance: Callable[[float], None] | None = None,
) -> Features:
    """Features of utterances in their order, kept as `arrays_of` does.

    With `changes` every recording is changed first (speed, noise, …), a seed and a corpus always giving the same.
    """

    def hear(index: int) -> np.ndarray:
        utterance = utterances[index]
        wav = read_speech(utterance, listener.sample_rate)
        if changes is not None:
            wav = _changed(wav, listener.sample_rate, (seed, index), changes=changes, utterances=utterances)
        if len(wav) < listener.min_samples:
            raise FeaturesError(f"{utterance.id}: {utterance.audio} is too short for a frame of features")
        return listener(wav).cpu().numpy()

    how = _digest([astuple(changes), seed, [u.id for u in utterances]]) if changes else ""
    return arrays_of(utterances, hear, folder, settings=listener.settings(), how=how, advance=advance)


def arrays_of(
    utterances: Sequence[Utterance],
    make: Callable[[int], np.ndarray],
    folder: str | os.PathLike[str],
    *,
    settings: object,
    how: str = "",
    advance: Callable[[float], None] | None = None,
) -> Features:
    """`make(index)` (frames, ...) of each utterance in order, from `folder` where it has been made before.

    `settings` and `how` say all that changes an array.  A recording that cannot be used is an error that names it; what
    was computed before it stays.  Arrays older than their recording are computed again.  `advance` is told of each
    one's seconds.
    """
    home = Path(folder) / _digest(settings)[:12]
    paths = [home / f"{_digest([u.id, u.audio, u.start, u.duration, how])[:24]}.npy" for u in utterances]
    home.mkdir(parents=True, exist_ok=True)
    for index, (utterance, path) in enumerate(zip(utterances, paths, strict=True)):
        if not path.exists() or os.path.getmtime(path) < os.path.getmtime(utterance.audio):
            scratch = path.with_name(f".{path.stem}.{os.getpid()}.npy")
            try:
                made = make(index)
            except ValueError as error:
                if utterance.audio in str(error):
                    raise
                raise FeaturesError(f"{utterance.id} ({utterance.audio}): {error}") from error
            np.save(scratch, made.astype(np.float16))
            os.replace(scratch, path)
        if advance:
            advance(utterance.duration or 0.0)
    return Features(paths)


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _changed(
    wav: np.ndarray, rate: int, seeds: tuple[int, int], *, changes: Augment, utterances: Sequence[Utterance]
) -> np.ndarray:
    """The wav as `changes` has it, the babble made of other utterances of the corpus."""
    draw = np.random.default_rng(seeds)
    most = changes.babble_voices[1] if changes.babble else 0
    chosen = [utterances[int(i)] for i in draw.integers(len(utterances), size=most)]
    return augment(wav, rate, draw, config=changes, others=[read_speech(other, rate) for other in chosen])

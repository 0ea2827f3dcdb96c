"""What whole systems are given: recordings as paths, utterances or wavs, and what they say of themselves."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor

from unitkit import audio
from unitkit.manifest import Utterance
from unitkit.recording import Recording, checked_wav, of_utterance

if TYPE_CHECKING:
    from unitkit.models.listen import Listener

Speech: TypeAlias = str | os.PathLike[str] | Utterance | np.ndarray | Tensor


@dataclass(frozen=True)
class Heard:
    """A model's input of one recording, features (frames, dim) or tokens; `name` is for errors, `label` its id."""

    features: Tensor
    name: str
    label: str


def hear(listener: "Listener", speech: Speech, *, rate: int | None, most: int) -> Heard:
    """Features of a path, an utterance or a wav (samples,) at `rate` Hz, by default the listener's; `most` frames."""
    hz = listener.sample_rate
    if isinstance(speech, np.ndarray | Tensor):
        wav = checked_wav(speech, rate or hz, hz)
        recording = Recording(lambda: iter([wav]), name="the wav")
    else:
        recording = of_utterance(as_utterance(speech), hz)
    recording.hold(listener.encoder)
    wav = recording.wav if recording.wav is not None else np.concatenate(list(recording()))
    if not np.isfinite(wav).all():
        raise audio.AudioError(recording.name, "holds NaN or infinity")
    features = listener(wav)
    if len(features) > most:
        found, allowed = (n / listener.rate_hz for n in (len(features), most))
        raise audio.AudioError(recording.name, f"too long: {found:.1f} s, but this model takes {allowed:.1f} s at most")
    return Heard(features, recording.name, recording.label)


def as_utterance(speech: str | os.PathLike[str] | Utterance) -> Utterance:
    """A path as the whole of its file."""
    return speech if isinstance(speech, Utterance) else Utterance(Path(speech).stem, os.fspath(speech))


def check_sizes(beam: int, batch: int) -> None:
    """Refuse a search without a beam or a batch."""
    for name, value in (("beam", beam), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} {value}: at least 1")


def by_length(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Places of the longest first, in groups of `batch`."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch):
        yield order[start : start + batch]

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
from unitkit.recording import Recording, checked_wav, of_utterance, read_speech
from unitkit.tokenizer import BUNDLED

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


def wav_of(speech: Speech, hz: int, *, rate: int | None = None) -> np.ndarray:
    """Samples (samples,) at `hz` Hz of a path, an utterance or a wav at `rate` Hz, by default at `hz`."""
    if not isinstance(speech, np.ndarray | Tensor):
        return read_speech(as_utterance(speech), hz)
    wav = checked_wav(speech, rate or hz, hz)
    if not np.isfinite(wav).all():
        raise audio.AudioError("the wav", "holds NaN or infinity")
    return wav


def name_of(speech: Speech) -> str:
    """What an error calls a recording: its file, or the wav."""
    return "the wav" if isinstance(speech, np.ndarray | Tensor) else as_utterance(speech).audio


def model_folder(name_or_directory: str | os.PathLike[str]) -> Path:
    """The directory of a bundled model, by its name, or any other; ./name or a `Path` is never a bundled one."""
    name, folder = os.fspath(name_or_directory), Path(name_or_directory)
    bare = isinstance(name_or_directory, str) and name == folder.name
    if bare and (BUNDLED / name / "config.yaml").is_file():
        return BUNDLED / name
    if bare and not folder.is_dir():
        raise ValueError(f"{name}: no such directory, and no bundled model of that name; name a directory (--model)")
    return folder


def part_beside(folder: Path, name: str, given: str | os.PathLike[str] | None = None) -> Path | None:
    """A part of a model: the one given, else in its directory, else beside that; None where there is none."""
    places = (folder / name, folder.resolve().parent / name) if given is None else (Path(given),)
    return next((path for path in places if path.is_dir()), None)


def vocoder_beside(folder: Path, given: str | os.PathLike[str] | None = None) -> Path:
    """The vocoder's directory of a model, as `part_beside` finds it."""
    found = part_beside(folder, "vocoder", given)
    if found is None:
        place = folder / "vocoder" if given is None else given
        raise ValueError(f"{place}: no vocoder there; name the directory of one with vocoder= (--vocoder)")
    return found


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

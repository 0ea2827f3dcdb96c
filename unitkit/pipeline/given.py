"""What whole systems are given: recordings as paths, utterances or wavs, and what they say of themselves."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from unitkit import audio
from unitkit import config as configs
from unitkit.manifest import Utterance
from unitkit.recording import Recording, of_utterance

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
        wav = checked_wav(speech, rate or hz, wanted=hz)
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


def checked_wav(wav: np.ndarray | Tensor, rate: int, *, wanted: int) -> np.ndarray:
    """Samples at the `wanted` rate; finite ones are asked for later, as of files."""
    data = wav.detach().cpu().numpy() if isinstance(wav, Tensor) else wav
    if data.ndim != 1 or data.dtype.kind != "f":
        raise ValueError(f"a wav is float (samples,) in -1..1, mono, not {data.dtype} of shape {data.shape}")
    data = data.astype(np.float32, copy=False)
    return data if rate == wanted else audio.resample(data, rate, wanted)


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


def checksum(model: Any) -> str:
    """12 hex digits that change with a model's config or any of its weights."""
    digest = sha256(configs.to_yaml(model.config).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def named(utterance: Utterance, error: Exception) -> str:
    """What went wrong with an utterance, its file named once."""
    return str(error) if utterance.audio in str(error) else f"{utterance.audio}: {error}"


def noted_rows(path: Path) -> list[dict[str, Any]]:
    """What an interrupted run noted in `path`, a JSON row a line; a last line that is torn is cut off the file."""
    if not path.exists():
        return []
    with open(path, "r+b") as file:
        whole = file.read().rpartition(b"\n")[0]
        file.truncate(len(whole) + 1 if whole else 0)
    return [json.loads(line) for line in whole.splitlines()]

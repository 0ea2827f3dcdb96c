"""Speech to soft units: the soft tokenizer as a whole system, and a corpus encoded into a folder."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from unitkit.audio import AudioError
from unitkit.encode import BAD_INPUT, Progress, Summary, locked, refuse_duplicates, write_rejects
from unitkit.manifest import Utterance
from unitkit.models.listen import Listener
from unitkit.models.soft import SoftError, SoftHead
from unitkit.recording import read_speech
from unitkit.soft import SoftHeader, SoftUnits, begin_soft, path_of, read_soft_header, write_soft
from unitkit.tokenizer import pick_device
from unitkit.units import UnitsError, check_fingerprint

Speech = str | os.PathLike[str] | Utterance | np.ndarray


class SoftTokenizer:
    """Speech to soft units.  `fingerprint` names it as that of a `Tokenizer` does: vocoders and folders carry it."""

    def __init__(self, listener: Listener, head: SoftHead) -> None:
        """`listener` hears, `head` writes; both in eval mode."""
        if listener.dim != head.config.features_dim:
            raise SoftError(f"features of {listener.dim} numbers; this head takes {head.config.features_dim}")
        self.listener, self.head = listener, head
        self.fingerprint = _fingerprint(listener, head)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, device: str = "auto") -> Self:
        """Load a directory written by `recipes/train_soft.py`."""
        device = pick_device(device)
        head = SoftHead.load(directory, device=device)
        return cls(Listener.load(Path(directory) / "listener", device=device), head)

    @property
    def header(self) -> SoftHeader:
        """What a folder of its soft units says of them."""
        return SoftHeader(self.fingerprint, float(self.listener.rate_hz), self.head.config.dim)

    @overload
    def encode(self, x: list[Any] | tuple[Any, ...], *, rate: int | None = None) -> list[SoftUnits]: ...
    @overload
    def encode(self, x: Speech, *, rate: int | None = None) -> SoftUnits: ...
    def encode(self, x: Any, *, rate: int | None = None) -> SoftUnits | list[SoftUnits]:
        """Soft units of a path, an `Utterance`, or a wav (samples,) with its `rate` in Hz; of a list, a list.

        Each recording is encoded alone, so the answer does not depend on what else is in the list.
        """
        if isinstance(x, list | tuple):
            return [self._one(one, rate) for one in x]
        return self._one(x, rate)

    def _one(self, x: Any, rate: int | None) -> SoftUnits:
        label, wav = self._read(x, rate)
        return SoftUnits(self._soft(wav), self.header.rate_hz, self.fingerprint, label)

    def _read(self, x: Any, rate: int | None) -> tuple[str, np.ndarray]:
        wanted = self.listener.sample_rate
        if isinstance(x, np.ndarray):
            if rate != wanted:
                raise SoftError(f"rate {rate}: give the wav at {wanted} Hz and say rate={wanted}")
            return "", x.astype(np.float32, copy=False)
        utterance = x if isinstance(x, Utterance) else Utterance(Path(x).stem, os.fspath(x))
        wav = read_speech(utterance, wanted)
        if len(wav) < self.listener.min_samples:
            raise AudioError(utterance.audio, f"too short for a frame: {len(wav)} samples at {wanted} Hz")
        return utterance.id, wav

    @torch.inference_mode()
    def _soft(self, wav: np.ndarray) -> np.ndarray:
        features = self.listener(wav)[None].to(self.head.labels.weight.device)
        soft = self.head.soft(features, torch.tensor([features.shape[1]], device=features.device))
        return soft[0].float().cpu().numpy()

    @torch.inference_mode()
    def discrete(self, units: SoftUnits) -> np.ndarray:
        """The nearest discrete unit (frames,) of each soft one: what the teacher's units are to it."""
        return self.head.logits(torch.from_numpy(units.values)).argmax(1).numpy()


def _fingerprint(listener: Listener, head: SoftHead) -> str:
    facts = {"soft": 1, "listener": listener.settings(), "head": asdict(head.config)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, value in sorted(head.state_dict().items()):
        array = value.cpu().numpy()
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode() + array.tobytes())
    return digest.hexdigest()[:12]


def encode_soft(
    tokenizer: SoftTokenizer,
    utterances: Sequence[Utterance],
    folder: str | os.PathLike[str],
    *,
    strict: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Encode utterances into a folder of soft units; what is there already is kept.

    Bad files are skipped and listed in the summary and in `rejects.jsonl`; with `strict` the first one raises.

    With `overwrite` what the folder had is taken away first, so that a call that stops can be gone on with as well.

    Raises:
        FingerprintError: the folder's soft units are another tokenizer's, and `overwrite` is not set.
        LockedError: another process is writing the folder.
    """
    out, summary, started = Path(folder), Summary(), time.monotonic()
    refuse_duplicates(utterances)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / "header.json"):
        if overwrite or not (out / "header.json").exists():
            begin_soft(out, tokenizer.header)
        check_fingerprint(tokenizer.fingerprint, read_soft_header(out).tokenizer, what=str(out))
        for utterance in utterances:
            done = _encode_one(tokenizer, utterance, out, summary, strict)
            if on_progress:
                on_progress(done)
        write_rejects(out / "rejects.jsonl", summary.bad)
    summary.elapsed = time.monotonic() - started
    return summary


def _encode_one(tokenizer: SoftTokenizer, utterance: Utterance, out: Path, summary: Summary, strict: bool) -> Progress:
    length = utterance.duration or 0.0
    if path_of(out, utterance.id).exists():
        summary.kept += 1
        return Progress(utterance, length, kept=True)
    try:
        found = tokenizer.encode(utterance)
    except BAD_INPUT as error:
        if strict:
            raise UnitsError(f"{error} (stopped by --strict; {summary.encoded} encoded before are kept)") from error
        summary.bad.append((utterance, str(error)))
        return Progress(utterance, length, bad=str(error))
    write_soft(out, found)
    summary.encoded += 1
    summary.seconds += found.duration
    return Progress(utterance, length or found.duration)

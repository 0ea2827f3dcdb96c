"""Units to speech: the vocoder as a whole system, and a unit file spoken into a directory."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.pipeline.given import model_folder, vocoder_beside
from unitkit.recording import read_speech
from unitkit.soft import SoftUnits, ids_in, read_soft, read_soft_header
from unitkit.tokenizer import pick_device
from unitkit.units import Units, check_fingerprint, read_header, read_units
from unitkit.voices import Voices

if TYPE_CHECKING:
    from unitkit.models.acoustic import AcousticConfig, AcousticModel
    from unitkit.models.vocoder import UnitVocoder, VocoderConfig

DEFAULT = "vocoder"  # name of the bundled model


@dataclass(frozen=True)
class Vocoder:
    """Units to speech: `Vocoder.load("exp/vocoder")(units, speaker="allison")` gives a wav (samples,) float32."""

    model: "UnitVocoder"
    acoustic: "AcousticModel | None" = None  # where units become mels first, which `model` speaks

    @classmethod
    def load(cls, directory: str | Path = DEFAULT, *, device: str = "auto") -> "Vocoder":
        """Load a model directory of `recipes/train_vocoder.py`, or of `train_acoustic.py` with its `vocoder/`.

        Without one, the vocoder that is bundled, which speaks units of the default tokenizer.
        """
        from unitkit.models.acoustic import AcousticModel
        from unitkit.models.storage import kind_of
        from unitkit.models.vocoder import UnitVocoder

        folder, where = model_folder(directory), pick_device(device)
        if kind_of(folder) != "acoustic":
            return cls(UnitVocoder.load(folder, device=where))
        acoustic = AcousticModel.load(folder, device=where)
        model = UnitVocoder.load(vocoder_beside(folder), device=where)
        check_fingerprint(acoustic.config.mel.fingerprint, model.config.tokenizer, what=f"the vocoder for {folder}")
        if not model.config.frames_alone:
            raise ValueError(
                f"the vocoder for {folder} wants more than mels: train one with data.names=false, without F0 and energy"
            )
        return cls(model, acoustic)

    @property
    def config(self) -> "VocoderConfig | AcousticConfig":
        """Of what hears the units: its speakers, languages, vectors are those to ask for."""
        return self.acoustic.config if self.acoustic else self.model.config

    @property
    def predicts_durations(self) -> bool:
        """Whether it takes reduced units."""
        return self.acoustic is None and self.model.durations is not None

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it makes."""
        return self.model.config.sample_rate

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer whose units it was trained on."""
        return self.config.tokenizer

    def checksum(self) -> str:
        """Hex digits that change with any weight."""
        return self.model.checksum() + (self.acoustic.checksum() if self.acoustic else "")

    def __call__(
        self,
        units: Units | SoftUnits,
        *,
        speaker: str | None = None,
        lang: str | None = None,
        f0: np.ndarray | None = None,
        energy: np.ndarray | None = None,
        durations: str | np.ndarray | None = None,
        vector: np.ndarray | None = None,
    ) -> np.ndarray:
        """Speak `units`.

        Args:
            units: frame-level units, or reduced ones (their durations are then predicted unless given); soft units for
                a vocoder trained on them.
            speaker: name; needed where the vocoder knows several.
            lang: language name, likewise.
            f0: (frames,) Hz, 0 = unvoiced, for a vocoder trained with F0.
            energy: (frames,), for a vocoder trained with energy.
            durations: frames per reduced unit (runs,), or "predicted": deduplicate first and predict.
            vector: (n,) says whose voice, for a vocoder trained with speaker vectors.

        Raises:
            FingerprintError: the units come from another tokenizer than the vocoder's.
        """
        ready, predict = self._ready(units, durations)
        if not len(ready):
            return np.zeros(0, np.float32)
        if self.acoustic is not None:
            (wav,) = self.model.generate([self._mel(ready, lang, vector)], speaker=speaker)
            return wav.numpy()
        (wav,) = self.model.generate(
            [ready],
            speaker=speaker,
            lang=lang,
            durations=predict,
            f0=None if f0 is None else [f0],
            energy=None if energy is None else [energy],
            vector=vector,
        )
        return wav.numpy()

    def stream(
        self,
        units: Units | SoftUnits,
        *,
        seconds: float = 0.5,
        speaker: str | None = None,
        lang: str | None = None,
        f0: np.ndarray | None = None,
        energy: np.ndarray | None = None,
        durations: str | np.ndarray | None = None,
        vector: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """What a call gives, in pieces (samples,) of `seconds`, each as soon as it is made."""
        ready, predict = self._ready(units, durations)
        if not len(ready):
            return iter(())
        if self.acoustic is not None:
            whole = self.model.stream(self._mel(ready, lang, vector), seconds=seconds, speaker=speaker)
            return (piece.numpy() for piece in whole)
        pieces = self.model.stream(
            ready,
            seconds=seconds,
            speaker=speaker,
            lang=lang,
            durations=predict,
            f0=f0,
            energy=energy,
            vector=vector,
        )
        return (piece.numpy() for piece in pieces)

    def durations(self, units: Units) -> np.ndarray:
        """Frames (runs,) int64 that a call would give each of the reduced `units`."""
        check_fingerprint(self.tokenizer, units.tokenizer, what=f"units {units.id!r} for this vocoder")
        if self.acoustic:
            raise ValueError("this vocoder predicts no durations: its units are one a frame")
        if not len(units):
            return np.zeros(0, np.int64)
        (frames,) = self.model.predict_durations([torch.from_numpy(units.ids).to(self.model.device)])
        return frames.cpu().numpy()

    def _mel(self, frames: Units | np.ndarray, lang: str | None, vector: np.ndarray | None) -> np.ndarray:
        """What the acoustic model makes of units or soft units: (frames, n_mels)."""
        assert self.acoustic is not None and isinstance(frames, np.ndarray)
        (mel,) = self.acoustic.generate(
            [frames], langs=() if lang is None else (lang,), vectors=None if vector is None else vector[None]
        )
        return mel

    def _ready(
        self, units: Units | SoftUnits, durations: str | np.ndarray | None
    ) -> tuple[Units | np.ndarray, str | None]:
        """What the model takes: units, with "predict" where they are reduced; ids or soft units as they are."""
        if isinstance(durations, str) and durations not in ("predicted", "frames"):
            raise ValueError(f"durations {durations!r}: known are 'frames', 'predicted', or an array of frames")
        check_fingerprint(self.tokenizer, units.tokenizer, what=f"units {units.id!r} for this vocoder")
        if isinstance(units, SoftUnits) or self.acoustic:
            if durations not in (None, "frames"):
                raise ValueError(
                    f"durations {durations!r}: what this vocoder speaks is one a frame; leave durations out"
                )
            frames = units.values if isinstance(units, SoftUnits) else units.ids
            if isinstance(units, Units) and units.reduced:
                raise ValueError(
                    f"units {units.id!r} are reduced: this vocoder predicts no durations, give it all frames"
                )
            return frames, None
        if durations is not None and not isinstance(durations, str):
            return units.expand(np.asarray(durations)), None
        ready = units.dedup()[0] if durations == "predicted" and not units.reduced else units
        return ready, "predict" if ready.reduced else None


def synthesise(
    vocoder: Vocoder,
    units: str | Path,
    out: str | Path,
    *,
    like: str | Path | None = None,
    durations: str = "frames",
    speaker: str | None = None,
    lang: str | None = None,
    shuffle: int | None = None,
    voices: Voices | None = None,
    on_progress: Callable[[Utterance], None] | None = None,
) -> int:
    """Speak a unit file, or a folder of soft units, into `out`: `manifest.jsonl` + wavs.  Returns how many.

    Rows of the manifest `like` lend text, speaker and language by id, and their recordings F0 and energy to a vocoder
    trained with them.  Interrupted work goes on; a directory made with other settings is
    made anew.  `shuffle` is the seed of the frame-shuffled control.  `voices` has the speaker vectors, by id or by the
    name of the speaker, for a vocoder that takes them.
    """
    out = Path(out)
    header = read_soft_header(units) if Path(units).is_dir() else read_header(units)
    check_fingerprint(vocoder.tokenizer, header.tokenizer, what=str(units))
    rows = {row.id: row for row in read_manifest(like)} if like else {}
    settings = _synthesis_settings(vocoder, units, durations, speaker, lang, shuffle)
    if voices := _voices_for(vocoder, voices):
        settings["voices"] = voices.checksum()
    reuse = same_settings(out, settings)
    made: list[Utterance] = []
    for one in _units_in(units, shuffle):
        row = rows.get(one.id, Utterance(one.id, ""))
        row = replace(row, speaker=speaker or row.speaker, lang=lang or row.lang)
        path = out / "wav" / f"{file_name(one.id)}.wav"
        if not (reuse and path.exists()):
            f0, energy = prosody_of(vocoder, rows.get(one.id), one.n_frames, durations)
            wav = vocoder(
                one,
                speaker=None if voices else _known(row.speaker, vocoder.config.speakers, speaker),
                lang=_known(row.lang, vocoder.config.langs, lang),
                f0=f0,
                energy=energy,
                durations=durations,
                vector=_vector(voices, row, speaker) if voices else None,
            )
            audio.write(path, wav, vocoder.sample_rate)
        made.append(replace(row, audio=str(path), start=None, duration=audio.info(path).duration))
        if on_progress:
            on_progress(made[-1])
    return write_manifest(out / "manifest.jsonl", made)


def _units_in(units: str | Path, shuffle: int | None) -> Iterator[Units | SoftUnits]:
    """The units of a file or the soft units of a folder, their frames in disorder where a seed asks for it."""
    if Path(units).is_dir():
        for id in ids_in(units):
            one = read_soft(units, id)
            order = np.random.default_rng(shuffle).permutation(len(one)) if shuffle is not None else slice(None)
            yield replace(one, values=one.values[order])
        return
    for two in read_units(units):
        yield two if shuffle is None else two.shuffled(shuffle)


def prosody_of(
    vocoder: Vocoder, original: Utterance | None, n_frames: int, durations: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """F0 in Hz and energy (frames,) of the original recording, for a vocoder that was trained with them."""
    config = vocoder.model.config
    if vocoder.acoustic or not (config.f0 or config.energy):
        return None, None
    if original is None:
        raise ValueError("this vocoder takes F0 or energy from the original recordings: name their manifest (--like)")
    if durations != "frames":
        raise ValueError(f"durations {durations!r}: F0 and energy follow the original's frames; use 'frames'")
    wav = read_speech(original, config.sample_rate)
    wav = np.pad(wav, (0, max(0, n_frames * config.hop - len(wav))))[: n_frames * config.hop]
    f0 = audio.f0(wav, config.sample_rate, hop_samples=config.hop) if config.f0 else None
    return f0, audio.energy(wav, hop_samples=config.hop) if config.energy else None


def _voices_for(vocoder: Vocoder, voices: Voices | None) -> Voices | None:
    """The voices, if the vocoder takes any; an error where it needs others."""
    c = vocoder.config
    if not c.speaker_vector_dim:
        return None
    if voices is None:
        raise ValueError("this vocoder takes speaker vectors: name a file of them (--voices)")
    voices.check(c.speaker_encoder, c.speaker_vector_dim, what="the voices for this vocoder")
    return voices


def _vector(voices: Voices, row: Utterance, asked: str | None) -> np.ndarray:
    """Of the speaker asked for, else of the utterance, else of its speaker."""
    return voices[asked or (row.id if row.id in voices else row.speaker or row.id)]


def _known(name: str | None, names: tuple[str, ...], asked: str | None) -> str | None:
    """A name from the manifest goes to a vocoder that tells several apart; one asked for always does."""
    return asked or (name if len(names) > 1 else None)


def file_name(utterance: str) -> str:
    """A flat, readable and unique file name for an id that may hold slashes."""
    flat = re.sub(r"[^\w.-]+", "_", utterance)
    return flat if flat == utterance else f"{flat}-{sha256(utterance.encode()).hexdigest()[:6]}"


def _checksum(units: Path) -> str:
    """12 hex digits of the content of a unit file, or of all files of a folder."""
    digest = sha256()
    for path in sorted(units.rglob("*.npy")) if units.is_dir() else [units]:
        digest.update(path.name.encode() * units.is_dir() + path.read_bytes())
    return digest.hexdigest()[:12]


def _synthesis_settings(
    vocoder: Vocoder, units: str | Path, durations: str, speaker: str | None, lang: str | None, shuffle: int | None
) -> dict[str, object]:
    return {
        "vocoder": vocoder.checksum(),
        "units": _checksum(Path(units)),
        "tokenizer": vocoder.tokenizer,
        "durations": durations,
        "speaker": speaker,
        "lang": lang,
        "shuffle": shuffle,
    }


def same_settings(out: Path, settings: dict[str, object], *, files: Sequence[str] = ("manifest.jsonl",)) -> bool:
    """Whether wavs in `out` were made with `settings`; notes them there otherwise, and removes what others made.

    A folder that was not made by synthesis, but has wavs or one of the `files` that will be written, is refused.
    """
    note, wavs = out / "synthesis.json", list((out / "wav").glob("*.wav"))
    if note.exists() and json.loads(note.read_text()) == settings:
        return True
    if not note.exists() and (there := [*(out / name for name in files if (out / name).exists()), *wavs]):
        raise ValueError(f"{there[0]} was not made by synthesis and would be overwritten: give a directory of its own")
    out.mkdir(parents=True, exist_ok=True)
    for stale in wavs:
        stale.unlink()
    note.write_text(json.dumps(settings, indent=1) + "\n")
    return False

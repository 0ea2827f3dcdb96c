"""Whole systems with one call: load a directory, call it.  Also bulk synthesis and what `unitkit info` prints."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.recording import read_speech
from unitkit.tokenizer import Tokenizer, pick_device
from unitkit.units import FingerprintError, Units, UnitsHeader, bitrate, check_fingerprint, read_header, read_units

if TYPE_CHECKING:
    from unitkit.models.vocoder import UnitVocoder


@dataclass(frozen=True)
class Vocoder:
    """Units to speech: `Vocoder.load("exp/vocoder")(units, speaker="allison")` gives a wav (samples,) float32."""

    model: "UnitVocoder"

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "auto") -> "Vocoder":
        """Load a model directory written by `recipes/train_vocoder.py`."""
        from unitkit.models.vocoder import UnitVocoder

        return cls(UnitVocoder.load(directory, device=pick_device(device)))

    @property
    def sample_rate(self) -> int:
        """Hz of the wavs it makes."""
        return self.model.config.sample_rate

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer whose units it was trained on."""
        return self.model.config.tokenizer

    def __call__(
        self,
        units: Units,
        *,
        speaker: str | None = None,
        lang: str | None = None,
        f0: np.ndarray | None = None,
        energy: np.ndarray | None = None,
        durations: str | np.ndarray | None = None,
    ) -> np.ndarray:
        """Speak `units`.

        Args:
            units: frame-level units, or reduced ones (their durations are then predicted unless given).
            speaker: name; needed where the vocoder knows several.
            lang: language name, likewise.
            f0: (frames,) Hz, 0 = unvoiced, for a vocoder trained with F0.
            energy: (frames,), for a vocoder trained with energy.
            durations: frames per reduced unit (runs,), or "predicted": deduplicate first and predict.

        Raises:
            FingerprintError: the units come from another tokenizer than the vocoder's.
        """
        if isinstance(durations, str) and durations not in ("predicted", "frames"):
            raise ValueError(f"durations {durations!r}: known are 'frames', 'predicted', or an array of frames")
        check_fingerprint(self.tokenizer, units.tokenizer, what=f"units {units.id!r} for this vocoder")
        given = None if durations is None or isinstance(durations, str) else np.asarray(durations)
        if given is not None:
            units = units.expand(given)
        elif durations is not None and durations == "predicted" and not units.reduced:
            units, _ = units.dedup()
        if units.n_frames == 0:
            return np.zeros(0, np.float32)
        (wav,) = self.model.generate(
            [units],
            speaker=speaker,
            lang=lang,
            durations="predict" if units.reduced else None,
            f0=None if f0 is None else [f0],
            energy=None if energy is None else [energy],
        )
        return wav.numpy()


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
    on_progress: Callable[[Utterance], None] | None = None,
) -> int:
    """Speak a unit file into the directory `out`: `manifest.jsonl` + wavs.  Returns the number of utterances.

    Rows of the manifest `like` lend text, speaker and language by id, and their recordings F0 and energy to a vocoder
    trained with them.  Interrupted work goes on; a directory made with other settings is
    made anew.  `shuffle` is the seed of the frame-shuffled control.
    """
    out = Path(out)
    check_fingerprint(vocoder.tokenizer, read_header(units).tokenizer, what=str(units))
    rows = {row.id: row for row in read_manifest(like)} if like else {}
    settings = _synthesis_settings(vocoder, units, durations, speaker, lang, shuffle)
    reuse = _same_settings(out, settings)
    made: list[Utterance] = []
    for one in read_units(units):
        row = rows.get(one.id, Utterance(one.id, ""))
        row = replace(row, speaker=speaker or row.speaker, lang=lang or row.lang)
        path = out / "wav" / f"{_file_name(one.id)}.wav"
        if not (reuse and path.exists()):
            f0, energy = _prosody(vocoder, rows.get(one.id), one.n_frames, durations)
            wav = vocoder(
                one if shuffle is None else one.shuffled(shuffle),
                speaker=_known(row.speaker, vocoder.model.config.speakers, speaker),
                lang=_known(row.lang, vocoder.model.config.langs, lang),
                f0=f0,
                energy=energy,
                durations=durations,
            )
            audio.write(path, wav, vocoder.sample_rate)
        made.append(replace(row, audio=str(path), start=None, duration=audio.info(path).duration))
        if on_progress:
            on_progress(made[-1])
    return write_manifest(out / "manifest.jsonl", made)


def _prosody(
    vocoder: Vocoder, original: Utterance | None, n_frames: int, durations: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """F0 in Hz and energy (frames,) of the original recording, for a vocoder that was trained with them."""
    config = vocoder.model.config
    if not (config.f0 or config.energy):
        return None, None
    if original is None:
        raise ValueError("this vocoder takes F0 or energy from the original recordings: name their manifest (--like)")
    if durations != "frames":
        raise ValueError(f"durations {durations!r}: F0 and energy follow the original's frames; use 'frames'")
    wav = read_speech(original, config.sample_rate)
    wav = np.pad(wav, (0, max(0, n_frames * config.hop - len(wav))))[: n_frames * config.hop]
    f0 = audio.f0(wav, config.sample_rate, hop_samples=config.hop) if config.f0 else None
    return f0, audio.energy(wav, hop_samples=config.hop) if config.energy else None


def _known(name: str | None, names: tuple[str, ...], asked: str | None) -> str | None:
    """A name from the manifest goes to a vocoder that tells several apart; one asked for always does."""
    return asked or (name if len(names) > 1 else None)


def _file_name(utterance: str) -> str:
    """A flat, readable and unique file name for an id that may hold slashes."""
    flat = re.sub(r"[^\w.-]+", "_", utterance)
    return flat if flat == utterance else f"{flat}-{sha256(utterance.encode()).hexdigest()[:6]}"


def _synthesis_settings(
    vocoder: Vocoder, units: str | Path, durations: str, speaker: str | None, lang: str | None, shuffle: int | None
) -> dict[str, object]:
    return {
        "vocoder": vocoder.model.checksum(),
        "units": sha256(Path(units).read_bytes()).hexdigest()[:12],
        "tokenizer": vocoder.tokenizer,
        "durations": durations,
        "speaker": speaker,
        "lang": lang,
        "shuffle": shuffle,
    }


def _same_settings(out: Path, settings: dict[str, object]) -> bool:
    """Whether wavs in `out` were made with `settings`; notes them there otherwise."""
    note = out / "synthesis.json"
    if note.exists() and json.loads(note.read_text()) == settings:
        return True
    out.mkdir(parents=True, exist_ok=True)
    for stale in (out / "wav").glob("*.wav"):
        stale.unlink()
    note.write_text(json.dumps(settings, indent=1) + "\n")
    return False


def header_of(tokenizer: str, *, n_units: int | None = None, rate_hz: float = 50.0) -> UnitsHeader:
    """The unit-file header of a tokenizer given by directory, bundled name, or bare 12-hex fingerprint."""
    if not re.fullmatch(r"[0-9a-f]{12}", tokenizer):
        return Tokenizer.load(tokenizer, device="cpu").header()
    if n_units is None:
        raise ValueError(f"a bare fingerprint ({tokenizer}) does not say how many units there are: add --units")
    return UnitsHeader(tokenizer, rate_hz, n_units)


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, object]:
    """What `unitkit info` says of a tokenizer."""
    facts: dict[str, object] = {
        "fingerprint": tokenizer.fingerprint,
        "units": f"{tokenizer.n_units} × {tokenizer.codebooks} codebook(s) at {tokenizer.rate_hz:g} Hz",
        "sample rate": f"{tokenizer.sample_rate} Hz",
    }
    facts |= {f"encoder {name}": value for name, value in tokenizer.encoder.settings().items()}
    report = {name: value for name, value in tokenizer.quantizer.report.items() if name != "per_codebook"}
    return facts | {f"k-means {name}": value for name, value in report.items()}


def describe(path: str) -> tuple[str, dict[str, object]]:
    """Title and facts of a tokenizer, unit file, manifest, model directory or audio file; for `unitkit info`."""
    at = Path(path)
    if not at.exists():
        return "tokenizer", tokenizer_facts(Tokenizer.load(path, device="cpu"))
    if at.is_dir():
        return _describe_directory(at)
    if at.suffix != ".jsonl":
        return "audio", asdict(audio.info(at))
    first = at.open(encoding="utf-8").readline()
    if '"unitkit"' in first:
        header = read_header(at)
        rate = bitrate(read_units(at))
        return "units", asdict(header) | {"utterances": sum(1 for _ in read_units(at))} | asdict(rate)
    rows = list(read_manifest(at))
    seconds = sum(row.duration or 0.0 for row in rows)
    speakers, langs = ({getattr(row, name) for row in rows if getattr(row, name)} for name in ("speaker", "lang"))
    words = sum(len((row.text or "").split()) for row in rows)
    return "manifest", {
        "utterances": len(rows),
        "minutes": seconds / 60,
        "speakers": ", ".join(sorted(speakers)) or "not given",
        "languages": ", ".join(sorted(langs)) or "not given",
        "words": words,
    }


def _describe_directory(at: Path) -> tuple[str, dict[str, object]]:
    if (at / "tokenizer.json").exists():
        return "tokenizer", tokenizer_facts(Tokenizer.load(at, device="cpu"))
    if (at / "config.yaml").exists() and (at / "model.safetensors").exists():
        vocoder = Vocoder.load(at, device="cpu")
        size = sum(p.numel() for p in vocoder.model.parameters())
        return "vocoder", {"parameters": f"{size / 1e6:.2f} M"} | asdict(vocoder.model.config)
    if (at / "manifest.jsonl").exists():
        return describe(str(at / "manifest.jsonl"))
    raise ValueError(f"{at}: neither a tokenizer, a model, nor a synthesis directory")


__all__ = ["FingerprintError", "Vocoder", "describe", "header_of", "synthesise", "tokenizer_facts"]

"""The tokenizer: encoder, quantizer and conventions in one artefact, named by the fingerprint of all that makes units.

The fingerprint is the first 12 hex digits of the sha256 of canonical JSON: the encoder's settings (with a hash of its
weights), the quantizer's settings and tensors, and the conventions below.  Where a tokenizer lies, who fitted it and
on what is kept beside it but is no part of the fingerprint.

Units are those of one recording encoded alone, however they were asked for: a long file is read and encoded block by
block to the same features bit for bit, and where a batch was used, utterances with a frame so close to two centroids
that the batch's rounding (`BATCH_ERROR`) could decide are encoded again alone.
"""

import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias, overload

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from unitkit import audio
from unitkit.encoders import Encoder, load_encoder
from unitkit.manifest import Utterance, read_manifest
from unitkit.quantizers import KMeans, frames_for_memory, sample_frames
from unitkit.recording import Recording, groups, of_utterance, stream_features
from unitkit.stream import Stream
from unitkit.units import FingerprintError, Units, UnitsHeader, check_fingerprint

FORMAT = 1
DEFAULT = "prompts-mfcc100"
BUNDLED = Path(__file__).parent / "bundled"
CONVENTIONS = {"channels": "mean", "resampling": "soxr HQ", "samples": "float32, full scale 1"}
FILES = {"tokenizer.json", "model.safetensors", "card.md", "encoder"}
BATCH_ERROR = 1e-5  # most that a padded batch changes a frame's features, of the frame's length, in float32

Speech: TypeAlias = str | os.PathLike[str] | Utterance | np.ndarray | Tensor


class TokenizerError(ValueError):
    """A tokenizer directory that cannot be used or must not be replaced."""


class Tokenizer:
    """Speech to units.  `fingerprint` names it; every unit file and model made with it carries that name."""

    def __init__(
        self,
        encoder: Encoder,
        quantizer: KMeans,
        *,
        recipe: dict[str, Any],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """`recipe` holds the arguments of `load_encoder` that give `encoder`; `provenance` is shown on the card."""
        self.encoder, self.quantizer = encoder, quantizer
        self.recipe, self.provenance = recipe, provenance or {}
        self.fingerprint = _fingerprint(encoder, quantizer)

    @property
    def rate_hz(self) -> float:
        """Frames per second."""
        return float(self.encoder.rate_hz)

    @property
    def sample_rate(self) -> int:
        """Samples per second the encoder works at; other rates are resampled to it."""
        return self.encoder.sample_rate

    @property
    def n_units(self) -> int:
        """Units per codebook."""
        return self.quantizer.n_units

    @property
    def codebooks(self) -> int:
        """Units per frame."""
        return self.quantizer.codebooks

    def header(self) -> UnitsHeader:
        """The header of unit files made with this tokenizer."""
        return UnitsHeader(self.fingerprint, self.rate_hz, self.n_units, self.codebooks)

    # ------------------------------------------------------------------------------------------------- fitting

    @classmethod
    def fit(
        cls,
        manifest: str | os.PathLike[str] | Iterable[Utterance],
        *,
        features: str = "mfcc",
        layer: int | None = None,
        units: int = 100,
        codebooks: int = 1,
        kind: str = "plain",
        standardize: bool = True,
        max_frames: int | None = None,
        seed: int = 0,
        device: str = "auto",
        padding: str = "none",
        precision: str = "float32",
        engine: str = "auto",
        on_error: Callable[[Utterance, Exception], None] | None = None,
        progress: Callable[[Utterance], None] | None = None,
    ) -> Self:
        """Fit k-means to the features of a manifest.

        Features are streamed; a seeded uniform sample of at most `max_frames` frames is kept, whatever the corpus size:
        max_frames × dim × 4 bytes, a fifth more while k-means runs.  By default as many as keep the process in 2 GB,
        a million at most.  A bad file raises, unless `on_error` is given: then it is told of it and the file is
        skipped.  `progress` is called after each utterance.  `precision` and `engine` are those of `load_encoder`; all
        but float32 make another tokenizer.  Without `standardize`, distances are those of the features as they are,
        and the centroids can be written in the formats of peers.
        """
        where = pick_device(device)
        encoder = load_encoder(features, layer=layer, padding=padding, device=where, precision=precision, engine=engine)
        recipe = {
            "features": os.fspath(features),
            "layer": encoder.settings().get("layer"),
            "padding": padding,
            **_arithmetic(encoder),
        }
        tally: dict[str, Any] = {"utterances": 0, "skipped": 0, "seconds": 0.0}
        data = os.fspath(manifest) if isinstance(manifest, str | os.PathLike) else "utterances given in Python"
        utterances = read_manifest(manifest) if isinstance(manifest, str | os.PathLike) else manifest
        stream = stream_features(encoder, utterances, on_error=on_error, progress=progress, tally=tally)
        max_frames = _affordable(encoder, units) if max_frames is None else max_frames
        frames = sample_frames(stream, max_frames, seed=seed)
        quantizer = KMeans.fit(
            frames,
            units,
            codebooks=codebooks,
            kind=kind,
            standardize=standardize,
            seed=seed,
            device=where,
            overwrite=True,
        )
        provenance = {
            "data": data,
            **tally,
            "max_frames": max_frames,
            "seed": seed,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        return cls(encoder, quantizer.to(where), recipe=recipe, provenance=provenance)

    # ---------------------------------------------------------------------------------------------------- using

    @overload
    def encode(
        self, x: list[Any] | tuple[Any, ...], *, rate: int | None = None, batched: bool | None = None
    ) -> list[Units]: ...
    @overload
    def encode(self, x: Speech, *, rate: int | None = None, batched: bool | None = None) -> Units: ...
    def encode(self, x: Any, *, rate: int | None = None, batched: bool | None = None) -> Units | list[Units]:
        """Units of a path, an `Utterance`, or a wav (samples,) with its `rate` in Hz; of a list, a list.

        An utterance with `start` is that part of its file, else the whole file, of any length.  The answer for one
        input does not depend on what else is in the list.  `batched` encodes a list in padded batches: it is faster on
        a GPU and the default there, slower on a CPU; the units are the same.
        """
        if not isinstance(x, list | tuple):
            recording = self._recording(x, rate)
            return self._units(self._ids(recording), recording)
        if batched is None:
            batched = self.quantizer.device.type == "cuda" and self.exact
        if not batched:
            alone = [self._recording(one, rate) for one in x]
            return [self._units(self._ids(recording), recording) for recording in alone]
        if not self.exact:
            raise ValueError(
                f"tokenizer {self.fingerprint} computes in {self.encoder.settings()['arithmetic']}: its units would "
                "depend on what else is in the batch. Encode with batched=False, or load it with precision='float32'"
            )
        return self._encode_batched([self._recording(one, rate) for one in x])

    @property
    def exact(self) -> bool:
        """Whether features are computed in float32, so that batches and other engines give the same units."""
        return "arithmetic" not in self.encoder.settings()

    @property
    def window_s(self) -> float | None:
        """Seconds from which on a recording is encoded in windows; None where that changes nothing (filterbanks)."""
        return None if self.encoder.exact_context is not None else float(str(self.encoder.settings()["window_s"]))

    def stream(self, rate: int | None = None, *, lookahead: float | None = None) -> Stream:
        """A `Stream` that takes samples at `rate` Hz (the tokenizer's own by default) as they arrive and gives units.

        `lookahead` is the most seconds of later audio that a unit waits for.  Filterbanks need well under 0.1 s and
        give exactly the units of the whole recording; transformers attend to everything, so their units differ.
        """
        return Stream(self.encoder, self.quantizer.assign, self.header(), rate=rate, lookahead=lookahead)

    def _recording(self, x: Any, rate: int | None) -> Recording:
        if isinstance(x, np.ndarray | Tensor):
            wav = self._wav(x, rate)
            return Recording(lambda: iter([wav]), name="array")
        return of_utterance(x if isinstance(x, Utterance) else Utterance(Path(x).stem, os.fspath(x)), self.sample_rate)

    def _ids(self, recording: Recording) -> np.ndarray:
        """Units piece by piece: of a long recording neither the samples nor the features are ever held whole."""
        # One growing buffer: small arrays that stay, among large ones that come and go, scatter the memory. Ten hours
        # took 1.2 GB as a list of tensors.
        ids = bytearray()
        for piece in recording.features(self.encoder):
            ids += self.quantizer.assign(piece).cpu().numpy().astype(np.int64, copy=False).tobytes()
        flat = np.frombuffer(ids, np.int64)
        return flat if self.codebooks == 1 else flat.reshape(-1, self.codebooks)

    def _units(self, ids: np.ndarray, recording: Recording) -> Units:
        return Units(ids, self.rate_hz, self.n_units, self.fingerprint, recording.label)

    def _encode_batched(self, recordings: Sequence[Recording]) -> list[Units]:
        done: list[Units] = []
        for group in groups(recordings, self.encoder):
            wavs = [recording.wav for recording in group if recording.wav is not None]
            features = iter(self.encoder.batch(wavs) if wavs else [])
            for recording in group:
                one = None if recording.wav is None else next(features)
                if one is None or bool(self.quantizer.undecided(one, relative=BATCH_ERROR).any()):
                    ids = self._ids(recording)  # alone: too long to hold, or too close to call from a batch
                else:
                    ids = self.quantizer.assign(one).cpu().numpy()
                recording.release()
                done.append(self._units(ids, recording))
        return done

    def _wav(self, wav: np.ndarray | Tensor, rate: int | None) -> np.ndarray:
        wav = wav.detach().cpu().numpy() if isinstance(wav, Tensor) else wav
        if rate is None:
            raise ValueError(f"say at which rate the samples are: encode(wav, rate={self.sample_rate})")
        if wav.ndim != 1 or wav.dtype.kind != "f":
            raise ValueError(f"a wav is float (samples,) in -1..1, mono, not {wav.dtype} of shape {wav.shape}")
        if not np.isfinite(wav).all():
            raise ValueError("the wav holds NaN or infinity")
        wav = wav.astype(np.float32, copy=False)
        return wav if rate == self.sample_rate else audio.resample(wav, rate, self.sample_rate)

    def embed(self, units: Units) -> Tensor:
        """Features (frames, dim) that `units` stand for: their centroids."""
        check_fingerprint(self.fingerprint, units.tokenizer, what=f"units {units.id!r} to embed")
        return self.quantizer.decode(units.ids)

    def to(self, device: str | torch.device) -> Self:
        """Move encoder and quantizer to `device`."""
        self.encoder, self.quantizer = self.encoder.to(device), self.quantizer.to(device)
        return self

    # ---------------------------------------------------------------------------------------------------- files

    def save(self, directory: str | os.PathLike[str], *, card: str = "", overwrite: bool = False) -> None:
        """Write the directory in one step; `card` is added to the card.  It can be moved and loaded anywhere.

        A directory that holds another tokenizer is replaced only with `overwrite`; one that holds other files never.
        """
        target = Path(directory)
        _refuse_replacing(target, self.fingerprint, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir()
            self._write(scratch, card)
            _swap(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write(self, directory: Path, card: str) -> None:
        (directory / "encoder").mkdir()
        self.encoder.save(directory / "encoder")
        own_encoder = any((directory / "encoder").iterdir())
        if not own_encoder:
            (directory / "encoder").rmdir()
        # Bytes first: save_file makes a file that only its owner may read.
        (directory / "model.safetensors").write_bytes(serialize(self.quantizer.state()))
        facts = {
            "unitkit_tokenizer": FORMAT,
            **self._identity(),
            "recipe": self.recipe,
            "provenance": self.provenance,
            "report": self.quantizer.report,
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
        (directory / "card.md").write_text(_card(facts, card), encoding="utf-8")

    def _identity(self, arithmetic: str | None = None) -> dict[str, Any]:
        """What the directory says that must agree with what its files make; `arithmetic` takes the encoder's place."""
        encoder = self.encoder.settings()
        if arithmetic is not None:
            encoder = {key: value for key, value in encoder.items() if key != "arithmetic"}
            encoder |= {"arithmetic": arithmetic} if arithmetic != "float32" else {}
        return {
            "fingerprint": _fingerprint(self.encoder, self.quantizer, encoder),
            "sample_rate": self.sample_rate,
            "rate_hz": self.rate_hz,
            "n_units": self.n_units,
            "codebooks": self.codebooks,
            "encoder": encoder,
            "quantizer": self.quantizer.settings(),
            "conventions": CONVENTIONS,
        }

    @classmethod
    def load(
        cls,
        name_or_dir: str | os.PathLike[str] = DEFAULT,
        *,
        device: str = "auto",
        precision: str | None = None,
        engine: str = "auto",
    ) -> Self:
        """Load a bundled tokenizer by name, or a directory; raises `FingerprintError` if its files were changed.

        `precision` is "float32", "bfloat16" or "int8", by default what it was saved with; `engine` is "auto", "plain",
        "fast" or "openvino" (see `load_encoder`).  Another precision is another tokenizer, with its own fingerprint.
        """
        directory, where = _find(name_or_dir), pick_device(device)
        facts = _facts(directory)
        recipe = facts["recipe"]
        saved = {"precision": recipe.get("precision", "float32"), "engine": recipe.get("engine", "auto")}
        as_saved = precision in (None, saved["precision"])
        own_encoder = directory / "encoder"
        encoder = load_encoder(
            str(own_encoder) if own_encoder.is_dir() else recipe["features"],
            layer=recipe["layer"],
            padding=recipe["padding"],
            device=where,
            precision=precision or saved["precision"],
            engine=saved["engine"] if as_saved and engine == "auto" else engine,
        )
        quantizer = KMeans.from_state(facts["quantizer"], _tensors(directory))
        quantizer.report = facts["report"]
        recipe = {**recipe, **_arithmetic(encoder)}
        tokenizer = cls(encoder, quantizer.to(where), recipe=recipe, provenance=facts["provenance"])
        tokenizer._verify(facts, directory, as_saved=as_saved and engine in ("auto", saved["engine"]))
        return tokenizer

    def _verify(self, facts: dict[str, Any], directory: Path, *, as_saved: bool) -> None:
        """Refuse changed files.  Where another arithmetic was asked for, all but that must agree."""
        swapped = None if as_saved else facts.get("encoder", {}).get("arithmetic", "float32")
        identity = json.loads(json.dumps(self._identity(swapped)))
        if changed := [name for name, value in identity.items() if facts.get(name) != value]:
            raise FingerprintError(
                f"{directory}: tokenizer.json says {facts['fingerprint']!r}, its files and this unitkit make "
                f"{identity['fingerprint']!r}; they differ in {', '.join(changed)}. Restore the files, or fit anew"
            )


def _arithmetic(encoder: Encoder) -> dict[str, str]:
    """The arguments of `load_encoder` that give the encoder's arithmetic; in float32 any engine will do."""
    engine, _, precision = str(encoder.settings().get("arithmetic", "auto float32")).partition(" ")
    return {"precision": precision, "engine": engine}


def _affordable(encoder: Encoder, units: int) -> int:
    """Frames that fitting may keep for the process to stay within 2 GB: 0.6 GB for libraries and one long file.

    Weights count twice, as engines fold copies of them.  Counted, not measured: the same on every machine.
    """
    model = getattr(encoder, "model", None)
    weights = 0 if model is None else sum(tensor.nbytes for tensor in model.parameters())
    return frames_for_memory(encoder.dim, max(2.0 - 0.6 - 2 * weights / 1e9, 0.3), units=units)


def pick_device(device: str) -> str:
    """The device "auto" stands for: a CUDA GPU where there is one, else the CPU; other names torch must know."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or one this torch or machine does not have
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); known: auto, cpu, cuda, cuda:N") from error
    return device


def bundled() -> list[str]:
    """Names of the tokenizers that come with unitkit."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/tokenizer.json"))


# ----------------------------------------------------------------------------------------------------- fingerprint


def _fingerprint(encoder: Encoder, quantizer: KMeans, settings: dict[str, Any] | None = None) -> str:
    """The hash of everything that makes units; `settings` takes the place of the encoder's."""
    facts = {
        "format": FORMAT,
        "conventions": CONVENTIONS,
        "sample_rate": int(encoder.sample_rate),
        "rate_hz": float(encoder.rate_hz),
        "encoder": encoder.settings() if settings is None else settings,
        "quantizer": quantizer.settings(),
        "tensors": _hash_of(quantizer.state()),
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _hash_of(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.numpy()
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------- files


def _find(name_or_dir: str | os.PathLike[str]) -> Path:
    name = os.fspath(name_or_dir)
    if name in (known := bundled()):
        return BUNDLED / name
    if (Path(name) / "tokenizer.json").is_file():
        return Path(name)
    what = "has no tokenizer.json" if Path(name).is_dir() else "is neither a directory nor a bundled tokenizer"
    raise TokenizerError(f"{name!r} {what}; bundled: {', '.join(known) or 'none'}")


def _facts(directory: Path) -> dict[str, Any]:
    path = directory / "tokenizer.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["unitkit_tokenizer"]
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"{path}: not a tokenizer's file: {error!r}") from error
    if version != FORMAT:
        raise TokenizerError(f"{path}: format {version!r}; this unitkit reads format {FORMAT}")
    if missing := {"fingerprint", "recipe", "quantizer", "provenance", "report"} - set(facts):
        raise TokenizerError(f"{path}: lacks {', '.join(sorted(missing))}")
    return facts


def _tensors(directory: Path) -> dict[str, Tensor]:
    try:
        return load_file(directory / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise TokenizerError(f"{directory / 'model.safetensors'}: {error}") from error


def _refuse_replacing(target: Path, fingerprint: str, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir() or (foreign := {path.name for path in target.iterdir()} - FILES):
        what = "is a file" if not target.is_dir() else f"holds other files ({', '.join(sorted(foreign)[:3])})"
        raise TokenizerError(f"{target} {what}: save the tokenizer in a directory of its own")
    if (target / "tokenizer.json").exists() and not overwrite:
        found = str(_facts(target)["fingerprint"])
        if found != fingerprint:
            raise TokenizerError(
                f"{target} holds tokenizer {found}, not {fingerprint}: save elsewhere, or overwrite=True (--overwrite)"
            )


def _swap(scratch: Path, target: Path) -> None:
    """Put `scratch` in the place of `target`, which is never half-written."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(scratch, target)
    shutil.rmtree(old, ignore_errors=True)


def _card(facts: dict[str, Any], text: str) -> str:
    lines = [
        f"# Tokenizer {facts['fingerprint']}",
        "",
        f"{facts['n_units']} units × {facts['codebooks']} codebook(s) at {facts['rate_hz']:g} Hz from "
        f"{facts['sample_rate']} Hz mono speech; features: {facts['recipe']['features']}.",
        "",
        *([text.strip(), ""] if text.strip() else []),
    ]
    for title, rows in (("Made from", facts["provenance"]), ("Encoder", facts["encoder"]), ("Fit", facts["report"])):
        lines += [f"## {title}", ""]
        lines += [f"- {name}: {_shown(value)}" for name, value in rows.items() if name != "per_codebook"]
        lines += [""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

"""The tokenizer itself: fitted, used, saved and loaded.

Units are those of one recording encoded alone, however they were asked for: a long file is read and encoded block by
block to the same features bit for bit, and where a batch was used, utterances with a frame so close to two centroids
that the batch's rounding (`BATCH_ERROR`) could decide are encoded again alone.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias, overload

import numpy as np
import torch
from safetensors.torch import save as serialize
from torch import Tensor

import unitkit.tokenizer.files as files
from unitkit import audio
from unitkit.encoders import Encoder, load_encoder
from unitkit.manifest import Utterance, read_manifest
from unitkit.quantizers import KMeans, check_layout, frames_for_memory, sample_frames
from unitkit.recording import Recording, groups, of_utterance, stream_features
from unitkit.stream import Stream
from unitkit.tokenizer.fingerprint import CONVENTIONS, FORMAT, fingerprint
from unitkit.units import FingerprintError, Units, UnitsHeader, check_fingerprint

BATCH_ERROR = 1e-5  # most that a padded batch changes a frame's features, of the frame's length, in float32

Speech: TypeAlias = str | os.PathLike[str] | Utterance | np.ndarray | Tensor


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
        self.fingerprint = fingerprint(encoder, quantizer)

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
        features: str | os.PathLike[str] | None = None,
        layer: int | None = None,
        units: int | None = None,
        codebooks: int | None = None,
        kind: str | None = None,
        standardize: bool = True,
        max_frames: int | None = None,
        seed: int = 0,
        device: str = "auto",
        padding: str = "none",
        precision: str = "float32",
        engine: str = "auto",
        half: bool = False,
        encoder_of: str | os.PathLike[str] | None = None,
        on_error: Callable[[Utterance, Exception], None] | None = None,
        progress: Callable[[Utterance], None] | None = None,
    ) -> Self:
        """Fit k-means to the `features` of a manifest, by default "mfcc": 100 `units`, 1 codebook, `kind` "plain".

        Where `features` come with a codebook (the directory of a pre-trained vq-wav2vec), that is the quantizer:
        nothing is fitted, the manifest is not read, and `units`, `codebooks` and `kind` must agree with it or be left
        out.

        Features are streamed; a seeded uniform sample of at most `max_frames` frames is kept, whatever the corpus size:
        max_frames × dim × 4 bytes, a fifth more while k-means runs.  By default as many as keep the process in 2 GB,
        a million at most.  A bad file raises, unless `on_error` is given: then it is told of it and the file is
        skipped.  `progress` is called after each utterance.  `precision` and `engine` are those of `load_encoder`; all
        but float32 make another tokenizer.  `half` rounds the encoder's weights, before anything is fitted, to what
        float16 holds, so that they are saved in half the bytes.  `encoder_of`, the directory or bundled name of another
        tokenizer, gives its encoder in place of features, layer and the like; saved with the same `encoder_of`, the
        two share one file.  Without `standardize`, distances are those of the features as they are,
        and the centroids can be written in the formats of peers.
        """
        where = pick_device(device)
        asked = _Asked(features, layer, padding, precision, engine, half)
        if encoder_of is None:
            encoder, recipe = asked.load(where)
        else:
            encoder, recipe = asked.of_other(encoder_of, where)
        if encoder.codebooks is not None:
            quantizer = _learned(encoder.codebooks, {"units": units, "codebooks": codebooks, "kind": kind})
            origin = {"quantizer": f"learned with the encoder, {recipe['features']}", "command": _command()}
            return cls(encoder, quantizer.to(where), recipe=recipe, provenance=origin)
        units, codebooks = 100 if units is None else units, 1 if codebooks is None else codebooks
        kind = "plain" if kind is None else kind
        check_layout(kind, codebooks, encoder.dim)  # before the features are computed, not after
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
            "command": _command(),
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
        """Seconds from which on a recording is encoded in windows; None where there are none (filterbanks, vq)."""
        window = self.encoder.settings().get("window_s")
        return None if window is None else float(str(window))

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

    def save(
        self,
        directory: str | os.PathLike[str],
        *,
        card: str = "",
        overwrite: bool = False,
        encoder_of: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write the directory in one step; `card` is added to the card.  It can be moved and loaded anywhere.

        With `encoder_of`, the directory or bundled name of a tokenizer with the same encoder, none is written, but the
        relative path to that one's: the two can be moved together only.  A directory that holds another tokenizer is
        replaced only with `overwrite`; one that holds other files never.
        """
        target = Path(directory)
        owner = None if encoder_of is None else self._owner_of_same(encoder_of)
        shared = None if owner is None else files.way_to(owner, target)
        files.replace(target, self.fingerprint, overwrite, write=lambda scratch: self._write(scratch, card, shared))

    def _owner_of_same(self, encoder_of: str | os.PathLike[str]) -> Path:
        """The directory whose encoder the tokenizer given uses, once it is sure that this one has the same."""
        other, owner = _other_with_encoder(encoder_of, "cpu")
        mine, theirs = self.encoder.settings(), other.encoder.settings()
        if differ := sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key)):
            found = "; ".join(f"{key} {_short(mine.get(key))}, there {_short(theirs.get(key))}" for key in differ)
            raise files.TokenizerError(
                f"tokenizer {self.fingerprint} cannot share the encoder of {os.fspath(encoder_of)} "
                f"(tokenizer {other.fingerprint}), which is another one: {found}. Save it without encoder_of, or fit "
                "it with encoder_of"
            )
        return owner

    def _write(self, directory: Path, card: str, shared: str | None) -> None:
        if shared is None:
            (directory / "encoder").mkdir()
            self.encoder.save(directory / "encoder")
            if not any((directory / "encoder").iterdir()):
                (directory / "encoder").rmdir()
        # Bytes first: save_file makes a file that only its owner may read.
        (directory / "model.safetensors").write_bytes(serialize(self.quantizer.state()))
        facts = {
            "unitkit_tokenizer": FORMAT,
            **self._identity(),
            **({} if shared is None else {"encoder_of": shared}),
            "recipe": self.recipe,
            "provenance": self.provenance,
            "report": self.quantizer.report,
        }
        files.write_facts(directory, facts, card)

    def _identity(self, arithmetic: str | None = None) -> dict[str, Any]:
        """What the directory says that must agree with what its files make; `arithmetic` takes the encoder's place."""
        encoder = self.encoder.settings()
        if arithmetic is not None:
            encoder = {key: value for key, value in encoder.items() if key != "arithmetic"}
            encoder |= {"arithmetic": arithmetic} if arithmetic != "float32" else {}
        return {
            "fingerprint": fingerprint(self.encoder, self.quantizer, encoder),
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
        name_or_dir: str | os.PathLike[str] = files.DEFAULT,
        *,
        device: str = "auto",
        precision: str | None = None,
        engine: str = "auto",
    ) -> Self:
        """Load a bundled tokenizer by name, or a directory; raises `FingerprintError` if its files were changed.

        `precision` is "float32", "bfloat16" or "int8", by default what it was saved with; `engine` is "auto", "plain",
        "fast" or "openvino" (see `load_encoder`).  Another precision is another tokenizer, with its own fingerprint.
        """
        directory, where = files.find(name_or_dir), pick_device(device)
        facts = files.read_facts(directory)
        owner = files.encoder_owner(directory, facts)
        recipe = facts["recipe"]
        saved = {"precision": recipe.get("precision", "float32"), "engine": recipe.get("engine", "auto")}
        as_saved = precision in (None, saved["precision"])
        try:
            encoder = load_encoder(
                recipe["features"] if owner is None else owner / "encoder",
                layer=recipe["layer"],
                padding=recipe["padding"],
                device=where,
                precision=precision or saved["precision"],
                engine=saved["engine"] if as_saved and engine == "auto" else engine,
            )
        except ValueError as error:
            if owner in (None, directory):
                raise
            raise files.TokenizerError(f"{directory} has the encoder of {os.path.normpath(owner)}: {error}") from error
        quantizer = KMeans.from_state(facts["quantizer"], files.read_tensors(directory))
        quantizer.report = facts["report"]
        recipe = {**recipe, **_arithmetic(encoder)}
        tokenizer = cls(encoder, quantizer.to(where), recipe=recipe, provenance=facts["provenance"])
        tokenizer._verify(facts, directory, owner, as_saved=as_saved and engine in ("auto", saved["engine"]))
        return tokenizer

    def _verify(self, facts: dict[str, Any], directory: Path, owner: Path | None, *, as_saved: bool) -> None:
        """Refuse changed files.  Where another arithmetic was asked for, all but that must agree."""
        swapped = None if as_saved else facts.get("encoder", {}).get("arithmetic", "float32")
        identity = json.loads(json.dumps(self._identity(swapped)))
        if changed := [name for name, value in identity.items() if facts.get(name) != value]:
            shared = "" if owner in (None, directory) else f" (its encoder is that of {os.path.normpath(owner)})"
            raise FingerprintError(
                f"{directory}: tokenizer.json says {facts['fingerprint']!r}, its files{shared} and this unitkit make "
                f"{identity['fingerprint']!r}; they differ in {', '.join(changed)}. Restore the files, or fit anew"
            )


@dataclass(frozen=True)
class _Asked:
    """The encoder that `fit` was asked for: the arguments of `load_encoder`."""

    features: str | os.PathLike[str] | None = None
    layer: int | None = None
    padding: str = "none"
    precision: str = "float32"
    engine: str = "auto"
    half: bool = False

    def load(self, device: str) -> tuple[Encoder, dict[str, Any]]:
        """The encoder and its recipe."""
        features = os.fspath("mfcc" if self.features is None else self.features)
        encoder = load_encoder(
            features,
            layer=self.layer,
            padding=self.padding,
            device=device,
            precision=self.precision,
            engine=self.engine,
            half=self.half,
        )
        recipe = {
            "features": features,
            "layer": encoder.settings().get("layer"),
            "padding": self.padding,
            **_arithmetic(encoder),
            **({"half": True} if self.half else {}),
        }
        return encoder, recipe

    def of_other(self, encoder_of: str | os.PathLike[str], device: str) -> tuple[Encoder, dict[str, Any]]:
        """The encoder and recipe of another tokenizer, beside which nothing else may be asked for."""
        plain = asdict(_Asked())
        if given := [f"{name}={value!r}" for name, value in asdict(self).items() if value != plain[name]]:
            raise ValueError(
                f"encoder_of {os.fspath(encoder_of)} says all of the encoder: leave out {', '.join(given)}"
            )
        other, _ = _other_with_encoder(encoder_of, device)
        return other.encoder, dict(other.recipe)


def _other_with_encoder(name_or_dir: str | os.PathLike[str], device: str) -> tuple[Tokenizer, Path]:
    """A tokenizer whose encoder is to be shared, and the directory that holds it."""
    directory = files.find(name_or_dir)
    other = Tokenizer.load(directory, device=device)
    owner = files.encoder_owner(directory, files.read_facts(directory))
    if owner is None:
        features = other.recipe["features"]
        raise files.TokenizerError(
            f"{directory} has no encoder to share: {features} needs no weights. Leave encoder_of (--encoder-of) out "
            f"and fit with features={features!r}"
        )
    return other, owner


def _short(value: Any) -> str:
    """A setting in an error message, hashes and tables cut."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _arithmetic(encoder: Encoder) -> dict[str, str]:
    """The arguments of `load_encoder` that give the encoder's arithmetic; in float32 any engine will do."""
    engine, _, precision = str(encoder.settings().get("arithmetic", "auto float32")).partition(" ")
    return {"precision": precision, "engine": engine}


def _learned(books: Tensor, asked: dict[str, Any]) -> KMeans:
    """The quantizer of codebooks that came with the encoder; it must be what was asked for, where something was."""
    quantizer = KMeans.of_codebooks(books)
    found = {"units": quantizer.n_units, "codebooks": quantizer.codebooks, "kind": quantizer.kind}
    if differ := [name for name, value in asked.items() if value not in (None, found[name])]:
        said = ", ".join(f"{name} {asked[name]}, where the encoder's own has {found[name]}" for name in differ)
        raise ValueError(f"this encoder comes with a quantizer, and another one was asked for: {said}. Leave them out")
    quantizer.report = {"learned": "with the encoder"}
    return quantizer


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


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

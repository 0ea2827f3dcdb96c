"""Are the units the same, however they are computed?  Each way is run on the user's own audio and compared.

The reference is every recording alone, whole in memory, with the tokenizer's own arithmetic and default engine.  A
promise is that no unit changes; where none is given (bfloat16, int8, a transformer that must decide before the
recording ends), what changes is measured and reported.
"""

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from unitkit import audio
from unitkit.manifest import Utterance
from unitkit.recording import of_utterance, read_speech
from unitkit.tokenizer import BATCH_ERROR, Tokenizer
from unitkit.units import Units, UnitsError, check_fingerprint, read_header, read_units

ODD_BLOCK = 1.37  # seconds; blocks that fall on no boundary of the encoder's own
ROWS = 16  # recordings handed to one call of the encoder's batch
CLIP_SECONDS = 180.0  # length of the recording that is encoded in windows and whole
NO_MODEL = "a filterbank has no model to run on another engine"
NEAR_SECONDS = 1.0  # what counts as near a joint of two windows, on either side


@dataclass(frozen=True)
class Check:
    """One way of encoding against the reference: `changed` of `frames` have another unit.

    `promised` says whether none may; `broken` tells of faults other than changed units (wrong lengths, missing rows),
    `skipped` why nothing was compared; `details` names utterances.
    """

    mode: str
    frames: int = 0
    changed: int = 0
    promised: bool = True
    note: str = ""
    broken: bool = False
    skipped: bool = False
    details: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Changed units per frame, 0..1."""
        return self.changed / self.frames if self.frames else 0.0

    @property
    def verdict(self) -> str:
        """ "ok" or "FAIL" where exactness is promised, else "reported"; "skipped" where nothing was compared."""
        if self.skipped:
            return "skipped"
        if self.broken or (self.promised and self.changed):
            return "FAIL"
        return "ok" if self.promised else "reported"


def verify(
    tokenizer: str | os.PathLike[str],
    utterances: Iterable[Utterance],
    *,
    against: str | os.PathLike[str] | None = None,
    modes: Sequence[str] | None = None,
    device: str = "auto",
    seconds: float | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Encode `utterances` in each of `modes` (keys of MODES, all by default) and compare with one file at a time.

    `against` is a unit file to recompute; alone it is all that is done.  `seconds` bounds the audio used: whole
    utterances up to it, the last one cut (never for `against`).  `on_progress` hears what comes next.  Files that
    cannot be read are skipped and listed.  Raises FingerprintError if `against` was made by another tokenizer,
    ValueError if no file can be read.
    """
    wanted = [] if against is not None and modes is None else list(MODES if modes is None else modes)
    if unknown := [mode for mode in wanted if mode not in MODES]:
        raise ValueError(f"unknown mode {unknown[0]!r}; known: {', '.join(MODES)}")
    tell = on_progress or (lambda mode: None)
    tok = Tokenizer.load(tokenizer, device=device)
    given = list(utterances)
    checks = []
    if against is not None:
        tell("against")
        checks.append(_against(tok, given, Path(against), seconds))
    if wanted:
        tell("reference")
        session = _session(tokenizer, tok, given, seconds)
        checks += session.faults
        for mode in wanted:
            tell(mode)
            checks += MODES[mode](session)
    return checks


# --------------------------------------------------------------------------------------------------- reference


@dataclass
class _Session:
    """What every mode needs: the tokenizer, the audio that can be read, and its units."""

    source: str | os.PathLike[str]
    tok: Tokenizer
    utterances: list[Utterance]
    reference: list[Units]
    faults: list[Check] = field(default_factory=list)

    @cached_property
    def transformer(self) -> bool:
        """Whether long recordings are encoded in windows, as transformers need it."""
        return self.tok.window_s is not None

    @property
    def device(self) -> str:
        """The device of the reference, by name."""
        return str(self.tok.quantizer.device)

    def wav(self, utterance: Utterance) -> np.ndarray:
        """Samples (samples,) at the encoder's rate."""
        return read_speech(utterance, self.tok.sample_rate)

    def check(self, mode: str, units: Iterable[Units], *, promised: bool, note: str = "") -> Check:
        """Compare units, in the order of the reference."""
        return _compare(mode, self.reference, units, promised=promised, note=note)


def _session(
    source: str | os.PathLike[str], tok: Tokenizer, utterances: list[Utterance], seconds: float | None
) -> _Session:
    session = _Session(source, tok, [], [])
    left, bad = math.inf if seconds is None else seconds, []
    for utterance in utterances:
        if left * tok.sample_rate < tok.encoder.min_samples:
            break
        try:
            part, wav = _at_most(utterance, left, tok.sample_rate)
            units = replace(tok.encode(wav, rate=tok.sample_rate), id=utterance.id)
        except (audio.AudioError, OSError) as error:
            bad.append(str(error) if utterance.audio in str(error) else f"{utterance.audio}: {error}")
            continue
        left -= len(wav) / tok.sample_rate
        session.utterances.append(part)
        session.reference.append(units)
    if not session.utterances:
        raise ValueError(f"no audio that can be verified: {'; '.join(bad[:3]) or 'none was given'}")
    if bad:
        session.faults.append(Check("reading", promised=False, skipped=True, note=_files(bad), details=tuple(bad)))
    return session


def _at_most(utterance: Utterance, seconds: float, rate: int) -> tuple[Utterance, np.ndarray]:
    """The utterance, cut to `seconds` where it is longer, and its samples (samples,)."""
    start, length = utterance.start or 0.0, utterance.duration if utterance.start is not None else None
    if seconds == math.inf:
        return utterance, read_speech(utterance, rate)
    wav = audio.read(utterance.audio, rate, start=start, duration=seconds if length is None else min(seconds, length))
    if len(wav) < round(seconds * rate):
        return utterance, wav
    return replace(utterance, start=start, duration=seconds), wav


def _compare(
    mode: str, reference: Iterable[Units], others: Iterable[Units], *, promised: bool, note: str = ""
) -> Check:
    frames = changed = 0
    details, broken = [], False
    for one, other in zip(reference, others, strict=True):
        common = min(len(one), len(other))
        differ = one.ids[:common] != other.ids[:common]
        count = int((differ if differ.ndim == 1 else differ.any(axis=1)).sum())
        frames, changed = frames + len(one), changed + count + max(len(one), len(other)) - common
        if len(one) != len(other):
            broken = True
            details.append(f"{one.id}: {len(other)} frames, {len(one)} expected")
        elif count:
            details.append(f"{one.id}: {count} of {len(one)} units changed")
    return Check(mode, frames, changed, promised, note, broken=broken, details=tuple(details))


def _files(bad: list[str]) -> str:
    return f"{len(bad)} file(s) cannot be used"


# ------------------------------------------------------------------------------------------------------- modes


def _again(session: _Session) -> list[Check]:
    units = (session.tok.encode(utterance) for utterance in session.utterances)
    return [session.check("again", units, promised=True, note="the same files, encoded once more")]


def _chunked(session: _Session) -> list[Check]:
    """Blocks from disk that are never put together, as for recordings too long to hold."""

    def encoded() -> Iterator[Units]:
        for utterance in session.utterances:
            recording = of_utterance(utterance, session.tok.sample_rate, seconds=ODD_BLOCK)
            ids = [session.tok.quantizer.assign(piece).cpu() for piece in session.tok.encoder.pieces(recording)]
            yield session.tok.header().units(torch.cat(ids).numpy(), utterance.id)

    note = f"read and encoded in blocks of {ODD_BLOCK} s"
    return [session.check("chunked", encoded(), promised=True, note=note)]


def _batched(session: _Session) -> list[Check]:
    """Units of padded batches, and whether their features keep to the error that the recheck of close calls allows."""
    tok = session.tok
    if not tok.exact:
        return [_skip("batched", "approximate arithmetic is never batched: units would depend on the batch")]
    if session.transformer:  # the engines for the CPU do not pad; what a GPU would do is checked here
        tok = Tokenizer.load(session.source, device=session.device, engine="plain")
    worst, again = 0.0, 0
    for start in range(0, len(session.utterances), ROWS):
        wavs = [session.wav(utterance) for utterance in session.utterances[start : start + ROWS]]
        for wav, batched in zip(wavs, tok.encoder.batch(wavs), strict=True):
            worst = max(worst, _error(tok.encoder(wav), batched))
            again += bool(tok.quantizer.undecided(batched, relative=BATCH_ERROR).any())
    note = f"padded; features off by {worst:.1g} of a frame's length, {BATCH_ERROR:g} allowed; "
    note += f"{again} of {len(session.utterances)} recomputed alone"
    check = session.check("batched", tok.encode(session.utterances, batched=True), promised=True, note=note)
    return [replace(check, broken=check.broken or not worst <= BATCH_ERROR)]


def _error(alone: torch.Tensor, batched: torch.Tensor) -> float:
    """The largest difference of a frame's features (frames, dim), of the frame's length."""
    if alone.shape != batched.shape:
        return math.inf
    return float(((alone - batched).norm(dim=1) / alone.norm(dim=1).clamp_min(1e-30)).max())


def _windows(session: _Session) -> list[Check]:
    """A recording longer than the encoder's window, in windows and whole."""
    encoder, name = session.tok.encoder, "windows"
    if not session.transformer:
        wav = _clip(session, CLIP_SECONDS)
        blocks = [wav[start : start + 99_991] for start in range(0, len(wav), 99_991)]
        ids = torch.cat([session.tok.quantizer.assign(piece) for piece in encoder.pieces(lambda: iter(blocks))])
        whole = session.tok.quantizer.assign(encoder(wav))
        note = f"{len(wav) / encoder.sample_rate:.0f} s in blocks and whole"
        if encoder.exact_context is not None:
            note += f"; a frame reaches {encoder.exact_context / encoder.sample_rate:.3f} s beyond its hop"
        return [_compare(name, [_as_units(session, whole)], [_as_units(session, ids)], promised=True, note=note)]
    settings = encoder.settings()
    if settings["features"] == "whisper":
        return [_skip(name, "Whisper's positions end at 30 s: there is no whole recording to compare with")]
    window, context = float(str(settings["window_s"])), float(str(settings["context_s"]))
    length = min(CLIP_SECONDS, _affordable_seconds(session))
    if length < 1.25 * window:
        return [_skip(name, f"not enough memory for attention over more than {length:.0f} s at once")]
    wav = _clip(session, length)
    at_once = copy.copy(encoder)
    at_once.window_s = length + 1  # type: ignore[attr-defined]  # every transformer encoder has windows
    windowed, whole = (session.tok.quantizer.assign(one(wav)).cpu() for one in (encoder, at_once))
    check = _compare(name, [_as_units(session, whole)], [_as_units(session, windowed)], promised=False)
    return [replace(check, note=_near_joints(windowed != whole, encoder.rate_hz, window=window, context=context))]


def _near_joints(differ: torch.Tensor, rate_hz: float, *, window: float, context: float) -> str:
    """The share of changed frames (frames,) or (frames, codebooks) next to where windows meet, in words."""
    changed = (differ if differ.ndim == 1 else differ.any(dim=1)).double()
    step = int(window * rate_hz) - 2 * int(context * rate_hz)
    frame = torch.arange(len(changed))
    joints = torch.arange(step, len(changed), step)
    near = ((frame[:, None] - joints).abs() <= NEAR_SECONDS * rate_hz).any(dim=1)
    share = float(changed[near].mean()) if near.any() else 0.0
    seconds = len(changed) / rate_hz
    return f"{seconds:.0f} s in windows of {window:g} s and whole; within {NEAR_SECONDS:g} s of a joint {share:.2%}"


def _clip(session: _Session, seconds: float) -> np.ndarray:
    """The audio one after the other, from the start again until it is long enough: (samples,)."""
    wanted, parts, total = round(seconds * session.tok.sample_rate), [], 0
    while total < wanted:
        for utterance in session.utterances:
            parts.append(session.wav(utterance))
            total += len(parts[-1])
            if total >= wanted:
                break
    return np.concatenate(parts)[:wanted]


def _affordable_seconds(session: _Session) -> float:
    """Seconds whose attention matrix fits a third of the free memory, if it is written out three times in float32."""
    if session.tok.quantizer.device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    heads = session.tok.encoder.settings()["architecture"]
    count = int(str(heads.get("num_attention_heads", 16))) if isinstance(heads, dict) else 16
    return math.sqrt(free / 3 / (count * 4 * 3)) / session.tok.rate_hz


def _as_units(session: _Session, ids: torch.Tensor) -> Units:
    return session.tok.header().units(ids.cpu().numpy(), "clip")


def _streamed(session: _Session) -> list[Check]:
    rng = np.random.default_rng(0)
    try:
        lookahead = session.tok.stream().lookahead
    except ValueError as error:  # an encoder that needs the whole recording
        return [_skip("streamed", str(error))]

    def encoded() -> Iterator[Units]:
        for utterance in session.utterances:
            stream, wav = session.tok.stream(), session.wav(utterance)
            ends = np.cumsum(rng.integers(1, session.tok.sample_rate // 2, size=2 + len(wav)))
            parts = np.split(wav, ends[ends < len(wav)])
            ids = [*(stream.push(part).ids for part in parts), stream.finish().ids]
            yield session.tok.header().units(np.concatenate(ids), utterance.id)

    note = f"pushed in random pieces, look-ahead {lookahead:.3f} s"
    return [session.check("streamed", encoded(), promised=not session.transformer, note=note)]


def _other(session: _Session, mode: str, *, precision: str, engine: str) -> Check:
    """Another engine or precision of the same tokenizer; exact in float32."""
    if not session.transformer:
        return _skip(mode, NO_MODEL)
    try:
        other = Tokenizer.load(session.source, device=session.device, precision=precision, engine=engine)
    except (ValueError, ImportError) as error:
        return _skip(mode, str(error))
    promised = other.fingerprint == session.tok.fingerprint
    note = f"tokenizer {other.fingerprint}" if not promised else f"engine {engine}, {precision}"
    return session.check(mode, (other.encode(u) for u in session.utterances), promised=promised, note=note)


def _plain(session: _Session) -> list[Check]:
    return [_other(session, "plain", precision="float32", engine="plain")]


def _bfloat16(session: _Session) -> list[Check]:
    return [_other(session, "bfloat16", precision="bfloat16", engine="auto")]


def _openvino(session: _Session) -> list[Check]:
    if not session.transformer or find_spec("openvino") is None:
        return [_skip("openvino", NO_MODEL if not session.transformer else "not installed: pip install openvino")]
    return [
        _other(session, f"openvino {precision}", precision=precision, engine="openvino")
        for precision in ("float32", "bfloat16", "int8")
    ]


def _skip(mode: str, why: str) -> Check:
    return Check(mode, promised=False, skipped=True, note=why)


MODES: dict[str, Callable[[_Session], list[Check]]] = {
    "again": _again,
    "chunked": _chunked,
    "batched": _batched,
    "windows": _windows,
    "streamed": _streamed,
    "plain": _plain,
    "bfloat16": _bfloat16,
    "openvino": _openvino,
}


# ----------------------------------------------------------------------------------------------------- unit files


def _against(tok: Tokenizer, utterances: list[Utterance], path: Path, seconds: float | None) -> Check:
    """An existing unit file, recomputed utterance by utterance."""
    check_fingerprint(tok.fingerprint, read_header(path).tokenizer, what=str(path))
    wanted = {utterance.id for utterance in utterances}
    rows: dict[str, Units] = {}
    extra = 0
    for units in read_units(path):
        extra += units.id not in wanted
        if units.id in wanted:
            rows[units.id] = units
    found, made, missing, bad = [], [], [], []
    left = math.inf if seconds is None else seconds
    for utterance in utterances:
        if left <= 0:
            break
        try:
            units = tok.encode(utterance)
        except (audio.AudioError, OSError) as error:
            bad.append(str(error))
            continue
        left -= units.duration
        if utterance.id not in rows:
            missing.append(f"{utterance.id}: no row")
            continue
        made.append(units)
        found.append(rows[utterance.id])
    if not made and not missing:
        raise UnitsError(f"{path}: nothing to compare it with: {'; '.join(bad[:3]) or 'no audio was given'}")
    check = _compare("against", made, found, promised=True)
    counts = [f"{len(made)} utterances compared"]
    counts += [f"{len(missing)} without a row"] if missing else []
    counts += [f"{extra} row(s) whose audio was not given"] if extra else []
    counts += [_files(bad)] if bad else []
    details = (*missing, *check.details, *bad)
    return replace(check, note=", ".join(counts), broken=check.broken or bool(missing), details=details)

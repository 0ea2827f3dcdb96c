"""Bulk encoding: utterances in, one unit file out, in the manifest's order, resumable, nothing half-written."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unitkit import audio
from unitkit.manifest import ManifestError, Utterance
from unitkit.tokenizer import Tokenizer
from unitkit.units import (
    FingerprintError,
    Units,
    UnitsError,
    UnitsWriter,
    check_fingerprint,
    read_header,
    read_units,
    write_units,
)

BAD_INPUT = (audio.AudioError, ValueError, OSError)


@dataclass
class Summary:
    """What one call of `encode_files` did.  `seconds` is audio encoded now, `elapsed` wall time, both in seconds."""

    encoded: int = 0
    kept: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    bad: list[tuple[Utterance, str]] = field(default_factory=list)

    @property
    def hours_per_hour(self) -> float:
        """Hours of audio encoded per hour of wall time."""
        return self.seconds / self.elapsed if self.elapsed else 0.0


@dataclass(frozen=True)
class Progress:
    """One finished utterance: `seconds` of audio in it, whether it was `kept` from an earlier run or `bad`."""

    utterance: Utterance
    seconds: float
    kept: bool = False
    bad: str | None = None


def with_durations(utterances: Iterable[Utterance]) -> list[Utterance]:
    """Fill in missing durations from the files' headers; a file that has none readable keeps `None`."""
    return [u if u.duration is not None else replace(u, duration=_duration(u)) for u in utterances]


def encode_files(
    tokenizer: Tokenizer,
    utterances: Sequence[Utterance],
    output: str | Path,
    *,
    strict: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Encode `utterances` into the unit file `output`.

    Rows come in the order given.  Work goes to `<output>.partial` and is renamed at the end, so an interrupted call
    goes on where it stopped.  If `output` exists, its rows are kept and only missing utterances are encoded.  A bad
    file is listed in the summary and skipped; with `strict` it stops the call (what was encoded before it is kept).

    Raises:
        FingerprintError: `output` or its partial was made by another tokenizer and `overwrite` is not set.
        ManifestError: two utterances share an id.
        UnitsError: a bad file, under `strict`.
    """
    output, summary, started = Path(output), Summary(), time.monotonic()
    _refuse_duplicates(utterances)
    known = {} if overwrite else _existing(output, tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    if known and all(u.id in known for u in utterances) and len(known) == len(utterances):
        summary.kept = len(known)
        return summary
    tell = on_progress or (lambda progress: None)
    written: list[str] = []
    with UnitsWriter(output, tokenizer.header(), resume=not overwrite) as writer:
        earlier = set(writer.done)
        for utterance in utterances:
            if utterance.id in earlier or utterance.id in known:
                if utterance.id not in earlier:
                    writer.append(known[utterance.id])
                    written.append(utterance.id)
                summary.kept += 1
                tell(Progress(utterance, utterance.duration or 0.0, kept=True))
                continue
            try:
                units = _encode_one(tokenizer, utterance)
            except BAD_INPUT as error:
                if strict:
                    raise UnitsError(
                        f"{error} (stopped by --strict; {summary.encoded} files encoded before it are kept)"
                    ) from error
                summary.bad.append((utterance, str(error)))
                tell(Progress(utterance, utterance.duration or 0.0, bad=str(error)))
                continue
            writer.append(units)
            written.append(utterance.id)
            summary.encoded += 1
            summary.seconds += units.duration
            tell(Progress(utterance, utterance.duration or units.duration))
    if earlier:
        _restore_order(output, tokenizer, utterances)
    summary.elapsed = time.monotonic() - started
    return summary


def _encode_one(tokenizer: Tokenizer, utterance: Utterance) -> Units:
    try:
        return tokenizer.encode(utterance)
    except FingerprintError:
        raise
    except ValueError as error:
        named = utterance.audio in str(error)
        raise error if named else ValueError(f"{utterance.audio}: {error}") from error


def _duration(utterance: Utterance) -> float | None:
    try:
        return audio.info(utterance.audio).duration - (utterance.start or 0.0)
    except BAD_INPUT:
        return None  # named when it is encoded


def _refuse_duplicates(utterances: Sequence[Utterance]) -> None:
    seen: dict[str, str] = {}
    for utterance in utterances:
        if utterance.id in seen:
            raise ManifestError(f"two inputs share the id {utterance.id!r}: {seen[utterance.id]} and {utterance.audio}")
        seen[utterance.id] = utterance.audio


def _existing(output: Path, tokenizer: Tokenizer) -> dict[str, Units]:
    if not output.exists():
        return {}
    check_fingerprint(
        tokenizer.fingerprint, read_header(output).tokenizer, what=f"{output} (give another -o, or --overwrite)"
    )
    return {units.id: units for units in read_units(output)}


def _restore_order(output: Path, tokenizer: Tokenizer, utterances: Sequence[Utterance]) -> None:
    """A resumed run may have appended a row that belongs earlier (a file mended meanwhile): put rows in order."""
    ids = [units.id for units in read_units(output)]
    wanted = {u.id: i for i, u in enumerate(utterances)}
    ordered = sorted((i for i in ids if i in wanted), key=wanted.__getitem__)
    if ids != ordered:
        rows = {units.id: units for units in read_units(output)}
        write_units(output, tokenizer.header(), (rows[i] for i in ordered))

"""JSON lines: slamkit's features and tokens, and the three shapes of CoML (discophon, minimal_hubert, unit-hifigan)."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unitkit.formats.base import (
    Format,
    Listing,
    Reader,
    Row,
    audio_of_id,
    id_of_audio,
    lines_of,
    needed,
    text_file,
    whole_file,
    with_durations,
)
from unitkit.units import Units, UnitsError, UnitsHeader

RATE = 16000  # samples a second of every SSL encoder these toolkits use; `num_samples` counts them


def records(path: Path, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and JSON object of each line, all of which have `keys`."""
    for where, line in lines_of(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnitsError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict) or not set(keys) <= set(row):
            raise UnitsError(f"{where}: expected a JSON object with {', '.join(map(repr, keys))}, found {line[:60]!r}")
        yield where, row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise UnitsError(f"{where}: {key!r} must be a string, found {row[key]!r}")
    return str(row[key])


def _numbers(row: dict[str, Any], key: str, where: str) -> list[int]:
    values = row[key]
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise UnitsError(f"{where}: {key!r} must be a list of whole numbers, found {str(values)[:60]}")
    return values


def _write(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    with text_file(out) as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


# -------------------------------------------------------------------------------------------------------- slamkit


def read_slamkit(path: Path, listing: Listing | None) -> Iterator[Row]:
    """`{"units":[..],"duration":[..],"file_name":".."}`: runs of equal units and how many frames each lasts."""
    for where, row in records(path, "units", "file_name"):
        name = id_of_audio(_text(row, "file_name", where), listing)
        durations = _numbers(row, "duration", where) if "duration" in row else None
        yield Row(where, name, _numbers(row, "units", where), durations)


def write_slamkit(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """Deduplicated units with their durations, as slamkit's default is; the frames are in it all the same."""

    def row(one: Units) -> dict[str, Any]:
        short, durations = one.dedup()
        name = audio_of_id(one.id, listing, "slamkit")
        return {"units": short.ids.tolist(), "duration": durations.tolist(), "file_name": name}

    _write(out, map(row, units))


def read_slamkit_tokens(path: Path, listing: Listing | None) -> Iterator[Row]:
    """`{"file_name":"..","audio_repr":"<Un3><Un49>"}`: what slamkit's language models are trained on."""
    for where, row in records(path, "file_name", "audio_repr"):
        text = _text(row, "audio_repr", where)
        if not re.fullmatch(r"(<Un[0-9]{1,18}>)*", text):
            raise UnitsError(f"{where}: 'audio_repr' must be of units <Un3><Un49>, found {text[:60]!r}")
        name = id_of_audio(_text(row, "file_name", where), listing)
        yield Row(where, name, [int(unit) for unit in re.findall("[0-9]+", text)])


def write_slamkit_tokens(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """Every frame a token; slamkit's own are deduplicated, which `reduced` writes."""
    rows = (
        {
            "file_name": audio_of_id(one.id, listing, "slamkit-tokens"),
            "audio_repr": "".join(f"<Un{unit}>" for unit in one.ids.tolist()),
        }
        for one in units
    )
    _write(out, rows)


# ----------------------------------------------------------------------------------------------------------- CoML


def reader_of(key: str, *, audio: bool = False) -> Reader:
    """A reader of frame-level `units` beside the id, or the audio file, under `key`; `num_samples` is checked."""

    def read(path: Path, listing: Listing | None) -> Iterator[Row]:
        for where, row in records(path, key, "units"):
            name = _text(row, key, where)
            samples = row.get("num_samples")
            if samples is not None and (type(samples) is not int or samples < 0):
                raise UnitsError(f"{where}: 'num_samples' must be a whole number, found {samples!r}")
            seconds = None if samples is None else samples / RATE
            yield Row(
                where,
                id_of_audio(name, listing) if audio else name,
                _numbers(row, "units", where),
                seconds=seconds,
            )

    return read


def write_discophon(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """`{"file":"id","units":[..]}`."""
    _write(out, ({"file": one.id, "units": one.ids.tolist()} for one in units))


def write_minimal_hubert(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """`{"fileid":"id","units":[..]}`; with a manifest that knows the lengths, `path` and `num_samples` as well."""

    def row(one: Units) -> dict[str, Any]:
        known = listing.utterances.get(one.id) if listing is not None else None
        if known is None or known.duration is None or known.start is not None:
            return {"fileid": one.id, "units": one.ids.tolist()}
        samples = round(known.duration * RATE)
        return {"fileid": one.id, "path": known.audio, "num_samples": samples, "units": one.ids.tolist()}

    _write(out, map(row, units))


def write_unit_hifigan(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """`{"audio":"path","units":[..],"speaker":".."}`; manifests have no style, so it is left out."""
    known = needed(listing, "unit-hifigan")

    def row(one: Units) -> dict[str, Any]:
        source = whole_file(one.id, known, "unit-hifigan")
        speaker = {} if source.speaker is None else {"speaker": source.speaker}
        return {"audio": source.audio, "units": one.ids.tolist(), **speaker}

    _write(out, map(row, units))


FORMATS = {
    "slamkit": Format(read_slamkit, write_slamkit, reduced=write_slamkit),
    "slamkit-tokens": Format(read_slamkit_tokens, write_slamkit_tokens, reduced=with_durations(write_slamkit_tokens)),
    "discophon": Format(reader_of("file"), write_discophon),
    "minimal-hubert": Format(reader_of("fileid"), write_minimal_hubert),
    "unit-hifigan": Format(reader_of("audio", audio=True), write_unit_hifigan),
}

"""Python dicts as text, one a line (speech-resynthesis, dGSLM), and dGSLM's files of one channel each.

The peers read these lines with `eval`; here they are parsed as literals, which runs nothing.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unitkit.formats.base import (
    CHANNEL,
    Format,
    Listing,
    Row,
    id_of_audio,
    joined,
    lines_of,
    needed,
    parsed,
    replacing,
    text_file,
    whole_file,
)
from unitkit.formats.lines import listed_lines
from unitkit.manifest import Utterance, write_fairseq_tsv
from unitkit.units import Units, UnitsError, UnitsHeader

UNIT_KEYS = ("hubert", "cpc_km100", "vqvae256", "codes")
CHANNEL_KEYS = ("unitA", "unitB")


def dicts(path: Path, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and dict of each line, all of which have `keys`."""
    for where, line in lines_of(path):
        try:
            row = ast.literal_eval(line)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise UnitsError(f"{where}: not a dict of plain values: {error or type(error).__name__}") from error
        if not isinstance(row, dict) or not set(keys) <= set(row):
            raise UnitsError(f"{where}: expected a dict with {', '.join(map(repr, keys))}, found {line[:60]!r}")
        if not isinstance(row["audio"], str):
            raise UnitsError(f"{where}: 'audio' must be a string, found {row['audio']!r}")
        yield where, row


def _units(row: dict[str, Any], key: str, where: str) -> list[int]:
    if not isinstance(row[key], str):
        raise UnitsError(f"{where}: {key!r} must be a string '1 2 3', found {row[key]!r}")
    return parsed(row[key], where)


# --------------------------------------------------------------------------------------------- speech-resynthesis


def read_resynthesis(path: Path, listing: Listing | None) -> Iterator[Row]:
    """`{'audio': 'a.wav', 'hubert': '71 86', 'duration': 4.2}`; units under one of `UNIT_KEYS`."""
    for where, row in dicts(path, "audio"):
        found = [key for key in UNIT_KEYS if key in row]
        if len(found) != 1:
            raise UnitsError(f"{where}: units under {found or 'none'} of {', '.join(UNIT_KEYS)}; one is needed")
        seconds = row.get("duration")
        if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < 1e9):
            raise UnitsError(f"{where}: 'duration' must be seconds, found {seconds!r}")
        yield Row(where, id_of_audio(row["audio"], listing), _units(row, found[0], where), seconds=seconds)


def write_resynthesis(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """The same, units under 'hubert' (the key its configs expect), whatever made them."""
    known = needed(listing, "resynthesis")
    with text_file(out) as file:
        for one in units:
            source = whole_file(one.id, known, "resynthesis")
            seconds = one.duration if source.duration is None else source.duration
            file.write(repr({"audio": source.audio, "hubert": joined(one.ids), "duration": seconds}) + "\n")


# ---------------------------------------------------------------------------------------------------------- dGSLM


def read_dgslm(path: Path, listing: Listing | None) -> Iterator[Row]:
    """`{'audio': 'x', 'unitA': '1 2', 'unitB': '3 4'}`: rows `x-channel1` and `x-channel2`, as GSLM names channels."""
    for where, row in dicts(path, "audio", *CHANNEL_KEYS):
        both = [_units(row, key, where) for key in CHANNEL_KEYS]
        if len(both[0]) != len(both[1]):
            raise UnitsError(f"{where}: unitA has {len(both[0])} units, unitB {len(both[1])}")
        for number, ids in enumerate(both, 1):
            yield Row(where, f"{row['audio']}-channel{number}", ids)


def channels(units: Iterable[Units], format: str) -> Iterator[tuple[str, Units, Units]]:
    """Name and both channels of each stereo recording, in the order in which they are complete."""
    waiting: dict[str, Units] = {}
    for one in units:
        match = CHANNEL.fullmatch(one.id)
        if match is None:
            raise UnitsError(f"{one.id!r}: {format} holds stereo recordings, ids x-channel1 and x-channel2")
        other = waiting.pop(match[1], None)
        if other is None:
            waiting[match[1]] = one
            continue
        if len(one) != len(other):
            raise UnitsError(f"{match[1]!r}: its channels have {len(other)} and {len(one)} frames")
        first, second = sorted((one, other), key=lambda channel: channel.id)
        yield match[1], first, second
    if waiting:
        raise UnitsError(f"{next(iter(waiting.values())).id!r}: the other channel is not there")


def write_dgslm(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """The same; both channels of a recording must be there, equally long."""
    with text_file(out) as file:
        for name, first, second in channels(units, "dgslm"):
            file.write(repr({"audio": name, "unitA": joined(first.ids), "unitB": joined(second.ids)}) + "\n")


def read_channel_lines(path: Path, listing: Listing | None) -> Iterator[Row]:
    """`x.unitA` and `x.unitB`, bare lines of the two channels; `x.tsv` or the manifest names the recordings."""
    streams = [listed_lines(path.with_suffix(f".{key}"), listing) for key in CHANNEL_KEYS]
    for parts in zip(*streams, strict=True):  # each stream has as many lines as the listing, or says so
        both = [parsed(text, where) for where, _, text in parts]
        if len(both[0]) != len(both[1]):
            raise UnitsError(f"{parts[1][0]}: {len(both[1])} units, but {len(both[0])} in the same line of .unitA")
        for number, ((where, name, _), ids) in enumerate(zip(parts, both, strict=True), 1):
            yield Row(where, f"{name}-channel{number}", ids)


def write_channel_lines(out: Path, header: UnitsHeader, units: Iterable[Units], listing: Listing | None) -> None:
    """`x.unitA`, `x.unitB` and the fairseq tsv `x.tsv` that names the recordings."""
    known, listed = needed(listing, "dgslm-lines"), []
    paths = [out.with_suffix(f".{key}") for key in CHANNEL_KEYS]
    if out not in paths:
        raise UnitsError(f"{out}: dGSLM's files end in .unitA and .unitB; name it {paths[0].name}")
    with replacing(out.with_suffix(".tsv")) as names, text_file(paths[0]) as one, text_file(paths[1]) as two:
        for name, first, second in channels(units, "dgslm-lines"):
            one.write(joined(first.ids) + "\n")
            two.write(joined(second.ids) + "\n")
            listed.append(_recording(name, known))
        write_fairseq_tsv(names, listed)


def _recording(name: str, listing: Listing) -> Utterance:
    found = listing.utterances.get(name) or listing.utterances.get(f"{name}-channel1")
    if found is None:
        raise UnitsError(f"neither {name!r} nor '{name}-channel1' is in the manifest {listing.path}")
    return found


FORMATS = {
    "resynthesis": Format(read_resynthesis, write_resynthesis),
    "dgslm": Format(read_dgslm, write_dgslm),
    "dgslm-lines": Format(read_channel_lines, write_channel_lines, beside=".tsv"),
}

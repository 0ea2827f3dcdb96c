"""Manifests: which recordings there are, who says what in them, and how other toolkits write the same thing down."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import IO, Any

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".g722", ".aiff", ".aif", ".au")


class ManifestError(ValueError):
    """A manifest, or a list of inputs, that cannot be used; the message names the place and the mend."""


@dataclass(frozen=True)
class Utterance:
    """One recording, or the part of it from `start` for `duration` seconds, with what is known about it."""

    id: str
    audio: str
    duration: float | None = None
    start: float | None = None
    speaker: str | None = None
    lang: str | None = None
    text: str | None = None


FIELDS = tuple(field.name for field in fields(Utterance))
NUMBERS = ("duration", "start")


def read_manifest(path: str | os.PathLike[str]) -> Iterator[Utterance]:
    """Yield the utterances of a JSONL manifest one by one; audio paths come back absolute."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    seen: set[str] = set()
    for number, line in _lines(Path(path)):
        utterance = _parse_row(line, place=f"{path}:{number}", folder=folder)
        _add_once(seen, utterance.id, place=f"{path}:{number}")
        yield utterance


def write_manifest(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> int:
    """Write a JSONL manifest in one step, paths relative to its folder; returns the number of rows."""
    # Folders are resolved on both sides, for `..` walks out of where a link points to, not of where it stands.
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    seen: set[str] = set()
    with atomic_text(path) as file:
        for utterance in utterances:
            _add_once(seen, utterance.id, place=path)
            row = {name: getattr(utterance, name) for name in FIELDS if getattr(utterance, name) is not None}
            row["audio"] = os.path.relpath(_real_folder(utterance.audio), folder).replace(os.sep, "/")
            line = json.dumps(row, ensure_ascii=False)
            strange = re.search(
                "[\ud800-\udfff]", line
            )  # a file name that is not UTF-8: escape it, the file stays UTF-8
            file.write((json.dumps(row) if strange else line) + "\n")
    return len(seen)


def hash_split(name: str, *, dev: int = 8, test: int = 12) -> str:
    """Return "train", "dev" or "test" from the sha256 of the lower-cased name; `dev` and `test` are percentages."""
    if dev < 0 or test < 0 or dev + test > 100:
        raise ManifestError(f"dev={dev} and test={test} are percentages: both at least 0, together at most 100")
    bucket = int(hashlib.sha256(name.lower().encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) % 100
    return "test" if bucket < test else "dev" if bucket < test + dev else "train"


def discover(inputs: Sequence[str | os.PathLike[str]]) -> Iterator[Utterance]:
    """Yield utterances from files, directories, globs, manifests and "-" (a path a line on standard input).

    Directories are walked in sorted order for AUDIO_SUFFIXES, hidden names left out, each linked folder entered once.
    """
    seen: dict[str, str] = {}
    for item in inputs:
        for utterance in _from_stdin() if os.fspath(item) == "-" else _expand(os.fspath(item)):
            if utterance.id in seen:
                raise ManifestError(
                    f"{utterance.audio} and {seen[utterance.id]} would both get the id {utterance.id!r}; "
                    "give the directory above both, give each file once, or write a manifest with ids of your own"
                )
            seen[utterance.id] = utterance.audio
            yield utterance


def _from_stdin() -> Iterator[Utterance]:
    for line in sys.stdin:
        path = line.rstrip("\r\n")
        if path:  # a missing file in a long list is the reader's to name and skip, so it passes here
            yield from _expand(path, must_exist=False)


def _expand(item: str, *, must_exist: bool = True) -> Iterator[Utterance]:
    if os.path.isdir(item):
        found = _from_folder(item)
    elif glob.has_magic(item) and not os.path.lexists(item):
        found = _from_glob(item)
    elif must_exist and not os.path.lexists(item):
        raise ManifestError(f"{item}: no such file or directory; quote a glob, or give '-' to read paths from a pipe")
    elif item.endswith(".jsonl"):
        found = read_manifest(item)
    else:
        found = iter([_from_file(item, base=os.path.dirname(item))])
    yield from found


def _from_file(path: str, *, base: str) -> Utterance:
    name = os.path.splitext(os.path.relpath(path, base or "."))[0].replace(os.sep, "/")
    return Utterance(id=name, audio=os.path.abspath(path))


def _from_folder(folder: str) -> Iterator[Utterance]:
    empty = True
    for path in _walk(folder, visited=set()):
        empty = False
        yield _from_file(path, base=folder)
    if empty:
        raise ManifestError(f"{folder}: no audio in this directory; looked for {' '.join(AUDIO_SUFFIXES)}")


def _walk(folder: str, *, visited: set[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:  # a link back up, or a second link to the same place
        return
    visited.add((status.st_dev, status.st_ino))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):  # also the ._name.wav files that macOS leaves, which are not audio
            continue
        if entry.is_dir():
            yield from _walk(entry.path, visited=visited)
        elif entry.name.lower().endswith(AUDIO_SUFFIXES):
            yield entry.path


def _from_glob(pattern: str) -> Iterator[Utterance]:
    matches = sorted(glob.glob(pattern, recursive=True))
    base = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0] or ("/" if pattern[0] == "/" else ".")
    suffix = os.path.splitext(pattern)[1]
    named = bool(suffix) and not glob.has_magic(suffix)  # "*.raw" asks for .raw; "data/*" asks for audio
    empty = True
    for path in matches:
        if path.endswith(".jsonl"):
            found: Iterable[Utterance] = read_manifest(path)
        elif os.path.isfile(path) and (named or path.lower().endswith(AUDIO_SUFFIXES)):
            found = [_from_file(path, base=base)]
        else:
            continue
        for utterance in found:
            empty = False
            yield utterance
    if empty:
        raise ManifestError(f"{pattern}: no audio file matches; use ** to look into directories below")


def write_kaldi(directory: str | os.PathLike[str], utterances: Iterable[Utterance]) -> int:
    """Write wav.scp, text, utt2spk, spk2utt, utt2dur, utt2lang and, for parts of files, segments; returns utterances.

    Kaldi's rule: every file is sorted by its first field in byte order (LC_ALL=C). An utterance without a speaker is
    its own speaker. Ids keep their name, so make the speaker a prefix of the id where a Kaldi script asks for it.
    """
    rows = sorted(utterances, key=lambda utterance: _bytes(utterance.id))
    seen: set[str] = set()
    for utterance in rows:
        _check_kaldi(utterance)
        _add_once(seen, utterance.id, place=directory)
    recordings, segments = _kaldi_recordings(rows)
    speakers: dict[str, list[str]] = {}
    for utterance in rows:
        speakers.setdefault(utterance.speaker or utterance.id, []).append(utterance.id)
    tables = {
        "wav.scp": recordings,
        "segments": segments,
        "text": {u.id: re.sub(r"[\r\n]+", " ", u.text).strip() for u in rows if u.text is not None},
        "utt2spk": {u.id: u.speaker or u.id for u in rows},
        "spk2utt": {speaker: " ".join(ids) for speaker, ids in speakers.items()},
        "utt2dur": {u.id: repr(u.duration) for u in rows if u.duration is not None},
        "utt2lang": {u.id: u.lang for u in rows if u.lang is not None},
    }
    for name, table in tables.items():
        _write_table(Path(directory) / name, table, keep_empty=name in ("wav.scp", "utt2spk", "spk2utt"))
    return len(rows)


def read_kaldi(directory: str | os.PathLike[str]) -> Iterator[Utterance]:
    """Yield the utterances of a Kaldi data directory in its order (Kaldi sorts by id in byte order, LC_ALL=C).

    Relative paths in wav.scp are taken from the current directory, as Kaldi does; commands in it are never run.
    """
    folder = Path(directory)
    recordings = _table(folder / "wav.scp")
    known = {name: _table(folder / name, optional=True) for name in ("text", "utt2spk", "utt2dur", "utt2lang")}
    segments = folder / "segments"
    whole = ((name, name, None, None) for name in recordings)
    parts = _kaldi_segments(segments, recordings) if segments.exists() else whole
    for id_, recording, start, length in parts:
        speaker = known["utt2spk"].get(id_)
        duration = known["utt2dur"].get(id_)
        yield Utterance(
            id=id_,
            audio=_kaldi_path(recordings[recording], place=f"{folder / 'wav.scp'}: {recording}"),
            duration=length if duration is None else _number(duration, place=f"{folder / 'utt2dur'}: {id_}"),
            start=start,
            speaker=None if speaker == id_ else speaker,
            lang=known["utt2lang"].get(id_),
            text=known["text"].get(id_),
        )


def _check_kaldi(utterance: Utterance) -> None:
    for name in ("id", "speaker", "lang"):
        value = getattr(utterance, name)
        if value is not None and (not value or re.search(r"\s", value)):
            raise ManifestError(f"{utterance.id!r}: {name} {value!r} has a space or is empty, which Kaldi cannot hold")
    if utterance.audio != utterance.audio.strip() or re.search(r"[\r\n]|\|$|:\d+$", utterance.audio):
        raise ManifestError(f"{utterance.id!r}: Kaldi cannot hold the path {utterance.audio!r}; rename the file")


def _kaldi_recordings(rows: list[Utterance]) -> tuple[dict[str, str], dict[str, str]]:
    if all(utterance.start is None for utterance in rows):
        return {utterance.id: os.path.abspath(utterance.audio) for utterance in rows}, {}
    names: dict[str, str] = {}  # audio path -> recording id
    taken: set[str] = set()
    segments = {}
    for utterance in rows:
        audio = os.path.abspath(utterance.audio)
        if audio not in names:
            stem = name = re.sub(r"\s+", "_", Path(audio).stem)
            number = 1
            while name in taken:
                number += 1
                name = f"{stem}-{number}"
            names[audio] = name
            taken.add(name)
        segments[utterance.id] = f"{names[audio]} {_kaldi_span(utterance)}"
    return {name: audio for audio, name in names.items()}, segments


def _kaldi_span(utterance: Utterance) -> str:
    if utterance.start is None:
        return "0 -1"  # Kaldi reads the end -1 as the end of the recording
    end = -1 if utterance.duration is None else utterance.start + utterance.duration
    return f"{utterance.start!r} {end!r}"


def _kaldi_segments(path: Path, recordings: dict[str, str]) -> Iterator[tuple[str, str, float | None, float | None]]:
    for id_, rest in _table(path).items():
        place = f"{path}: {id_}"
        columns = rest.split()
        if len(columns) != 3:
            raise ManifestError(f"{place}: expected 'recording start end', found {rest!r}")
        if columns[0] not in recordings:
            raise ManifestError(f"{place}: recording {columns[0]!r} is not in wav.scp beside it")
        start, end = _number(columns[1], place=place), _number(columns[2], place=place, least=-1.0)
        if end == -1:
            yield id_, columns[0], start or None, None
        elif end > start:
            yield id_, columns[0], start, end - start
        else:
            raise ManifestError(f"{place}: ends at {end} s, not after its start at {start} s")


def _kaldi_path(value: str, *, place: str) -> str:
    if value.endswith("|"):
        raise ManifestError(
            f"{place}: {value!r} is a command; unitkit runs no commands from data. Convert the audio to files "
            "(for example with Kaldi's wav-copy) and list those in wav.scp"
        )
    if re.search(r":\d+$", value) and not os.path.exists(value):
        raise ManifestError(f"{place}: {value!r} points into an archive; unpack it to files (wav-copy) and list those")
    return os.path.abspath(value)


def _table(path: Path, *, optional: bool = False) -> dict[str, str]:
    if optional and not path.exists():
        return {}
    table: dict[str, str] = {}
    for number, line in _lines(path):
        key, *rest = re.split(r"[ \t]+", line.strip(" \t\r"), maxsplit=1)
        if key in table:
            raise ManifestError(f"{path}:{number}: {key!r} was used on an earlier line; Kaldi wants each key once")
        if not rest and path.name != "text":  # an empty transcript is lawful, an empty anything else is not
            raise ManifestError(f"{path}:{number}: {key!r} has no value; expected 'key value'")
        table[key] = rest[0] if rest else ""
    return table


def _write_table(path: Path, table: dict[str, str], *, keep_empty: bool) -> None:
    if not table and not keep_empty:
        path.unlink(missing_ok=True)  # a segments file left from an earlier run would change the meaning of wav.scp
        return
    with atomic_text(path) as file:
        file.writelines(f"{key} {table[key]}".rstrip(" ") + "\n" for key in sorted(table, key=_bytes))


def write_fairseq_tsv(path: str | os.PathLike[str], utterances: Iterable[Utterance], *, rate: int = 16000) -> int:
    r"""Write fairseq's root line and `relative path\tsamples` rows, samples counted at `rate` Hz; returns rows."""
    rows = list(utterances)
    for utterance in rows:
        if utterance.start is not None:
            raise ManifestError(f"{utterance.id!r} starts inside a file; a fairseq tsv lists whole files only")
        if utterance.duration is None:
            raise ManifestError(f"{utterance.id!r} has no duration, which a tsv needs (recipes/prepare.py adds it)")
        if re.search(r"[\t\r\n]", utterance.audio):
            raise ManifestError(f"{utterance.id!r}: {utterance.audio!r} has a tab or line break; rename the file")
    folders = [os.path.dirname(os.path.abspath(utterance.audio)) for utterance in rows]
    root = os.path.commonpath(folders) if folders else os.getcwd()
    with atomic_text(path) as file:
        file.write(root + "\n")
        for utterance in rows:
            samples = round((utterance.duration or 0.0) * rate)
            file.write(f"{os.path.relpath(utterance.audio, root)}\t{samples}\n")
    return len(rows)


def read_fairseq_tsv(path: str | os.PathLike[str], *, rate: int = 16000) -> Iterator[Utterance]:
    """Yield the files of a fairseq tsv, its sample counts taken at `rate` Hz; ids are the paths without suffix."""
    lines = _lines(Path(path))
    _, root = next(lines, (0, ""))
    if not root or "\t" in root:
        raise ManifestError(f"{path}:1: the first line of a fairseq tsv is the root directory, found {root!r}")
    seen: set[str] = set()
    for number, line in lines:
        name, tab, samples = line.rstrip("\r").rpartition("\t")
        if not tab or not samples.isascii() or not samples.isdigit():
            raise ManifestError(f"{path}:{number}: expected 'path<TAB>samples', found {line!r}")
        id_ = os.path.splitext(name)[0]
        _add_once(seen, id_, place=f"{path}:{number}")
        audio = os.path.abspath(os.path.join(root.rstrip("\r"), name))
        yield Utterance(id=id_, audio=audio, duration=int(samples) / rate)


def write_lhotse(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> int:
    """Write lhotse cuts (.jsonl or .jsonl.gz) in one step; audio headers are read for rates; returns cuts."""
    lhotse = _lhotse()
    target = Path(path)
    if not target.name.endswith((".jsonl", ".jsonl.gz")):
        raise ManifestError(f"{path}: lhotse cuts are streamed to .jsonl or .jsonl.gz")
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{os.getpid()}.partial.{target.name}")  # lhotse goes by the suffix, so it stays last
    seen: set[str] = set()
    try:
        with lhotse.CutSet.open_writer(half, overwrite=True) as writer:
            for utterance in utterances:
                _add_once(seen, utterance.id, place=path)
                writer.write(_lhotse_cut(utterance))
        os.replace(half, target)
    finally:
        half.unlink(missing_ok=True)
    return len(seen)


def read_lhotse(path: str | os.PathLike[str]) -> Iterator[Utterance]:
    """Yield the utterances of lhotse cuts; only plain cuts of one-channel files, texts of a cut joined by a space."""
    lhotse = _lhotse()
    if not Path(path).exists():
        raise ManifestError(f"{path}: no such file of lhotse cuts")
    for cut in lhotse.CutSet.from_jsonl_lazy(path):
        place = f"{path}: cut {cut.id!r}"
        if not isinstance(cut, lhotse.MonoCut) or cut.recording is None or cut.recording.num_channels != 1:
            raise ManifestError(f"{place} is not a plain one-channel cut; mix it down with cut.save_audio first")
        source = cut.recording.sources[0]
        if source.type != "file" or cut.recording.transforms:
            raise ManifestError(f"{place}: audio of type {source.type!r} or with transforms; save it to files first")
        whole = cut.start == 0 and math.isclose(cut.duration, cut.recording.duration, abs_tol=1e-6)
        texts = [part.text for part in cut.supervisions if part.text is not None]
        speakers = {part.speaker for part in cut.supervisions}
        langs = {part.language for part in cut.supervisions}
        yield Utterance(
            id=cut.id,
            audio=os.path.abspath(source.source),
            duration=cut.duration,
            start=None if whole else cut.start,
            speaker=speakers.pop() if len(speakers) == 1 else None,
            lang=langs.pop() if len(langs) == 1 else None,
            text=" ".join(texts) if texts else None,
        )


def _lhotse_cut(utterance: Utterance) -> object:
    import soundfile

    lhotse = _lhotse()
    name, audio = utterance.id, os.path.abspath(utterance.audio)
    try:
        header = soundfile.info(audio)
    except (OSError, RuntimeError) as error:
        raise ManifestError(f"{name!r}: cannot read the header of {audio}: {error}") from error
    if header.channels != 1:
        raise ManifestError(f"{name!r}: {audio} has {header.channels} channels; a cut holds one, so mix it down first")
    length = header.frames / header.samplerate
    start = utterance.start or 0.0
    duration = length - start if utterance.start is None or utterance.duration is None else utterance.duration
    source = lhotse.AudioSource(type="file", channels=[0], source=audio)
    recording = lhotse.Recording(name, [source], header.samplerate, num_samples=header.frames, duration=length)
    said = lhotse.SupervisionSegment(
        name, name, 0.0, duration, text=utterance.text, language=utterance.lang, speaker=utterance.speaker
    )
    return lhotse.MonoCut(name, start, duration, channel=0, recording=recording, supervisions=[said])


def _lhotse() -> ModuleType:
    try:
        import lhotse
    except ImportError as error:
        raise ManifestError("lhotse cuts need the lhotse package: pip install 'unitkit[lhotse]'") from error
    return lhotse


@contextmanager
def atomic_text(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Open a UTF-8 file for writing that takes its name only when complete; folders above it are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with half.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, target)
    finally:
        half.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) without line ends; only a line feed ends a line, blank lines are left out."""
    try:
        # Surrogates keep file names that are not UTF-8, as Python's own file functions do.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip(" \t\r\n"):
                    yield number, line.rstrip("\n")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error


def _parse_row(line: str, *, place: str, folder: str) -> Utterance:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(row, dict):
        raise ManifestError(f"{place}: expected one JSON object a line, found {line[:60]!r}")
    if unknown := sorted(set(row) - set(FIELDS)):
        raise ManifestError(f"{place}: unknown key {unknown[0]!r}; known keys: {', '.join(FIELDS)}")
    values: dict[str, Any] = {
        name: _value(name, value, place=place) for name, value in row.items() if value is not None
    }
    if missing := [name for name in ("id", "audio") if not values.get(name)]:
        raise ManifestError(f"{place}: {missing[0]!r} is missing or empty; every row needs 'id' and 'audio'")
    values["audio"] = os.path.normpath(os.path.join(folder, str(values["audio"])))
    return Utterance(**values)


def _value(name: str, value: object, *, place: str) -> str | float:
    if name not in NUMBERS:
        if not isinstance(value, str):
            raise ManifestError(f"{place}: {name!r} must be a string, found {value!r}")
        return value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ManifestError(f"{place}: {name!r} must be seconds, a number from 0, found {value!r}")
    return float(value)


def _add_once(seen: set[str], id_: str, *, place: str | os.PathLike[str]) -> None:
    if id_ in seen:
        raise ManifestError(f"{place}: id {id_!r} occurs twice; ids must be unique")
    seen.add(id_)


def _number(value: str, *, place: str, least: float = 0.0) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < least:
        raise ManifestError(f"{place}: expected seconds, a number from 0, found {value!r}")
    return number


def _real_folder(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)  # the file itself may be a link with a better name


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

"""What a sweep goes over, as typed: `label=encoder:layers`, numbers of units."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LAYERS = re.compile(r"(?P<name>.*):(?P<layers>all|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)$")


class SweepError(ValueError):
    """A sweep that cannot be run as it was asked for; the message names the value and the fix."""


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder: the name it is shown by, what `load_encoder` takes, and layers (none: its own choice)."""

    label: str
    features: str
    layers: tuple[int, ...] = ()
    every: bool = False  # all layers from 1 on


def parse_encoder(text: str) -> EncoderSpec:
    """`[label=]name[:layers]`; layers are `2,4,6`, `2-6` or `all`; the label is by default the name's last part."""
    label, rest = split_label(text)
    found = LAYERS.match(rest) if not os.path.isdir(rest) else None
    name, layers = (found["name"], found["layers"]) if found else (rest, "")
    if not name or name.endswith(":"):
        raise SweepError(f"encoder {text!r} is none; write mfcc, whisper-base:2,4,6, hubert-base:all or mine=exp/a:4-8")
    every = layers == "all"
    return EncoderSpec(label or _last(name), name, () if every else _numbers(layers, text), every)


def parse_encoders(texts: Iterable[str]) -> list[EncoderSpec]:
    """Several of them; two different encoders may not bear one label."""
    specs = [parse_encoder(text) for text in texts]
    if not specs:
        raise SweepError("no encoder to sweep over; give at least one --encoder, such as mfcc or whisper-base:2,4,6")
    check_labels([(spec.label, spec.features) for spec in specs])
    return specs


def parse_units(text: str) -> list[int]:
    """Numbers of units, comma-separated, each once."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SweepError(f"units are whole numbers with commas between them, such as 100,500, not {text!r}") from error
    if min(counts) < 1:
        raise SweepError(f"{min(counts)} units cannot be fitted; give numbers from 1 on, such as 100,500")
    return list(dict.fromkeys(counts))


def split_label(text: str) -> tuple[str, str]:
    """`label=path` as (label, path); ("", path) without a label, or where a file of that whole name exists."""
    label, equals, rest = text.partition("=")
    if not equals or not label or "/" in label or os.path.exists(text):
        return "", text
    return label, rest


def labelled_files(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """(label, file) of `[label=]path`; the label is by default the file's name without its ending."""
    found = [(label or Path(path).stem, path) for label, path in map(split_label, texts)]
    check_labels(found)
    return [(label, Path(path)) for label, path in found]


def check_labels(pairs: Sequence[tuple[str, str]]) -> None:
    """Raise `SweepError` if one label stands for two things."""
    meant: dict[str, str] = {}
    for label, name in pairs:
        if meant.setdefault(label, name) != name:
            raise SweepError(f"{meant[label]} and {name} would both be called {label!r}: write another-name={name}")


def _last(name: str) -> str:
    return Path(name).resolve().name if name.startswith(".") else Path(name).name


def _numbers(text: str, whole: str) -> tuple[int, ...]:
    """Layers of `2,4-6` in rising order, each once."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise SweepError(f"layers {part!r} of encoder {whole!r} run backwards; write {last}-{first}")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))

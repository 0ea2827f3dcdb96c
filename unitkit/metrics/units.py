"""Unit error rate: how much of a unit sequence survives synthesis and encoding again."""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from unitkit.metrics.base import Measure, ratio, require, signature
from unitkit.units import Units, check_fingerprint, read_header, read_units


def unit_error_rate(
    units: str | Path, reference: str | Path, *, dedup: bool = True, ids: Collection[str] | None = None
) -> Measure:
    """Edit distance between two unit files over the reference's length, in percent, all of the corpus counted at once.

    Runs of equal units are collapsed first unless `dedup` is off; codebooks are compared one by one and summed.
    The files must come from one tokenizer and hold the same utterances; `ids` picks some of them.
    """
    header = read_header(reference)
    check_fingerprint(header.tokenizer, read_header(units).tokenizer, what=f"{units} (scored against {reference})")
    wanted, found = _picked(reference, ids), _picked(units, ids)
    _check_same_ids(found, wanted, names=(str(units), str(reference)))
    counts = [unit_errors(found[key], item, dedup=dedup) for key, item in wanted.items()]
    name = signature(
        "uer",
        {
            "tokenizer": header.tokenizer,
            "K": header.n_units,
            "codebooks": header.codebooks,
            "level": "dedup" if dedup else "frame",
            "norm": "reference-length",
        },
    )
    return ratio([c[0] for c in counts], [c[1] for c in counts], name=name, scale=100.0)


def unit_errors(units: Units, reference: Units, *, dedup: bool = True) -> tuple[int, int]:
    """(edit distance, reference length) of one utterance, summed over codebooks."""
    if (units.reduced or reference.reduced) and not dedup:
        raise ValueError(
            f"{reference.id!r} is deduplicated: a frame-level rate needs frame-level units (or dedup=True)"
        )
    distance = require("rapidfuzz.distance", package="rapidfuzz").Levenshtein.distance
    pairs = [
        (_runs(ours) if dedup else ours, _runs(theirs) if dedup else theirs)
        for ours, theirs in zip(_streams(units), _streams(reference), strict=True)
    ]
    return sum(distance(a.tolist(), b.tolist()) for a, b in pairs), sum(len(b) for _, b in pairs)


def _streams(units: Units) -> Iterable[np.ndarray]:
    """One (frames,) array a codebook."""
    return (units.ids[:, None] if units.ids.ndim == 1 else units.ids).T


def _runs(ids: np.ndarray) -> np.ndarray:
    """Neighbouring repeats collapsed."""
    return ids[np.concatenate([[True], ids[1:] != ids[:-1]])] if len(ids) else ids


def _picked(path: str | Path, ids: Collection[str] | None) -> dict[str, Units]:
    """Units by utterance id."""
    return {item.id: item for item in read_units(path) if ids is None or item.id in ids}


def _check_same_ids(found: dict[str, Units], wanted: dict[str, Units], *, names: tuple[str, str]) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"{names[0]} and {names[1]} hold different utterances: {len(missing)} missing {missing[:5]}, "
            f"{len(extra)} unknown {extra[:5]}; encode the same manifest for both"
        )

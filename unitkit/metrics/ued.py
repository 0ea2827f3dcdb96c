"""Unit edit distance (UED): how far units move when the words stay and something else changes.

Of pairs (clean, changed) of utterances with the same words, deduplicated (runs of equal units are one):
    UED = 100 * sum of Levenshtein(clean, changed) / sum of len(clean)
with both sums over all pairs (micro average), the length that of the deduplicated clean side.  Substitutions,
insertions and deletions cost 1; codebooks are compared one by one and summed.  Gat et al., "Augmentation invariant
discrete representation", 2022, average over utterances instead; short utterances then weigh more.

Across speakers, every pair of different speakers who say the same sentence counts twice, each being "clean" once, so
neither choice of a clean side nor the order of the files matters.

The control pairs each clean utterance with another sentence of the changed side's speaker: what units that tell nothing
of the words would give.  Units that never change have a UED of 0, and a control of 0.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import numpy as np

from unitkit.manifest import Utterance
from unitkit.metrics.base import Measure, Unavailable, package_version, ratio, signature
from unitkit.metrics.units import unit_errors
from unitkit.units import Units, check_fingerprint


class Pair(NamedTuple):
    """Ids of an utterance and of one that differs in the thing studied; `group`: what they share (the sentence)."""

    clean: str
    changed: str
    group: str


@dataclass(frozen=True)
class Edits:
    """Edit distance and clean length of one pair, both deduplicated."""

    distance: int
    length: int


def speaker_pairs(utterances: Iterable[Utterance]) -> list[Pair]:
    """Both orders of every two utterances with one text and language and two speakers; case and spacing are ignored.

    Utterances without text or speaker are passed over.
    """
    sentences: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        if utterance.text and utterance.speaker:
            sentences["\t".join([utterance.lang or "", *utterance.text.casefold().split()])].append(utterance)
    return [
        Pair(one.id, other.id, sentence)
        for sentence, group in sentences.items()
        for one, other in permutations(group, 2)
        if one.speaker != other.speaker
    ]


def control_pairs(pairs: Sequence[Pair], speakers: Mapping[str, str | None], *, seed: int = 0) -> list[Pair]:
    """The pairs with the changed side replaced by another sentence, of the same speaker where there is one (seeded)."""
    generator = np.random.default_rng(seed)
    sentences = {pair.changed: pair.group for pair in pairs}
    by_speaker: dict[str | None, list[str]] = defaultdict(list)
    for id_ in sentences:
        by_speaker[speakers.get(id_)].append(id_)
    found = []
    for pair in pairs:
        others = [id_ for id_ in by_speaker[speakers.get(pair.changed)] if sentences[id_] != pair.group]
        if others:
            found.append(pair._replace(changed=others[generator.integers(len(others))]))
    return found


def unit_edits(clean: Units, changed: Units) -> Edits:
    """Edit distance and clean length of one pair, deduplicated."""
    check_fingerprint(clean.tokenizer, changed.tokenizer, what=f"units of {changed.id!r} (against {clean.id!r})")
    return Edits(*unit_errors(changed, clean, dedup=True))


def unit_edit_distance(
    units: Mapping[str, Units],
    pairs: Sequence[Pair],
    *,
    changed: Mapping[str, Units] | None = None,
    between: str = "speakers",
) -> Measure:
    """Micro-averaged UED in percent over `pairs` of ids in `units`; `changed` holds the other side if it lies apart.

    `between` says in the signature what differs (speakers, pitch, noise, ...); the interval resamples sentences.
    """
    other = units if changed is None else changed
    if missing := [p for p in pairs if p.clean not in units or p.changed not in other]:
        raise ValueError(
            f"no units for {len(missing)} pairs, the first {missing[0].clean!r} and {missing[0].changed!r}"
        )
    if not pairs:
        raise Unavailable(f"no two utterances to compare between {between}: same text, two speakers, is needed")
    first = units[pairs[0].clean]
    name = signature(
        "ued",
        {
            "between": between,
            "tokenizer": first.tokenizer,
            "K": first.n_units,
            "codebooks": first.codebooks,
            "level": "dedup",
            "norm": "clean-length",
            "average": "micro",
            "rapidfuzz": package_version("rapidfuzz"),
        },
    )
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for pair in pairs:
        edits = unit_edits(units[pair.clean], other[pair.changed])
        sums[pair.group][0] += edits.distance
        sums[pair.group][1] += edits.length
    found = ratio([top for top, _ in sums.values()], [low for _, low in sums.values()], name=name, scale=100.0)
    return replace(found, n=len(pairs))

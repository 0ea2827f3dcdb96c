"""The triplets of an ABX task: which tokens are kept, and which meet which."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unitkit.metrics.items import Item

Groups = dict[tuple[str, str], dict[str, dict[str, np.ndarray]]]  # numbers of items by context, speaker and phone


@dataclass(frozen=True)
class Job:
    """Tokens X (`rows`, numbers of items) against those of A and of every B of A's speaker in one context.

    `columns` holds A's tokens, then those of each of the `others`, the phones B.  `symmetric`: X are A's own tokens.
    """

    phone: str
    speaker: str
    rows: np.ndarray
    columns: tuple[np.ndarray, ...]
    others: tuple[str, ...]
    symmetric: bool


def groups(items: Sequence[Item], context: str, *, limit: int | None, generator: np.random.Generator) -> Groups:
    """The items kept: at most `limit` of each context, speaker and phone; context "any" is one context for all."""
    found: dict[tuple[str, str], dict[str, dict[str, list[int]]]]
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, item in enumerate(items):
        found[item.context if context == "within" else ("", "")][item.speaker][item.phone].append(number)

    def some(numbers: list[int]) -> np.ndarray:
        if limit is None or len(numbers) <= limit:
            return np.array(numbers)
        return np.sort(generator.choice(numbers, limit, replace=False))

    return {
        around: {
            who: {phone: some(numbers) for phone, numbers in sorted(phones.items())}
            for who, phones in sorted(speakers.items())
        }
        for around, speakers in sorted(found.items())
    }


def jobs(kept: Groups, mode: str, *, limit: int | None, generator: np.random.Generator) -> Iterator[Job]:
    """The tokens to compare for each phone A of a speaker in a context and, across speakers, for each speaker of X.

    At most `limit` speakers of X meet an A.
    """
    for speakers in kept.values():
        for who, phones in speakers.items():
            for phone, tokens in phones.items() if len(phones) > 1 else ():
                others = tuple(other for other in phones if other != phone)
                columns = (tokens, *(phones[other] for other in others))
                if mode == "within":
                    if len(tokens) > 1:
                        yield Job(phone, who, tokens, columns, others, symmetric=True)
                    continue
                theirs = [other for other, has in speakers.items() if other != who and phone in has]
                if limit is not None and len(theirs) > limit:
                    theirs = sorted(generator.choice(theirs, limit, replace=False).tolist())
                for other in theirs:
                    yield Job(phone, who, speakers[other][phone], columns, others, symmetric=False)

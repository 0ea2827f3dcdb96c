"""A made-up language for models of text: what is said, by whom, when, is known to the frame."""

from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghij"
N_UNITS = 24  # of each of two books


@dataclass
class Sample:
    """A word of the language, who says it where, and how: frames of each token, and units (frames, 2)."""

    word: str
    voice: int
    lang: int
    durations: np.ndarray
    units: np.ndarray


def say(word: str, voice: int, lang: int) -> Sample:
    """Letters last 2 to 5 frames; the first book is the letter, its second half another unit, and `a` differs in es.

    The second book is the voice's unit for the letter.  Before and behind the word are two frames of silence.
    """
    rows, durations = [(20, 20)] * 2, [2]
    for letter in word:
        number, n = LETTERS.index(letter), 2 + LETTERS.index(letter) % 4
        first = 22 if letter == "a" and lang else 2 * number
        rows += [(first if f < n / 2 else min(first + 1, 23), number + 10 * voice) for f in range(n)]
        durations.append(n)
    return Sample(word, voice, lang, np.array([*durations, 2]), np.array(rows + [(21, 21)] * 2))


def samples(count: int, seed: int) -> list[Sample]:
    draw = np.random.default_rng(seed)
    words = ["".join(draw.permutation(list(LETTERS))[: draw.integers(3, 9)]) for _ in range(count)]
    return [say(word, int(draw.integers(2)), int(draw.integers(2))) for word in words]

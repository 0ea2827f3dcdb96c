"""Text as letters: what is kept, what is dropped, and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitkit.text import Letters, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Press 1, or wait...", "press 1 or wait"),
        ("¿Cómo  está?", "cómo está"),
        ("C'est l'été — déjà!", "c'est l'été déjà"),
        ("'quoted' don’t", "quoted don't"),
        ("snake_case", "snake case"),
        ("…", ""),
    ],
)
def test_plain(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.text())
def test_plain_is_stable(text: str) -> None:
    assert plain(plain(text)) == plain(text)


@given(st.lists(st.text(alphabet="abc é'", min_size=1), min_size=1))
def test_letters_there_and_back(texts: list[str]) -> None:
    letters = Letters.of(texts)
    for text in texts:
        assert letters.decode(letters.encode(text, eos=True)) == plain(text)
        assert letters.decode(letters.encode(text)) == plain(text)


def test_ids_begin_after_the_special_ones_and_unknown_letters_are_dropped() -> None:
    letters = Letters("ab ")
    assert letters.encode("a xb", eos=True).tolist() == [3, 5, 4, 2]
    assert len(letters) == 6
    assert letters.space.tolist() == [5]
    assert Letters("ab").space.tolist() == []
    assert letters.decode([1, 3, 0, 4, 2, 3]) == "ab"


def test_a_letter_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        Letters("aba")


def test_encoding_is_int64() -> None:
    assert Letters("a").encode("").dtype == np.int64

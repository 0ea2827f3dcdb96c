"""Text as letters: what is kept, what is dropped, and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitkit.text import Letters, marked, plain, sentences


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Press 1, or wait...", "press 1, or wait."),
        ("¿Cómo está? ¡Hola!", "cómo está? hola!"),
        ("C'est l'été — déjà!", "c'est l'été déjà!"),
        ("3.5 at 10:30", "3 5 at 10 30"),  # a mark inside a number says nothing of how to speak
        ("(one) «two»?!", "one two?"),
        ("wait , then - go", "wait, then go"),
        ("... ,", ""),
    ],
)
def test_marks_stay_behind_words(text: str, expected: str) -> None:
    assert marked(text) == expected


@given(st.text())
def test_marked_is_stable_and_says_the_same_words(text: str) -> None:
    found = marked(text)
    assert marked(found) == found
    assert plain(found) == plain(text.replace("…", "."))


def test_long_texts_are_cut_where_sentences_end() -> None:
    text = "One two. Three, four five six! Seven?  Eight nine ten eleven, twelve."
    assert sentences(text, longest=100) == [" ".join(text.split())]
    assert sentences(text, longest=30) == ["One two. Three, four five six!", "Seven?", "Eight nine ten eleven, twelve."]
    assert sentences("One two three, four five six, seven? Eight. Nine ten.", longest=16) == [
        "One two three,",
        "four five six,",
        "seven?",
        "Eight. Nine ten.",
    ]  # what is left of a cut sentence is not said in one breath with the next
    found = sentences(text, longest=22)
    assert found == ["One two.", "Three, four five six!", "Seven?", "Eight nine ten eleven,", "twelve."]
    found = sentences(text, longest=16)
    assert found == ["One two.", "Three,", "four five six!", "Seven?", "Eight nine ten", "eleven,", "twelve."]
    assert sentences(text, longest=1)[:3] == ["One", "two.", "Three,"]
    assert sentences(" ", longest=5) == []


@given(st.lists(st.text(alphabet="abé'", min_size=1, max_size=6)), st.integers(1, 30))
def test_cutting_loses_no_word(words: list[str], longest: int) -> None:
    text = ". ".join(words)
    found = sentences(text, longest=longest)
    assert " ".join(found) == " ".join(text.split())
    assert all(len(one) <= longest or " " not in one for one in found)

"""Text in pieces: what comes back, dropout, languages, files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from unitkit.pieces import Pieces, PiecesError

TEXTS = ["hello world again", "the world is here", "hello hello the here again", "привет мир привет", "l'été est là"]
BPE = Pieces.train(TEXTS, 60, langs=("en", "ru"))
CHAR = Pieces.train(TEXTS, 0, kind="char")
LETTERS = "".join(sorted({letter for text in TEXTS for letter in text}))
TEXT = st.text(alphabet=LETTERS, max_size=60)


@given(TEXT)
def test_a_text_of_known_letters_comes_back(text: str) -> None:
    wanted = " ".join(text.split())
    assert BPE.decode(BPE.encode(text, lang="en")) == wanted
    assert CHAR.decode(CHAR.encode(text)) == wanted
    assert len(CHAR.encode(text)) == len(wanted) + bool(wanted)  # a mark before the first word as well


@given(TEXT, st.floats(0, 1), st.integers(0, 2**40))
def test_with_dropout_too_and_the_same_for_the_same_seed(text: str, dropout: float, seed: int) -> None:
    tokens = BPE.encode(text, lang="ru", dropout=dropout, seed=seed)
    assert BPE.decode(tokens) == " ".join(text.split())
    assert np.array_equal(tokens, BPE.encode(text, lang="ru", dropout=dropout, seed=seed))


@given(TEXT)
def test_dropout_of_almost_nothing_is_sentencepieces_own_encoding(text: str) -> None:
    assert np.array_equal(BPE.encode(text, lang="en", dropout=1e-300, seed=0), BPE.encode(text, lang="en"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=BPE.model)
    assert BPE.encode(text, lang="en")[1:].tolist() == [n + 3 for n in processor.encode(" ".join(text.split()))]


def test_dropout_makes_more_pieces() -> None:
    whole = len(BPE.encode(TEXTS[0], lang="en"))
    assert np.mean([len(BPE.encode(TEXTS[0], lang="en", dropout=0.5, seed=s)) for s in range(20)]) > 1.3 * whole
    letters = BPE.encode(TEXTS[0], lang="en", dropout=1.0, seed=0)
    assert len(letters) == 1 + 1 + len(TEXTS[0])  # the language, the first mark, each letter and space


def test_numbers() -> None:
    assert len(BPE) == 3 + BPE.n_pieces + 2 and len(CHAR) == 3 + CHAR.n_pieces
    tokens = BPE.encode("hello", lang="ru")
    assert tokens[0] == len(BPE) - 1 and (tokens[1:] > 3).all() and (tokens[1:] < 3 + BPE.n_pieces).all()
    assert BPE.lang_of(tokens) == "ru" and BPE.lang_of(tokens[1:]) is None and CHAR.lang_of([5]) is None
    assert BPE.decode([*tokens, Pieces.eos, *tokens]) == "hello"
    assert BPE.decode([]) == "" and BPE.encode("  ", lang="en").tolist() == [BPE.token_of("en")]


def test_unknown_letters_are_left_out() -> None:
    assert BPE.decode(BPE.encode("hello 東 wor☃ld ▁", lang="en")) == "hello world"
    assert CHAR.encode("東").tolist() == []
    assert CHAR.decode(CHAR.encode("e\u0301te\u0301")) == "été"  # composed as the training texts are


def test_kept_on_disk(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    again = Pieces.load(tmp_path, langs=BPE.langs, fingerprint=BPE.fingerprint)
    assert again == BPE and again.encode(TEXTS[3], lang="ru").tolist() == BPE.encode(TEXTS[3], lang="ru").tolist()
    with pytest.raises(PiecesError, match=f"{CHAR.fingerprint}.*text.model"):
        Pieces.load(tmp_path, langs=BPE.langs, fingerprint=CHAR.fingerprint)
    with pytest.raises(PiecesError, match=BPE.fingerprint):
        Pieces.load(tmp_path, langs=("ru", "en"), fingerprint=BPE.fingerprint)
    with pytest.raises(PiecesError, match=r"no text\.model"):
        Pieces.load(tmp_path / "elsewhere")


def test_the_same_texts_give_the_same_pieces() -> None:
    assert Pieces.train(TEXTS, 60, langs=("en", "ru")).fingerprint == BPE.fingerprint
    assert Pieces.train(TEXTS[:3], 60).fingerprint != Pieces.train(TEXTS, 60).fingerprint


def test_what_is_refused() -> None:
    for arguments, message in (
        ((TEXTS, 5), "size 5 has no room for the"),
        (([" "], 5), "no text"),
    ):
        with pytest.raises(PiecesError, match=message):
            Pieces.train(*arguments)
    with pytest.raises(PiecesError, match="kind 'word': known are bpe, char"):
        Pieces.train(TEXTS, 50, kind="word")
    with pytest.raises(PiecesError, match="language 'fr': known are en, ru"):
        BPE.encode("hello", lang="fr")
    with pytest.raises(PiecesError, match="trained without languages"):
        CHAR.token_of("en")
    with pytest.raises(PiecesError, match="probability, not 2"):
        BPE.encode("hello", lang="en", dropout=2)
    with pytest.raises(PiecesError, match="not a sentencepiece model"):
        len(Pieces(b"nothing"))

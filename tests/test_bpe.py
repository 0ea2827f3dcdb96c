"""Unit BPE: every string of units comes back, whatever the pieces."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit.bpe import MAX_UNITS, UnitBPE
from unitkit.units import FingerprintError, Units, UnitsError, UnitsHeader, Vocab

K = 50
HEADER = UnitsHeader("3f9c2a1b77d0", 50.0, K)
IDS = st.lists(st.integers(0, K - 1), max_size=200)


def corpus(seed: int = 0) -> list[Units]:
    """Units with strings that repeat; 40..49 are never met in training."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(0, 40, rng.integers(2, 9)) for _ in range(30)]
    return [HEADER.units(np.concatenate([words[w] for w in rng.integers(0, 30, 60)]), str(i)) for i in range(40)]


BPE = UnitBPE.train(corpus(), 300)


def test_pieces_are_fewer_than_units_and_of_many_units() -> None:
    for one in corpus():
        pieces = BPE.encode(one)
        assert pieces.dtype == np.int64 and BPE.decode(pieces, id=one.id) == one
        assert len(pieces) < len(one) / 2.5
    assert len(BPE) == 300


@given(IDS)
def test_any_string_of_units_comes_back(ids: list[int]) -> None:
    one = HEADER.units(ids, "a")
    assert BPE.decode(BPE.encode(one), id="a") == one


@given(IDS, st.floats(0, 1), st.integers(0, 2**40))
def test_with_dropout_too_and_the_same_for_the_same_seed(ids: list[int], dropout: float, seed: int) -> None:
    one = HEADER.units(ids, "a")
    pieces = BPE.encode(one, dropout=dropout, seed=seed)
    assert BPE.decode(pieces, id="a") == one
    assert np.array_equal(pieces, BPE.encode(one, dropout=dropout, seed=seed))


@given(IDS)
def test_dropout_of_almost_nothing_is_sentencepieces_own_encoding(ids: list[int]) -> None:
    one = HEADER.units(ids, "a")
    for units in (one, HEADER.units(corpus()[0].ids[: len(ids)], "a")):
        assert np.array_equal(BPE.encode(units, dropout=1e-300, seed=0), BPE.encode(units))


def test_dropout_drops_as_often_as_sentencepieces() -> None:
    """The same candidates and the same chance: mean lengths agree within what chance allows."""
    one = corpus()[0]
    text = "".join(chr(0xF0000 + unit) for unit in one.ids)
    ours = [len(BPE.encode(one, dropout=0.2, seed=seed)) for seed in range(300)]
    processor = sentencepiece.SentencePieceProcessor(model_proto=BPE.model)
    theirs = [len(processor.sample_encode_as_ids(text, nbest_size=-1, alpha=0.2)) for _ in range(300)]
    error = np.sqrt(np.var(ours) / 300 + np.var(theirs) / 300)
    assert abs(np.mean(ours) - np.mean(theirs)) < 5 * error


@given(st.lists(st.integers(0, len(BPE) - 1), max_size=60))
def test_any_string_of_pieces_is_units_and_comes_back_as_the_same_units(pieces: list[int]) -> None:
    units = BPE.decode(pieces)
    assert BPE.decode(BPE.encode(units)) == units


def test_every_single_unit_is_a_piece_met_in_training_or_not() -> None:
    for unit in range(K):
        pieces = BPE.encode(HEADER.units([unit], "a"))
        assert len(pieces) == 1 and BPE.decode(pieces).ids.tolist() == [unit]


def test_dropout_varies_with_the_seed_and_none_is_the_plain_encoding() -> None:
    one = corpus()[0]
    plain = BPE.encode(one).tolist()
    assert len({tuple(BPE.encode(one, dropout=0.3, seed=seed).tolist()) for seed in range(8)}) == 8
    assert BPE.encode(one, dropout=0.0, seed=3).tolist() == plain
    assert len(BPE.encode(one, dropout=0.3, seed=1)) > len(plain)
    everything = BPE.encode(one, dropout=1.0, seed=1)
    assert len(everything) == len(one)  # all merges dropped: single units
    unseeded = [BPE.encode(one, dropout=0.3) for _ in range(3)]
    assert all(BPE.decode(pieces, id=one.id) == one for pieces in unseeded)


def test_a_seed_says_the_same_in_another_process() -> None:
    here = BPE.encode(corpus()[0], dropout=0.3, seed=11).tolist()
    code = "from test_bpe import *; print(BPE.encode(corpus()[0], dropout=0.3, seed=11).tolist())"
    folder = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert json.loads(run.stdout) == here


def test_training_is_repeatable() -> None:
    assert UnitBPE.train(corpus(), 300).model == BPE.model


def test_reduced_units_have_a_bpe_of_their_own() -> None:
    short = [one.dedup()[0] for one in corpus()]
    bpe = UnitBPE.train(short, 200)
    assert bpe.reduced and bpe.decode(bpe.encode(short[0]), id="0") == short[0]
    with pytest.raises(UnitsError, match=r"is frame-level, but this BPE is of reduced units: dedup\(\)"):
        bpe.encode(corpus()[0])
    with pytest.raises(UnitsError, match=r"is reduced, but this BPE is of frame-level units: expand"):
        BPE.encode(short[0])
    with pytest.raises(UnitsError, match="is reduced"):
        UnitBPE.train([*corpus(), short[0]], 200)


def test_long_utterances_train_and_come_back() -> None:
    """sentencepiece drops training sentences over 4192 bytes, and dies on those over 65535 characters."""
    rng = np.random.default_rng(1)
    words = rng.integers(0, K, (20, 5))
    long = HEADER.units(np.concatenate(list(words[rng.integers(0, 20, 60_000)])), "long")
    bpe = UnitBPE.train([long], 150)
    pieces = bpe.encode(long)
    assert len(pieces) < len(long) / 3 and bpe.decode(pieces, id="long") == long
    assert bpe.decode(bpe.encode(long, dropout=0.1, seed=1), id="long") == long


@pytest.mark.parametrize("n_units", [65_534, 65_540, MAX_UNITS])
def test_many_units_up_to_the_bound(n_units: int) -> None:
    header = UnitsHeader("t", 50.0, n_units)
    edges = [0, 1, 65_533, 65_534, 65_535, 65_536, n_units - 1]
    one = header.units([unit for unit in edges if unit < n_units] * 3, "a")
    bpe = UnitBPE.train([one], n_units + 5)
    assert bpe.decode(bpe.encode(one), id="a") == one
    everything = header.units(np.arange(n_units), "a")
    assert bpe.decode(bpe.encode(everything), id="a") == everything


def test_pieces_go_into_a_vocabulary() -> None:
    vocab = Vocab(len(BPE))
    pieces = BPE.encode(corpus()[0])
    assert np.array_equal(vocab.decode(vocab.encode(pieces, bos=True, eos=True)), pieces)


def test_no_piece_is_longer_than_asked() -> None:
    bpe = UnitBPE.train(corpus(), 300, longest=3)
    assert max(len(bpe.decode([piece])) for piece in range(len(bpe))) == 3


def test_few_pairs_give_few_pieces() -> None:
    bpe = UnitBPE.train([HEADER.units([1, 2, 1, 2], "a"), HEADER.units([], "b")], 1000)
    assert K <= len(bpe) < K + 10 and bpe.decode(bpe.encode(HEADER.units([], "b")), id="b") == HEADER.units([], "b")
    assert len(UnitBPE.train([HEADER.units([], "b")], K)) == K  # single units and nothing else


def test_save_and_load(tmp_path: Path) -> None:
    BPE.save(tmp_path / "bpe")
    assert sorted(path.name for path in (tmp_path / "bpe").iterdir()) == ["bpe.json", "bpe.model"]
    again = UnitBPE.load(tmp_path / "bpe", tokenizer=HEADER.tokenizer)
    assert again == BPE and np.array_equal(again.encode(corpus()[3]), BPE.encode(corpus()[3]))
    assert sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe" / "bpe.model")).get_piece_size() == 301
    with pytest.raises(FingerprintError, match=r"bpe.*3f9c2a1b77d0.*other"):
        UnitBPE.load(tmp_path / "bpe", tokenizer="other")


def test_damaged_or_mixed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnitsError, match="holds no unit BPE"):
        UnitBPE.load(tmp_path)
    BPE.save(tmp_path)
    card, model = (tmp_path / "bpe.json").read_bytes(), (tmp_path / "bpe.model").read_bytes()
    for damaged in (b"", b"[]", b"{}", card[:40], card.replace(b'"n_units": 50', b'"n_units": "x"')):
        (tmp_path / "bpe.json").write_bytes(damaged)
        with pytest.raises(UnitsError, match="holds no unit BPE"):
            UnitBPE.load(tmp_path)
    (tmp_path / "bpe.json").write_bytes(card.replace(b'"n_units": 50', b'"n_units": 51'))
    with pytest.raises(UnitsError, match=r"does not have every unit of 0\.\.50"):
        UnitBPE.load(tmp_path)
    (tmp_path / "bpe.json").write_bytes(card)
    for damaged in (b"", model[:100], model + b"x"):
        (tmp_path / "bpe.model").write_bytes(damaged)
        with pytest.raises(UnitsError, match="does not belong to this"):
            UnitBPE.load(tmp_path)
    with pytest.raises(UnitsError, match="not a sentencepiece model"):
        UnitBPE(b"rubbish", "t", 50.0, 5).encode(Units([1], 50.0, 5, "t"))


def test_units_of_another_kind_are_refused() -> None:
    one = corpus()[0]
    with pytest.raises(FingerprintError, match="other"):
        BPE.encode(replace(one, tokenizer="other"))
    with pytest.raises(FingerprintError, match="51"):
        BPE.encode(replace(one, n_units=51))
    with pytest.raises(FingerprintError, match="other"):
        UnitBPE.train([one, replace(one, tokenizer="other")], 100)
    for units, size, message in (
        ([], 100, "no units at all"),
        ([one], K - 1, "no room for the 50 single units"),
        ([Units([[1, 2]], 50.0, K, "t")], 100, "one codebook"),
        ([Units([1], 50.0, MAX_UNITS + 1, "t")], 10**6, "private-use"),
    ):
        with pytest.raises(UnitsError, match=message):
            UnitBPE.train(units, size)
    with pytest.raises(UnitsError, match="longest"):
        UnitBPE.train([one], 100, longest=0)


@pytest.mark.parametrize("pieces", [[300], [-1], [0.5], [[1]], ["1"]])
def test_bad_pieces_are_refused(pieces: list) -> None:
    with pytest.raises(UnitsError, match="piece"):
        BPE.decode(pieces)


@settings(max_examples=10)
@given(st.sampled_from([-0.1, 1.1, float("nan")]))
def test_bad_dropout_is_refused(dropout: float) -> None:
    with pytest.raises(UnitsError, match="dropout"):
        BPE.encode(corpus()[0], dropout=dropout)


def test_no_torch_and_no_sentencepiece_until_it_is_needed() -> None:
    code = "import sys, unitkit.bpe; sys.exit('torch' in sys.modules or 'sentencepiece' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

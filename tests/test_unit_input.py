"""Units as what a model reads: tokens, pieces, codebooks, rates; embeddings begun with centroids; masks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unitkit.augment import Stretches, mask_tokens
from unitkit.bpe import UnitBPE
from unitkit.models.front import TokenEmbedding
from unitkit.models.unit_input import UnitInput, centroid_vectors
from unitkit.quantizers import KMeans
from unitkit.units import FingerprintError, Units, UnitsError, UnitsHeader, bitrate

ONE = UnitsHeader("3f9c2a1b77d0", 50.0, 12)
TWO = UnitsHeader("3f9c2a1b77d0", 25.0, 5, 2)
IDS = st.lists(st.integers(0, 11), max_size=60)


def corpus(n: int = 30) -> list[Units]:
    draw = np.random.default_rng(0)
    words = [np.repeat(draw.integers(12, size=4), draw.integers(1, 4, size=4)) for _ in range(6)]
    return [ONE.units(np.concatenate([words[i] for i in draw.integers(6, size=5)]), str(i)) for i in range(n)]


BPE = UnitBPE.train((one.dedup()[0] for one in corpus()), 40)


@given(IDS)
def test_tokens_of_units_runs_and_pieces(ids: list[int]) -> None:
    units = ONE.units(ids, "a")
    runs = [unit for i, unit in enumerate(ids) if i == 0 or unit != ids[i - 1]]
    assert UnitInput(ONE, reduced=False).tokens(units).tolist() == [unit + 3 for unit in ids]
    assert UnitInput(ONE).tokens(units).tolist() == [unit + 3 for unit in runs]
    assert UnitInput(ONE).tokens(units.dedup()[0]).tolist() == [unit + 3 for unit in runs]
    pieces = UnitInput(ONE, bpe=BPE)
    assert BPE.decode(pieces.tokens(units) - 3).ids.tolist() == runs
    assert BPE.decode(pieces.tokens(units, dropout=0.5, seed=1) - 3).ids.tolist() == runs


def test_every_codebook_has_tokens_of_its_own() -> None:
    reader = UnitInput(TWO, reduced=False)
    found = reader.tokens(TWO.units([[0, 0], [4, 4], [4, 4]], "a"))
    assert found.tolist() == [[3, 8], [7, 12], [7, 12]] and reader.mask == 13
    assert UnitInput(TWO).tokens(TWO.units([[0, 0], [4, 4], [4, 4]], "a")).shape == (2, 2)


def test_rates_are_those_of_bitrate() -> None:
    units = corpus()
    rate = bitrate(units)
    assert UnitInput(ONE, reduced=False).rates(units) == pytest.approx((50, rate.bits_per_second))
    a_second, bits = UnitInput(ONE).rates(units)
    assert bits == pytest.approx(rate.dedup_bps) and a_second == pytest.approx(rate.dedup_bps / math.log2(12))
    pieces = UnitInput(ONE, bpe=BPE)
    count = sum(len(pieces.tokens(one)) for one in units) / sum(one.duration for one in units)
    assert pieces.rates(units) == pytest.approx((count, count * math.log2(len(BPE)))) and count < a_second / 1.5
    two = [TWO.units(np.random.default_rng(1).integers(5, size=(40, 2)), "a")]
    assert UnitInput(TWO, reduced=False).rates(two) == pytest.approx((25, bitrate(two).bits_per_second))
    with pytest.raises(UnitsError, match="no units at all"):
        pieces.rates([])


def test_units_of_others_are_refused() -> None:
    other = Units(np.arange(3), 50.0, 12, "0123456789ab", "u")
    for reader in (UnitInput(ONE), UnitInput(ONE, bpe=BPE)):
        with pytest.raises(FingerprintError, match="0123456789ab.*3f9c2a1b77d0"):
            reader.tokens(other)
    with pytest.raises(UnitsError, match="'u' has 1 × 9 units, not 1 × 12"):
        UnitInput(ONE).tokens(Units(np.arange(3), 50.0, 9, ONE.tokenizer, "u"))
    with pytest.raises(UnitsError, match="'u' is reduced"):
        UnitInput(ONE, reduced=False).tokens(ONE.units([1, 1], "u").dedup()[0])
    with pytest.raises(UnitsError, match="a BPE of reduced units"):
        UnitInput(ONE, reduced=False, bpe=BPE)
    with pytest.raises(FingerprintError, match="BPE of this model"):
        UnitInput(UnitsHeader("0123456789ab", 50.0, 12), bpe=BPE)


def test_kept_beside_a_model(tmp_path: Path) -> None:
    UnitInput(ONE, bpe=BPE).save(tmp_path)
    again = UnitInput.load(tmp_path, ONE, reduced=True, bpe=BPE.fingerprint)
    assert again.tokens(corpus()[0]).tolist() == UnitInput(ONE, bpe=BPE).tokens(corpus()[0]).tolist()
    other = UnitBPE.train((u.dedup()[0] for u in corpus()[::2]), len(BPE))
    assert len(other) == len(BPE) and other.model != BPE.model  # as many pieces, other ones
    UnitInput(ONE, bpe=other).save(tmp_path)
    with pytest.raises(UnitsError, match=f"{BPE.fingerprint}', but unit_bpe is '{other.fingerprint}'"):
        UnitInput.load(tmp_path, ONE, reduced=True, bpe=BPE.fingerprint)
    UnitInput(ONE).save(tmp_path / "plain")
    assert not (tmp_path / "plain").exists() and UnitInput.load(tmp_path, ONE, reduced=False).bpe is None


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize(("kind", "books"), [("plain", 1), ("residual", 2), ("product", 2)])
def test_vectors_add_up_to_what_units_stand_for(kind: str, books: int) -> None:
    frames = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    quantizer = KMeans.fit(frames, 5, codebooks=books, kind=kind, device="cpu", iterations=3)
    ids = np.random.default_rng(1).integers(5, size=(20, books))
    vectors = centroid_vectors(quantizer)
    assert vectors.shape == (5 * books, 6)
    summed = vectors[torch.from_numpy(ids + 5 * np.arange(books))].sum(1)
    assert torch.allclose(summed * quantizer.std + quantizer.mean, quantizer.decode(ids), atol=1e-5)


def test_a_piece_begins_with_the_mean_of_its_units() -> None:
    frames = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    quantizer = KMeans.fit(frames, 12, device="cpu", iterations=3)
    vectors = UnitInput(ONE, bpe=BPE).vectors(quantizer)
    for piece in (0, 15, len(BPE) - 1):
        mean = quantizer.centroids[0][BPE.decode([piece]).ids].mean(0)
        assert torch.allclose(vectors[piece], mean, atol=1e-6)


def test_an_embedding_begins_with_vectors_and_adds_codebooks_up() -> None:
    torch.manual_seed(0)
    front = TokenEmbedding(14, 16, inner=6)
    vectors = torch.randn(10, 6) * 4 + 1
    front.begin_with(vectors)
    rows = front.table.weight[3:13] * front.scale
    assert torch.allclose(rows, (vectors - vectors.mean()) / vectors.std(correction=0), atol=1e-4)
    assert not front.table.weight[0].any() and front.table.weight[13].any()
    tokens = torch.tensor([[[3, 8], [4, 9]]])
    both, _ = front(tokens, torch.tensor([2]))
    parts = [front(tokens[:, :, book], torch.tensor([2]))[0] for book in (0, 1)]
    assert torch.allclose(both, parts[0] + parts[1] - front.project.bias, atol=1e-5)
    hidden, _ = front(torch.tensor([[[13, 0], [4, 9]]]), torch.tensor([2]))  # a masked row has the mask alone
    assert torch.allclose(hidden[0, 0], front(torch.tensor([[13]]), torch.tensor([1]))[0][0, 0], atol=1e-5)
    with pytest.raises(ValueError, match=r"vectors \(10, 5\) for a table of 14 tokens of 6"):
        front.begin_with(torch.randn(10, 5))


def test_convolutions_behind_an_embedding_halve() -> None:
    torch.manual_seed(0)
    front = TokenEmbedding(14, 16, channels=8, kernels=(3, 3)).eval()
    tokens = torch.randint(3, 14, (2, 9))
    tokens[1, 6:] = 0
    x, lengths = front(tokens, torch.tensor([9, 6]))
    alone, own = front(tokens[1:, :6], torch.tensor([6]))
    assert lengths.tolist() == [3, 2] and own.tolist() == [2]
    assert torch.allclose(x[1, :2], alone[0], atol=1e-6)


# ---------------------------------------------------------------- masks


@given(st.integers(1, 80), st.integers(0, 5), st.floats(0, 1), st.integers(0, 99), st.integers(1, 2))
def test_stretches_are_hidden_and_nothing_else(n: int, times: int, share: float, seed: int, books: int) -> None:
    tokens = np.arange(3, 3 + n * books).reshape(n, books)
    tokens = tokens[:, 0] if books == 1 else tokens
    found = mask_tokens(tokens, np.random.default_rng(seed), config=Stretches(times, share), mask=999)
    assert found.shape == tokens.shape
    rows, before = found.reshape(n, books), tokens.reshape(n, books)
    hidden = rows[:, 0] == 999
    assert np.array_equal(rows[~hidden], before[~hidden]) and not rows[hidden, 1:].any()
    assert hidden.sum() <= times * int(share * n)
    edges = np.flatnonzero(np.diff(np.r_[0, hidden.astype(int), 0]) == 1)
    assert len(edges) <= times


def test_stretches_take_their_share() -> None:
    tokens = np.full(1000, 3)
    found = [mask_tokens(tokens, np.random.default_rng(s), config=Stretches(4, 0.1), mask=9) for s in range(50)]
    assert 0.12 < np.mean([(one == 9).mean() for one in found]) < 0.22  # 4 × 5 % on average, some of it twice

"""ABX: warping, slicing, triplets and averages against a slow reference and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_abx import abx_error, apart, cheapest, inside, warped

from unitkit.metrics import abx as module
from unitkit.metrics.abx import abx, average, cut, frame_distances, frame_span
from unitkit.metrics.alignments import AlignmentError, Phone
from unitkit.metrics.base import Unavailable
from unitkit.metrics.dtw import Pairs, dtw
from unitkit.metrics.items import Item, alignment_items, read_items, write_items

torch.set_num_threads(1)
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))
TIED = arrays(np.float32, SHAPES, elements=st.integers(0, 2).map(float))
REAL = arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32))


def aligned(tables: list[np.ndarray]) -> list[float]:
    """The tables in one flat tensor, with junk between their rows, warped together."""
    flat, offsets, strides = [], [], []
    for table in tables:
        offsets.append(sum(map(len, flat)))
        strides.append(table.shape[1] + 3)
        flat.append(np.pad(table, ((0, 0), (0, 3)), constant_values=-9).ravel())
    shape = [torch.tensor([table.shape[axis] for table in tables]) for axis in (0, 1)]
    found = dtw(torch.from_numpy(np.concatenate(flat)), Pairs(torch.tensor(offsets), torch.tensor(strides), *shape))
    return found.tolist()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(TIED, REAL), min_size=1, max_size=8))
def test_many_pairs_at_once_are_warped_as_one_by_one(tables: list[np.ndarray]) -> None:
    assert aligned(tables) == [warped(table) for table in tables]  # bit for bit, ties included


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 5).map(float)))
def test_the_path_is_the_cheapest_of_all(table: np.ndarray) -> None:
    steps = cheapest(table) / aligned([table])[0] if cheapest(table) else None
    assert steps is None or (
        steps == pytest.approx(round(steps)) and max(table.shape) <= round(steps) < sum(table.shape)
    )


def test_warping_by_hand() -> None:
    assert aligned([np.array([[0, 1, 1], [1, 0, 0]], np.float32)]) == [0]
    # Ties: 1 + 1 along the diagonal (2 steps) or 1 + 1 around it are one price; the diagonal is taken.
    assert aligned([np.array([[1, 0], [0, 1]], np.float32)]) == [pytest.approx(2 / 2)]
    assert aligned([np.array([[1, 1, 1, 1]], np.float32)]) == [1]
    with pytest.raises(ValueError, match="0 frames"):
        dtw(torch.zeros(4), Pairs(*(torch.tensor([k]) for k in (0, 1, 0, 2))))


def test_nothing_to_warp() -> None:
    assert len(dtw(torch.zeros(4), Pairs(*(torch.zeros(0, dtype=torch.long),) * 4))) == 0


@pytest.mark.parametrize("chunk", [1, 7, 1 << 15])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitkit.metrics.dtw.CHUNK", chunk)
    generator = np.random.default_rng(0)
    tables = [generator.random((n, m), np.float32) for n in (1, 2, 5, 5) for m in (1, 4, 4, 9)]
    assert aligned(tables) == [warped(table) for table in tables]


TIMES = st.integers(0, 300)


@settings(max_examples=300, deadline=None)
@given(TIMES, TIMES, st.sampled_from([(100, 50), (100, 100), (200, 50), (10000, 50), (1000, 25)]))
def test_frames_are_those_whose_centres_lie_inside(one: int, other: int, grid: tuple[int, int]) -> None:
    """Times that fall exactly on centres (0.19 s at 50 Hz) included."""
    parts, rate = grid
    onset, offset = sorted((one / parts, other / parts))
    start, stop = frame_span(onset, offset, rate_hz=rate)
    exact = inside(f"{min(one, other)}/{parts}", f"{max(one, other)}/{parts}", rate, 700)
    assert list(range(start, stop)) == [i for i in exact]
    assert frame_span(onset, offset, rate_hz=rate, libri_light=True) == (start, stop - 1)


@pytest.mark.parametrize("kind", ["angular", "euclidean"])
def test_distances_between_frames(kind: str) -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(size=(5, 3)).astype(np.float32), generator.normal(size=(4, 3)).astype(np.float32)
    ours[2] = theirs[1] = 0
    found = frame_distances(torch.from_numpy(ours), torch.from_numpy(theirs), kind)
    wanted = [[apart(a, b, kind) for b in theirs] for a in ours]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_units_are_the_same_or_not() -> None:
    found = frame_distances(torch.tensor([[1, 2], [1, 3]]), torch.tensor([[1, 2], [9, 3], [8, 8]]), "identical")
    assert found.tolist() == [[0, 1, 1], [0.5, 0.5, 1]]
    with pytest.raises(ValueError, match="compared with identical"):
        frame_distances(torch.tensor([[1]]), torch.tensor([[1]]), "angular")
    with pytest.raises(ValueError, match="between units"):
        frame_distances(torch.zeros(1, 1), torch.zeros(1, 1), "identical")


def corpus(
    seed: int, *, tokens: int, dim: int | None, contexts: int = 2
) -> tuple[list[Item], dict[str, np.ndarray], list]:
    """Random items of random lengths, features (units, where `dim` is None), and both as the reference takes them."""
    generator = np.random.default_rng(seed)
    items, features, plain = [], {}, []
    for number in range(tokens):
        length = int(generator.integers(1, 5))
        data = (
            generator.integers(0, 3, length + 2) if dim is None else generator.normal(size=(length + 2, dim))
        )  # one frame more on either side, which the times leave out
        around = f"c{generator.integers(contexts)}"
        item = Item(
            f"f{number}", 0.02, 0.02 + 0.02 * length, "abc"[generator.integers(3)], around, around,
            f"s{generator.integers(3)}",
        )  # fmt: skip
        items.append(item)
        features[item.file] = data if dim is None else data.astype(np.float32)
        frames = features[item.file][1:-1].reshape(length, -1)
        plain.append((frames, item.phone, item.context, item.speaker))
    return items, features, plain


@pytest.mark.parametrize("speaker", ["within", "across"])
@pytest.mark.parametrize("context", ["within", "any"])
@pytest.mark.parametrize(("distance", "dim"), [("identical", None), ("euclidean", 2), ("angular", 3)])
def test_the_score_is_that_of_the_slow_reference(speaker: str, context: str, distance: str, dim: int | None) -> None:
    items, features, plain = corpus(3, tokens=26, dim=dim)
    found = abx(
        cut(items, features, rate_hz=50),
        speaker=speaker, context=context, distance=distance, max_size_group=None, max_x_across=None,
    )  # fmt: skip
    wanted = abx_error(plain, across=speaker == "across", context=context == "within", kind=distance)
    assert found.value == pytest.approx(wanted, abs=1e-6)
    assert 0 < wanted < 100 and found.items == 26 and found.dropped == 0


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    items, features, _ = corpus(1, tokens=30, dim=2)
    whole = abx(cut(items, features, rate_hz=50), context="any", distance="euclidean")
    monkeypatch.setattr(module, "FLUSH", 1)
    assert abx(cut(items, features, rate_hz=50), context="any", distance="euclidean") == whole


def one_frame(rows: list[tuple[str, str, str, float]]) -> tuple[list[Item], dict[str, np.ndarray]]:
    """Items of one frame with one value each: (phone, context, speaker, value)."""
    items = [Item(str(n), 0.0, 0.02, phone, around, around, who) for n, (phone, around, who, _) in enumerate(rows)]
    return items, {str(n): np.array([[row[3]]], np.float32) for n, row in enumerate(rows)}


def test_within_speakers_by_hand() -> None:
    """a at 0 and 2, b at 1: d(x, a) = 2 > d(x, b) = 1 both times; b has no second token, so b-a is no pair."""
    segments = cut(*one_frame([("a", "c", "s", 0), ("a", "c", "s", 2), ("b", "c", "s", 1)]), rate_hz=50)
    found = abx(segments, distance="euclidean")
    assert (found.value, found.phone_pairs, found.triplets) == (100, 1, 2)
    nearer = cut(*one_frame([("a", "c", "s", 0), ("a", "c", "s", 1), ("b", "c", "s", 2)]), rate_hz=50)
    assert abx(nearer, distance="euclidean").value == 25  # X=0: 1 < 2, right; X=1: 1 = 1, half


def test_across_speakers_by_hand() -> None:
    """A = 0, B = 3 of s; X = 1 (right) and 2 (wrong) of t, who has no b to compare an a with."""
    rows = [("a", "c", "s", 0), ("b", "c", "s", 3), ("a", "c", "t", 1), ("a", "c", "t", 2)]
    found = abx(cut(*one_frame(rows), rate_hz=50), speaker="across", distance="euclidean")
    assert (found.value, found.cells, found.triplets) == (50, 1, 2)


def test_contexts_then_speakers_then_phones_are_averaged() -> None:
    """One pair: speaker s errs in 1 of 2 contexts, t in its one: (50 + 100) / 2.  Another pair: 0.  Then the pairs."""
    cells = [(("a", "b"), "s", 1.0), (("a", "b"), "s", 0.0), (("a", "b"), "t", 1.0), (("b", "a"), "s", 0.0)]
    assert average(cells) == (pytest.approx((0.75 + 0) / 2), 2)


def test_contexts_matter_only_within() -> None:
    rows = [("a", "c", "s", 0), ("a", "d", "s", 1), ("b", "c", "s", 5)]
    with pytest.raises(Unavailable, match="no ABX triplet"):
        abx(cut(*one_frame(rows), rate_hz=50), distance="euclidean")
    assert abx(cut(*one_frame(rows), rate_hz=50), context="any", distance="euclidean").value == 0


@pytest.mark.parametrize("speaker", ["within", "across"])
def test_random_features_are_at_chance_and_separable_ones_perfect(speaker: str) -> None:
    items, features, _ = corpus(0, tokens=400, dim=4, contexts=1)
    drawn = abx(cut(items, features, rate_hz=50), speaker=speaker, max_size_group=None)
    assert drawn.value == pytest.approx(50, abs=4)
    clean = {item.file: np.eye(3, dtype=np.float32)[["abc".index(item.phone)] * 6] for item in items}
    assert abx(cut(items, clean, rate_hz=50), speaker=speaker).value == 0
    flat = {item.file: np.ones((6, 2), np.float32) for item in items}
    assert abx(cut(items, flat, rate_hz=50), speaker=speaker).value == 50  # all ties


def test_limits_are_kept_and_seeded() -> None:
    items, features, _ = corpus(5, tokens=200, dim=2, contexts=1)
    segments = cut(items, features, rate_hz=50)
    small = abx(segments, max_size_group=2)
    assert small.triplets == 3 * 6 * (2 * 1 * 2)  # speakers x phone pairs x tokens of A, X, B
    assert abx(segments, max_size_group=2) == small
    assert len({abx(segments, max_size_group=2, seed=seed).value for seed in range(4)}) > 1
    across = abx(segments, speaker="across", max_size_group=2, max_x_across=1)
    assert (across.cells, across.triplets) == (3 * 6, 3 * 6 * 8)
    assert abx(segments, speaker="across", max_size_group=2).cells == 3 * 6 * 2
    assert "|group:2|x:1|seed:0|" in across.signature and "x:" not in small.signature


def test_items_past_the_end_are_cut_or_dropped_and_counted() -> None:
    items = [Item("f", 0.0, 0.1, "a", "c", "c", "s"), Item("f", 0.08, 0.2, "b", "c", "c", "s"),
             Item("f", 0.0, 0.005, "b", "c", "c", "s")]  # fmt: skip
    segments = cut(items, {"f": np.arange(4)}, rate_hz=50)  # frames end at 0.08 s
    assert segments.lengths.tolist() == [4] and segments.dropped == 2
    assert cut(items[:1], {"f": np.arange(5)}, rate_hz=50, libri_light=True).lengths.tolist() == [4]
    with pytest.raises(Unavailable, match="no item has a frame"):
        cut(items[1:], lambda _: np.zeros(0, np.int64), rate_hz=50)
    with pytest.raises(ValueError, match="not finite"):
        cut(items, {"f": np.full((5, 2), np.nan)}, rate_hz=50)


def test_unknown_choices_are_named() -> None:
    segments = cut(*one_frame([("a", "c", "s", 0)]), rate_hz=50)
    for key, known in (("speaker", "across"), ("context", "any"), ("distance", "angular")):
        with pytest.raises(ValueError, match=f"unknown {key} 'x'; known: .*{known}"):
            abx(segments, **{key: "x"})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ item files


def test_item_files_round_trip(tmp_path: Path) -> None:
    items = [Item("6295-244435-0009", 0.2925, 0.4725, "IH", "L", "NG", "6295"), Item("a/b", 0, 1, "a", "b", "c", "d")]
    assert write_items(tmp_path / "x.item", items) == 2
    assert read_items(tmp_path / "x.item") == items
    first = (tmp_path / "x.item").read_text().splitlines()
    assert first[0] == "#file onset offset #phone prev-phone next-phone speaker"
    assert first[1] == "6295-244435-0009 0.2925 0.4725 IH L NG 6295"


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.item"
    path.write_text("speaker #file onset offset #phone prev-phone next-phone lang\ns f 0 1 p b a en\n")
    assert read_items(path) == [Item("f", 0, 1, "p", "b", "a", "s")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f 0 1 p b a s\n", ":1: no column #file"),
        ("#file onset offset #phone prev-phone next-phone speaker\nf 0 1 p b a\n", ":2: 6 columns"),
        ("#file onset offset #phone prev-phone next-phone speaker\nf 0 x p b a s\n", ":2: .*'x'"),
        ("#file onset offset #phone prev-phone next-phone speaker\nf 2 1 p b a s\n", ":2: an item from 2 to 1 s"),
        ("#file onset offset #phone prev-phone next-phone speaker\nf 0 nan p b a s\n", ":2: an item from 0 to nan s"),
    ],
)
def test_broken_item_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.item").write_text(text)
    with pytest.raises(AlignmentError, match=message):
        read_items(tmp_path / "x.item")


def test_names_with_spaces_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match="'my file' cannot stand"):
        write_items(tmp_path / "x.item", [Item("my file", 0, 1, "p", "b", "a", "s")])
    assert not (tmp_path / "x.item").exists()


def test_items_of_alignments() -> None:
    phones = [Phone(0, 0.1, "SIL"), Phone(0.1, 0.2, "K"), Phone(0.2, 0.3, "AE"), Phone(0.3, 0.4, "T"),
              Phone(0.5, 0.6, "S")]  # fmt: skip  # a gap before S is silence
    single = list(alignment_items({"u": phones, "v": phones}, {"u": "ann"}))
    assert [item[1:6] for item in single] == [
        (0.1, 0.2, "K", "SIL", "AE"), (0.2, 0.3, "AE", "K", "T"), (0.3, 0.4, "T", "AE", "SIL"),
        (0.5, 0.6, "S", "SIL", "SIL"),
    ]  # fmt: skip
    assert {(item.file, item.speaker) for item in single} == {("u", "ann")}
    assert list(alignment_items({"u": phones}, {"u": "ann"}, kind="triphone")) == [
        Item("u", 0.1, 0.4, "AE", "K", "T", "ann")
    ]
    with pytest.raises(ValueError, match="known: phoneme, triphone"):
        list(alignment_items({}, {}, kind="word"))

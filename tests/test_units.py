"""Units, their files, bitrate and vocabulary."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_units import bitrates, runs

from unitkit.units import (
    FingerprintError,
    Units,
    UnitsError,
    UnitsHeader,
    UnitsWriter,
    Vocab,
    bitrate,
    check_fingerprint,
    read_header,
    read_units,
    write_units,
)

HEADER = UnitsHeader("3f9c2a1b77d0", 50.0, 9)
IDS = st.lists(st.integers(0, 8), max_size=30)
NAMES = st.text(st.characters(), min_size=1, max_size=8)  # surrogates and every odd separator included


def units(ids: list, name: str = "a", header: UnitsHeader = HEADER) -> Units:
    return header.units(ids, name)


def multi(ids: list[int], codebooks: int) -> tuple[UnitsHeader, Units]:
    header = replace(HEADER, codebooks=codebooks)
    return header, header.units(np.reshape(ids[: len(ids) // codebooks * codebooks], (-1, codebooks)).tolist(), "a")


# ---------------------------------------------------------------------------------------------------------- units


@given(IDS)
def test_dedup_is_runs_and_expand_undoes_it(ids: list[int]) -> None:
    one = units(ids)
    short, durations = one.dedup()
    assert list(zip(short.ids.tolist(), durations.tolist(), strict=True)) == runs(ids)
    assert short.reduced and short.expand(durations) == one


@given(IDS, st.integers(2, 4))
def test_dedup_of_codebooks_merges_equal_rows(ids: list[int], codebooks: int) -> None:
    _, one = multi(ids, codebooks)
    short, durations = one.dedup()
    rows = [tuple(row) for row in one.ids.tolist()]
    assert [(tuple(r), d) for r, d in zip(short.ids.tolist(), durations.tolist(), strict=True)] == runs(rows)
    assert short.codebooks == codebooks and short.expand(durations) == one


def test_shape_duration_and_equality() -> None:
    one = units([1, 1, 2])
    assert (one.n_frames, one.codebooks, one.duration, one.ids.dtype) == (3, 1, 0.06, np.int64)
    assert one == units([1, 1, 2]) and one != units([1, 2, 1]) and one != replace(one, tokenizer="other")
    assert one != replace(one, id="b") and one != replace(one, rate_hz=25.0) and one != 3
    assert Units(np.array([[1], [2]]), 50.0, 9, "t") == Units([1, 2], 50.0, 9, "t")
    empty = Units(np.zeros((0, 4), int), 50.0, 9, "t")
    assert empty.codebooks == 4 and empty.duration == 0


def test_shuffled_keeps_the_frames_and_is_seeded() -> None:
    one = units(list(range(9)) * 20)
    assert sorted(one.shuffled(1).ids) == sorted(one.ids)
    assert one.shuffled(1) == one.shuffled(1) != one.shuffled(2)
    assert one.shuffled(1) != one


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([9], "unit 9 is outside 0..8"),
        ([0, -1], "unit -1 is outside"),
        ([0.5], "integers"),
        ([True], "integers"),
        ([[1, 2], [3]], "same number"),
        ([[[1]]], "shape"),
    ],
)
def test_bad_ids_are_named(ids: list, message: str) -> None:
    with pytest.raises(UnitsError, match=message):
        Units(ids, 50.0, 9, "t")


def test_bad_rate_and_size() -> None:
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UnitsError, match="rate_hz"):
            Units([1], rate, 9, "t")
    with pytest.raises(UnitsError, match="n_units"):
        Units([1], 50.0, 0, "t")


def test_reduced_units_refuse_what_needs_frames() -> None:
    short, _ = units([1, 1, 2]).dedup()
    with pytest.raises(UnitsError, match="no duration"):
        _ = short.duration
    with pytest.raises(UnitsError, match="already reduced"):
        short.dedup()
    with pytest.raises(UnitsError, match="frame level already"):
        units([1]).expand([2])
    for wrong in ([1], [0, 1], [1.5, 1.0], [1, 1, 1]):
        with pytest.raises(UnitsError):
            short.expand(wrong)


def test_check_fingerprint_names_both_and_what() -> None:
    check_fingerprint("aaa", "aaa", what="x")
    with pytest.raises(FingerprintError, match=r"train\.jsonl.*'bbb'.*'aaa'"):
        check_fingerprint("aaa", "bbb", what="train.jsonl")


# ---------------------------------------------------------------------------------------------------------- files


@given(st.dictionaries(NAMES, IDS, max_size=6))
def test_write_then_read_is_the_same(tmp_path_factory: pytest.TempPathFactory, table: dict[str, list[int]]) -> None:
    path = tmp_path_factory.mktemp("units") / "u.jsonl"
    rows = [units(ids, name) for name, ids in table.items()]
    assert write_units(path, HEADER, rows) == len(rows)
    assert read_header(path) == HEADER and list(read_units(path, tokenizer=HEADER.tokenizer)) == rows
    assert [p.name for p in path.parent.iterdir()] == ["u.jsonl"]


@given(IDS, st.integers(2, 4))
def test_codebooks_survive_a_file(tmp_path_factory: pytest.TempPathFactory, ids: list[int], codebooks: int) -> None:
    path = tmp_path_factory.mktemp("units") / "u.jsonl"
    header, one = multi(ids, codebooks)
    write_units(path, header, [one])
    assert list(read_units(path)) == [one] and read_header(path).codebooks == codebooks


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    write_units(tmp_path / "u.jsonl", HEADER, [units([1, 1, 2], "zoë/1")])
    first, second = (tmp_path / "u.jsonl").read_text(encoding="utf-8").splitlines()
    assert first == '{"unitkit":1,"tokenizer":"3f9c2a1b77d0","rate_hz":50.0,"n_units":9,"codebooks":1}'
    assert second == '{"id":"zoë/1","units":[1,1,2]}'


def test_another_tokenizer_is_refused_before_the_first_row(tmp_path: Path) -> None:
    write_units(tmp_path / "u.jsonl", HEADER, [units([1])])
    with pytest.raises(FingerprintError, match=r"u\.jsonl.*3f9c2a1b77d0.*other"):
        read_units(tmp_path / "u.jsonl", tokenizer="other")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id":"b","units":[1,2', "u.jsonl:3: bad row"),
        (b'{"id":"b"}', "u.jsonl:3: bad row: no 'units'"),
        (b'{"id":"b","units":[99]}', "u.jsonl:3: bad row: unit 99"),
        (b'{"id":"b","units":[1.5]}', "u.jsonl:3: bad row"),
        (b'{"id":"b","units":[[1,2]]}', "u.jsonl:3: bad row: 'b' has 2 units"),
        (b'{"id":"b","units":"1"}', "u.jsonl:3: bad row"),
        (b'{"id":7,"units":[1]}', "u.jsonl:3: bad row"),
        (b'{"id":"","units":[1]}', "u.jsonl:3: bad row"),
        (b'{"id":"a","units":[1]}', "u.jsonl:3: a second row with id 'a'"),
        (b"\xff\xfe", "u.jsonl:3: bad row"),
        (b"[1]", "u.jsonl:3: bad row"),
        (b"", "u.jsonl:3: bad row"),
    ],
)
def test_a_damaged_row_is_named_by_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "u.jsonl"
    write_units(path, HEADER, [units([1])])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UnitsError, match=message):
        list(read_units(path))


@pytest.mark.parametrize("head", ["", "a|1 2 3", "[]", "{}", '{"unitkit":1}', '{"unitkit":2,"tokenizer":"x"}', "\0"])
def test_what_is_no_unit_file_is_named(tmp_path: Path, head: str) -> None:
    (tmp_path / "u.txt").write_text(head + "\n")
    with pytest.raises(UnitsError, match=r"u\.txt:1: "):
        read_header(tmp_path / "u.txt")


def test_wrong_units_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    for wrong, kind in [
        ([units([1, 1]).dedup()[0]], UnitsError),
        ([units([1]), units([2])], UnitsError),
        ([replace(units([1]), id="")], UnitsError),
        ([replace(units([1]), tokenizer="other")], FingerprintError),
        ([replace(units([1]), rate_hz=25.0)], FingerprintError),
        ([replace(units([1]), n_units=10)], FingerprintError),
        ([multi([1, 2], 2)[1]], FingerprintError),
    ]:
        with pytest.raises(kind):
            write_units(path, HEADER, wrong)
        assert list(tmp_path.iterdir()) == []


def test_write_keeps_the_old_file_and_the_resumable_partial_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    write_units(path, HEADER, [units([1])])
    before = path.read_bytes()
    (tmp_path / "u.jsonl.partial").write_text("precious")
    with pytest.raises(UnitsError):
        write_units(path, HEADER, [units([1]), units([1])])
    assert path.read_bytes() == before and (tmp_path / "u.jsonl.partial").read_text() == "precious"


# --------------------------------------------------------------------------------------------------------- writer

ROWS = [units([1, 1, 2], "a"), units([], "b/ü"), units(list(range(9)), "c")]


def test_resume_after_a_cut_at_any_byte_gives_the_same_file(tmp_path: Path) -> None:
    write_units(tmp_path / "whole.jsonl", HEADER, ROWS)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path, partial = tmp_path / "u.jsonl", tmp_path / "u.jsonl.partial"
    for cut in range(len(whole) + 1):
        partial.write_bytes(whole[:cut])
        with UnitsWriter(path, HEADER) as writer:
            assert len(writer.done) == max(0, whole[:cut].count(b"\n") - 1)
            for row in ROWS:
                if row.id not in writer.done:
                    writer.append(row)
        assert path.read_bytes() == whole and not partial.exists()


def test_an_exception_leaves_the_partial_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    with pytest.raises(RuntimeError), UnitsWriter(path, HEADER) as writer:
        writer.append(ROWS[0])
        raise RuntimeError
    assert not path.exists()
    with UnitsWriter(path, HEADER) as writer:
        assert writer.done == {"a"}
        with pytest.raises(UnitsError, match="second row with id 'a'"):
            writer.append(ROWS[0])
    assert list(read_units(path)) == ROWS[:1]


def test_every_append_is_on_disk_as_a_whole_line(tmp_path: Path) -> None:
    with UnitsWriter(tmp_path / "u.jsonl", HEADER) as writer:
        for number, row in enumerate(ROWS, 2):
            writer.append(row)
            lines = writer.partial.read_bytes().split(b"\n")
            assert len(lines) == number + 1 and lines[-1] == b"" and json.loads(lines[-2])["id"] == row.id


@settings(max_examples=30)
@given(st.sampled_from(["tokenizer", "rate_hz", "n_units", "codebooks"]))
def test_a_partial_of_other_units_is_refused(tmp_path_factory: pytest.TempPathFactory, field: str) -> None:
    path = tmp_path_factory.mktemp("units") / "u.jsonl"
    other = replace(HEADER, **{field: {"tokenizer": "other", "rate_hz": 25.0, "n_units": 7, "codebooks": 2}[field]})
    path.with_name("u.jsonl.partial").write_text('{"unitkit":1,' + json.dumps(other.__dict__)[1:] + "\n")
    with pytest.raises(FingerprintError, match=r"u\.jsonl\.partial"):
        UnitsWriter(path, HEADER)
    with UnitsWriter(path, HEADER, resume=False) as writer:
        assert writer.done == set()
    assert read_header(path) == HEADER


def test_a_damaged_line_inside_a_partial_is_not_taken_for_a_torn_one(tmp_path: Path) -> None:
    write_units(tmp_path / "whole.jsonl", HEADER, ROWS)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "u.jsonl.partial").write_bytes(lines[0] + b'{"id":"a"\n' + lines[2])
    with pytest.raises(UnitsError, match=r"partial:2"):
        UnitsWriter(tmp_path / "u.jsonl", HEADER)


# -------------------------------------------------------------------------------------------------------- bitrate


@given(st.lists(IDS, min_size=1, max_size=5).filter(any))
def test_bitrate_is_the_corpus_level_rule(utterances: list[list[int]]) -> None:
    found = bitrate(units(ids, str(i)) for i, ids in enumerate(utterances))
    for name, value in bitrates(utterances, n_units=9, rate_hz=50.0).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9), name


def test_bitrate_by_hand() -> None:
    found = bitrate([Units([0, 0, 0, 1], 2.0, 4, "t", "a"), Units([2, 2], 2.0, 4, "t", "b")])
    assert found.seconds == 3 and found.bits_per_second == 6 * 2 / 3 and found.n_units_used == 3
    assert found.dedup_bps == 3 * 2 / 3 and found.dedup_entropy_bps == pytest.approx(3 * np.log2(3) / 3)


def test_the_three_definitions_by_hand() -> None:
    """Eight frames at 4 Hz are 2 s: 0 0 0 0 1 1 | 2 2, of 8 units."""
    found = bitrate([Units([0, 0, 0, 0, 1, 1], 4.0, 8, "t", "a"), Units([2, 2], 4.0, 8, "t", "b")])
    assert found.bits_per_second == 8 * 3 / 2  # fixed rate: every frame costs log2(8) = 3 bits
    # entropy: unit 0 has p = 1/2 and 1 bit, units 1 and 2 have p = 1/4 and 2 bits: 4 × 1 + 2 × 2 + 2 × 2 = 12 bits
    assert found.entropy_bps == 12 / 2
    # deduplicated: runs 0, 1, 2, each p = 1/3; durations 4, 2, 2: p = 1/3 and 2/3
    units, durations = 3 * np.log2(3), np.log2(3) + 2 * np.log2(3 / 2)
    assert found.dedup_bps == 3 * 3 / 2 and found.dedup_entropy_bps == pytest.approx(units / 2)
    assert found.duration_bps == pytest.approx(durations / 2)
    assert found.dedup_complete_bps == pytest.approx((units + durations) / 2)


def test_units_that_are_used_evenly_cost_the_same_by_entropy_and_by_rate() -> None:
    even = bitrate([Units([0, 1, 2, 3] * 5, 50.0, 4, "t", "a")])
    assert even.bits_per_second == even.entropy_bps == even.dedup_complete_bps == 100  # no run is longer than a frame
    constant = bitrate([Units([3] * 50, 50.0, 4, "t", "a")])
    assert constant.bits_per_second == 100 and constant.entropy_bps == constant.dedup_complete_bps == 0


def test_long_utterances_weigh_more_than_in_an_average_over_utterances() -> None:
    long, short = units([1] * 90, "long"), units([0, 1, 2, 3, 4, 5], "short")
    mean = (bitrate([long]).dedup_bps + bitrate([short]).dedup_bps) / 2
    assert bitrate([long, short]).dedup_bps < mean / 5


def test_bitrate_counts_every_codebook() -> None:
    _, one = multi([1, 2, 1, 2, 3, 4], 2)
    assert bitrate([one]).bits_per_second == pytest.approx(2 * 50 * np.log2(9))
    assert bitrate([one]).dedup_bps == pytest.approx(2 * 50 * np.log2(9) * 2 / 3) and bitrate([one]).n_units_used == 4


def test_bitrate_refuses_mixtures_and_nothing() -> None:
    with pytest.raises(FingerprintError):
        bitrate([units([1]), replace(units([1]), tokenizer="other")])
    with pytest.raises(UnitsError, match="reduced"):
        bitrate([units([1]).dedup()[0]])
    with pytest.raises(UnitsError, match="no units"):
        bitrate([])


# ----------------------------------------------------------------------------------------------------- vocabulary


@given(IDS, st.integers(1, 4), st.booleans(), st.booleans())
def test_vocab_round_trips(ids: list[int], codebooks: int, bos: bool, eos: bool) -> None:
    _, one = multi(ids, codebooks)
    vocab = Vocab(9, codebooks)
    tokens = vocab.encode(one.ids, bos=bos, eos=eos)
    assert len(vocab) == 3 + 9 * codebooks and len(tokens) == one.ids.size + bos + eos
    assert np.array_equal(vocab.decode(tokens), one.ids)
    assert np.array_equal(vocab.decode(np.r_[tokens, vocab.eos, 5, 5, vocab.pad]), one.ids)
    inner = tokens[bos : len(tokens) - eos]
    assert (inner >= 3).all() and (inner < len(vocab)).all()


def test_vocab_specials_and_errors() -> None:
    vocab = Vocab(4, 2)
    assert (vocab.pad, vocab.bos, vocab.eos, vocab.encode(np.array([[0, 0], [3, 3]])).tolist()) == (
        0,
        1,
        2,
        [3, 7, 6, 10],
    )
    for tokens in ([3], [7, 3], [3, 11]):  # half a frame; codebooks swapped; outside
        with pytest.raises(UnitsError):
            vocab.decode(np.array(tokens))
    with pytest.raises(UnitsError, match="codebooks"):
        vocab.encode(np.array([1, 2]))


def test_no_torch_needed() -> None:
    code = "import sys, unitkit.units, unitkit.formats; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

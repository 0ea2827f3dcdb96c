"""Other toolkits' unit files: nothing lost, nothing reordered, damage named by line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from unitkit.formats import FORMATS, export_units, import_units
from unitkit.manifest import Utterance, write_manifest
from unitkit.units import FingerprintError, Units, UnitsError, UnitsHeader, read_header, read_units, write_units

HEADER = UnitsHeader("3f9c2a1b77d0", 50.0, 500)
IDS = st.lists(st.integers(0, 499), max_size=25)
PLAIN_NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"], exclude_characters="|/."), min_size=1
)
STEREO = ("dgslm", "dgslm-lines")
SUFFIX = {"textless": "units", "dgslm-lines": "unitA"}  # formats that insist on one
BESIDE = {"bare": {"out.tsv"}, "km": {"out.tsv"}, "unit": {"out.tsv"}, "dgslm-lines": {"out.tsv", "out.unitB"}}
REDUCED = [name for name, one in FORMATS.items() if one.reduced]
RUNS = [3, 3, 3, 17, 17, 499, 0, 0] * 20
ONE_CODEBOOK = [name for name, one in FORMATS.items() if not one.several]
slow_disk = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, table: dict[str, list], header: UnitsHeader = HEADER) -> tuple[Path, Path]:
    """A unit file and its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [header.units(ids, name) for name, ids in table.items()]
    write_units(folder / "u.jsonl", header, rows)
    seconds = {re.sub("-channel[12]$", "", u.id): u.n_frames / header.rate_hz for u in rows}  # a recording each
    files = [Utterance(id, str(folder / "wavs" / f"{id}.wav"), duration=length) for id, length in seconds.items()]
    write_manifest(folder / "m.jsonl", files)
    return folder / "u.jsonl", folder / "m.jsonl"


def there_and_back(
    folder: Path, table: dict[str, list], format: str, header: UnitsHeader = HEADER
) -> tuple[Path, Path]:
    units, manifest = write(folder, table, header)
    out, back = folder / f"out.{SUFFIX.get(format, format)}", folder / "back.jsonl"
    assert export_units(units, out, format=format, manifest=manifest) == len(table)
    count = import_units(out, back, format=format, header=header, manifest=manifest, frame_level=True)
    assert count == len(table) and back.read_bytes() == units.read_bytes()
    return out, back


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("format", list(FORMATS))
@slow_disk
@given(table=st.dictionaries(PLAIN_NAMES, IDS, max_size=6))
def test_there_and_back_is_byte_equal(
    tmp_path_factory: pytest.TempPathFactory, format: str, table: dict[str, list[int]]
) -> None:
    assume(len({name.strip() for name in table}) == len(table))
    assume(format != "npz" or "unitkit" not in table)  # the header's name
    if format == "kaldi":
        table = {re.sub(r"\s", "_", name): ids for name, ids in table.items()}
    if format in STEREO:
        table = {f"{name}-channel{n}": ids[::step] for name, ids in table.items() for n, step in ((1, 1), (2, -1))}
    if format in ("npy", "dusted"):
        assume(table and all(len(name.encode()) < 200 for name in table))
    folder = tmp_path_factory.mktemp("f")
    out, _ = there_and_back(folder, table, format)
    expected = {"u.jsonl", "m.jsonl", out.name, "back.jsonl"} | BESIDE.get(format, set())
    assert {path.name for path in folder.iterdir()} == expected


@pytest.mark.parametrize("format", ["npz", "parquet"])
@slow_disk
@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), IDS, max_size=5))
def test_any_id_goes_through_npz_and_parquet(
    tmp_path_factory: pytest.TempPathFactory, format: str, table: dict
) -> None:
    assume("unitkit" not in table)
    units = tmp_path_factory.mktemp("f") / "u.jsonl"
    rows = [HEADER.units(ids, name) for name, ids in table.items()]
    write_units(units, HEADER, rows)
    export_units(units, units.with_suffix(".x"), format=format)
    import_units(units.with_suffix(".x"), units.with_name("back.jsonl"), format=format)  # brings its own header
    assert list(read_units(units.with_name("back.jsonl"))) == rows


def test_npz_keeps_its_headers_name_to_itself(tmp_path: Path) -> None:
    units, _ = write(tmp_path, {"a": [1], "unitkit": [2]})
    with pytest.raises(UnitsError, match="'unitkit' cannot be the name of an array"):
        export_units(units, tmp_path / "out.npz", format="npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_codebooks_and_header_go_through(tmp_path: Path, format: str) -> None:
    header = UnitsHeader("abc", 12.5, 70000, 3)
    table = {"a/b": [[1, 2, 69999], [4, 5, 6]], "empty": [], "one": [[7, 8, 9]]}
    out, back = there_and_back(tmp_path, table, format, header)
    assert read_header(back) == header
    with pytest.raises(FingerprintError, match="abc"):
        import_units(out, back, format=format, header=replace(header, tokenizer="other"))
    with pytest.raises(FingerprintError, match="n_units"):
        import_units(out, back, format=format, header=replace(header, n_units=5))


def test_parquet_is_written_in_batches_and_in_order(tmp_path: Path) -> None:
    there_and_back(tmp_path, {f"{(i * 7919) % 3000:04d}": [i % 500] * 3 for i in range(3000)}, "parquet")
    assert pyarrow.parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups > 1


@pytest.mark.parametrize("format", REDUCED)
@slow_disk
@given(table=st.dictionaries(PLAIN_NAMES, IDS, max_size=5))
def test_reduced_comes_back_with_its_durations(
    tmp_path_factory: pytest.TempPathFactory, format: str, table: dict[str, list[int]]
) -> None:
    if format == "dusted":
        assume(table and all(len(name.encode()) < 200 for name in table))
    folder = tmp_path_factory.mktemp("f")
    units, manifest = write(folder, table)
    out, back = folder / f"out.{SUFFIX.get(format, format)}", folder / "back.jsonl"
    export_units(units, out, format=format, manifest=manifest, reduced=True)
    beside = out.with_name(out.name + ".durations")
    assert beside.exists() is (format not in ("slamkit", "textless", "dusted"))  # these have them inside
    spans = beside if beside.exists() else None
    import_units(out, back, format=format, header=HEADER, durations=spans, manifest=manifest)
    assert back.read_bytes() == units.read_bytes()


# ----------------------------------------------------------------------------------------- what the files look like


def test_gslm_and_km_and_s2ut_are_what_their_readers_expect(tmp_path: Path) -> None:
    units, manifest = write(tmp_path, {"b": [3, 3, 17], "a": [], "c": [5]})
    export_units(units, tmp_path / "o.txt", format="gslm")
    assert (tmp_path / "o.txt").read_text() == "b|3 3 17\na|\nc|5\n"
    export_units(units, tmp_path / "o.txt", format="gslm", reduced=True)
    assert (tmp_path / "o.txt").read_text() == "b|3 17\na|\nc|5\n"
    assert (tmp_path / "o.txt.durations").read_text() == "b|2 1\na|\nc|1\n"
    export_units(units, tmp_path / "train.km", format="km", manifest=manifest)
    assert (tmp_path / "train.km").read_text() == "3 3 17\n\n5\n"
    wavs = (tmp_path / "wavs").resolve()
    assert (tmp_path / "train.tsv").read_text() == f"{wavs}\nb.wav\t960\na.wav\t0\nc.wav\t320\n"
    export_units(units, tmp_path / "train_s2ut.tsv", format="s2ut", manifest=manifest)
    rows = [line.split("\t") for line in (tmp_path / "train_s2ut.tsv").read_text().splitlines()]
    assert rows[0] == ["id", "src_audio", "src_n_frames", "tgt_audio", "tgt_n_frames"]
    assert rows[1] == ["b", str(wavs / "b.wav"), "6", "3 3 17", "3"] and len(rows) == 4


def test_npz_opens_with_numpy_and_no_pickle(tmp_path: Path) -> None:
    units, _ = write(tmp_path, {"x/1": [3, 3, 17]})
    export_units(units, tmp_path / "o.npz", format="npz")
    with np.load(tmp_path / "o.npz", allow_pickle=False) as arrays:
        assert arrays["x/1"].tolist() == [3, 3, 17] and json.loads(str(arrays["unitkit"])) == HEADER.__dict__


def test_parquet_opens_with_pyarrow(tmp_path: Path) -> None:
    units, _ = write(tmp_path, {"x": [3, 3, 17]})
    export_units(units, tmp_path / "o.parquet", format="parquet")
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert table.to_pylist() == [{"id": "x", "units": [3, 3, 17]}]
    assert json.loads(table.schema.metadata[b"unitkit"]) == HEADER.__dict__


def test_km_takes_the_tsv_beside_it_or_a_manifest(tmp_path: Path) -> None:
    units, manifest = write(tmp_path, {"b": RUNS, "a": RUNS[::-1]})
    export_units(units, tmp_path / "o.km", format="km", manifest=manifest)
    for names in (None, tmp_path / "o.tsv", manifest):
        import_units(tmp_path / "o.km", tmp_path / "back.jsonl", format="km", header=HEADER, manifest=names)
        assert (tmp_path / "back.jsonl").read_bytes() == units.read_bytes()
    (tmp_path / "o.tsv").unlink()
    with pytest.raises(UnitsError, match="no ids"):
        import_units(tmp_path / "o.km", tmp_path / "back.jsonl", format="km", header=HEADER)


def test_gslm_splits_on_the_first_bar_and_takes_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_bytes(b"a|1 1 2\r\nb|\r\nc|3")
    import_units(tmp_path / "o.txt", tmp_path / "u.jsonl", format="gslm", header=HEADER)
    assert [(u.id, u.ids.tolist()) for u in read_units(tmp_path / "u.jsonl")] == [
        ("a", [1, 1, 2]),
        ("b", []),
        ("c", [3]),
    ]
    (tmp_path / "o.txt").write_text("a|1|2\n")
    with pytest.raises(UnitsError, match=r"o\.txt:1: '1\|2' is not a unit"):
        import_units(tmp_path / "o.txt", tmp_path / "u.jsonl", format="gslm", header=HEADER)


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["a|b", "a\tb", "a\nb", "a\rb", "a\u2028b", "a\x85b", "\ud800"])
def test_ids_that_would_break_lines_are_refused(tmp_path: Path, name: str) -> None:
    write_units(tmp_path / "u.jsonl", HEADER, [HEADER.units([1], name)])
    with pytest.raises(UnitsError, match="cannot be written as gslm"):
        export_units(tmp_path / "u.jsonl", tmp_path / "o.txt", format="gslm")
    assert [path.name for path in tmp_path.iterdir()] == ["u.jsonl"]


@pytest.mark.parametrize(
    ("name", "format"), [("unitkit", "npz"), ("a\0b", "npz"), ("\ud800", "npz"), ("\ud800", "parquet")]
)
def test_ids_that_would_break_archives_are_refused(tmp_path: Path, name: str, format: str) -> None:
    write_units(tmp_path / "u.jsonl", HEADER, [HEADER.units([1], name)])
    with pytest.raises(UnitsError, match="rename it"):
        export_units(tmp_path / "u.jsonl", tmp_path / "o.x", format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["u.jsonl"]


def test_a_file_name_that_is_not_utf8_survives_gslm(tmp_path: Path) -> None:
    rows = [HEADER.units([1, 1], "caf\udce9")]
    write_units(tmp_path / "u.jsonl", HEADER, rows)
    export_units(tmp_path / "u.jsonl", tmp_path / "o.txt", format="gslm")
    assert (tmp_path / "o.txt").read_bytes() == b"caf\xe9|1 1\n"
    import_units(tmp_path / "o.txt", tmp_path / "back.jsonl", format="gslm", header=HEADER)
    assert list(read_units(tmp_path / "back.jsonl")) == rows


DAMAGE = [
    ("gslm", "a|1 1\nb 2 2\n", r"f\.gslm:2: expected 'id\|1 2 3'"),
    ("gslm", "a|1 1\nb|2 x\n", r"f\.gslm:2: 'x' is not a unit"),
    ("gslm", "a|1 1\nb|2 -1\n", r"f\.gslm:2: '-1' is not a unit"),
    ("gslm", "a|1 1\nb|2.0\n", r"f\.gslm:2: '2\.0' is not a unit"),
    ("gslm", "a|1 1\nb|500\n", r"f\.gslm:2: unit 500 is outside 0\.\.499"),
    ("gslm", "a|1 1\nb|99999999999999999999\n", r"f\.gslm:2: "),
    ("gslm", "a|1 1\na|2\n", r"f\.gslm:2: a second row with id 'a'"),
    ("gslm", "a|1 1\n|2\n", r"f\.gslm:2: an empty id"),
    ("gslm", "a|1 1\n\n", r"f\.gslm:2: expected"),
    ("gslm", "a|1 1\nz|2\n", r"f\.gslm:2: 'z' is not in the manifest"),
    ("km", "1 1\n", r"f\.km:1: ends here, but .* has 2 utterances"),
    ("km", "1 1\n2\n3\n", r"f\.km:3: .* has only 2 utterances"),
    ("km", "1 1\n2;3\n", r"f\.km:2: '2;3' is not a unit"),
    ("s2ut", "a\tx.wav\t3\t1 1\t2\n", r"f\.s2ut:1: the first line must name the columns"),
    ("s2ut", "id\ttgt_audio\na\t1 1\nb\n", r"f\.s2ut:3: 1 columns, the first line names 2"),
    ("s2ut", "id\ttgt_audio\ttgt_n_frames\na\t1 1\t3\n", r"f\.s2ut:2: 2 units, but tgt_n_frames says 3"),
    ("s2ut", "id\ttgt_audio\na\t1 1\nb\t/x/b.wav\n", r"f\.s2ut:3: '/x/b\.wav' is not a unit"),
    ("s2ut", "", r"f\.s2ut:1: "),
]


@pytest.mark.parametrize(("format", "text", "message"), DAMAGE)
def test_damage_is_named_by_line_and_nothing_is_written(tmp_path: Path, format: str, text: str, message: str) -> None:
    _, manifest = write(tmp_path / "in", {"a": [1], "b": [2]})
    (tmp_path / f"f.{format}").write_text(text)
    with pytest.raises(UnitsError, match=message):
        import_units(tmp_path / f"f.{format}", tmp_path / "out.jsonl", format=format, header=HEADER, manifest=manifest)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_damaged_archives_are_named(tmp_path: Path, format: str) -> None:
    units, _ = write(tmp_path, {str(i): RUNS for i in range(50)})
    out = tmp_path / "o.x"
    export_units(units, out, format=format)
    whole = out.read_bytes()
    for damaged in (b"", b"rubbish", whole[: len(whole) // 2], whole[:-30]):
        out.write_bytes(damaged)
        with pytest.raises(UnitsError, match=r"o\.x"):
            import_units(out, tmp_path / "back.jsonl", format=format, header=HEADER)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    out.write_bytes(flipped)
    if format == "npz":  # every member has a checksum
        with pytest.raises(UnitsError, match=r"o\.x"):
            import_units(out, tmp_path / "back.jsonl", format=format)
    assert not (tmp_path / "back.jsonl").exists()


def test_pickles_inside_an_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", a=np.array([1, None], dtype=object))
    with pytest.raises(UnitsError, match=r"o\.npz: cannot read 'a'"):
        import_units(tmp_path / "o.npz", tmp_path / "u.jsonl", format="npz", header=HEADER)


def test_foreign_npz_and_parquet_need_a_header(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", a=np.array([1, 1, 2]), b=np.array([3], np.uint16))
    pyarrow.parquet.write_table(pa.table({"id": ["a", "b"], "units": [[1, 1, 2], [3]]}), tmp_path / "o.parquet")
    for format in ("npz", "parquet"):
        with pytest.raises(UnitsError, match="give the header"):
            import_units(tmp_path / f"o.{format}", tmp_path / "u.jsonl", format=format)
        assert import_units(tmp_path / f"o.{format}", tmp_path / "u.jsonl", format=format, header=HEADER) == 2
        assert [u.ids.tolist() for u in read_units(tmp_path / "u.jsonl")] == [[1, 1, 2], [3]]
    pyarrow.parquet.write_table(pa.table({"name": ["a"], "units": [[1]]}), tmp_path / "o.parquet")
    with pytest.raises(UnitsError, match="no column id"):
        import_units(tmp_path / "o.parquet", tmp_path / "u.jsonl", format="parquet", header=HEADER)


def test_formats_with_one_codebook_refuse_several(tmp_path: Path) -> None:
    header = replace(HEADER, codebooks=2)
    units, manifest = write(tmp_path, {"a": [[1, 2]]}, header)
    (tmp_path / "o.txt").write_text("a|1 2\n")
    for format in ONE_CODEBOOK:
        with pytest.raises(UnitsError, match="2 codebooks"):
            export_units(units, tmp_path / "o.x", format=format, manifest=manifest)
        with pytest.raises(UnitsError, match="one codebook"):
            import_units(tmp_path / "o.txt", tmp_path / "u2.jsonl", format=format, header=header)


def test_reduced_units_do_not_come_in_as_frames(tmp_path: Path) -> None:
    units, _ = write(tmp_path, {"a": RUNS, "b": RUNS})
    out, back = tmp_path / "o.txt", tmp_path / "back.jsonl"
    export_units(units, out, format="gslm", reduced=True)
    with pytest.raises(UnitsError, match="look deduplicated"):
        import_units(out, back, format="gslm", header=HEADER)
    few, listed = write(tmp_path / "few", {"a": RUNS[:40], "b": RUNS})
    export_units(few, out, format="gslm", reduced=True)
    with pytest.raises(UnitsError, match=r"last 2\.0 s, but their audio 4\.0 s"):  # as many repeats as chance allows
        text = out.read_text().replace("|3 17", "|3 3 17")
        out.write_text(text)
        import_units(out, back, format="gslm", header=HEADER, manifest=listed)
    assert not back.exists()
    with pytest.raises(UnitsError, match=r"durations|as many"):
        import_units(out, back, format="gslm", header=HEADER, durations=tmp_path / "o.txt.durations")


def test_a_wrong_rate_shows_against_the_manifest(tmp_path: Path) -> None:
    units, manifest = write(tmp_path, {"a": RUNS})
    export_units(units, tmp_path / "o.txt", format="gslm")
    with pytest.raises(UnitsError, match="rate_hz"):
        import_units(
            tmp_path / "o.txt",
            tmp_path / "b.jsonl",
            format="gslm",
            header=replace(HEADER, rate_hz=100.0),
            manifest=manifest,
        )


@pytest.mark.parametrize("format", sorted(set(FORMATS) - set(REDUCED)))
def test_only_formats_used_so_go_out_reduced(tmp_path: Path, format: str) -> None:
    units, manifest = write(tmp_path, {"a": [1]})
    with pytest.raises(UnitsError, match="reduced units go to gslm, unit, textless, s2ut"):
        export_units(units, tmp_path / "o", format=format, manifest=manifest, reduced=True)


def test_exports_that_name_audio_need_the_manifest_of_all_rows(tmp_path: Path) -> None:
    units, _ = write(tmp_path, {"a": [1], "b": [2]})
    _, other = write(tmp_path / "other", {"a": [1]})
    for format in ("bare", "km", "unit", "s2ut", "resynthesis", "unit-hifigan"):
        with pytest.raises(UnitsError, match="give the manifest"):
            export_units(units, tmp_path / "o.x", format=format)
        with pytest.raises(UnitsError, match="'b' is not in the manifest"):
            export_units(units, tmp_path / "o.x", format=format, manifest=other)
    assert not list(tmp_path.glob("*.x")) and not list(tmp_path.glob("o.tsv"))
    with pytest.raises(UnitsError, match=r"name the units \.km"):
        export_units(units, tmp_path / "o.tsv", format="km", manifest=tmp_path / "m.jsonl")


def test_unknown_formats_name_the_known(tmp_path: Path) -> None:
    units, _ = write(tmp_path, {"a": [1]})
    with pytest.raises(
        UnitsError, match="unknown unit format 'csv'; known: gslm, bare, km, unit, textless, kaldi, s2ut,"
    ):
        export_units(units, tmp_path / "o", format="csv")


def test_a_failed_export_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("old")
    write_units(tmp_path / "u.jsonl", HEADER, [HEADER.units([1], "a"), Units([2], 50.0, 500, HEADER.tokenizer, "b|c")])
    with pytest.raises(UnitsError):
        export_units(tmp_path / "u.jsonl", tmp_path / "o.txt", format="gslm")
    assert (tmp_path / "o.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 2

"""Each peer's files, written here by hand as its code writes them: read, written back, and damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from unitkit.cli import app
from unitkit.cli.formats import FORMATS as SHOWN
from unitkit.formats import FORMATS, detect, export_units, import_units
from unitkit.manifest import Utterance, write_manifest
from unitkit.units import Units, UnitsError, UnitsHeader, read_units, write_units

HEADER = UnitsHeader("3f9c2a1b77d0", 50.0, 500)
WAVS = [Utterance(id, f"/data/wavs/{id}.wav", duration=0.06, speaker="jo") for id in ("a", "b")]

# format: (file name, its text, texts of files beside it, what it holds)
FRAMES = {"a": [17, 17, 296], "b": [20, 461, 461]}
TSV = {"train.tsv": "/data/wavs\na.wav\t960\nb.wav\t960\n"}
FIXTURES: dict[str, tuple[str, str, dict[str, str], dict[str, list[int]]]] = {
    "gslm": ("out.txt", "a|17 17 296\nb|20 461 461\n", {}, FRAMES),
    "bare": ("train.txt", "17 17 296\n20 461 461\n", TSV, FRAMES),
    "km": ("train.km", "17 17 296\n20 461 461\n", TSV, FRAMES),
    "unit": ("train.unit", "17 17 296\n20 461 461\n", TSV, FRAMES),
    "kaldi": ("text", "a 17 17 296\nb 20 461 461\n", {}, FRAMES),
    "s2ut": (
        "train.tsv",
        "id\tsrc_audio\tsrc_n_frames\ttgt_audio\ttgt_n_frames\n"
        "a\t/data/wavs/a.wav\t6\t17 17 296\t3\nb\t/data/wavs/b.wav\t6\t20 461 461\t3\n",
        {},
        FRAMES,
    ),
    "textless": ("out.units", "a\t17 17 296\nb\t20 461 461\n", {}, FRAMES),
    "resynthesis": (
        "train.txt",
        "{'audio': '/data/wavs/a.wav', 'hubert': '17 17 296', 'duration': 0.06}\n"
        "{'audio': '/data/wavs/b.wav', 'hubert': '20 461 461', 'duration': 0.06}\n",
        {},
        FRAMES,
    ),
    "dgslm": (
        "dialogue.txt",
        "{'audio': 'a', 'unitA': '17 17 296', 'unitB': '3 3 3'}\n{'audio': 'b', 'unitA': '20', 'unitB': '461'}\n",
        {},
        {"a-channel1": [17, 17, 296], "a-channel2": [3, 3, 3], "b-channel1": [20], "b-channel2": [461]},
    ),
    "dgslm-lines": (
        "train.unitA",
        "17 17 296\n20\n",
        {"train.unitB": "3 3 3\n461\n", "train.tsv": "/data/wavs\na.wav\t960\nb.wav\t960\n"},
        {"a-channel1": [17, 17, 296], "a-channel2": [3, 3, 3], "b-channel1": [20], "b-channel2": [461]},
    ),
    "slamkit": (
        "feats.jsonl",
        '{"units": [17, 296], "duration": [2, 1], "file_name": "/data/wavs/a.wav"}\n'
        '{"units": [20, 461], "duration": [1, 2], "file_name": "/data/wavs/b.wav"}\n',
        {},
        FRAMES,
    ),
    "slamkit-tokens": (
        "tokens.jsonl",
        '{"file_name": "/data/wavs/a.wav", "audio_repr": "<Un17><Un17><Un296>"}\n'
        '{"file_name": "/data/wavs/b.wav", "audio_repr": "<Un20><Un461><Un461>"}\n',
        {},
        FRAMES,
    ),
    "discophon": (
        "units.jsonl",
        '{"file": "a", "units": [17, 17, 296]}\n{"file": "b", "units": [20, 461, 461]}\n',
        {},
        FRAMES,
    ),
    "minimal-hubert": (
        "units.jsonl",
        '{"fileid": "a", "path": "/data/wavs/a.wav", "num_samples": 960, "units": [17, 17, 296]}\n'
        '{"fileid": "b", "path": "/data/wavs/b.wav", "num_samples": 960, "units": [20, 461, 461]}\n',
        {},
        FRAMES,
    ),
    "unit-hifigan": (
        "train.jsonl",
        '{"audio": "/data/wavs/a.wav", "units": [17, 17, 296], "speaker": "jo"}\n'
        '{"audio": "/data/wavs/b.wav", "units": [20, 461, 461], "speaker": "jo"}\n',
        {},
        FRAMES,
    ),
}


def planted(folder: Path, format: str) -> Path:
    folder.mkdir(exist_ok=True)
    name, text, beside, _ = FIXTURES[format]
    for one, content in {name: text, **beside}.items():
        (folder / one).write_text(content)
    return folder / name


def units_in(path: Path) -> dict[str, list[int]]:
    return {one.id: one.ids.tolist() for one in read_units(path)}


def taken(path: Path, format: str, **more: str | Path) -> dict[str, list[int]]:
    """What `import_units` makes of a file."""
    back = path.parent / "taken.jsonl"
    import_units(path, back, format=format, header=HEADER, **more)
    return units_in(back)


def kept(folder: Path, table: dict[str, list[int]]) -> Path:
    write_units(folder / "units.unitkit", HEADER, [HEADER.units(ids, id) for id, ids in table.items()])
    return folder / "units.unitkit"


def manifest(folder: Path) -> Path:
    write_manifest(folder / "m.jsonl", WAVS)
    return folder / "m.jsonl"


def test_every_format_has_a_fixture() -> None:
    assert set(FIXTURES) == set(FORMATS) - {"npz", "npy", "dusted", "parquet"}  # binary: below and in test_formats.py


@pytest.mark.parametrize("format", FIXTURES)
def test_a_peers_file_is_read_and_written_back_as_it_was(tmp_path: Path, format: str) -> None:
    path = planted(tmp_path / "in", format)
    name, text, beside, expected = FIXTURES[format]
    listed = manifest(tmp_path)
    assert taken(path, format, manifest=listed) == expected
    units = kept(tmp_path, expected)
    export_units(units, tmp_path / name, format=format, manifest=listed)
    for one, content in {name: text, **beside}.items():
        assert (tmp_path / one).read_text() == content


@pytest.mark.parametrize("format", FIXTURES)
def test_without_a_manifest_names_are_the_files_own(tmp_path: Path, format: str) -> None:
    expected = FIXTURES[format][3]
    found = taken(planted(tmp_path, format), format)
    if format in ("resynthesis", "slamkit", "slamkit-tokens", "unit-hifigan"):  # these know paths, not ids
        expected = {f"/data/wavs/{id}": ids for id, ids in expected.items()}
    assert found == expected


@pytest.mark.parametrize(
    "format", sorted(set(FIXTURES) - {"bare"})
)  # numbers alone could be Kaldi's with ids 17 and 20
def test_the_format_is_found_by_itself(tmp_path: Path, format: str) -> None:
    path = planted(tmp_path, format)
    assert detect(path) == format
    assert taken(path, "auto") == taken(path, format)


# ------------------------------------------------------------------------------------------------- GSLM and fairseq


def test_gslm_channels_are_rows_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("a-channel1|1 1\na-channel2|2 2\n")
    assert taken(tmp_path / "o.txt", "gslm", manifest=manifest(tmp_path)) == {
        "a-channel1": [1, 1],
        "a-channel2": [2, 2],
    }
    export_units(tmp_path / "taken.jsonl", tmp_path / "d.txt", format="dgslm")
    assert (tmp_path / "d.txt").read_text() == "{'audio': 'a', 'unitA': '1 1', 'unitB': '2 2'}\n"


def test_the_placeholders_of_the_normaliser_are_no_units(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("/data\na.wav\t80000\nb.wav\t80000\n")
    (tmp_path / "dev.unit").write_text("0\n0\n")  # prep_sn_data.py --for-inference
    with pytest.raises(UnitsError, match=r"units last 0\.0 s, but their audio 10\.0 s"):
        taken(tmp_path / "dev.unit", "unit")


def test_the_normalisers_output_is_put_in_order(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("/data\nx/a.wav\t960\nb.wav\t960\n")
    (tmp_path / "dev.unit").write_text("20 461 461 (None-1)\n17 17 296 (None-0)\n")
    assert taken(tmp_path / "dev.unit", "unit") == {"b": FRAMES["b"], "x/a": FRAMES["a"]}
    for text, message in (
        ("1 (None-0)\n2\n", r"dev\.unit:2: expected '1 2 3 \(None-12\)'"),
        ("1 (None-7)\n", r"dev\.unit:1: row 7 of a listing of 2"),
        ("1 (None-0)\n2 (None-0)\n", r"dev\.unit:2: a second row with id 'x/a'"),
        ("1 x (None-0)\n", r"dev\.unit:1: 'x' is not a unit"),
    ):
        (tmp_path / "dev.unit").write_text(text)
        with pytest.raises(UnitsError, match=message):
            taken(tmp_path / "dev.unit", "unit")


def test_only_an_audio_suffix_is_cut_off(tmp_path: Path) -> None:
    names = ("alpha.flac", "java.wav", "naw.wav", "v1.2", "clip_a.FLAC")  # GSLM makes alph, j, n, ... of them
    rows = [json.dumps({"units": [1], "duration": [3], "file_name": name}) for name in names]
    (tmp_path / "f.jsonl").write_text("\n".join(rows) + "\n")
    assert list(taken(tmp_path / "f.jsonl", "slamkit")) == ["alpha", "java", "naw", "v1.2", "clip_a"]
    with pytest.raises(UnitsError, match=r"'x\.wav' ends like an audio file"):
        export_units(kept(tmp_path, {"x.wav": [1]}), tmp_path / "o.jsonl", format="slamkit")


def test_appended_runs_show_as_second_rows(tmp_path: Path) -> None:
    """slamkit and minimal_hubert append to what is there: a run started again gives every file twice."""
    for format in ("slamkit", "minimal-hubert"):
        path = planted(tmp_path, format)
        path.write_text(path.read_text() * 2)
        with pytest.raises(UnitsError, match=r"jsonl:3: a second row with id"):
            taken(path, format)


# ------------------------------------------------------------------------------------------------------- textlesslib


def test_textless_streams_come_in_together(tmp_path: Path) -> None:
    (tmp_path / "out.units").write_text("17 296\n20 461\n")
    (tmp_path / "out.durations").write_text("2 1\n1 2\n")
    (tmp_path / "out.f0s").write_text("120 0\n98 97\n")
    with pytest.raises(UnitsError, match="no ids"):
        taken(tmp_path / "out.units", "textless")
    assert taken(tmp_path / "out.units", "textless", manifest=manifest(tmp_path)) == FRAMES
    (tmp_path / "out.units").write_text("a\t17 296\nb\t20 461\n")
    (tmp_path / "out.durations").write_text("a\t2 1\nb\t1 2\n")
    assert taken(tmp_path / "out.units", "textless") == FRAMES


def test_textless_streams_that_do_not_pair_up_are_refused(tmp_path: Path) -> None:
    for units, durations, message in (
        ("a\t17 296\nb\t20\n", "a\t2 1\n", "has 2 lines"),
        ("a\t17 296\nb\t20\n", "b\t1\na\t2 1\n", r"units:1: this is 'a', but the same line of the durations is 'b'"),
        ("a\t17 296\n", "a\t2\n", r"units:1: 'a': 2 reduced units need as many durations"),
        ("a\t17 296\n", "a\t2 0\n", r"units:1: 'a': durations are whole frames of at least 1"),
        ("a\t17 296\nb 20\n", "a\t2 1\nb\t1\n", r"units:2: expected 'name<TAB>1 2 3'"),
    ):
        (tmp_path / "out.units").write_text(units)
        (tmp_path / "out.durations").write_text(durations)
        with pytest.raises(UnitsError, match=message):
            taken(tmp_path / "out.units", "textless")


def test_textless_is_written_reduced_and_an_older_stream_is_not_taken_for_its_own(tmp_path: Path) -> None:
    units, out = kept(tmp_path, FRAMES), tmp_path / "out.units"
    export_units(units, out, format="textless", reduced=True)
    assert out.read_text() == "a\t17 296\nb\t20 461\n"
    assert (tmp_path / "out.durations").read_text() == "a\t2 1\nb\t1 2\n"
    with pytest.raises(UnitsError, match=r"out\.durations would be read"):
        export_units(units, out, format="textless")
    assert out.read_text() == "a\t17 296\nb\t20 461\n" and taken(out, "textless") == FRAMES
    with pytest.raises(UnitsError, match=r"name it out\.units"):
        export_units(units, tmp_path / "out.txt", format="textless")


def test_durations_are_not_given_twice(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("a|2 1\nb|1 2\n")
    with pytest.raises(UnitsError, match="durations of its own"):
        taken(planted(tmp_path, "slamkit"), "slamkit", durations=tmp_path / "d.txt")


@pytest.mark.parametrize("format", ["slamkit-tokens", "textless", "kaldi", "discophon"])
def test_reduced_units_without_durations_are_refused(tmp_path: Path, format: str) -> None:
    numbers = [unit % 500 for unit in range(150)]
    text = {
        "slamkit-tokens": json.dumps({"file_name": "a", "audio_repr": "".join(f"<Un{unit}>" for unit in numbers)}),
        "textless": "a\t" + " ".join(map(str, numbers)),
        "kaldi": "a " + " ".join(map(str, numbers)),
        "discophon": json.dumps({"file": "a", "units": numbers}),
    }[format]
    (tmp_path / "f.units").write_text(text + "\n")
    with pytest.raises(UnitsError, match="look deduplicated"):
        taken(tmp_path / "f.units", format)
    (tmp_path / "d.txt").write_text("a|" + "2 " * 150 + "\n")
    assert taken(tmp_path / "f.units", format, durations=tmp_path / "d.txt") == {"a": np.repeat(numbers, 2).tolist()}


# --------------------------------------------------------------------------------------------------- dicts and JSON


@pytest.mark.parametrize("key", ["hubert", "cpc_km100", "vqvae256", "codes"])
def test_every_key_of_speech_resynthesis(tmp_path: Path, key: str) -> None:
    (tmp_path / "f.txt").write_text(f"{{'audio': 'a.wav', '{key}': '1 1 2'}}\n")
    assert taken(tmp_path / "f.txt", "resynthesis") == {"a": [1, 1, 2]}


DAMAGE = [
    ("resynthesis", "{'audio': 'a.wav'}", r"f\.x:1: units under none"),
    ("resynthesis", "{'audio': 'a.wav', 'hubert': '1', 'codes': '1'}", r"f\.x:1: units under \['hubert', 'codes'\]"),
    ("resynthesis", "{'audio': 'a.wav', 'hubert': [1]}", r"f\.x:1: 'hubert' must be a string"),
    ("resynthesis", "{'audio': 'a.wav', 'hubert': '1', 'duration': 'x'}", r"f\.x:1: 'duration' must be seconds"),
    ("resynthesis", "{'audio': 'a.wav', 'hubert': '1', 'duration': 1e400}", r"f\.x:1: 'duration' must be seconds"),
    ("resynthesis", "{'audio': 1, 'hubert': '1'}", r"f\.x:1: 'audio' must be a string"),
    ("resynthesis", "/data/wavs/a.wav", r"f\.x:1: not a dict"),
    ("resynthesis", "{'audio': __import__('os').system('touch pwned'), 'hubert': '1'}", r"f\.x:1: not a dict"),
    ("resynthesis", "[" * 5000, r"f\.x:1: not a dict"),
    ("resynthesis", "{[]: 1}", r"f\.x:1: not a dict"),
    ("resynthesis", "{'audio': 'a\0'}", r"f\.x:1: "),
    ("dgslm", "{'audio': 'a', 'unitA': '1 2', 'unitB': '1'}", r"f\.x:1: unitA has 2 units, unitB 1"),
    ("dgslm", "{'audio': 'a', 'unitA': '1 2'}", r"f\.x:1: expected a dict with 'audio', 'unitA', 'unitB'"),
    ("slamkit", '{"units": [1], "duration": [1, 2], "file_name": "a"}', r"f\.x:1: 'a': 1 reduced units need"),
    ("slamkit", '{"units": [1], "duration": [0], "file_name": "a"}', r"f\.x:1: 'a': durations are whole frames"),
    ("slamkit", '{"units": [1], "duration": [99999999999999], "file_name": "a"}', r"f\.x:1: 'a': durations of over"),
    ("slamkit", '{"units": [1], "duration": [1.5], "file_name": "a"}', r"f\.x:1: 'duration' must be a list"),
    ("slamkit", '{"units": [true], "duration": [1], "file_name": "a"}', r"f\.x:1: 'units' must be a list of whole"),
    ("slamkit", '{"units": [1], "duration": [1], "file_name": 7}', r"f\.x:1: 'file_name' must be a string"),
    ("slamkit", '{"units": [1], "dura', r"f\.x:1: not JSON"),
    ("slamkit", "[" * 100000, r"f\.x:1: not JSON"),
    ("slamkit", '{"units": [1]}', r"f\.x:1: expected a JSON object with 'units', 'file_name'"),
    ("slamkit-tokens", '{"file_name": "a", "audio_repr": "<Un1>hello"}', r"f\.x:1: 'audio_repr' must be of units"),
    ("slamkit-tokens", '{"file_name": "a", "audio_repr": "<Un500>"}', r"f\.x:1: unit 500 is outside"),
    ("discophon", '{"file": "a", "units": "1 2"}', r"f\.x:1: 'units' must be a list"),
    ("discophon", '{"file": "a", "units": [1, -1]}', r"f\.x:1: unit -1 is outside"),
    ("minimal-hubert", '{"fileid": "a", "units": [1], "num_samples": "x"}', r"f\.x:1: 'num_samples' must be"),
    ("minimal-hubert", '{"fileid": "a", "units": [1], "num_samples": 160000}', r"but their audio 10\.0 s"),
    ("kaldi", "a 1 2 x", r"f\.x:1: 'x' is not a unit"),
    ("kaldi", "", r"f\.x:1: an empty id"),
    ("gslm", "a|" + "9" * 5000, r"f\.x:1: "),
]


@pytest.mark.parametrize(("format", "text", "message"), DAMAGE)
def test_damage_is_named_and_nothing_is_written_or_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.x").write_text(text + "\n")
    with pytest.raises(UnitsError, match=message):
        taken(tmp_path / "f.x", format)
    assert [path.name for path in tmp_path.iterdir()] == ["f.x"]


ODD = [
    "it's",
    'say "hi"',
    "back\\slash",
    "{a: 1}",
    "<Un3>",
    "bar|bar",
    "tab\tbed",
    "line\nbreak",
    "日本語",
    "caf\udce9",
    " ",
]


@pytest.mark.parametrize("format", ["dgslm", "slamkit", "slamkit-tokens", "discophon", "minimal-hubert"])
def test_odd_names_go_through_what_has_quotes(tmp_path: Path, format: str) -> None:
    table = {f"{name}-channel{n}" if format == "dgslm" else name: [1, 1, 2] for name in ODD for n in (1, 2)}
    export_units(kept(tmp_path, table), tmp_path / "o", format=format)
    assert taken(tmp_path / "o", format) == table


@pytest.mark.parametrize("format", ["npy", "dusted", "kaldi"])
def test_odd_names_elsewhere_go_through_or_are_refused(tmp_path: Path, format: str) -> None:
    refused = [".", "..", "/abs", "a//b", "a/../b", "a/", "x" * 300, "nul\0", "\ud800"]
    refused = [" ", "tab\tbed", "a b", "line\nbreak", "no\u00a0break"] if format == "kaldi" else refused
    fine = [
        name
        for name in [*ODD, "a/b", "-rf", "~", "a.b"]
        if name not in refused and not (format == "kaldi" and " " in name)
    ]
    fine.sort(key=lambda name: name)
    export_units(kept(tmp_path, {name: [1, 1, 2] for name in fine}), tmp_path / "o", format=format)
    assert taken(tmp_path / "o", format) == {name: [1, 1, 2] for name in fine}
    for number, name in enumerate(refused):
        with pytest.raises(UnitsError, match="cannot be|has a space"):
            export_units(kept(tmp_path, {"ok": [1], name: [1]}), tmp_path / f"no{number}", format=format)
        assert not list(tmp_path.glob("*no*"))


# ------------------------------------------------------------------------------------------------------------ stereo


def test_stereo_needs_both_channels_of_one_length(tmp_path: Path) -> None:
    for table, message in (
        ({"a": [1]}, "ids x-channel1 and x-channel2"),
        ({"a-channel1": [1]}, "'a-channel1': the other channel is not there"),
        ({"a-channel1": [1], "a-channel2": [1, 2]}, "'a': its channels have 1 and 2 frames"),
    ):
        with pytest.raises(UnitsError, match=message):
            export_units(kept(tmp_path, table), tmp_path / "o", format="dgslm")
    export_units(kept(tmp_path, {"b-channel2": [1], "a-channel1": [2], "b-channel1": [3], "a-channel2": [4]}),
                 tmp_path / "o", format="dgslm")  # fmt: skip
    assert taken(tmp_path / "o", "dgslm") == {
        "b-channel1": [3],
        "b-channel2": [1],
        "a-channel1": [2],
        "a-channel2": [4],
    }


def test_channel_files_must_pair_up(tmp_path: Path) -> None:
    path = planted(tmp_path, "dgslm-lines")
    (tmp_path / "train.unitB").write_text("3 3 3\n461 7\n")
    with pytest.raises(UnitsError, match=r"unitB:2: 2 units, but 1 in the same line of \.unitA"):
        taken(path, "dgslm-lines")
    (tmp_path / "train.unitB").write_text("3 3 3\n")
    with pytest.raises(UnitsError, match=r"unitB:1: ends here"):
        taken(path, "dgslm-lines")


# ------------------------------------------------------------------------------------------------------------ arrays


def test_bshall_folders(tmp_path: Path) -> None:
    (tmp_path / "units" / "spk").mkdir(parents=True)
    np.save(tmp_path / "units" / "spk" / "b.npy", np.array([20, 461, 461]))
    np.save(tmp_path / "units" / "a.npy", np.array(17))  # .squeeze() of one frame
    assert taken(tmp_path / "units", "npy") == {"a": [17], "spk/b": [20, 461, 461]}
    assert detect(tmp_path / "units") == "npy"
    export_units(tmp_path / "taken.jsonl", tmp_path / "again", format="npy")
    assert np.load(tmp_path / "again" / "spk" / "b.npy").tolist() == [20, 461, 461]
    assert np.load(tmp_path / "again" / "spk" / "b.npy").dtype == np.int64
    (tmp_path / "file").write_text("")
    with pytest.raises(UnitsError, match="is a file"):
        export_units(tmp_path / "taken.jsonl", tmp_path / "file", format="npy")
    with pytest.raises(UnitsError, match="has files in it"):
        export_units(tmp_path / "taken.jsonl", tmp_path / "again", format="npy")


def test_dusted_folders(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    np.savez(tmp_path / "s" / "a.npz", codes=np.array([17, 296], np.int32), boundaries=np.array([0, 2, 3]))
    np.savez(
        tmp_path / "s" / "none.npz", codes=np.array([]), boundaries=np.array([0])
    )  # as segment() gives for no frames
    assert taken(tmp_path / "s", "dusted") == {"a": FRAMES["a"], "none": []} and detect(tmp_path / "s") == "dusted"
    export_units(tmp_path / "taken.jsonl", tmp_path / "again", format="dusted")
    with np.load(tmp_path / "again" / "a.npz") as arrays:
        assert arrays["codes"].tolist() == [17, 296] and arrays["boundaries"].tolist() == [0, 2, 3]
    for codes, boundaries in (([1, 2], [0, 2]), ([1], [1, 2]), ([1], [0, 0]), ([1], [0.0, 2.0]), ([[1]], [0, 1, 2])):
        np.savez(tmp_path / "s" / "a.npz", codes=codes, boundaries=boundaries)
        with pytest.raises(UnitsError, match=r"a\.npz"):
            taken(tmp_path / "s", "dusted")
    np.savez(tmp_path / "s" / "a.npz", codes=[1])
    with pytest.raises(UnitsError, match="no array boundaries"):
        taken(tmp_path / "s", "dusted")


def test_folders_refuse_pickles_features_and_rubbish(tmp_path: Path) -> None:
    folder = tmp_path / "units"
    folder.mkdir()
    with pytest.raises(UnitsError, match="no .npy files"):
        taken(folder, "npy")
    np.save(folder / "a.npy", np.array([1, None], dtype=object))
    with pytest.raises(UnitsError, match=r"a\.npy: not an array: Object arrays"):
        taken(folder, "npy")
    np.save(folder / "a.npy", np.zeros((3, 256), np.float32))  # soft units
    with pytest.raises(UnitsError, match=r"a\.npy: units are integers"):
        taken(folder, "npy")
    np.save(folder / "a.npy", np.arange(9))
    whole = (folder / "a.npy").read_bytes()
    for text in (b"", b"rubbish", whole[:70], whole[:-1], whole.replace(b"(9,)", b"(999999999999999,)")):
        (folder / "a.npy").write_bytes(text)
        with pytest.raises(UnitsError, match=r"a\.npy"):
            taken(folder, "npy")
    with pytest.raises(UnitsError, match="is not a folder"):
        taken(folder / "a.npy", "npy")
    assert not (tmp_path / "taken.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------- detection


def test_detect_names_the_candidates_or_gives_up(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("1 2 3\n")
    with pytest.raises(UnitsError, match=r"could be bare or kaldi: name its format"):
        detect(tmp_path / "f.txt")
    (tmp_path / "f.txt").write_text("hello world\n")
    with pytest.raises(UnitsError, match=r"no format known"):
        detect(tmp_path / "f.txt")
    (tmp_path / "f.txt").write_text("{broken\n")
    with pytest.raises(UnitsError, match=r"no format known"):
        detect(tmp_path / "f.txt")
    (tmp_path / "f.txt").write_bytes(b"")
    with pytest.raises(UnitsError, match=r"no format known"):
        detect(tmp_path / "f.txt")
    with pytest.raises(UnitsError, match="unit file of unitkit already"):
        detect(kept(tmp_path, {"a": [1]}))
    for format in ("npz", "parquet"):
        export_units(kept(tmp_path, {"a": [1]}), tmp_path / "o.x", format=format)
        assert detect(tmp_path / "o.x") == format


def test_two_utterances_of_one_file_are_not_told_apart_by_its_path(tmp_path: Path) -> None:
    rows = [Utterance(id, "/data/x.wav", duration=0.06) for id in ("a", "b")]
    write_manifest(tmp_path / "m.jsonl", rows)
    for format in ("resynthesis", "slamkit", "unit-hifigan"):
        with pytest.raises(UnitsError, match="cannot tell them"):
            export_units(kept(tmp_path, FRAMES), tmp_path / "o", format=format, manifest=tmp_path / "m.jsonl")
    write_manifest(tmp_path / "m.jsonl", [Utterance("a", "/data/x.wav", duration=0.06, start=1.0)])
    with pytest.raises(UnitsError, match="starts inside a file"):
        export_units(kept(tmp_path, {"a": [1]}), tmp_path / "o", format="resynthesis", manifest=tmp_path / "m.jsonl")


def test_units_of_an_exported_file_are_the_tokenizers(tmp_path: Path) -> None:
    taken(planted(tmp_path, "slamkit"), "slamkit")
    assert next(read_units(tmp_path / "taken.jsonl")) == Units([17, 17, 296], 50.0, 500, "3f9c2a1b77d0", "/data/wavs/a")


def test_the_command_names_every_format() -> None:
    assert SHOWN.replace(" or ", ", ").split(", ") == list(FORMATS)


def test_the_command_finds_the_format(tmp_path: Path) -> None:
    path = planted(tmp_path, "slamkit")
    words = ["import", str(path), "-o", str(tmp_path / "u.jsonl"), "-t", "3f9c2a1b77d0", "-k", "500"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0 and "2 utterances (slamkit), tokenizer 3f9c2a1b77d0" in run.output, run.output
    assert units_in(tmp_path / "u.jsonl") == {f"/data/wavs/{id}": ids for id, ids in FRAMES.items()}

"""Manifests: round trips through JSONL, Kaldi, fairseq and lhotse, what is refused, and finding recordings."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from unitkit import manifest
from unitkit.manifest import ManifestError, Utterance

WORD = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)
FILE = WORD.filter(lambda name: "/" not in name and name not in (".", ".."))
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
SECONDS = st.floats(0.01, 1e5)


def spans() -> st.SearchStrategy[tuple[float | None, float | None]]:
    """(start, duration); only a start after 0 makes a part of a file, so that no span has two spellings."""
    return st.tuples(st.none() | SECONDS, st.none() | SECONDS)


@st.composite
def utterance_lists(draw: st.DrawFn, *, text: st.SearchStrategy[str] = TEXT) -> list[Utterance]:
    """Utterances with distinct ids over a few files."""
    rows = []
    for id_ in draw(st.lists(WORD, unique=True, max_size=6)):
        start, duration = draw(spans())
        audio = "/".join(["", "corpus", *draw(st.lists(FILE, min_size=1, max_size=3))])
        speaker = draw(st.none() | WORD.filter(lambda name, own=id_: name != own))
        rows.append(Utterance(id_, audio, duration, start, speaker, draw(st.none() | WORD), draw(st.none() | text)))
    return rows


def write_wav(path: Path, *, seconds: float = 0.1, rate: int = 16000, channels: int = 1) -> Path:
    """A quiet file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(scale=0.01, size=(round(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path


# JSONL


@settings(max_examples=60, deadline=None)
@given(utterance_lists())
def test_jsonl_round_trip(rows: list[Utterance]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "m.jsonl"
        assert manifest.write_manifest(path, rows) == len(rows)
        assert list(manifest.read_manifest(path)) == rows


def test_paths_are_relative_and_move_with_the_folder(tmp_path: Path) -> None:
    write_wav(tmp_path / "data" / "wav" / "a.wav")
    manifest.write_manifest(tmp_path / "data" / "m.jsonl", [Utterance("a", str(tmp_path / "data/wav/a.wav"))])
    assert json.loads((tmp_path / "data" / "m.jsonl").read_text()) == {"id": "a", "audio": "wav/a.wav"}
    (tmp_path / "data").rename(tmp_path / "moved")
    [row] = manifest.read_manifest(tmp_path / "moved" / "m.jsonl")
    assert row.audio == str(tmp_path / "moved" / "wav" / "a.wav")


def test_manifest_written_through_a_link_is_found_from_the_real_folder(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "audio" / "a.wav")
    (tmp_path / "far" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "real")
    manifest.write_manifest(tmp_path / "link" / "m.jsonl", [Utterance("a", str(wav))])
    for folder in ("link", "far/real"):
        [row] = manifest.read_manifest(tmp_path / folder / "m.jsonl")
        assert Path(row.audio).samefile(wav)


def test_file_name_that_is_not_utf8_survives_in_a_utf8_manifest(tmp_path: Path) -> None:
    audio = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.wav"))
    manifest.write_manifest(tmp_path / "m.jsonl", [Utterance("a", audio)])
    (tmp_path / "m.jsonl").read_text(encoding="utf-8")
    assert next(manifest.read_manifest(tmp_path / "m.jsonl")).audio == audio


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("not json", "not a JSON object"),
        ("[1]", "one JSON object a line"),
        ('{"audio": "a.wav"}', "'id' is missing"),
        ('{"id": "a", "audio": ""}', "'audio' is missing or empty"),
        ('{"id": "a", "audio": "a.wav", "txt": "hi"}', "unknown key 'txt'; known keys: id, audio, duration"),
        ('{"id": 3, "audio": "a.wav"}', "'id' must be a string"),
        ('{"id": "a", "audio": "a.wav", "duration": "3"}', "'duration' must be seconds"),
        ('{"id": "a", "audio": "a.wav", "duration": NaN}', "'duration' must be seconds"),
        ('{"id": "a", "audio": "a.wav", "start": -1}', "'start' must be seconds"),
        ('{"id": "ok", "audio": "a.wav"}', "'ok' occurs twice"),
    ],
)
def test_bad_row_is_named_by_line(tmp_path: Path, row: str, part: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('\ufeff{"id": "ok", "audio": "a.wav"}\n\n' + row + "\n", encoding="utf-8")
    rows = manifest.read_manifest(path)
    assert next(rows).id == "ok"  # streamed: the good row comes before the fault further down
    with pytest.raises(ManifestError, match=r"m\.jsonl:3: ") as error:
        next(rows)
    assert part in str(error.value)


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.jsonl: cannot be read"):
        list(manifest.read_manifest(tmp_path / "none.jsonl"))


def test_failed_write_keeps_the_old_manifest_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    manifest.write_manifest(path, [Utterance("old", "/a.wav")])
    with pytest.raises(ManifestError, match="'x' occurs twice"):
        manifest.write_manifest(path, [Utterance("x", "/a.wav"), Utterance("x", "/b.wav")])
    assert [row.id for row in manifest.read_manifest(path)] == ["old"]
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_import_brings_no_torch() -> None:
    code = "import sys, unitkit.manifest; assert not {'torch', 'lhotse', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hash_split_is_fixed_balanced_and_blind_to_case() -> None:
    names = [f"prompt-{number}" for number in range(5000)]
    splits = [manifest.hash_split(name) for name in names]
    assert splits[:6] == [manifest.hash_split(name.upper()) for name in names[:6]]
    shares = {split: splits.count(split) / 50 for split in ("train", "dev", "test")}
    assert abs(shares["train"] - 80) < 2 and abs(shares["dev"] - 8) < 2 and abs(shares["test"] - 12) < 2
    # The split is part of every published number: these may never change.
    assert [manifest.hash_split(name) for name in ("activated", "vm-goodbye", "hello-world")] == PINNED
    with pytest.raises(ManifestError, match="percentages"):
        manifest.hash_split("a", dev=60, test=60)


PINNED = ["test", "train", "train"]


# Finding recordings


def names(inputs: list[str]) -> list[str]:
    """Ids found."""
    return [utterance.id for utterance in manifest.discover(inputs)]


def touch(folder: Path, paths: Iterable[str]) -> None:
    """Empty files: discover opens no audio."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def test_directory_is_walked_sorted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, ["b/z.WAV", "b/a.flac", "a.b.mp3", "c.txt", "b/.hidden.wav", "b/._z.wav", ".git/x.wav", "d.g722"])
    found = list(manifest.discover([str(tmp_path)]))
    assert [u.id for u in found] == ["a.b", "b/a", "b/z", "d"]
    assert found[1] == Utterance("b/a", str(tmp_path / "b" / "a.flac"))
    assert all(f"{suffix}" in manifest.AUDIO_SUFFIXES for suffix in (".ogg", ".opus", ".m4a", ".webm", ".aiff", ".au"))


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "root", ["a/x.wav"])
    touch(tmp_path / "elsewhere", ["y.wav"])
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    assert names([str(tmp_path / "root")]) == ["a/x", "gone", "more/y"]  # a broken link is for the reader to name


def test_file_glob_manifest_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, ["d/one.wav", "d/two.flac", "d/note.txt", "odd[1].raw", "x.raw"])
    assert names([str(tmp_path / "odd[1].raw"), str(tmp_path / "x.raw")]) == ["odd[1]", "x"]
    assert names([str(tmp_path / "*" / "*")]) == ["d/one", "d/two"]
    assert names([str(tmp_path / "d" / "*.txt")]) == ["note"]
    assert names([str(tmp_path / "**" / "*.wav")]) == ["d/one"]
    row = Utterance("mine", str(tmp_path / "d" / "one.wav"), text="hi")
    manifest.write_manifest(tmp_path / "m.jsonl", [row])
    assert list(manifest.discover([str(tmp_path / "m.jsonl")])) == [row]
    assert list(manifest.discover([str(tmp_path / "*.jsonl")])) == [row]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path}/d/two.flac\n\n{tmp_path}/missing.wav\r\n"))
    assert names(["-", str(tmp_path / "x.raw")]) == ["two", "missing", "x"]


def test_relative_directory_gives_absolute_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, ["in/a.wav"])
    monkeypatch.chdir(tmp_path)
    for given_ in ("in", "in/", "./in", "in/../in"):
        assert list(manifest.discover([given_])) == [Utterance("a", str(tmp_path / "in" / "a.wav"))]


def test_nothing_found_or_one_id_twice_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, ["a/x.wav", "b/x.flac", "c/readme.txt"])
    for item, part in (("none", "no such file or directory"), ("c", "no audio"), ("c/*", "no audio file matches")):
        with pytest.raises(ManifestError, match=part):
            names([str(tmp_path / item)])
    with pytest.raises(ManifestError, match=r"a/x\.wav would both get the id 'x'"):
        names([str(tmp_path / "a"), str(tmp_path / "b")])
    assert names([str(tmp_path)]) == ["a/x", "b/x"]


# Kaldi


def kaldi_form(row: Utterance) -> Utterance:
    """What Kaldi's text files keep of an utterance: the text without space at its ends."""
    text = None if row.text is None else row.text.strip(" \t\r\n")
    return Utterance(row.id, row.audio, row.duration, row.start, row.speaker, row.lang, text)


@settings(max_examples=60, deadline=None)
@given(utterance_lists(text=TEXT.map(str.strip)))
def test_kaldi_round_trip(rows: list[Utterance]) -> None:
    rows = [row for row in rows if not re.search(r"\|$|:\d+$", row.audio)]  # a command, an offset: refused, see below
    with tempfile.TemporaryDirectory() as folder:
        assert manifest.write_kaldi(folder, rows) == len(rows)
        assert list(manifest.read_kaldi(folder)) == sorted(map(kaldi_form, rows), key=lambda row: row.id.encode())


def test_kaldi_files_are_what_kaldi_expects(tmp_path: Path) -> None:
    rows = [
        Utterance("b-2", "/x/b two.wav", 3.0, 1.5, "b", "en", "BYE"),
        Utterance("B-1", "/x/b two.wav", 2.0, None, "B", "en", "HI  THERE"),
        Utterance("b-1", "/y/b two.wav", None, 0.25, "b", None, None),
        Utterance("é", "/z.wav", 1.0, None, None, None, ""),
    ]
    manifest.write_kaldi(tmp_path, rows)
    files = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert files["wav.scp"] == ["b_two /x/b two.wav", "b_two-2 /y/b two.wav", "z /z.wav"]
    assert files["segments"] == ["B-1 b_two 0 -1", "b-1 b_two-2 0.25 -1", "b-2 b_two 1.5 4.5", "é z 0 -1"]
    assert files["text"] == ["B-1 HI  THERE", "b-2 BYE", "é"]
    assert files["utt2spk"] == ["B-1 B", "b-1 b", "b-2 b", "é é"]
    assert files["spk2utt"] == ["B B-1", "b b-1 b-2", "é é"]
    assert files["utt2dur"] == ["B-1 2.0", "b-2 3.0", "é 1.0"]
    assert files["utt2lang"] == ["B-1 en", "b-2 en"]
    # Rewritten without parts of files: the old segments must not stay and change what wav.scp means.
    manifest.write_kaldi(tmp_path, [Utterance("a", "/a.wav")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spk2utt", "utt2spk", "wav.scp"]


def test_kaldi_directory_made_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wav.scp").write_text("rec1\taudio/one.wav \nrec2   /abs/two.flac\n")
    (tmp_path / "segments").write_text("u1 rec1 0.5 2.25\nu2 rec1 3 -1\nu3 rec2 0 -1\n")
    (tmp_path / "text").write_text("u1  HELLO WORLD\nu9 NOT HERE\n")
    (tmp_path / "utt2spk").write_text("u1 anna\nu2 u2\n")
    assert list(manifest.read_kaldi(tmp_path)) == [
        Utterance("u1", str(tmp_path / "audio/one.wav"), 1.75, 0.5, "anna", None, "HELLO WORLD"),
        Utterance("u2", str(tmp_path / "audio/one.wav"), None, 3.0),
        Utterance("u3", "/abs/two.flac"),
    ]


@pytest.mark.parametrize(
    ("name", "line", "part"),
    [
        ("wav.scp", "a touch {mark} |", "is a command; unitkit runs no commands"),
        ("wav.scp", "a data/raw.ark:17", "archive"),
        ("wav.scp", "a", "'a' has no value"),
        ("segments", "u rec 0 1", "recording 'rec' is not in wav.scp"),
        ("segments", "u ok 2 1", "not after its start"),
        ("segments", "u ok 2", "expected 'recording start end'"),
        ("segments", "u ok x 1", "expected seconds"),
        ("utt2dur", "ok soon", "expected seconds"),
        ("text", "ok one\nok two", "'ok' was used on an earlier line"),
    ],
)
def test_kaldi_refusals_name_the_line(tmp_path: Path, name: str, line: str, part: str) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "wav.scp").write_text("ok /ok.wav\n")
    (tmp_path / name).write_text(line.format(mark=mark) + "\n")
    with pytest.raises(ManifestError, match=name.replace(".", r"\.")) as error:
        list(manifest.read_kaldi(tmp_path))
    assert part in str(error.value) and not mark.exists()


@pytest.mark.parametrize(
    "row",
    [
        Utterance("a b", "/a.wav"),
        Utterance("a", "/a.wav", speaker="x y"),
        Utterance("a", "/a.wav|"),
        Utterance("a", "/a:3"),
    ],
)
def test_kaldi_refuses_what_its_files_cannot_hold(tmp_path: Path, row: Utterance) -> None:
    with pytest.raises(ManifestError, match="Kaldi cannot hold"):
        manifest.write_kaldi(tmp_path, [row])


# fairseq


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.lists(FILE.filter(lambda name: "." not in name), min_size=1, max_size=3).map("/".join),
                       st.integers(1, 10**9), max_size=5), st.sampled_from([8000, 16000, 44100]))  # fmt: skip
def test_fairseq_round_trip(samples: dict[str, int], rate: int) -> None:
    rows = [Utterance(name, f"/corpus/{name}.wav", count / rate) for name, count in samples.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.tsv"
        assert manifest.write_fairseq_tsv(path, rows, rate=rate) == len(rows)
        back = list(manifest.read_fairseq_tsv(path, rate=rate))
        assert [(u.audio, u.duration) for u in back] == [(u.audio, u.duration) for u in rows]
        root, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        assert [line.rpartition("\t")[2] for line in lines] == [str(count) for count in samples.values()]
        assert all(os.path.join(root, line.split("\t")[0]) == row.audio for line, row in zip(lines, rows, strict=True))


def test_fairseq_made_by_others_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "valid.tsv"
    path.write_text("/data/LS\n19/198/a.flac\t48000\nb.flac\t8000\n")
    assert list(manifest.read_fairseq_tsv(path)) == [
        Utterance("19/198/a", "/data/LS/19/198/a.flac", 3.0),
        Utterance("b", "/data/LS/b.flac", 0.5),
    ]
    for text, part in (
        ("", ":1: the first line"),
        ("/r\na.wav 3\n", ":2: expected"),
        ("/r\na.wav\t-3\n", ":2: expected"),
    ):
        path.write_text(text)
        with pytest.raises(ManifestError, match=part):
            list(manifest.read_fairseq_tsv(path))
    for row, part in ((Utterance("a", "/a.wav"), "no duration"), (Utterance("a", "/a.wav", 1.0, 0.5), "starts inside")):
        with pytest.raises(ManifestError, match=part):
            manifest.write_fairseq_tsv(path, [row])


# lhotse


@pytest.fixture
def recordings(tmp_path: Path) -> Iterator[list[Utterance]]:
    """Two files: one whole, one in two parts."""
    pytest.importorskip("lhotse")
    one = write_wav(tmp_path / "wav" / "one.wav", seconds=1.5)
    two = write_wav(tmp_path / "wav" / "two.flac", seconds=3.0, rate=8000)
    yield [
        Utterance("one", str(one), 1.5, None, "anna", "en", "Hello."),
        Utterance("two/a", str(two), 1.0, 0.0, None, None, None),
        Utterance("two/b", str(two), 1.25, 1.5, "bob", "es", "¿Qué?"),
    ]


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "cuts.jsonl"])
def test_lhotse_round_trip(tmp_path: Path, recordings: list[Utterance], name: str) -> None:
    assert manifest.write_lhotse(tmp_path / "out" / name, recordings) == 3
    assert list(manifest.read_lhotse(tmp_path / "out" / name)) == recordings
    assert os.listdir(tmp_path / "out") == [name]


def test_lhotse_itself_reads_the_cuts(tmp_path: Path, recordings: list[Utterance]) -> None:
    import lhotse

    manifest.write_lhotse(tmp_path / "cuts.jsonl.gz", recordings)
    cuts = lhotse.CutSet.from_file(tmp_path / "cuts.jsonl.gz")
    assert [cut.load_audio().shape for cut in cuts] == [(1, 24000), (1, 8000), (1, 10000)]
    lhotse.validate(cuts)


def test_cuts_made_by_lhotse(tmp_path: Path, recordings: list[Utterance]) -> None:
    import lhotse

    recording = lhotse.Recording.from_file(recordings[0].audio)
    said = [
        lhotse.SupervisionSegment(f"s{i}", recording.id, i * 0.5, 0.5, text=t, speaker=t) for i, t in enumerate("ab")
    ]
    cut = lhotse.MonoCut("c", 0.25, 1.0, 0, recording=recording, supervisions=said)
    lhotse.CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    assert list(manifest.read_lhotse(tmp_path / "cuts.jsonl.gz")) == [
        Utterance("c", recordings[0].audio, 1.0, 0.25, None, None, "a b")
    ]


@pytest.mark.parametrize("spoil", [lambda cut: cut.pad(duration=9.0), lambda cut: cut.perturb_speed(1.1)])
def test_cuts_that_are_not_plain_files_are_refused(
    tmp_path: Path, recordings: list[Utterance], spoil: Callable[[object], object]
) -> None:
    import lhotse

    manifest.write_lhotse(tmp_path / "a.jsonl", recordings[:1])
    cuts = [spoil(cut) for cut in lhotse.CutSet.from_file(tmp_path / "a.jsonl")]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "b.jsonl")
    with pytest.raises(ManifestError, match=r"plain one-channel|transforms"):
        list(manifest.read_lhotse(tmp_path / "b.jsonl"))


def test_lhotse_refuses_stereo_missing_audio_and_other_suffixes(tmp_path: Path, recordings: list[Utterance]) -> None:
    stereo = write_wav(tmp_path / "s.wav", channels=2)
    for row, part in (
        (Utterance("s", str(stereo)), "2 channels"),
        (Utterance("m", "/none.wav"), "cannot read the header"),
    ):
        with pytest.raises(ManifestError, match=part):
            manifest.write_lhotse(tmp_path / "cuts.jsonl.gz", [*recordings, row])
        assert not (tmp_path / "cuts.jsonl.gz").exists()
    with pytest.raises(ManifestError, match="jsonl"):
        manifest.write_lhotse(tmp_path / "cuts.json", recordings)
    with pytest.raises(ManifestError, match="no such file"):
        list(manifest.read_lhotse(tmp_path / "none.jsonl.gz"))
    manifest.write_lhotse(tmp_path / "cuts.jsonl.gz", recordings)
    with gzip.open(tmp_path / "cuts.jsonl.gz", "rt") as file:
        assert json.loads(file.readline())["id"] == "one"

"""The commands as a user types them: exit status, files, messages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unitkit.cli.show import VERBS
from unitkit.units import read_header, read_units

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples" / "en"
PLAIN = "prompts-mfcc100"  # quick to load, where the default is not the point


def unitkit(*args: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `unitkit ARGS` in a process of its own; standard error follows standard output."""
    return subprocess.run(
        [sys.executable, "-m", "unitkit.cli", *map(str, args)],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shipped recordings in a folder, one as an 8 kHz stereo mp3."""
    root = tmp_path_factory.mktemp("in")
    files = sorted(SAMPLES.rglob("*.flac"))[:3]
    for i, path in enumerate(files[:2]):
        shutil.copy(path, root / f"{i}.flac")
    wav, rate = soundfile.read(files[2])
    assert rate == 16000
    soundfile.write(root / "2.mp3", np.stack([wav[::2], 0.5 * wav[::2]], axis=1), 8000)
    return root


def test_encode_needs_no_other_argument(folder: Path, tmp_path: Path) -> None:
    done = unitkit("encode", folder, "-o", tmp_path / "units.jsonl")
    assert done.returncode == 0, done.stdout
    assert "hours per hour" in done.stdout
    assert [u.id for u in read_units(tmp_path / "units.jsonl")] == ["0", "1", "2"]


def test_encode_lists_bad_files_and_exits_1(folder: Path, tmp_path: Path) -> None:
    messy = tmp_path / "messy"
    shutil.copytree(folder, messy)
    (messy / "empty.wav").touch()
    (messy / "text.wav").write_text("hello " * 100)
    (messy / "corrupt.flac").write_bytes((messy / "0.flac").read_bytes()[:100])
    done = unitkit("encode", messy, "-o", tmp_path / "units.jsonl")
    assert done.returncode == 1, done.stdout
    assert "3 bad file(s), skipped" in done.stdout
    for name in ("empty.wav", "text.wav", "corrupt.flac"):
        assert str(messy / name) in done.stdout
    assert len(list(read_units(tmp_path / "units.jsonl"))) == 3
    strict = unitkit("encode", messy, "-o", tmp_path / "strict.jsonl", "--strict")
    assert strict.returncode == 2 and "corrupt.flac" in strict.stdout
    assert not (tmp_path / "strict.jsonl").exists()


def test_inputs_by_file_glob_manifest_and_standard_input(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"id":"0","audio":"{folder}/0.flac"}}\n')
    ways = {
        "file": ([folder / "0.flac"], None),
        "glob": ([f"{folder}/0.fl*"], None),
        "manifest": ([tmp_path / "m.jsonl"], None),
        "stdin": (["-"], f"{folder}/0.flac\n"),
    }
    units = []
    for name, (inputs, stdin) in ways.items():
        done = unitkit("encode", *inputs, "-t", PLAIN, "-o", tmp_path / f"{name}.units.jsonl", stdin=stdin)
        assert done.returncode == 0, done.stdout
        units.append(next(iter(read_units(tmp_path / f"{name}.units.jsonl"))).ids)
    assert all(np.array_equal(units[0], other) for other in units[1:])


def test_fit_info_export_import(folder: Path, tmp_path: Path) -> None:
    fitted = unitkit("fit", folder, "-o", tmp_path / "tok", "-k", 16)
    assert fitted.returncode == 0, fitted.stdout
    encoded = unitkit("encode", folder, "-t", tmp_path / "tok", "-o", tmp_path / "u.jsonl")
    assert encoded.returncode == 0, encoded.stdout
    header = read_header(tmp_path / "u.jsonl")
    assert header.n_units == 16
    for thing in ("tok", "u.jsonl"):
        shown = unitkit("info", tmp_path / thing)
        assert header.tokenizer in shown.stdout, shown.stdout
    out = unitkit("export", tmp_path / "u.jsonl", "-o", tmp_path / "u.gslm", "--format", "gslm")
    assert out.returncode == 0, out.stdout
    back = unitkit(
        "import", tmp_path / "u.gslm", "-o", tmp_path / "b.jsonl", "--format", "gslm", "-t", tmp_path / "tok"
    )
    assert back.returncode == 0, back.stdout
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "u.jsonl").read_bytes()


def test_reduced_and_self_describing_formats(folder: Path, tmp_path: Path) -> None:
    units, short = tmp_path / "u.jsonl", tmp_path / "short.gslm"
    assert unitkit("encode", folder, "-o", units).returncode == 0
    assert unitkit("export", units, "-o", short, "--format", "gslm", "--reduced").returncode == 0
    words = ("import", short, "-o", tmp_path / "b.jsonl", "--format", "gslm", "-t", "mini")
    back = unitkit(*words, "--durations", f"{short}.durations")
    assert back.returncode == 0, back.stdout
    assert (tmp_path / "b.jsonl").read_bytes() == units.read_bytes()
    assert unitkit("export", units, "-o", tmp_path / "u.npz", "--format", "npz").returncode == 0
    again = unitkit("import", tmp_path / "u.npz", "-o", tmp_path / "c.jsonl", "--format", "npz")
    assert again.returncode == 0, again.stdout
    assert (tmp_path / "c.jsonl").read_bytes() == units.read_bytes()
    foreign = unitkit("import", short, "-o", tmp_path / "d.jsonl", "--format", "gslm")
    assert foreign.returncode == 2 and "tokenizer" in foreign.stdout


def test_wrong_values_are_named_with_the_known_ones(folder: Path, tmp_path: Path) -> None:
    for args, words in [
        (("encode", folder, "-o", tmp_path / "u.jsonl", "-t", "minni"), ("minni", "prompts-mfcc100")),
        (("encode", tmp_path / "nowhere", "-o", tmp_path / "u.jsonl"), ("nowhere",)),
        (("fit", folder, "-o", tmp_path / "t", "--kind", "flat"), ("flat", "residual")),
        (("fit", folder, "-o", tmp_path / "t", "--codebooks", 2), ("residual", "product")),
        (("info", tmp_path / "nowhere"), ("nowhere",)),
    ]:
        done = unitkit(*args)
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stdout
        for word in words:
            assert word in done.stdout, done.stdout


def test_doctor_finds_nothing_broken() -> None:
    done = unitkit("doctor")
    assert done.returncode == 0, done.stdout
    for name in ("python", "torch", "transformers", "bundled tokenizer"):
        assert name in done.stdout


def test_help_begins_with_what_is_used_most() -> None:
    shown = re.findall(r"^│ ([a-z][a-z-]*)  ", unitkit("--help").stdout, flags=re.M)
    assert shown[: len(VERBS)] == list(VERBS) and shown[0] == "encode"
    assert {"import-kmeans", "export-kmeans"} <= set(shown[len(VERBS) :])


def test_every_verb_has_help_with_an_example() -> None:
    for verb in (*VERBS, "import-kmeans", "export-kmeans", "import-fairseq"):
        done = unitkit(verb, "--help")
        assert done.returncode == 0
        assert f"unitkit {verb}" in done.stdout.replace("Usage: python -m unitkit.cli", ""), verb

"""Bad input of some sixty kinds: a named error or a listed skip; never a traceback, a hang, or half an output.

Each table below is a list of kinds.  Every kind goes through the command line as a user would give it; audio also goes
through the Python API.  A hang is caught by the time limit that pytest puts on every test.
"""

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unitkit import cli
from unitkit.tokenizer import BUNDLED, Tokenizer
from unitkit.units import FingerprintError, UnitsError, read_header, read_units

RATE = 16000
GOOD = sorted((Path(__file__).resolve().parents[1] / "samples" / "en").rglob("*.flac"))[0]


class Done:
    """How a command ended: exit status and all it printed."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, " ".join(text.split())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`unitkit ARGS` in this process."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["unitkit", *map(str, args)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        printed = capsys.readouterr()
        done = Done(status, printed.out + printed.err)
        assert "Traceback" not in done.text, done.text
        assert status != 70, f"a fault of ours: {done.text}"
        return done

    return call


def wav_bytes(samples: np.ndarray, rate: int = RATE) -> bytes:
    """A 16-bit mono wav file."""
    data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    return wav_header(len(data), rate) + data


def wav_header(size: int, rate: int = RATE, *, channels: int = 1, bits: int = 16) -> bytes:
    """The 44 bytes before the samples."""
    block = channels * bits // 8
    layout = struct.pack("<HHIIHH", 1, channels, rate, rate * block % 2**32, block, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + size)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + layout
        + b"data"
        + struct.pack("<I", size)
    )


def tone(seconds: float = 1.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 200 * np.arange(int(RATE * seconds)) / RATE)


def floats(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, samples.astype(np.float32), RATE, subtype="FLOAT")


def holed(value: float) -> np.ndarray:
    samples = tone()
    samples[5000] = value
    return samples


def damaged_flac() -> bytes:
    data = bytearray(GOOD.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    return bytes(data)


AUDIO: dict[str, tuple[str, Callable[[Path], object], str]] = {  # kind -> (file name, maker, word of the reason)
    "empty file": ("a.wav", lambda p: p.touch(), "empty"),
    "text named wav": ("b.wav", lambda p: p.write_text("hello " * 200), "b.wav"),
    "text named flac": ("c.flac", lambda p: p.write_text("not audio"), "c.flac"),
    "text named mp3": ("d.mp3", lambda p: p.write_text("not audio " * 500), "d.mp3"),
    "header cut in the middle": ("e.wav", lambda p: p.write_bytes(wav_bytes(tone())[:20]), "e.wav"),
    "header without samples": ("f.wav", lambda p: p.write_bytes(wav_header(0)), "no samples"),
    "fewer samples than the header says": (
        "g.wav",
        lambda p: p.write_bytes(wav_header(9_000_000) + wav_bytes(tone())[44:]),
        "g.wav",
    ),
    "shorter than one frame": ("h.wav", lambda p: p.write_bytes(wav_bytes(tone(0.01))), "short"),
    "one sample": ("i.wav", lambda p: p.write_bytes(wav_bytes(tone()[:1])), "short"),
    "NaN": ("j.wav", lambda p: floats(p, holed(np.nan)), "NaN"),
    "infinity": ("k.wav", lambda p: floats(p, holed(np.inf)), "infini"),
    "flac cut in the middle": ("m.flac", lambda p: p.write_bytes(GOOD.read_bytes()[:4000]), "m.flac"),
    "flac with a hole of zeros": ("n.flac", lambda p: p.write_bytes(damaged_flac()), "n.flac"),
    "random bytes": ("o.wav", lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), "o.wav"),
    "rate of 0 Hz": ("p.wav", lambda p: p.write_bytes(wav_header(32000, 0) + wav_bytes(tone())[44:]), "p.wav"),
    "no channels": ("q.wav", lambda p: p.write_bytes(wav_header(32000, channels=0) + wav_bytes(tone())[44:]), "q.wav"),
    "link to nothing": ("r.wav", lambda p: p.symlink_to(p.with_name("gone.wav")), "r.wav"),
    "link to itself": ("s.wav", lambda p: p.symlink_to(p), "s.wav"),
    "pipe without a writer": ("t.wav", lambda p: os.mkfifo(p), "t.wav"),
    "device": ("u.wav", lambda p: p.symlink_to("/dev/zero"), "u.wav"),
    "an HTML error page named wav": ("v.wav", lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), "v.wav"),
}


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """One file of every kind in AUDIO, and one good recording."""
    folder = tmp_path / "messy"
    folder.mkdir()
    for name, make, _ in AUDIO.values():
        make(folder / name)
    shutil.copy(GOOD, folder / "good.flac")
    return folder


def listed(folder: Path) -> Path:
    """A manifest of every kind, as a folder's own listing might leave some out."""
    rows = [{"id": name, "audio": str(folder / name)} for name, _, _ in AUDIO.values()]
    rows += [{"id": "folder", "audio": str(folder)}, {"id": "missing", "audio": str(folder / "missing.wav")}]
    rows += [
        {"id": "past", "audio": str(folder / "good.flac"), "start": 9e5, "duration": 1.0},
        {"id": "sliver", "audio": str(folder / "good.flac"), "start": 0.0, "duration": 0.001},
        {"id": "good", "audio": str(folder / "good.flac")},
    ]
    path = folder.parent / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_bad_recording_is_listed_and_the_good_one_kept(
    messy: Path, run: Callable[..., Done], tmp_path: Path
) -> None:
    manifest, out = listed(messy), tmp_path / "units.jsonl"
    done = run("encode", manifest, "-o", out)
    assert done.status == 1
    assert f"{len(AUDIO) + 4} bad file(s), skipped" in done.text
    _, _, tail = done.text.rpartition("bad file(s), skipped")
    for kind, (name, _, word) in AUDIO.items():
        assert str(messy / name) in tail and word in tail, f"{kind}: {tail}"
    for words in ("is a directory", "no such file", "past the end"):
        assert words in tail
    assert [u.id for u in read_units(out)] == ["good"]
    first = out.read_bytes()
    again = run("encode", manifest, "-o", out)
    assert again.status == 1 and out.read_bytes() == first


def test_strict_stops_and_leaves_no_output(messy: Path, run: Callable[..., Done], tmp_path: Path) -> None:
    done = run("encode", listed(messy), "-o", tmp_path / "units.jsonl", "--strict")
    assert done.status == 2 and "a.wav" in done.text
    assert not (tmp_path / "units.jsonl").exists()


@pytest.mark.parametrize("kind", AUDIO)
def test_the_api_raises_naming_the_file(kind: str, tmp_path: Path) -> None:
    name, make, word = AUDIO[kind]
    make(tmp_path / name)
    with pytest.raises((ValueError, OSError)) as caught:
        bundled_tokenizer().encode(tmp_path / name)
    assert name in str(caught.value) and word in str(caught.value), caught.value


_TOKENIZER: list[Tokenizer] = []


def bundled_tokenizer() -> Tokenizer:
    if not _TOKENIZER:
        _TOKENIZER.append(Tokenizer.load("prompts-mfcc100", device="cpu"))
    return _TOKENIZER[0]


WAVS = {
    "two channels": (np.zeros((2, RATE), np.float32), "mono"),
    "integers": (np.zeros(RATE, np.int16), "float"),
    "NaN": (np.full(RATE, np.nan, np.float32), "NaN"),
    "nothing": (np.zeros(0, np.float32), "short"),
    "too short": (np.zeros(100, np.float32), "short"),
    "complex": (np.zeros(RATE, np.complex64), "float"),
}


@pytest.mark.parametrize("kind", WAVS)
def test_bad_arrays(kind: str) -> None:
    wav, word = WAVS[kind]
    with pytest.raises(ValueError, match=word):
        bundled_tokenizer().encode(wav, rate=RATE)


def test_an_array_without_its_rate() -> None:
    with pytest.raises(ValueError, match="rate"):
        bundled_tokenizer().encode(np.zeros(RATE, np.float32))
    with pytest.raises(ValueError, match="-5"):
        bundled_tokenizer().encode(np.zeros(RATE, np.float32), rate=-5)


def test_silence_and_a_constant_are_speech_too() -> None:
    for wav in (np.zeros(RATE, np.float32), np.full(RATE, 0.5, np.float32)):
        assert len(bundled_tokenizer().encode(wav, rate=RATE)) == 49


ROW = {"id": "x", "audio": str(GOOD)}
MANIFESTS: dict[str, tuple[bytes, str]] = {  # kind -> (content, word of the error)
    "empty": (b"", "m.jsonl"),
    "blank lines": (b"\n\n\n", "m.jsonl"),
    "not JSON": (b"hello\n", "m.jsonl:1"),
    "a list a line": (b'["x"]\n', "m.jsonl:1"),
    "last line cut": (json.dumps(ROW).encode() + b'\n{"id":"y","aud', "m.jsonl:2"),
    "no audio": (b'{"id":"x"}\n', "audio"),
    "no id": (b'{"audio":"x.wav"}\n', "id"),
    "id is a number": (b'{"id":7,"audio":"x.wav"}\n', "id"),
    "unknown key": (json.dumps({**ROW, "speeker": "a"}).encode(), "speeker"),
    "same id twice": (json.dumps(ROW).encode() + b"\n" + json.dumps(ROW).encode() + b"\n", "'x'"),
    "negative start": (json.dumps({**ROW, "start": -1, "duration": 1}).encode(), "start"),
    "NaN duration": (b'{"id":"x","audio":"x.wav","duration":NaN}\n', "duration"),
    "duration in words": (json.dumps({**ROW, "duration": "long"}).encode(), "duration"),
    "nested too deep": (b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "m.jsonl:1"),
    "UTF-16": (json.dumps(ROW).encode("utf-16"), "m.jsonl"),
    "binary": (bytes(range(256)) * 20, "m.jsonl"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_bad_manifests(kind: str, run: Callable[..., Done], tmp_path: Path) -> None:
    content, word = MANIFESTS[kind]
    (tmp_path / "m.jsonl").write_bytes(content)
    for verb in (("encode", "-o", tmp_path / "out"), ("fit", "-o", tmp_path / "out")):
        done = run(verb[0], tmp_path / "m.jsonl", *verb[1:])
        assert done.status == 2 and word in done.text, done.text
        assert not (tmp_path / "out").exists()


def unit_file(rows: list[str], **header: object) -> bytes:
    top = {"unitkit": 1, "tokenizer": "94c1dd5c20d9", "rate_hz": 50.0, "n_units": 100, "codebooks": 1, **header}
    return "\n".join([json.dumps(top), *rows]).encode() + b"\n"


UNITS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header"),
    "no header": (b'{"id":"a","units":[1]}\n', "header"),
    "other version": (unit_file([], unitkit=99), "99"),
    "no rate": (unit_file([], rate_hz=0), "rate_hz"),
    "no units": (unit_file([], n_units=0), "n_units"),
    "codebooks of -1": (unit_file([], codebooks=-1), "codebooks"),
    "unit too large": (unit_file(['{"id":"a","units":[1,100]}']), "100"),
    "negative unit": (unit_file(['{"id":"a","units":[1,-1]}']), "-1"),
    "half a unit": (unit_file(['{"id":"a","units":[1,1.5]}']), "u.jsonl:2"),
    "units in words": (unit_file(['{"id":"a","units":"1 2 3"}']), "u.jsonl:2"),
    "ragged": (unit_file(['{"id":"a","units":[[1,2],[3]]}'], codebooks=2), "u.jsonl:2"),
    "last line cut": (unit_file(['{"id":"a","units":[1]}', '{"id":"b","uni']), "u.jsonl:3"),
    "same id twice": (unit_file(['{"id":"a","units":[1]}'] * 2), "'a'"),
    "a number as large as a planet": (unit_file(['{"id":"a","units":[1' + "0" * 400 + "]}"]), "u.jsonl:2"),
    "nested too deep": (unit_file(['{"id":"a","units":' + "[" * 100_000 + "]" * 100_000 + "}"]), "u.jsonl:2"),
    "binary": (bytes(range(256)) * 20, "header"),
}


@pytest.mark.parametrize("kind", UNITS)
def test_bad_unit_files(kind: str, run: Callable[..., Done], tmp_path: Path) -> None:
    content, word = UNITS[kind]
    path = tmp_path / "u.jsonl"
    path.write_bytes(content)
    with pytest.raises((UnitsError, FingerprintError)) as caught:
        list(read_units(path))
    assert word in str(caught.value)
    done = run("export", path, "-o", tmp_path / "out.npz", "--format", "npz")
    assert done.status == 2 and word in done.text, done.text
    assert [p.name for p in tmp_path.iterdir()] == ["u.jsonl"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The bundled tokenizer, to be damaged."""
    shutil.copytree(BUNDLED / "prompts-mfcc100", tmp_path / "tok")
    return tmp_path / "tok"


def edited(directory: Path, **changes: object) -> None:
    path = directory / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such directory": (shutil.rmtree, "tok"),
    "empty directory": (lambda d: [p.unlink() for p in d.iterdir()], "tokenizer.json"),
    "facts cut in the middle": (lambda d: (d / "tokenizer.json").write_text('{"unitkit_tok'), "tokenizer.json"),
    "facts are a list": (lambda d: (d / "tokenizer.json").write_text("[]"), "tokenizer.json"),
    "facts lack a key": (lambda d: (d / "tokenizer.json").write_text('{"unitkit_tokenizer": 1}'), "lacks"),
    "format of the future": (lambda d: edited(d, unitkit_tokenizer=9), "9"),
    "fingerprint of another": (lambda d: edited(d, fingerprint="0" * 12), "fingerprint"),
    "no centroids": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
    "centroids cut in the middle": (lambda d: cut(d / "model.safetensors", 1000), "model.safetensors"),
    "centroids of zeros": (lambda d: zeroed(d / "model.safetensors"), "fingerprint"),
    "a pickle for centroids": (
        lambda d: (d / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n."),
        "safetensors",
    ),
    "another quantizer": (lambda d: edited(d, quantizer={"type": "magic"}), "magic"),
    "features unknown": (lambda d: edited(d, recipe={"features": "mffc", "layer": None, "padding": "none"}), "mffc"),
}


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def zeroed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-400:] = bytes(400)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bad_tokenizers(kind: str, copied: Path, run: Callable[..., Done], tmp_path: Path) -> None:
    damage, word = TOKENIZERS[kind]
    damage(copied)
    done = run("encode", GOOD, "-t", copied, "-o", tmp_path / "u.jsonl")
    assert done.status == 2 and word in done.text, done.text
    assert not (tmp_path / "u.jsonl").exists()


OPTIONS: dict[str, tuple[list[object], tuple[str, ...]]] = {
    "features unknown": (["fit", GOOD, "-o", "{}/t", "--features", "hubert-bas"], ("hubert-bas", "hubert-base")),
    "a layer of MFCC": (["fit", GOOD, "-o", "{}/t", "--layer", 3], ("layer",)),
    "more units than frames": (["fit", GOOD, "-o", "{}/t", "-k", 100_000], ("100000", "frames")),
    "no units": (["fit", GOOD, "-o", "{}/t", "-k", 0], ("0 units",)),
    "kind unknown": (["fit", GOOD, "-o", "{}/t", "--kind", "flat"], ("flat", "residual")),
    "device unknown": (["encode", GOOD, "-o", "{}/u", "--device", "quantum"], ("quantum",)),
    "format unknown": (["export", "{}/u", "-o", "{}/v", "--format", "docx"], ("docx", "gslm")),
    "input missing": (["encode", "{}/nothing.wav", "-o", "{}/u"], ("nothing.wav",)),
    "glob of nothing": (["encode", "{}/*.wav", "-o", "{}/u"], ("*.wav",)),
    "folder without audio": (["encode", "{}", "-o", "{}/u"], ("no audio",)),
    "output is a folder": (["encode", GOOD, "-o", "{}"], ("{}",)),
    "output below a file": (["encode", GOOD, "-o", f"{GOOD}/u.jsonl"], (str(GOOD),)),
    "output on a full disk": (["encode", GOOD, "-o", "/dev/full"], ("/dev",)),
    "number that is none": (["fit", GOOD, "-o", "{}/t", "-k", "many"], ("--units",)),
    "verb unknown": (["encod", GOOD], ("encod",)),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_bad_options(kind: str, run: Callable[..., Done], tmp_path: Path) -> None:
    args, words = OPTIONS[kind]
    done = run(*(str(arg).replace("{}", str(tmp_path)) for arg in args))
    assert done.status == 2, done.text
    for word in words:
        assert word.replace("{}", str(tmp_path)) in done.text, done.text
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_units_of_another_tokenizer_are_not_mixed_in(run: Callable[..., Done], tmp_path: Path) -> None:
    out = tmp_path / "u.jsonl"
    assert run("encode", GOOD, "-o", out).status == 0
    before = out.read_bytes()
    assert run("fit", GOOD, "-o", tmp_path / "tok", "-k", 4).status == 0
    done = run("encode", GOOD, "-t", tmp_path / "tok", "-o", out)
    assert done.status == 2 and read_header(out).tokenizer in done.text
    assert out.read_bytes() == before


def test_there_are_at_least_forty_kinds() -> None:
    assert sum(map(len, (AUDIO, WAVS, MANIFESTS, UNITS, TOKENIZERS, OPTIONS))) >= 40

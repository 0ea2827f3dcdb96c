"""Corpora: real layouts parsed from small trees of the same shape, and the program that prepares them."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from unitkit import audio
from unitkit.manifest import ManifestError, Utterance, read_manifest

ROOT = Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    """Import a recipe from its file, as recipes are not a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "recipes" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


prepare = load("prepare.py")
prompts = load("corpora/prompts.py")
vctk = load("corpora/vctk.py")
librispeech = load("corpora/librispeech.py")
cvss = load("corpora/cvss.py")
fisher = load("corpora/fisher.py")


def put(root: Path, files: dict[str, str | float]) -> Path:
    """Write files: a number is so many seconds of noise, a string is text."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            noise = np.random.default_rng(0).normal(scale=0.01, size=round(content * 16000))
            soundfile.write(path, noise, 16000)
    return root


def run(corpus: str, root: Path, out: Path, *options: str) -> tuple[int, dict[str, list[Utterance]]]:
    """Prepare in this process; returns the exit code and the manifests."""
    code = prepare.main([corpus, str(root), str(out), *options])
    return code, {path.stem: list(read_manifest(path)) for path in sorted(out.glob("*.jsonl"))}


def everything(splits: dict[str, list[Utterance]]) -> dict[str, Utterance]:
    """All utterances by id."""
    return {row.id: row for rows in splits.values() for row in rows}


# Asterisk prompts

EN = """; Core Sounds

activated: Activated.
beep: [this is a beep tone]
digits/1: one
letters/at: at [@]
silence/1: (1 second of silence)
vm-Cust1: folder  5: the fifth
vm-empty: Nothing is in this file.
vm-intro: Leave a message.  (simple tone sound plays)
confbridge-join: <beep ascending>
no-text:
text-only: There is no such file.
"""
ES = "\ufeff" + "; Core Sounds\nactivated: Activado.\ndigits/1: uno\nVM-cust1: Carpeta\nbeep: [ tono ]\n"


def tone(seconds: float) -> np.ndarray:
    """(samples,) int16 at 16 kHz."""
    return (8000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16000)) / 16000)).astype(np.int16)


def g722(seconds: float) -> bytes:
    """A tone as G.722."""
    codec = pytest.importorskip("G722")
    return bytes(codec.G722(16000, 64000).encode(tone(seconds)))


def debian_tree(root: Path, lang: str, text: str, names: list[str]) -> Path:
    """The two packages of one language, as dpkg-deb -x unpacks them."""
    sounds = root / "usr/share/asterisk/sounds" / f"{lang}_XX_f_Voice"
    for name in names:
        (sounds / name).parent.mkdir(parents=True, exist_ok=True)
        (sounds / f"{name}.g722").write_bytes(b"" if name == "vm-empty" else g722(0.5))
    document = root / f"usr/share/doc/asterisk-core-sounds-{lang}/core-sounds-{lang}.txt.gz"
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_bytes(gzip.compress(text.encode()))
    return root


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """English and Spanish prompts in one tree, like the /usr/share of a machine with all packages."""
    english = ["activated", "beep", "digits/1", "letters/at", "silence/1", "vm-Cust1", "vm-empty", "vm-intro"]
    root = debian_tree(tmp_path / "unpacked", "en", EN, [*english, "confbridge-join", "no-text", "audio-only"])
    return debian_tree(root, "es", ES, ["activated", "digits/1", "vm-Cust1", "beep"])


def test_prompts_keep_speech_and_leave_out_the_rest(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, splits = run("prompts", unpacked, tmp_path / "out", "lang=en")
    found = everything(splits)
    assert code == 0
    assert {id_: row.text for id_, row in found.items()} == {
        "en/activated": "Activated.",
        "en/digits/1": "one",
        "en/letters/at": "at",
        "en/vm-Cust1": "folder 5: the fifth",
    }
    assert {(row.speaker, row.lang) for row in found.values()} == {("allison", "en")}
    row = found["en/digits/1"]
    assert row.audio == str(tmp_path / "out/wav/en/digits/1.flac") and row.duration == pytest.approx(0.5)
    report = capsys.readouterr().err
    assert "tone, noise or silence: 3 (en/beep, en/confbridge-join, en/silence/1)" in report
    assert "empty file: 1 (en/vm-empty)" in report
    assert "editor's note: 1 (en/vm-intro)" in report
    assert "no transcript: 2 (en/audio-only, en/no-text)" in report


def test_prompts_flac_holds_the_decoded_samples(unpacked: Path, tmp_path: Path) -> None:
    _, splits = run("prompts", unpacked, tmp_path / "out", "lang=en")
    samples, rate = soundfile.read(everything(splits)["en/activated"].audio, dtype="int16")
    expected = pytest.importorskip("G722").G722(16000, 64000).decode(g722(0.5))
    assert rate == 16000 and np.array_equal(samples, expected)
    heard, spoken = samples[200:].astype(float), tone(0.5)[200:].astype(float)
    shifted = max(np.corrcoef(heard[lag:], spoken[: len(spoken) - lag])[0, 1] for lag in range(40))
    assert shifted > 0.99  # a tone of 440 Hz went in, the same tone comes out


def test_prompts_decode_the_same_without_the_g722_package(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    path = next(unpacked.rglob("activated.g722"))
    first = prompts.decode(path)
    monkeypatch.setitem(sys.modules, "G722", None)
    np.testing.assert_allclose(prompts.decode(path), first, atol=1e-4)


def test_prompts_are_in_the_same_split_in_every_language(unpacked: Path, tmp_path: Path) -> None:
    _, splits = run("prompts", unpacked, tmp_path / "out", "lang=en,es")
    of = {id_: split for split, rows in splits.items() for id_ in (row.id for row in rows)}
    assert of["es/vm-Cust1"] == of["en/vm-Cust1"] and everything(splits)["es/vm-Cust1"].text == "Carpeta"
    assert of["es/digits/1"] == of["en/digits/1"] and of["es/activated"] == of["en/activated"]
    for id_, split in of.items():  # the rule itself, written out once more
        bucket = int(hashlib.sha256(id_[3:].lower().encode()).hexdigest()[:8], 16) % 100
        assert split == ("test" if bucket < 12 else "dev" if bucket < 20 else "train")


def test_prompts_resume_and_repeat(unpacked: Path, tmp_path: Path) -> None:
    _, first = run("prompts", unpacked, tmp_path / "out")
    kept, gone = (Path(everything(first)[name].audio) for name in ("en/activated", "en/digits/1"))
    before = kept.stat().st_mtime_ns
    gone.unlink()
    _, second = run("prompts", unpacked, tmp_path / "out")
    assert second == first and gone.exists() and kept.stat().st_mtime_ns == before


def test_prompts_bad_recording_is_named_and_skipped(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, first = run("prompts", unpacked, tmp_path / "out")
    Path(everything(first)["en/digits/1"].audio).write_text("not audio")
    code, second = run("prompts", unpacked, tmp_path / "out")
    assert code == 1 and set(everything(first)) - set(everything(second)) == {"en/digits/1"}
    assert "bad file skipped: " in (report := capsys.readouterr().err) and "digits/1.flac" in report


def test_prompts_from_the_upstream_tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(archive := tmp_path / "upstream.tar.gz", "w:gz") as tar:
        files = {"activated.g722": g722(0.2), "digits/1.g722": g722(0.2), "core-sounds-en.txt": EN.encode()}
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    asked = []
    monkeypatch.setattr(prompts.shutil, "which", lambda name: None)  # a machine without apt
    monkeypatch.setattr(prompts.urllib.request, "urlopen", lambda url, timeout: asked.append(url) or archive.open("rb"))
    for _ in range(2):  # the second time it is already there
        rows = [
            row for _, row in prompts.utterances(tmp_path / "get", out=tmp_path / "o", left_out=lambda name, why: None)
        ]
        assert [row.id for row in rows] == ["en/activated", "en/digits/1"]
    assert asked == [f"{prompts.UPSTREAM}/asterisk-core-sounds-en-g722-1.6.1.tar.gz"]
    assert os.listdir(tmp_path / "get") == ["asterisk-core-sounds-en"]


def test_prompts_tarball_cannot_write_outside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../evil.g722"))
    with pytest.raises(tarfile.TarError):
        prompts.unpack(tmp_path / "evil.tar", tmp_path / "tree")
    assert not (tmp_path / "evil.g722").exists()


def test_prompts_that_cannot_be_had_say_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package")

    def offline(url: str, timeout: float) -> None:
        raise OSError("no network")

    monkeypatch.setattr(prompts.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(prompts.subprocess, "run", failed)
    monkeypatch.setattr(prompts.urllib.request, "urlopen", offline)
    with pytest.raises(prompts.PromptsError) as error:
        prompts.obtain(tmp_path / "get", "fr")
    for part in ("Unable to locate package", "run apt-get update", "no network", "sounds-fr-g722-1.6.1.tar.gz"):
        assert part in str(error.value)
    assert os.listdir(tmp_path / "get") == []
    with pytest.raises(prompts.PromptsError, match="known: en, es, fr, it, ru"):
        list(prompts.utterances(tmp_path, out=tmp_path, left_out=lambda name, why: None, lang="de"))


# A folder

FOLDER: dict[str, str | float] = {
    "anna/a.wav": 0.2,
    "anna/a.txt": "Hello\nthere.\n",
    "anna/b.flac": 0.2,
    "bob/c.wav": 0.2,
    "bob/d.wav": 0.2,
    "transcripts.tsv": "b\tBy its name.\nbob/c.wav\tBy its path.\n",
}


def test_two_recipes_may_fetch_the_same_prompts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one takes what the faster one unpacked, and leaves nothing of its own."""
    root = tmp_path / "downloads"

    def slow(lang: str, scratch: Path) -> Path:
        (scratch / "tree" / "mine").mkdir(parents=True)
        (root / f"asterisk-core-sounds-{lang}" / "theirs").mkdir(parents=True)
        return scratch / "tree"

    monkeypatch.setattr(prompts, "from_debian", slow)
    assert prompts.obtain(root, "fr") == root / "asterisk-core-sounds-fr"
    assert [path.name for path in root.rglob("*")] == ["asterisk-core-sounds-fr", "theirs"]


def test_folder_with_transcripts(tmp_path: Path) -> None:
    root = put(tmp_path / "in", FOLDER)
    code, splits = run("folder", root, tmp_path / "out", "speaker_from_parent=true", "lang=en")
    found = everything(splits)
    texts = {"anna/a": "Hello there.", "anna/b": "By its name.", "bob/c": "By its path.", "bob/d": None}
    assert code == 0 and {id_: row.text for id_, row in found.items()} == texts
    assert {id_: row.speaker for id_, row in found.items()} == {id_: id_.split("/")[0] for id_ in texts}
    assert {row.lang for row in found.values()} == {"en"} and found["bob/d"].duration == pytest.approx(0.2)


def test_folder_metadata_csv_and_named_speaker(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {"wavs/x.wav": 0.1, "metadata.csv": "\ufeffx|Dr. X, 5.|doctor x, five.\n"})
    _, splits = run("folder", root, tmp_path / "out", "speaker=me", "dev=0", "test=0")
    [row] = splits["train"]
    assert (row.id, row.text, row.speaker, row.lang) == ("wavs/x", "doctor x, five.", "me", None)


def test_folder_split_is_a_share_and_stale_splits_go(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {f"{number}.wav": 0.01 for number in range(60)})
    _, half = run("folder", root, tmp_path / "out", "dev=25", "test=25")
    assert {split: len(rows) for split, rows in half.items()} == Counter(
        prepare_split(str(number), dev=25, test=25) for number in range(60)
    )
    _, whole = run("folder", root, tmp_path / "out", "dev=0", "test=0")
    assert list(whole) == ["train"] and len(whole["train"]) == 60


def prepare_split(name: str, *, dev: int, test: int) -> str:
    """The slow obvious split."""
    bucket = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100
    return "test" if bucket < test else "dev" if bucket < test + dev else "train"


def test_folder_bad_files_are_listed_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = put(tmp_path / "in", {"good.wav": 0.1, "lies.wav": "I am a text.", "empty.flac": ""})
    code, splits = run("folder", root, tmp_path / "out")
    report = capsys.readouterr().err
    assert code == 1 and list(everything(splits)) == ["good"]
    assert f"bad file skipped: {root}/lies.wav: " in report and f"bad file skipped: {root}/empty.flac: " in report


def test_folder_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = put(tmp_path / "in", {"a.wav": 0.1})
    (root / "a.txt").write_bytes(b"caf\xe9")
    for options, part in (((), "not UTF-8"), (("speaker=x", "speaker_from_parent=true"), "give one of them")):
        assert run("folder", root, tmp_path / "out", *options)[0] == 2
        assert part in capsys.readouterr().err
    put(root, {"a.txt": "ok", "transcripts.tsv": "a has no tab\n"})
    assert run("folder", root, tmp_path / "out")[0] == 2
    assert "transcripts.tsv:1: expected" in capsys.readouterr().err


# Public corpora


def libri_tree(root: Path) -> Path:
    """The layout of the LibriSpeech archives."""
    subsets = ("train-clean-100", "train-other-500", "dev-clean", "test-clean", "test-other")
    for number, subset in enumerate(subsets, start=19):
        folder, name = f"LibriSpeech/{subset}/{number}/198", f"{number}-198"
        put(root, {f"{folder}/{name}-0000.flac": 0.2, f"{folder}/{name}-0001.flac": 0.3})
        put(root, {f"{folder}/{name}.trans.txt": f"{name}-0000 NORTHANGER ABBEY\n{name}-0001 THIS LITTLE WORK\n"})
    return root


def test_librispeech(tmp_path: Path) -> None:
    root = libri_tree(tmp_path)
    code, splits = run("librispeech", root, tmp_path / "all")
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert code == 0 and sizes == {"train": 4, "dev": 2, "test": 2, "test-other": 2}
    assert splits["train"][1] == Utterance(
        "19-198-0001",
        str(root / "LibriSpeech/train-clean-100/19/198/19-198-0001.flac"),
        pytest.approx(0.3),
        speaker="19",
        lang="en",
        text="THIS LITTLE WORK",
    )
    _, some = run("librispeech", root / "LibriSpeech", tmp_path / "some", "subsets=train-clean-100,test-other")
    assert [len(some[split]) for split in ("train", "test-other")] == [2, 2] and len(some) == 2


def test_librispeech_errors(tmp_path: Path) -> None:
    root = libri_tree(tmp_path)
    for options, part in (("dev-clan", "unknown subset; known: train-clean-100"), ("dev-other", "no such directory")):
        with pytest.raises(ManifestError, match=part):
            list(librispeech.utterances(root, subsets=options))
    with pytest.raises(ManifestError, match="none of the LibriSpeech folders"):
        list(librispeech.utterances(tmp_path / "nothing"))


def test_ljspeech(tmp_path: Path) -> None:
    rows = [f'LJ001-{number:04}|In 1455, "the Bible|In fourteen fifty-five, "the Bible' for number in range(60)]
    put(tmp_path / "LJSpeech-1.1", {"metadata.csv": "\n".join(rows) + "\n"})
    put(tmp_path / "LJSpeech-1.1/wavs", {f"LJ001-{number:04}.wav": 0.02 for number in range(60)})
    code, splits = run("ljspeech", tmp_path, tmp_path / "out", "dev=20", "test=20")
    found = everything(splits)
    assert code == 0 and len(found) == 60 and set(splits) == {"train", "dev", "test"}
    row = found["LJ001-0007"]
    assert (row.text, row.speaker, row.lang) == ('In fourteen fifty-five, "the Bible', "lj", "en")
    assert row.audio == str(tmp_path / "LJSpeech-1.1/wavs/LJ001-0007.wav")
    _, raw = run("ljspeech", tmp_path / "LJSpeech-1.1", tmp_path / "raw", "raw_text=true")
    assert everything(raw)["LJ001-0007"].text == 'In 1455, "the Bible'
    assert run("ljspeech", tmp_path / "none", tmp_path / "none-out")[0] == 2


INFO_092 = "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \np225  23  F    English    Southern  England\n"
INFO_092 += "p315  18  M    American    New  England (mic2 files unavailable)\np234  22  F    Scottish  West Dumfries\n"


def vctk_tree(root: Path, *, version: str) -> Path:
    """The layout of VCTK 0.92 (two microphones, FLAC) or 0.80 (WAV)."""
    same = {"p225": "Please call Stella.", "p234": "Please call  Stella", "p315": ""}
    for speaker, first in same.items():
        for number, text in enumerate([first, f"Only {speaker} says this."], start=1):
            name = f"{speaker}/{speaker}_{number:03}"
            if version == "0.92":
                put(root / "wav48_silence_trimmed", {f"{name}_mic1.flac": 0.1, f"{name}_mic2.flac": 0.2})
            else:
                put(root / "wav48", {f"{name}.wav": 0.1})
            if speaker != "p315":
                put(root / "txt", {f"{name}.txt": text + "\n"})
    return put(root, {"speaker-info.txt": INFO_092 if version == "0.92" else INFO_092.replace("\np", "\n")})


@pytest.mark.parametrize(("version", "folder"), [("0.92", "VCTK-Corpus-0.92"), ("0.80", "VCTK-Corpus")])
def test_vctk(tmp_path: Path, version: str, folder: str, capsys: pytest.CaptureFixture) -> None:
    root = vctk_tree(tmp_path / folder, version=version)
    code, splits = run("vctk", tmp_path, tmp_path / "out", "dev=30", "test=30")
    found = everything(splits)
    assert code == 0 and list(sorted(found)) == ["p225_001", "p225_002", "p234_001", "p234_002"]
    name = "wav48_silence_trimmed/p225/p225_002_mic1.flac" if version == "0.92" else "wav48/p225/p225_002.wav"
    assert found["p225_002"] == Utterance(
        "p225_002", str(root / name), 0.1, speaker="p225", lang="en", text="Only p225 says this."
    )
    of = {row.id: split for split, rows in splits.items() for row in rows}
    sentences = {"p225_001": "please call stella", "p234_001": "please call stella"}  # punctuated differently
    sentences |= {f"{speaker}_002": f"only {speaker} says this" for speaker in ("p225", "p234")}
    assert of == {id_: prepare_split(sentence, dev=30, test=30) for id_, sentence in sentences.items()}
    assert "no transcript: 2 (p315_001, p315_002)" in capsys.readouterr().err
    _, more = run("vctk", root, tmp_path / "more", "without_text=true", "accents=scottish,american")
    assert {row.id for row in more["train"]} >= {"p315_001", "p315_002"}
    assert {row.speaker for row in everything(more).values()} == {"p234", "p315"}
    if version == "0.92":
        _, second = run("vctk", root, tmp_path / "mic2", "mic=mic2")
        assert everything(second)["p225_001"].duration == pytest.approx(0.2)


def test_vctk_errors(tmp_path: Path) -> None:
    root = vctk_tree(tmp_path / "VCTK", version="0.92")
    with pytest.raises(ManifestError, match="known: American, English, Scottish"):
        vctk.speakers_by_accent(root, "martian")
    with pytest.raises(ManifestError, match="known: mic1, mic2"):
        list(vctk.utterances(root, left_out=lambda name, why: None, mic="mic3"))
    with pytest.raises(ManifestError, match="has neither wav48_silence_trimmed nor wav48"):
        vctk.find(tmp_path)


# The program


def test_prepare_names_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, part in (
        (
            ["nope", "a", "b"],
            "unknown corpus 'nope'; known: cvss, fisher, folder, librispeech, ljspeech, prompts, vctk",
        ),
        (
            ["folder", "a", "b", "langs=en"],
            "unknown option 'langs=en'; options of this corpus with their defaults: lang=",
        ),
        (["folder", "a", "b", "speaker_from_parent=yes"], "expected true or false"),
        (["folder", "a", "b", "dev=many"], "expected a whole number"),
        (["folder", str(tmp_path / "none"), "b"], "no such directory"),
    ):
        assert prepare.main(arguments) == 2
        assert part in capsys.readouterr().err


def test_prepare_help_shows_examples_and_every_option() -> None:
    command = [sys.executable, str(ROOT / "recipes" / "prepare.py"), "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    for part in ("prompts downloads data lang=en", "speaker_from_parent=false", "mic=mic1", "subsets="):
        assert part in done.stdout


def test_corpora_know_no_torch() -> None:
    code = "import sys; sys.path.insert(0, 'recipes'); import prepare\n"
    code += "[prepare.load_corpus(name) for name in prepare.known_corpora()]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_prepare_with_only_bad_files_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = put(tmp_path / "in", {"lies.wav": "I am a text."})
    assert run("folder", root, tmp_path / "out")[0] == 2
    assert "nothing usable found (1 bad files" in capsys.readouterr().err
    with pytest.raises(audio.AudioError):
        audio.info(root / "lies.wav")


# Parallel corpora

CV = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"


def cvss_tree(root: Path) -> Path:
    """CVSS-C as it unpacks, beside Common Voice 4; sentences with an open quote and a character that is no line end."""
    clips = {"train": [1, 2], "dev": [3], "test": [4, 5]}
    for split, numbers in clips.items():
        rows = "".join(f'common_voice_fr_{n}.mp3\tthe number {n} "is\n' for n in numbers)
        put(root, {f"cvss_c_fr_en/{split}.tsv": rows})
        put(root, {f"cvss_c_fr_en/{split}/common_voice_fr_{n}.mp3.wav": 0.2 + n / 100 for n in numbers})
    voices = root / "cv-corpus-4-2019-12-10/fr"
    sentences = "".join(
        f'c{n % 2}\tcommon_voice_fr_{n}.mp3\tLe « "numéro\x85{n}\t2\t0\t\t\t\n' for n in (1, 2, 3, 4, 9)
    )
    put(voices, {"validated.tsv": f"{CV}\n{sentences}", **{f"clips/common_voice_fr_{n}.mp3": "" for n in range(1, 6)}})
    for n in range(1, 6):  # MP3 is not written here; what is in a file decides, not its name
        put(voices / "clips", {"x.wav": 0.1 * n})
        (voices / "clips/x.wav").rename(voices / f"clips/common_voice_fr_{n}.mp3")
    return root


def test_cvss(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = cvss_tree(tmp_path / "in")
    code, source = run("cvss", root, tmp_path / "fr", "side=source")
    assert code == 0 and {split: len(rows) for split, rows in source.items()} == {"train": 2, "dev": 1, "test": 1}
    assert "not in Common Voice's validated.tsv: 1 (common_voice_fr_5)" in capsys.readouterr().err
    assert source["train"][1] == Utterance(
        "common_voice_fr_2",
        str(root / "cv-corpus-4-2019-12-10/fr/clips/common_voice_fr_2.mp3"),
        pytest.approx(0.2),
        speaker="c0",
        lang="fr",
        text='Le « "numéro\x852',
    )
    voices = f"common_voice={root / 'cv-corpus-4-2019-12-10/fr'}"
    assert run("cvss", root / "cvss_c_fr_en", tmp_path / "again", voices)[1] == source
    _, target = run("cvss", root, tmp_path / "en", "side=target")
    row = target["test"][1]
    assert (row.id, row.text, row.lang, row.speaker) == ("common_voice_fr_5", 'the number 5 "is', "en", "cvss-c")
    assert row.audio == str(root / "cvss_c_fr_en/test/common_voice_fr_5.mp3.wav")
    assert row.duration == pytest.approx(0.25)
    for split, rows in source.items():
        assert {one.id for one in rows} <= {one.id for one in target[split]}


def test_cvss_errors(tmp_path: Path) -> None:
    root = cvss_tree(tmp_path / "in")

    def fails(part: str, where: Path = root, **options: str) -> None:
        with pytest.raises(ManifestError, match=part):
            list(cvss.utterances(where, left_out=lambda name, why: None, **options))

    fails("side=both: unknown side; known: source, target", side="both")
    fails("no cvss_c_de_en", where=root / "cv-corpus-4-2019-12-10", lang="de")
    fails(
        "give common_voice=folder", common_voice="", where=put(tmp_path / "bare", {"train.tsv": "", "train/a.wav": 0.1})
    )
    put(root, {"cvss_c_fr_en/dev.tsv": "../../etc/passwd.mp3\thello\n"})
    fails("dev.tsv:1: expected 'clip.mp3", side="target")
    put(root, {"cv-corpus-4-2019-12-10/fr/validated.tsv": "client_id\tpath\n"})
    fails("no column 'sentence'; it has client_id, path")


TDF = "file;unicode\tchannel;int\tstart;float\tend;float\tspeaker;unicode\tspeakerType;unicode\tspeakerDialect;unicode"
TDF += "\ttranscript;unicode\tsection;int\n;;MM sectionTypes\t[]\n;;MM sectionBoundaries\t[0.0, 9.0]\n"
CALL = "20050908_182943_22_fsp"


def fisher_tree(root: Path) -> Path:
    """The LDC's two releases and Post's translations: a call of four lines, the other side speaking in the third."""
    lines = [
        (0, 0.5, 1.0, '<foreign lang="English"> hello </foreign> ¿qué ((tal))?'),
        (0, 1.0, 1.5, "[laugh] bien / +pues"),
        (1, 1.25, 2.0, "ajá #"),
        (0, 2.0, 2.75, "hasta luego"),
    ]
    rows = "".join(f"{CALL}.sph\t{c}\t{a}\t{b}\ts{c}\tmale\tnative\t{text}\t0\n" for c, a, b, text in lines)
    put(root, {f"LDC2010T04/fisher_spa_tr/data/transcripts/{CALL}.tdf": TDF + rows})
    sides = np.stack([np.full(24000, 0.25), np.full(24000, -0.5)], axis=1)
    (root / "LDC2010S01/DISC1/data/speech").mkdir(parents=True)
    soundfile.write(root / f"LDC2010S01/DISC1/data/speech/{CALL}.sph", sides, 8000, format="NIST", subtype="ULAW")
    post = root / "fisher-callhome-corpus"
    put(
        post,
        {"mapping/fisher_train": f"{CALL} 1\n{CALL} 2_4\n", "corpus/ldc/fisher_train.en": "\r\nwell, see you later\n"},
    )
    for split, line, english in (("dev", 3, "aha"), ("dev2", 1, "hello, how's it going?"), ("test", 4, "see you")):
        put(post, {f"mapping/fisher_{split}": f"{CALL} {line}\n", f"corpus/ldc/fisher_{split}.en.0": f"{english}\n"})
    return root


def test_fisher_source(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = fisher_tree(tmp_path / "in")
    assert run_fisher(root, tmp_path / "es", "side=source") == 0
    splits = {split: list(read_manifest(tmp_path / f"es/{split}.jsonl")) for split in ("train", "dev", "dev2", "test")}
    assert {split: [row.id for row in rows] for split, rows in splits.items()} == {
        "train": [f"{CALL}-2_4"], "dev": [f"{CALL}-3"], "dev2": [f"{CALL}-1"], "test": [f"{CALL}-4"]
    }  # fmt: skip
    assert f"no translation: 1 ({CALL}-1)" in capsys.readouterr().err
    (joined,), (other,) = splits["train"], splits["dev"]
    assert (joined.text, joined.lang, joined.speaker) == ("bien pues hasta luego", "es", f"{CALL}-A")
    assert (splits["dev2"][0].text, other.text, other.speaker) == ("hello ¿qué tal?", "ajá", f"{CALL}-B")
    for row, seconds, level in (
        (joined, 1.75, 0.25),
        (other, 0.75, -0.5),
    ):  # one channel, from the first to the last line
        wav, rate = soundfile.read(row.audio)
        assert rate == 8000 and len(wav) == seconds * 8000 and np.allclose(wav, level, atol=0.02)
        assert row.duration == seconds


def test_fisher_target_is_what_was_made_of_the_translations(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, made = fisher_tree(tmp_path / "in"), tmp_path / "made"
    assert run_fisher(root, tmp_path / "es") == 0
    rows = [json.loads(line) for line in (tmp_path / "es/translations.jsonl").open()]
    assert rows[0] == {"id": f"{CALL}-2_4", "en": "well, see you later"} and len(rows) == 4
    for row in rows[:3]:
        put(made, {f"wav/en/af_heart/{row['id']}.flac": 0.3})
    _, splits = run("fisher", root, tmp_path / "en", "side=target", f"made={made}")
    assert set(splits) == {"train", "dev", "dev2"} and f"af_heart: 1 ({CALL}-4)" in capsys.readouterr().err
    (row,) = splits["train"]
    assert (row.id, row.text, row.lang, row.speaker) == (f"{CALL}-2_4", "well, see you later", "en", "af_heart")


def run_fisher(root: Path, out: Path, *options: str) -> int:
    """The source side, whose folder holds a file that is no manifest."""
    return prepare.main(["fisher", str(root), str(out), *options])


def test_fisher_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = fisher_tree(tmp_path / "in")
    mapping = root / "fisher-callhome-corpus/mapping/fisher_test"

    def fails(part: str, *options: str) -> None:
        assert run_fisher(root, tmp_path / "out", *options) == 2
        assert part in " ".join(capsys.readouterr().err.split())

    fails("side=target: give made=folder", "side=target")
    fails("known: source, target", "side=b")
    mapping.write_text(f"{CALL} 5\n")
    fails(f"fisher_test:1: {CALL} has 4 lines, 5 was asked for")
    mapping.write_text(f"{CALL} 4\n{CALL} 1\n")
    fails("fisher_test has 2 lines,")
    mapping.write_text("another 4\n")
    fails("there is no transcript another.tdf")
    (root / f"LDC2010S01/DISC1/data/speech/{CALL}.sph").unlink()
    fails("no .sph recordings (LDC2010S01)")

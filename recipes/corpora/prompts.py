"""Asterisk core sounds 1.6.1: studio telephone prompts, one voice a language, the same prompt names in all of them.

English, Spanish, French (CC BY-SA 3.0), Italian and Russian (CC BY 3.0), 22 to 29 minutes each at 16 kHz.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from unitkit import audio
from unitkit.manifest import Utterance, hash_split

VERSION = "1.6.1"
RATE = 16000
SPEAKERS = {"en": "allison", "es": "allison-mx", "fr": "june", "it": "carlo", "ru": "ivr-ru"}
UPSTREAM = "https://downloads.asterisk.org/pub/telephony/sounds/releases"
TONES = {"ascending-2tone", "descending-2tone", "beep", "beeperr", "confbridge-join", "confbridge-leave", "tt-monkeys"}


class PromptsError(RuntimeError):
    """The prompts could not be obtained or are not where they were looked for."""


def utterances(
    root: Path, *, out: Path, left_out: Callable[[str, str], None], lang: str = "en"
) -> Iterator[tuple[str, Utterance]]:
    """Yield (split, utterance) for every spoken prompt of `lang` (one, or several with commas), decoded below `out`.

    The split is a hash of the prompt name alone, so a prompt is in the same split in every language.
    Six to fourteen held-out prompts a language are other recordings of words that a train prompt has too.
    """
    wanted = lang.split(",")
    for one in wanted:
        if one not in SPEAKERS:
            raise PromptsError(f"lang={one}: unknown language; known: {', '.join(SPEAKERS)}")
    for one in wanted:
        sounds, transcript = find(obtain(Path(root), one), one)
        texts = read_texts(transcript)
        for path in sorted(sounds.rglob("*.g722")):
            name = path.relative_to(sounds).with_suffix("").as_posix()
            text, reason = spoken_text(name, texts.get(name.lower(), ""))
            if text and path.stat().st_size == 0:
                text, reason = "", "empty file"
            if not text:
                left_out(f"{one}/{name}", reason)
                continue
            flac = Path(out) / "wav" / one / f"{name}.flac"
            if not flac.exists():
                audio.write(flac, decode(path), RATE)
            id_ = f"{one}/{name}"
            yield (
                hash_split(name),
                Utterance(id=id_, audio=str(flac), speaker=SPEAKERS[one], lang=one, text=text),
            )


# ---------------------------------------------------------------- text


def read_texts(path: Path) -> dict[str, str]:
    """Return lower-cased prompt name -> transcript from `core-sounds-<lang>.txt`, plain or gzipped; `;` comments."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    texts: dict[str, str] = {}
    for line in raw.decode("utf-8-sig").splitlines():
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts.setdefault(name.strip().lower(), " ".join(text.split()))
    return texts


def spoken_text(name: str, raw: str) -> tuple[str, str]:
    """Return (the words spoken, "") or ("", why the prompt is left out)."""
    if name.startswith("silence/") or name in TONES:
        return "", "tone, noise or silence"
    text = re.sub(r"\[[^\w\]]*\]", "", raw)  # "at [@]": the sign that is meant, not a word
    if not re.search(r"\w", text):
        return "", "no transcript"
    if re.fullmatch(r"[\[<(].*[\])>]\.?", text.strip()):
        return "", "tone, noise or silence"
    if re.search(r"[\[\]<>()]", text):  # "(in inglese)", "[suo]": some of these are spoken and some are not
        return "", "transcript with an editor's note"
    return " ".join(text.split()), ""


# ---------------------------------------------------------------- audio


def decode(path: Path) -> np.ndarray:
    """Decode a headerless G.722 file (64 kbit/s) to (samples,) float32 at 16 kHz."""
    try:
        from G722 import G722
    except ImportError:
        return audio.read(path, RATE)  # PyAV reads G.722 too, bit for bit the same
    return np.asarray(G722(RATE, 64000).decode(path.read_bytes()), dtype=np.float32) / 32768.0


# ---------------------------------------------------------------- obtaining


def obtain(root: Path, lang: str) -> Path:
    """Return a directory with the unpacked prompts of `lang`, below `root` if they are there, else downloaded to it."""
    target = root / f"asterisk-core-sounds-{lang}"
    if target.is_dir():
        return target
    if root.is_dir() and _sound_folders(root, lang):
        return root
    root.mkdir(parents=True, exist_ok=True)
    failures = []
    for source in (from_debian, from_upstream):
        with tempfile.TemporaryDirectory(dir=root, prefix=f"{target.name}.", suffix=".partial") as scratch:
            try:
                unpacked = source(lang, Path(scratch))
            except (OSError, tarfile.TarError, PromptsError) as error:
                failures.append(f"{source.__name__}: {error}")
            else:
                try:
                    os.replace(unpacked, target)
                except OSError:
                    if not target.is_dir():  # another recipe may have been faster
                        raise
                return target
    raise PromptsError(
        f"no prompts for lang={lang}:\n  " + "\n  ".join(failures) + f"\nor unpack {_tarball(lang)} yourself and give "
        "its directory as <root>"
    )


def from_debian(lang: str, scratch: Path) -> Path:
    """Download the two Debian packages and unpack them below `scratch`, without root; returns the unpacked tree."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PromptsError("no apt-get and dpkg-deb here")
    names = [f"asterisk-core-sounds-{lang}-g722", f"asterisk-core-sounds-{lang}"]
    done = subprocess.run(["apt-get", "download", *names], cwd=scratch, capture_output=True, text=True, check=False)
    packages = sorted(scratch.glob("*.deb"))
    if done.returncode or len(packages) != len(names):
        raise PromptsError(
            f"apt-get download {' '.join(names)}: {done.stderr.strip()} (run apt-get update, then again)"
        )
    for package in packages:
        if f"_{VERSION}-" not in package.name:
            raise PromptsError(f"{package.name}: expected version {VERSION}, whose prompts and splits are known")
        subprocess.run(["dpkg-deb", "-x", str(package), str(scratch / "tree")], check=True)
    return scratch / "tree"


def from_upstream(lang: str, scratch: Path) -> Path:
    """Download the tarball of the Asterisk project and unpack it below `scratch`; returns the unpacked tree."""
    archive = scratch / _tarball(lang)
    with urllib.request.urlopen(f"{UPSTREAM}/{archive.name}", timeout=60) as reply, archive.open("wb") as file:
        shutil.copyfileobj(reply, file)
    return unpack(archive, scratch / "tree")


def unpack(archive: Path, tree: Path) -> Path:
    """Unpack a tarball into `tree`, refusing members that would land outside it; returns `tree`."""
    with tarfile.open(archive) as tar:
        tar.extractall(tree, filter="data")
    return tree


def find(root: Path, lang: str) -> tuple[Path, Path]:
    """Return (the folder of G.722 prompts, the transcript file) of `lang` anywhere below `root`."""
    folders = _sound_folders(root, lang)
    if len(folders) != 1:
        found = ", ".join(map(str, folders)) or "none"
        raise PromptsError(
            f"{root}: expected one folder of lang={lang} prompts (one with digits/1.g722), found {found}"
        )
    transcripts = sorted([*root.rglob(f"core-sounds-{lang}.txt"), *root.rglob(f"core-sounds-{lang}.txt.gz")])
    if not transcripts:
        raise PromptsError(f"{root}: no core-sounds-{lang}.txt[.gz]; in Debian it is in asterisk-core-sounds-{lang}")
    return folders[0], transcripts[0]


def _tarball(lang: str) -> str:
    return f"asterisk-core-sounds-{lang}-g722-{VERSION}.tar.gz"


def _sound_folders(root: Path, lang: str) -> list[Path]:
    folders = sorted(path.parent.parent for path in root.rglob("digits/1.g722"))
    named = [folder for folder in folders if re.match(rf"{lang}(_|$)", folder.name)]
    if named:
        return named
    # The upstream tarball holds no folder of its own: the prompts and their transcript lie side by side.
    return [folder for folder in folders if (folder / f"core-sounds-{lang}.txt").exists()]

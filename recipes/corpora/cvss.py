"""CVSS-C: 21 languages into one English voice, on Common Voice 4 (google-research-datasets/cvss, CC BY 4.0)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from unitkit.manifest import ManifestError, Utterance

SPLITS = ("train", "dev", "test")
SIDES = ("source", "target")
VOICE = "cvss-c"  # all translations of CVSS-C are in one synthetic voice


def utterances(
    root: Path, *, left_out: Callable[[str, str], None], side: str = "source", lang: str = "fr", common_voice: str = ""
) -> Iterator[tuple[str, Utterance]]:
    """Yield (split, utterance) of one side of `lang`-en, in the order of CVSS's tables, ids the same on both sides.

    `root` holds cvss_c_<lang>_en (as its archive unpacks) or is that folder. Common Voice's folder of the language,
    with validated.tsv and clips/, is `common_voice`, or lies beside: cv-corpus-4-*/<lang>, <lang>, common_voice/<lang>.
    A source's text is Common Voice's sentence, a target's the normalised translation that is spoken.
    """
    if side not in SIDES:
        raise ManifestError(f"side={side}: unknown side; known: {', '.join(SIDES)}")
    folder = find_cvss(Path(root), lang)
    voices = Path(common_voice) if common_voice else find_common_voice(folder.parent, lang)
    sentences = read_sentences(voices / "validated.tsv") if side == "source" else {}
    for split in SPLITS:
        for name, translation in read_table(folder / f"{split}.tsv"):
            id_ = name.removesuffix(".mp3")
            if side == "target":
                audio, speaker, text = folder / split / f"{name}.wav", VOICE, translation
            elif name in sentences:
                audio, (speaker, text) = voices / "clips" / name, sentences[name]
            else:
                left_out(id_, "not in Common Voice's validated.tsv")
                continue
            target_lang = "en" if side == "target" else lang
            yield split, Utterance(id=id_, audio=str(audio), speaker=speaker, lang=target_lang, text=text or None)


def find_cvss(root: Path, lang: str) -> Path:
    """The folder of CVSS-C's tables and wavs of `lang`."""
    for folder in (root / f"cvss_c_{lang}_en", root):
        if (folder / "train.tsv").is_file() and (folder / "train").is_dir():
            return folder
    raise ManifestError(
        f"{root}: has no cvss_c_{lang}_en with train.tsv and train/; unpack cvss_c_{lang}_en_v1.0.tar.gz there"
    )


def find_common_voice(root: Path, lang: str) -> Path:
    """The folder of Common Voice's recordings of `lang`, near CVSS's."""
    near = [*sorted(root.glob(f"cv-corpus-4*/{lang}")), root / "common_voice" / lang, root / lang, root]
    for folder in near:
        if (folder / "validated.tsv").is_file() and (folder / "clips").is_dir():
            return folder
    raise ManifestError(
        f"{root}: no folder with Common Voice's validated.tsv and clips/ of {lang}; give common_voice=folder "
        "(CVSS is made from release 4, cv-corpus-4-2019-12-10; later releases have other clips in their tables)"
    )


def read_table(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (clip, translation) of the rows `common_voice_fr_1.mp3<TAB>text` of one split; there is no header."""
    for number, line in enumerate(_lines(path), start=1):
        name, tab, text = line.partition("\t")
        if not tab or os.path.basename(name) != name or not name.endswith(".mp3"):
            raise ManifestError(f"{path}:{number}: expected 'clip.mp3<TAB>translation', found {line[:60]!r}")
        yield name, text.strip()


def read_sentences(path: Path) -> dict[str, tuple[str, str]]:
    """Return clip -> (speaker, sentence) of validated.tsv; releases differ in their other columns."""
    # Not the csv module: sentences open quotes that they never close.
    lines = _lines(path)
    columns = lines[0].split("\t") if lines else []
    if missing := [name for name in ("client_id", "path", "sentence") if name not in columns]:
        raise ManifestError(f"{path}:1: no column {missing[0]!r}; it has {', '.join(columns) or 'nothing'}")
    who, clip, said = (columns.index(name) for name in ("client_id", "path", "sentence"))
    rows = (line.split("\t") for line in lines[1:])
    return {row[clip]: (row[who], row[said].strip()) for row in rows if len(row) == len(columns)}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ManifestError(f"{path}: no such file")
    # Only a line feed ends a row: sentences hold other characters at which splitlines would cut.
    return [line.rstrip("\r") for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]

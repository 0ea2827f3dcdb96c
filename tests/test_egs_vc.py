"""The conversion recipes call what they should, in an order in which everything is there, and their configs load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_calls import EGS, ROOT, of, recorder
from recipe_files import recipe as recipe_file

from unitkit import audio, augment, config
from unitkit.manifest import Utterance, hash_split, read_manifest, write_manifest
from unitkit.metrics.rows import read_scores
from unitkit.models.frame import MODES, PAPER


@pytest.fixture
def made(tmp_path: Path):
    """Runs a recipe with programs that only write down how they were called; returns the calls, word by word."""
    return recorder(tmp_path, f"data={tmp_path}/d", "exp=e")


def after(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


def values(call: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in call if "=" in word and not word.startswith("-"))


def unmade(calls: list[list[str]], given: set[str]) -> list[str]:
    """Files and folders that a call reads and no call before it wrote."""
    have, lacking = set(given), []
    for call in calls:
        reads, writes = [], written(call)
        match call[1]:
            case "join.py":
                reads, writes = [word for word in call[3:] if not word.startswith("-")], [call[2]]
            case "conversions.py":
                reads = [after(call, "--sources"), after(call, "--references")]
                writes = [f"{call[2]}/{side}.jsonl" for side in ("source", "reference")]
            case "prepare.py":
                writes = [f"{call[4]}/{split}.jsonl" for split in ("train", "dev", "test")]
            case "mels.py":
                reads, writes = [call[2]], [f"{after(call, '-o')}/units.jsonl"]
            case _:
                reads = [
                    word for word in call[2:] if word.endswith(".jsonl") and "=" not in word and word not in writes
                ]
        named = ("speaker", "init")
        reads += [v for k, v in values(call).items() if k.endswith(("_manifest", "_units")) or k in named]
        reads += [after(call, option) for option in ("-m", "--converter") if option in call]
        lacking += [path for path in reads if path not in have]
        have |= set(writes)
    return lacking


def written(call: list[str]) -> list[str]:
    return [after(call, o) for o in ("-o", "--out") if o in call] or [values(call).get("out", "")]


VOICES = {f"d/{name}.jsonl" for name in ("train", "dev", "prompts/test", "made/dev", "made/test")}


def test_everything_is_made_before_it_is_used(made) -> None:
    calls = made("prompts/vc", "fit.max_steps=7")
    ours = calls[next(i for i, call in enumerate(calls) if call[2] == "e/data/train.jsonl") :]
    assert unmade(ours, VOICES) == []
    (speaker,), (converter,) = of(calls, "train_speaker.py"), of(calls, "train_vc.py")
    assert values(speaker) | {"out": "e/speaker", "unseen_manifest": "e/data/unseen.jsonl"} == values(speaker)
    wanted = {"out": "e/converter", "speaker": "e/speaker", "train_units": "e/units/train.jsonl", "fit.max_steps": "7"}
    assert values(converter) | wanted == values(converter)
    first, second = of(calls, "train_vocoder.py")
    assert values(first)["out"] == "e/vocoder" and values(second)["out"] == "e/converter/vocoder"
    assert values(first)["data.features_dev"] == "e/mels/dev" and values(second)["init"] == "e/vocoder"
    assert {values(call)["data.names"] for call in (first, second)} == {"false"}
    assert [after(call, "-o") for call in of(calls, "mels.py")] == [
        f"e/mels/{name}" for name in ("train", "dev", "made.train", "made.dev")
    ]


def test_who_is_heard_and_who_is_not(made) -> None:
    joined = {call[0]: call[1:] for call in of(made("prompts/vc", "data"), "join.py")}
    assert joined["e/data/sources.jsonl"] == ["d/prompts/test.jsonl"]
    assert joined["e/data/seen.jsonl"] == ["d/prompts/test.jsonl", "d/made/dev.jsonl"]
    assert joined["e/data/unseen.jsonl"] == ["d/made/test.jsonl"] and joined["e/data/train.jsonl"] == ["d/train.jsonl"]


def test_every_mode_is_converted_and_scored_for_both_sets(made) -> None:
    calls = made("prompts/vc", "convert", "score", "report")
    modes = ["copy", "rhythm", "pitch-energy", "prosody", "speaker", "exact-speaker", "all"]
    converted = of(calls, "convert")
    assert [after(call, "-o") for call in converted] == [f"e/{t}/synth/{m}" for t in ("seen", "unseen") for m in modes]
    for call in converted:
        mode = after(call, "-o").rpartition("/")[2]
        assert after(call, "--mode") == mode.removeprefix("exact-") in MODES
        assert ("--exact-pitch" in call) == mode.startswith("exact-")
        assert after(call, "-m") == "e/converter" and after(call, "--tokenizer") == "mini"
    scored = of(calls, "score")
    assert len(scored) == 4 and [call[0] == "conversions" for call in scored] == [True, False] * 2
    assert scored[2][1:8] == [f"e/unseen/synth/{m}" for m in modes]
    assert after(scored[2], "--source-units") == "e/unseen/units/test.jsonl"
    assert [after(call, "-o") for call in of(calls, "report")] == ["e/seen/report.html", "e/unseen/report.html"]
    (only,) = of(made("prompts/vc", "convert", "sets=unseen", "modes=rhythm"), "convert")
    assert after(only, "-o") == "e/unseen/synth/rhythm"


def test_an_encoder_that_is_there_is_not_trained_again(made) -> None:
    calls = made("prompts/vc", "speaker", "converter", "encoder=there/speaker")
    (converter,) = of(calls, "train_vc.py")
    assert not of(calls, "train_speaker.py") and values(converter)["speaker"] == "there/speaker"


def test_learned_voices_need_no_encoder(made) -> None:
    calls = made("prompts/vc", "speaker", "converter", "encoder=learned")
    (converter,) = of(calls, "train_vc.py")
    assert not of(calls, "train_speaker.py") and "speaker" not in values(converter)


def test_vctk_runs_the_same_stages(made) -> None:
    calls = made("vctk/vc", "corpus=c", "unseen=p1,p2")
    assert unmade(calls, set()) == []
    assert of(calls, "prepare.py") == [["vctk", "c", "d"]]
    joined = {call[0]: call[1:] for call in of(calls, "join.py")}
    assert joined["e/data/train.jsonl"] == ["d/train.jsonl", "--without=p1", "--without=p2"]
    assert joined["e/data/seen.jsonl"] == ["d/test.jsonl", "--without=p1", "--without=p2"]
    assert joined["e/data/unseen.jsonl"] == ["d/test.jsonl", "--speaker=p1", "--speaker=p2"]
    (fit,) = of(calls, "fit")
    assert (after(fit, "--features"), after(fit, "--layer"), after(fit, "-k")) == ("hubert-base", "6", "200")
    assert {after(call, "-t") for call in of(calls, "encode")} == {after(fit, "-o")} == {"e/tokenizer"}
    (converter,) = of(calls, "train_vc.py")
    assert converter[0] == "conf/paper.yaml" and "speaker" not in values(converter)
    assert (
        after(of(calls, "mels.py")[0], "--hop") == "256" and after(of(calls, "mels.py")[0], "--sample-rate") == "22050"
    )


TINY = {
    "tiny": """
data: {batch: 4, segment_seconds: 0.6, copies: 1}
model: {dim: 16, layers: 1, vector_dim: 8, hearing_hidden: 8, hearing_layers: 1,
  mel: {sample_rate: 22050, hop: 256, n_mels: 20}}
fit: {max_steps: 2, tensorboard: false, device: cpu}
""",
    "vocoder": """
model: {sample_rate: 22050, unit_dim: 8, istft: {dim: 16, blocks: 1, hidden: 16}}
data: {batch: 4}
fit: {max_steps: 2, tensorboard: false, device: cpu}
""",
    "finetune": "data: {batch: 4}\nfit: {max_steps: 1, tensorboard: false, device: cpu}\n",
}


def tree(root: Path) -> Path:
    """VCTK 0.92 of three speakers, who are one at three speeds; two long sentences of each split."""
    spoken = [row for row in read_manifest(ROOT / "samples" / "en" / "train.jsonl") if 3 < (row.duration or 0) < 9]
    texts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for number in range(400):
        text = f"please call number {number}"
        if len(some := texts[hash_split(text, dev=3, test=7)]) < 2:
            some.append(text + ".")
    for speaker, factor in (("p225", 1.0), ("p226", 0.85), ("p227", 1.2)):
        for number, text in enumerate(text for some in texts.values() for text in some):
            name = f"{speaker}_{number:03}"
            wav = augment.speed(audio.read(spoken[number].audio, 48000), factor)
            audio.write(root / "wav48_silence_trimmed" / speaker / f"{name}_mic1.flac", wav, 48000)
            (root / "txt" / speaker).mkdir(parents=True, exist_ok=True)
            (root / "txt" / speaker / f"{name}.txt").write_text(f"{text}\n")
    return root


@pytest.mark.slow
def test_vctk_on_a_small_tree(tmp_path: Path) -> None:
    """Every stage with the real programs: data, tokenizer, trainers, conversions, scores, pages."""
    for name, text in TINY.items():
        (tmp_path / "conf").mkdir(exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    words = [
        f"home={tmp_path}", f"corpus={tree(tmp_path / 'VCTK')}", "features=mfcc", "layer=", "units=20", "conf=tiny",
        "exp=exp", "mel=--sample-rate 22050 --hop 256 --n-mels 20", "unseen=p227", "pairs=2", "modes=copy all",
        "metrics=f0_mean,tempo_moved,duration_reference", "quality=",
    ]  # fmt: skip
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", EGS / "vctk/vc/run.sh", *words], env=env, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    exp = tmp_path / "exp"
    assert {row.speaker for row in read_manifest(exp / "data" / "train.jsonl")} == {"p225", "p226"}
    assert {row.speaker for row in read_manifest(exp / "unseen" / "reference.jsonl")} == {"p227"}
    for name in ("seen", "unseen"):
        made = list(read_manifest(exp / name / "synth" / "all" / "manifest.jsonl"))
        assert len(made) == 2 and all(audio.info(row.audio).rate == 22050 for row in made)
        rows = read_scores(exp / name / "scores.jsonl")
        assert [row.key for row in rows] == [
            (mode, name, metric)
            for mode in ("copy", "all")
            for metric in ("f0_mean", "tempo_moved", "duration_reference")
        ]
        assert "<audio" in (exp / name / "report.html").read_text()


def test_configurations_fit_their_trainers() -> None:
    vc, vocoder, speaker = (recipe_file(f"train_{name}") for name in ("vc", "vocoder", "speaker"))
    small = config.load(vc.Config, EGS / "prompts/vc/conf/small.yaml")
    paper = config.load(vc.Config, EGS / "vctk/vc/conf/paper.yaml")
    assert small.size == "small" and small.model.hearing == "mel" and not small.gan.use
    assert (paper.size, paper.wav2vec2, paper.data.other, paper.gan.use) == ("paper", "wav2vec2-base", 0, True)
    assert paper.optim.lr == 1e-4 and paper.optim.betas == (0.5, 0.9)
    vc.check(
        config.load(
            vc.Config,
            EGS / "vctk/vc/conf/paper.yaml",
            [f"{s}_{w}=x" for s in ("train", "dev") for w in ("manifest", "units")],
        )
    )
    config.load(speaker.Config, EGS / "prompts/vc/conf/speaker.yaml")
    for corpus, rate in (("prompts", 16000), ("vctk", PAPER.mel.sample_rate)):
        for name in ("vocoder", "finetune"):
            found = config.load(vocoder.Config, EGS / corpus / "vc/conf" / f"{name}.yaml")
            assert name == "finetune" or found.model.sample_rate == rate, (corpus, name)


def test_pairs_of_voices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every voice as often as the others, none with itself, each pair with an id of its own."""
    sources = [
        Utterance(f"{v}/{i}", f"/a/{v}{i}.wav", 1.0 + i, speaker=v, text="one two three")
        for v in "ab"
        for i in range(6)
    ]
    sources.append(Utterance("a/short", "/a/s.wav", 3.0, speaker="a", text="one"))
    references = [Utterance(f"{v}/r{i}", f"/r/{v}{i}.wav", 2.0 + i, speaker=v) for v in "bcd" for i in range(3)]
    for name, rows in (("s", sources), ("r", references)):
        write_manifest(tmp_path / f"{name}.jsonl", rows)
    module = recipe_file("conversions")
    words = ["--sources", str(tmp_path / "s.jsonl"), "--references", str(tmp_path / "r.jsonl"), "-n"]
    assert module.main([str(tmp_path / "p"), *words, "10"]) == 0
    said, heard = (list(read_manifest(tmp_path / "p" / f"{name}.jsonl")) for name in ("source", "reference"))
    assert len(said) == 10 and [r.id for r in said] == [r.id for r in heard] and len({r.id for r in said}) == 10
    for source, reference in zip(said, heard, strict=True):
        assert source.speaker != reference.speaker and source.id.endswith(f"--{reference.speaker}")
        assert 1.5 <= source.duration <= 8 and reference.duration >= 2.5 and source.text == "one two three"
    voices = [(s.speaker, r.speaker) for s, r in zip(said, heard, strict=True)]
    assert {voice: voices.count(voice) for voice in set(voices)} == {(a, b): 2 for a in "ab" for b in "bcd" if a != b}
    assert module.main([str(tmp_path / "q"), *words, "10"]) == 0
    for name in ("source", "reference"):
        assert (tmp_path / "q" / f"{name}.jsonl").read_text() == (tmp_path / "p" / f"{name}.jsonl").read_text()
    with pytest.raises(module.PairsError, match="ask for fewer than 99"):
        module.main([str(tmp_path / "x"), *words, "99"])
    with pytest.raises(module.PairsError, match="0 sources and 6 references are left: loosen the limits"):
        module.main([str(tmp_path / "x"), *words, "9", "--words", "4"])

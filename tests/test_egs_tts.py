"""The recipes of speech from text call what they should, in an order in which everything is there; configs load."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from recipe_files import recipe as recipe_file
from test_egs_s2st import after, made, of, unmade  # noqa: F401  made is a fixture

from unitkit import audio, config
from unitkit.audio import Mel
from unitkit.manifest import read_manifest
from unitkit.models.acoustic import PARALLEL_PAPER

ROOT = Path(__file__).resolve().parents[1]
EGS = ROOT / "egs"
Calls = Callable[..., list[list[str]]]
HELD = {"train": "train", "dev": "dev", "unseen": "test"}  # what the speaker encoder learns from and is tried on
SETS = {f"e/data/{name}.jsonl" for name in ("train", "dev", "seen", "unseen", "test", "some")}


def test_one_model_of_five_languages(made: Calls) -> None:  # noqa: F811
    calls = made("prompts/tts", "exp=e", "fit.max_steps=7")
    (prompts,) = of(calls, "prepare.py")
    assert prompts[0] == "prompts" and prompts[3] == "lang=en,es,fr,it,ru" and prompts[2] == "d/prompts"
    (say,) = of(calls, "manufacture.py")
    assert say[0] == "d/made" and after(say, "--forbid") == ["d/prompts/test.jsonl"]
    joined = {call[0]: call[1:] for call in of(calls, "join.py")}
    assert joined["e/data/train.jsonl"] == ["d/train.jsonl"]
    assert joined["d/train.jsonl"] == ["d/prompts/train.jsonl", "d/made/train.jsonl"]
    assert joined["e/data/seen.jsonl"] == ["d/prompts/test.jsonl"]
    assert unmade(calls, SETS) == []
    (fit,) = of(calls, "fit")
    assert fit[0] == "e/data/some.jsonl" and after(fit, "--kind") == ["product"] and after(fit, "--codebooks") == ["2"]
    encoded = {after(call, "-o")[0]: call[0] for call in of(calls, "encode")}
    assert encoded == {
        "e/units/train.jsonl": "e/data/train.jsonl",
        "e/units/dev.jsonl": "e/data/dev.jsonl",
        "e/seen/units/test.jsonl": "e/data/seen.jsonl",
        "e/unseen/units/test.jsonl": "e/data/unseen.jsonl",
    }
    assert not any("test" in path for path in encoded.values())


def test_unseen_voices_are_in_nothing_that_is_trained(made: Calls) -> None:  # noqa: F811
    calls = made("prompts/tts", "exp=e", "fit.max_steps=7")
    heard = {after(call, "-o")[0].removeprefix("e/voices/"): call for call in of(calls, "speaker_vectors.py")}
    assert {name: call[:2] for name, call in heard.items()} == {
        "train.safetensors": ["e/speaker", "e/data/train.jsonl"],
        "dev.safetensors": ["e/speaker", "e/data/dev.jsonl"],
        "unseen.safetensors": ["e/speaker", "e/data/test.jsonl"],
        "all.safetensors": ["e/speaker", "e/data/test.jsonl"],
    }
    assert after(heard["unseen.safetensors"], "--rest") == ["e/data/unseen.jsonl"]  # not what a voice was taken from
    assert after(heard["all.safetensors"], "--add") == ["e/characters/voices.safetensors"]
    (speaker,), (vocoder,), (tts,) = (of(calls, f"train_{name}.py") for name in ("speaker", "vocoder", "tts"))
    assert {f"{name}_manifest=e/data/{file}.jsonl" for name, file in HELD.items()} <= set(speaker)
    for call, prefix in ((vocoder, "data.voices_train="), (tts, "voices=")):
        assert f"{prefix}e/voices/train.safetensors" in call
        assert not any("seen" in word or "test" in word for word in call)
    assert "fit.max_steps=7" in tts and "fit.max_steps=7" not in vocoder and "speaker=e/speaker" in tts
    assert {"model.front=characters", "out=e/characters", "dev_voices=e/voices/dev.safetensors"} <= set(tts)


def test_what_is_spoken_and_scored(made: Calls) -> None:  # noqa: F811
    calls = made("prompts/tts", "exp=e", "front=bytes", "speak", "score", "report")
    spoken = {after(call, "-o")[0]: call for call in of(calls, "speak")}
    assert set(spoken) == {f"e/{s}/synth/{name}" for s in ("seen", "unseen") for name in ("bytes", "other")}
    for out, call in spoken.items():
        assert call[0] == f"e/data/{out.split('/')[1]}.jsonl" and after(call, "-m") == ["e/bytes"]
        assert after(call, "--voices") == ["e/voices/all.safetensors"]
        assert ("--speaker" in call) == out.endswith("other")
    again = [after(call, "-o")[0] for call in of(calls, "vocode")]
    assert again == [f"e/{s}/synth/{name}" for s in ("seen", "unseen") for name in ("units", "shuffled")]
    for call, name in zip(of(calls, "score"), ("seen", "unseen"), strict=True):
        assert call[:3] == [f"e/{name}/synth/{system}" for system in ("bytes", "units", "other")]
        assert after(call, "--control") == [f"e/{name}/synth/shuffled"] and after(call, "--split") == [name]
        assert after(call, "--reference") == [f"e/data/{name}.jsonl"]
    assert [call[0] for call in of(calls, "report")] == ["e/seen", "e/unseen"]


def test_unit_by_unit_beside_it(made: Calls) -> None:  # noqa: F811
    calls = made("prompts/tts-ar", "tts=t", "exp=e", "lang=es", "fit.max_steps=7")
    sets = {f"e/data/{name}.jsonl" for name in ("train", "dev", "seen", "unseen")}
    joined = {call[0]: call[1:] for call in of(calls, "join.py")}
    beside = {f"e/{name}/synth/parallel/manifest.jsonl" for name in ("seen", "unseen")}
    assert set(joined) == sets | beside and joined["e/data/dev.jsonl"] == ["t/exp/data/dev.jsonl", "--lang", "es"]
    assert unmade(calls, sets) == []
    (fit,), (vocoder,), (t2u,) = of(calls, "fit"), of(calls, "train_vocoder.py"), of(calls, "train_s2ut.py")
    assert after(fit, "--encoder-of") == ["t/exp/tokenizer"] and "--codebooks" not in fit
    assert "data.voices_dev=t/exp/voices/dev.safetensors" in vocoder and vocoder[0] == "t/conf/vocoder.yaml"
    assert "train_source=e/data/train.jsonl" in t2u and "train_target=e/data/train.jsonl" in t2u
    assert "out=e/t2u" in t2u and "out=e/vocoder" in vocoder and "fit.max_steps=7" in t2u  # the one beside the other
    assert [after(call, "-m")[0] for call in of(calls, "speak")] == ["e/t2u", "e/t2u", "t/exp/characters"] * 2
    assert ["--speaker" in call for call in of(calls, "speak")] == [False, True, False] * 2
    for call, name in zip(of(calls, "score"), ("seen", "unseen"), strict=True):
        assert call[:4] == [f"e/{name}/synth/{system}" for system in ("t2u", "parallel", "units", "other")]
        assert after(call, "--control") == [f"e/{name}/synth/shuffled"] and after(call, "-o")[0].startswith(f"e/{name}")
    assert [call[0] for call in of(calls, "report")] == ["e/seen", "e/unseen"]
    # Units of two tokenizers do not meet: what the other model said is encoded again.
    assert [after(call, "-o")[0] for call in of(calls, "speak")][2] == "e/seen/parallel"
    assert joined["e/seen/synth/parallel/manifest.jsonl"] == ["e/seen/parallel/manifest.jsonl"]
    again = [call for call in of(calls, "encode") if call[0] == "e/seen/synth/parallel/manifest.jsonl"]
    assert after(again[0], "-t") == ["e/tokenizer"] and after(again[0], "-o") == ["e/seen/synth/parallel/units.jsonl"]
    bundled = made("prompts/tts-ar", "tts=t", "exp=e", "beside=tts", "speak")
    assert after(of(bundled, "speak")[2], "-m") == ["tts"]


def test_by_mels_beside_it(made: Calls) -> None:  # noqa: F811
    calls = made("prompts/tts-mel", "tts=t", "exp=e", "fit.max_steps=7")
    assert {after(call, "-o")[0]: call[0] for call in of(calls, "mels.py")} == {
        f"e/mel/mels/{s}": f"t/exp/data/{s}.jsonl" for s in ("train", "dev")
    }
    (vocoder,), (acoustic,) = of(calls, "train_vocoder.py"), of(calls, "train_acoustic.py")
    assert {"out=e/mel/vocoder", "data.names=false", "train_units=e/mel/mels/train/units.jsonl"} <= set(vocoder)
    assert {"out=e/acoustic", "train_units=t/exp/units/train.jsonl", "train_mels=e/mel/mels/train"} <= set(acoustic)
    assert {"dev_manifest=t/exp/data/dev.jsonl", "voices_dev=t/exp/voices/dev.safetensors"} <= set(acoustic)
    assert "fit.max_steps=7" in acoustic and "fit.max_steps=7" not in vocoder
    spoken = {after(call, "-o")[0]: call for call in of(calls, "speak")}
    assert set(spoken) == {f"e/{s}/synth/{route}" for s in ("seen", "unseen") for route in ("direct", "mel")}
    for out, call in spoken.items():
        assert after(call, "-m") == ["t/exp/characters"] and ("--vocoder" in call) == out.endswith("mel")
    again = {after(call, "-o")[0]: after(call, "-m")[0] for call in of(calls, "vocode")}
    assert again["e/seen/synth/units"] == "t/exp/vocoder" and again["e/seen/synth/units-mel"] == "e/acoustic"
    assert [after(call, "--units")[0] for call in of(calls, "report")] == [
        f"t/exp/{s}/units/test.jsonl" for s in ("seen", "unseen")
    ]
    taken = made("prompts/tts-mel", "tts=t", "exp=e", "mel=m", "vocoder", "acoustic")
    assert not of(taken, "train_vocoder.py") and "train_mels=m/mels/train" in of(taken, "train_acoustic.py")[0]
    one = made("ljspeech/tts-mel", "exp=e")
    assert not any("voices" in word for call in one for word in call)
    assert {after(call, "-o")[0] for call in of(one, "speak")} == {"e/seen/synth/direct", "e/seen/synth/mel"}


def test_ljspeech_runs_the_same_stages_with_one_voice(made: Calls, tmp_path: Path) -> None:  # noqa: F811
    calls = made("ljspeech/tts", "exp=e")
    (prepared,) = of(calls, "prepare.py")
    assert (
        prepared == ["ljspeech", "c", "d"] and not of(calls, "speaker_vectors.py") and not of(calls, "train_speaker.py")
    )
    assert unmade(calls, SETS) == []
    (fit,), (tts,) = of(calls, "fit"), of(calls, "train_tts.py")
    assert (
        after(fit, "--features") == ["hubert-base"] and after(fit, "--layer") == ["6"] and after(fit, "-k") == ["320"]
    )
    assert not any("voices" in word or "speaker" in word for word in tts)
    assert [after(call, "-o")[0] for call in of(calls, "speak")] == ["e/seen/synth/characters"]
    assert not any("--voices" in call for call in calls)


def test_a_small_tree_of_ljspeech_is_learned_from(tmp_path: Path) -> None:
    """The corpus's shape, its texts and its recordings, through the corpus's parser to the recipe's own model."""
    root = tmp_path / "LJSpeech-1.1"
    names = [f"LJ001-{n:04d}" for n in range(30)]
    for name in names:
        audio.write(root / "wavs" / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(22050), 22050)
    (root / "metadata.csv").write_text("".join(f"{name}|Dr. A|doctor {name[-1:]} speaks.\n" for name in names))
    words = ["ljspeech", str(tmp_path), str(tmp_path / "d"), "dev=40", "test=20"]
    assert recipe_file("prepare").main(words) == 0
    rows = {split: list(read_manifest(tmp_path / "d" / f"{split}.jsonl")) for split in ("train", "dev")}
    assert rows["train"][0].text and rows["train"][0].text.startswith("doctor ") and rows["train"][0].lang == "en"
    from unitkit.units import UnitsHeader, write_units

    header, draw = UnitsHeader("5a5a5a5a5a5a", 50.0, 320, 2), np.random.default_rng(0)
    for split, some in rows.items():
        units = (header.units(draw.integers(0, 320, (50, 2)), row.id) for row in some)
        write_units(tmp_path / f"{split}.units", header, units)
    module = recipe_file("train_tts")
    given = [f"{split}_manifest={tmp_path}/d/{split}.jsonl" for split in rows]
    given += [f"{split}_units={tmp_path}/{split}.units" for split in rows]
    built = module.build(config.load(module.Config, EGS / "ljspeech/tts/conf/tts.yaml", given))
    found = built.model.config
    assert (found.n_units, found.codebooks, found.dim, found.blocks) == (320, 2, 256, "fft")
    assert built.train.collate([built.train[0, 0], built.train[0, 1]]).units.shape == (2, 50, 2)
    assert "d" in found.symbols and "." in found.symbols and found.condition_dim == 0


def test_configurations_fit_their_trainers() -> None:
    tts, vocoder, s2ut, acoustic = (recipe_file(f"train_{name}") for name in ("tts", "vocoder", "s2ut", "acoustic"))
    small = config.load(tts.Config, EGS / "prompts/tts/conf/tts.yaml")
    assert small.size == "small" and small.loss.bind_from < small.fit.max_steps
    paper = config.load(tts.Config, EGS / "ljspeech/tts/conf/tts.yaml")
    assert paper.size == "paper" and paper.loss.bind_warmup < paper.loss.bind_from
    wave = config.load(vocoder.Config, EGS / "prompts/tts/conf/vocoder.yaml")
    assert wave.model.core == "istft" and wave.model.durations and wave.loss.gan_start < wave.fit.max_steps
    assert config.load(vocoder.Config, EGS / "ljspeech/tts/conf/vocoder.yaml").model.core == "hifigan"
    small = config.load(acoustic.Config, EGS / "prompts/tts-mel/conf/acoustic.yaml")
    paper = config.load(acoustic.Config, EGS / "ljspeech/tts-mel/conf/acoustic.yaml")
    assert small.model.kind == "parallel" and small.model.mel == paper.model.mel == Mel()
    assert replace(paper.model, n_units=320, codebooks=2) == PARALLEL_PAPER
    for home in ("prompts", "ljspeech"):
        config.load(vocoder.Config, EGS / home / "tts-mel/conf/vocoder.yaml")
    assert config.load(s2ut.Config, EGS / "prompts/tts-ar/conf/t2u.yaml").model.source == "text"

"""The translation recipes call what they should, in an order in which everything is there, and their configs load."""

from pathlib import Path

import pytest
from recipe_calls import EGS, Run, after, of, recorder
from recipe_files import recipe as recipe_file

from unitkit import config

KEYS = {"_manifest", "_units", "_source", "_target"}


@pytest.fixture
def made(tmp_path: Path) -> Run:
    """Run a recipe that only writes down what it would call."""
    return recorder(tmp_path, f"data={tmp_path}/d", f"corpus={tmp_path}/c")


HELD = [f"d/{lang}/{split}.jsonl" for lang in ("en", "es", "fr", "it") for split in ("dev", "test")]


def test_prompts_become_parallel_speech(made) -> None:
    calls = made("prompts/parallel", "source=fr", "pairs=70")
    assert [call[2:] for call in of(calls, "prepare.py")] == [
        [f"d/{lang}", f"lang={lang}"] for lang in ("en", "es", "fr", "it")
    ]
    menus, prompts, dev = of(calls, "texts.py")
    assert after(menus, "--n")[0] == "70" and after(menus, "--part-words")[0] == "5" and menus[0] == "d/menus.jsonl"
    for call in (menus, prompts):
        assert [word.removeprefix("--forbid=") for word in call if word.startswith("--forbid")] == HELD
    assert after(prompts, "--prompts") == [f"d/{lang}/train.jsonl" for lang in ("en", "es", "fr", "it")]
    assert all("train" not in word for word in dev)
    spoken = {call[0]: call for call in of(calls, "manufacture.py")}
    assert set(spoken) == {f"d/made/{name}" for name in
        ("fr-prompts", "fr-menus", "en-af_heart-prompts", "en-af_heart-menus", "en-af_heart-dev")}  # fmt: skip
    for name, call in spoken.items():
        assert after(call, "--langs") == [name.removeprefix("d/made/")[:2]] and after(call, "--each") == ["1"]
        assert (after(call, "--voices") == ["af_heart"]) == name.startswith("d/made/en")


def test_what_is_paired(made) -> None:
    calls = made("prompts/parallel", "pair")
    pairs = {after(call, "-o")[0].removeprefix("d/es-en/"): call for call in of(calls, "pair.py")}
    assert set(pairs) == {"real", "made", "dev", "test", "voices.train", "voices.dev"}
    both = [f"d/made/en-af_heart-{kind}/manifest.jsonl" for kind in ("prompts", "menus")]
    assert after(pairs["real"], "--target") == ["d/en/train.jsonl", *both]
    assert after(pairs["made"], "--source") == [path.replace("en-af_heart", "es") for path in both]
    assert after(pairs["voices.train"], "--source") == ["d/en/train.jsonl", *both]
    assert after(pairs["voices.train"], "--target") == both
    for name, call in pairs.items():
        assert ("--forbid" in call) == (name in ("real", "made", "voices.train")), name
        if "--forbid" in call:
            assert after(call, "--forbid") == HELD
        else:  # a test set is never cut
            assert "--max-seconds" not in call
    assert after(pairs["test"], "--source") + after(pairs["test"], "--target") == ["d/es/test.jsonl", "d/en/test.jsonl"]
    assert of(calls, "join.py") == [
        [f"d/es-en/train.{side}.jsonl", f"d/es-en/real.{side}.jsonl", f"d/es-en/made.{side}.jsonl"]
        for side in ("source", "target")
    ]


def unmade(calls: list[list[str]], given: set[str]) -> list[str]:
    """Files that a call of a trainer or scorer reads and no call before it wrote."""
    have, lacking = set(given), []
    for call in calls:
        lacking += [
            path
            for word in call
            if any(word.partition("=")[0].endswith(key) for key in KEYS) and (path := word.partition("=")[2])
            if path not in have
        ]
        for option in ("-o", "--out"):
            if option in call:
                have.add(after(call, option)[0])
        have |= {word.removeprefix("out=") for word in call if word.startswith("out=")}
    return lacking


def test_every_system_is_trained_on_what_is_there(made) -> None:
    calls = made("prompts/s2st", "exp=e", "fit.max_steps=7", "baselines=copy random cascade t2u truth")
    sets = {f"d/es-en/{s}.{side}.jsonl" for s in ("train", "dev", "test", "voices.train", "voices.dev")
            for side in ("source", "target")}  # fmt: skip
    assert unmade(calls, sets) == []
    trained = {call[0].removeprefix("conf/").removesuffix(".yaml"): call[1:] for call in of(calls, "train_s2ut.py")}
    assert list(trained) == ["bart", "plain", "text", "ctc", "pretrained", "normalised", "t2u"]
    for name, call in trained.items():
        assert f"out=e/{name}" in call and ("fit.max_steps=7" in call) == (name not in ("bart", "t2u"))
        assert ("init=e/bart" in call) == (name in ("pretrained", "normalised"))
        assert f"train_units=e/units/train.{'normalised' if name == 'normalised' else 'target'}.jsonl" in call
    assert "train_source=e/units/train.target.jsonl" in trained["bart"]
    assert "dev_source=d/es-en/dev.target.jsonl" in trained["t2u"]  # its texts
    names = [after(call, "-o")[0] for call in of(calls, "translate")]
    systems = ["plain", "text", "ctc", "pretrained", "normalised"]
    assert names == [f"e/synth/{m}" for m in (*systems, "t2u", "truth")]
    assert {after(call, "--vocoder")[0] for call in of(calls, "translate")} == {"e/vocoder"}
    (score,) = of(calls, "score")
    judged = [*systems, "copy", "cascade", "t2u", "truth", "resynthesis"]
    assert score[: score.index("--control")] == [f"e/synth/{name}" for name in judged]
    (weak,) = of(calls, "weak.py")  # what Whisper heard, spoken by the synthesiser
    assert weak[0] == "d/es-en/test.source.jsonl" and after(weak, "--texts") == ["e/synth/whisper/manifest.jsonl"]
    (cascade,) = [call for call in of(calls, "pair.py") if after(call, "-o") == ["e/units/cascade/weak"]]
    assert "--forbid" not in cascade and after(cascade, "--target") == ["d/made/en-af_heart-weak-es-en/manifest.jsonl"]
    assert after(score, "--reference") == ["d/es-en/test.target.jsonl"] and after(score, "--min-words") == ["4"]
    assert [after(call, "-o")[0] for call in of(calls, "vocode")] == [
        f"e/synth/{name}" for name in ("resynthesis", "copy", "random")
    ]


def test_the_normaliser_and_the_unit_bart_are_made_only_for_those_who_use_them(made) -> None:
    calls = made("prompts/s2st", "exp=e", "systems=plain text")
    assert not of(calls, "train_ctc.py") and not of(calls, "normalise.py")
    assert [call[0] for call in of(calls, "train_s2ut.py")] == ["conf/plain.yaml", "conf/text.yaml"]
    calls = made("prompts/s2st", "exp=e", "normalise")
    (trained,) = of(calls, "train_ctc.py")
    assert {"train_manifest=d/es-en/voices.train.source.jsonl", "train_units=e/units/voices.train.target.jsonl",
            "dev_manifest=d/es-en/voices.dev.source.jsonl"} <= set(trained)  # fmt: skip
    assert [after(call, "-o")[0] for call in of(calls, "normalise.py")] == [
        f"e/units/{name}.normalised.jsonl" for name in ("train", "dev", "voices.dev")
    ]


@pytest.mark.parametrize("corpus", ["cvss", "fisher"])
def test_public_corpora_run_the_same_stages(made, corpus: str) -> None:
    calls = made(f"{corpus}/s2st", "exp=e")
    source = {"cvss": "fr", "fisher": "es"}[corpus]
    first, second = of(calls, "prepare.py")
    assert first[:4] == [corpus, "c", f"d/{source}", "side=source"] and second[2:4] == ["d/en", "side=target"]
    say = of(calls, "manufacture.py")
    assert not of(calls, "texts.py") and len(say) == (corpus == "fisher")
    if say:
        assert after(say[0], "--texts") == ["d/es/translations.jsonl"] and f"made={say[0][0]}" in second
    (fit,) = of(calls, "fit")
    assert (
        after(fit, "--features") == ["hubert-base"] and after(fit, "--layer") == ["6"] and after(fit, "-k") == ["100"]
    )
    assert {after(call, "-t")[0] for call in of(calls, "encode")} == {after(fit, "-o")[0]} == {"e/tokenizer"}
    assert not any("--forbid" in call for call in of(calls, "pair.py"))
    (trained,) = of(calls, "train_s2ut.py")
    assert trained[0] == "conf/paper.yaml"
    (score,) = of(calls, "score")
    assert score[:2] == ["e/synth/paper", "e/synth/resynthesis"]


def test_configurations_fit_their_trainers() -> None:
    vocoder, s2ut = recipe_file("train_vocoder"), recipe_file("train_s2ut")
    for path in sorted(EGS.glob("*/s2st/conf/vocoder.yaml")):
        assert config.load(vocoder.Config, path).model.durations, path  # reduced units need a predictor
    cvss = config.load(s2ut.Config, EGS / "cvss/s2st/conf/paper.yaml")
    assert (cvss.layer, cvss.model.dim, cvss.model.decoder_layers, cvss.model.encoder_layers) == (24, 512, 6, 0)
    assert (cvss.finetune.listener, cvss.finetune.freeze_steps) == ("all", 10000)
    fisher = config.load(s2ut.Config, EGS / "fisher/s2st/conf/paper.yaml")
    assert fisher.size == "paper" and fisher.optim.lr == 5e-4 and fisher.optim.schedule == "inverse_sqrt"
    assert fisher.fit.max_steps == 400_000 and fisher.fit.clip == 10

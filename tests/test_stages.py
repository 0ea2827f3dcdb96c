"""tools/stages.sh on a toy recipe, and every recipe of egs/ with programs that only write down how they were called."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from unitkit import config

ROOT = Path(__file__).resolve().parents[1]
TOY = f"""#!/usr/bin/env bash
# A toy recipe.
#   ./run.sh size=3
source {ROOT}/tools/stages.sh
variables size=10 lang=en name= -- "$@"
cd "$(dirname "$0")"
: "${{name:=$lang-$size}}"
first() {{ echo "first $name"; }}
second() {{ echo "second begins"; false; echo "second goes on"; }}
third() {{ echo "third" "${{overrides[@]}}"; }}
run_stages first ${{SECOND-}} third
"""
RESYNTH = ["prompts/resynth", "ljspeech/resynth", "vctk/resynth"]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy" / "run.sh"
    path.parent.mkdir()
    path.write_text(TOY)
    path.chmod(0o755)
    return path


def sh(
    script: Path, *words: str, code: int = 0, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [str(script), *words], capture_output=True, text=True, cwd=cwd, env=os.environ | env, timeout=60
    )
    assert run.returncode == code, run.stderr
    return run


def test_all_stages_run_in_order(toy: Path) -> None:
    run = sh(toy)
    assert run.stdout == "first en-10\nthird\n"
    assert "stage 1 of 2: first" in run.stderr and "stage 2 of 2: third" in run.stderr


@pytest.mark.parametrize(
    ("words", "ran"),
    [
        (["--stage", "third"], ["third"]),
        (["--stage=2"], ["third"]),
        (["--stop-stage", "first"], ["first"]),
        (["--stage", "1", "--stop-stage", "2"], ["first", "third"]),
        (["third"], ["third"]),
        (["third", "first"], ["first", "third"]),  # the recipe's order, not the command line's
        (["2"], ["third"]),
        (["--stage", "third", "first"], ["first"]),  # stages given by name win
    ],
)
def test_choosing_stages(toy: Path, words: list[str], ran: list[str]) -> None:
    assert [line.split()[0] for line in sh(toy, *words).stdout.splitlines()] == ran


def test_key_value_sets_declared_variables_and_passes_the_rest_on(toy: Path) -> None:
    run = sh(toy, "size=3", "optim.lr=1e-4", "lang=a=b c", "note=two words")
    assert run.stdout == "first a=b c-3\nthird optim.lr=1e-4 note=two words\n"
    assert sh(toy, "size=3", "name=own").stdout.startswith("first own\n")


def test_environment_does_not_leak_into_variables(toy: Path) -> None:
    assert sh(toy, "first", size="99", lang="xx").stdout == "first en-10\n"


def test_a_failing_stage_stops_the_run(toy: Path) -> None:
    run = sh(toy, code=1, SECOND="second")
    assert run.stdout == "first en-10\nsecond begins\n"  # neither the rest of the stage nor the next one
    assert "stage second failed" in run.stderr and "--stage second" in run.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["thirdd"], "no stage 'thirdd'; the stages are: first third"),
        (["3"], "no stage '3'"),
        (["--stage", "nine"], "no stage 'nine'"),
        (["--stage"], "no stage ''"),
        (["--stop_stage", "first"], "no flag '--stop_stage'"),
        (["--stage", "third", "--stop-stage", "first"], "--stage third comes after --stop-stage first"),
    ],
)
def test_mistakes_are_named_before_anything_runs(toy: Path, words: list[str], said: str) -> None:
    run = sh(toy, *words, code=2)
    assert said in run.stderr and not run.stdout
    assert "first" in run.stderr and "third" in run.stderr  # what there is


@pytest.mark.parametrize(("status", "goes_on"), [(0, True), (1, True), (2, False), (70, False)])
def test_skipped_bad_files_do_not_stop_a_recipe_but_errors_do(toy: Path, status: int, goes_on: bool) -> None:
    skipped = f"skipping bash -c 'exit {status}'"
    toy.write_text(TOY.replace("first() {", f"first() {{ {skipped};"))
    run = sh(toy, code=0 if goes_on else status)
    assert ("third" in run.stdout) == goes_on


def test_names_do_not_meet_those_of_the_library(tmp_path: Path) -> None:
    """Bash scopes are dynamic: a recipe's variable or a stage's loop counter could be a local of run_stages."""
    names = ["i", "name", "pair", "wanted", "all", "first", "last", "picked"]
    declared = " ".join(f"{name}={name.upper()}" for name in names)
    script = tmp_path / "run.sh"
    text = f'source {ROOT}/tools/stages.sh\nvariables {declared} -- "$@"\n'
    text += (
        "a() { echo " + " ".join(f"${name}" for name in names) + "; for i in 7 8; do all=$i last=0 first=9; done; }\n"
    )
    script.write_text(f"#!/usr/bin/env bash\n{text}b() {{ echo b; }}\nrun_stages a b\n")
    script.chmod(0o755)
    assert sh(script, "pair=x").stdout == "I NAME x WANTED ALL FIRST LAST PICKED\nb\n"
    assert all(f"  {name}={name.upper()}\n" in sh(script, "--help").stdout for name in names)


def test_help_shows_stages_and_variables(toy: Path) -> None:
    run = sh(Path("toy/run.sh"), "size=3", "--help", cwd=toy.parents[1])
    assert run.stdout.startswith("A toy recipe.\n  ./run.sh size=3\n\nusage:")
    assert "  1  first\n  2  third\n" in run.stdout and "  size=3\n  lang=en\n  name=en-3\n" in run.stdout
    assert "source" not in run.stdout


# ---------------------------------------------------------------------------------------------------- egs/


@pytest.fixture
def called(tmp_path: Path) -> dict[str, str]:
    """An environment in which `unitkit` and `python` append their arguments to a file, and do nothing else."""
    for name in ("unitkit", "python"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        line = 'for word in "${0##*/}" "$@"; do printf "%q " "$word"; done >> "$CALLS"; echo >> "$CALLS"'
        program.write_text(f"#!/usr/bin/env bash\n{line}\n")
        program.chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}


def calls(env: dict[str, str]) -> list[list[str]]:
    return [shlex.split(line) for line in Path(env["CALLS"]).read_text().splitlines()]


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


@pytest.mark.parametrize(
    "script", sorted((ROOT / "egs").glob("*/*/run.sh")), ids=lambda p: f"{p.parts[-3]}/{p.parts[-2]}"
)
def test_every_recipe_explains_itself(script: Path) -> None:
    assert os.access(script, os.X_OK)
    shown = sh(script, "--help").stdout
    assert re.search(r"stages:\n  1  \w+\n  2  \w+\n  3  \w+\n", shown) and "variables" in shown
    sh(script, "no-such-stage", code=2)


@pytest.mark.parametrize("recipe", RESYNTH)
def test_resynthesis_calls(recipe: str, called: dict[str, str]) -> None:
    sh(ROOT / "egs" / recipe / "run.sh", "lang=es", "units=50", "exp=exp/x", "fit.max_steps=7", **called)
    made = calls(called)
    assert [call[:2] for call in made if call[0] == "unitkit"] == [
        ["unitkit", verb] for verb in ["fit", *["encode"] * 3, *["vocode"] * 3, *["encode"] * 3, "score", "report"]
    ]
    prepare, fit, train = made[0], made[1], next(call for call in made if "train_vocoder" in call[1])
    assert prepare[1:3] == [f"{ROOT}/recipes/prepare.py", recipe.split("/")[0]]
    assert prepare[4:] == ["data/es"] + (["lang=es"] if recipe.startswith("prompts") else [])
    assert option(fit, "--units") == "50" and option(fit, "-o") == "exp/x/tokenizer"
    assert ("--layer" in fit) is (option(fit, "--features") != "mfcc")
    assert (
        train[-1] == "fit.max_steps=7"
        and "out=exp/x/vocoder" in train
        and not any(w.startswith("units=") for w in train)
    )
    assert (ROOT / "egs" / recipe / train[2]).is_file()
    vocode = [call for call in made if call[1] == "vocode"]
    assert [option(call, "-o") for call in vocode] == [
        f"exp/x/synth/{name}" for name in ("frames", "dedup", "shuffled")
    ]
    assert option(vocode[1], "--durations") == "predicted" and option(vocode[2], "--shuffle") == "0"
    score, report = made[-2:]
    assert score[2:4] == ["exp/x/synth/frames", "exp/x/synth/dedup"]
    assert option(score, "--control") == "exp/x/synth/shuffled" and option(score, "--lang") == "es"
    assert report[2] == "exp/x" and option(report, "-o") == "exp/x/report.html"


def test_minutes_end_every_training_of_a_recipe(called: dict[str, str]) -> None:
    """Whatever the trainer, and stronger than a key of its own; nothing else of the recipe hears of them."""
    script = ROOT / "egs" / "prompts" / "vc" / "run.sh"
    assert "minutes=2: the longest any training" in sh(script, "minutes=2", "--help").stdout
    stages = ["speaker", "converter", "vocoder", "finetune"]
    sh(script, *stages, "minutes=2", "fit.max_minutes=60", **called)
    made = calls(called)
    last = [call[-1] for call in made if Path(call[1]).name.startswith("train_")]
    assert last == ["fit.max_minutes=2"] * 4
    assert sum("fit.max_minutes=2" in call for call in made) == 4 and "fit.max_minutes=60" in made[1]


def test_experiments_have_names_of_their_own(called: dict[str, str]) -> None:
    script = ROOT / "egs" / "prompts" / "resynth" / "run.sh"
    choices = ["features=mfcc", "units=100 lang=es", "units=200", "features=/models/whisper layer=3", "codebooks=4"]
    choices += ["features=mfcc core=hifigan"]
    for words in choices:
        sh(script, "tokenizer", *words.split(), **called)
    made = calls(called)
    folders = [option(call, "-o") for call in made]
    assert len(set(folders)) == len(choices) and folders[0] == "exp/en-mfcc-k100-istft/tokenizer"
    assert folders[3] == "exp/en-whisper-l3-k100-istft/tokenizer" and option(made[3], "--layer") == "3"
    assert option(made[0], "--kind") == "plain" and option(made[4], "--kind") == "residual"


def test_a_finished_tokenizer_is_used_as_it_is(called: dict[str, str]) -> None:
    script = ROOT / "egs" / "prompts" / "resynth" / "run.sh"
    for words in ([], ["tokenizer=exp/own/tokenizer", "lang=es"]):
        sh(script, "tokenizer", "units", *words, **called)
    made = calls(called)
    assert [call[1] for call in made] == ["encode"] * 6
    assert [option(call, "-t") for call in made] == ["mini"] * 3 + ["exp/own/tokenizer"] * 3
    assert option(made[0], "-o") == "exp/en-mini-istft/units/train.jsonl"
    assert "features, layer and units" in sh(script, "tokenizer=mini", "units=50", code=2).stderr


def test_the_demo_needs_no_download(called: dict[str, str]) -> None:
    sh(ROOT / "egs" / "prompts" / "demo" / "run.sh", **called)
    made = calls(called)
    assert not any("prepare.py" in word for call in made for word in call)
    data = Path(made[0][2]).parent
    assert data == ROOT / "samples" / "en" and {"train.jsonl", "dev.jsonl", "test.jsonl"} <= set(os.listdir(data))
    train = next(call for call in made if "train_vocoder" in call[1])
    assert (ROOT / "egs" / "prompts" / "demo" / train[2]).is_file()
    assert made[-1][1] == "report" and "distillmos" not in option(made[-2], "--metrics")  # minutes, not seconds


def test_librispeech_calls(called: dict[str, str], tmp_path: Path) -> None:
    script, data = ROOT / "egs" / "librispeech" / "units" / "run.sh", tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        (data / f"{split}.jsonl").touch()
    sh(script, f"data={data}", f"exp={tmp_path / 'exp'}", "corpus=/corpora/LibriSpeech", **called)
    made = calls(called)
    assert [call[1] for call in made[1:]] == ["fit", *["encode"] * 3, *["info"] * 3, *["export"] * 3]
    assert option(made[1], "--layer") == "6" and option(made[-1], "--format") == "km"
    assert "no variable 'unitz'" in sh(script, "unitz=3", code=2).stderr


def test_configurations_fit_the_trainer() -> None:
    """Every conf/*.yaml is read by the recipe's own schema, so a key that does not exist is caught here."""
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        from train_vocoder import Config
    finally:
        sys.path.remove(str(ROOT / "recipes"))
    paths = sorted((ROOT / "egs").glob("*/resynth/conf/*.yaml")) + sorted((ROOT / "egs").glob("*/demo/conf/*.yaml"))
    assert len(paths) >= 5
    loaded = {path: config.load(Config, path) for path in paths}
    assert all(one.model.core in ("istft", "hifigan") for one in loaded.values())
    for corpus in ("ljspeech", "vctk"):
        paper = loaded[ROOT / "egs" / corpus / "resynth" / "conf" / "hifigan.yaml"]
        core = paper.model.hifigan
        assert (core.channels, core.kernels, core.dilations) == (512, (3, 7, 11), (1, 3, 5))
        assert paper.loss.gan and paper.judges.kinds == ("mpd", "msd") and paper.data.segment_frames * 320 == 8960


def test_pretraining_configurations_are_known() -> None:
    """Every conf/*.yaml fits the schema of its trainer and names an objective; every model of the recipe has one."""
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        from pretrain import Config
    finally:
        sys.path.pop(0)
    folder = ROOT / "egs" / "prompts" / "pretrain"
    loaded = {path.stem: config.load(Config, path) for path in sorted((folder / "conf").glob("*.yaml"))}
    named = re.search(r'models="([^"]+)"', (folder / "run.sh").read_text().partition("variables")[2])
    assert named and set(named[1].split()) == set(loaded)
    assert loaded["spidr"].settings.variant == "spidr" and loaded["gumbel"].settings.quantizer == "gumbel"
    assert {one.objective for one in loaded.values()} == {"hubert", "dinosr", "vq-wav2vec", "bert"}


def test_pretraining_calls(called: dict[str, str]) -> None:
    """Each objective is taught by what it needs, in an order in which that is there."""
    script = ROOT / "egs" / "prompts" / "pretrain" / "run.sh"
    sh(
        script,
        "--stage",
        "targets",
        "--stop-stage",
        "train",
        "data=d",
        "exp=e",
        "whisper=w",
        "fit.max_steps=5",
        **called,
    )
    made = calls(called)
    trained = [call for call in made if "pretrain.py" in call[1]]
    taught = {call[2].removeprefix("conf/"): [w for w in call if w.startswith("train_units=")] for call in trained}
    assert taught["distil.yaml"] == ["train_units=[e/whisper3/train.jsonl,e/whisper4/train.jsonl]"]
    assert taught["hubert1.yaml"] == ["train_units=[e/mfcc/train.jsonl]"]
    assert taught["hubert2.yaml"] == ["train_units=[e/hubert1-l4/train.jsonl]"]
    assert taught["dinosr.yaml"] == taught["vq.yaml"] == ["train_units=[]"]
    assert all(call[-1] == "fit.max_steps=5" for call in trained)
    fits = [option(call, "-o") for call in made if call[1] == "fit"]
    assert fits.index("e/mfcc/tokenizer") < fits.index("e/hubert1-l4/tokenizer")

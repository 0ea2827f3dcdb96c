"""The recognition recipes call what they should, in an order in which everything is there, and their configs load."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_calls import EGS, Run, after, of, recorder
from recipe_files import recipe as recipe_file

from unitkit import audio, config
from unitkit.metrics.rows import ScoreRow, write_scores
from unitkit.models.seq2seq import PAPER_ASR, Seq2Seq, Seq2SeqConfig
from unitkit.units import UnitsHeader, write_units


@pytest.fixture
def made(tmp_path: Path) -> Run:
    """Run a recipe that only writes down what it would call."""
    return recorder(tmp_path, f"data={tmp_path}/d", f"corpus={tmp_path}/c", f"exp={tmp_path}/e")


def settings(call: list[str]) -> dict[str, str]:
    """key=value words of a trainer's call."""
    return dict(word.split("=", 1) for word in call if "=" in word)


LANGS = ["en", "es", "fr", "it", "ru"]
SYSTEMS = ["logmel", "k100", "k100-frames", "k100-bpe", "k500", "k500-frames", "k500-bpe"]


def test_five_languages_in_one_model_a_system(made: Run) -> None:
    calls = made("prompts/asr", "made=m/a.jsonl m/b.jsonl", "copies=0", "fit.max_steps=7")
    assert of(calls, "prepare.py") == [["prompts", "c", "d/real", "lang=en,es,fr,it,ru"]]
    train, dev, test, *each = of(calls, "join.py")[:8]
    assert train[:4] == ["d/train.jsonl", "d/real/train.jsonl", "m/a.jsonl", "m/b.jsonl"]
    assert [train[i + 1] for i, word in enumerate(train) if word == "--lang"] == LANGS
    assert dev == ["d/dev.jsonl", "d/real/dev.jsonl"] and test == ["d/test.jsonl", "d/real/test.jsonl"]
    assert each == [[f"d/test-{lang}.jsonl", "d/test.jsonl", "--lang", lang] for lang in LANGS]
    assert not of(calls, "fit")
    encoded = {after(call, "-o")[0]: (call[0], after(call, "-t")[0]) for call in of(calls, "encode")}
    assert encoded == {
        f"e/units/{k}/{split}.jsonl": (f"d/{split}.jsonl", name)
        for k, name in (("k100", "mini-100"), ("k500", "mini"))
        for split in ("train", "dev", "test")
    }
    trained = {
        settings(call)["out"].removeprefix("e/"): (call[0], settings(call)) for call in of(calls, "train_asr.py")
    }
    assert list(trained) == SYSTEMS
    for name, (conf, said) in trained.items():
        assert said["train_manifest"] == "d/train.jsonl" and said["dev_manifest"] == "d/dev.jsonl"
        assert said["text.langs"] == "true" and said["fit.max_steps"] == "7"
        assert ("units.pieces" in said) == name.endswith("-bpe") and ("units.reduced" in said) == ("-frames" in name)
        if name == "logmel":
            assert conf == "conf/logmel.yaml" and "train_units" not in said and "tokenizer" not in said
        else:
            assert conf == "conf/units.yaml" and said["train_units"] in encoded and said["dev_units"] in encoded
            assert said["tokenizer"] == {"k100": "mini-100", "k500": "mini"}[name.partition("-")[0]]


def test_copies_are_joined_to_what_they_are_of(made: Run) -> None:
    calls = made("prompts/asr", "data", "copies=2", "made=m/a.jsonl", "langs=en")
    assert of(calls, "copies.py") == [["d/once.jsonl", "-o", "d/copies", "-n", "2"]]
    assert of(calls, "join.py")[:2] == [
        ["d/once.jsonl", "d/real/train.jsonl", "m/a.jsonl", "--lang", "en"],
        ["d/train.jsonl", "d/once.jsonl", "d/copies/manifest.jsonl"],
    ]


def test_all_is_written_down_and_scored_by_language(made: Run) -> None:
    stages = ("transcribe", "score", "table", "report")
    calls = made("prompts/asr", *stages, "systems=logmel k500-bpe", "langs=en ru", "beam=3")
    heard, read = of(calls, "transcribe")
    assert heard[0] == read[0] == "d/test.jsonl" and after(heard, "-m") == ["e/logmel"]
    assert after(read, "-o") == ["e/text/test/k500-bpe.jsonl"] and after(read, "--beam") == ["3"]
    assert "--longest" not in read  # as long as what the model learned from
    assert of(calls, "join.py") == [
        [f"e/text/test-{lang}/{name}.jsonl", f"e/text/test/{name}.jsonl", "--lang", lang]
        for name in ("logmel", "k500-bpe")
        for lang in ("en", "ru")
    ]
    scored = of(calls, "score")
    assert [after(call, "--split")[0] for call in scored] == ["test", "test-en", "test-ru"]
    for call in scored:
        split = after(call, "--split")[0]
        assert call[:2] == [f"e/text/{split}/{name}.jsonl" for name in ("logmel", "k500-bpe")]
        assert after(call, "--reference") == [f"d/{split}.jsonl"] and after(call, "-o") == ["e/scores.jsonl"]
    (table,) = of(calls, "asr_table.py")
    assert after(table, "--systems") == ["logmel", "k500-bpe"] and after(table, "--splits") == ["test"]
    (page,) = of(calls, "report")
    assert page[0] == "e" and after(page, "--reference") == ["d/test.jsonl"] and after(page, "-o") == ["e/test.html"]
    assert after(page, "--units") == ["e/units/k500/test.jsonl"]
    assert not of(made("prompts/asr", "report", "systems=logmel"), "report")  # a page shows units


def test_one_language_alone(made: Run) -> None:
    calls = made("prompts/asr", "langs=es", "systems=k100-frames")
    assert of(calls, "prepare.py")[-1] == ["prompts", "c", "d/real", "lang=es"]
    assert any("voices/data/made/train.jsonl" in word for word in of(calls, "join.py")[0])  # the voices' made speech
    (call,) = of(calls, "train_asr.py")
    assert "text.langs" not in settings(call) and settings(call)["model.unit_kernels"] == "[3]"
    assert [after(one, "--split")[0] for one in of(calls, "score")] == ["test"]
    assert all("text/test-" not in " ".join(one) for one in calls)


def test_librispeech_runs_the_same_stages(made: Run) -> None:
    calls = made("librispeech/asr")
    assert all(after(call, "--longest") == ["0"] for call in of(calls, "transcribe"))  # as the published numbers
    subsets = "subsets=train-clean-100,dev-clean,dev-other,test-clean,test-other"
    assert of(calls, "prepare.py") == [["librispeech", "c", "d/real", subsets]]
    (fit,) = of(calls, "fit")
    assert [after(fit, name)[0] for name in ("--features", "--layer", "-k")] == ["wavlm-large", "21", "2000"]
    assert after(fit, "-o") == ["e/k2000"]
    assert {after(call, "-t")[0] for call in of(calls, "encode")} == {"e/k2000"}
    (call,) = of(calls, "train_asr.py")
    said = settings(call)
    assert call[0] == "conf/units.yaml" and said["out"] == "e/k2000-bpe" and said["units.pieces"] == "6000"
    tests = ["dev", "dev-other", "test", "test-other"]
    assert [after(one, "--split")[0] for one in of(calls, "score")] == tests
    assert {after(one, "-o")[0] for one in of(calls, "transcribe")} == {f"e/text/{t}/k2000-bpe.jsonl" for t in tests}


def test_a_small_tree_of_librispeechs_shape_is_read(tmp_path: Path) -> None:
    """The splits that the recipe names are those that its reader makes."""
    names = ["train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"]
    for number, name in enumerate(names):
        folder = tmp_path / "LibriSpeech" / name / f"{number}" / "7"
        audio.write(folder / f"{number}-7-0001.flac", np.zeros(1600, np.float32), 16000)
        (folder / f"{number}-7.trans.txt").write_text(f"{number}-7-0001 HELLO WORLD {name.upper()}\n")
    done = recipe_file("prepare").main(
        ["librispeech", str(tmp_path), str(tmp_path / "d"), f"subsets={','.join(names)}"]
    )
    assert done == 0
    assert {path.stem for path in (tmp_path / "d").glob("*.jsonl")} == {
        "train",
        "dev",
        "dev-other",
        "test",
        "test-other",
    }
    module = recipe_file("train_asr")
    words = [f"{split}_manifest={tmp_path}/d/{split}.jsonl" for split in ("train", "dev")]
    (row,) = module.read_rows(config.load(module.Config, None, words), "train")
    assert row.text == "hello world train clean 100"


def test_configurations_fit_the_trainer() -> None:
    module = recipe_file("train_asr")
    for path in sorted(EGS.glob("*/asr/conf/*.yaml")):
        loaded = config.load(module.Config, path)
        assert bool(loaded.features) == (path.stem == "logmel"), path
        paths = {"train_manifest": "a", "dev_manifest": "b"}
        units = {} if loaded.features else {"train_units": "c", "dev_units": "d"}
        module.check(config.load(module.Config, path, [f"{k}={v}" for k, v in (paths | units).items()]))
    paper = config.load(module.Config, EGS / "librispeech/asr/conf/units.yaml")
    assert (paper.size, paper.text.size, paper.units.dropout, paper.units.reduced) == ("paper", 5000, 0.4, True)
    assert (paper.units.masks.times, paper.units.masks.share, paper.optim.warmup) == (10, 0.05, 15000)
    assert (PAPER_ASR.dim, PAPER_ASR.encoder_layers, PAPER_ASR.decoder_layers, PAPER_ASR.ctc) == (256, 12, 6, 0.3)


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = UnitsHeader("0123456789ab", 50.0, 16)
    (tmp_path / "units" / "k16").mkdir(parents=True)
    ids = np.repeat(np.arange(10), 5)
    write_units(tmp_path / "units" / "k16" / "test.jsonl", header, [header.units(ids, "a"), header.units(ids, "b")])
    base = Seq2SeqConfig(target="text", pieces=9, dim=16, encoder_layers=1, decoder_layers=1, hidden=16)
    torch.manual_seed(0)
    for name, more in (
        ("logmel", {"features": "logmel@100", "features_dim": 80}),
        ("k16", {"source": "units"}),
        ("k16-frames", {"source": "units", "source_reduced": False}),
    ):
        units = {"source_tokenizer": header.tokenizer, "source_units": 16, "source_rate_hz": 50.0}
        Seq2Seq(Seq2SeqConfig(**(config_of(base) | more | (units if "k16" in name else {})))).save(tmp_path / name)
    rows = [
        ScoreRow(name, split, metric, value, 2, f"{metric}|x", low=value - 1, high=value + 1)
        for name, value in (("logmel", 30.0), ("k16", 20.0))
        for split in ("test", "test-en")
        for metric in ("text_cer", "text_wer")
    ]
    write_scores(tmp_path / "scores.jsonl", rows)
    words = [tmp_path, "--systems", "logmel", "k16", "k16-frames", "-o", tmp_path / "table.md"]
    assert recipe_file("asr_table").main([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "| system | reads | a second | bit/s | test CER / WER % | test-en CER / WER % |"
    assert lines[2].startswith("| logmel | logmel@100, 80 numbers | – | – | 30.0 (29–31) / 30.0 (29–31) |")
    assert lines[3].startswith("| k16 | 16 runs of units | 10.0 | 40 | 20.0 (19–21)")
    assert lines[4] == "| k16-frames | 16 units, frame by frame | 50.0 | 200 | – / – | – / – |"
    assert "- `text_cer|x`" in lines
    assert recipe_file("asr_table").main([str(tmp_path), "--systems", "nothing"]) == 2


def config_of(base: Seq2SeqConfig) -> dict:
    """The fields of a config that are not at their defaults."""
    plain = Seq2SeqConfig()
    return {name: value for name, value in vars(base).items() if value != getattr(plain, name)}

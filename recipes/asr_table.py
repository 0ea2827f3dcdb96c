"""The table of a comparison of recognisers: what each reads, at which bitrate, and its error rates on every split.

Examples:
  python recipes/asr_table.py exp/en --systems logmel k100 k500-bpe --splits test -o exp/en/table.md

Models stand in EXP/<system>, units in EXP/units/<the system's name up to its first "->/<split>.jsonl, scores in
EXP/scores.jsonl; splits that begin with the name of one of --splits and a dash, such as test-es, are columns as well.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unitkit.config import load
from unitkit.manifest import atomic_text
from unitkit.metrics.rows import ScoreRow, read_scores
from unitkit.models.seq2seq import Seq2SeqConfig
from unitkit.models.unit_input import UnitInput
from unitkit.units import read_units

METRICS = ("text_cer", "text_wer")


def read_by(model: Path, units: Path) -> tuple[str, str, str]:
    """What a model reads, how many of them a second, and bits a second on the units of a split."""
    config = load(Seq2SeqConfig, model / "config.yaml")
    if config.source == "features":
        return f"{config.features}, {config.features_dim} numbers", "–", "–"
    reader = UnitInput.load(model, config.units_header(), reduced=config.source_reduced, bpe=config.source_bpe)
    a_second, bits = reader.rates(read_units(units, tokenizer=config.source_tokenizer))
    what = "runs of units" if reader.reduced else "units, frame by frame"
    what = f"pieces of {what}" if reader.bpe is not None else what
    return f"{reader.n_symbols} {what}", f"{a_second:.1f}", f"{bits:.0f}"


def table(exp: Path, systems: Sequence[str], *, splits: Sequence[str]) -> str:
    """The table as markdown, one row a system, CER / WER a column."""
    scores = {(row.system, row.split, row.metric): row for row in read_scores(exp / "scores.jsonl")}
    known = list(dict.fromkeys(split for _, split, _ in scores))
    columns = [name for name in known if any(name == one or name.startswith(f"{one}-") for one in splits)]
    head = ["system", "reads", "a second", "bit/s", *(f"{name} CER / WER %" for name in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for system in systems:
        reads = read_by(exp / system, exp / "units" / system.partition("-")[0] / f"{splits[0]}.jsonl")
        cells = [" / ".join(_shown(scores.get((system, name, metric))) for metric in METRICS) for name in columns]
        lines.append("| " + " | ".join([system, *reads, *cells]) + " |")
    signatures = dict.fromkeys(
        row.signature for row in scores.values() if row.metric in METRICS and row.value is not None
    )
    return "\n".join([*lines, "", *(f"- `{name}`" for name in signatures)]) + "\n"


def _shown(row: ScoreRow | None) -> str:
    """A score with its interval."""
    if row is None or row.value is None:
        return "–"
    return f"{row.value:.1f}" + ("" if row.low is None else f" ({row.low:.0f}–{row.high:.0f})")


def main(words: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path)
    parser.add_argument("--systems", nargs="+", required=True)
    parser.add_argument("--splits", nargs="+", default=["test"])
    parser.add_argument("-o", "--out", type=Path, help="where to write the table; it is printed as well")
    given = parser.parse_args(words)
    try:
        text = table(given.exp, given.systems, splits=given.splits)
    except (ValueError, OSError) as error:
        print(f"asr_table.py: {error}", file=sys.stderr)
        return 2
    if given.out:
        with atomic_text(given.out) as file:
            file.write(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

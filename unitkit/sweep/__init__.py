"""Sweeps: which encoder, which layer, how many units?  Fit, encode and score each, as few runs of an encoder as can be.

specs = parse_encoders(["mfcc", "whisper-base:2,4,6"])
rows = sweep(specs, [100, 500], SweepData(train, test, alignments), out="exp/sweep")
"""

from unitkit.sweep.cells import METRICS, Cell, SweepData, SweepOptions, SweepRow, plan, read_rows
from unitkit.sweep.run import sweep
from unitkit.sweep.specs import EncoderSpec, SweepError, labelled_files, parse_encoders, parse_units

__all__ = [
    "METRICS",
    "Cell",
    "EncoderSpec",
    "SweepData",
    "SweepError",
    "SweepOptions",
    "SweepRow",
    "labelled_files",
    "parse_encoders",
    "parse_units",
    "plan",
    "read_rows",
    "sweep",
]

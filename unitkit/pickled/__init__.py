"""Pickles of other programs read as data: nothing in the file is imported or called.

`read_pickled` takes plain pickles (protocols 0 to 5), joblib files (compressed or not), and torch files old and new.
Arrays and tensors become NumPy arrays over the mapped file, containers Python's own, and objects of classes known to
hold settings (scikit-learn, fairseq, OmegaConf, argparse) become `Record`s.  Any other name in the file is refused.
"""

from unitkit.pickled.files import read_pickled
from unitkit.pickled.machine import Name, PickledError, Record

__all__ = ["Name", "PickledError", "Record", "read_pickled"]

"""What every metric shares: results with confidence intervals, signatures, optional packages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

import numpy as np

# Stands in every signature; raise it whenever a change here changes a number.
METRICS_VERSION = "0.1"


class Unavailable(ValueError):
    """A metric that cannot be computed here; the message says why and how to change that."""


@dataclass(frozen=True)
class Measure:
    """One number over a test set: value, 95 % bootstrap interval, utterances counted, signature."""

    value: float
    low: float
    high: float
    n: int
    signature: str


def signature(name: str, parts: Mapping[str, str | int | float]) -> str:
    """`name|key:value|...|v:<metrics version>`, in the order given."""
    return "|".join([name, *(f"{key}:{value}" for key, value in parts.items()), f"v:{METRICS_VERSION}"])


def require(module: str, *, package: str) -> ModuleType:
    """The imported module, or Unavailable naming the pip command (missing) or the fault (installed but broken)."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name or module} is not installed; pip install {package}") from error
    except Exception as error:  # a compiled dependency that does not load raises OSError, RuntimeError, ...
        raise Unavailable(f"{module} is installed but fails to import ({type(error).__name__}: {error})") from error


def package_version(package: str) -> str:
    """Installed version of a distribution, for signatures."""
    return version(package)


def ratio(
    errors: Sequence[float], lengths: Sequence[float], *, name: str, scale: float = 1.0, power: float = 1.0
) -> Measure:
    """Corpus-level `scale * (sum errors / sum lengths) ** power`; the interval resamples utterances (seeded)."""
    top, bottom = np.asarray(errors, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if len(top) != len(bottom):
        raise ValueError(f"{name}: {len(top)} error counts but {len(bottom)} lengths")
    if bottom.sum() <= 0:
        raise Unavailable("nothing to count: the references are empty after normalisation, or nothing is voiced")
    value = scale * (top.sum() / bottom.sum()) ** power
    low, high = _interval(top, bottom)
    return Measure(float(value), float(scale * low**power), float(scale * high**power), len(top), name)


def mean(values: Sequence[float], *, name: str) -> Measure:
    """Mean over utterances with its bootstrap interval."""
    return ratio(values, [1.0] * len(values), name=name)


def spread(statistic: Callable[[np.ndarray], float], n: int, *, name: str, samples: int = 200) -> Measure:
    """A statistic of `n` utterances that is no ratio of sums; `statistic` takes their weights (n,).

    The interval is value ± 1.96 bootstrap standard deviations over utterances (seeded).  Percentiles would not do:
    purity and information of resampled frames, fewer of them distinct, lie above those of the frames themselves.
    """
    if n == 0:
        raise Unavailable("nothing to count: no utterances")
    value, generator = statistic(np.ones(n)), np.random.default_rng(0)
    draws = []
    for _ in range(samples):
        try:
            draws.append(statistic(generator.multinomial(n, np.full(n, 1 / n)).astype(np.float64)))
        except Unavailable:  # a draw may leave nothing to count
            continue
    half = 1.96 * float(np.std(draws)) if draws else 0.0
    return Measure(float(value), float(value - half), float(value + half), n, name)


def _interval(top: np.ndarray, bottom: np.ndarray, *, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of sum(top)/sum(bottom) over utterances drawn with replacement."""
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(top), size=len(top)) for _ in range(samples))
    sums = np.array([(top[picks].sum(), bottom[picks].sum()) for picks in draws])  # (samples, 2)
    sums = sums[sums[:, 1] > 0]
    ratios = sums[:, 0] / sums[:, 1]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)

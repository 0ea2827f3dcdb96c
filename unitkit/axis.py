"""Round numbers on an axis."""

import math


def round_ticks(low: float, high: float, count: int, *, cover: bool = False) -> list[float]:
    """Some `count` round numbers, the first at or below `low`, the last at or just below `high`.

    With `cover` the last is at or above `high`, and there are two at least.
    """
    rough = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1) if cover else math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]

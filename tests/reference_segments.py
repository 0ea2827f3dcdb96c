"""Slow and obvious versions of segments.py."""

import numpy as np


def price(costs: np.ndarray, units: np.ndarray, gamma: float) -> float:
    """Σ costs[t, unit_t] + gamma × segments."""
    segments = 1 + int((units[1:] != units[:-1]).sum()) if len(units) else 0
    return float(sum(costs[t, unit] for t, unit in enumerate(units)) + gamma * segments)


def least_price(costs: np.ndarray, gamma: float) -> float:
    """The least price over every way to cut into segments and name them: O(frames² × n_units), as dusted does it."""
    least = [0.0]
    for end in range(1, len(costs) + 1):
        ways = [least[start] + costs[start:end].sum(axis=0).min() + gamma for start in range(end)]
        least.append(float(min(ways)))
    return least[-1]


def dusted_price(costs: np.ndarray, gamma: float) -> float:
    """The least of dusted's own objective: Σ costs − gamma × (length − 1) for each segment."""
    least = [0.0]
    for end in range(1, len(costs) + 1):
        ways = [least[s] + costs[s:end].sum(axis=0).min() - gamma * (end - s - 1) for s in range(end)]
        least.append(float(min(ways)))
    return least[-1]

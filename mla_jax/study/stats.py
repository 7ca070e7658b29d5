"""Error bars over seeds and over stories.

Seeds: Student's t on differences paired by seed (equal seeds see the same batches in the same order). Stories: sign
flips of per-story differences, corrected for many comparisons by Holm (1979).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mla_jax.judge.statistics import sign_flip_p

POWER = 0.8  # of the smallest difference that could have been seen


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its 95 % interval (nan below two) and the smallest difference from zero that a
    study of this size and scatter finds four times out of five. values: what it is the mean of, where that is known."""

    mean: float
    low: float
    high: float
    n: int
    detectable: float
    values: tuple[float, ...] = ()


def estimate(values: Sequence[float]) -> Estimate:
    """Student's t interval of `values`."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, math.nan)
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if n == 1 or not np.isfinite(array).all():
        return Estimate(mean, math.nan, math.nan, n, math.nan, tuple(values))
    error = float(array.std(ddof=1)) / math.sqrt(n)
    half = t_quantile(0.975, n - 1) * error
    smallest = half + t_quantile(POWER, n - 1) * error
    return Estimate(mean, mean - half, mean + half, n, smallest, tuple(values))


def t_quantile(p: float, df: int) -> float:
    """The p-quantile (p >= 0.5) of Student's t with df degrees of freedom, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + _two_sided(middle, df)) / 2 < p else (low, middle)
    return (low + high) / 2


def _two_sided(t: float, df: int) -> float:
    """P(|T| < t), exactly (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    square = math.cos(angle) ** 2
    term, total = (math.cos(angle), 0.0) if df % 2 else (1.0, 0.0)
    for k in range(3 if df % 2 else 2, df + 1, 2):
        total += term
        term *= square * (k - 1) / k
    if df % 2:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def story_p(differences: np.ndarray) -> float:
    """Two-sided p that per-story differences [n] have a mean of 0, by sign flips."""
    return min(1.0, 2 * min(sign_flip_p(differences), sign_flip_p(-differences)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), in the order given: below 0.05 the whole family is wrong at most once in 20."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted

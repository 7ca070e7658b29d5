"""Error bars for scores. Everything is resampled by prompt: stories on one prompt are not independent."""

import dataclasses

import numpy as np

_CELLS = 2_000_000  # resampling weights held at a time: 16 MB
MIN_USABLE = 0.995  # share of resamples with any spread, below which bootstrap-t is not to be trusted


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; low and high are nan below two values. `n`: values (prompts) it rests
    on.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap_intervals(values: np.ndarray, resamples: int, seed: int = 0) -> list[Interval]:
    """Means of the columns of `values` [n, k] with 95 % intervals.

    The studentised bootstrap (bootstrap-t; Efron & Tibshirani 1993, ch. 12): the plain percentile interval
    is too narrow at the 20 to 100 prompts of a usual study. A column that never varies has an interval of
    no width.
    """
    n, k = values.shape
    if n == 0:
        return [Interval(float("nan"), float("nan"), float("nan"), 0)] * k
    mean = values.mean(0)
    if n == 1:
        return [Interval(float(m), float("nan"), float("nan"), 1) for m in mean]
    centred = values - mean
    error = centred.std(0, ddof=1) / np.sqrt(n)
    drawn = np.concatenate([_resample(w, centred) for w in _weights(n, resamples, seed)])
    result = []
    for column in range(k):
        means, errors = drawn[:, column], drawn[:, k + column]
        usable = errors > 1e-10
        if error[column] < 1e-10:
            low = high = mean[column]
        elif usable.mean() < MIN_USABLE:
            low, high = mean[column] + np.quantile(means, [0.025, 0.975])
        else:
            below, above = np.quantile(means[usable] / errors[usable], [0.025, 0.975])
            low, high = mean[column] - above * error[column], mean[column] - below * error[column]
        result.append(Interval(float(mean[column]), float(low), float(high), n))
    return result


def _weights(n: int, resamples: int, seed: int):
    """Blocks [b, n] of how often each value is drawn in a resample, in all `resamples` rows."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _resample(weights: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """[b, 2k]: means and their standard errors in resamples given by weights [b, n]."""
    n = centred.shape[0]
    mean = weights @ centred / n
    variance = np.maximum(weights @ centred**2 / n - mean**2, 0) * n / (n - 1)
    return np.concatenate([mean, np.sqrt(variance / n)], axis=1)


def sign_flip_p(differences: np.ndarray, resamples: int = 20_000, seed: int = 0) -> float:
    """One-sided p that paired differences [n] have a mean of 0 or less, by flipping their signs at random.

    Never 0: (hits + 1) / (resamples + 1). 1 for no differences at all.
    """
    n = len(differences)
    if n == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    observed = differences.sum() - 1e-9
    block, hits = max(1, _CELLS // n), 0
    for start in range(0, resamples, block):
        signs = rng.integers(0, 2, (min(block, resamples - start), n)) * 2 - 1
        hits += int((signs @ differences >= observed).sum())
    return (hits + 1) / (resamples + 1)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; nan when there are fewer than three pairs or one side never varies."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a judge agrees with itself on `n` stories judged twice: share of equal grades, share within one
    point, mean distance in points, rank correlation of the overall scores."""

    n: int
    equal: float
    within_one: float
    distance: float
    rank_correlation: float


def agreement(first: np.ndarray, second: np.ndarray) -> Agreement:
    """`first`, `second`: grades [n, k] of the same stories, in the same order."""
    if not len(first):
        return Agreement(0, float("nan"), float("nan"), float("nan"), float("nan"))
    distance = np.abs(first - second)
    return Agreement(
        n=len(first),
        equal=float((distance == 0).mean()),
        within_one=float((distance <= 1).mean()),
        distance=float(distance.mean()),
        rank_correlation=spearman(first.mean(1), second.mean(1)),
    )

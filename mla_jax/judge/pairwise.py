"""Comparisons of two stories at a time: win rates, Bradley-Terry ratings, and the judge's liking for a
position.

Every pair is judged in both orders. The ratings follow Bradley & Terry (1952) with Davidson's (1970) ties
and an order term as in Davidson & Beaver (1977): for stories i (shown first) and j,

    P(first) : P(second) : P(tie)  =  e^(r_i - r_j + g) : e^-(r_i - r_j + g) : e^t        (halved exponents)

so that a judge's bias `g` for the first place is estimated beside the ratings instead of blurring them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mla_jax.judge.statistics import Interval, bootstrap_intervals

_PRIOR = 1e-2  # ridge on the ratings: keeps a run that won every comparison at a finite rating
OUTCOMES = {"first": 0, "second": 1, "tie": 2}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One judgement: run numbers of the story shown first and second, and the index of the prompt."""

    first: int
    second: int
    prompt: int
    winner: str


@dataclasses.dataclass(frozen=True)
class Ratings:
    """`rating`: one interval for each run, in logits, mean 0 over runs; `order_bias`: the log-odds
    advantage of the first place; `first_share`: how often the first place won, ties left out."""

    rating: list[Interval]
    order_bias: Interval
    first_share: float
    ties: float
    n: int


def win_rate(comparisons: Sequence[Comparison], a: int, b: int, resamples: int, seed: int = 0) -> Interval:
    """Share of prompts that run `a` wins against `b`, a tie counting half; `n` is the number of prompts.

    Only prompts with a verdict in both orders count (of every two stories on it): so a judge that always
    prefers one place gives exactly one half.
    """
    points: dict[int, tuple[list[float], list[float]]] = {}
    for c in comparisons:
        if {c.first, c.second} == {a, b}:
            won = {"tie": 0.5, "first": float(c.first == a), "second": float(c.second == a)}[c.winner]
            points.setdefault(c.prompt, ([], []))[int(c.first == b)].append(won)
    both = [(np.mean(p[0]) + np.mean(p[1])) / 2 for p in points.values() if p[0] and p[1]]
    interval = bootstrap_intervals(np.array(both).reshape(-1, 1), resamples, seed)[0]
    return dataclasses.replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))


def bradley_terry(comparisons: Sequence[Comparison], n_runs: int, resamples: int, seed: int = 0) -> Ratings:
    """Ratings of `n_runs` runs with 95 % intervals; n = number of comparisons.

    The intervals resample prompts, not comparisons (those on one prompt are not independent): each prompt's
    influence on the fit is its share of the score function through the inverse Hessian (one Newton step),
    and the studentised bootstrap runs over these. Where every prompt says the same (one run wins all), nothing but the
    prior keeps a rating finite: it has no interval (nan).
    """
    nan = Interval(float("nan"), float("nan"), float("nan"), 0)
    if not comparisons:
        return Ratings([nan] * n_runs, nan, float("nan"), float("nan"), 0)
    index = {p: i for i, p in enumerate(sorted({c.prompt for c in comparisons}))}
    counts = np.zeros((len(index), n_runs, n_runs, 3))
    for c in comparisons:
        counts[index[c.prompt], c.first, c.second, OUTCOMES[c.winner]] += 1
    total = counts.sum(0)
    best, influence = _fit(total, counts)
    # Centred: the prior's pull, which no prompt has a share in, leaves influences that do not add up to 0.
    intervals = bootstrap_intervals(best + len(index) * (influence - influence.mean(0)), resamples, seed)
    intervals = [dataclasses.replace(i, low=nan.low, high=nan.high) if i.low == i.high else i for i in intervals]
    firsts, seconds, ties = (float(total[..., k].sum()) for k in range(3))
    return Ratings(
        rating=intervals[:n_runs],
        order_bias=intervals[n_runs],
        first_share=firsts / (firsts + seconds) if firsts + seconds else float("nan"),
        ties=ties / (firsts + seconds + ties),
        n=len(comparisons),
    )


def _fit(total: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method on the log-likelihood of `total` [n, n, 3], the sum of `counts` [prompts, n, n, 3].

    Returns:
      parameters [n + 2] (ratings of mean 0, then g, then t) and each prompt's influence on them [prompts,
      n + 2].
    """
    n = total.shape[0]
    i, j = np.nonzero(total.sum(-1))
    seen = total[i, j]
    # derivative of the three log-weights by the parameters
    design = np.zeros((len(i), 3, n + 2))
    rows = np.arange(len(i))
    for outcome, sign in ((0, 0.5), (1, -0.5)):
        design[rows, outcome, i] = sign
        design[rows, outcome, j] = -sign
        design[:, outcome, n] = sign
    design[:, 2, n + 1] = 1.0
    x = np.zeros(n + 2)
    played = seen.sum(1)
    for _ in range(100):
        logits = design @ x
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = np.einsum("mo,mop->p", seen - played[:, None] * p, design) - _PRIOR * x
        mean = np.einsum("mo,mop->mp", p, design)
        second = np.einsum("m,mo,mop,moq->pq", played, p, design, design)
        hessian = second - np.einsum("m,mp,mq->pq", played, mean, mean) + _PRIOR * np.eye(n + 2)
        step = np.linalg.solve(hessian, gradient)
        x += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    own = counts[:, i, j]
    score = np.einsum("cmo,mop->cp", own - own.sum(-1, keepdims=True) * p, design)
    influence = np.linalg.solve(hessian, score.T).T
    for values in (x, influence):
        values[..., :n] -= values[..., :n].mean(-1, keepdims=True)
    return x, influence

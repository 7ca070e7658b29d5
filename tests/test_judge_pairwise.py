import math

import numpy as np
import pytest

from mla_jax.judge.pairwise import Comparison, bradley_terry, win_rate

STUDIES = 500
TIE = 0.3


def simulate(seed, prompts, gap, bias, runs=2):
    """Verdicts of a judge with a known liking for the first place, both orders of every pair on every
    prompt.
    """
    rng = np.random.default_rng(seed)
    verdicts = []
    for a in range(runs):
        for b in range(runs):
            if a != b:
                logit = gap * (b - a) + bias  # run 0 is the best
                weights = np.exp([logit / 2, -logit / 2, TIE])
                drawn = rng.choice(["first", "second", "tie"], prompts, p=weights / weights.sum())
                verdicts += [Comparison(a, b, p, w) for p, w in enumerate(drawn)]
    return verdicts


def points(logit):
    """Expected points of the story shown first."""
    w = np.exp([logit / 2, -logit / 2, TIE])
    return (w[0] + w[2] / 2) / w.sum()


def covered(interval, truth):
    return interval.low <= truth <= interval.high


def test_both_orders_remove_the_order_bias():
    """Equal runs and a judge that likes the first place: half the points each, whichever was shown first."""
    hits = naive = 0
    for study in range(STUDIES):
        verdicts = simulate(study, 60, gap=0.0, bias=1.0)
        hits += covered(win_rate(verdicts, 0, 1, 500, study), 0.5)
        # the same from one order only
        won = [{"first": 1.0, "tie": 0.5, "second": 0.0}[c.winner] for c in verdicts if c.first == 0]
        error = np.std(won, ddof=1) / np.sqrt(len(won))
        naive += abs(np.mean(won) - 0.5) < 1.96 * error
    assert 0.93 <= hits / STUDIES <= 0.97
    assert naive / STUDIES < 0.5


def test_win_rates_cover_their_truth_and_ratings_are_unbiased():
    truth = (points(0.8 + 1.0) + 1 - points(-0.8 + 1.0)) / 2
    hits, gaps, biases = 0, [], []
    for study in range(STUDIES):
        verdicts = simulate(study, 60, gap=0.8, bias=1.0)
        hits += covered(win_rate(verdicts, 0, 1, 500, study), truth)
        if study < 100:
            fitted = bradley_terry(verdicts, 2, resamples=2)
            gaps.append(fitted.rating[0].mean - fitted.rating[1].mean)
            biases.append(fitted.order_bias.mean)
    assert 0.93 <= hits / STUDIES <= 0.97
    assert np.mean(gaps) == pytest.approx(0.8, abs=0.08) and np.mean(biases) == pytest.approx(1.0, abs=0.08)


def test_rating_intervals_cover_the_truth_for_three_runs():
    truth = [0.5, 0.0, -0.5, 0.7]
    hits = np.zeros(4)
    for study in range(STUDIES):
        fitted = bradley_terry(simulate(study, 40, gap=0.5, bias=0.7, runs=3), 3, resamples=500, seed=study)
        found = [*fitted.rating, fitted.order_bias]
        hits += [covered(interval, t) for interval, t in zip(found, truth, strict=True)]
    assert np.all((hits / STUDIES >= 0.93) & (hits / STUDIES <= 0.97)), hits / STUDIES


def test_a_judge_that_only_looks_at_the_place():
    verdicts = [Comparison(a, 1 - a, p, "first") for p in range(30) for a in (0, 1)]
    rate, fitted = win_rate(verdicts, 0, 1, 400), bradley_terry(verdicts, 2, 50)
    assert rate.mean == rate.low == rate.high == 0.5
    assert fitted.first_share == 1 and fitted.order_bias.mean > 3 and abs(fitted.rating[0].mean) < 1e-6


def test_a_run_that_always_wins_has_a_finite_rating():
    verdicts = [Comparison(a, 1 - a, p, "first" if a == 0 else "second") for p in range(30) for a in (0, 1)]
    fitted = bradley_terry(verdicts, 2, 50)
    assert win_rate(verdicts, 0, 1, 400).mean == 1
    assert 2 < fitted.rating[0].mean < 20 and fitted.rating[0].mean == -fitted.rating[1].mean
    assert all(math.isnan(end) for r in fitted.rating for end in (r.low, r.high))  # the prior alone bounds it
    nearly = [*verdicts[:-1], Comparison(1, 0, 29, "first")]
    for r in bradley_terry(nearly, 2, 500).rating:
        assert r.low < r.mean < r.high


def test_prompts_with_one_order_only_do_not_count():
    one = [Comparison(0, 1, p, "first") for p in range(5)]
    assert win_rate(one, 0, 1, 400).n == 0
    assert win_rate([*one, Comparison(1, 0, 2, "tie")], 0, 1, 400).n == 1
    assert bradley_terry([], 2, 50).n == 0

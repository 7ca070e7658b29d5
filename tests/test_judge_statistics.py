import numpy as np
import pytest
import scipy.stats

from mla_jax.judge.statistics import (
    agreement,
    bootstrap_intervals,
    ranks,
    sign_flip_p,
    spearman,
)

STUDIES = 500


def judge_scores(rng, n, noise=1.0, bias=0.7):
    """A judge of known noise and bias: grades [n, 2] of two runs on n prompts whose hidden qualities
    differ by 0.5.
    """
    quality = 6 + 1.2 * rng.standard_normal(n) - rng.exponential(1, n)
    pair = np.stack([quality, quality - 0.5 + 0.5 * rng.standard_normal(n)], axis=1)
    return np.clip(np.rint(pair + bias + noise * rng.standard_normal(pair.shape)), 1, 10)


@pytest.mark.parametrize("n", [30, 100])
def test_intervals_cover_the_truth_in_93_to_97_percent_of_studies(n):
    many = judge_scores(np.random.default_rng(1), 1_000_000)
    truth = [many[:, 0].mean(), (many[:, 0] - many[:, 1]).mean()]
    hits = np.zeros(2)
    for study in range(STUDIES):
        scores = judge_scores(np.random.default_rng([n, study]), n)
        columns = np.column_stack([scores[:, 0], scores[:, 0] - scores[:, 1]])
        for k, i in enumerate(bootstrap_intervals(columns, 1000, study)):
            hits[k] += i.low <= truth[k] <= i.high
    assert np.all((hits / STUDIES >= 0.93) & (hits / STUDIES <= 0.97)), hits / STUDIES


def test_a_bias_common_to_both_runs_leaves_their_difference_alone():
    plain, biased = (judge_scores(np.random.default_rng(5), 4000, bias=b) for b in (0.0, 0.9))
    plain, biased = plain[:, 0] - plain[:, 1], biased[:, 0] - biased[:, 1]
    assert abs(plain.mean() - 0.5) < 0.06 and abs(biased.mean() - 0.5) < 0.06


def test_intervals_of_next_to_nothing():
    assert bootstrap_intervals(np.zeros((0, 2)), 200)[1].n == 0
    one = bootstrap_intervals(np.full((1, 1), 4.0), 200)[0]
    assert one.mean == 4 and np.isnan(one.low)
    same = bootstrap_intervals(np.full((9, 1), 4.0), 200)[0]
    assert (same.low, same.mean, same.high) == (4, 4, 4)
    # one value that differs: studentising breaks down, the interval must not
    nearly = bootstrap_intervals(np.array([[7.0]] * 37 + [[8.0]]), 1000)[0]
    assert 7 <= nearly.low <= nearly.mean <= nearly.high < 7.2


def test_intervals_agree_with_scipy_and_repeat():
    values = np.random.default_rng(0).normal(5, 2, (200, 1))
    ours = bootstrap_intervals(values, 4000)[0]
    theirs = scipy.stats.bootstrap((values[:, 0],), np.mean, n_resamples=4000, rng=0).confidence_interval
    assert abs(ours.low - theirs.low) < 0.05 and abs(ours.high - theirs.high) < 0.05
    assert ours == bootstrap_intervals(values, 4000)[0] != bootstrap_intervals(values, 4000, seed=1)[0]


def test_sign_flips_agree_with_scipy_and_never_say_zero():
    d = np.random.default_rng(0).normal(0.3, 1, 40)
    theirs = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", alternative="greater", n_resamples=20_000, rng=0
    ).pvalue
    assert abs(sign_flip_p(d) - theirs) < 0.01
    assert sign_flip_p(np.ones(30)) == pytest.approx(1 / 20_001)
    assert sign_flip_p(np.zeros(30)) == 1 and sign_flip_p(np.zeros(0)) == 1


def test_no_difference_is_called_one_as_often_as_promised():
    rng = np.random.default_rng(0)
    p = np.array([sign_flip_p(rng.integers(-3, 4, 40) * 1.0, 1000) for _ in range(400)])
    assert 0.02 <= (p < 0.05).mean() <= 0.08


def test_ranks_and_spearman_agree_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 60), rng.normal(size=60)
    np.testing.assert_array_equal(ranks(a), scipy.stats.rankdata(a))
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(5), np.arange(5)))


def test_agreement():
    a = agreement(np.array([[1, 2], [5, 5], [9, 9]]), np.array([[1, 3], [5, 8], [9, 9]]))
    assert (a.n, a.equal, a.rank_correlation) == (3, 4 / 6, 1.0)
    assert a.within_one == pytest.approx(5 / 6) and a.distance == pytest.approx(4 / 6)
    assert agreement(np.zeros((0, 2)), np.zeros((0, 2))).n == 0

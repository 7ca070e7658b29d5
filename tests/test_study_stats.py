"""study.stats, results: intervals, pairs of equal seeds, and which rows count."""

import math

import numpy as np
import pytest
from study_rows import by_name, done, study

from mla_jax.study import stats, tables
from mla_jax.study.results import collect, relative

T_TABLE = [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 4, 2.77645), (0.8, 2, 1.06066), (0.8, 9, 0.883404)]


@pytest.mark.parametrize(("p", "df", "t"), T_TABLE)
def test_quantiles_are_those_of_the_tables(p: float, df: int, t: float) -> None:
    assert stats.t_quantile(p, df) == pytest.approx(t, rel=1e-5)


def test_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    found = [stats.estimate(rng.normal(1.0, 0.3, 3)) for _ in range(2000)]
    assert 0.935 < np.mean([e.low <= 1.0 <= e.high for e in found]) < 0.965
    one = stats.estimate([2.0])
    assert one.mean == 2 and math.isnan(one.low) and math.isnan(one.detectable) and stats.estimate([]).n == 0


def test_the_smallest_difference_is_seen_about_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    size = stats.estimate([-0.5, 0.5, 0.0, 0.7, -0.7]).detectable / np.std([-0.5, 0.5, 0.0, 0.7, -0.7], ddof=1)
    found = [stats.estimate(rng.normal(size, 1.0, 5)) for _ in range(2000)]
    assert 0.72 < np.mean([e.low > 0 for e in found]) < 0.92


def test_holm_is_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0] and stats.holm([]) == []


def test_equal_seeds_are_paired() -> None:
    made = study(rates=())
    found = collect(made, done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}, noise=0.2)))
    values = relative(found.find("per_head_rope_r2"), found.find("mha"))
    assert values == pytest.approx([5.0, 5.0, 5.0])  # the seeds' scatter of 20 % is in both and falls out
    assert found.find("mha").over_seeds(lambda r: r["metrics"]["best_valid_loss"]).high > 3


def test_rows_of_other_data_are_left_out_and_counted() -> None:
    made = study(rates=())
    rows = done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}))
    next(r for r in rows.by_key.values() if r["name"] == "s_mha")["data_fingerprint"] = "0" * 64
    found = collect(made, rows)
    assert found.other_data == 1 and found.find("s_mha") is None and found.to_do == 1
    assert "1 rows of the same configs on other data" in tables.about(found)

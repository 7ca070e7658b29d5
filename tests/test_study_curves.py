"""mla_jax.study.curves: where curves reach a loss."""

import math

from mla_jax.study.curves import lowest, steps_to

CURVE = [(10, 5.0), (20, 4.0), (30, 4.0), (40, 3.0), (50, 3.5)]


def test_a_loss_is_reached_between_evaluations_in_a_straight_line() -> None:
    assert steps_to(CURVE, 4.5) == 15
    assert steps_to(CURVE, 4.0) == 20
    assert steps_to(CURVE, 3.25) == 37.5
    assert steps_to(CURVE, 6.0) == 10  # before its first evaluation: no earlier step is known
    assert steps_to(CURVE, 2.9) == math.inf


def test_the_best_loss_need_not_be_the_last() -> None:
    assert lowest(CURVE) == 3.0

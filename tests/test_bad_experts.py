"""What is not a number among experts: bad steps and their metrics, biases of checkpoints; and a report's window."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint import data_at, folder, keep, restore, state_at  # noqa: F401
from tiny import tiny_config

from mla_jax.restore import check_numbers
from mla_jax.runs import RunFolder
from mla_jax.train import expert_report
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.pending import Pending


def metrics(finite: bool) -> dict:
    number = 1.0 if finite else np.nan
    load = jnp.asarray([[1.0, 2.0, 3.0]]) if finite else jnp.asarray([[6.0, 0.0, 0.0]])
    return {
        "loss": jnp.float32(number),
        "finite": jnp.float32(finite),
        "expert_load": load,
        "router_entropy": jnp.asarray([number], jnp.float32),
        "router_loss": jnp.float32(number),
    }


def test_a_skipped_step_is_none_of_the_experts(folder: RunFolder) -> None:  # noqa: F811
    with Checkpoints(folder, keep()) as checkpoints:
        config = tiny_config("moe_mla_rope", **{"train.on_nonfinite": "skip"})
        pending = Pending(config.train, checkpoints)
        for step, finite in enumerate((True, False, True), 1):
            pending.add(step, metrics(finite))
        pending.drain(0)
    assert pending.skipped == 1
    found = pending.experts.eval_values(np.zeros((1, 3)))
    assert found["steps"] == 2 and found["entropy"] == [1.0]
    np.testing.assert_allclose(found["load"], [[0.5, 1.0, 1.5]])


def test_a_checkpoint_whose_bias_is_no_number_is_damaged(folder: RunFolder) -> None:  # noqa: F811
    good, bad = state_at(1, router_bias=True), state_at(2, router_bias=True)
    bad = dataclasses.replace(bad, router_bias=bad.router_bias.at[1, 2].set(jnp.nan))
    with Checkpoints(folder, keep()) as checkpoints:
        checkpoints.save(good, data_at(1), None)
        checkpoints.save(bad, data_at(2), None)
    state, _ = restore(folder, keep(), router_bias=True)
    assert int(state.step) == 1 and folder.steps() == [1]
    with pytest.raises(ValueError, match="its router_bias is not a number"):
        check_numbers(bad.router_bias)
    check_numbers(good.router_bias.at[0, 0].set(-jnp.inf))  # masks an expert
    check_numbers(None)


def test_a_window_without_steps_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert expert_report.main(["anywhere", "--window=0"]) == 2
    assert "--window is 0; a mean needs one step" in capsys.readouterr().err

"""Experts in steps that were skipped, and the window of their report."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from mla_jax.errors import run_command
from mla_jax.train import expert_report
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


def test_a_skipped_step_is_none_of_the_experts() -> None:
    config = tiny_config("moe_mla_rope", **{"train.on_nonfinite": "skip"})
    pending = Pending(config.train, SimpleNamespace(latest=None))
    for step, finite in enumerate((True, False, True), 1):
        pending.add(step, metrics(finite))
    pending.drain(0)
    assert pending.skipped == 1
    found = pending.experts.eval_values(np.zeros((1, 3)))
    assert found["steps"] == 2 and found["entropy"] == [1.0]
    np.testing.assert_allclose(found["load"], [[0.5, 1.0, 1.5]])


def test_a_window_without_steps_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert run_command(expert_report.main, ["anywhere", "--window=0"]) == 2
    assert "--window is 0; a mean needs one step" in capsys.readouterr().err

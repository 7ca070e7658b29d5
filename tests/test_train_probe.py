"""mla_jax.kernels.train_probe: every kernel passes its check in interpret mode, and a wrong one does not."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100

from mla_jax.kernels import train_probe
from mla_jax.model import backend

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


@pytest.mark.parametrize("name", list(train_probe.CHECKS))
def test_every_kernel_passes(name: str) -> None:
    assert float(jax.jit(lambda: train_probe.CHECKS[name](True))()) <= train_probe.TOLERANCE


def test_all_of_them_are_one_program_on_a_gpu() -> None:
    program = lower_for_h100(lambda: [check(False) for check in train_probe.CHECKS.values()])
    assert program.count(TRITON_CALL) >= 13  # one each way; the loss twice


def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    @jax.custom_vjp
    def wrong(x: jax.Array, bias: jax.Array) -> jax.Array:
        return train_probe.functions.bias_gelu(x, bias.astype(x.dtype))

    wrong.defvjp(lambda x, bias: (wrong(x, bias), (x, bias)), lambda kept, g: (1.1 * g, jnp.zeros_like(kept[1])))
    monkeypatch.setattr(train_probe.gelu, "bias_gelu", lambda x, bias, _: wrong(x, bias))
    assert float(train_probe.check_gelu(True)) > train_probe.TOLERANCE


@pytest.mark.parametrize("outcome", [0.0, 0.5, float("nan"), RuntimeError("no such instruction")])
def test_what_it_says_decides(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    def check(_: bool) -> jax.Array:
        if isinstance(outcome, Exception):
            raise outcome
        return jnp.float32(outcome)

    monkeypatch.setattr(train_probe, "CHECKS", {"norm": check})
    train_probe.obstacle.cache_clear()
    found = train_probe.obstacle()
    train_probe.obstacle.cache_clear()
    if isinstance(outcome, Exception):
        assert "does not run here (no such instruction)" in found
    else:
        assert found == "" if outcome == 0.0 else "norm is wrong here" in found


def test_the_backend_goes_without_kernels_that_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_probe, "obstacle", lambda: "the training kernel norm is wrong here (error 0.5)")
    assert backend.tried_train_impl("auto") == ("xla", "the training kernel norm is wrong here (error 0.5)")
    monkeypatch.setattr(train_probe, "obstacle", lambda: "")
    assert backend.tried_train_impl("auto") == ("pallas", "")
    assert backend.tried_train_impl("pallas") == ("pallas", "")

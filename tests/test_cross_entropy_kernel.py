"""mla_jax.kernels.cross_entropy: loss and gradients of the plain twins, in interpret mode, and lowering for a GPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import REFERENCE, quick, quick_jit, random_params, random_tokens, reference_model, tiny_config

from mla_jax.config import Config
from mla_jax.kernels.cross_entropy import Plan, choose, cross_entropy_and_gradient
from mla_jax.model.transformer import Transformer
from mla_jax.train.loss import Kernel, chunked_cross_entropy, cross_entropy_reference, fused_cross_entropy
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import init_state
from mla_jax.train.step import make_train_step

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

ROWS, LENGTH, WIDTH = 2, 4, 16

# vocabulary, tokens in it, plan
HELD = [
    pytest.param(64, 64, None, id="power of two"),
    pytest.param(80, 80, Plan(128, 1, rows=4), id="not one, four rows a program"),
    pytest.param(80, 70, Plan(128, 1, rows=3), id="surplus rows, and rows that do not divide"),
]
LONG = [
    pytest.param(64, 64, Plan(16, 1), id="whole pieces"),
    pytest.param(75, 75, Plan(16, 1, keep=True), id="a piece that is not whole"),
    pytest.param(80, 70, Plan(16, 1), id="surplus in the last piece"),
    pytest.param(80, 33, Plan(16, 1), id="surplus of pieces"),
    pytest.param(80, 9, Plan(16, 1), id="fewer tokens than a piece"),
]


def arrays(vocab: int, n_tokens: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    x, table = rng.standard_normal((ROWS, LENGTH, WIDTH)), rng.standard_normal((vocab, WIDTH))
    targets = rng.integers(0, n_tokens, (ROWS, LENGTH))
    targets[0, :2] = 0, n_tokens - 1
    weights = rng.standard_normal((ROWS, LENGTH)) * rng.integers(0, 2, (ROWS, LENGTH))
    assert (weights == 0).any() and (weights != 0).any()
    return (
        jnp.asarray(x, dtype),
        jnp.asarray(table, jnp.float32),
        jnp.asarray(targets),
        jnp.asarray(weights, jnp.float32),
    )


def both(function: Any, x: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array) -> Any:
    """Value and gradients by all that has any, of a multiple of the function: the cotangent is not 1."""

    def scaled(x: jax.Array, table: jax.Array, weights: jax.Array) -> jax.Array:
        return 0.7 * function(x, table, targets, weights)

    return quick_jit(jax.value_and_grad(scaled, (0, 1, 2)))(x, table, weights)


def plain(n_tokens: int) -> Any:
    def function(x: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        logits = jnp.einsum("btd,vd->btv", x.astype(jnp.float32), table)
        return jnp.sum(weights * cross_entropy_reference(logits, targets, n_tokens))

    return function


def assert_close(found: Any, wanted: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(("vocab", "n_tokens", "plan"), HELD + LONG)
def test_value_and_gradients_are_those_of_the_plain_twin(vocab: int, n_tokens: int, plan: Plan | None) -> None:
    given = arrays(vocab, n_tokens)
    found = both(lambda *a: fused_cross_entropy(*a, n_tokens, Kernel(True, plan=plan)), *given)
    assert_close(found, both(plain(n_tokens), *given), 1e-5)
    np.testing.assert_array_equal(found[1][1][n_tokens:], 0)  # surplus rows


@pytest.mark.parametrize("plan", [None, Plan(16, 1)])
def test_bfloat16_is_rounded_only_at_the_logits_and_their_gradient(plan: Plan | None) -> None:
    given = arrays(80, 70, jnp.bfloat16)
    found = both(lambda *a: fused_cross_entropy(*a, 70, Kernel(True, plan=plan)), *given)
    assert_close(found, both(plain(70), *given), 2e-2)
    assert [leaf.dtype for leaf in found[1]] == [jnp.bfloat16, jnp.float32, jnp.float32]


@pytest.mark.parametrize("plan", [None, Plan(16, 1)])
def test_large_logits_keep_their_small_differences(plan: Plan | None) -> None:
    _, _, targets, weights = arrays(75, 75)
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((ROWS, LENGTH, 75)) + 3e4, jnp.float32)
    kernel = quick_jit(lambda logits: cross_entropy_and_gradient(logits, targets, weights, 75, True, plan)[0])
    assert_close(kernel(logits), cross_entropy_reference(logits - 3e4, targets, 75), 1e-5)
    broken = kernel(logits.at[0, 0, 5].set(jnp.nan))
    assert np.isnan(broken[0, 0]) and np.isfinite(broken[1:]).all()  # and hide nothing


def test_without_a_gradient_none_is_computed_and_parts_use_the_kernel_too() -> None:
    given = arrays(64, 64)
    wanted = both(plain(64), *given)
    assert_close(both(lambda *a: chunked_cross_entropy(*a, 64, 2, Kernel(True)), *given), wanted, 1e-5)
    alone = jax.make_jaxpr(lambda *a: fused_cross_entropy(*a, 64, Kernel(True)))(*given)
    assert str(alone).count("dot_general") == 1 and "pallas_call" not in str(alone)
    assert_close(0.7 * fused_cross_entropy(*given, 64, Kernel(True)), wanted[0], 1e-5)


def test_the_longest_rows_that_a_program_holds() -> None:
    assert choose(2048) == Plan(2048, 4) and choose(8192) == Plan(2048, 4) and choose(40) == Plan(64, 1)
    assert choose(50_304) == Plan(8192, 16)


@pytest.mark.parametrize(
    ("vocab", "n_tokens"), [(2048, 2000), (8192, 8192), (8192, 8000), (50_304, 50_304), (50_304, 50_257)]
)
def test_it_lowers_for_a_gpu_in_place(vocab: int, n_tokens: int) -> None:
    rows = 128, 512  # 6.6 GB of 50,304 logits: places are counted in 64 bits
    x, table = jax.ShapeDtypeStruct((*rows, 64), jnp.bfloat16), jax.ShapeDtypeStruct((vocab, 64), jnp.float32)
    targets, weights = (jax.ShapeDtypeStruct(rows, dtype) for dtype in (jnp.int32, jnp.float32))

    def gradients(*given: jax.Array) -> Any:
        return jax.grad(lambda *a: fused_cross_entropy(*a, n_tokens, Kernel(False)), (0, 1))(*given)

    program = lower_for_h100(gradients, x, table, targets, weights)
    assert program.count(TRITON_CALL) == 1
    assert "output_operand_alias" in program
    assert f"x{vocab}xbf16>" in program and f"x{vocab}xf32>" not in program  # no float32 logits


@pytest.fixture(scope="module")
def config() -> Config:
    small = {"model.n_layers": 1, "optim.warmup_steps": 0, "optim.eps": 1e-3}  # eps: Adam blows up no small gradients
    return tiny_config("mha_rope", **small)


def train_step(config: Config, impl: str) -> tuple[Any, tuple[Any, Any]]:
    """The step, and its arguments: a batch with padding."""
    model = Transformer(config.model, dataclasses.replace(REFERENCE, train_impl=impl, interpret=True))
    optimizer, tokens = make_optimizer(config.optim), random_tokens(config, 8, 17)
    state = init_state(model, optimizer, random_params(reference_model(config)))
    batch = {"tokens": tokens, "segment_ids": jnp.ones_like(tokens).at[3:, 9:].set(0)}
    return make_train_step(model, optimizer, config), (state, batch)


def test_a_train_step_is_the_same_with_it(config: Config) -> None:
    after = []
    for impl in ("pallas", "xla"):
        step, given = train_step(config, impl)
        state, metrics = quick(step, *given)(*given)
        after.append((state.params, metrics["loss"], metrics["grad_norm"]))
    assert_close(*after, 1e-5)


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("impl", ["pallas", "xla"])
def test_a_train_step_has_it_where_asked(config: Config, impl: str, chunks: int) -> None:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, loss_chunks=chunks))
    step, given = train_step(config, impl)
    assert ("name=cross_entropy" in str(step.trace(*given).jaxpr)) == (impl == "pallas")

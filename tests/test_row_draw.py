"""mla_jax.kernels.row_draw: it draws what plain XLA draws, wherever it runs, and lowers for a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draw_tools import KERNEL, METHODS, N_TOKENS, draw_with, random_logits, with_ties
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import QUICK, REFERENCE

from mla_jax.kernels import row_draw
from mla_jax.model.backend import Backend
from mla_jax.sample.methods import GREEDY, Method, Values, draw

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

_OFTEN = (
    Method(1.0, 0),
    Method(3.0, 7),
    Method(0.8, 0, top_p=0.9),
    Method(0.8, 0, min_p=0.05),
    Method(0.9, 30, 0.9, 0.02, 1.2),
)


def _draw_both(logits: jax.Array, method: Method, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, seeds] by the kernel and by plain XLA, with the same keys."""
    seen = jnp.asarray(np.random.default_rng(2).random(logits.shape) < 0.3)

    def ids(backend: Backend, values: Values, seed: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), logits.shape[0])
        return draw(logits, keys, method.form, values, N_TOKENS, seen, backend)

    found = []
    for backend in (KERNEL, REFERENCE):
        run = jax.jit(jax.vmap(functools.partial(ids, backend), in_axes=(None, 0), out_axes=1), compiler_options=QUICK)
        found.append(np.asarray(run(method.values, jnp.arange(seeds))))
    return found[0], found[1]


@pytest.mark.parametrize(
    "method", [m if m in _OFTEN else pytest.param(m, marks=pytest.mark.slow) for m in METHODS], ids=str
)
def test_the_kernel_draws_what_plain_xla_draws(method: Method) -> None:
    for logits in (random_logits(3, jnp.bfloat16), random_logits(2, jnp.float32), with_ties(2)):
        fast, plain = _draw_both(logits, method, 40)
        np.testing.assert_array_equal(fast, plain)


@pytest.mark.parametrize("top_k", [1, 2, N_TOKENS - 1, N_TOKENS, 1000])
def test_the_kernel_keeps_as_many_tokens_as_are_asked_for(top_k: int) -> None:
    """Down to the least likely one, which chance would hardly ever choose: here it comes first, and the number is 0."""
    logits = jnp.concatenate([jnp.sort(random_logits(3, jnp.float32)[:, :N_TOKENS]), jnp.ones((3, 4))], axis=1)
    assert draw_with([0] * 3, logits, Method(1.0, top_k), KERNEL).tolist() == [max(0, N_TOKENS - top_k)] * 3


@pytest.mark.parametrize("method", [*METHODS, GREEDY], ids=str)
def test_every_draw_but_the_greedy_is_the_kernels_where_it_runs(method: Method) -> None:
    def kernels(backend: Backend | None, vocab: int) -> int:
        logits, keys = jnp.zeros((1, vocab)), jax.random.key(0)[None]
        seen = jnp.zeros((1, vocab), bool)
        run = jax.make_jaxpr(lambda x: draw(x, keys, method.form, method.values, 9, seen, backend))
        return str(run(logits)).count("pallas_call")

    assert kernels(KERNEL, 9) == (method != GREEDY)
    assert kernels(KERNEL, row_draw.MAX_VOCAB + 1) == kernels(REFERENCE, 9) == kernels(None, 9) == 0


@pytest.mark.parametrize(("vocab", "dtype"), [(8192, jnp.bfloat16), (50, jnp.float32), (32000, jnp.bfloat16)])
def test_the_kernel_lowers_for_a_gpu(vocab: int, dtype: jnp.dtype) -> None:
    def like(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    arguments = (like(4, vocab, dtype=dtype), like(4), like(), like(dtype=jnp.int32), like(), like())
    for cuts in ((True, True, True), (False, False, False)):
        text = lower_for_h100(lambda *a, cuts=cuts: row_draw.row_draw(*a, cuts, vocab - 1), *arguments)
        assert text.count(TRITON_CALL) == 1
    assert not row_draw.applies(50304)

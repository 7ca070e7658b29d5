"""Top-k, top-p, min-p and the draw in one launch: one program a row, the vocabulary in its registers (Pallas, Triton).

The same search as sample/threshold.py, a bit at a time: 16 passes over bfloat16 logits that never leave the
multiprocessor, where XLA launches a kernel or two for each pass.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import ordered
from mla_jax.model.functions import MASKED

MAX_VOCAB = 2**15  # what registers hold: 32 numbers a thread of the largest program


def applies(vocab: int) -> bool:
    """Whether rows of so many logits fit."""
    return vocab <= MAX_VOCAB


def row_draw(
    logits: jax.Array,
    uniform: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    cuts: tuple[bool, bool, bool],
    n_tokens: int,
    interpret: bool = False,
) -> jax.Array:
    """The first id at which the cumulative weights of what is kept are above uniform * their total -> ids [B] int32.

    logits [B, V] bfloat16 or float32, penalised, ids from n_tokens on masked by a large negative number; uniform [B]
    float32 in [0, 1); temperature, top_p, min_p [] float32; top_k [] int32; cuts: whether top-k, top-p, min-p apply.
    The plain twins are `sample.methods.kept_weights` and `invert`.
    """
    batch, vocab = logits.shape
    size = pl.next_power_of_2(vocab)
    return kernel_call(
        functools.partial(_program, cuts=cuts, n_tokens=n_tokens, size=size),
        out_shape=jax.ShapeDtypeStruct((batch,), jnp.int32),
        grid=(batch,),
        compiler_params=plgpu.CompilerParams(num_warps=max(1, min(32, size // 1024)), num_stages=1),
        interpret=interpret,
        name="row_draw",
    )(logits, uniform, *(number.reshape(1) for number in (temperature, top_k, top_p, min_p)))


def _program(
    logits: Any,
    uniform: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    out: Any,
    *,
    cuts: tuple[bool, bool, bool],
    n_tokens: int,
    size: int,
) -> None:
    by_top_k, by_top_p, by_min_p = cuts
    row = pl.program_id(0)
    index = jnp.arange(size)
    inside = index < n_tokens
    here = pl.ds(row * 0, size)
    x = plgpu.load(logits.at[row, here], mask=inside, other=jnp.asarray(MASKED, logits.dtype))
    keys, bits = _keys(x)
    x = x.astype(jnp.float32)
    scaled = (x - jnp.max(x)) / temperature[0]
    weights = jnp.where(inside, jnp.exp(scaled), 0.0)
    if by_top_k:
        count = jnp.minimum(top_k[0], n_tokens)
        least = _search(keys, bits, lambda keep: jnp.sum(keep.astype(jnp.int32)) >= count)
        weights = jnp.where(keys >= least, weights, 0.0)
    if by_top_p:
        target = top_p[0] * jnp.sum(weights)
        least = _search(keys, bits, lambda keep: jnp.sum(jnp.where(keep, weights, 0.0)) >= target)
        weights = jnp.where(keys >= least, weights, 0.0)
    if by_min_p:
        weights = jnp.where(scaled >= jnp.log(min_p[0]), weights, 0.0)
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights), 0.0)
    above = cumulative > uniform[row] * jnp.max(cumulative)
    out[row] = jnp.min(jnp.where(above, index, n_tokens - 1)).astype(jnp.int32)


def _keys(x: jax.Array) -> tuple[jax.Array, int]:
    """int32 keys in the order of x, and how many bits they use, sign included; 0.0 and -0.0 are equal."""
    bits = 8 * x.dtype.itemsize
    return ordered(x.astype(jnp.float32)) >> (32 - bits), bits  # bfloat16 is the upper half of float32


def _search(keys: jax.Array, bits: int, enough: Any) -> jax.Array:
    """The largest threshold for which `keys >= threshold` is enough; the smallest key there is where nothing is."""

    def fix_bit(turn: jax.Array, found: jax.Array) -> jax.Array:
        tested = found + (jnp.int32(1) << (bits - 1 - turn))
        return jnp.where(enough(keys >= tested), tested, found)

    smallest = jnp.int32(-(2 ** (bits - 1)))
    return jax.lax.fori_loop(0, bits, fix_bit, smallest)

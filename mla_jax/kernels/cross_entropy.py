"""Cross-entropy and its gradient in one pass over the logits (Pallas, Triton).

XLA reads the logits for their maximum, again for the sum of exponentials, and a third time for the gradient that it
writes to an array of its own. Here a program reads a row once and writes its gradient over it, as Liger's
(arXiv 2410.10989). A row that does not fit in registers is read twice; the second time the cache should have it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import padded
from mla_jax.model.functions import MASKED

_LOG2_E = math.log2(math.e)


class Plan(NamedTuple):
    """How the programs go over the logits; launch/loss_tuning.py times plans.

    block: a power of two; a program holds whole rows where it is at least the vocabulary's size, else goes over one row
    in pieces of this size, twice. rows: of a program that holds whole ones (fewer if they do not divide the logits').
    keep: pieces are read with a hint to the cache that they are read again, and then that they are not.
    """

    block: int
    warps: int
    rows: int = 1
    keep: bool = False


# [65536, 8192] in bfloat16 on an H200 (launch/loss_tuning.py): pieces of 2,048 by 4 warps take 0.674 ms, whole rows
# 0.840, XLA's three passes 1.255. [65536, 50304]: the same pieces 5.04 ms, 8,192 by 16 warps 4.72, XLA 7.82. There the
# second reading finds little in the cache (100 KB a row); fewer rows at a time did not help (a trial, not kept).
_HELD = 2048  # the longest row that a program holds
_NUMBERS = 512  # of a held row for each warp: 16 a thread
_LONG = Plan(2048, 4)
_LONGEST = 16_384  # from here on the cache does not hold the rows that are under way
_LARGE = Plan(8192, 16)


def choose(vocab: int) -> Plan:
    """The plan for rows of `vocab` logits."""
    columns = pl.next_power_of_2(vocab)
    if columns <= _HELD:
        return Plan(columns, max(1, columns // _NUMBERS))
    return _LONG if columns <= _LONGEST else _LARGE


def cross_entropy_and_gradient(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    n_tokens: int,
    interpret: bool = False,
    plan: Plan | None = None,
) -> tuple[jax.Array, jax.Array]:
    """nll = -log softmax(logits)[target] in nats, float32 [...], and weight * d nll / d logits in the logits' dtype.

    logits [..., vocab] of any float dtype, overwritten where nobody else needs them; targets [...] int, below n_tokens;
    weights [...] float32. Columns from `n_tokens` on get no probability. In float32 inside. The plain twins are
    train/loss.py's `_forward` and `_backward`.
    """
    shape, vocab = targets.shape, logits.shape[-1]
    plan = plan or choose(vocab)
    n_rows = targets.size
    held = plan.block >= vocab
    rows = plan.rows if held and n_rows % plan.rows == 0 else 1
    program = functools.partial(_held_program, rows=rows) if held else functools.partial(_long_program, keep=plan.keep)
    d_logits, nll = kernel_call(
        functools.partial(program, block=plan.block, vocab=vocab, n_tokens=min(n_tokens, vocab)),
        out_shape=(
            jax.ShapeDtypeStruct((n_rows, vocab), logits.dtype),
            jax.ShapeDtypeStruct((n_rows,), jnp.float32),
        ),
        grid=(n_rows // rows,),
        input_output_aliases={0: 0},
        compiler_params=plgpu.CompilerParams(num_warps=plan.warps, num_stages=1),
        interpret=interpret,
        name="cross_entropy",
    )(logits.reshape(n_rows, vocab), targets.reshape(n_rows), weights.reshape(n_rows).astype(jnp.float32))
    return nll.reshape(shape), d_logits.reshape(logits.shape)


def _held_program(
    logits_ref: Any,
    targets_ref: Any,
    weights_ref: Any,
    d_logits_ref: Any,
    nll_ref: Any,
    *,
    rows: int,
    block: int,
    vocab: int,
    n_tokens: int,
) -> None:
    """logits_ref and d_logits_ref are one array: every read of the rows stands before the sums, every write after."""
    here = pl.ds(pl.program_id(0) * rows, rows)
    column = jnp.broadcast_to(jnp.arange(block)[None, :], (rows, block))
    target, weight = plgpu.load(targets_ref.at[here]), plgpu.load(weights_ref.at[here])
    logits = _load(logits_ref.at[here, padded(block, vocab)], column, None if n_tokens == block else n_tokens)
    logits = logits - jnp.max(logits, axis=1, keepdims=True)
    exp = _exp(logits)
    exp_sum = jnp.sum(exp, axis=1)
    is_target = column == target[:, None]
    # In this order, as in the plain twin: the difference of large logits is exact.
    chosen = jnp.sum(jnp.where(is_target, logits, 0.0), axis=1)
    plgpu.store(nll_ref.at[here], jnp.log(exp_sum) - chosen)
    d_logits = exp * (weight / exp_sum)[:, None] - jnp.where(is_target, weight[:, None], 0.0)
    _store(d_logits_ref.at[here, padded(block, vocab)], d_logits, column, None if vocab == block else vocab)


def _long_program(
    logits_ref: Any,
    targets_ref: Any,
    weights_ref: Any,
    d_logits_ref: Any,
    nll_ref: Any,
    *,
    block: int,
    vocab: int,
    n_tokens: int,
    keep: bool,
) -> None:
    """Two passes over a row, by pieces of `block` columns: its sum of exponentials, then its gradient.

    logits_ref and d_logits_ref are one array: the chosen logit is read before the row's sums, so before a write.
    """
    row = pl.program_id(0)
    target, weight = plgpu.load(targets_ref.at[row]), plgpu.load(weights_ref.at[row])
    chosen = plgpu.load(logits_ref.at[row, target]).astype(jnp.float32)
    sizes = _Sizes(block, vocab, n_tokens)
    hints = ("evict_last", "evict_first") if keep else (None, None)
    largest, exp_sum = _sum_pass(logits_ref, row, sizes, hints[0])
    plgpu.store(nll_ref.at[row], largest - chosen + jnp.log(exp_sum))
    scale = weight / exp_sum

    def gradient(logits: jax.Array, first: Any, column: jax.Array) -> jax.Array:
        return _exp(logits - largest) * scale - jnp.where(column == target - first, weight, 0.0)

    _gradient_pass(gradient, logits_ref, d_logits_ref, row, sizes, hints[1])


class _Sizes(NamedTuple):
    """block: columns of a piece; vocab: columns of a row, of which the first n_tokens are tokens."""

    block: int
    vocab: int
    n_tokens: int

    @property
    def whole(self) -> int:
        """How many pieces hold nothing but tokens: they need no mask."""
        return self.n_tokens // self.block


def _sum_pass(logits_ref: Any, row: jax.Array, sizes: _Sizes, hint: str | None) -> tuple[jax.Array, jax.Array]:
    """The largest logit of a row, and the sum of exp(logit - largest) over its tokens: [] float32."""
    block, n_tokens, whole = sizes.block, sizes.n_tokens, sizes.whole

    def add(index: jax.Array, carry: tuple, size: int, filled: Any) -> tuple[jax.Array, jax.Array]:
        """One maximum for the piece, but a sum for each of its columns, to be summed at the end."""
        largest, exp_sums = carry
        logits = _load(logits_ref.at[row, pl.ds(index * block, size)], jnp.arange(size), filled, hint)
        larger = jnp.maximum(largest, jnp.max(logits))
        return larger, exp_sums * _exp(largest - larger) + _exp(logits - larger)

    def add_last(index: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
        rest = n_tokens - whole * block
        size = pl.next_power_of_2(rest)
        largest, exp_sum = carry
        larger, exp_sums = add(index, (largest, jnp.zeros((size,), jnp.float32)), size, rest)
        return larger, exp_sum * _exp(largest - larger) + jnp.sum(exp_sums)

    begin = (jnp.float32(MASKED), jnp.zeros((block,), jnp.float32))
    largest, exp_sums = _loop(0, whole, lambda index, carry: add(index, carry, block, None), begin)
    return _loop(whole, pl.cdiv(n_tokens, block), add_last, (largest, jnp.sum(exp_sums)))


def _gradient_pass(
    gradient: Callable[..., jax.Array], logits_ref: Any, d_logits_ref: Any, row: jax.Array, sizes: _Sizes, hint: Any
) -> None:
    """Writes gradient(logits [size], the piece's first column, columns counted from there [size]) for each piece."""
    block, vocab, n_tokens = sizes
    whole = sizes.whole

    def write(index: jax.Array, size: int, filled: Any, there: Any) -> None:
        start, column = index * block, jnp.arange(size)
        place = pl.ds(start, size)
        logits = _load(logits_ref.at[row, place], column, filled, hint)
        _store(d_logits_ref.at[row, place], gradient(logits, start, column), column, there)

    def write_whole(index: jax.Array, carry: tuple) -> tuple:
        write(index, block, None, None)
        return carry

    def write_last(index: jax.Array, carry: tuple) -> tuple:
        size = min(block, pl.next_power_of_2(vocab - whole * block))
        write(index, size, n_tokens - index * block, vocab - index * block)
        return carry

    _loop(0, whole, write_whole, ())
    _loop(whole, pl.cdiv(vocab, block), write_last, ())  # one piece, unless many columns are surplus


def _exp(x: jax.Array) -> jax.Array:
    """By exp2, the instruction that the hardware has: jnp.exp would be eight of them."""
    return jnp.exp2(x * _LOG2_E)


def _loop(first: int, end: int, body: Callable[[jax.Array, Any], Any], begin: Any) -> Any:
    return jax.lax.fori_loop(first, end, body, begin) if first < end else begin


def _load(place: Any, column: jax.Array, filled: Any, hint: str | None = None) -> jax.Array:
    """float32; columns from `filled` on (None: no such) are MASKED and not read."""
    if filled is None:
        return plgpu.load(place, eviction_policy=hint).astype(jnp.float32)
    return plgpu.load(place, mask=column < filled, other=MASKED, eviction_policy=hint).astype(jnp.float32)


def _store(place: Any, value: jax.Array, column: jax.Array, there: Any) -> None:
    """Columns from `there` on (None: no such) do not exist."""
    plgpu.store(place, value.astype(place.dtype), mask=None if there is None else column < there)

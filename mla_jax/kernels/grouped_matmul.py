"""Grouped matrix products for experts (Pallas, Triton): blocks of rows, each multiplied by its own expert's matrix.

Rows are padded so that a block of ROWS has one expert (model/moe_grouped.py), so no program has to ask where a group
ends. Nothing is gathered or copied: a program reads its expert's number and loads from that matrix directly. Block
sizes are guesses that no GPU has timed yet; launch/gpu_moe.sh does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

ROWS = 128  # of a block, and of a program of `grouped_product`
_COLUMNS = 128  # of a program's result
_DEPTH = 64  # of one step of its sum
_PARAMS = {"num_warps": 8, "num_stages": 4}


def grouped_product(rows: jax.Array, w: jax.Array, block_expert: jax.Array, interpret: bool = False) -> jax.Array:
    """rows [P, D], w [E, D, F], block_expert [P / ROWS] int32 -> [P, F] in rows' dtype, summed in float32."""
    n_rows, n_columns = rows.shape[0], w.shape[2]
    return pl.pallas_call(
        functools.partial(_product_program, depth=rows.shape[1], columns=n_columns),
        out_shape=jax.ShapeDtypeStruct((n_rows, n_columns), rows.dtype),
        # The last axis runs fastest: programs that read the same rows run together.
        grid=(n_rows // ROWS, pl.cdiv(n_columns, _COLUMNS)),
        compiler_params=plgpu.CompilerParams(**_PARAMS),
        interpret=interpret,
        name="grouped_product",
    )(rows, w, block_expert)


def grouped_product_reference(rows: jax.Array, w: jax.Array, block_expert: jax.Array) -> jax.Array:
    """The plain twin: a batch of blocks, each beside a copy of its expert's matrix."""
    blocks = rows.reshape(block_expert.shape[0], -1, rows.shape[1])
    return jnp.einsum("bpd,bdf->bpf", blocks, w[block_expert]).reshape(rows.shape[0], -1)


def grouped_outer(rows: jax.Array, g: jax.Array, first_block: jax.Array, interpret: bool = False) -> jax.Array:
    """rows [P, D], g [P, F], first_block [E + 1] int32 -> [E, D, F]: each expert's rows^T g, summed in float32.

    Expert e has the blocks first_block[e] up to first_block[e + 1]; one without blocks gets zeros.
    """
    n_experts, depth, columns = first_block.shape[0] - 1, rows.shape[1], g.shape[1]
    return pl.pallas_call(
        functools.partial(_outer_program, depth=depth, columns=columns),
        out_shape=jax.ShapeDtypeStruct((n_experts, depth, columns), rows.dtype),
        grid=(n_experts, pl.cdiv(depth, _COLUMNS), pl.cdiv(columns, _COLUMNS)),
        compiler_params=plgpu.CompilerParams(**_PARAMS),
        interpret=interpret,
        name="grouped_outer",
    )(rows, g, first_block)


def grouped_outer_reference(rows: jax.Array, g: jax.Array, block_expert: jax.Array, n_experts: int) -> jax.Array:
    """The plain twin: every block's product, then a sum over the blocks of each expert.

    They are sorted, which is not said: with it XLA took minutes to compile the sum for an H100 (JAX 0.11.2), not 0.2 s.
    """
    blocks, cotangents = (a.reshape(block_expert.shape[0], -1, a.shape[1]) for a in (rows, g))
    each = jnp.einsum("bpd,bpf->bdf", blocks, cotangents, preferred_element_type=jnp.float32)
    return jax.ops.segment_sum(each, block_expert, n_experts).astype(rows.dtype)


def _product_program(rows_ref: Any, w_ref: Any, expert_ref: Any, out_ref: Any, *, depth: int, columns: int) -> None:
    block, strip = pl.program_id(0), pl.program_id(1)
    here = pl.ds(block * ROWS, ROWS)
    across = pl.ds(strip * _COLUMNS, _COLUMNS)
    wide = strip * _COLUMNS + jnp.arange(_COLUMNS) < columns
    expert = expert_ref[block]

    def step(index: jax.Array, acc: jax.Array) -> jax.Array:
        along = pl.ds(index * _DEPTH, _DEPTH)
        deep = index * _DEPTH + jnp.arange(_DEPTH) < depth
        a = plgpu.load(rows_ref.at[here, along], mask=jnp.broadcast_to(deep[None, :], (ROWS, _DEPTH)), other=0.0)
        b = plgpu.load(w_ref.at[expert, along, across], mask=deep[:, None] & wide[None, :], other=0.0)
        return acc + _dot(a, b)

    acc = jax.lax.fori_loop(0, pl.cdiv(depth, _DEPTH), step, jnp.zeros((ROWS, _COLUMNS), jnp.float32))
    mask = jnp.broadcast_to(wide[None, :], acc.shape)
    plgpu.store(out_ref.at[here, across], acc.astype(out_ref.dtype), mask=mask)


def _outer_program(rows_ref: Any, g_ref: Any, first_ref: Any, out_ref: Any, *, depth: int, columns: int) -> None:
    expert, down, strip = (pl.program_id(axis) for axis in range(3))
    along, across = pl.ds(down * _COLUMNS, _COLUMNS), pl.ds(strip * _COLUMNS, _COLUMNS)
    deep = down * _COLUMNS + jnp.arange(_COLUMNS) < depth
    wide = strip * _COLUMNS + jnp.arange(_COLUMNS) < columns
    steps = ROWS // _DEPTH

    def step(index: jax.Array, acc: jax.Array) -> jax.Array:
        here = pl.ds(index * _DEPTH, _DEPTH)
        a = plgpu.load(rows_ref.at[here, along], mask=jnp.broadcast_to(deep[None, :], (_DEPTH, _COLUMNS)), other=0.0)
        b = plgpu.load(g_ref.at[here, across], mask=jnp.broadcast_to(wide[None, :], (_DEPTH, _COLUMNS)), other=0.0)
        return acc + _dot(a.T, b)

    acc = jnp.zeros((_COLUMNS, _COLUMNS), jnp.float32)
    acc = jax.lax.fori_loop(first_ref[expert] * steps, first_ref[expert + 1] * steps, step, acc)
    plgpu.store(out_ref.at[expert, along, across], acc.astype(out_ref.dtype), mask=deep[:, None] & wide[None, :])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """[M, K] x [K, N] -> float32. float32 operands keep float32 precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)

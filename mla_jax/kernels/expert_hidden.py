"""Backward pass of experts' hidden units in one pass over them (Pallas, Triton).

Its three results share a tanh (or a logistic function). XLA computes it once for all and writes it, in float32,
which is more traffic than the pass itself.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import padded
from mla_jax.model.functions import activation

_NUMBERS = 2048  # of each array that a program holds


def weighted_hidden(pre: list[jax.Array], row_weight: jax.Array) -> jax.Array:
    """Pre-activations [P, F] (of gate and up, or of up alone), row_weight [P] -> hidden units times their row's weight.

    In float32 inside, in the dtype of the pre-activations outside.
    """
    wide = [a.astype(jnp.float32) for a in pre]
    hidden = activation(wide[0] if len(wide) == 2 else None, wide[-1])
    return (hidden * row_weight[:, None]).astype(pre[0].dtype)


def hidden_backward_reference(
    pre: list[jax.Array], row_weight: jax.Array, d_hidden: jax.Array
) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """The plain twin."""
    hidden, pull = jax.vjp(weighted_hidden, pre, row_weight)
    return hidden, *pull(d_hidden)


def hidden_backward(
    pre: list[jax.Array], row_weight: jax.Array, d_hidden: jax.Array, interpret: bool = False
) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """`weighted_hidden` [P, F] again, and its gradients for pre (each [P, F]) and row_weight [P] float32.

    P is a multiple of 128, as the rows of grouped products are.
    """
    n_rows, width = d_hidden.shape
    columns = pl.next_power_of_2(width)
    rows = max(1, min(128, _NUMBERS // columns))
    like = jax.ShapeDtypeStruct(d_hidden.shape, d_hidden.dtype)
    hidden, *d_pre, d_weight = kernel_call(
        functools.partial(_program, width=width, block=(rows, columns)),
        out_shape=(*[like] * (1 + len(pre)), jax.ShapeDtypeStruct((n_rows,), jnp.float32)),
        grid=(n_rows // rows,),
        compiler_params=plgpu.CompilerParams(num_warps=4),
        interpret=interpret,
        name="expert_hidden_backward",
    )(row_weight, d_hidden, *pre)
    return hidden, d_pre, d_weight


def _program(weight_ref: Any, d_hidden_ref: Any, *refs: Any, width: int, block: tuple[int, int]) -> None:
    n_pre = (len(refs) - 2) // 2
    pre_refs, (hidden_ref, *d_pre_refs, d_weight_ref) = refs[:n_pre], refs[n_pre:]
    rows, columns = pl.ds(pl.program_id(0) * block[0], block[0]), padded(block[1], width)
    whole = width == block[1]
    mask = None if whole else jnp.broadcast_to(jnp.arange(block[1]) < width, block)

    def load(ref: Any) -> jax.Array:
        place = ref.at[rows, columns]
        return (plgpu.load(place) if whole else plgpu.load(place, mask=mask, other=0.0)).astype(jnp.float32)

    def hidden_of(pre: list[jax.Array], weight: jax.Array) -> jax.Array:
        return activation(pre[0] if len(pre) == 2 else None, pre[-1]) * weight[:, None]

    hidden, pull = jax.vjp(hidden_of, [load(ref) for ref in pre_refs], plgpu.load(weight_ref.at[rows]))
    d_pre, d_weight = pull(load(d_hidden_ref))
    for ref, value in zip((hidden_ref, *d_pre_refs), (hidden, *d_pre), strict=True):
        plgpu.store(ref.at[rows, columns], value.astype(ref.dtype), mask=mask)
    plgpu.store(d_weight_ref.at[rows], d_weight)

"""Grouped products: rows sorted by expert, each group multiplied by its own matrix. Nothing is ever scatter-added.

The rows of one expert lie together in a buffer of P rows. `xla` and `pallas` pad each group to a multiple of a block,
so that a block has one expert; P is the static worst case, and the padding costs arithmetic, not exactness: padding
rows get no cotangent and nobody reads their results. `tokamax` takes groups of any size (P = N K).
"""

import jax
import jax.numpy as jnp
from flax import struct

from mla_jax.kernels import grouped_matmul as kernels
from mla_jax.kernels.expert_hidden import hidden_backward, weighted_hidden
from mla_jax.model.experts import Experts


@struct.dataclass
class Groups:
    """Where each choice (token n, its k-th expert) lies in the buffer.

    slot [N, K]: its row; source [P]: the choice n K + k of a row, N K for padding; sizes [E]: rows of each expert
    without padding; block_expert [P / block]: the expert of a block. All int32.
    """

    slot: jax.Array
    source: jax.Array
    sizes: jax.Array
    block_expert: jax.Array
    block: int = struct.field(pytree_node=False)
    impl: str = struct.field(pytree_node=False)
    interpret: bool = struct.field(pytree_node=False)

    @property
    def first_block(self) -> jax.Array:
        """[E + 1] int32: the first block of each expert, and one past the last."""
        return jnp.cumulative_sum(-(-self.sizes // self.block), include_initial=True, dtype=jnp.int32)

    @property
    def token(self) -> jax.Array:
        """[P] int32: the token of a row; that of the last choice for padding."""
        n_choices, top_k = self.slot.size, self.slot.shape[1]
        return jnp.minimum(self.source, n_choices - 1) // top_k


def block_size(n_choices: int, n_experts: int, impl: str) -> int:
    """Rows of a block. Half a mean group for XLA: smaller ones copy more matrices, larger ones pad more rows."""
    if impl == "tokamax":
        return 1
    if impl == "pallas":
        return kernels.ROWS
    half = max(1, n_choices // (2 * n_experts))
    return min(512, max(8, 1 << (half.bit_length() - 1)))


def plan(expert_idx: jax.Array, n_experts: int, impl: str, interpret: bool = False) -> Groups:
    """expert_idx [N, K] int32 -> the groups. One stable sort; no part depends on floating point."""
    flat = expert_idx.reshape(-1)
    n_choices = flat.shape[0]
    block = block_size(n_choices, n_experts, impl)
    n_blocks = (n_choices + n_experts * (block - 1)) // block  # sum of ceil(size / block) is never more
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    sizes = jnp.sum(flat[:, None] == jnp.arange(n_experts), axis=0, dtype=jnp.int32)
    padded = -(-sizes // block) * block
    ends = jnp.cumsum(padded)
    gap = (ends - padded) - (jnp.cumsum(sizes) - sizes)  # padding in front of each group
    row = jnp.arange(n_choices, dtype=jnp.int32) + gap[flat[order]]
    slot = jnp.zeros(n_choices, jnp.int32).at[order].set(row, unique_indices=True)
    source = jnp.full(n_blocks * block, n_choices, jnp.int32).at[row].set(order, unique_indices=True)
    first = jnp.arange(n_blocks, dtype=jnp.int32) * block
    block_expert = jnp.sum(ends[None, :] <= first[:, None], axis=1, dtype=jnp.int32)
    block_expert = jnp.minimum(block_expert, n_experts - 1)  # blocks after the last group hold padding only
    return Groups(slot.reshape(expert_idx.shape), source, sizes, block_expert, block, impl, interpret)


@jax.custom_vjp
def dispatch(x: jax.Array, groups: Groups) -> jax.Array:
    """x [N, D] -> rows [P, D], a copy of the token for each of its choices; padding rows repeat the last token.

    The gradient is a gather by `slot` and a sum over k: the scatter-add that JAX would make of it took 1.9 ms where
    this takes 0.2 (65,536 tokens, d 512, top-6, H100).
    """
    return x[groups.token]


def _dispatch_fwd(x: jax.Array, groups: Groups) -> tuple[jax.Array, Groups]:
    return dispatch(x, groups), groups


def _dispatch_bwd(groups: Groups, g: jax.Array) -> tuple[jax.Array, None]:
    return _sum_rows(g, groups), None


dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@jax.custom_vjp
def combine(rows: jax.Array, expert_weight: jax.Array, groups: Groups) -> jax.Array:
    """rows [P, D], expert_weight [N, K] float32 -> [N, D]: the weighted sum of each token's rows, in float32 inside."""
    return jnp.sum(rows[groups.slot] * expert_weight[..., None], axis=1).astype(rows.dtype)


def _combine_fwd(rows: jax.Array, expert_weight: jax.Array, groups: Groups) -> tuple[jax.Array, tuple]:
    return combine(rows, expert_weight, groups), (rows, expert_weight, groups)


def _combine_bwd(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, expert_weight, groups = residuals
    # One past the end is padding's weight: 0, so that padding takes part in no gradient.
    weight = jnp.append(expert_weight.reshape(-1), 0.0)[groups.source]
    d_rows = (g[groups.token] * weight[:, None]).astype(rows.dtype)
    d_weight = jnp.sum(rows[groups.slot] * g[:, None, :].astype(jnp.float32), axis=-1)
    return d_rows, d_weight.astype(expert_weight.dtype), None


combine.defvjp(_combine_fwd, _combine_bwd)


def grouped_matmul(rows: jax.Array, w: jax.Array, groups: Groups) -> jax.Array:
    """rows [P, D] x w [E, D, F] -> [P, F], each row by the matrix of its group; differentiable, grouped both ways."""
    if groups.impl == "tokamax":
        import tokamax  # heavy: it imports a profiler

        return tokamax.ragged_dot(rows, w, groups.sizes)
    return _block_matmul(rows, w, groups)


@jax.custom_vjp
def _block_matmul(rows: jax.Array, w: jax.Array, groups: Groups) -> jax.Array:
    return _product(rows, w, groups)


def _block_matmul_fwd(rows: jax.Array, w: jax.Array, groups: Groups) -> tuple[jax.Array, tuple]:
    return _product(rows, w, groups), (rows, w, groups)


def _block_matmul_bwd(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, w, groups = residuals
    return _product(g, jnp.swapaxes(w, 1, 2), groups), _outer(rows, g, groups, w), None


_block_matmul.defvjp(_block_matmul_fwd, _block_matmul_bwd)


@jax.custom_vjp
def fused_ffn(x: jax.Array, expert_weight: jax.Array, experts: Experts, groups: Groups) -> jax.Array:
    """The whole of `moe_paths.grouped` by the Pallas kernels, with fewer arrays of P rows in memory: [N, D].

    Dispatch lies inside the products, which fetch their rows from x, and in the backward pass from the cotangent. The
    weights multiply hidden units instead of results, so that results need no keeping: with h = a(x W_up),
    y = sum_k (w_k h_k) W_down, dw_k = h_k . (W_down dy). Kept for the backward pass: the pre-activations alone.
    """
    return _ffn_fwd(x, expert_weight, experts, groups)[0]


def _ffn_fwd(x: jax.Array, expert_weight: jax.Array, experts: Experts, groups: Groups) -> tuple[jax.Array, tuple]:
    into = [w for w in experts[:2] if w is not None]
    pre = [_gathered_product(x, w, groups, groups.token) for w in into]
    hidden = weighted_hidden(pre, _row_weight(expert_weight, groups))
    rows = _gathered_product(hidden, experts.w_down, groups)
    return _sum_rows(rows, groups), (x, expert_weight, experts, groups, pre)


def _ffn_bwd(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, Experts, None]:
    x, expert_weight, experts, groups, pre = residuals
    into = [w for w in experts[:2] if w is not None]
    d_hidden = _gathered_product(g, experts.w_down, groups, groups.token, transposed=True)
    hidden, d_pre, d_row_weight = hidden_backward(pre, _row_weight(expert_weight, groups), d_hidden, groups.interpret)
    d_down = kernels.grouped_outer(hidden, g, groups.first_block, None, groups.token, interpret=groups.interpret)
    d_into = [kernels.grouped_outer(x, d, groups.first_block, groups.token, interpret=groups.interpret) for d in d_pre]
    d_rows = [_gathered_product(d, w, groups, transposed=True) for d, w in zip(d_pre, into, strict=True)]
    d_x = _sum_rows(d_rows[0] if len(d_rows) == 1 else d_rows[0] + d_rows[1], groups)
    d_experts = Experts(*([None] * (2 - len(d_into)) + d_into + [d_down]))
    return d_x, d_row_weight[groups.slot].astype(expert_weight.dtype), d_experts, None


fused_ffn.defvjp(_ffn_fwd, _ffn_bwd)


def _gathered_product(
    rows: jax.Array, w: jax.Array, groups: Groups, source: jax.Array | None = None, transposed: bool = False
) -> jax.Array:
    return kernels.grouped_product(
        rows, w, groups.block_expert, source, transposed=transposed, interpret=groups.interpret
    )


def _row_weight(expert_weight: jax.Array, groups: Groups) -> jax.Array:
    """[P] float32: the weight of each row, 0 for padding."""
    return jnp.append(expert_weight.reshape(-1), 0.0)[groups.source]


def _sum_rows(rows: jax.Array, groups: Groups) -> jax.Array:
    """rows [P, D] -> [N, D]: each token's rows, summed in float32."""
    return jnp.sum(rows[groups.slot], axis=1, dtype=jnp.float32).astype(rows.dtype)


def _product(rows: jax.Array, w: jax.Array, groups: Groups) -> jax.Array:
    if groups.impl == "pallas":
        return kernels.grouped_product(rows, w, groups.block_expert, interpret=groups.interpret)
    return kernels.grouped_product_reference(rows, w, groups.block_expert)


def _outer(rows: jax.Array, g: jax.Array, groups: Groups, w: jax.Array) -> jax.Array:
    """[E, D, F] of w's dtype: for each expert, its rows transposed times its cotangents."""
    if groups.impl == "pallas":
        return kernels.grouped_outer(rows, g, groups.first_block, interpret=groups.interpret)
    return kernels.grouped_outer_reference(rows, g, groups.block_expert, w.shape[0])

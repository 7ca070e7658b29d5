"""The routed experts' sum, computed in different ways that all give the same values and gradients.

Every path: (x [N, D], expert_idx [N, K], expert_weight [N, K] float32, experts, backend) -> [N, D], with
y_n = sum_k expert_weight_nk * expert_{expert_idx_nk}(x_n). None of them drops a token.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mla_jax.kernels import masked_hidden
from mla_jax.model import moe_grouped, products
from mla_jax.model.backend import Backend
from mla_jax.model.experts import Experts, FeedForwardWeights
from mla_jax.model.functions import activation


def combine_weights(expert_idx: jax.Array, expert_weight: jax.Array, n_experts: int) -> jax.Array:
    """[N, K] indices and weights -> [N, E] float32, 0 for experts that a token does not go to."""
    chosen = expert_idx[..., None] == jnp.arange(n_experts)
    return jnp.sum(jnp.where(chosen, expert_weight[..., None], 0.0), axis=1)


def reference(
    x: jax.Array, expert_idx: jax.Array, expert_weight: jax.Array, experts: Experts, backend: Backend
) -> jax.Array:
    """The plain twin: every expert on every token, then the weighted sum of the chosen ones."""
    gate = None if experts.w_gate is None else jnp.einsum("nd,edf->nef", x, experts.w_gate)
    hidden = activation(gate, jnp.einsum("nd,edf->nef", x, experts.w_up))
    each = jnp.einsum("nef,efd->ned", hidden, experts.w_down)
    weight = combine_weights(expert_idx, expert_weight, experts.w_up.shape[0])
    return jnp.einsum("ne,ned->nd", weight.astype(x.dtype), each)


def masked_dense(
    x: jax.Array,
    expert_idx: jax.Array,
    expert_weight: jax.Array,
    experts: Experts,
    backend: Backend,
    shared: FeedForwardWeights | None = None,
) -> jax.Array:
    """One dense feed-forward of width E F whose hidden units are multiplied by their expert's weight, mostly 0.

    E / K times the arithmetic of the chosen experts, at the speed of two large matrix products. With `shared`, only
    where `masks_in_one_pass`: as columns of the same products, and added.
    """
    if masks_in_one_pass(x.shape[0], expert_idx.shape[1], experts.w_up.shape[2], backend):
        return _masked_in_one_pass(x, expert_idx, expert_weight, experts, shared, backend.interpret)
    weight = combine_weights(expert_idx, expert_weight, experts.w_up.shape[0]).astype(x.dtype)
    gate = None if experts.w_gate is None else jnp.einsum("nd,edf->nef", x, experts.w_gate)
    hidden = activation(gate, jnp.einsum("nd,edf->nef", x, experts.w_up))
    return jnp.einsum("nef,efd->nd", hidden * weight[..., None], experts.w_down)


def masks_in_one_pass(n_tokens: int, at_once: int, width: int, backend: Backend) -> bool:
    """Whether a kernel computes masked hidden units of experts of this width on a device that has n_tokens.

    at_once: experts that a token has chosen, or shares if those are more.
    """
    return backend.train_impl == "pallas" and masked_hidden.applies(n_tokens, at_once, width)


def _masked_in_one_pass(
    x: jax.Array,
    expert_idx: jax.Array,
    expert_weight: jax.Array,
    experts: Experts,
    shared: FeedForwardWeights | None,
    interpret: bool,
) -> jax.Array:
    """`masked_dense` whose hidden units, those of shared experts too, are one array and one kernel each way."""
    n_experts, d_model, width = experts.w_up.shape
    n_shared = 0 if shared is None else shared.w_up.shape[1] // width

    def beside(routed: jax.Array, extra: jax.Array | None) -> jax.Array:
        """[E, D, F] and [D, S F] -> [D, (E + S) F]."""
        routed = routed.swapaxes(0, 1).reshape(d_model, -1)
        return routed if extra is None else jnp.concatenate([routed, extra.astype(x.dtype)], axis=1)

    into = [(experts.w_up, None if shared is None else shared.w_up)]
    if experts.w_gate is not None:
        into = [(experts.w_gate, None if shared is None else shared.w_gate), *into]
    pre = products.of_one_input(x, [beside(*pair) for pair in into], x.dtype)
    pre = tuple(a.reshape(-1, n_experts + n_shared, width) for a in pre)
    bias = None if shared is None or shared.b_up is None else shared.b_up.reshape(n_shared, width)
    hidden = masked_hidden.masked_hidden(pre, bias, expert_idx, expert_weight, n_shared, interpret)
    w_down = experts.w_down.reshape(-1, d_model)
    if shared is not None:
        w_down = jnp.concatenate([w_down, shared.w_down.astype(x.dtype)])
    y = hidden.reshape(x.shape[0], -1) @ w_down
    return y if shared is None or shared.b_down is None else y + shared.b_down.astype(x.dtype)


def gathered(
    x: jax.Array, expert_idx: jax.Array, expert_weight: jax.Array, experts: Experts, backend: Backend
) -> jax.Array:
    """Reads only the matrices of the chosen experts: N K of them, fewer than E when a few sequences decode."""
    gate = None if experts.w_gate is None else jnp.einsum("nd,nkdf->nkf", x, experts.w_gate[expert_idx])
    hidden = activation(gate, jnp.einsum("nd,nkdf->nkf", x, experts.w_up[expert_idx]))
    hidden = hidden * expert_weight.astype(x.dtype)[..., None]
    return jnp.einsum("nkf,nkfd->nd", hidden, experts.w_down[expert_idx])


def grouped(
    x: jax.Array,
    expert_idx: jax.Array,
    expert_weight: jax.Array,
    experts: Experts,
    backend: Backend,
    some_elsewhere: bool = False,
) -> jax.Array:
    """Tokens sorted by expert, one product a group; the results fetched back by the inverse permutation.

    some_elsewhere: some choices belong to other devices; their index is one past the last expert, their weight 0, and
    they lie behind the last group. tokamax skips rows behind the groups and leaves in them what it likes; so they are
    made zero, both ways.
    """
    groups = moe_grouped.plan(expert_idx, experts.w_up.shape[0], backend.grouped_impl, backend.interpret)
    if groups.impl == "pallas":  # a weight of 0 makes their hidden units 0
        return moe_grouped.fused_ffn(x, expert_weight, experts, groups)
    clean = _zero_behind(groups) if some_elsewhere and groups.impl == "tokamax" else lambda rows: rows
    rows = clean(moe_grouped.dispatch(x, groups))
    gate = None if experts.w_gate is None else clean(moe_grouped.grouped_matmul(rows, experts.w_gate, groups))
    hidden = activation(gate, clean(moe_grouped.grouped_matmul(rows, experts.w_up, groups)))
    out = clean(moe_grouped.grouped_matmul(hidden, experts.w_down, groups))
    return moe_grouped.combine(out, expert_weight, groups)


def _zero_behind(groups: moe_grouped.Groups) -> Callable[[jax.Array], jax.Array]:
    """Rows [N K, ...] -> the same, with zeros behind the last group."""
    live = (jnp.arange(groups.source.shape[0]) < jnp.sum(groups.sizes))[:, None]
    return lambda rows: jnp.where(live, rows, 0)


PATHS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference,
    "masked_dense": masked_dense,
    "grouped": grouped,
    "gathered": gathered,
}

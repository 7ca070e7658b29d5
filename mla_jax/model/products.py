"""Matrix products in the forms that cuBLAS computes without copies, forward and backward.

Shapes: D model width, H heads, K and V width of a head.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def of_one_input(x: jax.Array, weights: Sequence[jax.Array], dtype: Any) -> list[jax.Array]:
    """x [..., D] times each of weights [D, ...], in `dtype` -> [..., K_i]: a weight's other axes as one."""
    return list(_products(x, tuple(w.reshape(w.shape[0], -1).astype(dtype) for w in weights)))


def side_by_side(weights: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Weights [D, ...] as one matrix [D, K], for one product that is read as it is (`split_and_rotate`)."""
    return jnp.concatenate([w.reshape(w.shape[0], -1).astype(dtype) for w in weights], axis=1)


@jax.custom_vjp
def _products(x: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(x @ w for w in weights)


def _products_backward(kept: tuple, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Product + sum, in this order: so cuBLAS adds while it writes. Autodiff's order costs a pass over [..., D] more.
    x, weights = kept
    total = None
    for g, w in zip(gradients, weights, strict=True):
        own = g @ w.T
        total = own if total is None else own + total
    return total, tuple(jnp.einsum("...d,...k->dk", x, g) for g in gradients)


_products.defvjp(lambda x, weights: (_products(x, weights), (x, weights)), _products_backward)


def heads_of(y: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    """A product y [..., H K] with w [D, H, K] as [..., H, K], plus bias [H, K].

    The bias joins the product while its result is still a matrix: only there cuBLAS adds it on the way.
    """
    if bias is not None:
        y = y + bias.reshape(-1).astype(y.dtype)
    return y.reshape(*y.shape[:-1], *w.shape[1:])


def joined_heads(out: jax.Array, w: jax.Array) -> jax.Array:
    """out [..., H, V] times w [H, V, D] -> [..., D] in out's dtype.

    One product of matrices, not a contraction of two axes, whose gradient XLA makes as [H, D, V] and transposes: for
    the optimizer three times, 36 copies and 12 launches a step of size l.
    """
    return out.reshape(*out.shape[:-2], -1) @ w.astype(out.dtype).reshape(-1, w.shape[-1])

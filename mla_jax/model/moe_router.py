"""Scores, and the router's two costly parts in forms cheap on an accelerator: float32 logits, and the top K of them."""

import jax
import jax.numpy as jnp

_PIECES = 3  # bfloat16 numbers of 8 bits each that a float32 of 24 bits is the sum of


def scores(logits: jax.Array, kind: str) -> jax.Array:
    """Affinities [..., E] float32 of logits [..., E] float32; kind: "sigmoid" | "softmax"."""
    return jax.nn.sigmoid(logits) if kind == "sigmoid" else jax.nn.softmax(logits, axis=-1)


@jax.custom_vjp
def exact_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [N, D], w [D, E] float32 -> x w [N, E], exact to float32, whatever the dtype of x.

    For x in bfloat16, w is cut into three bfloat16 pieces, whose products with x are exact and summed in float32: three
    products at the speed of bfloat16 instead of one on float32 units (on an H100 a fiftieth of the rate). So is the
    cotangent in w's gradient; x's gradient is rounded to bfloat16 anyway.
    """
    if x.dtype != jnp.bfloat16:
        return jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return _sum_pieces(jnp.matmul(x, _pieces(w), preferred_element_type=jnp.float32))


def _exact_fwd(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    return exact_product(x, w), (x, w)


def _exact_bwd(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    if x.dtype != jnp.bfloat16:
        highest = jax.lax.Precision.HIGHEST
        d_x = jnp.matmul(g, w.T, precision=highest)
        return d_x.astype(x.dtype), jnp.matmul(x.T.astype(jnp.float32), g, precision=highest).astype(w.dtype)
    d_x = jnp.matmul(g.astype(jnp.bfloat16), w.astype(jnp.bfloat16).T)  # rounded where it is written
    d_w = _sum_pieces(jnp.matmul(x.T, _pieces(g), preferred_element_type=jnp.float32))
    return d_x, d_w.astype(w.dtype)


exact_product.defvjp(_exact_fwd, _exact_bwd)


def _pieces(a: jax.Array) -> jax.Array:
    """[..., E] float32 -> [..., 3 E] bfloat16: the leading 8 bits of each number, the next 8, and the last."""
    found = []
    for _ in range(_PIECES):
        # A cast there and back would do, if XLA did not take such pairs out.
        leading = jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=7)
        found.append(leading.astype(jnp.bfloat16))
        a = a - leading
    return jnp.concatenate(found, axis=-1)


def _sum_pieces(a: jax.Array) -> jax.Array:
    """[..., 3 E] -> [..., E], the smallest first."""
    first, second, third = jnp.split(a, _PIECES, axis=-1)
    return first + (second + third)


def top_choices(scores: jax.Array, k: int) -> jax.Array:
    """scores [N, E] -> [N, K] int32: the indices of jax.lax.top_k, in its order, -inf included.

    k maxima, each over what the ones before left: k small kernels instead of the sort of whole rows that XLA makes of
    top_k. (Counting who is ahead of whom, E^2 comparisons in one kernel, took XLA a minute to compile for an H100.)
    """
    place = jnp.arange(scores.shape[-1])
    left = jnp.maximum(scores, jnp.finfo(scores.dtype).min)  # -inf marks experts already taken
    chosen = []
    for _ in range(k):
        best = jnp.argmax(left, axis=-1)
        chosen.append(best.astype(jnp.int32))
        left = jnp.where(place == best[..., None], -jnp.inf, left)
    return jnp.stack(chosen, axis=-1)

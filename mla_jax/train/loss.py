"""Cross-entropy over the vocabulary without a float32 copy of the logits, or without whole logits at all."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mla_jax import mesh as mesh_lib
from mla_jax.kernels.cross_entropy import Plan, cross_entropy_and_gradient
from mla_jax.model.functions import MASKED


class Kernel(NamedTuple):
    """The kernel that makes the logits' gradient with the loss: interpret and plan are its own; mesh: of the rows."""

    interpret: bool
    mesh: Mesh | None = None
    plan: Plan | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(logits: jax.Array, targets: jax.Array, n_tokens: int) -> jax.Array:
    """-log softmax(logits)[target] in nats, float32.

    logits [..., vocab] of any float dtype; targets [...] int; rows of the embedding from `n_tokens` on are surplus
    and get no probability. The reductions run in float32 and read the logits as they are: what is kept for the
    backward pass is the logits themselves and one float32 per token. Equals `cross_entropy_reference`.
    """
    return _forward(logits, targets, n_tokens)[0]


def _valid(logits: jax.Array, n_tokens: int) -> jax.Array:
    logits = logits.astype(jnp.float32)
    if n_tokens < logits.shape[-1]:
        column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        logits = jnp.where(column < n_tokens, logits, MASKED)
    return logits


def _forward(logits: jax.Array, targets: jax.Array, n_tokens: int) -> tuple[jax.Array, tuple]:
    largest = jnp.max(_valid(logits, n_tokens), axis=-1)
    exp_sum = jnp.sum(jnp.exp(_valid(logits, n_tokens) - largest[..., None]), axis=-1)
    log_sum = jnp.log(exp_sum)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)
    # In this order: the difference of large logits is exact, their sum with a small logarithm is not.
    return largest - chosen + log_sum, (logits, targets, largest + log_sum)


def _backward(n_tokens: int, residuals: tuple, g: jax.Array) -> tuple[jax.Array, None]:
    logits, targets, log_z = residuals
    column = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    probability = jnp.exp(_valid(logits, n_tokens) - log_z[..., None])
    d_logits = (probability - (column == targets[..., None])) * g[..., None]
    return d_logits.astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _product_and_gradients(
    x: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    n_tokens: int,
    kernel: Kernel | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """nll [B, T] of logits x table^T, and the gradients of sum(weights * nll): of x, and of the table in float32.

    kernel: None = XLA makes the logits' gradient.
    """
    logits = jnp.einsum("btd,vd->btv", x, table)
    if kernel is None:
        nll, residuals = _forward(logits, targets, n_tokens)
        d_logits = _backward(n_tokens, residuals, weights)[0]
    else:

        def both(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
            return cross_entropy_and_gradient(logits, targets, weights, n_tokens, kernel.interpret, kernel.plan)

        nll, d_logits = mesh_lib.by_rows(both, kernel.mesh, [logits, targets, weights])
    d_x = jnp.einsum("btv,vd->btd", d_logits, table)
    return nll, d_x, jnp.einsum("btv,btd->vd", d_logits, x, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def fused_cross_entropy(
    x: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    n_tokens: int,
    kernel: Kernel,
) -> jax.Array:
    """`chunked_cross_entropy` in one part, a kernel putting the logits' gradient in their place.

    The gradients of x and of the embedding are made in the forward pass, so that the logits' gradient goes before the
    backward pass begins, and the cotangent scales what is small. Without a gradient asked for, none is computed.
    """
    nll, _ = _forward(jnp.einsum("btd,vd->btv", x, embedding.astype(x.dtype)), targets, n_tokens)
    return jnp.sum(nll * weights)


def _fused_forward(
    x: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    n_tokens: int,
    kernel: Kernel,
) -> tuple[jax.Array, tuple]:
    table = embedding.astype(x.dtype)
    nll, d_x, d_embedding = _product_and_gradients(x, table, targets, weights, n_tokens, kernel)
    return jnp.sum(nll * weights), (d_x, d_embedding.astype(embedding.dtype), nll)


def _fused_backward(n_tokens: int, kernel: Kernel, residuals: tuple, g: jax.Array) -> tuple:
    return _scaled(residuals, g)


def _scaled(residuals: tuple, g: jax.Array) -> tuple:
    d_x, d_embedding, nll = residuals
    return (d_x * g).astype(d_x.dtype), d_embedding * g, None, nll * g


fused_cross_entropy.defvjp(_fused_forward, _fused_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def chunked_cross_entropy(
    x: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    n_tokens: int,
    chunks: int,
    kernel: Kernel | None = None,
) -> jax.Array:
    """sum(weights * -log softmax(x embedding^T)[target]), float32 [], without [tokens, vocab] logits ever existing.

    x [B, T, D] of any float dtype, which the products are computed in; embedding [vocab, D] float32; targets [B, T]
    int; weights [B, T] float32. T is cut into `chunks` parts (it must divide T: the batch axis, which may be spread
    over devices, stays whole). A part's logits and all gradients that come from them are computed at once in the
    forward pass, so that nothing is computed twice (as Liger's fused linear cross-entropy, arXiv 2410.10989).
    kernel: makes a part's loss and gradient in one pass; None = XLA makes them.
    Equals `sum(weights * cross_entropy(...))` of the whole logits in value and gradients.
    """
    size = x.shape[1] // chunks
    table = embedding.astype(x.dtype)

    def part(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        x_part, targets_part, weights_part = _cut((x, targets, weights), start, size)
        nll, _ = _forward(jnp.einsum("btd,vd->btv", x_part, table), targets_part, n_tokens)
        return total + jnp.sum(nll * weights_part), None

    return jax.lax.scan(part, jnp.zeros(()), size * jnp.arange(chunks))[0]


def _cut(arrays: tuple[jax.Array, ...], start: jax.Array, size: int) -> list[jax.Array]:
    return [jax.lax.dynamic_slice_in_dim(array, start, size, axis=1) for array in arrays]


def _chunked_forward(
    x: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    n_tokens: int,
    chunks: int,
    kernel: Kernel | None,
) -> tuple[jax.Array, tuple]:
    size = x.shape[1] // chunks
    table = embedding.astype(x.dtype)

    def part(carry: tuple[jax.Array, ...], start: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        total, d_x, d_embedding = carry
        x_part, targets_part, weights_part = _cut((x, targets, weights), start, size)
        nll, d_x_part, d_embedding_part = _product_and_gradients(
            x_part, table, targets_part, weights_part, n_tokens, kernel
        )
        d_x = jax.lax.dynamic_update_slice_in_dim(d_x, d_x_part, start, axis=1)
        return (total + jnp.sum(nll * weights_part), d_x, d_embedding + d_embedding_part), nll

    start = (jnp.zeros(()), jnp.zeros_like(x), jnp.zeros(embedding.shape, jnp.float32))
    (total, d_x, d_embedding), nll = jax.lax.scan(part, start, size * jnp.arange(chunks))
    nll = jnp.moveaxis(nll, 0, 1).reshape(targets.shape)
    return total, (d_x, d_embedding.astype(embedding.dtype), nll)


def _chunked_backward(n_tokens: int, chunks: int, kernel: Kernel | None, residuals: tuple, g: jax.Array) -> tuple:
    return _scaled(residuals, g)


chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)


def cross_entropy_reference(logits: jax.Array, targets: jax.Array, n_tokens: int) -> jax.Array:
    """The plain twin: log_softmax of a float32 copy."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32)[..., :n_tokens], axis=-1)
    return -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

"""Cross-entropy over the vocabulary without a float32 copy of the logits."""

import functools

import jax
import jax.numpy as jnp

MASKED = -1e30


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


def cross_entropy_reference(logits: jax.Array, targets: jax.Array, n_tokens: int) -> jax.Array:
    """The plain twin: log_softmax of a float32 copy."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32)[..., :n_tokens], axis=-1)
    return -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

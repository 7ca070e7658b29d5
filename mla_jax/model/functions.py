"""Norms, rotations and activations as plain functions: what layers compute, and what kernels are compared with.

Kernels import this module, so it imports none of them. Norms and rotations compute in float32 and return the dtype of
their input.
"""

import jax
import jax.numpy as jnp

RMS_EPS = 1e-6  # DeepSeek's and Llama's
LAYER_NORM_EPS = 1e-5  # GPT-2's
# A logit that does not count. Finite: a row with everything masked averages all values instead of giving NaN.
MASKED = -1e30


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """x [..., D] / RMS(x) * gain [D] over the last axis (Zhang & Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + RMS_EPS)
    return (x32 * scale * gain).astype(x.dtype)


def layer_norm(x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """(x [..., D] - mean) / std * gain [D] + bias [D] over the last axis."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(x32), axis=-1, keepdims=True) - jnp.square(mean)
    return ((x32 - mean) * jax.lax.rsqrt(var + LAYER_NORM_EPS) * gain + bias).astype(x.dtype)


def with_bias_gradient(x: jax.Array, stream_bias: jax.Array | None) -> jax.Array:
    """x [..., D] plus a zero whose gradient is the bias' [D]: the sum of x's over all rows. None: x as it is."""
    return x if stream_bias is None else x + (stream_bias - jax.lax.stop_gradient(stream_bias)).astype(x.dtype)


def rope_angles(positions: jax.Array, width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos, sin [..., T, width/2] float32 of `positions` [..., T] (Su et al. 2021, eq. 15)."""
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate x [B, T, H, R] by cos, sin [T, R/2] or [B, T, R/2]. Half-split pairs (i, i + R/2), as Llama on HF."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def bias_gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """tanh-GELU of x [..., F] + bias [F]."""
    return jax.nn.gelu(x + bias, approximate=True)


def activation(gate: jax.Array | None, up: jax.Array) -> jax.Array:
    """The hidden units of pre-activations: silu(gate) * up, or tanh-GELU of up where there is no gate."""
    return jax.nn.gelu(up, approximate=True) if gate is None else jax.nn.silu(gate) * up

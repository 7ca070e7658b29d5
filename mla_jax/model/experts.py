"""The matrices of experts, and what a hidden unit is."""

from typing import NamedTuple

import jax


class Experts(NamedTuple):
    """w_gate, w_up [E, D, F], w_down [E, F, D], in the computation's dtype; without w_gate GELU instead of SwiGLU."""

    w_gate: jax.Array | None
    w_up: jax.Array
    w_down: jax.Array


class FeedForwardWeights(NamedTuple):
    """w_gate, w_up [D, F], w_down [F, D] of one dense feed-forward; no gate: GELU, with biases b_up [F], b_down [D]."""

    w_gate: jax.Array | None
    w_up: jax.Array
    w_down: jax.Array
    b_up: jax.Array | None = None
    b_down: jax.Array | None = None


def activation(gate: jax.Array | None, up: jax.Array) -> jax.Array:
    """The hidden units of pre-activations: silu(gate) * up, or tanh-GELU of up where there is no gate."""
    return jax.nn.gelu(up, approximate=True) if gate is None else jax.nn.silu(gate) * up

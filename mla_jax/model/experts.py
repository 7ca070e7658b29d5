"""The matrices of experts, and of the dense feed-forward that shared experts are."""

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

"""Weights as decoding reads them: matrices in the computation's dtype, converted once and not at every step.

XLA leaves the conversion of a float32 matrix inside a decode loop (seen in the optimised HLO for an H100, JAX 0.11.2:
every matrix was read in float32, written in bfloat16 and read again at every step), which costs four times the bytes.
"""

from typing import Any

import jax

from mla_jax.model.backend import Backend

# Used in float32 by the model: vectors (gains), the router, and the position table, which is added before the cast.
_FLOAT32 = ("router", "position")


def serving_variables(variables: Any, backend: Backend) -> Any:
    """`variables` (Transformer.apply's mapping) with the matrices in the backend's dtype. Values do not change beyond
    what each use would round anyway; without learned positions the logits are bit for bit the same."""

    def convert(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [str(getattr(key, "key", "")) for key in path]
        kept = leaf.ndim < 2 or any(word in name for name in names for word in _FLOAT32)
        return leaf if kept else leaf.astype(backend.jnp_dtype)

    return jax.tree_util.tree_map_with_path(convert, variables)

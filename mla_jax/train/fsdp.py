"""Parameters that the mesh axis `fsdp` splits, whole again for one step (FSDP; Zhao et al. 2023, arXiv 2304.11277)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mla_jax import mesh as mesh_lib
from mla_jax.config import ModelConfig


def gathered(params: Any, mesh: Mesh | None, cfg: ModelConfig, dtype: Any) -> Any:
    """params with nothing split along `fsdp`, and matrices in `dtype`, in which the model multiplies them anyway.

    Each matrix travels once a microbatch, before anything is made of it: left alone, XLA's partitioner splits the
    joined and reshaped matrices too, and moves pieces of them about. The gradient goes the other way, in `dtype`, and
    is split as it is summed (on GPUs also inside shard_map, where experts are). So a step holds all matrices in
    `dtype` beside its share of the state, whatever `train.remat` and `model.scan_layers` say. Returns params as they
    are where nothing is split along that axis.
    """
    if not mesh_lib.splits(mesh, "fsdp"):
        return params

    def one(path: tuple, leaf: jax.Array, spec: P) -> jax.Array:
        if "fsdp" not in spec:
            return leaf
        whole = P(*(None if axis == "fsdp" else axis for axis in spec))
        places = NamedSharding(mesh, spec), NamedSharding(mesh, whole)
        return _gather(leaf, *places, jnp.dtype(dtype) if multiplied(path[-1].key) else leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, params, mesh_lib.param_specs(cfg, params, mesh))


def multiplied(name: str) -> bool:
    """Whether a parameter is only ever multiplied, in the computation dtype: not the router, nor tables, nor gains."""
    return name.startswith("w_") and name != "w_router"


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(leaf: jax.Array, split: NamedSharding, whole: NamedSharding, dtype: Any) -> jax.Array:
    cast = jax.lax.with_sharding_constraint(leaf.astype(dtype), split)  # before it travels, not after
    return jax.lax.with_sharding_constraint(cast, whole)


def _forward(leaf: jax.Array, split: NamedSharding, whole: NamedSharding, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return _gather(leaf, split, whole, dtype), jnp.zeros((), leaf.dtype)  # the dtype, which a residual can carry


def _backward(
    split: NamedSharding, whole: NamedSharding, dtype: Any, like: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, split).astype(like.dtype),)


_gather.defvjp(_forward, _backward)

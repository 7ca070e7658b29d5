"""Routed experts on a mesh: every device works on its own tokens, or on those of its expert group.

*Data and FSDP axes*: tokens are routed, sorted and computed where they are; XLA gathers split matrices first.
*Expert axis*: a device holds E / n experts. The tokens of its group are gathered to it, it computes the share of its
own experts, and the shares are summed and scattered back. No token is dropped and all shapes are static, which an
exchange of the chosen tokens alone (all-to-all) cannot give; n is small beside the experts K of a token, so it would
hardly send less either.
*Tensor axis*: hidden units are split, and the shares summed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mla_jax.config import ModelConfig
from mla_jax.mesh import BATCH, batch_shards, splits
from mla_jax.model import moe_paths
from mla_jax.model.backend import Backend
from mla_jax.model.experts import Experts, FeedForwardWeights


class Chosen(NamedTuple):
    """What the router chose: expert_idx [N, K] int32, expert_weight [N, K] float32."""

    expert_idx: jax.Array
    expert_weight: jax.Array


def tokens_here(rows: int, length: int, backend: Backend) -> int:
    """Tokens of a batch of `rows` rows that one device routes."""
    return rows * length // (batch_shards(backend.mesh) if _on_mesh(rows, backend) else 1)


def takes_shared(impl: str, rows: int, length: int, cfg: ModelConfig, backend: Backend) -> bool:
    """Whether `routed` can compute the shared experts too: where each device has all experts and whole hidden units."""
    mesh = backend.mesh
    if impl != "masked_dense" or splits(mesh, "expert") or splits(mesh, "tensor"):
        return False
    tokens = tokens_here(rows, length, backend)
    return (mesh is None or _on_mesh(rows, backend)) and moe_paths.masks_in_one_pass(
        tokens, max(cfg.top_k, cfg.n_shared_experts), cfg.d_expert, backend
    )


def routed(
    impl: str,
    x: jax.Array,
    chosen: Chosen,
    experts: Experts,
    backend: Backend,
    rows: int,
    shared: FeedForwardWeights | None = None,
) -> jax.Array:
    """`moe_paths.PATHS[impl]` of x [N, D], N = rows x length, on the backend's mesh: the same values and gradients.

    With `shared` experts, which only `takes_shared` allows: plus theirs.
    """
    path, mesh = moe_paths.PATHS[impl], backend.mesh
    more = () if shared is None else (shared,)
    if mesh is None:
        return path(x, *chosen, experts, backend, *more)
    if not _on_mesh(rows, backend):
        return path(x, *chosen, experts, dataclasses.replace(backend, train_impl="xla"))
    if impl == "grouped":
        path = functools.partial(path, some_elsewhere=True)
    split = P(BATCH)
    into, out_of = P("expert", None, "tensor"), P("expert", "tensor", None)
    places = Experts(None if experts.w_gate is None else into, into, out_of)
    return jax.shard_map(
        _share(path, mesh.shape["expert"], mesh.shape["tensor"], backend),
        mesh=mesh,
        in_specs=(split, Chosen(split, split), places, *(P() for _ in more)),
        out_specs=split,
        check_vma=False,
    )(x, chosen, experts, *more)


def _on_mesh(rows: int, backend: Backend) -> bool:
    """Not where the rows do not divide, like the single one that initialisation runs on: XLA does as it likes then."""
    return backend.mesh is not None and rows % batch_shards(backend.mesh) == 0


def _share(
    path: Callable[..., jax.Array], expert_parts: int, tensor_parts: int, backend: Backend
) -> Callable[..., jax.Array]:
    """What one device does, of so many along each axis."""

    def share(x: jax.Array, chosen: Chosen, experts: Experts, *shared: FeedForwardWeights) -> jax.Array:
        n_experts = experts.w_up.shape[0]
        expert_idx, expert_weight = chosen
        if expert_parts > 1:
            x, expert_idx, expert_weight = (
                jax.lax.all_gather(a, "expert", tiled=True) for a in (x, expert_idx, expert_weight)
            )
            expert_idx = expert_idx - jax.lax.axis_index("expert") * n_experts
            mine = (expert_idx >= 0) & (expert_idx < n_experts)
            # One past the last: an expert that no path computes.
            expert_idx, expert_weight = jnp.where(mine, expert_idx, n_experts), jnp.where(mine, expert_weight, 0.0)
        out = path(x, expert_idx, expert_weight, experts, backend, *shared)
        if tensor_parts > 1:
            out = jax.lax.psum(out, "tensor")
        return jax.lax.psum_scatter(out, "expert", tiled=True) if expert_parts > 1 else out

    return share

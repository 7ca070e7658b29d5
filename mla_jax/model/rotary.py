"""RoPE by kernels, between a product and attention: rotation, and the latent's norm, in one pass each way."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mla_jax import mesh
from mla_jax.config import ModelConfig
from mla_jax.kernels import rotate_heads, rotate_in_place
from mla_jax.model.backend import Backend
from mla_jax.model.functions import RMS_EPS, rope_angles
from mla_jax.model.one_pass import in_one_pass


def rotates_in_one_pass(x: jax.Array, positions: jax.Array | None, cfg: ModelConfig, backend: Backend) -> bool:
    """Whether `split_and_rotate` is asked for and takes x [B, T, D]: all rows at positions 0..T-1, no norm of heads."""
    if cfg.position != "rope" or cfg.qk_norm or positions is not None:
        return False
    return in_one_pass(x.shape[:2], backend, lambda own: rotate_heads.applies(*own) and rotate_in_place.applies(*own))


def split_and_rotate(
    y: jax.Array, parts: Sequence[rotate_heads.Part], gain: jax.Array | None, cfg: ModelConfig, backend: Backend
) -> tuple[jax.Array, ...]:
    """A product's parts [B, T, part.columns], heads rotated and a latent normalised, by one kernel each way."""
    cos, sin = rope_angles(jnp.arange(y.shape[1]), parts[0].rotary, cfg.rope_theta)

    def kernel(y: jax.Array, gain: jax.Array | None = None) -> tuple[jax.Array, ...]:
        return rotate_heads.split_and_rotate(y, cos, sin, gain, tuple(parts), RMS_EPS, backend.interpret)

    return mesh.by_rows(kernel, backend.mesh, [y], [] if gain is None else [gain])


def rotate_queries(q: jax.Array, part: rotate_heads.Part, cfg: ModelConfig, backend: Backend) -> jax.Array:
    """Heads [B, T, part.columns] with their ends rotated by positions 0..T-1, by one kernel each way."""
    cos, sin = rope_angles(jnp.arange(q.shape[1]), part.rotary, cfg.rope_theta)

    def kernel(q: jax.Array) -> jax.Array:
        return rotate_in_place.rotate(q, cos, sin, part, backend.interpret)

    return mesh.by_rows(kernel, backend.mesh, [q])

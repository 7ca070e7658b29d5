"""Whether a training kernel, which makes one pass of what XLA makes several of, takes an array."""

from collections.abc import Callable

from mla_jax import mesh
from mla_jax.model.backend import Backend


def in_one_pass(shape: tuple[int, ...], backend: Backend, applies: Callable[[tuple[int, ...]], bool]) -> bool:
    """Whether a kernel of training is asked for and takes what a device holds of an array [B, ...] of this shape."""
    if backend.train_impl != "pallas" or mesh.splits(backend.mesh, "tensor"):
        return False
    own = mesh.own_shape(shape, backend.mesh)
    return own is not None and applies(own)

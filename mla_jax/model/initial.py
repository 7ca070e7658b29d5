"""Starting values of parameters: what they are drawn from, and the drawing, one array at a time.

`model.init` would put all draws of a model into one program, which XLA takes half a minute to compile on a GPU (9.5 MB
of unrolled generators at size m). Here each distinct shape is one small program, whatever the number of layers.
"""

import contextlib
import contextvars
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Initial:
    """A Flax initializer: independent normal values of this mean and standard deviation; a constant when std is 0."""

    mean: float
    std: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """[*shape] values; while `_noting`, zeros that stand for them."""
        if (noted := _noted.get()) is None:
            return self.mean + self.std * jax.random.normal(key, shape, dtype) if self.std else self._constant(shape)
        stand_in = self._constant(shape)
        noted[id(stand_in)] = (self, stand_in)  # held, so that no other array gets its id
        return stand_in

    def _constant(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.full(shape, self.mean, jnp.float32)


ZEROS, ONES = Initial(0.0, 0.0), Initial(1.0, 0.0)
_noted: contextvars.ContextVar[dict[int, tuple[Initial, Any]] | None] = contextvars.ContextVar("noted", default=None)


def normal(std: float) -> Initial:
    """Normal values around 0."""
    return Initial(0.0, std)


def init_params(model: Any, seed: int) -> Any:
    """Fresh float32 parameters of a Transformer, on its mesh; a function of the seed and the model's config alone.

    Each array's key is the seed's, folded with a checksum of the array's name: the values depend neither on the mesh
    nor on what other arrays there are.
    """
    shapes, initials = _plan(model)
    mesh = model.backend.mesh
    where = None if mesh is None else mesh_lib.state_shardings(mesh, model.cfg, shapes, shapes)
    key = jax.random.key(seed)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    places = [None] * len(leaves) if where is None else jax.tree.leaves(where)
    values = []
    for (path, leaf), initial, place in zip(leaves, initials, places, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        make = _maker(leaf.shape, initial.std > 0, place)
        values.append(make(key, np.uint32(zlib.crc32(name.encode())), initial.mean, initial.std))
    return jax.tree.unflatten(tree, values)


@functools.lru_cache(maxsize=256)
def _maker(shape: tuple[int, ...], random: bool, place: Any) -> Callable[..., jax.Array]:
    def make(key: jax.Array, name: np.uint32, mean: float, std: float) -> jax.Array:
        if not random:
            return jnp.full(shape, mean, jnp.float32)
        return mean + std * jax.random.normal(jax.random.fold_in(key, name), shape, jnp.float32)

    return jax.jit(make, out_shardings=place)


def param_shapes(model: Any) -> Any:
    """The parameters of a Transformer as ShapeDtypeStructs; nothing is computed."""
    return jax.tree.map(lambda shape: shape, _plan(model)[0])  # dicts of the caller's own


@functools.lru_cache(maxsize=16)  # a start asks for fresh weights and, on a thread, for the training step
def _plan(model: Any) -> tuple[Any, tuple[Initial, ...]]:
    """The parameters' shapes, and of each leaf what it is drawn from."""
    initials: list[Initial] = []

    def trace() -> Any:
        with _noting() as noted:
            params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
        initials.extend(noted[id(leaf)][0] for leaf in jax.tree.leaves(params))
        return params

    return jax.eval_shape(trace), tuple(initials)


@contextlib.contextmanager
def _noting() -> Iterator[dict[int, tuple[Initial, Any]]]:
    token = _noted.set({})
    try:
        yield _noted.get()
    finally:
        _noted.reset(token)

"""What training carries from step to step: an explicit pytree, in and out."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mla_jax import mesh
from mla_jax.model.initial import param_shapes
from mla_jax.model.moe import initial_router_bias
from mla_jax.model.transformer import Transformer, variables_of


@struct.dataclass
class TrainState:
    """step: int32 [], optimizer steps done. params, opt_state: float32 pytrees.

    router_bias: [L_moe, E] float32, outside `params` so that no optimizer sees it; None without experts.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    router_bias: jax.Array | None

    @property
    def variables(self) -> dict[str, Any]:
        """What `Transformer.apply` takes."""
        return variables_of(self.params, self.router_bias)


def init_state(
    model: Transformer, optimizer: optax.GradientTransformation, params: Any, router_bias: jax.Array | None = None
) -> TrainState:
    """The state at step 0 of given parameters and, with experts, their router bias (default: zeros), on the mesh."""
    if router_bias is None:
        router_bias = initial_router_bias(model.cfg)
    state = TrainState(jnp.zeros((), jnp.int32), params, None, router_bias)
    if model.backend.mesh is None:
        return state.replace(opt_state=jax.jit(optimizer.init)(params))  # one program, not one for each shape
    where = shardings(model, state.replace(opt_state=jax.eval_shape(optimizer.init, params)))
    opt_state = jax.jit(optimizer.init, out_shardings=where.opt_state)(params)
    step, router_bias = mesh.spread((state.step, router_bias), (where.step, where.router_bias))
    return TrainState(step, params, opt_state, router_bias)


def shardings(model: Transformer, state: TrainState) -> TrainState:
    """Where each leaf of a state (or of its shapes) lives on the model's mesh: a TrainState of NamedSharding."""
    return mesh.state_shardings(model.backend.mesh, model.cfg, state.params, state)


def abstract_state(model: Transformer, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and places of a state, computing nothing: what a checkpoint is restored against."""

    def build(params: Any) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), initial_router_bias(model.cfg))

    state = jax.eval_shape(build, param_shapes(model))
    if model.backend.mesh is None:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        where = jax.tree.map(lambda _: place, state)
    else:
        where = shardings(model, state)
    return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state, where)

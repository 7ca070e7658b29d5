"""What training carries from step to step: an explicit pytree, in and out."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

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


def init_params(model: Transformer, seed: int) -> Any:
    """Fresh float32 parameters; a function of the seed and the model's config alone."""
    tokens = jnp.zeros((1, 8), jnp.int32)
    return jax.jit(model.init)(jax.random.key(seed), tokens)["params"]


def init_state(
    model: Transformer, optimizer: optax.GradientTransformation, params: Any, router_bias: jax.Array | None = None
) -> TrainState:
    """The state at step 0 of given parameters and, with experts, their router bias (default: zeros)."""
    if router_bias is None:
        router_bias = initial_router_bias(model.cfg)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), router_bias)


def abstract_state(model: Transformer, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of a state, computing nothing: what a checkpoint is restored against."""

    def build() -> TrainState:
        params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
        return init_state(model, optimizer, params)

    return jax.eval_shape(build)

"""An exponential moving average of the weights, kept beside the optimizer's state.

Training goes on from the raw weights; evaluation, samples and the checkpoint's item `model` are the average.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mla_jax.train.state import TrainState


class EmaState(NamedTuple):
    """inner: state of the wrapped optimizer; average: as the parameters; count: int32 [], updates done."""

    inner: Any
    average: Any
    count: jax.Array


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, with the average of the parameters it leads to: average <- d average + (1 - d) parameters.

    d = min(decay, (1 + t) / (10 + t)) after t updates, so that the random start is soon forgotten. `update` takes as
    `finished` what the step makes of the parameters after the optimizer (QK-clip): the average is of those.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> EmaState:
        # A copy: the step donates parameters and average, and one buffer cannot be given away twice.
        return EmaState(optimizer.init(params), jax.tree.map(jnp.array, params), jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: EmaState,
        params: Any,
        *,
        finished: Callable[[Any], Any] = lambda params: params,
        **given: Any,
    ) -> tuple[Any, EmaState]:
        updates, inner = optimizer.update(updates, state.inner, params, **given)
        d = jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count))
        after = finished(optax.apply_updates(params, updates))
        average = jax.tree.map(lambda a, p: a + (1 - d) * (p - a), state.average, after)
        return updates, EmaState(inner, average, optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def swapped(state: TrainState) -> TrainState:
    """Parameters and average in each other's place: the state to evaluate and to sample from; itself without average.

    It is also how a state is written, and, applied again, how it is read back: so a checkpoint's item `model` holds
    what a reader of the run should use, and nothing is stored twice.
    """
    if not isinstance(state.opt_state, EmaState):
        return state
    average = state.opt_state.average
    return state.replace(params=average, opt_state=state.opt_state._replace(average=state.params))

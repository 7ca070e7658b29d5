"""The average of the weights: its numbers, and its place in checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_params, random_tokens, reference_model, tiny_config

from mla_jax.train.ema import swapped, with_average
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import TrainState, init_state
from mla_jax.train.step import make_train_step

PARAMS = {"w_q": jnp.full((2, 3), 2.0), "gain": jnp.ones((3,))}


def test_the_average_follows_the_weights_by_hand() -> None:
    decay = 0.3
    optimizer = with_average(optax.sgd(0.5), decay)
    params, state = PARAMS, optimizer.init(PARAMS)
    value, average = 2.0, 2.0
    for t in range(6):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        value -= 0.5
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * value
        np.testing.assert_allclose(state.average["w_q"], average, rtol=1e-6)
        np.testing.assert_allclose(params["w_q"], value, rtol=1e-6)


def state_of(**knobs: Any) -> TrainState:
    config = tiny_config(**{"model.n_layers": 1, **knobs})
    model = reference_model(config)
    return init_state(model, make_optimizer(config.optim), random_params(model))


def test_the_average_is_of_what_qk_clip_leaves() -> None:
    """An average that forgets at once is the parameters, which the clip scales after the optimizer."""
    knobs = {"model.n_layers": 1, "optim.warmup_steps": 0, "optim.learning_rate": 1e-2, "train.batch_size": 2}
    for clip in (0.0, 0.01):
        config = tiny_config("mla_rope", **knobs, **{"optim.ema_decay": 1e-9, "optim.qk_clip": clip})
        model, optimizer = reference_model(config), make_optimizer(config.optim)
        state = init_state(model, optimizer, random_params(model))
        before = jax.tree.map(np.array, state.params)
        tokens = random_tokens(config, 2, config.train.seq_len + 1)
        batch = {"tokens": tokens, "segment_ids": jnp.ones_like(tokens)}
        state, _ = make_train_step(model, optimizer, config)(state, batch)
        for a, p in zip(*map(jax.tree.leaves, (state.opt_state.average, state.params)), strict=True):
            np.testing.assert_allclose(a, p, rtol=1e-6, atol=1e-7)
        name = "w_q"
        was, now = (float(jnp.linalg.norm(t["layer_0"]["attention"][name])) for t in (before, state.params))
        assert (now < 0.9 * was) == bool(clip)  # the clip had something to do


def moved(state: TrainState) -> TrainState:
    """A state whose average differs from its weights."""
    return state.replace(params=jax.tree.map(lambda p: p + 1, state.params))


def test_evaluation_reads_the_average_where_there_is_one() -> None:
    state = moved(state_of(**{"optim.ema_decay": 0.99}))
    gap = jax.tree.map(lambda a, p: float(jnp.max(jnp.abs(p - 1 - a))), swapped(state).params, state.params)
    assert max(jax.tree.leaves(gap)) < 1e-6
    plain = state_of()
    assert swapped(plain) is plain


def test_swapping_twice_is_nothing() -> None:
    state = moved(state_of(**{"optim.ema_decay": 0.99}))
    other = swapped(state)
    assert other.params is state.opt_state.average
    assert other.opt_state.average is state.params
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, swapped(other), state))


def test_average_and_weights_are_buffers_of_their_own() -> None:
    """The step donates both."""
    state = state_of(**{"optim.ema_decay": 0.99})
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(state.opt_state.average), strict=True)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


@pytest.mark.parametrize("knobs", [{"optim.name": "muon"}, {"optim.name": "muon", "optim.ema_decay": 0.9}])
def test_a_checkpoint_gives_the_state_back_and_readers_the_average(tmp_path: Path, knobs: dict[str, Any]) -> None:
    import grain
    import orbax.checkpoint as ocp

    from mla_jax.runs import RunFolder
    from mla_jax.train.checkpoint import Checkpoints

    config = tiny_config(**{"model.n_layers": 1, **knobs})
    state = moved(state_of(**knobs)).replace(step=jnp.int32(3))
    state = state.replace(opt_state=jax.tree.map(lambda a: a + jnp.ones((), a.dtype), state.opt_state))
    data = iter(grain.MapDataset.range(10).to_iter_dataset())
    folder = RunFolder(tmp_path / "run")
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        checkpoints.save(state, data, None)
        checkpoints.wait()
        restored = checkpoints.restore(jax.eval_shape(lambda: state), data)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    found = ocp.StandardCheckpointer().restore((folder.checkpoints / "3" / "model").resolve())
    jax.tree.map(np.testing.assert_array_equal, found["params"], swapped(state).params)

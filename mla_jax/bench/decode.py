"""Time of a decode step: the sampler's own loop, many steps in one program, all rows near the end of the cache."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax import accounting
from mla_jax.bench.points import Point
from mla_jax.bench.timing import measure
from mla_jax.config import Config, ModelConfig, replace
from mla_jax.model import moe_choice, packed_decode
from mla_jax.model.backend import Backend
from mla_jax.model.cache import init_cache
from mla_jax.model.initial import init_params
from mla_jax.model.moe import initial_router_bias
from mla_jax.model.serving import experts_by_kernels, packs, read_at_decode, serving_variables
from mla_jax.model.transformer import Transformer, variables_of
from mla_jax.sample import loop
from mla_jax.sample.methods import GREEDY, Method

ALL_METHODS = Method(0.8, 40, 0.95, 0.02, 1.1)  # temperature, top-k, top-p, min-p and repetition penalty together


def for_context(point: Point, context: int) -> Point:
    """The point with positions for `context` tokens (a learned position table grows with it)."""
    longest = max(context, point.config.model.max_len)
    return Point(point.name, replace(point.config, **{"model.max_len": longest}), point.run)


def random_variables(model: Transformer, seed: int = 0) -> Any:
    """Random weights as decoding reads them (model/serving.py); a run's own weights would take as long."""
    bias = initial_router_bias(model.cfg)
    serve = jax.jit(lambda params: serving_variables(model.cfg, variables_of(params, bias), model.backend))
    return serve(init_params(model, seed))


_newest: dict[tuple[ModelConfig, Backend], Any] = {}  # weights of the model measured last


def newest_variables(model: Transformer) -> Any:
    """`random_variables`, kept for the next batch of the same model: making them takes longer than its steps."""
    key = model.cfg, model.backend
    if key not in _newest:
        forget_variables()  # first: two large models may not fit
        _newest[key] = random_variables(model)
    return _newest[key]


def forget_variables() -> None:
    """Free what `newest_variables` keeps."""
    _newest.clear()


def nbytes(tree: Any) -> int:
    """Bytes of the arrays (or of the shapes) of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def filled_cache(model: Transformer, batch: int, context: int) -> Any:
    """A cache of numbers that look random: zeros would be faster to compute with than what is measured for.

    Computed from the indices, so that nothing of a cache's size is needed beside it.
    """

    def wave(leaf: jax.Array) -> jax.Array:
        axes = [jax.lax.broadcasted_iota(jnp.float32, leaf.shape, axis) for axis in range(leaf.ndim)]
        phase = sum(a * f for a, f in zip(axes, (1.7, 0.917, 2.39, 0.733), strict=False))
        return (100 * jnp.sin(phase) if leaf.dtype == jnp.int8 else jnp.sin(phase)).astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: init_cache(model.cfg, batch, context, model.backend.dtype))
    return jax.jit(lambda: jax.tree.map(wave, shapes))()


def state_at(model: Transformer, store: Any, position: int, steps: int, seen: bool) -> loop.SamplerState:
    """A state whose rows all stand at `position`, and have room for `steps` more tokens."""
    batch = jax.tree.leaves(store)[0].shape[0]

    def everywhere(value: int) -> jax.Array:
        return jnp.full(batch, value, jnp.int32)  # each its own buffer: they are donated

    return loop.SamplerState(
        last=everywhere(0),
        position=everywhere(position),
        drawn=jnp.int32(0),
        count=everywhere(0),
        limit=everywhere(steps + 1),
        done=jnp.zeros(batch, bool),
        out=jnp.zeros((batch, steps), jnp.int32),
        logprobs=None,
        keys=jax.vmap(jax.random.key)(jnp.arange(batch, dtype=jnp.uint32)),
        seen=jnp.zeros((batch, model.cfg.vocab_size), bool) if seen else None,
        store=store,
    )


def run(
    point: Point,
    batch: int,
    context: int,
    steps: int,
    repeats: int,
    method: Method = GREEDY,
    **knobs: Any,
) -> dict[str, Any]:
    """Metrics of decoding `batch` rows at the end of a cache of `context` positions. knobs: of `model`.

    Time per step (ms and its spread), tokens/s, bytes that a step has to move (weights once, but not experts that no
    row chose; the cache's filled part once; counted from the arrays) and the rate that makes. Raises what JAX raises
    where it does not fit.
    """
    steps = min(steps, context // 2)
    model = for_context(point, context).model(**knobs)
    variables = newest_variables(model)
    vocabulary = loop.Vocabulary(model.cfg.vocab_size, -1)  # nothing ends a row
    held = [filled_cache(model, batch, context)]
    cache_bytes, weight_bytes = nbytes(held[0]), nbytes(read_at_decode(variables, batch))

    def prepare() -> loop.SamplerState:
        return state_at(model, held.pop(), context - steps, steps, seen=method.repetition_penalty != 1)

    def call(state: loop.SamplerState) -> loop.SamplerState:
        state = loop.decode_loop(model, variables, state, steps, method, vocabulary)
        held.append(state.store)  # donated: the next call goes on with the same memory
        return state

    timing = measure(call, prepare, repeats)
    filled = (context - steps + context + 1) / 2 / context  # of the cache, mean over the steps
    step_bytes = int(weight_bytes - unread_expert_bytes(model, batch) + cache_bytes * filled)
    seconds = timing.median_s / steps
    return {
        **timing.metrics(steps),
        "decode_impl": decode_impl(model, batch),
        "dtype": model.backend.dtype,
        "tokens_per_s": batch / seconds,
        "cache_bytes": cache_bytes,
        "cache_bytes_per_token": accounting.kv_bytes(model.cfg, model.backend.dtype),
        "weight_bytes": weight_bytes,
        "step_bytes": step_bytes,
        "bytes_per_s": step_bytes / seconds,
    }


def unread_expert_bytes(model: Transformer, batch: int) -> int:
    """Bytes of routed experts that a step of `batch` rows leaves alone, if all are chosen equally often: E (1 - K/E)^B
    of a layer's E. 0 where all are read: beside a path that fetches the chosen ones."""
    cfg, backend = model.cfg, model.backend
    if not cfg.n_moe_layers or cfg.top_k == cfg.n_routed_experts:
        return 0
    if not experts_by_kernels(cfg, backend, batch) and moe_choice.choose(cfg, batch, backend).impl != "gathered":
        return 0
    params, unchosen = accounting.params(cfg), 1 - cfg.top_k / cfg.n_routed_experts
    routed = (params["total"] - params["active"]) / unchosen
    return int(routed * unchosen**batch * backend.jnp_dtype.itemsize)


def decode_impl(model: Transformer, batch: int) -> str:
    """What attends in a step of `batch` rows: where the choice is automatic it depends on their number."""
    cfg, backend = model.cfg, model.backend
    if cfg.attention == "mla" or not packs(cfg, backend):
        return backend.decode_impl
    return packed_decode.heads_impl(cfg, backend, batch, backend.jnp_dtype)


def estimated_bytes(config: Config, batch: int, context: int, dtype: str) -> int:
    """Device memory that decoding needs, roughly: weights, cache and logits in float32 with a copy."""
    model = config.model
    weights = accounting.params(model)["total"] * accounting.DTYPE_BYTES[dtype]
    cache = accounting.kv_bytes(model, dtype) * batch * context
    return weights + cache + 3 * 4 * batch * model.vocab_size

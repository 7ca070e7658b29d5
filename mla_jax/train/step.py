"""One optimizer step and one evaluation step, jitted."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mla_jax import mesh as mesh_lib
from mla_jax.config import Config, TrainConfig
from mla_jax.data.pipeline import shift
from mla_jax.model import one_pass
from mla_jax.model.attention import Where
from mla_jax.model.moe import router_bias_update
from mla_jax.model.transformer import Transformer, variables_of
from mla_jax.train.clip import joint_norm
from mla_jax.train.fsdp import gathered
from mla_jax.train.loss import Kernel, chunked_cross_entropy, cross_entropy, fused_cross_entropy
from mla_jax.train.qk_clip import clip_queries_and_keys
from mla_jax.train.state import TrainState, abstract_state, shardings

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class RouterSums(NamedTuple):
    """Sums over microbatches. loss []: router_loss x targets; expert_load [L_moe, E]; entropy [L_moe] x targets."""

    loss: jax.Array
    expert_load: jax.Array
    entropy: jax.Array


class Sums(NamedTuple):
    """Sums over microbatches. loss []: nats; count []: targets; router: None without experts.

    logit_max [L, H]: the largest attention logits, no sum but a maximum; None where nobody asks (`optim.qk_clip`=0).
    """

    loss: jax.Array
    count: jax.Array
    router: RouterSums | None
    logit_max: jax.Array | None

    def merged(self, other: "Sums") -> "Sums":
        """Of this part and another."""
        total = jax.tree.map(jnp.add, self, other)
        return total._replace(logit_max=jax.tree.map(jnp.maximum, self.logit_max, other.logit_max))


def where_of(shifted: Batch, document_mask: bool) -> Where:
    """Positions and segments for the model; none of them (a plain causal row) unless documents are kept apart."""
    return Where(shifted["positions"], shifted["segment_ids"]) if document_mask else Where()


def _make_loss_sum(model: Transformer, config: Config) -> Callable[..., tuple[jax.Array, Sums]]:
    """(params, router_bias, microbatch, dropout's key) -> (what is differentiated, `Sums`)."""
    n_tokens, document_mask = config.tokenizer.vocab_size, config.data.document_mask
    chunks, backend = config.train.loss_chunks, model.backend

    def loss_sum(params: Any, router_bias: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        shifted = shift(batch, document_mask)
        params = gathered(params, backend.mesh, config.model, backend.jnp_dtype)
        variables = variables_of(params, router_bias)
        takes = one_pass.in_one_pass(shifted["inputs"].shape, backend, lambda own: True)
        kernel = Kernel(backend.interpret, backend.mesh) if takes else None
        arguments = (shifted["inputs"], where_of(shifted, document_mask), key, config.train.remat)
        mask = shifted["loss_mask"].astype(jnp.float32)
        out, aux = model.apply(variables, *arguments, method="hidden" if chunks > 1 or takes else None)
        with jax.named_scope("loss"):
            by_product = (out, params["embedding"], shifted["targets"], mask, n_tokens)
            if chunks > 1:
                total = chunked_cross_entropy(*by_product, chunks, kernel)
            elif kernel is not None:
                total = fused_cross_entropy(*by_product, kernel)
            else:
                total = jnp.sum(cross_entropy(out, shifted["targets"], n_tokens) * mask)
        count = jnp.sum(mask)
        logit_max = aux.attn_logit_max if config.optim.qk_clip else None
        if aux.router is None:
            return total, Sums(total, count, None, logit_max)
        router_loss = jnp.sum(aux.router.router_loss) * count
        router = RouterSums(router_loss, aux.router.expert_load, aux.router.router_entropy * count)
        return total + router_loss, Sums(total, count, router, logit_max)

    return loss_sum


def _accumulated(gradient: Callable[..., tuple[Any, Sums]], parts: int, mesh: Any) -> Callable[..., tuple[Any, Sums]]:
    """`gradient` over `parts` microbatches, one after the other, each with a key of its own: sums of all of them."""

    def whole_batch(params: Any, router_bias: Any, batch: Batch, key: jax.Array) -> tuple[Any, Sums]:
        if parts == 1:
            return gradient(params, router_bias, batch, key)
        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
        split = jax.tree.map(lambda a: mesh_lib.constrain(a, mesh, None, mesh_lib.BATCH), split)

        def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
            index, microbatch = part
            grads, sums = gradient(params, router_bias, microbatch, jax.random.fold_in(key, index))
            return (jax.tree.map(jnp.add, carry[0], grads), carry[1].merged(sums)), None

        first = jax.tree.map(lambda a: a[0], split)
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, params, router_bias, first, key)
        )
        return jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]

    return whole_batch


class _Moved(NamedTuple):
    """What a step changes of a `TrainState`, beside counting itself: its fields of these names."""

    params: Any
    opt_state: Any
    router_bias: Any


def _make_update(
    optimizer: optax.GradientTransformation, config: Config, places: Any
) -> Callable[[TrainState, Any, Sums], tuple[_Moved, jax.Array]]:
    """(state, gradients of the mean loss, `Sums` of the batch) -> (what the step makes of the state, gradient norm []).

    places: a sharding for each parameter, or None without a mesh. The router bias moves by the load of the whole batch.
    """
    cfg, optim = config.model, config.optim

    def update(state: TrainState, grads: Any, sums: Sums) -> tuple[_Moved, jax.Array]:
        if places is not None:
            grads = jax.lax.with_sharding_constraint(grads, places)
        with jax.named_scope("optimizer"):
            grad_norm = joint_norm(grads, places)

            def finished(params: Any) -> Any:
                """What the step makes of the parameters that the optimizer leads to."""
                return clip_queries_and_keys(params, sums.logit_max, optim.qk_clip, cfg) if optim.qk_clip else params

            given = (grads, state.opt_state, state.params)
            updates, opt_state = optimizer.update(*given, grad_norm=grad_norm, finished=finished)
            params = finished(optax.apply_updates(state.params, updates))
        router_bias = state.router_bias
        if sums.router is not None:
            load = sums.router.expert_load
            router_bias = router_bias_update(router_bias, load, cfg.router_bias_rate, cfg.router_bias_rule)
        return _Moved(params, opt_state, router_bias), grad_norm

    return update


def _is_good(loss: jax.Array, grad_norm: jax.Array, cfg: TrainConfig) -> jax.Array:
    """[] bool: both are finite, and within `bad_loss` and `bad_grad_norm` where those bounds are set (not 0)."""
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    for value, bound in ((loss, cfg.bad_loss), (grad_norm, cfg.bad_grad_norm)):
        if bound:
            good &= value <= bound
    return good


def _moved_if(good: jax.Array, moved: _Moved, state: TrainState) -> _Moved:
    """`moved` where good [], else what `state` has; but the learning rate's schedule goes by steps, skipped or not."""
    old = _Moved(state.params, state.opt_state, state.router_bias)

    def is_schedule(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    def chosen(new: Any, old: Any) -> Any:
        return new if is_schedule(new) else jnp.where(good, new, old)

    return jax.tree.map(chosen, moved, old, is_leaf=is_schedule)


def _metrics(loss: jax.Array, grad_norm: jax.Array, good: jax.Array, sums: Sums, count: jax.Array) -> Metrics:
    """`make_train_step`'s metrics; count []: the batch's targets, at least 1."""
    metrics = {"loss": loss, "grad_norm": grad_norm, "finite": good.astype(jnp.float32)}
    if sums.router is not None:
        metrics |= {
            "router_loss": sums.router.loss / count,
            "expert_load": sums.router.expert_load,
            "router_entropy": sums.router.entropy / count,
        }
    return metrics


def make_train_step(
    model: Transformer, optimizer: optax.GradientTransformation, config: Config
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, {tokens, segment_ids [B, T+1]}[, dropout's seed]) -> (state, metrics), donating the state.

    metrics, float32 []: loss (nats per token over the batch: cross-entropy alone), grad_norm (before clipping),
    finite; with experts also router_loss (weighted, part of what is differentiated), and of each layer
    expert_load [L_moe, E] (tokens of the batch) and router_entropy [L_moe].
    Microbatches accumulate sums of losses and gradients and the count of targets, and divide once, so that their
    number changes nothing but rounding (auxiliary router losses excepted: they are those of each microbatch).
    The router bias moves once, by the load of the whole batch. finite is 0 for a bad step (train/rollback.py);
    `train.on_nonfinite=skip` then keeps the old state, bias included; the schedule's count goes on.
    """
    cfg, mesh = config.train, model.backend.mesh
    where = None if mesh is None else shardings(model, abstract_state(model, optimizer))

    gradient = jax.grad(_make_loss_sum(model, config), has_aux=True)
    whole_batch = _accumulated(gradient, cfg.microbatches, mesh)
    update = _make_update(optimizer, config, None if where is None else where.params)

    def train_step(state: TrainState, batch: Batch, seed: jax.Array | int = cfg.seed) -> tuple[TrainState, Metrics]:
        # rbg: the device's own generator makes dropout cheap; still a pure function of (seed, step).
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), state.step)
        grads, sums = whole_batch(state.params, state.router_bias, batch, key)
        count = jnp.maximum(sums.count, 1.0)
        moved, grad_norm = update(state, jax.tree.map(lambda g: g / count, grads), sums)
        loss = sums.loss / count
        good = _is_good(loss, grad_norm, cfg)
        if cfg.on_nonfinite == "skip":
            moved = _moved_if(good, moved, state)
        metrics = _metrics(loss, grad_norm, good, sums, count)
        return TrainState(state.step + 1, *moved), metrics

    jit = functools.partial(jax.jit, donate_argnums=0, compiler_options=model.backend.compiler_options)
    return jit(train_step) if where is None else jit(train_step, out_shardings=(where, mesh_lib.replicated(mesh)))


def make_eval_step(model: Transformer, config: Config) -> Callable[[Any, Batch], jax.Array]:
    """(variables, {tokens, segment_ids [B, T+1]}) -> nll [B, T] float32 in nats; 0 where the loss mask is 0."""
    n_tokens, document_mask = config.tokenizer.vocab_size, config.data.document_mask

    def eval_step(variables: Any, batch: Batch) -> jax.Array:
        shifted = shift(batch, document_mask)
        params = gathered(variables["params"], model.backend.mesh, config.model, model.backend.jnp_dtype)
        variables = variables | {"params": params}
        logits, _ = model.apply(variables, shifted["inputs"], where_of(shifted, document_mask))
        return cross_entropy(logits, shifted["targets"], n_tokens) * shifted["loss_mask"]

    return _jit_replicated(eval_step, model)


def make_logit_probe(model: Transformer, config: Config) -> Callable[[Any, Batch], jax.Array]:
    """(variables, batch) -> the largest attention logit of the batch's first row, over all layers and heads.

    Its own small program, run when metrics are logged: fused attention never shows its logits.
    """
    one_row = model.clone(backend=dataclasses.replace(model.backend, mesh=None))  # it does not divide

    def probe(variables: Any, batch: Batch) -> jax.Array:
        shifted = shift(jax.tree.map(lambda a: a[:1], batch), config.data.document_mask)
        _, aux = one_row.apply(variables, shifted["inputs"], where_of(shifted, config.data.document_mask))
        return jnp.max(aux.attn_logit_max)

    return _jit_replicated(probe, model)


def make_param_norm(model: Transformer) -> Callable[[Any], jax.Array]:
    """params -> their norm, float32 []. A program of its own, run when metrics are logged: inside the step it makes a
    reduction of each parameter's update, which XLA then neither joins with others nor runs at the speed of a copy."""
    return _jit_replicated(optax.tree.norm, model)


def _jit_replicated(function: Callable, model: Transformer) -> Callable:
    """jax.jit, with the whole result on every device of the model's mesh: every process can read it."""
    mesh = model.backend.mesh
    jit = functools.partial(jax.jit, compiler_options=model.backend.compiler_options)
    return jit(function) if mesh is None else jit(function, out_shardings=mesh_lib.replicated(mesh))

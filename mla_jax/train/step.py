"""One optimizer step and one evaluation step, jitted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mla_jax.config import Config
from mla_jax.data.pipeline import shift
from mla_jax.model.attention import Where
from mla_jax.model.transformer import Transformer, variables_of
from mla_jax.train.loss import chunked_cross_entropy, cross_entropy
from mla_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def where_of(shifted: Batch, document_mask: bool) -> Where:
    """Positions and segments for the model; none of them (a plain causal row) unless documents are kept apart."""
    return Where(shifted["positions"], shifted["segment_ids"]) if document_mask else Where()


def make_train_step(
    model: Transformer, optimizer: optax.GradientTransformation, config: Config
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, {tokens, segment_ids [B, T+1]}) -> (state, metrics), donating the state.

    metrics, float32 []: loss (nats per token over the batch), grad_norm (before clipping), param_norm, finite.
    Microbatches accumulate sums of losses and gradients and the count of targets, and divide once, so that their
    number changes nothing but rounding. finite is 0 for a bad step (train/rollback.py); `train.on_nonfinite=skip`
    then keeps the old state.
    """
    n_tokens, document_mask = config.tokenizer.vocab_size, config.data.document_mask
    seed, parts, chunks = config.train.seed, config.train.microbatches, config.train.loss_chunks

    def loss_sum(params: Any, router_bias: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        shifted = shift(batch, document_mask)
        variables = variables_of(params, router_bias)
        arguments = (shifted["inputs"], where_of(shifted, document_mask), key, config.train.remat)
        mask = shifted["loss_mask"].astype(jnp.float32)
        if chunks > 1:
            x, _ = model.apply(variables, *arguments, method="hidden")
            with jax.named_scope("loss"):
                total = chunked_cross_entropy(x, params["embedding"], shifted["targets"], mask, n_tokens, chunks)
            return total, jnp.sum(mask)
        logits, _ = model.apply(variables, *arguments)
        with jax.named_scope("loss"):
            nll = cross_entropy(logits, shifted["targets"], n_tokens)
        return jnp.sum(nll * mask), jnp.sum(mask)

    gradient = jax.value_and_grad(loss_sum, has_aux=True)

    def whole_batch(params: Any, router_bias: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        if parts == 1:
            (total, count), grads = gradient(params, router_bias, batch, key)
            return total, count, grads
        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)

        def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
            index, microbatch = part
            (total, count), grads = gradient(params, router_bias, microbatch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, (total, count, grads)), None

        zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # rbg: the device's own generator makes dropout cheap; still a pure function of (seed, step).
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), state.step)
        total, count, grads = whole_batch(state.params, state.router_bias, batch, key)
        count = jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        with jax.named_scope("optimizer"):
            grad_norm = optax.tree.norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        loss = total / count
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        for value, bound in ((loss, config.train.bad_loss), (grad_norm, config.train.bad_grad_norm)):
            if bound:
                finite &= value <= bound
        if config.train.on_nonfinite == "skip":
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (params, opt_state),
                (state.params, state.opt_state),
            )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "finite": finite.astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state, state.router_bias), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(model: Transformer, config: Config) -> Callable[[Any, Batch], jax.Array]:
    """(variables, {tokens, segment_ids [B, T+1]}) -> nll [B, T] float32 in nats; 0 where the loss mask is 0."""
    n_tokens, document_mask = config.tokenizer.vocab_size, config.data.document_mask

    def eval_step(variables: Any, batch: Batch) -> jax.Array:
        shifted = shift(batch, document_mask)
        logits, _ = model.apply(variables, shifted["inputs"], where_of(shifted, document_mask))
        return cross_entropy(logits, shifted["targets"], n_tokens) * shifted["loss_mask"]

    return jax.jit(eval_step)


def make_logit_probe(model: Transformer, config: Config) -> Callable[[Any, Batch], jax.Array]:
    """(variables, batch) -> the largest attention logit of the batch's first row, over all layers and heads.

    Its own small program, run when metrics are logged: fused attention never shows its logits.
    """

    def probe(variables: Any, batch: Batch) -> jax.Array:
        shifted = shift(jax.tree.map(lambda a: a[:1], batch), config.data.document_mask)
        _, aux = model.apply(variables, shifted["inputs"], where_of(shifted, config.data.document_mask))
        return jnp.max(aux.attn_logit_max)

    return jax.jit(probe)

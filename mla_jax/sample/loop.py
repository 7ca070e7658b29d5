"""The decode loop on the device: an explicit state, one step, and the two ways to run steps (a count, or to the end).

What the benchmark times is what the sampler runs: `decode_loop`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mla_jax.model.backend import CUBLAS_PRODUCTS, Backend
from mla_jax.model.cache import Cache, init_cache
from mla_jax.model.transformer import Transformer
from mla_jax.sample.methods import Form, Method, Values, draw

# Rows from which products go to cuBLAS. Of 1,024 rows XLA makes sums of four products, stored in float32 and added in a
# launch of their own with the residual, which cuBLAS adds on the way. Size m, MLA, on an H100: 1.373 ms a step instead
# of 1.459 at 1024 x 512, 447 us instead of 490 at 128 x 512; but 753 instead of 739 at 64 x 4096, 317 not 263 at 16.
_CUBLAS_FROM = 128

# Steps between two tests of "are all rows done?": on a GPU a loop's predicate is a round trip to the host.
CHECK_EVERY = 16


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """n_tokens: ids from there on are surplus rows, never drawn. separator_id ends a story; -1 = nothing does."""

    n_tokens: int
    separator_id: int


@struct.dataclass
class SamplerState:
    """Everything that a decode step reads and writes: B rows, M columns of output, vocab embedding rows.

    last [B] int32: the token drawn last, not yet in the cache; a stream reads it. Filler from the step after on.
    position [B] int32: where in the cache it belongs. It stands still once a row is done, so that nothing is ever
      computed past a row's own end: position < prompt length + limit <= cache length.
    drawn [] int32: tokens drawn for each row that was never done = the column of `out` to be written next.
    count [B] int32: tokens of `out` that are the row's, its separator included.
    limit [B] int32: a row is done when it has so many tokens, M at most.
    done [B] bool: the row has its separator, its `limit`, or was stopped from outside.
    out [B, M] int32: the tokens; columns from `count` on are filler.
    logprobs [B, M] float32, or None if not asked for: log-probability of each token of `out` under the model
      (temperature 1, nothing cut, no penalty); 0 where filler.
    keys [B]: a random key a row; token i is drawn with fold_in(key, i).
    seen [B, vocab] bool, or None without a repetition penalty: tokens of the row's prompt and completion.
    store: the KV cache; position p of row b holds token p of prompt + completion.
    """

    last: jax.Array
    position: jax.Array
    drawn: jax.Array
    count: jax.Array
    limit: jax.Array
    done: jax.Array
    out: jax.Array
    logprobs: jax.Array | None
    keys: jax.Array
    seen: jax.Array | None
    store: Cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def prefill(
    model: Transformer, cache_length: int, cache_dtype: str, variables: Any, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, Cache]:
    """Right-padded prompts tokens [B, W], lengths [B] -> logits [B, vocab] after each, a new cache of B rows.

    Of a prompt longer than W this reads the first W tokens; `extend` reads the rest. cache_dtype: "bfloat16",
    "float32" or "int8" (latents only).
    """
    store = init_cache(model.cfg, tokens.shape[0], cache_length, cache_dtype)
    return model.apply(variables, tokens, jnp.minimum(lengths, tokens.shape[1]), store, method="prefill")


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(5, 6))
def extend(
    model: Transformer,
    variables: Any,
    tokens: jax.Array,
    start: jax.Array,
    lengths: jax.Array,
    logits: jax.Array,
    store: Cache,
) -> tuple[jax.Array, Cache]:
    """The next piece of long prompts: tokens [B, W] at positions start [] .. start+W-1 on top of the cache.

    lengths [B] are of the whole prompts. logits [B, vocab] change in the rows whose prompt ends in this piece.
    Rows that ended before write rubbish after their end, which decode overwrites before it can see it.
    """
    last = jnp.clip(lengths - 1 - start, 0, tokens.shape[1] - 1)
    new, store = model.apply(
        variables, tokens, jnp.broadcast_to(start, lengths.shape), store, last=last, method="decode"
    )
    ends_here = (lengths > start) & (lengths <= start + tokens.shape[1])
    return jnp.where(ends_here[:, None], new[:, 0], logits), store


def begin(
    logits: jax.Array,
    store: Cache,
    prompt: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    limit: jax.Array,
    columns: int,
    method: Method,
    vocabulary: Vocabulary,
    logprobs: bool = False,
) -> SamplerState:
    """The state after the first token of each row, drawn from the logits of `prefill`. Donates store.

    prompt [B, W'] right-padded to any width and lengths [B]: for the repetition penalty. keys [B]. limit [B] int32,
    `columns` at most; a row of limit 0 is done from the start (a row that only fills a batch).
    """
    static = (method.form, vocabulary, columns, logprobs)
    return _begin(*static, method.values, logits, store, prompt, lengths, keys, limit)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=6)
def _begin(
    form: Form,
    vocabulary: Vocabulary,
    columns: int,
    logprobs: bool,
    values: Values,
    logits: jax.Array,
    store: Cache,
    prompt: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    limit: jax.Array,
) -> SamplerState:
    batch, vocab = logits.shape
    seen = None
    if form.penalty:
        # Padding is no word of the prompt: it goes to a column past the vocabulary, which is dropped.
        words = jnp.where(jnp.arange(prompt.shape[1]) < lengths[:, None], prompt, vocab)
        seen = jnp.zeros((batch, vocab), bool).at[jnp.arange(batch)[:, None], words].set(True, mode="drop")
        seen = seen & (jnp.arange(vocab) != vocabulary.separator_id)
    zeros = jnp.zeros(batch, jnp.int32)
    state = SamplerState(
        last=zeros,
        position=lengths - 1,
        drawn=jnp.int32(0),
        count=zeros,
        limit=limit,
        done=limit <= 0,
        out=jnp.full((batch, columns), max(vocabulary.separator_id, 0), jnp.int32),
        logprobs=jnp.zeros((batch, columns), jnp.float32) if logprobs else None,
        keys=keys,
        seen=seen,
        store=store,
    )
    return _take(state, logits, form, values, vocabulary)


def _take(
    state: SamplerState,
    logits: jax.Array,
    form: Form,
    values: Values,
    vocabulary: Vocabulary,
    backend: Backend | None = None,
) -> SamplerState:
    """Draw a token for every row that is not done and enter it in the state. logits [B, vocab]."""
    with jax.named_scope("draw"):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, state.drawn)
        token = draw(logits, keys, form, values, vocabulary.n_tokens, state.seen, backend)
    going = ~state.done
    count = state.count + going
    # Where done, the filler (which `out` holds already) is written again.
    token = jnp.where(going, token, max(vocabulary.separator_id, 0))
    # One pass over [B, M]; a scatter that may drop is two launches. Past the last column nothing is written.
    here = jnp.arange(state.out.shape[1]) == state.drawn
    logprobs, seen = state.logprobs, state.seen
    if logprobs is not None:
        valid = jnp.arange(logits.shape[-1]) < vocabulary.n_tokens
        x = jnp.where(valid, logits.astype(jnp.float32), -jnp.inf)
        taken = jnp.take_along_axis(x, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(x, axis=-1)
        logprobs = jnp.where(here, jnp.where(going, taken, 0.0)[:, None], logprobs)
    if seen is not None:
        column = jnp.where(going, token, seen.shape[1])  # none where done: what a separator leaves is not read
        seen = seen | (jnp.arange(seen.shape[1]) == column[:, None])  # one pass; a scatter of one row is three launches
    return state.replace(
        last=token,
        position=state.position + going,
        drawn=state.drawn + 1,
        count=count,
        done=state.done | (token == vocabulary.separator_id) | (count >= state.limit),
        out=jnp.where(here, token[:, None], state.out),
        logprobs=logprobs,
        seen=seen,
    )


def _step(
    model: Transformer, vocabulary: Vocabulary, form: Form, variables: Any, values: Values, state: SamplerState
) -> SamplerState:
    """One token for every row: the last one goes through the model, the next one is drawn."""
    logits, store = model.apply(variables, state.last[:, None], state.position, state.store, method="decode")
    return _take(state.replace(store=store), logits[:, 0], form, values, vocabulary, model.backend)


@dataclasses.dataclass
class _ByRows:
    """One function of (model, ..., state), compiled in two ways: `few` leaves products to XLA, `many` to cuBLAS."""

    few: Callable[..., SamplerState]
    many: Callable[..., SamplerState]

    def __call__(self, model: Transformer, *others: Any) -> SamplerState:
        rows = others[-1].last.shape[0]
        run = self.many if model.backend.platform == "gpu" and rows >= _CUBLAS_FROM else self.few
        return run(model, *others)


def _jit_by_rows(function: Callable[..., SamplerState]) -> _ByRows:
    """The first four arguments are static; the last one, the state, is donated."""
    jit = functools.partial(jax.jit, function, static_argnums=(0, 1, 2, 3), donate_argnums=6)
    return _ByRows(jit(), jit(compiler_options=CUBLAS_PRODUCTS))


def decode_loop(
    model: Transformer, variables: Any, state: SamplerState, n_steps: int, method: Method, vocabulary: Vocabulary
) -> SamplerState:
    """Exactly `n_steps` decode steps in one program, whatever is done; donates `state`.

    Compiled once per model, shapes, n_steps, vocabulary and `method.form`. A row that is done computes but changes
    nothing of its own. To time decoding at full length give a `vocabulary` with separator_id -1 and a `limit` that
    is not reached.
    """
    return _decode_steps(model, n_steps, vocabulary, method.form, variables, method.values, state)


@_jit_by_rows
def _decode_steps(
    model: Transformer,
    n_steps: int,
    vocabulary: Vocabulary,
    form: Form,
    variables: Any,
    values: Values,
    state: SamplerState,
) -> SamplerState:
    step = functools.partial(_step, model, vocabulary, form, variables, values)
    return jax.lax.fori_loop(0, n_steps, lambda _, state: step(state), state)


def decode_until_done(
    model: Transformer, variables: Any, state: SamplerState, method: Method, vocabulary: Vocabulary
) -> SamplerState:
    """Decode until every row is done, which is tested every CHECK_EVERY steps; donates `state`."""
    return _decode_until_done(model, CHECK_EVERY, vocabulary, method.form, variables, method.values, state)


@_jit_by_rows
def _decode_until_done(
    model: Transformer,
    check_every: int,
    vocabulary: Vocabulary,
    form: Form,
    variables: Any,
    values: Values,
    state: SamplerState,
) -> SamplerState:
    step = functools.partial(_step, model, vocabulary, form, variables, values)

    def some_steps(state: SamplerState) -> SamplerState:
        return jax.lax.fori_loop(0, check_every, lambda _, state: step(state), state)

    return jax.lax.while_loop(lambda state: ~jnp.all(state.done), some_steps, state)

"""How the next token is drawn from logits: penalty, then temperature, then what is kept (top-k, top-p, min-p).

The order and the meaning are Hugging Face's. Ties are kept together: whatever is as likely as the last token kept is
kept too, so that what can be drawn does not depend on the order of the vocabulary.

Tokens are drawn by inverse transform sampling: with one uniform number u a row, the token is the first, by id, whose
cumulative weight is above u times the total. Probabilities are exact to about 2^-23: u has no smaller steps.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mla_jax.kernels import row_draw
from mla_jax.model.backend import Backend
from mla_jax.model.functions import MASKED
from mla_jax.sample import settings, threshold

_COLDEST = 1e-30  # below, float32 logits over the temperature overflow, or the temperature itself is 0 in float32


class Form(NamedTuple):
    """Which parts a method has: what is compiled. The numbers are `Values`, so changing them compiles nothing."""

    draws: bool
    top_k: bool
    top_p: bool
    min_p: bool
    penalty: bool


@struct.dataclass
class Values:
    """The numbers of a method, each []: float32, top_k int32."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


@dataclasses.dataclass(frozen=True)
class Method:
    """How tokens are drawn; the defaults of the last three are their off positions. Raises UserError when built.

    temperature: logits are divided by it; 0 (and what float32 cannot tell from it, below 1e-30) is greedy: the
      likeliest, of equals the lowest id; the rest is ignored, but for the penalty.
    top_k: keep the k likeliest tokens; 0 keeps all.
    top_p: then keep the fewest likeliest tokens whose probabilities, renormalised, add up to top_p (Holtzman et al.
      2019, arXiv 1904.09751); 1 keeps all.
    min_p: keep what has at least min_p times the likeliest token's probability (Nguyen et al. 2024, arXiv
      2407.01082); 0 keeps all.
    repetition_penalty: logits of tokens of the prompt or the completion are divided by it where positive, else
      multiplied (Keskar et al. 2019, arXiv 1909.05858); 1 changes nothing. The separator is never penalised: it
      opens every prompt and must be able to end every story.
    """

    temperature: float
    top_k: int
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # Python's own numbers: the form is hashable, and static
            object.__setattr__(self, field.name, settings.number(field.name, getattr(self, field.name)))

    @property
    def form(self) -> Form:
        """Hashable: a static argument of the jitted sampler."""
        draws = self.temperature >= _COLDEST
        return Form(
            draws,
            draws and self.top_k > 0,
            draws and self.top_p < 1,
            draws and self.min_p > 0,
            self.repetition_penalty != 1,
        )

    @property
    def values(self) -> Values:
        """As arrays: arguments of the jitted sampler."""
        return Values(
            jnp.float32(self.temperature),
            jnp.int32(self.top_k),
            jnp.float32(self.top_p),
            jnp.float32(self.min_p),
            jnp.float32(self.repetition_penalty),
        )


GREEDY = Method(0.0, 0)


def draw(
    logits: jax.Array,
    keys: jax.Array,
    form: Form,
    values: Values,
    n_tokens: int,
    seen: jax.Array | None = None,
    backend: Backend | None = None,
) -> jax.Array:
    """logits [B, vocab], keys [B] (one random key a row), seen [B, vocab] bool -> token ids [B] int32.

    Ids from `n_tokens` on are surplus rows, never drawn. `seen` says which tokens the penalty meets; only forms
    with a penalty need it. A row's token depends on its own row of the arguments alone.
    backend: where its decode kernels run, what follows the penalty is one kernel; None = plain XLA.
    """
    if form.penalty:
        logits = penalise(logits, seen, values.repetition_penalty)
    valid = jnp.arange(logits.shape[-1]) < n_tokens
    # Compared in the model's own dtype: half the passes of a search in bfloat16, and temperature keeps the order.
    logits = jnp.where(valid, logits, jnp.asarray(MASKED, logits.dtype))
    if not form.draws:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys)
    # Also where nothing is cut: one launch instead of several for the sum along the vocabulary.
    if backend is not None and backend.decode_impl == "pallas" and row_draw.applies(logits.shape[-1]):
        numbers = (values.temperature, values.top_k, values.top_p, values.min_p)
        cuts = (form.top_k, form.top_p, form.min_p)
        return row_draw.row_draw(logits, uniform, *numbers, cuts, n_tokens, backend.interpret)
    return invert(kept_weights(logits, form, values, n_tokens), uniform, n_tokens)


def invert(weights: jax.Array, uniform: jax.Array, n_tokens: int) -> jax.Array:
    """weights [B, vocab] float32, 0 = never drawn; uniform [B] float32 in [0, 1) -> token ids [B] int32.

    Expects the largest weight of a row to be 1. A row whose weights are all NaN gives id n_tokens - 1.
    """
    # A parallel sum can rise or fall by a rounding from one id to the next. So ids of weight 0 have no say, and the
    # total is the largest sum of the others, which is above the target whatever the roundings: in float32
    # uniform * total is less than total for every uniform below 1.
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    target = uniform * jnp.max(cumulative, axis=-1)
    above = cumulative > target[:, None]
    return jnp.min(jnp.where(above, jnp.arange(weights.shape[-1]), n_tokens - 1), axis=-1).astype(jnp.int32)


def penalise(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """The repetition penalty, computed in float32, in the dtype of logits."""
    x = logits.astype(jnp.float32)
    return jnp.where(seen, jnp.where(x > 0, x / penalty, x * penalty), x).astype(logits.dtype)


def kept_weights(logits: jax.Array, form: Form, values: Values, n_tokens: int) -> jax.Array:
    """logits [B, vocab], surplus rows masked -> [B, vocab] float32: each token's probability over the likeliest's.

    0 where top-k, top-p or min-p cuts it, and in surplus rows. `row_draw` does the same, line by line.
    """
    x = logits.astype(jnp.float32)
    scaled = (x - jnp.max(x, axis=-1, keepdims=True)) / values.temperature
    weights = jnp.where(jnp.arange(logits.shape[-1]) < n_tokens, jnp.exp(scaled), 0.0)
    keys, bits = threshold.ordered_keys(logits)
    if form.top_k:
        count = jnp.broadcast_to(jnp.minimum(values.top_k, n_tokens), logits.shape[:1])
        weights = jnp.where(keys >= threshold.search(keys, bits, count)[:, None], weights, 0.0)
    if form.top_p:
        target = values.top_p * jnp.sum(weights, axis=-1)
        weights = jnp.where(keys >= threshold.search(keys, bits, target, weights)[:, None], weights, 0.0)
    if form.min_p:
        weights = jnp.where(scaled >= jnp.log(values.min_p), weights, 0.0)
    return weights

"""The sampler: prompts in, stories out, through a jitted prefill and a jitted decode loop over an explicit cache."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.config import Config
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError
from mla_jax.model.cache import init_cache
from mla_jax.model.transformer import Transformer
from mla_jax.runs import Run, load_run
from mla_jax.sample.methods import Method, draw

_BUCKET = 64  # prompt and cache lengths are rounded up to it, so that few shapes are compiled


class Sampler:
    """Generates text from a model.

        sampler = Sampler.from_run("runs/mla_rope")
        stories = sampler.generate(["Once upon a time"], max_new_tokens=200, temperature=0.8, top_k=40, seed=0)

    A row's text depends on its prompt, its seed and the settings, not on the other rows of the call.
    """

    def __init__(self, model: Transformer, variables: Any, tokenizer: Tokenizer, config: Config):
        """variables: `Run.variables` or `TrainState.variables`."""
        self.model, self.variables, self.tokenizer, self.config = model, variables, tokenizer, config

    @classmethod
    def from_run(cls, workdir: str | os.PathLike | Run, step: int | None = None) -> "Sampler":
        """The best checkpoint of a run folder (or the one of `step`). Raises UserError as `runs.load_run` does."""
        run = workdir if isinstance(workdir, Run) else load_run(workdir, step)
        return cls(run.model, run.variables, run.tokenizer, run.config)

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        seed: int = 0,
    ) -> list[str]:
        """One completion, without its prompt, for each prompt; row i draws with seed + i.

        A completion ends at the model's end of story or after `max_new_tokens`. An empty prompt starts a story
        from nothing. Raises UserError, before anything is traced, when a prompt and its completion do not fit in
        `model.max_len` or a setting is out of range.
        """
        method = Method(float(temperature), int(top_k))
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1: e.g. 256.")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed}; it must be between 0 and {2**32 - 1}: e.g. 0.")
        if not prompts:
            return []
        ids = [[self.tokenizer.separator_id, *self.tokenizer.encode(prompt)] for prompt in prompts]
        longest = max(map(len, ids))
        limit = self.config.model.max_len
        if longest + max_new_tokens > limit:
            raise UserError(
                f"the longest prompt has {longest} tokens (with the separator) and max_new_tokens is {max_new_tokens}; "
                f"together they must not exceed model.max_len ({limit}): shorten one of them."
            )
        width = min(_round_up(longest), limit)
        tokens = np.full((len(ids), width), self.tokenizer.separator_id, np.int32)
        for row, prompt in enumerate(ids):
            tokens[row, : len(prompt)] = prompt
        out = _generate(
            self.model,
            method,
            min(_round_up(longest + max_new_tokens), limit),
            max_new_tokens,
            self.tokenizer.vocab_size,
            self.tokenizer.separator_id,
            self.variables,
            jnp.asarray(tokens),
            jnp.asarray([len(prompt) for prompt in ids], jnp.int32),
            jax.vmap(jax.random.key)(jnp.arange(len(ids), dtype=jnp.uint32) + np.uint32(seed)),
        )
        return [self._text(row) for row in np.asarray(out)]

    def _text(self, row: np.ndarray) -> str:
        ends = np.flatnonzero(row == self.tokenizer.separator_id)
        return self.tokenizer.decode(row[: ends[0] if len(ends) else len(row)].tolist())


def _round_up(length: int) -> int:
    return -(-length // _BUCKET) * _BUCKET


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _generate(
    model: Transformer,
    method: Method,
    cache_length: int,
    max_new_tokens: int,
    n_tokens: int,
    separator_id: int,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """tokens [B, T] right-padded, lengths [B], keys [B] -> new ids [B, max_new_tokens], separators after the end."""
    store = init_cache(model.cfg, tokens.shape[0], cache_length, model.backend.jnp_dtype)
    logits, store = model.apply(variables, tokens, lengths, store, method="prefill")

    def next_token(logits: jax.Array, index: jax.Array) -> jax.Array:
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
        return draw(logits, step_keys, method, n_tokens)

    first = next_token(logits, jnp.int32(0))
    out = jnp.full((tokens.shape[0], max_new_tokens), separator_id, jnp.int32).at[:, 0].set(first)

    def unfinished(carry: tuple) -> jax.Array:
        index, _, _, done, _ = carry
        return (index < max_new_tokens) & ~jnp.all(done)

    def decode(carry: tuple) -> tuple:
        index, last, store, done, out = carry
        logits, store = model.apply(variables, last[:, None], lengths + index - 1, store, method="decode")
        token = jnp.where(done, separator_id, next_token(logits[:, 0], index))
        return index + 1, token, store, done | (token == separator_id), out.at[:, index].set(token)

    start = (jnp.int32(1), first, store, first == separator_id, out)
    return jax.lax.while_loop(unfinished, decode, start)[-1]

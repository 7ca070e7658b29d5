"""What each sampling method and cache type adds to a decode step, on whatever device JAX finds; random weights.

    python launch/sampler_timing.py --config mla_rope:m --shapes 1x512,1024x512 --out rows.jsonl

A line a case, in --out a row with device and versions: microseconds a step (median, least and most of the repeats,
compilation apart) and the ratio to greedy of the same shape and cache. The steps are `mla_jax.sample.loop.decode_loop`
on weights as the sampler holds them (converted and packed, model/serving.py). A short context gets fewer steps than
--steps, so that all of them are inside.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax import accounting
from mla_jax.bench.decode import ALL_METHODS, random_variables
from mla_jax.config_bounds import CHOICES
from mla_jax.config_files import load_config
from mla_jax.errors import UserError, run_command
from mla_jax.model import backend
from mla_jax.model.transformer import Transformer
from mla_jax.rows import append_row, result_row
from mla_jax.sample import loop
from mla_jax.sample.loop import Vocabulary
from mla_jax.sample.methods import GREEDY, Method

CACHE_DTYPES = CHOICES["sample.cache_dtype"][1:]  # without auto
METHODS = {
    "greedy": GREEDY,
    "temperature": Method(0.8, 0),
    "top_k": Method(0.8, 40),
    "top_p": Method(0.8, 0, top_p=0.95),
    "min_p": Method(0.8, 0, min_p=0.05),
    "repetition_penalty": Method(0.8, 0, repetition_penalty=1.1),
    "all": ALL_METHODS,
}


def time_case(
    model: Transformer, variables: Any, batch: int, context: int, cache_dtype: str, method: Method, n_steps: int, n: int
) -> list[float]:
    """Microseconds a step of `n` runs of `n_steps` steps, the cache filled up to `context` by the last of them.

    Of fewer steps where the context has no room for so many.
    """
    n_steps = min(n_steps, (context - 2) // (n + 1))
    vocabulary = Vocabulary(model.cfg.vocab_size, -1)
    prompt = context - (n + 1) * n_steps - 1
    keys = jax.vmap(jax.random.key)(jnp.arange(batch))
    tokens, lengths = jnp.zeros((batch, prompt), jnp.int32), jnp.full(batch, prompt)
    logits, store = loop.prefill(model, context, cache_dtype, variables, tokens, lengths)
    columns = context - prompt
    state = loop.begin(logits, store, tokens, lengths, keys, jnp.full(batch, columns), columns, method, vocabulary)
    times = []
    for _ in range(n + 1):
        jax.block_until_ready(state.out)
        before = time.perf_counter()
        state = loop.decode_loop(model, variables, state, n_steps, method, vocabulary)
        jax.block_until_ready(state.out)
        times.append((time.perf_counter() - before) / n_steps * 1e6)
    return times[1:]  # the first compiles


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every shape, cache type and method asked for. Raises UserError for what is none of them."""
    methods = _names("methods", options.methods, METHODS)
    dtypes = _names("cache_dtypes", options.cache_dtypes, CACHE_DTYPES)
    for name, value in (("steps", options.steps), ("repeats", options.repeats)):
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1: leave it out for the default.")
    for shape in options.shapes.split(","):
        batch, context = _shape(shape, options.repeats)
        knobs = {"model.vocab_size": options.vocab_size, "model.max_len": context, "train.seq_len": min(context, 128)}
        knobs["sample.max_new_tokens"] = 1
        config = load_config(options.config, **knobs)
        cfg = config.model
        model = Transformer(cfg, backend.choose(cfg))
        variables = random_variables(model)
        for cache_dtype in dtypes:
            greedy = None
            for name in methods:
                case = (batch, context, cache_dtype, METHODS[name], options.steps, options.repeats)
                times = time_case(model, variables, *case)
                median = statistics.median(times)
                greedy = median if name == "greedy" else greedy
                metrics = {
                    "suite": "sampler",
                    "config": options.config,
                    "batch": batch,
                    "context": context,
                    "vocab_size": options.vocab_size,
                    "cache_dtype": cache_dtype,
                    "kv_bytes_per_token": accounting.kv_bytes(cfg, cache_dtype),
                    "method": name,
                    "us_per_step": round(median, 1),
                    "us_least": round(min(times), 1),
                    "us_most": round(max(times), 1),
                    "over_greedy": None if greedy is None else round(median / greedy, 3),
                }
                yield result_row(f"sampler {options.config} {name}", config.hash, metrics, "random weights", "none")


def _names(flag: str, given: str, known: Collection[str]) -> list[str]:
    """The names of a flag, between commas. Raises UserError for one that is not known."""
    names = given.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"--{flag} has {name!r}, which is none of {', '.join(known)}: use some of them.")
    return names


def _shape(text: str, repeats: int) -> tuple[int, int]:
    """Batch and context. Raises UserError for what is no shape, or has no room for a step of each repeat."""
    batch, _, context = text.partition("x")
    if not (batch.isdecimal() and context.isdecimal() and int(batch) >= 1 and int(context) >= repeats + 3):
        raise UserError(
            f"--shapes has {text!r}; a shape is BATCHxCONTEXT, with a context of at least {repeats + 3} for --repeats "
            f"{repeats}: e.g. 1x512."
        )
    return int(batch), int(context)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mla_rope:m")
    parser.add_argument("--shapes", default="1x512,1024x512", help="BATCHxCONTEXT, ...")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--cache_dtypes", default="bfloat16", help=", ".join(CACHE_DTYPES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=32, help="decode steps in a run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="", help="append the rows to this file")
    options = parser.parse_args(arguments)
    for row in rows(options):
        print(json.dumps(row["metrics"]), flush=True)
        if options.out:
            append_row(Path(options.out), row)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""What each sampling method and cache type adds to a decode step, on whatever device JAX finds; random weights.

    python launch/sampler_timing.py --config mla_rope:m --shapes 1x512,1024x512 --out rows.jsonl

One JSON row a case: microseconds a step (median, least and most of the repeats, compilation apart) and the ratio to
greedy of the same shape and cache. The steps are `mla_jax.sample.loop.decode_loop`, as the sampler runs them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax import accounting, devices
from mla_jax.config_files import load_config
from mla_jax.model import backend
from mla_jax.model.transformer import Transformer
from mla_jax.sample import loop
from mla_jax.sample.loop import Vocabulary
from mla_jax.sample.methods import GREEDY, Method

METHODS = {
    "greedy": GREEDY,
    "temperature": Method(0.8, 0),
    "top_k": Method(0.8, 40),
    "top_p": Method(0.8, 0, top_p=0.95),
    "min_p": Method(0.8, 0, min_p=0.05),
    "repetition_penalty": Method(0.8, 0, repetition_penalty=1.1),
    "all": Method(0.8, 40, 0.95, 0.02, 1.1),
}


def time_case(
    model: Transformer, variables: Any, batch: int, context: int, cache_dtype: str, method: Method, n_steps: int, n: int
) -> list[float]:
    """Microseconds a step of `n` runs of `n_steps` steps, the cache filled up to `context` by the last of them."""
    vocabulary = Vocabulary(model.cfg.vocab_size, -1)
    prompt = max(1, context - (n + 1) * n_steps - 1)
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
    """A row for every shape, cache type and method asked for."""
    for shape in options.shapes.split(","):
        batch, context = map(int, shape.split("x"))
        knobs = {"model.vocab_size": options.vocab_size, "model.max_len": context, "train.seq_len": min(context, 128)}
        knobs["sample.max_new_tokens"] = 1
        cfg = load_config(options.config, **knobs).model
        model = Transformer(cfg, backend.choose(cfg))
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
        for cache_dtype in options.cache_dtypes.split(","):
            greedy = None
            for name in options.methods.split(","):
                case = (batch, context, cache_dtype, METHODS[name], options.steps, options.repeats)
                times = time_case(model, variables, *case)
                median = statistics.median(times)
                greedy = median if name == "greedy" else greedy
                yield {
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
                    "device": devices.device_name(),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mla_rope:m")
    parser.add_argument("--shapes", default="1x512,1024x512", help="BATCHxCONTEXT, ...")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--cache_dtypes", default="bfloat16", help="bfloat16, float32, int8")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=32, help="decode steps in a run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="", help="append the rows to this file")
    options = parser.parse_args()
    for row in rows(options):
        print(json.dumps(row), flush=True)
        if options.out:
            with Path(options.out).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

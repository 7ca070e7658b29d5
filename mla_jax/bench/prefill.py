"""Prompts read per second, beside the forward pass of training over the same tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.bench.decode import for_context, random_variables
from mla_jax.bench.points import Point
from mla_jax.bench.timing import measure
from mla_jax.sample import loop


def run(point: Point, batch: int, context: int, repeats: int, **knobs: Any) -> dict[str, Any]:
    """Metrics of `batch` prompts of `context` tokens: prefill into a fresh cache, and `Transformer.__call__`."""
    model = for_context(point, context).model(**knobs)
    variables = random_variables(model)
    tokens = jax.random.randint(jax.random.key(0), (batch, context), 0, model.cfg.vocab_size)
    lengths = jnp.full(batch, context, jnp.int32)

    def prefill(_: None) -> Any:
        return loop.prefill(model, context, model.backend.dtype, variables, tokens, lengths)

    forward = jax.jit(lambda variables, tokens: model.apply(variables, tokens)[0])
    timing = measure(prefill, lambda: None, repeats)
    whole = measure(lambda _: forward(variables, tokens), lambda: None, repeats)
    count = batch * context
    return {
        **timing.metrics(),
        "dtype": model.backend.dtype,
        "tokens_per_s": count / timing.median_s,
        "forward_tokens_per_s": count / whole.median_s,
        "over_forward": whole.median_s / timing.median_s,
    }

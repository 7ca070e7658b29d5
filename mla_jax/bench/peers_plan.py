"""The same job done by us and by others: `peer_prompt` + `peer_new` tokens, greedy, the whole call on both sides."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.bench import decode
from mla_jax.bench.points import HEADLINE, MHA, Point
from mla_jax.bench.settings import BenchSettings
from mla_jax.bench.timing import measure
from mla_jax.sample import loop
from mla_jax.sample.methods import GREEDY


@dataclasses.dataclass(frozen=True)
class Peer:
    """run(batch) -> metrics. point: the model whose sizes it has."""

    name: str
    point: Point
    run: Callable[[int], dict[str, Any]]


def peers(points: list[Point], settings: BenchSettings) -> list[Peer]:
    """Ours (MLA and MHA), Hugging Face's Llama and DeepseekV3, and a torch.compile decode loop of our own (MHA)."""
    by_name = {point.name: point for point in points}
    found = []
    prompt, new, repeats = settings.peer_prompt, settings.peer_new, settings.repeats
    for name, family in ((MHA, "llama"), (HEADLINE, "deepseek_v3")):
        point = by_name.get(name)
        if point is None:
            continue

        def ours(batch: int, point: Point = point) -> dict[str, Any]:
            return generate(point, batch, prompt, new, repeats)

        def theirs(batch: int, point: Point = point, family: str = family) -> dict[str, Any]:
            from mla_jax.bench.peers import hf_generate

            return hf_generate.measure(point.config.model, family, batch, prompt, new, repeats)

        found += [Peer("ours, whole call", point, ours), Peer(f"hf {family}", point, theirs)]
    if MHA in by_name:

        def torch_loop(batch: int) -> dict[str, Any]:
            from mla_jax.bench.peers import torch_decode

            config = by_name[MHA].config.model
            return torch_decode.measure(config, batch, prompt + new, min(settings.steps, new), repeats)

        def our_steps(batch: int) -> dict[str, Any]:
            return decode.run(by_name[MHA], batch, prompt + new, min(settings.steps, new), repeats)

        found += [Peer("ours, steps", by_name[MHA], our_steps), Peer("torch steps", by_name[MHA], torch_loop)]
    return found


def generate(point: Point, batch: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Metrics of prefill and greedy decoding of `batch` prompts, from token ids to token ids."""
    model = decode.for_context(point, prompt + new).model()
    variables = decode.random_variables(model)
    vocabulary = loop.Vocabulary(model.cfg.vocab_size, -1)
    tokens = jax.random.randint(jax.random.key(0), (batch, prompt), 0, model.cfg.vocab_size)
    lengths, limit = jnp.full(batch, prompt, jnp.int32), jnp.full(batch, new, jnp.int32)
    keys = jax.vmap(jax.random.key)(jnp.arange(batch, dtype=jnp.uint32))

    def call(_: None) -> jax.Array:
        logits, store = loop.prefill(model, prompt + new, model.backend.dtype, variables, tokens, lengths)
        state = loop.begin(logits, store, tokens, lengths, keys, limit, new, GREEDY, vocabulary)
        return loop.decode_loop(model, variables, state, new - 1, GREEDY, vocabulary).out

    timing = measure(call, lambda: None, repeats)
    return {
        **timing.metrics(),
        "dtype": model.backend.dtype,
        "decode_impl": model.backend.decode_impl,
        "tokens_per_s": batch * new / timing.median_s,
    }

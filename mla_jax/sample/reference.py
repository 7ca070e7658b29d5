"""The plain twin of the sampler: one row, one token at a time, no cache, sorting instead of searching.

For tests: the sampler gives the same tokens. Nothing here is quick.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from mla_jax.sample.loop import Vocabulary
from mla_jax.sample.methods import Method


def generate(
    forward: Callable[[np.ndarray], np.ndarray],
    prompt: Sequence[int],
    seed: int,
    max_new_tokens: int,
    method: Method,
    vocabulary: Vocabulary,
) -> list[int]:
    """The tokens after `prompt` (separator included, not empty), the separator that ends them included.

    forward: ids [T] int32 -> logits [T, vocab], a whole forward pass.
    """
    ids, start = list(prompt), len(prompt)
    while len(ids) - start < max_new_tokens:
        logits = np.asarray(forward(np.asarray(ids, np.int32)), np.float32)[len(ids) - 1]
        seen = set(ids) - {vocabulary.separator_id}
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), len(ids) - start)
        uniform = float(jax.random.uniform(key, dtype=np.float32))
        ids.append(draw(logits, uniform, seen, method, vocabulary.n_tokens))
        if ids[-1] == vocabulary.separator_id:
            break
    return ids[start:]


def draw(logits: np.ndarray, uniform: float, seen: set[int], method: Method, n_tokens: int) -> int:
    """The first token at which the cumulative probabilities are above `uniform` in [0, 1); greedy: the likeliest."""
    cumulative = np.cumsum(probabilities(logits, seen, method, n_tokens))
    return int(np.argmax(cumulative > uniform * cumulative[-1]))


def probabilities(logits: np.ndarray, seen: set[int], method: Method, n_tokens: int) -> np.ndarray:
    """What the method draws from: float64 [n_tokens], adds up to 1. `Method` says what each part means."""
    x = logits[:n_tokens].astype(np.float64)
    for token in seen:
        x[token] = x[token] / method.repetition_penalty if x[token] > 0 else x[token] * method.repetition_penalty
    if method.temperature == 0:
        return (np.arange(n_tokens) == np.argmax(x)).astype(np.float64)
    p = np.exp((x - x.max()) / method.temperature)
    if 0 < method.top_k < n_tokens:
        p[p < np.sort(p)[-method.top_k]] = 0
    p /= p.sum()
    if method.top_p < 1:
        descending = np.sort(p)[::-1]
        enough = int(np.argmax(np.cumsum(descending) >= method.top_p - 1e-12))
        p[p < descending[enough]] = 0
    p[p < method.min_p * p.max()] = 0
    return p / p.sum()

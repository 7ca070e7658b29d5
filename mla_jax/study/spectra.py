"""How many directions a KV cache really uses: singular values and effective rank of what each layer stores."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.model.cache import init_cache
from mla_jax.runs import Run

KEPT = 32  # singular values in a row, the largest


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 where all of them are 0."""
    total = singular_values.sum()
    if total <= 0:
        return 0.0
    p = singular_values / total
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def singular_values(vectors: np.ndarray) -> np.ndarray:
    """Of `vectors` [n, width] less their mean, over sqrt(n): the spread along each direction, float64, descending."""
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    values = np.linalg.eigvalsh(centred.T @ centred / len(centred))[::-1]
    return np.sqrt(np.maximum(values, 0.0))


def cache_spectra(run: Run, tokens: np.ndarray, kept: int | None = KEPT) -> list[dict[str, Any]]:
    """Rows {layer, entry, width, effective_rank, singular_values} of the cache that `tokens` [B, T] fill.

    An entry is a field of the layer's cache (k, v, c_kv, k_rope, ...), heads side by side. singular_values: the
    `kept` largest (None: all of them), relative to the first.
    """
    batch, length = tokens.shape
    store = init_cache(run.config.model, batch, length, jnp.float32)
    lengths = jnp.full((batch,), length, jnp.int32)
    filled = jax.jit(lambda variables, *rest: run.model.apply(variables, *rest, method="prefill")[1])(
        run.variables, jnp.asarray(tokens, jnp.int32), lengths, store
    )
    rows = []
    for layer, entries in enumerate(filled):
        for field in dataclasses.fields(entries):
            array = getattr(entries, field.name)
            if array is None:
                continue
            vectors = np.asarray(array, np.float64).reshape(batch * length, -1)
            values = singular_values(vectors)
            relative = values / max(values[0], 1e-30)
            rows.append(
                {
                    "layer": layer,
                    "entry": field.name,
                    "width": vectors.shape[1],
                    "effective_rank": round(effective_rank(values), 2),
                    "singular_values": [float(f"{value:.3g}") for value in relative[:kept]],
                }
            )
    return rows

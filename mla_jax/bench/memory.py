"""The largest batch that decodes at a context: in closed form, and then shown by running it."""

from typing import Any

from mla_jax import accounting
from mla_jax.bench import decode, device
from mla_jax.bench.points import Point
from mla_jax.errors import out_of_memory

_RESERVE = 0.04  # of the memory, for the program, its temporaries and fragmentation


def closed_form(point: Point, context: int, limit: int, dtype: str) -> int:
    """Rows whose cache and logits fit in `limit` bytes beside the weights."""
    config = decode.for_context(point, context).config
    fixed = decode.estimated_bytes(config, 0, context, dtype)
    row = decode.estimated_bytes(config, 1, context, dtype) - fixed
    return max(0, int((limit * (1 - _RESERVE) - fixed) // row))


def run(point: Point, context: int, limit: int | None, **knobs: Any) -> dict[str, Any]:
    """Metrics: largest_batch (of the closed form) and ran_batch, the largest tried one that decodes 8 steps.

    limit: bytes; None = what the device says. Where it says nothing (a CPU) only the closed form is made, for 80 GB.
    """
    available = limit or device.memory_limit()
    dtype = decode.for_context(point, context).model(**knobs).backend.dtype
    batch = closed_form(point, context, available or 80 * 10**9, dtype)
    metrics = {
        "largest_batch": batch,
        "limit_bytes": available or 80 * 10**9,
        "cache_bytes_per_token": accounting.kv_bytes(point.config.model, dtype),
        "dtype": dtype,
    }
    if available is None:
        return metrics | {
            "ran_batch": None,
            "note": "the device does not say its memory: closed form for 80 GB",
        }
    for share in (1.0, 0.95, 0.9, 0.8, 0.7):
        tried = int(batch * share)
        try:
            ran = decode.run(point, tried, context, 8, 1, **knobs)
            return metrics | {"ran_batch": tried, "ms": ran["ms"], "peak_bytes": device.peak_memory()}
        except Exception as error:
            if out_of_memory(error) is None:
                raise
    return metrics | {"ran_batch": 0}

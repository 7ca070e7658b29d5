"""What the device gives: the copy bandwidth that rows are held against, and its memory."""

import functools
from typing import Any

import jax

from mla_jax.bench.timing import measure

_COPIES = 10  # in one program, so that a launch does not count


def copy_bandwidth(size_bytes: int, repeats: int = 5) -> float:
    """Bytes per second, read plus written, of copying a buffer of `size_bytes` on the device: the median of `repeats`,
    as the times are that are held against it."""
    numbers = jax.random.randint(jax.random.key(0), (size_bytes // 4,), 0, 2**30)  # zeros may be moved faster

    # Each pass reads the whole buffer and writes it; an increment, so that no pass can be left out.
    @functools.partial(jax.jit, donate_argnums=0)
    def passes(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _COPIES, lambda _, a: a + 1, a)

    state = [numbers]

    def call(_: None) -> jax.Array:
        state[0] = passes(state[0])
        return state[0]

    timing = measure(call, lambda: None, repeats)
    return 2 * 4 * state[0].size * _COPIES / timing.median_s


def memory_limit() -> int | None:
    """Bytes that this process may take on the device; None where the device does not say (a CPU)."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def peak_memory() -> int | None:
    """Most bytes that this process has held on the device so far; None where the device does not say."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")

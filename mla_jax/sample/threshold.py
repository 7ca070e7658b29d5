"""Thresholds of rows without sorting them: the k-th largest value, or the value that holds a share of the mass.

A radix search over the bits of the values: each pass tests a few thresholds at once and fixes as many bits. It is
exact, takes 16 bits' worth of passes for bfloat16 logits and 32 for float32, and costs the same for every k: a sort
of the vocabulary, or `lax.top_k` with a large k, does not.
"""

import jax
import jax.numpy as jnp

# Up to so many numbers a pass's latency costs more than its comparisons: fewer, wider passes then.
_SMALL = 2**17


def ordered_keys(x: jax.Array) -> tuple[jax.Array, int]:
    """x [..] bfloat16 or float32, without NaN -> (keys uint32 [..] in the order of x, how many bits they use).

    Equal values have equal keys, 0.0 and -0.0 too.
    """
    x = jnp.where(x == 0, jnp.zeros_like(x), x)
    bits = x.dtype.itemsize * 8
    raw = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
    sign = jnp.asarray(1 << (bits - 1), raw.dtype)
    return jnp.where(raw & sign, ~raw, raw | sign).astype(jnp.uint32), bits


def digit_bits(size: int, platform: str) -> int:
    """Bits that a pass over `size` numbers fixes (it tests 2^bits - 1 thresholds).

    On a GPU a pass over few numbers is all launch latency; on a CPU it is all work, of which 1 or 2 bits do least.
    """
    if platform == "cpu":
        return 2
    return 8 if size <= _SMALL else 2


def search(keys: jax.Array, bits: int, target: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The largest t [B] uint32 for which the weights of `keys >= t` add up to at least `target` [B].

    keys [B, V] uint32 below 2^bits; weights [B, V] float32, not negative, or None to count (target int32 then).
    Where even all of them fall short of the target the answer is 0, which keeps all.
    """
    platform = jax.default_backend()
    digit = digit_bits(keys.size, platform)

    def total(threshold: jax.Array) -> jax.Array:
        """threshold [B] or [B, n] -> the weight of what it keeps, of the same shape."""
        wide = keys if threshold.ndim == 1 else keys[:, None]
        kept = wide >= threshold[..., None]
        if weights is None:
            return jnp.sum(kept, axis=-1, dtype=jnp.int32)
        return jnp.sum(jnp.where(kept, weights if threshold.ndim == 1 else weights[:, None], 0.0), axis=-1)

    def fix_digit(index: int | jax.Array, found: jax.Array) -> jax.Array:
        shift = jnp.uint32(bits) - jnp.uint32(digit) * (jnp.asarray(index, jnp.uint32) + 1)
        steps = jnp.arange(1, 2**digit, dtype=jnp.uint32) << shift
        tested = found[:, None] + steps
        if digit <= 2:  # side by side: XLA fuses them into one pass over the keys
            totals = jnp.stack([total(tested[:, i]) for i in range(2**digit - 1)], axis=-1)
        else:
            totals = total(tested)
        return found + (jnp.sum(totals >= target[:, None], axis=-1).astype(jnp.uint32) << shift)

    start = jnp.zeros(keys.shape[:1], jnp.uint32)
    # Unrolled where each turn of a loop would be a launch of its own predicate; a loop compiles faster on a CPU.
    return jax.lax.fori_loop(0, bits // digit, fix_digit, start, unroll=platform != "cpu")

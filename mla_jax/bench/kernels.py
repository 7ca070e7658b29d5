"""The decode kernels alone: right on this device, and how fast at which block sizes."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.bench.timing import measure
from mla_jax.errors import brief
from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels.head_decode import head_decode, head_decode_reference
from mla_jax.kernels.latent_decode import latent_decode, latent_decode_reference
from mla_jax.kernels.operands import Blocks, Entry

_CALLS = 20  # of a kernel in one program

# kind, heads, groups, width (latent or head), rope
CORRECTNESS = [
    ("latent", 8, 1, 256, 32),
    ("latent", 3, 1, 48, 0),
    ("latent", 12, 1, 80, 64),
    ("latent", 16, 1, 512, 128),
    ("latent int8", 8, 1, 256, 32),
    ("heads", 8, 8, 64, 0),
    ("heads", 8, 2, 64, 0),
    ("heads", 12, 1, 96, 0),
    ("heads", 8, 8, 32, 32),
]


def _random(shape: tuple[int, ...], seed: int, dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def arguments(kind: str, batch: int, context: int, heads: int, groups: int, width: int, rope: int, dtype: Any) -> tuple:
    """Random operands: (q, q_rope, c_kv, k_rope, scale) of `latent_decode`, (q, k, v, q_rope, k_rope) of the other."""
    q = _random((batch, heads, width), 0, dtype)
    q_rope = _random((batch, heads, rope), 1, dtype) if rope else None
    k_rope = _random((batch, context, rope), 2, dtype) if rope else None
    if kind == "heads":
        k, v = (_random((batch, context, groups, width), seed, dtype) for seed in (3, 4))
        return q, k, v, q_rope, k_rope
    if kind == "latent int8":
        c_kv = jax.random.randint(jax.random.key(3), (batch, context, width), -127, 128, jnp.int8)
        return q, q_rope, c_kv, k_rope, jax.random.uniform(jax.random.key(4), (batch, context), minval=0.005)
    return q, q_rope, _random((batch, context, width), 3, dtype), k_rope, None


def attend(
    kind: str, operands: tuple, lengths: jax.Array, blocks: Blocks | None, interpret: bool, write: bool = False
) -> jax.Array:
    """The kernel's output. write: the last position of each row is not in the cache; the kernel has to put it there."""
    scale = operands[0].shape[-1] ** -0.5
    rows, last = jnp.arange(lengths.shape[0]), lengths - 1

    def taken(a: jax.Array | None) -> jax.Array | None:
        return None if a is None else a[rows, last]

    def poisoned(a: jax.Array | None) -> jax.Array | None:
        return a if a is None or not write else a.at[rows, last].set(jnp.nan)

    if kind == "heads":
        q, k, v, q_rope, k_rope = operands
        new = Entry(taken(k), taken(v), taken(k_rope)) if write else None
        cache, n = (poisoned(k), poisoned(v)), last if write else lengths
        rotary = (q_rope, poisoned(k_rope))
        out, kept = head_decode(q, *cache, n, scale, *rotary, blocks=blocks, interpret=interpret, new=new)
        written = [(kept.k, k), (kept.v, v), (kept.k_rope, k_rope)]
    else:
        q, q_rope, c_kv, k_rope, int8_scale = operands
        new = (taken(c_kv), taken(k_rope)) if write else None
        cache, n = (poisoned(c_kv), poisoned(k_rope)), last if write else lengths
        out, c, rope = latent_decode(q, q_rope, *cache, n, scale, int8_scale, blocks, interpret, new)
        written = [(c, c_kv), (rope, k_rope)]
    if not write:
        return out
    right = [jnp.all(a[rows, last] == b[rows, last]) for a, b in written if b is not None]
    return jnp.where(jnp.all(jnp.stack(right)), out, jnp.nan)  # an entry that is not there spoils the comparison


def reference(kind: str, operands: tuple, lengths: jax.Array) -> jax.Array:
    scale = operands[0].shape[-1] ** -0.5
    if kind == "heads":
        q, k, v, q_rope, k_rope = operands
        return head_decode_reference(q, k, v, lengths, scale, q_rope, k_rope)
    q, q_rope, c_kv, k_rope, int8_scale = operands
    return latent_decode_reference(q, q_rope, c_kv, k_rope, lengths, scale, int8_scale)


def correctness(case: tuple, batch: int, context: int, dtype: Any, interpret: bool) -> dict[str, Any]:
    """Metrics: the largest error, and ||out - reference|| / ||reference||, over ragged lengths and 1 to 8 splits,
    with the last entry in the cache and with the kernel writing it.

    Fresh random inputs; lengths 1, `context` and between. The reference computes in float32 on the same device.
    """
    kind, heads, groups, width, rope = case
    operands = arguments(kind, batch, context, heads, groups, width, rope, dtype)
    lengths = jnp.asarray(np.linspace(1, context, batch).astype(np.int32))
    expected = np.asarray(jax.jit(reference, static_argnums=0)(kind, operands, lengths), np.float32)
    worst, relative = 0.0, 0.0
    writes = (False,) if kind == "latent int8" else (False, True)
    for splits, write in itertools.product((1, 3, 8), writes):
        blocks = Blocks(16 if interpret else 32, splits, 4, 2)
        run = jax.jit(attend, static_argnums=(0, 3, 4, 5))
        out = np.asarray(run(kind, operands, lengths, blocks, interpret, write), np.float32)
        error = float(np.linalg.norm(out - expected) / np.linalg.norm(expected))
        worst = max(worst, float(np.abs(out - expected).max()))
        relative = max(relative, error if error == error else float("inf"))
    return {"largest_error": worst, "relative_error": relative, "correct": bool(relative < 1e-2)}


def beyond_32_bits(rows: int, context: int, width: int, rope: int) -> dict[str, Any]:
    """Metrics of a cache of more elements than 32 bits count: every 8 rows are alike, so must be their results.

    The first 8 are compared with the reference, the others with them, bit for bit; the kernel writes the last entry.
    """
    alike = arguments("latent", 8, context, 8, 1, width, rope, jnp.bfloat16)
    lengths = jnp.asarray(np.linspace(1, context, 8).astype(np.int32))
    expected = np.asarray(jax.jit(reference, static_argnums=0)("latent", alike, lengths), np.float32)
    times = -(-rows // 8)
    repeated = tuple(None if a is None else jnp.tile(a, (times, *[1] * (a.ndim - 1))) for a in alike)
    blocks = blocks_lib.choose(width + rope, False, 8 * times, 1, context)
    run = jax.jit(attend, static_argnums=(0, 3, 4, 5))
    out = np.asarray(run("latent", repeated, jnp.tile(lengths, times), blocks, False, True), np.float32)
    same = bool(np.all(out.reshape(times, -1) == out.reshape(times, -1)[0]))
    error = float(np.linalg.norm(out[:8] - expected) / np.linalg.norm(expected))
    correct = same and error < 1e-2
    return {"elements": 8 * times * context * width, "relative_error": error, "rows_alike": same, "correct": correct}


def candidates(chosen: Blocks, context: int) -> Iterator[Blocks]:
    """The table's choice first, then other positions, warps and stages at its splits, then other splits."""
    yield chosen
    for positions, stages, warps in itertools.product((32, 64, 128), (2, 3), (4, 8)):
        blocks = Blocks(positions, chosen.splits, warps, stages)
        if blocks != chosen and positions * chosen.splits <= max(context, positions):
            yield blocks
    for splits in (chosen.splits // 2, chosen.splits * 2, chosen.splits * 4):
        if splits and splits * chosen.positions <= context:
            yield Blocks(chosen.positions, splits, chosen.warps, chosen.stages)


def speed(
    kind: str, operands: tuple, context: int, blocks: Blocks | None, repeats: int, interpret: bool
) -> dict[str, Any]:
    """Metrics of one call over full rows: ms, bytes of the cache read once, and the rate."""
    batch = operands[0].shape[0]
    lengths = jnp.full(batch, context, jnp.int32)

    @jax.jit
    def many(operands: tuple) -> jax.Array:
        def once(_: int, q: jax.Array) -> jax.Array:
            out = attend(kind, (q, *operands[1:]), lengths, blocks, interpret)
            return q + 0.01 * out.astype(q.dtype)  # each call needs the one before

        return jax.lax.fori_loop(0, _CALLS, once, operands[0])

    timing = measure(lambda _: many(operands), lambda: None, repeats)
    cache = [a for a in operands[1:] if a is not None and a.ndim >= 2 and a.shape[1] == context]
    read = sum(a.nbytes for a in cache)
    return {**timing.metrics(_CALLS), "step_bytes": read, "bytes_per_s": read * _CALLS / timing.median_s}


def table_blocks(kind: str, operands: tuple, context: int) -> Blocks:
    """What the table chooses for these operands."""
    batch, _, width = operands[0].shape
    rope = operands[1] if kind != "heads" else operands[3]
    rotary = 0 if rope is None else rope.shape[-1]
    if kind == "heads":
        return blocks_lib.choose(2 * width + rotary, False, batch, operands[1].shape[2], context)
    return blocks_lib.choose(width + rotary, operands[4] is not None, batch, 1, context)


def sweep(kind: str, shape: tuple[int, int, int, int], batch: int, context: int, repeats: int) -> dict[str, Any]:
    """Metrics of the table's blocks, the best blocks found, and every candidate; shape: heads, groups, width, rope."""
    operands = arguments(kind, batch, context, *shape, jnp.bfloat16)
    chosen, tried = table_blocks(kind, operands, context), []
    for blocks in candidates(chosen, context):
        fields = {"positions": blocks.positions, "splits": blocks.splits, "warps": blocks.warps}
        fields["stages"] = blocks.stages
        try:
            found = speed(kind, operands, context, blocks, repeats, interpret=False)
            tried.append(fields | {"ms": found["ms"], "bytes_per_s": found["bytes_per_s"]})
        except Exception as error:  # too much shared memory, say: the sweep goes on
            tried.append(fields | {"failed": brief(error, 120)})
    ran = [row for row in tried if "ms" in row]
    if not ran:
        return {"skipped": tried[0]["failed"], "sweep": tried}
    best = min(ran, key=lambda row: row["ms"])
    table = {"table_ms": tried[0].get("ms"), "best": best, "sweep": tried}
    return {"ms": best["ms"], "bytes_per_s": best["bytes_per_s"], **table}

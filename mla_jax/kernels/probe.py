"""Whether the decode kernels work on this device: compiled, run and compared, until they pass."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels import passed
from mla_jax.kernels.flash_decode import combine, flash_decode
from mla_jax.kernels.head_decode import head_decode, head_decode_reference
from mla_jax.kernels.latent_decode import latent_decode, latent_decode_reference
from mla_jax.kernels.operands import Entry, Layout, Operands, Raw
from mla_jax.kernels.row_draw import row_draw
from mla_jax.kernels.row_experts import ExpertWeights, Rule, row_experts, row_experts_reference
from mla_jax.kernels.row_linear import Linear, NormWeights, row_linear, row_linear_reference
from mla_jax.model import functions

_TOLERANCE = 0.03  # of bfloat16 results of size 1
SCALE = 0.1


@functools.lru_cache(maxsize=1)
def obstacle() -> str:
    """ "" where the kernels compute what their plain twins do, else the reason: drivers, compilers and GPUs differ."""
    return passed.once("decode", _try)


def _try() -> str:
    for name, check in CHECKS.items():
        try:
            error = check()
        except Exception as failure:  # compilers raise many types
            words = " ".join(str(failure).split())[:150] or type(failure).__name__
            return f"the Pallas kernel {name} does not run here ({words})"
        if not error <= _TOLERANCE:
            return f"the Pallas kernel {name} is wrong here (error {error:.2g})"
    return ""


def _draw(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)


def _error(found: jax.Array, expected: jax.Array) -> float:
    """The largest difference; infinity where one is no number, since Python's max may pass over NaN."""
    error = float(jnp.max(jnp.abs(found.astype(jnp.float32) - expected.astype(jnp.float32))))
    return float("inf") if math.isnan(error) else error


def check_latent_decode(interpret: bool = False) -> float:
    """Attention over latents, the newest of which the kernel writes: the largest error, infinite if not written."""
    rng = np.random.default_rng(0)
    q, q_rope, c_kv, k_rope = (_draw(rng, *shape) for shape in ((2, 8, 48), (2, 8, 16), (2, 200, 48), (2, 200, 16)))
    lengths, rows = jnp.asarray([77, 200], jnp.int32), jnp.arange(2)
    new = (c_kv[rows, lengths - 1], k_rope[rows, lengths - 1])
    run = jax.jit(lambda *operands: latent_decode(*operands, SCALE, interpret=interpret, new=new))
    out, written, _ = run(q, q_rope, c_kv.at[rows, lengths - 1].set(0), k_rope, lengths - 1)
    expected = latent_decode_reference(q, q_rope, c_kv, k_rope, lengths, SCALE)
    return _error(out, expected) if bool(jnp.all(written == c_kv)) else float("inf")


def check_raw(interpret: bool = False) -> float:
    """The same where the kernel rotates queries and key and normalises the latent, on parts that are not joined."""
    rng = np.random.default_rng(1)
    heads, rank, rope, length = 4, 32, 32, 300
    latents, rotary = _draw(rng, 1, heads + 1, rank), _draw(rng, 1, heads + 1, rope)
    c_kv, k_rope, gain = _draw(rng, 1, 512, rank), _draw(rng, 1, 512, rope), jnp.linspace(0.5, 1.5, rank)
    angle = jnp.linspace(0.0, 3.0, rope // 2)[None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    @jax.jit
    def run(latents: jax.Array, rotary: jax.Array, c_kv: jax.Array, k_rope: jax.Array) -> tuple:
        operands = Operands(latents, rotary, c_kv[:, :, None], None, k_rope, None, None, jnp.asarray([length]))
        layout, raw = Layout(1, heads, k=heads, k_rope=heads), Raw(jnp.concatenate([cos, sin], axis=-1), gain)
        chosen = blocks_lib.choose(rank + rope, False, 1, 1, 512)
        return flash_decode(operands, SCALE, chosen, layout, interpret, Entry(latents, None, rotary), raw)

    parts, cache = run(latents, rotary, c_kv, k_rope)
    turned = functions.apply_rope(rotary[:, None], cos[:, None], sin[:, None])[:, 0]
    newest = functions.rms_norm(latents[:, heads], gain)
    c_kv, k_rope = c_kv.at[:, length].set(newest), k_rope.at[:, length].set(turned[:, heads])
    lengths = jnp.asarray([length + 1])
    expected = latent_decode_reference(latents[:, :heads], turned[:, :heads], c_kv, k_rope, lengths, SCALE)
    return max(_error(combine(*parts)[:, 0], expected), _error(cache.k[:, :, 0], c_kv), _error(cache.k_rope, k_rope))


def check_heads(interpret: bool = False) -> float:
    """Values apart from keys, in two groups of heads, rotated and written by the kernel; and int8 latents with their
    scales, per head and joint. All in one program, since compiling is most of what a check takes."""
    rng = np.random.default_rng(5)
    heads, groups, width, length, capacity = 6, 2, 32, 140, 192
    rows, k, v = _draw(rng, 1, heads + 2 * groups, width), *_draw(rng, 2, 1, capacity, groups, width)
    angle = jnp.linspace(0.0, 3.0, width // 2)[None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    int8 = jnp.asarray(rng.integers(-127, 128, (2, 1, capacity, groups, width)), jnp.int8)
    scales = jnp.asarray(rng.uniform(0.005, 0.015, (2, 1, capacity)), jnp.float32)
    q_rope, k_rope = _draw(rng, 1, heads, 16), _draw(rng, 1, capacity, 16)
    rotary = (q_rope[:, :groups], k_rope, *scales)
    lengths, per_head, joint = jnp.asarray([length]), rows[:, :groups], int8[0, :, :, 0]
    scale = 0.3  # of scores, so that few positions have most of the weight: a mean of many hides which they were

    @jax.jit
    def run(rows: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        operands = Operands(rows, None, k, v, None, None, None, lengths)
        layout = Layout(groups, heads // groups, k=heads, v=heads + groups)
        chosen, raw = blocks_lib.choose(2 * width, False, 1, groups, capacity), Raw(jnp.concatenate([cos, sin], -1))
        parts, cache = flash_decode(operands, scale, chosen, layout, interpret, Entry(rows, rows, None), raw)
        apart = head_decode(per_head, *int8, lengths, scale, *rotary, interpret=interpret)[0]
        # Queries in the first rows of a larger array, as a packed step has them (model/packed_decode.py).
        read = Operands(rows, q_rope, joint[:, :, None], None, k_rope, scales[0], None, lengths)
        chosen = blocks_lib.choose(width + 16, True, 1, 1, capacity)
        once = combine(*flash_decode(read, scale, chosen, Layout(1, heads), interpret)[0])[:, 0]
        return combine(*parts).reshape(1, heads, width), cache, apart, once

    out, cache, apart, once = run(rows, k, v)
    turned = functions.apply_rope(rows[:, None, : heads + groups], cos[:, None], sin[:, None])[:, 0]
    k, v = k.at[:, length].set(turned[:, heads:]), v.at[:, length].set(rows[:, heads + groups :])
    plain = (
        head_decode_reference(turned[:, :heads], k, v, lengths + 1, scale),
        head_decode_reference(per_head, *int8, lengths, scale, *rotary),
        latent_decode_reference(rows[:, :heads], q_rope, joint, k_rope, lengths, scale, scales[0]),
    )
    pairs = [*zip((out, apart, once), plain, strict=True), (cache.k, k), (cache.v, v)]
    return max(_error(found, expected) for found, expected in pairs)


def check_row_linear(interpret: bool = False) -> float:
    """A normalised, gated product, and one of unjoined parts with a residual."""
    rng = np.random.default_rng(2)
    x, gated, norm = _draw(rng, 2, 80), Linear(0.1 * _draw(rng, 2, 40, 80)), NormWeights(None)
    out, top = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 2, 1, 4, 16), (3, 2, 1, 4)))
    parts = (out, top, jnp.ones((3, 2, 1, 4)))
    linear, residual = Linear(0.1 * _draw(rng, 48, 64)), _draw(rng, 2, 48)
    gate = jax.jit(lambda: row_linear(x, gated, norm, "swiglu", interpret=interpret))()
    joined = jax.jit(lambda: row_linear(parts, linear, residual=residual, interpret=interpret))()
    plain = row_linear_reference(x, gated, norm, "swiglu"), row_linear_reference(parts, linear, residual=residual)
    return max(_error(gate, plain[0]), _error(joined, plain[1]))


def check_row_experts(interpret: bool = False) -> float:
    """Four of 37 experts and a shared one, gated and not; two experts have the same score, of which the first is in."""
    rng = np.random.default_rng(4)
    x, norm, router = 0.2 * _draw(rng, 2, 80), NormWeights(jnp.ones(80)), 0.1 * _draw(rng, 37, 80).astype(jnp.float32)
    router, rule = router.at[11].set(router[5]), Rule(4, "sigmoid", True, 1.0)
    bias = jnp.zeros((2, 37)).at[1, jnp.asarray([2, 20, 36])].set(3.0).at[1, jnp.asarray([5, 11])].set(2.0)
    up, down = 0.1 * _draw(rng, 2, 38, 48, 80), 0.05 * _draw(rng, 38, 80, 48)

    @jax.jit
    def run(weights: ExpertWeights) -> tuple[jax.Array, jax.Array]:
        found = row_experts(x, weights, bias, 1, norm, rule, interpret=interpret)
        return found, row_experts_reference(x, weights, bias[1], norm, rule)

    gelu, gated = ExpertWeights(router, up[0], down, jnp.ones((38, 48))), ExpertWeights(router, up, down)
    return max(_error(*run(gelu)), _error(*run(gated)))


def check_row_draw(interpret: bool = False) -> float:
    """Each of the three tokens that top-k, top-p or min-p keeps, drawn by numbers near both of its ends: 0 or infinity.

    3,000 logits make a program of four warps, so that the sums cross warps.
    """
    vocab, temperature, rows, chosen = 3000, 2.0, np.arange(6), np.arange(6) // 2
    likely = np.maximum(np.arange(vocab) - (vocab - 100.0), 0)  # 0 .. 99
    logits = np.random.default_rng(3).permuted(np.tile(likely, (6, 1)), axis=1)
    ids = np.sort(logits.argsort(axis=1)[:, -3:], axis=1)
    weights = np.exp((np.take_along_axis(logits, ids, axis=1) - 99) / temperature)
    shares = weights / weights.sum(axis=1, keepdims=True)
    ends = np.cumsum(shares, axis=1)
    # 0.002 inside each end: float32 sums are off by far less.
    uniform = np.where(rows % 2, ends[rows, chosen] - 0.002, (ends - shares)[rows, chosen] + 0.002)
    operands = jnp.asarray(logits, jnp.bfloat16), jnp.asarray(uniform, jnp.float32), jnp.float32(temperature)
    run = jax.jit(lambda *numbers: row_draw(*operands, *numbers, (True, True, True), vocab, interpret))
    for top_k, top_p, min_p in ((3, 1.0, 0.0), (vocab, 0.7, 0.0), (vocab, 1.0, 0.3)):
        found = run(jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))
        if not np.array_equal(found, ids[rows, chosen]):
            return float("inf")
    return 0.0


CHECKS: dict[str, Callable[[], float]] = {
    "latent_decode": check_latent_decode,
    "flash_decode": check_raw,
    "head_decode": check_heads,
    "row_linear": check_row_linear,
    "row_experts": check_row_experts,
    "row_draw": check_row_draw,
}

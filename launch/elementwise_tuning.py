"""Blocks of the kernels of GELU, masked hidden units, routers and norms, timed alone at the sizes of size m (bfloat16).

    python launch/elementwise_tuning.py --out rows.jsonl [--only gelu_backward ...] [--max_minutes 4] [--width 768]

One row for each kernel and choice: microseconds, bytes a second (what has to be read and written, once), and the
largest difference from the plain form in float32. "plain" is what XLA makes of that form; "copy" is x + 1.
Winners belong into mla_jax/kernels/{gelu,masked_hidden,best_experts,norm}.py. Bytes of masked units are those of the
chosen experts, and all zeros.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_jax import rows
from mla_jax.kernels import best_experts, gelu, masked_hidden, norm
from mla_jax.model import functions, moe_paths
from mla_jax.model.moe_router import top_choices

HIDDEN = 2048  # of the feed-forward
EXPERTS, SHARED, UNITS, TOP_K = 62, 2, 32, 6  # of configs/moe_mla_rope_param_matched.py
# Of a kernel in a program, on arrays of their own: one launch of 31 us would time the host, and L2 helps none.
COPIES = 4
CALLS, REPEATS = 5, 7
TOLERANCE = 2e-2  # of the largest value, or of 1
EPS = functions.LAYER_NORM_EPS
INTERPRET = jax.default_backend() != "gpu"

Choice = tuple[str, Callable[..., Any]]  # its name, and a function of one set of arrays


class Work(NamedTuple):
    """A kernel to be timed. n_bytes: that have to move; sets: makes COPIES sets of arrays; plain and choices: functions
    of one set, XLA's form and the kernel with each choice of blocks."""

    n_bytes: int
    sets: Callable[[], list[tuple]]
    plain: Callable[..., Any]
    choices: list[Choice]


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def choices(blocks: Iterable[Any], kernel: Callable[[Any], Callable[..., Any]]) -> list[Choice]:
    """kernel: blocks -> a function of one set of arrays."""
    return [(str(b), kernel(b)) for b in blocks]


# Feed-forward: sets of x, bias, dh.


def hidden_sets(n_tokens: int) -> list[tuple]:
    bias = draw(9, HIDDEN).astype(jnp.float32)
    return [(draw(i, n_tokens, HIDDEN), bias, draw(100 + i, n_tokens, HIDDEN)) for i in range(COPIES)]


def copy(n_tokens: int, width: int) -> Work:
    return Work(2 * 2 * n_tokens * HIDDEN, lambda: hidden_sets(n_tokens), lambda x, b, dh: x + 1, [])


def gelu_blocks(n_tokens: int, steps: Iterable[int], parts: int) -> list[gelu.Blocks]:
    """Tiles of 8 or 16 numbers a thread; `parts`: the most row groups."""
    found = []
    for numbers, columns, warps, step in itertools.product((8, 16), (512, 1024, 256, 2048), (4, 8), steps):
        n_rows = 32 * warps * numbers // columns
        if n_rows and n_tokens // (n_rows * step) <= parts:
            found.append(gelu.Blocks(n_rows, columns, step, warps))
    return found


def gelu_forward(n_tokens: int, width: int) -> Work:
    return Work(
        2 * 2 * n_tokens * HIDDEN,
        lambda: hidden_sets(n_tokens),
        lambda x, b, dh: functions.bias_gelu(x, b.astype(x.dtype)),
        choices(gelu_blocks(n_tokens, (1, 4), n_tokens), lambda k: lambda x, b, dh: gelu.forward(x, b, INTERPRET, k)),
    )


def gelu_backward(n_tokens: int, width: int) -> Work:
    return Work(
        3 * 2 * n_tokens * HIDDEN,
        lambda: hidden_sets(n_tokens),
        lambda x, b, dh: jax.vjp(functions.bias_gelu, x, b.astype(x.dtype))[1](dh),
        choices(
            gelu_blocks(n_tokens, (32, 16, 64, 8), 2048),
            lambda k: lambda x, b, dh: gelu.backward(x, b, dh, INTERPRET, k),
        ),
    )


# Masked hidden units: sets of pre, bias, idx, weight, dh.

MASKS = [masked_hidden.Blocks(*b) for b in itertools.product((8, 4, 16, 2, 32), (16, 64, 8, 32), (4, 8, 2, 1))]


def masked_sets(n_tokens: int) -> list[tuple]:
    bias, experts = draw(9, SHARED, UNITS).astype(jnp.float32), EXPERTS + SHARED

    def one(i: int) -> tuple:
        weight, idx = jax.lax.top_k(draw(200 + i, n_tokens, EXPERTS).astype(jnp.float32), TOP_K)
        pre, dh = (draw(i + k, n_tokens, experts, UNITS) for k in (0, 100))
        return pre, bias, idx, jax.nn.softmax(weight), dh

    return [one(i) for i in range(COPIES)]


def masked_bytes(n_tokens: int) -> tuple[int, int]:
    """Of one array: of the chosen and shared experts alone, and of all."""
    return 2 * n_tokens * (TOP_K + SHARED) * UNITS, 2 * n_tokens * (EXPERTS + SHARED) * UNITS


def plain_masked(pre: jax.Array, bias: jax.Array, idx: jax.Array, weight: jax.Array) -> jax.Array:
    gate = moe_paths.combine_weights(idx.astype(jnp.int32), weight, EXPERTS)
    gate = jnp.pad(gate, ((0, 0), (0, SHARED)), constant_values=1.0).astype(pre.dtype)
    bias = jnp.pad(bias, ((EXPERTS, 0), (0, 0))).astype(pre.dtype)
    return functions.activation(None, pre + bias) * gate[..., None]


def plain_masked_backward(
    pre: jax.Array, bias: jax.Array, idx: jax.Array, weight: jax.Array, dh: jax.Array
) -> tuple[tuple[jax.Array], jax.Array, jax.Array]:
    _, pull = jax.vjp(lambda pre, bias, weight: plain_masked(pre, bias, idx, weight), pre, bias, weight)
    d_pre, d_bias, d_weight = pull(dh)
    return (d_pre,), d_bias, d_weight


def masked_forward(n_tokens: int, width: int) -> Work:
    def kernel(b: masked_hidden.Blocks) -> Callable[..., Any]:
        return lambda pre, c, idx, w, dh: masked_hidden.forward((pre,), c, idx, w, SHARED, INTERPRET, b)

    return Work(
        sum(masked_bytes(n_tokens)),
        lambda: masked_sets(n_tokens),
        lambda pre, b, idx, w, dh: plain_masked(pre, b, idx, w),
        choices(MASKS, kernel),
    )


def masked_backward(n_tokens: int, width: int) -> Work:
    def kernel(b: masked_hidden.Blocks) -> Callable[..., Any]:
        return lambda pre, c, idx, w, dh: masked_hidden.backward((pre,), c, idx, w, dh, SHARED, INTERPRET, b)

    read, written = masked_bytes(n_tokens)
    return Work(2 * read + written, lambda: masked_sets(n_tokens), plain_masked_backward, choices(MASKS, kernel))


# Routers: sets of scores, bias.


def score_sets(n_tokens: int) -> list[tuple]:
    bias = draw(9, EXPERTS).astype(jnp.float32) / 64
    return [(jax.nn.sigmoid(draw(i, n_tokens, EXPERTS).astype(jnp.float32)), bias) for i in range(COPIES)]


def plain_best(scores: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    idx = top_choices(scores + bias, TOP_K)
    chosen = idx[..., None] == jnp.arange(EXPERTS)
    return idx, jnp.sum(jnp.where(chosen, scores[:, None, :], 0.0), axis=-1)


def best(n_tokens: int, width: int) -> Work:
    blocks = [best_experts.Blocks(*b) for b in itertools.product((32, 16, 64, 8), (4, 2, 8, 1))]
    return Work(
        n_tokens * (4 * EXPERTS + 8 * TOP_K),
        lambda: score_sets(n_tokens),
        plain_best,
        choices(blocks, lambda k: lambda s, b: best_experts.forward(s, b, TOP_K, INTERPRET, k)),
    )


# Norms: sets of x, dx (of the stream that passes by), dy, gain, bias.


def stream_sets(n_tokens: int, width: int) -> list[tuple]:
    gain, bias = (draw(i, width).astype(jnp.float32) for i in (8, 9))
    return [(*(draw(i + k, n_tokens, width) for k in (0, 100, 200)), gain, bias) for i in range(COPIES)]


def plain_norm(x: jax.Array, gain: jax.Array, bias: jax.Array, stream_bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return functions.with_bias_gradient(x, stream_bias), functions.layer_norm(x, gain, bias)


def norm_forward(n_tokens: int, width: int) -> Work:
    blocks = [norm.Blocks(n_rows, 1, warps) for n_rows, warps in itertools.product((4, 1, 2, 8), (4, 1, 2, 8))]

    def kernel(b: norm.Blocks) -> Callable[..., Any]:
        return lambda x, dx, dy, g, c: norm.forward(x, g, c, None, EPS, INTERPRET, b)[0][1]

    return Work(
        2 * 2 * n_tokens * width,
        lambda: stream_sets(n_tokens, width),
        lambda x, dx, dy, g, c: functions.layer_norm(x, g, c),
        choices(blocks, kernel),
    )


def norm_backward(n_tokens: int, width: int) -> Work:
    blocks = [norm.Blocks(*b) for b in itertools.product((2, 1, 4, 8), (32, 16, 64, 8), (2, 4, 1, 8))]

    def kernel(b: norm.Blocks) -> Callable[..., Any]:
        return lambda x, dx, dy, g, c: norm.backward(EPS, INTERPRET, (x, g, c, c), (dx, dy), b)

    return Work(
        4 * 2 * n_tokens * width,
        lambda: stream_sets(n_tokens, width),
        lambda x, dx, dy, g, c: jax.vjp(plain_norm, x, g, c, c)[1]((dx, dy)),
        choices(blocks, kernel),
    )


# name -> its work, of (tokens, width of the stream)
KERNELS: dict[str, Callable[[int, int], Work]] = {
    "copy": copy,
    "gelu_forward": gelu_forward,
    "gelu_backward": gelu_backward,
    "masked_forward": masked_forward,
    "masked_backward": masked_backward,
    "best_experts": best,
    "norm_forward": norm_forward,
    "norm_backward": norm_backward,
}


def compiled(function: Callable[..., Any], sets: list[tuple]) -> Any:
    return jax.jit(lambda sets: [function(*arrays) for arrays in sets]).lower(sets).compile()


def seconds(run: Callable[..., Any], sets: list[tuple]) -> float:
    """Of one kernel: the median over REPEATS."""
    jax.block_until_ready(run(sets))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(CALLS):
            out = run(sets)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - began) / (CALLS * COPIES))
    return float(np.median(times))


@jax.jit
def difference(found: Any, wanted: Any) -> jax.Array:
    """The largest over all results, as a part of the largest wanted value (or of 1)."""
    each = [
        jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.maximum(1.0, jnp.max(jnp.abs(b)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    ]
    return jnp.max(jnp.stack(each))


def said(error: BaseException) -> str:
    return f"failed: {type(error).__name__} {' '.join(str(error).split())[:160]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--max_minutes", type=float, default=4.0)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--width", type=int, default=512, help="of the stream that norms read")
    parser.add_argument("--most", type=int, default=1000, help="choices of each kernel")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * given.max_minutes
    for name, work_of in KERNELS.items():
        if given.only and name not in given.only:
            continue
        work = work_of(given.tokens, given.width)
        n_bytes, sets = work.n_bytes, work.sets()
        wanted = jax.jit(work.plain)(*(a.astype(jnp.float32) for a in sets[0]))
        tried: list[Choice] = [("plain", work.plain), *work.choices[: given.most]]
        results = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            programs = [pool.submit(compiled, function, sets) for _, function in tried]
        # All are compiled before any is timed.
        for (label, _), program in zip(tried, programs, strict=True):
            if time.monotonic() > ends:
                print("time is up", flush=True)
                return
            try:
                run = program.result()
                off = float(difference(run(sets)[0], wanted))
                took = seconds(run, sets)
            except Exception as error:  # too many registers, or what Triton does not take: a result too
                print(f"{name:14s} {label} {said(error)}", flush=True)
                continue
            wrong = "" if off < TOLERANCE or label == "plain" else "  WRONG"
            line = f"{took * 1e6:8.1f} us {n_bytes / took / 1e12:6.2f} TB/s, off {off:.1e}{wrong}"
            print(f"{name:14s} {line}  {label}", flush=True)
            results.append((took, line, label))
            found = {"blocks": label, "us": took * 1e6, "bytes_per_s": n_bytes / took, "difference": off}
            rows.append_row(
                given.out,
                rows.result_row(f"elementwise {name}", "-", found | {"width": given.width}, "random numbers", "none"),
            )
        print(f"-- {name}, best:")
        for _, line, label in sorted(results)[:5]:
            print(f"   {line}  {label}", flush=True)


if __name__ == "__main__":
    main()

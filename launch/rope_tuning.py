"""Blocks of the kernels between a product and attention (rotate_heads.py, rotate_in_place.py), each timed alone.

    python launch/rope_tuning.py --out rows.jsonl [--max_minutes 3] [--only mla mha queries]

At MLA+RoPE's and MHA+RoPE's sizes (size m, 128 x 512 tokens, bfloat16): us and TB/s, forward and backward, of XLA's own
form and of each choice of blocks; values are compared with XLA's. TB/s counts each array that has to be read or written
once, for XLA too. Winners, one forward and one backward, belong into BLOCKS there. queries: MLA's, turned in place (its
backward pass is the same with other angles); the winner belongs into IN_PLACE.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_jax import rows
from mla_jax.kernels import rotate_heads, rotate_in_place
from mla_jax.kernels.rotate_heads import Blocks, Part
from mla_jax.model import functions

CALLS, REPEATS, ROUNDS = 6, 5, 3  # calls a program, its runs timed together, such timings
SIZES = {
    "queries": (Part(8, 96, 32),),  # MLA's
    "mla": (Part(1, 32, 32, latent=256),),
    "mha": (Part(8, 64, 64), Part(8, 64, 64)),
}
GRID = (
    Blocks(16, 1, 2, 4, 1),
    Blocks(16, 1, 1, 4, 2),
    Blocks(16, 1, 2, 4, 2),
    Blocks(16, 1, 2, 4, 4),
    Blocks(16, 1, 1, 4, 1),
    Blocks(16, 1, 1, 4, 4),
    Blocks(16, 1, 4, 4, 2),
    Blocks(16, 1, 2, 2, 2),
    Blocks(32, 2, 2, 8, 1),
    Blocks(32, 2, 1, 8, 1),
    Blocks(64, 4, 2, 16, 1),
    Blocks(8, 1, 4, 4, 4),
)
IN_PLACE = [Blocks(*c) for c in ((16, 1, 4), (16, 1, 8), (16, 1, 2), (16, 1, 1), (32, 1, 4), (32, 1, 2), (32, 2, 8))]
IN_PLACE += [Blocks(*c) for c in ((32, 2, 4), (8, 1, 8), (64, 4, 4), (64, 4, 8), (64, 2, 2))]


def times(function: Callable[..., tuple], sets: list[tuple], in_place: bool) -> tuple[float, tuple]:
    """Seconds a call and the first call's result: calls on different arrays, one after the other, in one program.

    in_place: a run's results are the next one's arrays, which it may overwrite.
    """

    def program(sets: list[tuple]) -> list[tuple]:
        found: list[tuple] = []
        for arrays in sets:
            if found:  # after the last one, and not fused with it
                arrays, found[-1] = jax.lax.optimization_barrier((arrays, found[-1]))
            found.append(function(*arrays))
        return found

    run = jax.jit(program, donate_argnums=0 if in_place else ()).lower(sets).compile()
    out = jax.block_until_ready(run(jax.tree.map(jnp.copy, sets) if in_place else sets))
    first, took = jax.tree.map(jnp.copy, out[0]), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(REPEATS):
            out = run(out if in_place else sets)
        jax.block_until_ready(out)
        took.append((time.perf_counter() - began) / (REPEATS * CALLS))
    return float(np.median(took)), first


def difference(found: tuple, wanted: tuple) -> float:
    """The largest, of the larger of 1 and an array's largest value: bfloat16 rounds to 0.004."""

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.max(jnp.abs(a - b)) / jnp.maximum(1.0, jnp.max(jnp.abs(b)))

    return max(float(one(a, b)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))


def work(size: str, batch: int, length: int) -> dict[str, tuple]:
    """Each way -> what to compute of a form's function and arrays, sets of arrays, bytes that have to move."""
    parts = SIZES[size]
    columns = [part.columns for part in parts]
    keys = iter(jax.random.split(jax.random.key(0), CALLS * (1 + len(parts))))

    def draw(width: int) -> jax.Array:
        return jax.random.normal(next(keys), (batch, length, width), jnp.bfloat16)

    def backward(function: Callable, gain: jax.Array | None, y: jax.Array, *gradients: jax.Array) -> tuple:
        return jax.vjp(function, y, gain)[1](gradients)

    ys = [(draw(sum(columns)),) for _ in range(CALLS)]
    touched = parts[0].heads * parts[0].rotary if size == "queries" else sum(columns)
    moved = 2 * 2 * batch * length * touched
    found = {"forward": (lambda function, gain, y: function(y, gain), ys, moved)}
    if size != "queries":
        with_gradients = [(*y, *(draw(width) for width in columns)) for y in ys]
        found["backward"] = backward, with_gradients, moved + 2 * batch * length * parts[-1].latent
    return found


def form(
    size: str, angles: tuple[jax.Array, jax.Array], blocks: Blocks | None, interpret: bool
) -> Callable[..., tuple]:
    """(y, gain) -> parts, by XLA without blocks."""
    parts = SIZES[size]
    if blocks is None:
        return lambda y, gain: rotate_heads.plain(y, *angles, gain, parts, functions.RMS_EPS)
    if size == "queries":
        return lambda y, gain: (rotate_in_place.turned(y, *angles, parts[0], interpret, blocks),)
    both = blocks, blocks
    return lambda y, gain: rotate_heads.split_and_rotate(y, *angles, gain, parts, functions.RMS_EPS, interpret, both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--max_minutes", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", choices=list(SIZES), default=list(SIZES))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    interpret = jax.default_backend() != "gpu"  # only to try this script
    begun = time.monotonic()
    for size in given.only:
        parts = SIZES[size]
        angles = functions.rope_angles(jnp.arange(given.length), parts[0].rotary, 10_000.0)
        gain = jnp.linspace(0.5, 1.5, parts[-1].latent) if parts[-1].latent else None
        for way, (compute, sets, n_bytes) in work(size, given.batch, given.length).items():
            wanted = None
            tried = IN_PLACE if size == "queries" else GRID
            # Steps are of the backward pass alone.
            for blocks in (None, *dict.fromkeys(b._replace(steps=1) if way == "forward" else b for b in tried)):
                if time.monotonic() - begun > 60 * given.max_minutes:
                    print("time is up")
                    return
                name = "XLA" if blocks is None else " ".join(f"{k}={v}" for k, v in blocks._asdict().items())
                run = functools.partial(compute, form(size, angles, blocks, interpret), gain)
                try:
                    took, found = times(run, sets, size == "queries")
                    wanted = found if blocks is None else wanted
                    off = difference(found, wanted)
                except Exception as error:  # too many registers, an array that Triton does not take: a result too
                    print(f"{size} {way:8s} {name} {' '.join(str(error).split())[:120]}", flush=True)
                    continue
                row = {"blocks": name, "us": took * 1e6, "bytes_per_s": n_bytes / took, "difference": off}
                speed = f"{took * 1e6:7.1f} us {n_bytes / took / 1e12:5.2f} TB/s, off by {off:.4f}"
                print(f"{size} {way:8s} {name:44s} {speed}{'' if off < 0.01 else ' WRONG'}", flush=True)
                rows.append_row(given.out, rows.result_row(f"rope {size} {way}", "-", row, "random", "none"))


if __name__ == "__main__":
    main()

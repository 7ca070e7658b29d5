"""Tiles of the grouped products of experts, each kernel timed alone at the sizes of a training step.

    python launch/grouped_tuning.py --out rows.jsonl [--d_expert 256] [--max_minutes 2]

One row for each kernel and choice of tiles: ms and TFLOP/s of the products that were asked for (padding not counted).
Winners belong into mla_jax/kernels/grouped_matmul.py.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_jax import rows
from mla_jax.kernels import grouped_matmul as kernels
from mla_jax.kernels.grouped_matmul import Tiles
from mla_jax.model import moe_grouped

TOKENS, EXPERTS, TOP_K, D_MODEL = 65_536, 62, 6, 512
CALLS, REPEATS = 10, 5
TILES = (
    Tiles(128, 64, 8, 4),
    Tiles(128, 64, 8, 3),
    Tiles(128, 64, 4, 3),
    Tiles(128, 32, 4, 5),
    Tiles(256, 64, 8, 3),
    Tiles(256, 64, 8, 4),
    Tiles(256, 32, 8, 4),
)


def work(d_expert: int) -> dict[str, tuple[Callable[..., jax.Array], tuple]]:
    """Kernels by name -> a function of (tiles, arrays) and its arrays."""
    keys = jax.random.split(jax.random.key(0), 5)
    _, chosen = jax.lax.top_k(jax.random.normal(keys[0], (TOKENS, EXPERTS)), TOP_K)
    groups = jax.jit(lambda idx: moe_grouped.plan(idx, EXPERTS, "pallas"))(chosen)
    token, block_expert, first = groups.token, groups.block_expert, groups.first_block
    n_rows = token.shape[0]

    def draw(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape, jnp.bfloat16)

    x, w = draw(keys[1], TOKENS, D_MODEL), draw(keys[2], EXPERTS, D_MODEL, d_expert)
    hidden, results = draw(keys[3], n_rows, d_expert), draw(keys[4], n_rows, D_MODEL)
    product, outer = kernels.grouped_product, kernels.grouped_outer
    return {
        "up: x[token] W": (lambda t, *a: product(*a, tiles=t), (x, w, block_expert, token)),
        "up without fetching": (lambda t, *a: product(*a, tiles=t), (results, w, block_expert)),
        "dx: dh W^T": (lambda t, *a: product(*a, tiles=t, transposed=True), (hidden, w, block_expert)),
        "dW: x[token]^T dh": (lambda t, *a: outer(*a, tiles=t), (x, hidden, first, token)),
        "dW without fetching": (lambda t, *a: outer(*a, tiles=t), (results, hidden, first)),
        "dW_down: h^T g[token]": (lambda t, h, g, f, s: outer(h, g, f, None, s, tiles=t), (hidden, x, first, token)),
    }


def seconds(run: Callable[..., jax.Array], arrays: tuple) -> float:
    jax.block_until_ready(run(*arrays))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(CALLS):
            out = run(*arrays)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - began) / CALLS)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--d_expert", type=int, default=256)
    parser.add_argument("--max_minutes", type=float, default=2.0)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    flops = 2 * TOKENS * TOP_K * D_MODEL * given.d_expert
    for name, (function, arrays) in work(given.d_expert).items():
        for tiles in TILES:
            if time.monotonic() - begun > 60 * given.max_minutes:
                print("time is up")
                return
            try:
                took = seconds(jax.jit(lambda *a, f=function, t=tiles: f(t, *a)), arrays)
            except Exception as error:  # too much shared memory for the device: a result too
                print(f"{name:24s} {tiles} {' '.join(str(error).split())[:90]}", flush=True)
                continue
            found = {"d_expert": given.d_expert, "tiles": str(tiles), "ms": took * 1e3, "flops_per_s": flops / took}
            print(f"{name:24s} {tiles} {took * 1e3:.3f} ms, {flops / took / 1e12:.0f} TFLOP/s", flush=True)
            rows.append_row(given.out, rows.result_row(f"grouped {name}", "-", found, "random tokens", "none"))


if __name__ == "__main__":
    main()

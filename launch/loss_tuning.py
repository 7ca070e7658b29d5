"""The loss and its gradient by logits, each plan of the kernel timed alone, beside the plain form.

    python launch/loss_tuning.py --out rows.jsonl [--vocab 8192 50304] [--tokens 65536] [--max_minutes 5]

One row for each vocabulary and plan: ms, and TB/s if the logits were read once and written once. Values are compared
with the plain form's. Winners belong into mla_jax/kernels/cross_entropy.py.
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
from mla_jax.kernels.cross_entropy import Plan, choose, cross_entropy_and_gradient
from mla_jax.train.loss import cross_entropy

CALLS, REPEATS = 5, 7
HELD = [(warps, n_rows) for warps in (4, 8, 16) for n_rows in (1, 2)]
LONG = [Plan(block, warps) for block in (2048, 4096, 8192, 16_384) for warps in (4, 8, 16)]
LONG += [Plan(4096, 8, keep=True), Plan(8192, 8, keep=True), Plan(8192, 16, keep=True)]
# For a vocabulary that is larger, by which a row is 100 KB in bfloat16.
LONGER = [
    Plan(block, warps, keep=keep) for block in (4096, 8192, 16_384) for warps in (8, 16, 32) for keep in (False, True)
]


def plans(vocab: int) -> list[Plan]:
    """The chosen one first."""
    padded = 1 << (vocab - 1).bit_length()
    held = [Plan(padded, warps, n_rows) for warps, n_rows in HELD] if padded <= 16_384 else []
    if 16_384 < padded <= 65_536:
        held = [Plan(padded, 16), Plan(padded, 32)]
    pieces = [plan for plan in LONG if plan.block < vocab] if padded <= 16_384 else LONGER
    return list(dict.fromkeys([choose(vocab), *held, *pieces]))


def draw(vocab: int, tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [tokens, vocab], targets and weights [tokens]."""
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)  # threefry would take memory for several float32 copies
    make = jax.jit(lambda key: jax.random.normal(key, (tokens, vocab), jnp.bfloat16) * jnp.bfloat16(2))
    targets = jax.random.randint(keys[1], (tokens,), 0, vocab)
    weights = jax.random.bernoulli(keys[2], 0.9, (tokens,)).astype(jnp.float32)
    return make(keys[0]), targets, weights


def seconds(call: Callable[[], jax.Array]) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(CALLS):
            out = call()
        jax.block_until_ready(out)
        times.append((time.perf_counter() - began) / CALLS)
    return float(np.median(times))


def measure(given: argparse.Namespace, vocab: int, end: float) -> None:
    logits, targets, weights = draw(vocab, given.tokens)
    traffic = 2 * logits.size * logits.dtype.itemsize
    arguments = targets, weights

    def plain(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple:
        def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            nll = cross_entropy(logits, targets, vocab)
            return jnp.sum(nll * weights), nll

        (_, nll), d_logits = jax.value_and_grad(total, has_aux=True)(logits)
        return nll, d_logits

    def report(name: str, took: float, errors: tuple[float, float]) -> None:
        found = {"vocab": vocab, "tokens": given.tokens, "plan": name, "ms": took * 1e3, "bytes_per_s": traffic / took}
        found |= {"nll_error": errors[0], "gradient_error": errors[1]}
        print(
            f"{vocab:6d}  {name:52s} {took * 1e3:8.3f} ms {traffic / took / 1e12:6.2f} TB/s   "
            f"off by {errors[0]:.1e} (nll) {errors[1]:.1e} (gradient)",
            flush=True,
        )
        rows.append_row(given.out, rows.result_row("loss", "-", found, "random logits", "none"))

    run_plain = jax.jit(plain)
    report("plain", seconds(lambda: run_plain(logits, *arguments)[1]), (0.0, 0.0))
    wanted = run_plain(logits, *arguments)

    @jax.jit
    def errors(found: tuple, wanted: tuple) -> list[jax.Array]:
        pairs = zip(found, wanted, strict=True)
        return [jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))) for a, b in pairs]

    for plan in plans(vocab):
        if time.monotonic() > end:
            print("time is up")
            return

        def kernel(logits: jax.Array, targets: jax.Array, weights: jax.Array, plan: Plan = plan) -> tuple:
            return cross_entropy_and_gradient(logits, targets, weights, vocab, given.interpret, plan)

        try:
            run = jax.jit(kernel, donate_argnums=0)
            state = list(run(jnp.copy(logits), *arguments))
            off = tuple(float(error) for error in errors(tuple(state), wanted))

            def again(run: Callable = run, state: list = state) -> jax.Array:
                state[:] = run(state[1], *arguments)  # in place: the gradient as the next logits
                return state[1]

            report(str(plan), seconds(again), off)
        except Exception as error:  # too much for the device, or for the compiler: a result too
            print(f"{vocab:6d}  {plan!s:52s} {' '.join(str(error).split())[:90]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 50_304])
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--max_minutes", type=float, default=5.0)
    parser.add_argument("--interpret", action="store_true", help="a trial of this script without a GPU")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.max_minutes
    for vocab in given.vocab:
        measure(given, vocab, end)


if __name__ == "__main__":
    main()

"""What a benchmark run does, most wanted first, so that a run that ends early has the rows that matter."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.bench import decode, kernels, memory, peers_plan, prefill, train
from mla_jax.bench.points import FULL_RANK, HEADLINE, MHA, Point
from mla_jax.bench.settings import BenchSettings

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """One row to measure: `run()` gives its metrics. needs: bytes of device memory, roughly; 0 = not known."""

    suite: str
    point: Point
    batch: int
    context: int
    run: Callable[[], Metrics]
    label: str = ""
    needs: int = 0


def decode_jobs(points: list[Point], settings: BenchSettings) -> list[Job]:
    """The headline pair at four shapes, then full rank, other execution forms, sampling methods, then the grid."""
    grid = [(b, c) for c in settings.contexts for b in settings.batches]
    headline = [shape for shape in ((1024, 512), (64, 4096), (1, 512), (16, 512)) if shape in grid or len(grid) > 4]
    by_name = {point.name: point for point in points}
    first = [by_name[name] for name in (MHA, HEADLINE) if name in by_name] or points
    jobs = [_decode(p, b, c, settings) for b, c in headline or grid[:1] for p in first]
    for b, c in headline or grid[:1]:
        if FULL_RANK in by_name:
            jobs.append(_decode(by_name[FULL_RANK], b, c, settings))
    for b, c in [shape for shape in ((1024, 512), (1, 512), (64, 4096)) if shape in headline] or grid[:1]:
        for point in first:
            jobs.append(_decode(point, b, c, settings, "all methods", method=decode.ALL_METHODS))
            if jax.default_backend() == "gpu":  # elsewhere it is the plain row again
                jobs.append(_decode(point, b, c, settings, "xla", decode_impl="xla"))
        if MHA in by_name and jax.default_backend() == "gpu":
            for impl in ("cudnn", "pallas"):
                jobs.append(_decode(by_name[MHA], b, c, settings, impl, decode_impl=impl))
    seen = {(job.point.name, job.batch, job.context, job.label) for job in jobs}
    # A point's batches one after the other: they have the same weights (bench/decode.py keeps the newest).
    rest = [_decode(p, b, c, settings) for c in settings.contexts for p in points for b in settings.batches]
    return jobs + [job for job in rest if (job.point.name, job.batch, job.context, job.label) not in seen]


def _decode(point: Point, batch: int, context: int, settings: BenchSettings, label: str = "", **options: Any) -> Job:
    def run() -> Metrics:
        return decode.run(point, batch, context, settings.steps, settings.repeats, **options)

    dtype = "bfloat16" if jax.default_backend() != "cpu" else "float32"
    needs = decode.estimated_bytes(decode.for_context(point, context).config, batch, context, dtype)
    return Job("decode", point, batch, context, run, label, needs)


def prefill_jobs(points: list[Point], settings: BenchSettings) -> list[Job]:
    context, tokens = settings.contexts[0], 65536 if len(settings.contexts) > 1 else 64
    batch = max(1, tokens // context)
    return [
        Job("prefill", p, batch, context, lambda p=p: prefill.run(p, batch, context, settings.repeats)) for p in points
    ]


def memory_jobs(points: list[Point], settings: BenchSettings) -> list[Job]:
    context = settings.memory_context
    return [Job("memory", p, 0, context, lambda p=p: memory.run(p, context, None)) for p in points]


def train_jobs(points: list[Point], settings: BenchSettings) -> list[Job]:
    batch, length = settings.train_batch, settings.contexts[0]
    return [Job("train", p, batch, length, lambda p=p: train.run(p, batch, length, settings.repeats)) for p in points]


def kernel_jobs(points: list[Point], settings: BenchSettings) -> list[Job]:
    """Correctness of every case first, then a sweep of block sizes at the headline shapes."""
    interpret = jax.default_backend() != "gpu"  # no device for the kernel: its meaning is checked, not its speed
    dtype = jnp.float32 if interpret else jnp.bfloat16
    batch, context = (2, 40) if interpret else (7, 700)
    cases = kernels.CORRECTNESS[:1] + kernels.CORRECTNESS[5:6] if interpret else kernels.CORRECTNESS
    jobs = []
    for case in cases:
        small = (*case[:3], 32, 16 if case[4] else 0) if interpret else case

        def check(case: tuple = small) -> Metrics:
            return kernels.correctness(case, batch, context, dtype, interpret)

        jobs.append(Job("kernels", points[0], batch, context, check, f"correct: {' '.join(map(str, small))}"))
    if interpret:
        return jobs
    rows, length = 2200, 4096  # 2.3e9 latents, 4.6 GB, and the copy without the newest entries
    label, beyond = "correct: beyond 32 bits", functools.partial(kernels.beyond_32_bits, rows, length, 256, 32)
    jobs.append(Job("kernels", points[0], rows, length, beyond, label, 4 * rows * length * 288 * 2))
    for rows, length in ((1024, 512), (64, 4096), (1, 512), (16, 512)):
        for kind, shape in (("latent", (8, 1, 256, 32)), ("heads", (8, 8, 64, 0))):

            def sweep(kind: str = kind, shape: tuple = shape, rows: int = rows, length: int = length) -> Metrics:
                return kernels.sweep(kind, shape, rows, length, settings.repeats)

            jobs.append(Job("kernels", points[0], rows, length, sweep, f"sweep: {kind} {' '.join(map(str, shape))}"))
    return jobs


def peer_jobs(points: list[Point], settings: BenchSettings) -> list[Job]:
    """Other frameworks doing the same work; one that cannot run here says why in its row."""
    shapes = [(b, settings.peer_prompt + settings.peer_new) for b in settings.peer_batches]
    return [
        Job("peers", peer.point, b, context, lambda peer=peer, b=b: peer.run(b), peer.name)
        for b, context in shapes
        for peer in peers_plan.peers(points, settings)
    ]


SUITES: dict[str, Callable[[list[Point], BenchSettings], list[Job]]] = {
    "kernels": kernel_jobs,
    "decode": decode_jobs,
    "prefill": prefill_jobs,
    "memory": memory_jobs,
    "train": train_jobs,
    "peers": peer_jobs,
}

"""What a benchmark run is told to do. Defaults live in configs/base.py."""

import dataclasses
from typing import TYPE_CHECKING

from mla_jax.errors import UserError

if TYPE_CHECKING:
    from mla_jax.config import Config


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """The `bench` section of a config."""

    size: str  # of the built-in grid: xs, s, m, l, xl
    vocab_size: int  # embedding rows of the models with random weights
    batches: tuple[int, ...]  # rows that decode together
    contexts: tuple[int, ...]  # cache positions
    steps: int  # decode steps in one timed program
    repeats: int  # timed calls; the row has their median
    copy_bytes: int  # of the buffer whose copying gives the bandwidth
    memory_context: int  # of the suite memory
    train_batch: int  # of the suite train; its length is the first of contexts
    peer_batches: tuple[int, ...]  # of the suite peers
    peer_prompt: int  # tokens of a prompt there
    peer_new: int  # tokens generated there
    max_minutes: float  # no job starts later; 0 = no limit


# `--quick`: a suite on a CPU in seconds. Its figures mean nothing but that the benchmark runs.
QUICK = {
    "bench.batches": (2,),
    "bench.contexts": (32,),
    "bench.steps": 4,
    "bench.repeats": 3,
    "bench.copy_bytes": 2**22,
    "bench.memory_context": 64,
    "bench.train_batch": 2,
    "bench.peer_batches": (1,),
    "bench.peer_prompt": 8,
    "bench.peer_new": 8,
}
QUICK_MODEL = {"model.n_layers": 2, "model.d_model": 64, "model.n_heads": 4, "model.d_ff": 96, "model.max_len": 64}
QUICK_MODEL |= {"train.seq_len": 32, "sample.max_new_tokens": 8}
QUICK_CAVEAT = "tiny models and shapes: that it runs is all that these figures say"


_COUNTS = ("steps", "repeats", "memory_context", "train_batch", "peer_prompt", "peer_new", "vocab_size", "copy_bytes")


def check(config: "Config") -> None:
    """A rule of config_rules.RULES: sizes and counts are positive, the size is one that exists."""
    b = config.bench
    for field in ("batches", "contexts", "peer_batches"):
        values = getattr(b, field)
        if not values or any(not 1 <= value <= 2**30 for value in values):
            raise UserError(f"bench.{field} is {values!r}; it must list numbers from 1 to 2^30: e.g. (1, 16).")
    for field in _COUNTS:
        if not 1 <= getattr(b, field) <= 2**40:
            raise UserError(f"bench.{field} is {getattr(b, field)!r}; it must be at least 1: set such a number.")
    if not 0 <= b.max_minutes < 10**6:
        raise UserError(f"bench.max_minutes is {b.max_minutes!r}; it must be 0 (no limit) or more: e.g. 10.")
    if b.size not in ("xs", "s", "m", "l", "xl"):
        raise UserError(f"bench.size is {b.size!r}; it must be a size of configs/base.py: use xs | s | m | l | xl.")

"""What a run came to: its best evaluation so far, and the figures of its result row."""

import statistics
from typing import Any, NamedTuple

from mla_jax import accounting
from mla_jax.config import Config
from mla_jax.evaluation import EvalResult
from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder


class Best(NamedTuple):
    """The evaluation with the lowest loss (nats per token), and its step; step 0 before the first."""

    step: int = 0
    loss: float = float("inf")
    bits_per_byte: float = float("inf")


def best_so_far(folder: RunFolder, start: int) -> Best:
    """The best evaluation up to step `start`, where training goes on, from metrics.jsonl."""
    rows = [r for r in read_rows(folder.metrics) if r["kind"] == "eval" and r["step"] <= start]
    best = min(rows, key=lambda r: r["loss"], default=None)
    return Best(best["step"], best["loss"], best["bits_per_byte"]) if best else Best()


def counted_so_far(folder: RunFolder, start: int) -> dict[str, int]:
    """{"skipped", "rollbacks"} as of the last line of the log up to step `start`, where training goes on."""
    rows = [r for r in read_rows(folder.metrics) if r["kind"] == "train" and r["step"] <= start]
    newest = max(rows, key=lambda r: r["step"], default={})
    counts = {name: newest.get(name) for name in ("skipped", "rollbacks")}
    return {name: count if isinstance(count, int) and count > 0 else 0 for name, count in counts.items()}


def logged_speed(folder: RunFolder) -> float:
    """Median tokens/s over the log, of all processes that worked at the run; 0 where it has none."""
    rates = [r.get("tokens_per_s") for r in read_rows(folder.metrics) if r["kind"] == "train"]
    return statistics.median([rate for rate in rates if isinstance(rate, float) and rate > 0] or [0.0])


def final_metrics(
    config: Config, step: int, result: EvalResult, best: Best, baselines: dict[str, float], speed: dict[str, Any]
) -> dict[str, Any]:
    """The result row's metrics. step, result: the last evaluation; speed: tokens_per_s, data_wait, startup_s, mfu."""
    return {
        "valid_loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "best_valid_loss": best.loss,
        "best_bits_per_byte": best.bits_per_byte,
        "best_step": best.step,
        "step": step,
        "params": accounting.params(config.model)["total"],
        "kv_bytes_per_token": accounting.kv_bytes(config.model),
        "mha_kv_bytes_per_token": accounting.mha_kv_bytes(config.model),
        **{f"baseline_{name}": value for name, value in baselines.items()},
        **speed,
    }

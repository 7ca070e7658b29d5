"""results.csv of a study: every run of every point, for spreadsheets."""

import csv
import io
from typing import Any

from mla_jax.study.results import Measured, Results, Row


def text(found: Results) -> str:
    """A line for each run of each point; points may share runs. "" without runs."""
    lines = [_fields(p, row) for p in found.points for row in sorted(p.every, key=_seed_and_rate)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else [], lineterminator="\n")
    if lines:
        writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _seed_and_rate(row: Row) -> tuple[int, float]:
    return row["study"]["seed"], row["study"]["learning_rate"]


def _fields(p: Measured, row: Row) -> dict[str, Any]:
    """of_the_mean: 1 for runs that the point's figures are the means of, 0 for those at other learning rates."""
    study, metrics = row["study"], row["metrics"]
    return {
        "point": p.name,
        "tier": p.tier,
        "seed": study["seed"],
        "learning_rate": study["learning_rate"],
        "of_the_mean": int(any(row is chosen for chosen in p.by_seed.values())),
        "status": study["status"],
        "parameters": study["params"]["total"],
        "kv_numbers": study["kv_numbers"],
        "best_valid_loss": metrics["best_valid_loss"],
        "best_bits_per_byte": metrics.get("best_bits_per_byte", ""),
        "best_step": metrics["best_step"],
        "device": row["device"],
        "data_fingerprint": row["data_fingerprint"][:16],
        "config_hash": row["config_hash"],
    }

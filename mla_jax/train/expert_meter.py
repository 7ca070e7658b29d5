"""How evenly the experts are loaded: what the training loop gathers from every step and writes to metrics.jsonl."""

from typing import Any

import numpy as np


def max_over_mean(load: np.ndarray) -> np.ndarray:
    """load [..., E] -> largest over mean load [...]: 1 is even; MaxVio (Wang et al. 2024) is this minus 1."""
    return load.max(axis=-1) / np.maximum(load.mean(axis=-1), 1e-9)


class ExpertMeter:
    """Sums over the steps since the last log and since the last evaluation. Silent for a model without experts."""

    def __init__(self) -> None:
        self._log: list[dict[str, Any]] = []
        self._eval: list[dict[str, Any]] = []

    def add(self, metrics: dict[str, Any]) -> None:
        """metrics: of one train step, on the host."""
        if "expert_load" in metrics:
            row = {name: np.asarray(metrics[name], np.float64) for name in ("expert_load", "router_entropy")}
            row["router_loss"] = float(metrics["router_loss"])
            self._log.append(row)
            self._eval.append(row)

    def train_values(self) -> dict[str, Any]:
        """For a "train" row; {} without experts.

        expert_max_load: max/mean load of each step, mean over the steps since the last log, of each layer [L_moe];
        expert_max_load_worst: its largest layer; expert_dead: experts that no token of these steps went to.
        """
        rows, self._log = self._log, []
        if not rows:
            return {}
        largest = np.mean([max_over_mean(row["expert_load"]) for row in rows], axis=0)
        total = np.sum([row["expert_load"] for row in rows], axis=0)
        return {
            "expert_max_load": _rounded(largest),
            "expert_max_load_worst": float(largest.max()),
            "expert_dead": int((total == 0).sum()),
            "router_entropy": float(np.mean([row["router_entropy"] for row in rows])),
            "router_loss": float(np.mean([row["router_loss"] for row in rows])),
        }

    def eval_values(self, router_bias: Any) -> dict[str, Any]:
        """For an "experts" row, over the steps since the last evaluation; {} without experts.

        load [L_moe][E]: share of the layer's choices times E (1 is even); max_load, entropy (nats), bias_max (largest
        |router_bias|) and bias_std [L_moe]; dead [L_moe]: experts without a token.
        """
        rows, self._eval = self._eval, []
        if not rows:
            return {}
        total = np.sum([row["expert_load"] for row in rows], axis=0)
        bias = np.asarray(router_bias, np.float64)
        return {
            "steps": len(rows),
            "load": _rounded(total / np.maximum(total.mean(axis=-1, keepdims=True), 1e-9)),
            "max_load": _rounded(np.mean([max_over_mean(row["expert_load"]) for row in rows], axis=0)),
            "dead": (total == 0).sum(axis=-1).tolist(),
            "entropy": _rounded(np.mean([row["router_entropy"] for row in rows], axis=0)),
            "bias_max": _rounded(np.abs(bias).max(axis=-1)),
            "bias_std": _rounded(bias.std(axis=-1)),
        }


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values, 5).tolist()

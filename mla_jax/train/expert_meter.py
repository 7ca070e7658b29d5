"""How evenly the experts are loaded: what the training loop gathers from every step and writes to metrics.jsonl."""

from typing import Any

import numpy as np


def max_over_mean(load: np.ndarray) -> np.ndarray:
    """load [..., E] -> largest over mean load [...]: 1 is even; MaxVio (Wang et al. 2024) is this minus 1."""
    return load.max(axis=-1) / np.maximum(load.mean(axis=-1), 1e-9)


class _Sums:
    """Sums over steps, of the size of one: an evaluation may be many steps away."""

    def __init__(self) -> None:
        self.steps, self.load, self.largest, self.entropy, self.loss = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, load: np.ndarray, entropy: np.ndarray, loss: float) -> None:
        self.steps += 1
        self.load, self.largest = self.load + load, self.largest + max_over_mean(load)
        self.entropy, self.loss = self.entropy + entropy, self.loss + loss


class ExpertMeter:
    """Sums over the steps since the last log and since the last evaluation. Silent for a model without experts."""

    def __init__(self) -> None:
        self._log, self._eval = _Sums(), _Sums()

    def add(self, metrics: dict[str, Any]) -> None:
        """metrics: of one train step, on the host."""
        if "expert_load" in metrics:
            load, entropy = (np.asarray(metrics[name], np.float64) for name in ("expert_load", "router_entropy"))
            for sums in (self._log, self._eval):
                sums.add(load, entropy, float(metrics["router_loss"]))

    def train_values(self) -> dict[str, Any]:
        """For a "train" row; {} without experts.

        expert_max_load: max/mean load of each step, mean over the steps since the last log, of each layer [L_moe];
        expert_max_load_worst: its largest layer; expert_dead: experts that no token of these steps went to.
        """
        sums, self._log = self._log, _Sums()
        if not sums.steps:
            return {}
        largest = sums.largest / sums.steps
        return {
            "expert_max_load": _rounded(largest),
            "expert_max_load_worst": float(largest.max()),
            "expert_dead": int((sums.load == 0).sum()),
            "router_entropy": float(np.mean(sums.entropy)) / sums.steps,
            "router_loss": sums.loss / sums.steps,
        }

    def eval_values(self, router_bias: Any) -> dict[str, Any]:
        """For an "experts" row, over the steps since the last evaluation; {} without experts.

        load [L_moe][E]: share of the layer's choices times E (1 is even); max_load, entropy (nats), bias_max (largest
        |router_bias|) and bias_std [L_moe]; dead [L_moe]: experts without a token.
        """
        sums, self._eval = self._eval, _Sums()
        if not sums.steps:
            return {}
        bias = np.asarray(router_bias, np.float64)
        return {
            "steps": sums.steps,
            "load": _rounded(sums.load / np.maximum(sums.load.mean(axis=-1, keepdims=True), 1e-9)),
            "max_load": _rounded(sums.largest / sums.steps),
            "dead": (sums.load == 0).sum(axis=-1).tolist(),
            "entropy": _rounded(sums.entropy / sums.steps),
            "bias_max": _rounded(np.abs(bias).max(axis=-1)),
            "bias_std": _rounded(bias.std(axis=-1)),
        }


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values, 5).tolist()

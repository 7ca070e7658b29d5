"""Metrics of steps: fetched one step late, so that the device never waits for the host, and searched for bad ones."""

from collections import deque
from typing import TYPE_CHECKING

import jax
from absl import logging

from mla_jax.config import TrainConfig
from mla_jax.train.expert_meter import ExpertMeter
from mla_jax.train.rollback import BadStep, NonFiniteLoss, stop_message

if TYPE_CHECKING:
    from mla_jax.train.checkpoint import Checkpoints


class Pending:
    """latest: the newest fetched step's scalars. experts: what routers did since the last log line or evaluation.
    skipped: bad steps whose update was left out, those of processes before this one included."""

    def __init__(self, cfg: TrainConfig, checkpoints: "Checkpoints", skipped: int = 0):
        self._cfg, self._checkpoints = cfg, checkpoints
        self._steps: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.latest: dict[str, float] = {}
        self.experts = ExpertMeter()
        self.skipped = skipped

    def add(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Metrics, still on the device, of step `done`."""
        self._steps.append((done, metrics))

    def forget(self) -> None:
        """After a rollback: what was gathered is of steps that were undone."""
        self._steps.clear()
        self.experts = ExpertMeter()

    def drain(self, keep: int) -> None:
        """Fetch metrics of all but the newest `keep` steps. A bad step raises BadStep or NonFiniteLoss, or is counted,
        as `train.on_nonfinite` says."""
        while len(self._steps) > keep:
            done, on_device = self._steps.popleft()
            fetched = jax.device_get(on_device)
            self.latest = {name: float(value) for name, value in fetched.items() if not value.ndim}
            if self.latest["finite"]:
                self.experts.add(fetched)  # a bad step's tokens all go to the first experts, with NaN as their entropy
                continue
            if self._cfg.on_nonfinite == "rollback":
                raise BadStep(done, self.latest)
            if self._cfg.on_nonfinite == "stop":
                raise NonFiniteLoss(stop_message(done, self.latest, self._checkpoints.latest, self._cfg))
            self.skipped += 1
            logging.warning("Step %d: loss or gradient is bad; update skipped (%d so far).", done, self.skipped)

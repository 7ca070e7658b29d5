"""What becomes of a bad step: loss or gradient are not finite, or above `train.bad_loss` or `train.bad_grad_norm`."""

from mla_jax.config import TrainConfig

MAX_ROLLBACKS = 3  # to the same checkpoint: beyond it the trouble is not in the batches that were skipped


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient stopped being a number, or passed the bound set for it, and the policy is to stop."""


class BadStep(Exception):
    """A bad step under the policy `rollback`."""

    def __init__(self, step: int, metrics: dict[str, float]):
        super().__init__(step)
        self.step, self.metrics = step, metrics


def stop_message(step: int, metrics: dict[str, float], good: int | None, cfg: TrainConfig, why: str = "") -> str:
    """One line: the step, its figures, the last good checkpoint, what to do. why: no rollback was made, or ""."""
    saved = f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"
    bounds = [
        f"{name}={bound}" for name, bound in (("bad_loss", cfg.bad_loss), ("bad_grad_norm", cfg.bad_grad_norm)) if bound
    ]
    limits = f" (bounds: {', '.join(bounds)})" if bounds else ""
    remedy = {
        "stop": "or set --config.train.on_nonfinite to skip or rollback",
        "rollback": "or set --config.train.on_nonfinite=skip",
    }[cfg.on_nonfinite]
    reasons = "; ".join(filter(None, (why, saved)))
    return (
        f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}{limits}; {reasons}. "
        f"Lower --config.optim.learning_rate, {remedy}."
    )


class Rollbacks:
    """Counts rollbacks to the newest checkpoint, so that they come to an end. total: before this process, and here."""

    def __init__(self, total: int = 0) -> None:
        self.total, self._here, self._good = total, 0, -1

    def allow(self, good: int | None) -> str:
        """Why no rollback to checkpoint `good` may be made, as a clause; "" where one may, which is then counted."""
        if good is None:
            return "there is nothing to roll back to"
        self._here = self._here + 1 if good == self._good else 1
        self._good = good
        if self._here > MAX_ROLLBACKS:
            return f"rolled back to step {good} {MAX_ROLLBACKS} times already"
        self.total += 1
        return ""

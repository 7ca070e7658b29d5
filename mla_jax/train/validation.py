"""The losses of a run on its held-out stories while it trains: the newest and the best."""

from typing import Any

from mla_jax import mesh as mesh_lib
from mla_jax.evaluation import EvalResult, evaluate
from mla_jax.train import step as steps
from mla_jax.train.ema import swapped
from mla_jax.train.result import Best, best_so_far
from mla_jax.train.setup import Setup
from mla_jax.train.state import TrainState


class Validation:
    """Evaluates states of one run, which goes on at step `start`.

    last: step and result of the newest evaluation of this process, None before it. best: of all up to now, those
    before `start` included.
    """

    def __init__(self, setup: Setup, start: int):
        self._setup = setup
        self._eval_step = steps.make_eval_step(setup.model, setup.config)
        self._place = mesh_lib.batch_placer(setup.backend.mesh, setup.config.eval.batch_size)
        self.back_to(start)

    def back_to(self, done: int) -> None:
        """Training goes on at step `done`: what came later does not count."""
        self.last: tuple[int, EvalResult] | None = None
        self.best: Best = best_so_far(self._setup.folder, done)

    def run(self, done: int, state: TrainState) -> EvalResult:
        """Evaluate the state after step `done`: its averaged weights, where there is an average."""
        config = self._setup.config

        def eval_step(variables: Any, batch: Any) -> Any:
            return self._eval_step(variables, self._place(batch))

        variables = swapped(state).variables
        result = evaluate(
            eval_step, variables, self._setup.prepared.valid, config.train.seq_len, config.eval.batch_size
        )
        self.last = (done, result)
        if result.loss < self.best.loss:
            self.best = Best(done, result.loss, result.bits_per_byte)
        return result

    def of(self, done: int) -> dict[str, float] | None:
        """What a checkpoint of step `done` says of its loss; None where that step was not evaluated."""
        return {"valid_loss": self.last[1].loss} if self.last is not None and self.last[0] == done else None

"""What a run tells of itself while it trains: lines on the terminal, rows of metrics.jsonl, curves of TensorBoard."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import rich.console

from mla_jax import accounting, devices, distributed
from mla_jax.evaluation import EvalResult
from mla_jax.phases import StartClock
from mla_jax.train import step as steps
from mla_jax.train.clock import Clock
from mla_jax.train.metrics import MetricsWriter, NoWriter, Progress
from mla_jax.train.optim import schedule
from mla_jax.train.pending import Pending
from mla_jax.train.result import logged_speed
from mla_jax.train.rollback import BadStep
from mla_jax.train.setup import Setup
from mla_jax.train.state import TrainState


class Reporting:
    """Of one process' part of a run, from step `start` on. It takes time between steps, and trains nothing.

    clock: of throughput; whatever should not count restarts it. startup: seconds by phase up to the end of the first
    step, {} before it.
    """

    def __init__(
        self, setup: Setup, start: int, pending: Pending, console: rich.console.Console, start_clock: StartClock
    ):
        self._setup, self._start, self._pending = setup, start, pending
        self._config, self._console, self._start_clock = setup.config, console, start_clock
        mesh = setup.backend.mesh
        self._n_devices = 1 if mesh is None else mesh.size
        self._logit_probe = steps.make_logit_probe(setup.model, setup.config)
        self._param_norm = steps.make_param_norm(setup.model)
        self._learning_rate = schedule(setup.config.optim)
        self._tokens_per_step = setup.config.train.batch_size * setup.config.train.seq_len
        self.clock = Clock(self._tokens_per_step)
        self.startup: dict[str, float] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Write files and show progress inside this context; rows after `start` are cut off as it begins."""
        cfg = self._config.train
        writer = NoWriter()
        if distributed.is_first():
            writer = MetricsWriter(self._setup.folder, self._start, cfg.tensorboard)
        with writer as self._writer, Progress(self._console, self._start, cfg.steps) as self._progress:
            yield

    def say(self, line: str) -> None:
        """A line on the terminal."""
        self._progress.say(line)

    def rolled_back(self, bad: BadStep, done: int, count: int) -> None:
        """Training went back from a bad step to step `done`, its rollback number `count`; later rows are cut off."""
        self._writer.cut(done)
        self.say(
            f"step {bad.step} was bad (loss {bad.metrics['loss']:.4g}, gradient norm {bad.metrics['grad_norm']:.4g}): "
            f"rolled back to step {done}; the batches in between are skipped (rollback {count})."
        )
        self.clock.restart()

    def has_batch(self) -> None:
        """The next step is about to be called."""
        if not self.startup:
            self._start_clock.mark("batch")

    def is_due(self, done: int) -> bool:
        """Whether step `done` has a line of its own."""
        return done % self._config.train.log_every == 0 or done == self._config.train.steps

    def has_stepped(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Step `done` was called; its metrics may still be computed. After this process' first one: where the time up
        to here went."""
        self.clock.steps += 1
        if self.startup:
            return
        self._start_clock.mark("compile")  # the call returned: traced and compiled, or read from the cache
        jax.block_until_ready(metrics)
        self._start_clock.mark("first step")
        self.startup = self._start_clock.seconds()
        self._writer.write("startup", self._start, {name.replace(" ", "_"): s for name, s in self.startup.items()})
        self.say(self._start_clock.line())
        if not self.is_due(done):  # else its own line would be of no step
            self.clock.restart()  # compiled now: the first figures should not count that

    def log(self, done: int, state: TrainState, batch: dict[str, Any], rollbacks: int) -> None:
        """The figures of training after step `done`, whose batch was `batch`. Raises as `Pending.drain` does."""
        self._pending.drain(keep=0)  # before the clock is read: the newest step is still running
        tokens_per_s = self.clock.tokens_per_s()
        mfu = self._mfu(tokens_per_s)
        values = {name: self._pending.latest[name] for name in ("loss", "grad_norm")}
        values["param_norm"] = float(self._param_norm(state.params))
        values |= self._pending.experts.train_values()
        values |= {
            "attn_logit_max": float(self._logit_probe(state.variables, batch)),
            "learning_rate": float(self._learning_rate(done - 1)),
            "tokens_per_s": tokens_per_s,
            "data_wait": self.clock.data_wait(),
            "skipped": self._pending.skipped,
            "rollbacks": rollbacks,
        }
        if mfu is not None:
            values["mfu"] = mfu
        self._writer.write("train", done, values)
        left = (self._config.train.steps - done) * self._tokens_per_step
        self._progress.update(done, values["loss"], tokens_per_s, mfu, left / max(tokens_per_s, 1e-9))
        self.clock.restart()

    def log_evaluation(self, done: int, result: EvalResult, router_bias: jax.Array | None, seconds: float) -> None:
        """The evaluation after step `done`, which took `seconds`, and with experts their balance since the last one."""
        values = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte}
        self._writer.write("eval", done, values)
        if experts := self._pending.experts.eval_values(router_bias):
            self._writer.write("experts", done, experts)
        figures = f"validation loss {result.loss:.4f} · {result.bits_per_byte:.4f} bits per byte"
        self.say(f"step {done} · {figures} · {seconds:.1f} s")
        self.clock.restart()

    def speed(self) -> dict[str, Any]:
        """For the result row: tokens_per_s (median), data_wait, startup_s, and mfu where the device's peak is known."""
        # A process that found a run trained and not yet finished has made no step of it.
        tokens_per_s = self.clock.median_tokens_per_s() or logged_speed(self._setup.folder)
        mfu = self._mfu(tokens_per_s)
        found = {"tokens_per_s": tokens_per_s, "data_wait": self.clock.data_wait(), "startup_s": self.startup}
        return found if mfu is None else found | {"mfu": mfu}

    def _mfu(self, tokens_per_s: float) -> float | None:
        flops = accounting.flops_per_token(self._config.model, self._config.train.seq_len)
        return devices.mfu(tokens_per_s * flops, self._n_devices)

"""The training loop: from a config and a work folder to a run folder."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import rich.console
from absl import logging

from mla_jax import distributed
from mla_jax import mesh as mesh_lib
from mla_jax.config import Config
from mla_jax.data.pipeline import train_iterator
from mla_jax.peers import peers_needed
from mla_jax.phases import StartClock
from mla_jax.rows import read_result, result_row
from mla_jax.terminal import say
from mla_jax.train import step as steps
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.ema import swapped
from mla_jax.train.optim import make_optimizer
from mla_jax.train.pending import Pending
from mla_jax.train.reporting import Reporting
from mla_jax.train.result import counted_so_far, final_metrics
from mla_jax.train.resume import flatten
from mla_jax.train.rollback import BadStep, NonFiniteLoss, Rollbacks, stop_message
from mla_jax.train.setup import Setup, held, open_run, starting_state, write_run_files
from mla_jax.train.startup import print_startup
from mla_jax.train.state import TrainState, abstract_state
from mla_jax.train.stop import StopOnSignal
from mla_jax.train.summary import leave_behind
from mla_jax.train.trace import Trace
from mla_jax.train.validation import Validation


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """row: the result row (also result.json), None when training was stopped on request before its last step."""

    row: dict[str, Any] | None
    step: int
    stopped_by: str | None


def train(
    config: Config,
    workdir: str | os.PathLike,
    console: rich.console.Console | None = None,
    deadline: float = float("inf"),
    samples: bool = True,
) -> TrainResult:
    """Train `config` in `workdir`, resuming from its newest checkpoint when there is one.

    samples: whether a finished run draws some for samples.txt and its report, which takes a program of its own.
    deadline: by time.monotonic(); once it has passed, training stops as on a signal, with a checkpoint.

    Raises UserError for anything wrong with config, data or folder before a thing is compiled or written, and
    NonFiniteLoss (naming the step and the last good checkpoint) where `train.on_nonfinite` leaves a bad step no way on.
    """
    start_clock = StartClock()
    start_clock.mark("imports")
    console = console or rich.console.Console(quiet=not distributed.is_first())
    distributed.check_same("config", {**flatten(config), "workdir": str(workdir), "jax": jax.__version__})
    jax.devices()
    start_clock.mark("device")
    setup = distributed.first_then_others("open", lambda: open_run(config, Path(workdir)))
    distributed.check_same("data", {"data": setup.prepared.fingerprint, "checkpoints": setup.folder.steps()})
    start_clock.mark("data")
    with held(setup.folder):
        print_startup(console, setup.config, setup.backend, setup.prepared.stats)
        with (
            Checkpoints(setup.folder, setup.config.checkpoint, setup.config) as checkpoints,
            peers_needed(),
        ):
            training = _Training(setup, checkpoints, console, start_clock, samples)
            if training.start >= setup.config.train.steps and (row := read_result(setup.folder.result)):
                return training.already_finished(row)
            for line in setup.changes:
                logging.warning("Resuming with a changed config: %s", line)
            if distributed.is_first():
                write_run_files(setup)
            return training.run(deadline)


class _Training:
    """One process' part of a run: steps, and what is due after them.

    Here: stepping, rolling back, saving, stopping, and the result row at the end. `report` (train/reporting.py) tells
    of it on the terminal and in files, and has the clock; `validation` evaluates and knows the best loss; `pending`
    holds metrics that are still on the device, and finds bad steps in them.
    """

    def __init__(
        self,
        setup: Setup,
        checkpoints: Checkpoints,
        console: rich.console.Console,
        start_clock: StartClock,
        samples: bool,
    ):
        config, mesh = setup.config, setup.backend.mesh
        self.setup, self.config, self.checkpoints = setup, config, checkpoints
        self.console, self.samples = console, samples
        self.optimizer = make_optimizer(config.optim)
        self.part = mesh_lib.process_part(mesh, config.train.batch_size)
        self.data: grain.DatasetIterator = train_iterator(setup.prepared, config, *self.part)
        self.place = mesh_lib.batch_placer(mesh, config.train.batch_size)
        self.agreed = distributed.Agreement(mesh)
        self.state: TrainState = starting_state(setup, self.optimizer, checkpoints, self.data)
        self.start = int(self.state.step)
        start_clock.mark("state")
        self.train_step = setup.ahead.train_step(config) or steps.make_train_step(setup.model, self.optimizer, config)
        self.seed = np.uint32(config.train.seed)  # an argument: runs that differ by it share a compiled program
        before = counted_so_far(setup.folder, self.start)
        self.pending = Pending(config.train, checkpoints, before["skipped"])
        self.report = Reporting(setup, self.start, self.pending, console, start_clock)
        self.validation = Validation(setup, self.start)
        self.trace = Trace(setup.folder.path / "profile", config.train.profile_steps)
        self.rollbacks = Rollbacks(before["rollbacks"])
        self.stopping: str | None = None  # by what, once that is known

    def already_finished(self, row: dict[str, Any]) -> TrainResult:
        """Say so and leave the run folder as it is."""
        changes = "; ".join(self.setup.changes)
        changes = (
            f" Nothing was trained with what is new ({changes}): for that give another --workdir." if changes else ""
        )
        say(
            self.console,
            f"this run is finished (step {self.start}; {self.setup.folder.report}): raise --config.train.steps to "
            f"train it further.{changes}",
        )
        return TrainResult(row, self.start, None)

    def run(self, deadline: float) -> TrainResult:
        total = self.config.train.steps
        if self.start:
            say(self.console, f"resuming at step {self.start} of {total}")
        with self.report.opened(), StopOnSignal(deadline) as self.stop:
            self.report.clock.restart()
            done = self.start
            while done < total:
                try:
                    done = self._advance(done + 1)
                except BadStep as bad:
                    done = self._roll_back(bad)
                    continue
                if (reason := self.stopping) and done in self.checkpoints.steps and done < total:
                    self.trace.end(self.state)
                    self.checkpoints.wait()
                    self.report.say(f"stopped at step {done} by {reason}; the same command continues.")
                    return TrainResult(None, done, reason)
            if self.start >= total:
                self._evaluate(self.start)
            self.trace.end(self.state)
            self.checkpoints.wait()
        return TrainResult(self._finish(), total, None)

    def _advance(self, done: int) -> int:
        """Step number `done`, with what is due after it; returns it. Raises BadStep under the policy rollback."""
        cfg, total = self.config.train, self.config.train.steps
        batch = self.place(self.report.clock.timed_next(self.data, done - self.start))
        self.trace.at(done - self.start, self.state)
        self.report.has_batch()
        self.state, metrics = self.train_step(self.state, batch, self.seed)
        self.pending.add(done, metrics)
        self.report.has_stepped(done, metrics)
        self.pending.drain(keep=1)
        if self.report.is_due(done):
            self.report.log(done, self.state, batch, self.rollbacks.total)
        if done % cfg.eval_every == 0 or done == total:
            self._evaluate(done)
        wish = self.stop.reason
        self.stopping = (wish or "another process") if self.agreed(wish is not None) else None
        if self._is_time_to_save(done) or self.stopping:
            self._save(done)
        return done

    def _roll_back(self, bad: BadStep) -> int:
        """Back to the newest checkpoint, on with the data that comes next; returns the checkpoint's step."""
        self.checkpoints.wait()
        good = self.checkpoints.latest
        if refusal := self.rollbacks.allow(good):
            raise NonFiniteLoss(stop_message(bad.step, bad.metrics, good, self.config.train, refusal))
        # The data of training stays where it is.
        elsewhere = train_iterator(self.setup.prepared, self.config, *self.part)
        self.state = self.checkpoints.restore(abstract_state(self.setup.model, self.optimizer), elsewhere)
        done = int(self.state.step)
        self.pending.forget()
        self.validation.back_to(done)
        self.report.rolled_back(bad, done, self.rollbacks.total)
        return done

    def _is_time_to_save(self, done: int) -> bool:
        cfg = self.config.checkpoint
        return done % cfg.every == 0 or done in cfg.keep_steps or done == self.config.train.steps

    def _evaluate(self, done: int) -> None:
        self.pending.drain(keep=0)
        began = time.perf_counter()
        result = self.validation.run(done, self.state)
        self.report.log_evaluation(done, result, self.state.router_bias, time.perf_counter() - began)

    def _save(self, done: int) -> None:
        self.pending.drain(keep=0)  # never save a state whose finiteness is not known
        self.checkpoints.save(self.state, self.data, self.validation.of(done))
        self.report.clock.restart()

    def _finish(self) -> dict[str, Any]:
        setup, (done, result) = self.setup, self.validation.last
        metrics = final_metrics(self.config, done, result, self.validation.best, setup.baselines, self.report.speed())
        tokenizer = setup.prepared.tokenizer
        row = result_row(setup.folder.name, self.config.hash, metrics, setup.prepared.fingerprint, tokenizer.sha256)
        variables = mesh_lib.gather(swapped(self.state).variables, setup.backend.mesh)
        if distributed.is_first():
            leave_behind(setup, variables, json.loads(json.dumps(row)), self.console, self.samples)
        distributed.exchange("finished", "")  # process 0 serves the others' farewell: wait for its samples
        return row

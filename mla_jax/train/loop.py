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

from mla_jax import accounting, devices, distributed
from mla_jax import mesh as mesh_lib
from mla_jax.config import Config
from mla_jax.data.pipeline import train_iterator
from mla_jax.evaluation import EvalResult, evaluate
from mla_jax.peers import peers_needed
from mla_jax.phases import StartClock
from mla_jax.rows import read_result, result_row
from mla_jax.terminal import say
from mla_jax.train import step as steps
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.clock import Clock
from mla_jax.train.ema import swapped
from mla_jax.train.metrics import MetricsWriter, NoWriter, Progress
from mla_jax.train.optim import make_optimizer, schedule
from mla_jax.train.pending import Pending
from mla_jax.train.result import Best, best_so_far, final_metrics
from mla_jax.train.resume import flatten
from mla_jax.train.rollback import BadStep, NonFiniteLoss, Rollbacks, stop_message
from mla_jax.train.setup import Setup, held, open_run, starting_state, write_run_files
from mla_jax.train.startup import print_startup
from mla_jax.train.state import TrainState, abstract_state
from mla_jax.train.stop import StopOnSignal
from mla_jax.train.summary import leave_behind
from mla_jax.train.trace import Trace


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
    """The loop's working parts."""

    def __init__(
        self,
        setup: Setup,
        checkpoints: Checkpoints,
        console: rich.console.Console,
        start_clock: StartClock,
        samples: bool,
    ):
        config, self.samples = setup.config, samples
        self.start_clock = start_clock
        self.setup, self.config, self.checkpoints, self.console = setup, config, checkpoints, console
        self.optimizer = optimizer = make_optimizer(config.optim)
        mesh = setup.backend.mesh
        self.part = mesh_lib.process_part(mesh, config.train.batch_size)
        self.data: grain.DatasetIterator = train_iterator(setup.prepared, config, *self.part)
        self.place = mesh_lib.batch_placer(mesh, config.train.batch_size)
        self.agreed = distributed.Agreement(mesh)
        self.n_devices = 1 if mesh is None else mesh.size
        self.state: TrainState = starting_state(setup, optimizer, checkpoints, self.data)
        self.start = int(self.state.step)
        start_clock.mark("state")
        self.train_step = steps.make_train_step(setup.model, optimizer, config)
        self.seed = np.uint32(config.train.seed)  # an argument: runs that differ by it share a compiled program
        eval_step = steps.make_eval_step(setup.model, config)
        place_eval = mesh_lib.batch_placer(mesh, config.eval.batch_size)
        self.eval_step = lambda variables, batch: eval_step(variables, place_eval(batch))
        self.logit_probe = steps.make_logit_probe(setup.model, config)
        self.param_norm = steps.make_param_norm(setup.model)
        self.learning_rate = schedule(config.optim)
        self.pending = Pending(config.train, checkpoints)
        self.clock = Clock(config.train.batch_size * config.train.seq_len)
        self.trace = Trace(setup.folder.path / "profile", config.train.profile_steps)
        self.best = best_so_far(setup.folder, self.start)
        self.last: tuple[int, EvalResult] | None = None
        self.startup: dict[str, float] = {}
        self.stopping: str | None = None
        self.rollbacks = Rollbacks()

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
        cfg, total = self.config.train, self.config.train.steps
        if self.start:
            say(self.console, f"resuming at step {self.start} of {total}")
        writer = NoWriter()
        if distributed.is_first():
            writer = MetricsWriter(self.setup.folder, self.start, cfg.tensorboard)
        progress = Progress(self.console, self.start, total)
        with writer as self.writer, progress as self.progress, StopOnSignal(deadline) as self.stop:
            self.clock.restart()
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
                    self.progress.say(f"stopped at step {done} by {reason}; the same command continues.")
                    return TrainResult(None, done, reason)
            if self.start >= total:
                self._evaluate(self.start)
            self.trace.end(self.state)
            self.checkpoints.wait()
        return TrainResult(self._finish(), total, None)

    def _advance(self, done: int) -> int:
        """Step number `done`, with what is due after it; returns it. Raises BadStep under the policy rollback."""
        cfg, total = self.config.train, self.config.train.steps
        batch = self.place(self.clock.timed_next(self.data, done - self.start))
        self.trace.at(done - self.start, self.state)
        first = "total" not in self.startup
        if first:
            self.start_clock.mark("batch")
        self.state, metrics = self.train_step(self.state, batch, self.seed)
        self.pending.add(done, metrics)
        self.clock.steps += 1
        if first:
            self._report_startup(metrics)
            if cfg.log_every > 1:
                self.clock.restart()  # compiled now: the first figures should not count that
        self.pending.drain(keep=1)
        if done % cfg.log_every == 0 or done == total:
            self._log(done, batch)
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
        self.writer.cut(done)
        self.best, self.last = best_so_far(self.setup.folder, done), None
        self.progress.say(
            f"step {bad.step} was bad (loss {bad.metrics['loss']:.4g}, gradient norm {bad.metrics['grad_norm']:.4g}): "
            f"rolled back to step {done}; the batches in between are skipped (rollback {self.rollbacks.total})."
        )
        self.clock.restart()
        return done

    def _report_startup(self, metrics: dict[str, jax.Array]) -> None:
        """After the first step of this process: where the time up to here went."""
        self.start_clock.mark("compile")  # the call returned: traced and compiled, or read from the cache
        jax.block_until_ready(metrics)
        self.start_clock.mark("first step")
        self.startup = self.start_clock.seconds()
        self.writer.write("startup", self.start, {name.replace(" ", "_"): s for name, s in self.startup.items()})
        self.progress.say(self.start_clock.line())

    def _is_time_to_save(self, done: int) -> bool:
        cfg = self.config.checkpoint
        return done % cfg.every == 0 or done in cfg.keep_steps or done == self.config.train.steps

    def _log(self, done: int, batch: dict[str, Any]) -> None:
        self.pending.drain(keep=0)  # before the clock is read: the newest step is still running
        tokens_per_s = self.clock.tokens_per_s()
        mfu = self._mfu(tokens_per_s)
        values = {name: self.pending.latest[name] for name in ("loss", "grad_norm")}
        values["param_norm"] = float(self.param_norm(self.state.params))
        values |= self.pending.experts.train_values()
        values |= {
            "attn_logit_max": float(self.logit_probe(self.state.variables, batch)),
            "learning_rate": float(self.learning_rate(done - 1)),
            "tokens_per_s": tokens_per_s,
            "data_wait": self.clock.data_wait(),
            "skipped": self.pending.skipped,
            "rollbacks": self.rollbacks.total,
        }
        if mfu is not None:
            values["mfu"] = mfu
        self.writer.write("train", done, values)
        left = (self.config.train.steps - done) * self.config.train.batch_size * self.config.train.seq_len
        self.progress.update(done, values["loss"], tokens_per_s, mfu, left / max(tokens_per_s, 1e-9))
        self.clock.restart()

    def _mfu(self, tokens_per_s: float) -> float | None:
        flops = accounting.flops_per_token(self.config.model, self.config.train.seq_len)
        return devices.mfu(tokens_per_s * flops, self.n_devices)

    def _evaluate(self, done: int) -> None:
        self.pending.drain(keep=0)
        began = time.perf_counter()
        valid, cfg = self.setup.prepared.valid, self.config
        variables = swapped(self.state).variables  # of the averaged weights, where there is an average
        result = evaluate(self.eval_step, variables, valid, cfg.train.seq_len, cfg.eval.batch_size)
        values = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte}
        self.writer.write("eval", done, values)
        if experts := self.pending.experts.eval_values(self.state.router_bias):
            self.writer.write("experts", done, experts)
        self.last = (done, result)
        if result.loss < self.best.loss:
            self.best = Best(done, result.loss, result.bits_per_byte)
        seconds = time.perf_counter() - began
        figures = f"validation loss {result.loss:.4f} · {result.bits_per_byte:.4f} bits per byte"
        self.progress.say(f"step {done} · {figures} · {seconds:.1f} s")
        self.clock.restart()

    def _save(self, done: int) -> None:
        self.pending.drain(keep=0)  # never save a state whose finiteness is not known
        fresh = self.last is not None and self.last[0] == done
        self.checkpoints.save(self.state, self.data, {"valid_loss": self.last[1].loss} if fresh else None)
        self.clock.restart()

    def _finish(self) -> dict[str, Any]:
        setup, (done, result) = self.setup, self.last
        tokens_per_s = self.clock.median_tokens_per_s()
        speed = {"tokens_per_s": tokens_per_s, "data_wait": self.clock.data_wait(), "startup_s": self.startup}
        if (mfu := self._mfu(tokens_per_s)) is not None:
            speed["mfu"] = mfu
        metrics = final_metrics(self.config, done, result, self.best, setup.baselines, speed)
        tokenizer = setup.prepared.tokenizer
        row = result_row(setup.folder.name, self.config.hash, metrics, setup.prepared.fingerprint, tokenizer.sha256)
        variables = mesh_lib.gather(swapped(self.state).variables, setup.backend.mesh)
        if distributed.is_first():
            leave_behind(setup, variables, json.loads(json.dumps(row)), self.console, self.samples)
        distributed.exchange("finished", "")  # process 0 serves the others' farewell: wait for its samples
        return row

"""Do what a study lacks: one run after the other in this process, next to other processes on the same folder."""

import contextlib
import dataclasses
import gc
import json
import math
import shutil
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import rich.console

from mla_jax import accounting, devices
from mla_jax import config as config_lib
from mla_jax.config import Config
from mla_jax.data.prepare import prepare
from mla_jax.errors import UserError, brief
from mla_jax.files import locked, write_text
from mla_jax.model import backend
from mla_jax.rows import read_result, result_row
from mla_jax.runs import RunFolder, read_config, read_data
from mla_jax.study import spent
from mla_jax.study.grid import Study
from mla_jax.study.measure import curve, measure
from mla_jax.study.plan import Plan, Task, cost_model, plan, training_flops
from mla_jax.study.row_checks import fault_of
from mla_jax.study.rows import DONE, Rows, gather
from mla_jax.terminal import say
from mla_jax.train.loop import NonFiniteLoss, train
from mla_jax.train.stop import StopOnSignal

POLL_S = 5.0  # between looks at runs that other processes hold


@dataclasses.dataclass(frozen=True)
class Outcome:
    """done: finished runs of the study, whoever did them; left: runs to go; stopped: why, None when nothing is left.

    failed: name -> error of the runs that failed in this process.
    """

    done: int
    left: int
    stopped: str | None
    failed: dict[str, str]


class Runner:
    """Works on the study in `workdir` (runs/, rows/, logs/, locks/) until it is complete or `max_minutes` are over.

    sharing: how many processes take turns on this one's device; rows say so, and their seconds count as a share.
    """

    def __init__(
        self, study: Study, workdir: Path, max_minutes: float, console: rich.console.Console, sharing: int = 1
    ):
        self.study, self.workdir, self.console, self.sharing = study, workdir, console, sharing
        self.began = time.monotonic()
        self.deadline = self.began + 60 * max_minutes
        self.failed: dict[str, str] = {}
        self.fingerprint: str | None = None
        self.started = 0

    def prepare(self) -> None:
        """Prepare the data, once: every run finds it in the cache. Raises UserError when it cannot be."""
        first = next(iter(plan(self.study, gather(self.workdir)).tasks), None)
        if first is None:
            raise UserError(f"study {self.study.name} has no point that this mla_jax can make: upgrade mla_jax.")
        self.fingerprint = prepare(first.config).fingerprint

    def run(self) -> Outcome:
        """Work until nothing is left or time is up, after `prepare`."""
        for name in ("runs", "rows", "logs", "locks"):
            (self.workdir / name).mkdir(parents=True, exist_ok=True)
        with StopOnSignal(self.deadline) as self.stop:
            self._try_kernels()
            stopped = self._work()
        rows, made = self._look()
        done = _done(made, rows, self.fingerprint)
        return Outcome(done, _total(made) - done, stopped, self.failed)

    def _try_kernels(self) -> None:
        """Let one process run the self-check of decode's kernels while the others train.

        Each needs its result when its first run is measured; twelve that compiled the same kernels at once took 20 to
        50 s each. The result is kept on disk (kernels/passed.py).
        """
        tasks = self._undone(*self._look())
        if tasks and (lock := locked(self.workdir / "locks" / "kernels.lock")):
            with lock, contextlib.suppress(UserError):  # the run that needs what is refused says so in its row
                backend.choose(tasks[0].config.model)

    def _look(self) -> tuple[Rows, Plan]:
        rows = gather(self.workdir)
        return rows, plan(self.study, rows, self.fingerprint)

    def _undone(self, rows: Rows, made: Plan) -> list[Task]:
        return [task for task in made.tasks if rows.done(task.key, self.fingerprint) is None]

    def _work(self) -> str | None:
        """None when all is done that can be done, else why it stopped."""
        waited = False
        while True:
            rows, made = self._look()
            tasks = [task for task in self._undone(rows, made) if task.name not in self.failed]
            if not tasks:
                return "failed runs" if self.failed else None
            if self.stop.signal_name or (self.started and self.stop.reason):
                return self.stop.reason
            chosen = self._choose(tasks, rows)
            if chosen is None:
                return "the time limit: no run fits into what is left of it"
            if chosen == "held":
                if self.stop.reason:
                    return self.stop.reason
                if not waited:
                    self._say(f"{len(tasks)} runs are being done by other processes; waiting for them")
                waited = True
                time.sleep(min(POLL_S, max(0.0, self.deadline - time.monotonic())))
                continue
            task, lock = chosen
            with lock:
                self._do(task, f"{_done(made, rows, self.fingerprint) + 1}/{_total(made)}")

    def _choose(self, tasks: list[Task], rows: Rows) -> tuple[Task, Any] | str | None:
        """The first task in order that is free and fits into the time left; "held" when others do all that fit."""
        cost = cost_model(self.study, rows.by_key.values(), devices.device_name())
        left = self.deadline - time.monotonic()
        held = False
        for task in tasks:
            resumable = bool(RunFolder(self._folder(task)).steps())
            if self.started and not resumable and cost.seconds(task.config, self.sharing) > left:
                continue  # the first run of a call always starts: on a disk that stays, it will be gone on with
            # By what is trained: of points that share a config another may have given it its name (`only`).
            lock = locked(self.workdir / "locks" / f"{task.key}.lock")
            if lock is None:
                held = True
                continue
            return task, lock
        return "held" if held else None

    def _folder(self, task: Task) -> Path:
        """Where the run is, under whatever name it was begun."""
        runs, ending = self.workdir / "runs", task.name.removeprefix(task.point.name)
        return next(iter(sorted(runs.glob(f"*{ending}"))), runs / task.name)

    def _do(self, task: Task, number: str) -> None:
        """Train and measure one run and write its row, whatever happens but a signal. number: "3/13", to be said."""
        if gather(self.workdir).done(task.key, self.fingerprint):
            return  # another process finished it between the look and the lock
        self.started += 1
        self._say(f"[{number}] {task.name} begins")
        began, folder = time.monotonic(), self._folder(task)
        row = None
        try:
            with _log(self.workdir / "logs" / f"{task.name}.txt") as console:
                row = run_task(self.study, task, folder, console, self.deadline)
            if row is not None:
                _check_row(row)
        except Exception as error:  # one failed run does not stop the rest
            text = f"{type(error).__name__}: {brief(error, 500)}"
            self.failed[task.name] = text
            with (self.workdir / "logs" / f"{task.name}.txt").open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            row = self._failed_row(task, text)
        seconds = time.monotonic() - began
        before = spent.device_s(folder)
        total = before + seconds / self.sharing
        finished = row is not None and row["study"]["status"] in DONE
        goes = finished and not self.study.keep_checkpoints  # else a next call finds what was trained
        if not goes:
            spent.keep(folder, total)
        if row is None:
            self._say(f"{task.name} was stopped after {seconds:.0f} s; it goes on from its checkpoint")
        else:
            row["study"] |= {"seconds": round(total * self.sharing, 1), "sharing": self.sharing}
            row["study"]["resumed"] |= before > 0  # so that nobody takes all of it for what a run costs
            write_text(self.workdir / "rows" / f"{task.name}.json", json.dumps(row) + "\n")
            self._say(f"{task.name} {_in_words(row)} · {seconds:.0f} s")
            if goes:
                spent.forget(folder)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        forget_programs()

    def _failed_row(self, task: Task, error: str) -> dict[str, Any]:
        row = result_row(task.point.name, task.key, {}, self.fingerprint or "", "")
        return row | {"study": _about(self.study, task, "failed", task.config) | {"error": error}} | _asked(task)

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        say(self.console, f"{minutes:3d}:{seconds:02d} {text}")


def _check_row(row: dict[str, Any]) -> None:
    """Raise ValueError for a row that would not count as done: its run would be trained again, and again."""
    written = json.dumps(row | {"study": {"seconds": 0.0, "sharing": 1} | row["study"]})  # tuples become lists
    if fault := fault_of(json.loads(written)):
        raise ValueError(f"the row of this run cannot be used: {fault}")


def _done(made: Plan, rows: Rows, fingerprint: str | None) -> int:
    """Runs of the plan that have a result, whoever did them."""
    return sum(rows.done(task.key, fingerprint) is not None for task in made.tasks)


def _total(made: Plan) -> int:
    """Runs of the whole study, those that wait for their learning rate too."""
    return len(made.tasks) + sum(seeds for _, seeds in made.waiting)


def run_task(
    study: Study, task: Task, folder: Path, console: rich.console.Console, deadline: float = math.inf
) -> dict[str, Any] | None:
    """Train (or go on with) one run in `folder` and return its row; None when it was stopped before its end.

    A run whose loss stops being a number has a row too, with status "diverged": that is a result.
    """
    resumed = bool(RunFolder(folder).steps())
    try:
        result = train(task.config, folder, console, deadline, samples=False)  # the row has stories of its own
    except NonFiniteLoss as error:
        return _diverged_row(study, task, RunFolder(folder), str(error))
    if result.stopped_by:
        return None
    stored = read_result(RunFolder(folder).result) or result.row
    about = _about(study, task, "done", read_config(RunFolder(folder))) | {"resumed": resumed}
    return (
        stored | {"name": task.point.name, "study": about} | _asked(task) | measure(folder, study.tier_of(task.point))
    )


def _about(study: Study, task: Task, status: str, config: Config) -> dict[str, Any]:
    """The row's `study` part. config: as run, or as asked where it never ran."""
    model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or config.tokenizer.vocab_size)
    parameters = accounting.params(model)
    return {
        "name": study.name,
        "tier": task.point.tier,
        "seed": task.seed,
        "learning_rate": task.config.optim.learning_rate,
        "status": status,
        "resumed": False,
        "vocab_size": model.vocab_size,
        "flops_per_token": accounting.flops_per_token(model, config.train.seq_len),
        "training_flops": training_flops(config),
        "params": parameters,
        "kv_numbers": accounting.kv_numbers(model),
    }


def _asked(task: Task) -> dict[str, Any]:
    return {"config": json.loads(config_lib.dumps(task.config))}


def _diverged_row(study: Study, task: Task, folder: RunFolder, error: str) -> dict[str, Any]:
    data = read_data(folder)
    config = read_config(folder)
    seen = curve(folder.metrics)
    best = min(seen["eval"], key=lambda pair: pair[1], default=(0, None))
    metrics = {"best_valid_loss": best[1], "best_step": best[0], "valid_loss": None}
    row = result_row(task.point.name, config.hash, metrics, data["fingerprint"], data["tokenizer_sha256"])
    about = _about(study, task, "diverged", config) | {"error": error}
    return row | {"study": about, "curve": seen} | _asked(task)


def _in_words(row: dict[str, Any]) -> str:
    if row["study"]["status"] == "failed":
        return f"FAILED ({row['study']['error'][:160]})"
    if row["study"]["status"] == "diverged":
        return "diverged"
    m = row["metrics"]
    return f"done: best validation loss {m['best_valid_loss']:.4f} at step {m['best_step']}"


@contextlib.contextmanager
def _log(path: Path) -> Iterator[rich.console.Console]:
    """A console that writes to a file, in a notebook too: what the user sees has a line a run."""
    with path.open("a", encoding="utf-8") as file:
        yield rich.console.Console(file=file, width=120, force_jupyter=False)


def forget_programs() -> None:
    """Drop compiled programs and whatever a finished run still holds on the device, so that runs do not add up."""
    jax.clear_caches()
    gc.collect()

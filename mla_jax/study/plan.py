"""Which runs a study still needs, in which order, and what they will cost."""

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

from mla_jax import accounting, devices
from mla_jax.config import Config
from mla_jax.study.grid import Point, Study
from mla_jax.study.rows import Rows, best_loss, key_of


@dataclasses.dataclass(frozen=True)
class Task:
    """One run. stage 0: the first seed at the middle learning rate; 1: its other rates; 2, 3, ...: further seeds."""

    point: Point
    seed: int
    learning_rate: float | None
    stage: int
    config: Config

    @property
    def key(self) -> str:
        return key_of(self.config)

    @property
    def name(self) -> str:
        """Of its folder and its row's file."""
        return f"{self.point.name}-s{self.seed}-{self.key[:8]}"

    @property
    def order(self) -> tuple:
        return (self.point.priority, self.stage, self.point.name, self.learning_rate or 0.0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """tasks: runs whose config is known, most informative first. waiting: (point, seeds) whose learning rate is not
    chosen yet. missing: points that this mla_jax cannot make."""

    tasks: tuple[Task, ...]
    waiting: tuple[tuple[Point, int], ...]
    missing: tuple[Point, ...]


def plan(study: Study, rows: Rows, fingerprint: str | None = None) -> Plan:
    """All runs of the study, done ones included. `fingerprint`: of the data here, when it is known."""
    tasks: list[Task] = []
    waiting = []
    for point in study.points:
        if not point.available:
            continue
        rates = rates_of(study, point)
        first = [Task(point, point.seeds[0], rate, int(i > 0), study.config(point, point.seeds[0], rate))
                 for i, rate in enumerate(rates)]  # fmt: skip
        tasks += first
        chosen = chosen_rate(first, rows, fingerprint)
        for number, seed in enumerate(point.seeds[1:]):
            if chosen is None:
                waiting.append((point, len(point.seeds) - 1))
                break
            rate = chosen.learning_rate
            tasks.append(Task(point, seed, rate, 2 + number, study.config(point, seed, rate)))
    unique = {task.key: task for task in sorted(tasks, key=lambda t: t.order, reverse=True)}  # two points, one config
    missing = tuple(point for point in study.points if not point.available)
    return Plan(tuple(sorted(unique.values(), key=lambda t: t.order)), tuple(waiting), missing)


def rates_of(study: Study, point: Point) -> tuple[float | None, ...]:
    """The learning rates of the first seed, the middle one first; (None,) is the knob as it is."""
    rates: tuple[float | None, ...] = point.learning_rates or study.tier_of(point).learning_rates or (None,)
    middle = rates[len(rates) // 2]
    return (middle, *(rate for rate in rates if rate != middle))


def chosen_rate(first: Iterable[Task], rows: Rows, fingerprint: str | None = None) -> Task | None:
    """The first-seed run with the best validation loss; None until all of them are done."""
    first = list(first)
    found = [rows.done(task.key, fingerprint) for task in first]
    if len(first) == 1:
        return first[0]
    if any(row is None for row in found):
        return None
    return min(zip(found, first, strict=True), key=lambda pair: best_loss(pair[0]))[1]


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Seconds of a run on one device: its training FLOPs at a rate, and an overhead.

    measured: how many rows of that device the rate comes from; 0 = the study's stated rate.
    """

    device: str
    flops_per_s: float
    overhead_s: float
    measured: int

    def seconds(self, config: Config) -> float:
        return training_flops(config) / self.flops_per_s + self.overhead_s


def training_flops(config: Config) -> float:
    """Floating-point operations of all steps of a run; an embedding of the tokenizer's ceiling where none is set."""
    model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or config.tokenizer.vocab_size)
    train = config.train
    return float(accounting.flops_per_token(model, train.seq_len)) * train.steps * train.batch_size * train.seq_len


def cost_model(study: Study, rows: Iterable[dict[str, Any]], device: str | None = None) -> CostModel:
    """From what rows of `device` (default: the study's plan_device) took, else from the study's stated figures."""
    device = device or study.plan_device
    rates, overheads = [], []
    for row in rows:
        about = row["study"]
        if row["device"] != device or about["status"] != "done" or about["resumed"]:
            continue
        rate = row["metrics"]["tokens_per_s"] * about["flops_per_token"]
        rates.append(rate)
        overheads.append(max(0.0, about["seconds"] - about["training_flops"] / rate))
    if rates:
        return CostModel(device, statistics.median(rates), statistics.median(overheads), len(rates))
    if device == study.plan_device:
        return CostModel(device, study.plan_flops, study.plan_overhead_s, 0)
    peak = devices.peak_flops()
    return CostModel(device, peak / 4 if peak else 2e10, study.plan_overhead_s, 0)


def describe(study: Study, made: Plan, rows: Rows, cost: CostModel) -> str:
    """The plan as Markdown: every run in its order with its minutes, and what waits and why."""
    source = f"measured on {cost.measured} runs" if cost.measured else "not measured yet: the study's stated figure"
    lines = [
        f"# Plan of study {study.name}",
        "",
        f"Minutes on {cost.device} at {cost.flops_per_s:.3g} FLOP/s and {cost.overhead_s:.0f} s a run beside its steps "
        f"({source}).",
        "",
        "| # | point | tier | seed | learning rate | minutes | status |",
        "|---|---|---|---|---|---|---|",
    ]
    left = total = 0.0
    for number, task in enumerate(made.tasks, 1):
        minutes = cost.seconds(task.config) / 60
        row = rows.by_key.get(task.key)
        status = row["study"]["status"] if row else "to do"
        total += minutes
        left += 0 if rows.done(task.key) else minutes
        rate = task.config.optim.learning_rate
        lines.append(
            f"| {number} | {task.point.name} | {task.point.tier} | {task.seed} | {rate:g} | {minutes:.1f} | {status} |"
        )
    for point, seeds in made.waiting:
        minutes = seeds * cost.seconds(study.config(point, point.seeds[0], rates_of(study, point)[0])) / 60
        total, left = total + minutes, left + minutes
        lines.append(f"| | {point.name} | {point.tier} | {seeds} more | best of seed {point.seeds[0]} | {minutes:.1f} "
                     "| waits for its learning rate |")  # fmt: skip
    lines += [f"| | {point.name} | {point.tier} | | | | needs {point.needs} |" for point in made.missing]
    lines += ["", f"{total:.1f} minutes in all, {left:.1f} to go."]
    if rows.unreadable:
        lines += ["", "Rows left out, because their config cannot be read: " + "; ".join(rows.unreadable)]
    return "\n".join(lines)

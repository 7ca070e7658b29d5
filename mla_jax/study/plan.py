"""Which runs a study still needs, in which order, and what they will cost."""

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from mla_jax import accounting, devices
from mla_jax.config import Config
from mla_jax.markdown import table
from mla_jax.study.grid import Point, Study
from mla_jax.study.rows import Rows, key_of, standing

SHARING = 3  # processes on one device in the plan's last column; launch/gpu_study.sh starts as many


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
    """The first-seed run with the best validation loss, of those that did not diverge while there are any; None until
    all of them are done."""
    first = list(first)
    found = [rows.done(task.key, fingerprint) for task in first]
    if len(first) == 1:
        return first[0]
    if any(row is None for row in found):
        return None
    return min(zip(found, first, strict=True), key=lambda pair: standing(pair[0]))[1]


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Seconds of a run on one device: its training FLOPs at a rate, a fixed time a step, and an overhead.

    experts: how many times as long a step with experts takes as its FLOPs say (routing moves rows). measured: how
    many rows of that device the figures come from; 0 = the study's stated ones.
    """

    device: str
    flops_per_s: float
    step_s: float
    experts: float
    overhead_s: float
    measured: int

    def step_seconds(self, config: Config) -> float:
        """Of all the run's steps: what the device computes."""
        slower = self.experts if config.model.n_moe_layers else 1.0
        return slower * training_flops(config) / self.flops_per_s + self.step_s * config.train.steps

    def seconds(self, config: Config, sharing: int = 1) -> float:
        """By the clock, where `sharing` processes take turns on the device."""
        return sharing * self.step_seconds(config) + self.overhead_s


def training_flops(config: Config) -> float:
    """Floating-point operations of all steps of a run; an embedding of the tokenizer's ceiling where none is set."""
    model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or config.tokenizer.vocab_size)
    train = config.train
    return float(accounting.flops_per_token(model, train.seq_len)) * train.steps * train.batch_size * train.seq_len


def cost_model(study: Study, rows: Iterable[dict[str, Any]], device: str | None = None) -> CostModel:
    """From what rows of `device` (default: the study's plan_device) took, else from the study's stated figures.

    Rows of runs that were cut, or that shared the device with others, say nothing about its speed and are left out.
    """
    device = device or study.plan_device
    rates, overheads, with_experts = [], [], []
    for row in rows:
        about = row["study"]
        if row["device"] != device or about["status"] != "done" or about["resumed"] or about["sharing"] > 1:
            continue
        train = row["config"]["config"]["train"]
        steps_s = train["steps"] * train["batch_size"] * train["seq_len"] / row["metrics"]["tokens_per_s"]
        overheads.append(max(0.0, about["seconds"] - steps_s))
        rate = about["training_flops"] / max(steps_s - study.plan_step_s * train["steps"], steps_s / 4)
        (with_experts if row["experts"] else rates).append(rate)
    stated = study.plan_flops
    if device != study.plan_device:
        peak, planned = devices.peak_flops(device), devices.peak_flops(study.plan_device)
        stated = peak / 4 if peak else 2e10
        if peak and planned:  # as far from its peak as the device that the stated figure is of
            stated = study.plan_flops * peak / planned
    rate = statistics.median(rates) if rates else stated
    return CostModel(
        device,
        rate,
        study.plan_step_s,
        max(1.0, rate / statistics.median(with_experts)) if with_experts else study.plan_experts,
        statistics.median(overheads) if overheads else study.plan_overhead_s,
        len(overheads),
    )


def describe(study: Study, made: Plan, rows: Rows, cost: CostModel, here: str = "") -> str:
    """The plan as Markdown: minutes by priority and in all, then every run in its order, what waits and why; the total
    once more, for who sees the end.

    here: the device of this machine, to be told apart from the one that the minutes are for.
    """
    source = f"measured: {cost.measured} runs on that device"
    if not cost.measured:
        source = "an estimate from the study's stated figures: no run of it was measured on that device yet"
    elsewhere = [f"This machine has another device, {here}: expect other times here.", ""]
    lines = [
        f"# Plan of study {study.name}",
        "",
        f"Minutes on {cost.device} at {cost.flops_per_s:.3g} FLOP/s and {1e3 * cost.step_s:.0f} ms a step, "
        f"{cost.experts:.1f} times that with experts, and {cost.overhead_s:.0f} s a run beside its steps ({source}).",
        "",
        *(elsewhere if here not in ("", cost.device) else []),
        *_data_of_done(made, rows),
    ]
    sums: dict[int, _Sum] = defaultdict(_Sum)
    runs = _runs(study, made, rows, cost, sums)
    totals = _sums(sums)
    lines += totals
    done = Counter(row["device"] for task in made.tasks if (row := rows.done(task.key)))
    if set(done) - {cost.device}:
        each = "; ".join(f"{count} on {device}" for device, count in sorted(done.items()))
        lines += ["", f"Runs that are done, wherever: {each}."]
    return "\n".join([*lines, "", runs, "", totals[-1]])


def _runs(study: Study, made: Plan, rows: Rows, cost: CostModel, sums: dict[int, "_Sum"]) -> str:
    """A table of the runs in their order and of those that wait; what is to be done is added to `sums`."""
    lines: list[tuple[object, ...]] = []
    for number, task in enumerate(made.tasks, 1):
        row = rows.by_key.get(task.key)
        status = row["study"]["status"] if row else "to do"
        sums[task.point.priority].add(1, cost, task.config, rows.done(task.key) is not None)
        rate, minutes = task.config.optim.learning_rate, cost.seconds(task.config) / 60
        lines.append((number, *_place(task.point), task.seed, f"{rate:g}", f"{minutes:.1f}", status))
    for point, seeds in made.waiting:
        config = study.config(point, point.seeds[0], rates_of(study, point)[0])
        sums[point.priority].add(seeds, cost, config, False)
        minutes = seeds * cost.seconds(config) / 60
        rate = f"best of seed {point.seeds[0]}"
        status = "waits for its learning rate"
        lines.append(("", *_place(point), f"{seeds} more", rate, f"{minutes:.1f}", status))
    lines += [("", *_place(p), "", "", "", f"needs {p.needs}") for p in made.missing]
    return table(("#", "point", "tier", "priority", "seed", "learning rate", "minutes", "status"), lines)


def _place(point: Point) -> tuple[object, ...]:
    return point.name, point.tier, point.priority


def _data_of_done(made: Plan, rows: Rows) -> list[str]:
    """On which data the runs were done that count as done: a plan is made before data are read."""
    done = (rows.done(task.key) for task in made.tasks)
    found = sorted({row["data_fingerprint"][:12] for row in done if row})
    return [f"Done are those of data {' and '.join(found)}: on other data none is.", ""] if found else []


@dataclasses.dataclass
class _Sum:
    """Runs to go, with their seconds by the clock and in the device's steps; total_s: of done ones too."""

    runs: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    total_s: float = 0.0

    def add(self, runs: int, cost: CostModel, config: Config, done: bool) -> None:
        self.total_s += runs * cost.seconds(config)
        if not done:
            self.runs += runs
            self.seconds += runs * cost.seconds(config)
            self.step_seconds += runs * cost.step_seconds(config)

    def shared(self, processes: int) -> float:
        """Seconds that `processes` need at best which share a device: it computes for one while others compile."""
        return max(self.step_seconds, self.seconds / processes)


def _sums(sums: dict[int, _Sum]) -> list[str]:
    """A table of what is left by priority, each with all before it, and the total."""
    head = ("priority", "runs to go", "minutes", "with all before", f"at best, {SHARING} processes on one device")
    before, lines = _Sum(), []
    for priority, part in sorted(sums.items()):
        before = _Sum(*(a + b for a, b in zip(dataclasses.astuple(before), dataclasses.astuple(part), strict=True)))
        seconds = (part.seconds, before.seconds, before.shared(SHARING))
        lines.append((priority, part.runs, *(f"{s / 60:.1f}" for s in seconds)))
    return [table(head, lines), "", f"{before.total_s / 60:.1f} minutes in all, {before.seconds / 60:.1f} to go."]

"""The rows of a study, brought into the order of its points: what every table, plot and verdict reads."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from mla_jax.study.grid import Point, Study
from mla_jax.study.plan import Task, chosen_rate, plan, rates_of
from mla_jax.study.rows import DONE, Rows, best_loss, key_of, standing
from mla_jax.study.stats import Estimate, estimate

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A point with its finished rows at its chosen learning rate, by seed; and at whatever rate those of its first seed
    (`sweep`) and of every seed (`every`).

    others: names of points that have no rows but these (see `Results.distinct`). tuned: whether every learning rate of
    the point has been tried; until then `by_seed` has the first seed's best so far, which is compared with nothing.
    """

    point: Point
    tier: str
    by_seed: dict[int, Row]
    sweep: tuple[Row, ...]
    others: tuple[str, ...] = ()
    tuned: bool = True
    every: tuple[Row, ...] = ()

    @property
    def name(self) -> str:
        return self.point.name

    @property
    def label(self) -> str:
        """All names of these rows: "s_mla_rope = s_mla_rope_r2"."""
        return " = ".join((self.name, *self.others))

    @property
    def any(self) -> Row:
        """The row of the first seed there is: for what does not depend on the seed."""
        return self.by_seed[min(self.by_seed)]

    @property
    def measured(self) -> dict[int, Row]:
        """Rows of runs that did not diverge, by seed."""
        return {seed: row for seed, row in self.by_seed.items() if row["study"]["status"] == "done"}

    def losses(self) -> dict[int, float]:
        """Best validation loss by seed, nats per token."""
        return {seed: best_loss(row) for seed, row in self.by_seed.items()}

    def over_seeds(self, value: Callable[[Row], float]) -> Estimate:
        return estimate([value(row) for row in self.measured.values()])


@dataclasses.dataclass(frozen=True)
class Results:
    """What there is. points: those with rows, in table order. rows: every row that the report stands on.

    other_data: how many rows of the same configs, on other data, are left out. bench: decode benchmark rows of the
    repository. failed: (run, error). to_do: runs that are not done. missing: points that this mla_jax cannot make.
    """

    study: Study
    points: tuple[Measured, ...]
    rows: tuple[Row, ...]
    fingerprint: str
    other_data: int
    bench: tuple[Row, ...]
    failed: tuple[tuple[str, str], ...]
    to_do: int
    missing: tuple[Point, ...]

    def find(self, name: str) -> Measured | None:
        return next((p for p in self.points if p.name == name), None)

    def tier(self, name: str) -> list[Measured]:
        return [p for p in self.points if p.tier == name]

    def distinct(self, tier: str | None = None) -> list[Measured]:
        """The tier's tuned points (None: every tier's), each set of rows once: a point whose rows are all another's is
        among the `others` of that one."""
        if tier is None:
            return [p for name in self.tiers for p in self.distinct(name)]
        points = [p for p in self.tier(tier) if p.tuned]
        rows = {p.name: {id(row) for row in p.by_seed.values()} for p in points}
        names: dict[str, list[str]] = {}
        for p in sorted(points, key=lambda p: -len(p.by_seed)):
            whole = next((name for name in names if rows[p.name] <= rows[name]), p.name)
            names.setdefault(whole, []).append(p.name)
        return [dataclasses.replace(p, others=tuple(names[p.name][1:])) for p in points if p.name in names]

    def only(self, tier: str) -> "Results":
        """The same with the points of one tier."""
        return dataclasses.replace(self, points=tuple(self.tier(tier)))

    @property
    def bench_devices(self) -> list[str]:
        return sorted({row["device"] for row in self.bench})

    def on(self, device: str) -> "Results":
        """The same with one device's benchmark rows."""
        return dataclasses.replace(self, bench=tuple(row for row in self.bench if row["device"] == device))

    @property
    def devices(self) -> list[str]:
        """Each device with its number of rows where there are several: "NVIDIA H100 80GB HBM3 (12 runs)"."""
        counts = Counter(row["device"] for row in self.rows)
        return [f"{name} ({n} runs)" if len(counts) > 1 else name for name, n in sorted(counts.items())]

    @property
    def tiers(self) -> list[str]:
        """Names of tiers with rows, "headline" first."""
        return sorted({p.tier for p in self.points}, key=lambda name: (name != "headline", name))


def collect(study: Study, rows: Rows) -> Results:
    """The study's rows, on the data that most of them share."""
    found = [row for task in plan(study, rows).tasks if (row := rows.done(task.key))]
    prints = Counter(row["data_fingerprint"] for row in found)
    fingerprint = prints.most_common(1)[0][0] if prints else ""
    made = plan(study, rows, fingerprint)
    points = []
    for point in study.points:
        measured = _measured(study, point, rows, fingerprint) if point.available else None
        if measured:
            points.append(measured)
    points.sort(key=lambda p: (p.tier != "headline", p.tier, p.point.priority, -_kv(p), p.name))
    kept = {id(row): row for p in points for row in p.every}
    failed, to_do = [], sum(n for _, n in made.waiting)
    for task in made.tasks:
        row = rows.by_key.get(task.key)
        if rows.done(task.key, fingerprint):
            continue
        to_do += 1
        if row and row["study"]["status"] not in DONE:
            failed.append((task.name, row["study"].get("error", "")))
    other = sum(count for value, count in prints.items() if value != fingerprint)
    return Results(
        study, tuple(points), tuple(kept.values()), fingerprint, other, rows.bench, tuple(failed), to_do, made.missing
    )


def _measured(study: Study, point: Point, rows: Rows, fingerprint: str) -> Measured | None:
    seed = point.seeds[0]
    first = [Task(point, seed, rate, 0, study.config(point, seed, rate)) for rate in rates_of(study, point)]
    sweep = tuple(row for task in first if (row := rows.done(task.key, fingerprint)))
    if not sweep:
        return None
    # Seeds at a rate that was the best one until another was tried have been measured all the same.
    configs = (study.config(point, each, rate) for each in point.seeds for rate in rates_of(study, point))
    every = tuple(row for config in configs if (row := rows.done(key_of(config), fingerprint)))
    chosen = chosen_rate(first, rows, fingerprint)
    if chosen is None:  # not all rates are there yet: the best so far, and one seed
        best = min(sweep, key=standing)
        return Measured(point, point.tier, {seed: best}, sweep, tuned=False, every=every)
    by_seed = {}
    for each in point.seeds:
        row = rows.done(Task(point, each, None, 0, study.config(point, each, chosen.learning_rate)).key, fingerprint)
        if row:
            by_seed[each] = row
    return Measured(point, point.tier, by_seed, sweep, every=every)


def _kv(p: Measured) -> int:
    return p.any["study"]["kv_numbers"]


def reference_of(found: Results, tier: str) -> Measured | None:
    """The study's reference in this tier: the point of that name, with or without the tier's prefix ("s_mha")."""
    name = found.study.reference
    return next((p for p in found.tier(tier) if p.name == name or p.name.partition("_")[2] == name), None)


def relative(variant: Measured, reference: Measured, value: Callable[[Row], float] = best_loss) -> list[float]:
    """(variant - reference) / reference by seed, in per cent, for the seeds that both have and neither diverged in;
    nothing while one of them lacks a learning rate."""
    if not (variant.tuned and reference.tuned):
        return []
    a, b = variant.measured, reference.measured
    return [100 * (value(a[seed]) / value(b[seed]) - 1) for seed in sorted(a.keys() & b.keys())]


def seconds(rows: tuple[Row, ...]) -> float:
    """Device time of rows, in seconds: of a device that processes took turns on, their shares.

    A run has those of all calls that worked at it, but for calls that were killed.
    """
    return math.fsum(row["study"]["seconds"] / row["study"]["sharing"] for row in rows)

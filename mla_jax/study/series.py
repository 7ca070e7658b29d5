"""The data of a study's plots, apart from their drawing: each function gives lines to draw, empty without rows."""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mla_jax.study.results import Measured, Results
from mla_jax.study.rows import best_loss, fact_accuracy
from mla_jax.world.questions import FAR

LATENTS = ("c_kv", "v_latent")  # cache entries; a cache without them has values
RANKS = 3  # of one form, from which on they are a sweep
Rank = re.compile(r"^(?:s_)?(.+)_r(\d+)$")


@dataclasses.dataclass(frozen=True)
class Line:
    """x, y and a band [low, high] around y (equal to y where there is none).

    Over seeds y is the mean and the band their range. Student's t, whose intervals the tables have, would put the band
    of three seeds, one of which failed, where no run has ever been.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def _line(label: str, points: Iterable[tuple[float, Sequence[float]]]) -> Line:
    """points: (x, the seeds' values); those without a finite value are left out."""
    kept = [(x, finite) for x, values in points if (finite := [v for v in values if math.isfinite(v)])]
    x, values = tuple(float(x) for x, _ in kept), [v for _, v in kept]
    return Line(label, x, tuple(float(np.mean(v)) for v in values), tuple(map(min, values)), tuple(map(max, values)))


def _of_seeds(p: Measured, value: Callable[[dict[str, Any]], float] = best_loss) -> list[float]:
    return [value(row) for row in p.measured.values()]


def _drawn(lines: Iterable[Line]) -> list[Line]:
    """Those with points: a form all of whose runs diverged has none."""
    return [line for line in lines if line.x]


def _rank(p: Measured) -> re.Match[str] | None:
    """Form and rank by the first of the point's names that has them."""
    return next((match for name in (p.name, *p.others) if (match := Rank.match(name))), None)


def pareto(found: Results, tier: str) -> list[Line]:
    """Best loss over KV numbers a token and layer: a line for each form with three ranks, marks for others."""
    points = found.distinct(tier)
    ranked = Counter(match[1] for p in points if (match := _rank(p)))
    forms: dict[str, list[Measured]] = defaultdict(list)
    for p in points:
        match = _rank(p)
        forms[f"{match[1]}, ranks" if match and ranked[match[1]] >= RANKS else p.label].append(p)
    lines = []
    for form, members in forms.items():
        label = "; ".join([form, *(p.label for p in members if p.others and p.label != form)])
        values = [(p.any["study"]["kv_numbers"], _of_seeds(p)) for p in members]
        lines.append(_line(label, sorted(values, key=lambda point: point[0])))
    return _drawn(lines)


CURVES = 12  # at most; more cannot be told apart


def curves(found: Results, tier: str) -> list[Line]:
    """Validation loss over steps, of the points that matter most; the band is the range over seeds."""
    lines = []
    for p in sorted(found.distinct(tier), key=lambda p: p.point.priority)[:CURVES]:
        by_step: dict[int, list[float]] = defaultdict(list)
        for row in p.measured.values():
            for step, loss in row["curve"]["eval"]:
                by_step[step].append(loss)
        shared = [(step, values) for step, values in sorted(by_step.items()) if len(values) == len(p.measured)]
        lines.append(_line(p.label, shared))
    return _drawn(lines)


def ranks(found: Results) -> list[Line]:
    """Best loss over d / r, a line for each form with three ranks or more in one tier."""
    forms: dict[tuple[str, str], list[tuple[float, list[float]]]] = defaultdict(list)
    for p in found.distinct():
        if match := _rank(p):
            forms[(match[1], p.tier)].append((float(match[2]), _of_seeds(p)))
    return _drawn(
        _line(f"{form} ({tier})", sorted(points, key=lambda point: point[0]))
        for (form, tier), points in sorted(forms.items())
        if len(points) >= RANKS
    )


def held(p: Measured) -> list[dict[str, Any]]:
    """The first seed's spectra of the cache entry that holds the latents or values, one a layer."""
    rows = list(p.measured.values())[:1]
    return [s for row in rows for s in row["spectra"] if s["entry"] in (*LATENTS, "v")]


def effective_ranks(found: Results, tier: str) -> list[Line]:
    """Effective rank over width by layer, of the entry that holds latents or values."""
    lines = []
    for p in found.distinct(tier):
        if layers := held(p):
            y = tuple(s["effective_rank"] / s["width"] for s in layers)
            x = tuple(float(s["layer"]) for s in layers)
            lines.append(Line(f"{p.label}: {layers[0]['entry']}", x, y, y, y))
    return lines


def singular_values(p: Measured) -> list[Line]:
    """Those of `held`, a line a layer."""
    lines = []
    for s in held(p):
        y = tuple(s["singular_values"])
        lines.append(Line(f"layer {s['layer']}", tuple(float(i + 1) for i in range(len(y))), y, y, y))
    return lines


def facts(found: Results, tier: str) -> list[Line]:
    """Accuracy of fact questions over the words since the fact was stated (lower edge of each bucket)."""
    lines = []
    for p in found.distinct(tier):
        rows = [row for row in p.measured.values() if row["facts"]]
        if not rows:
            continue
        chance = {f["distance"]: f["chance"] for f in rows[0]["facts"] if _of_all(f)}
        values = [[fact_accuracy(row, distance) for row in rows] for distance in chance]
        x = [float(distance.split("-")[0]) for distance in chance]
        lines.append(_line(p.label, zip(x, values, strict=True)))
    if lines:
        lines.append(_line("blind guess", zip(x, ([guess] for guess in chance.values()), strict=True)))
    return lines


def _of_all(fact: dict[str, Any]) -> bool:
    """Whether it is of all kinds of questions, in one bucket of distances."""
    return fact["kind"] == "all" and not fact["distance"].startswith(">")


def recall(found: Results, tier: str) -> list[Line]:
    """Best loss over the accuracy on facts stated long ago: each run of a tier, at whatever learning rate."""
    lines, seen = [], set()
    for p in found.tier(tier):
        rows = {id(row): row for row in p.every}
        points = []
        for key, row in rows.items():
            if key not in seen and row["study"]["status"] == "done":
                points.append((fact_accuracy(row, FAR), best_loss(row)))
        seen |= rows.keys()
        points = sorted((x, y) for x, y in points if math.isfinite(x))
        x, y = tuple(x for x, _ in points), tuple(y for _, y in points)
        lines.append(Line(p.name, x, y, y, y))
    return _drawn(lines)


def correlation(lines: Iterable[Line]) -> float:
    """Pearson's, of x and y over all points; not a number where all have one x or one y."""
    x, y = ([value for line in lines for value in getattr(line, axis)] for axis in "xy")
    return float(np.corrcoef(x, y)[0, 1]) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan


def positions(found: Results, tier: str) -> list[Line]:
    """Loss by position up to the longest window measured."""
    lines = []
    for p in found.distinct(tier):
        rows = list(p.measured.values())
        if not rows:
            continue
        longest = max(rows[0]["by_position"], key=int)
        starts = [start for start, _ in rows[0]["by_position"][longest]]
        values = [
            (start, _of_seeds(p, lambda r, i=i, k=longest: r["by_position"][k][i][1])) for i, start in enumerate(starts)
        ]
        lines.append(_line(p.label, values))
    return lines


def sizes(found: Results) -> list[Line]:
    """Best loss over parameters without embeddings, a line for each variant that two tiers or more have."""
    families: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
    for p in found.points:
        if p.tier.startswith("size_"):
            families[p.name.partition("_")[2]].append((p.any["study"]["params"]["non_embedding"], _of_seeds(p)))
    lines = (_line(name, sorted(v, key=lambda point: point[0])) for name, v in sorted(families.items()) if len(v) > 1)
    return _drawn(lines)


def speeds(found: Results) -> list[Line]:
    """Decode tokens/s over the batch, at the context that the benchmark has most batches of; the longest of equals."""
    batches: dict[int, set[int]] = defaultdict(set)
    for row in found.bench:
        batches[row["metrics"]["context"]].add(row["metrics"]["batch"])
    if not batches:
        return []
    context = max(batches, key=lambda context: (len(batches[context]), context))
    by_point: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in found.bench:
        if row["metrics"]["context"] == context:
            key = (row["metrics"]["point"], row["device"])
            by_point[key][row["metrics"]["batch"]] = row["metrics"]["tokens_per_s"]
    several = len({device for _, device in by_point}) > 1
    lines = []
    for (name, device), cells in sorted(by_point.items()):
        y = tuple(cells[batch] for batch in sorted(cells))
        lines.append(
            Line(f"{name} @ {context}" + (f", {device}" if several else ""), tuple(map(float, sorted(cells))), y, y, y)
        )
    return lines


def expert_load(found: Results) -> list[tuple[str, np.ndarray]]:
    """(point, load [L_moe, E], 1 = even) of the first seed at the end of training."""
    loads = []
    for p in found.distinct():
        for row in list(p.measured.values())[:1]:
            if row.get("experts", {}).get("load"):
                loads.append((p.label, np.asarray(row["experts"]["load"], float)))
    return loads


def latent_points(found: Results) -> list[Measured]:
    """Points with a latent in their cache, headline first: two of each width, so that compressed ones are there beside
    those of full rank, four at most."""
    widths: dict[int, list[Measured]] = defaultdict(list)
    for p in found.distinct():
        layers = held(p)
        if layers and layers[0]["entry"] in LATENTS:
            widths[layers[0]["width"]].append(p)
    return [p for points in widths.values() for p in points[:2]][:4]

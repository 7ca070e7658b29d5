"""How rows test a claim: each function returns a test, which returns None while rows are missing."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from mla_jax.study.curves import Curve, lowest, steps_to
from mla_jax.study.results import Measured, Results, Row, relative
from mla_jax.study.rows import best_loss
from mla_jax.study.stats import Estimate, estimate

PREFIXES = ("", "s_")  # headline points first, then the same points of the grid


@dataclasses.dataclass(frozen=True)
class Evidence:
    """what: the comparison in words, with the points' names. where: the size and learning rates, or the device, that it
    holds for."""

    what: str
    found: Estimate
    where: str = ""


ClaimTest = Callable[[Results], Evidence | None]


def together(found: Results, *names: str) -> list[Measured] | None:
    """The points of these names, of one tier: the one where most seeds have all; of equals, the headline."""
    sets = [[found.find(prefix + name) for name in names] for prefix in PREFIXES]
    whole = [points for points in sets if all(p and p.tuned for p in points) and len({p.tier for p in points}) == 1]
    return max(whole, key=lambda points: len(common_seeds(points)), default=None)


def where(found: Results, points: Sequence[Measured]) -> str:
    """ "size s at 0.001": the size of the points' tier and their learning rate, "tuned" where one was chosen."""
    tier = found.study.tier_of(points[0].point)
    rates = sorted({p.any["study"]["learning_rate"] for p in points})
    tuned = len(rates) > 1 or any(len(p.sweep) > 1 for p in points)
    return f"size {tier.size or 'as configured'}{', tuned' if tuned else f' at {rates[0]:g}'}"


def common_seeds(points: Sequence[Measured]) -> list[int]:
    """Seeds that every point has measured."""
    return sorted(set.intersection(*(set(p.measured) for p in points)))


def loss_difference(variant: str, reference: str) -> ClaimTest:
    """(variant - reference) / reference of the best validation loss, per cent, paired by seed."""

    def test(found: Results) -> Evidence | None:
        points = together(found, variant, reference)
        if points is None or not (values := relative(*points)):
            return None
        return Evidence(f"{points[0].name} against {points[1].name}", estimate(values), where(found, points))

    return test


def perplexity_difference(variant: str, reference: str) -> ClaimTest:
    """The same of exp(loss)."""

    def test(found: Results) -> Evidence | None:
        points = together(found, variant, reference)
        if points is None or not (values := relative(*points, lambda row: math.exp(best_loss(row)))):
            return None
        return Evidence(f"{points[0].name} against {points[1].name}", estimate(values), where(found, points))

    return test


def best_difference(prefix: str, reference: str) -> ClaimTest:
    """The best of several points, chosen by the first seed and measured on the others: no winner's luck."""

    def test(found: Results) -> Evidence | None:
        evidence = [_best_of(found, lead + prefix, lead + reference) for lead in PREFIXES]
        return max((e for e in evidence if e), key=lambda e: e.found.n, default=None)

    return test


def _best_of(found: Results, prefix: str, reference: str) -> Evidence | None:
    base = found.find(reference)
    if base is None or not base.tuned or len(base.measured) < 2:
        return None
    first = min(base.measured)
    ranks = [p for p in found.points if _is_rank_of(p.name, prefix) and p.tier == base.tier]
    ranks = [p for p in ranks if p.tuned and len(p.measured) > 1 and first in p.measured]
    if len(ranks) < 2:
        return None
    best = min(ranks, key=lambda p: best_loss(p.measured[first]))
    seeds = [seed for seed in common_seeds((best, base)) if seed != first]
    if not seeds:
        return None
    values = [100 * (best_loss(best.measured[s]) / best_loss(base.measured[s]) - 1) for s in seeds]
    what = f"{best.name} (best of {len(ranks)} by seed {first}) against {base.name}, other seeds"
    return Evidence(what, estimate(values), where(found, (best, base)))


def _is_rank_of(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.removeprefix(prefix).isdigit()


def cliff(form: str, reference: str) -> ClaimTest:
    """Per cent of the reference's loss that the step from r = d/16 to d/32 costs more than the step before it."""

    def test(found: Results) -> Evidence | None:
        points = together(found, *(f"{form}_r{part}" for part in (8, 16, 32)), reference)
        if points is None or not (seeds := common_seeds(points)):
            return None
        values = []
        for seed in seeds:
            eighth, sixteenth, last, base = (best_loss(p.measured[seed]) for p in points)
            values.append(100 * (last - 2 * sixteenth + eighth) / base)
        what = f"{points[0].name}, r16, r32, in per cent of {points[3].name}"
        return Evidence(what, estimate(values), where(found, points))

    return test


def speed(faster: str, slower: str) -> ClaimTest:
    """Decode tokens/s, one over the other, of the decode benchmark rows that both have: where the cache is largest, and
    of several devices on the one measured last."""

    def test(found: Results) -> Evidence | None:
        cells: dict[tuple, dict[str, Row]] = {}
        for row in found.bench:
            m = row["metrics"]
            cell = (row["device"], m["batch"], m["context"], m.get("dtype"))
            cells.setdefault(cell, {})[m["point"]] = row
        both = [(cell, rows) for cell, rows in cells.items() if faster in rows and slower in rows]
        if not both:
            return None
        cell, rows = max(both, key=lambda item: (item[0][1] * item[0][2], item[1][faster]["time"]))
        what = f"{faster} over {slower}, {cell[0]}, batch {cell[1]}, context {cell[2]}"
        return Evidence(what, _timed(rows[faster]["metrics"], rows[slower]["metrics"]), cell[0])

    return test


def _timed(fast: dict[str, Any], slow: dict[str, Any]) -> Estimate:
    """Speed of `fast` over that of `slow`, both timed several times; the interval is from the slowest timing of one
    over the fastest of the other to the reverse, which of 5 timings holds the ratio of medians about 9 times in 10."""
    ratio = slow["ms"] / fast["ms"]
    repeats = min(fast["repeats"], slow["repeats"])
    if repeats < 5:
        return estimate([ratio])
    return Estimate(ratio, slow["ms_low"] / fast["ms_high"], slow["ms_high"] / fast["ms_low"], repeats, math.nan)


def share_of_steps(fast: str, slow: str) -> ClaimTest:
    """Per cent of the slow optimizer's steps to its best loss after which the fast one has it, of the model that most
    seeds have trained by both: seeds of one model are draws of one figure, other models have figures of their own."""

    def test(found: Results) -> Evidence | None:
        evidence = [
            _shares(found, p, found.find(p.name.removesuffix(fast) + slow))
            for p in found.points
            if p.name.endswith(f"_{fast}")
        ]
        return max((e for e in evidence if e), key=lambda e: e.found.n, default=None)

    return test


def _shares(found: Results, fast: Measured, slow: Measured | None) -> Evidence | None:
    if slow is None or slow.tier != fast.tier or not (fast.tuned and slow.tuned):
        return None
    if not (seeds := common_seeds((fast, slow))):
        return None
    curves = [[p.measured[seed]["curve"]["eval"] for p in (fast, slow)] for seed in seeds]
    what = f"{fast.name} against {slow.name}"
    return Evidence(what, estimate([share_to_best(*pair) for pair in curves]), where(found, (fast, slow)))


def share_to_best(curve: Curve, reference: Curve) -> float:
    """Where `curve` first has the reference's best loss, in per cent of the step at which the reference has it.

    Infinite if never. Not of its last step: a reference that overfits afterwards would make the curve look faster.
    """
    best = lowest(reference)
    return 100 * steps_to(curve, best) / steps_to(reference, best)


def rope_interaction(found: Results) -> list[tuple[str, Evidence, Evidence, Evidence]]:
    """Does RoPE rescue MLA, or help MHA just as much? (form, gain of MHA, gain of MLA, their difference), per cent.

    A gain is the loss with RoPE over the loss with learned positions, less 1: negative is better. The difference is
    the MLA's gain less the MHA's, by seed: negative where RoPE does more for MLA. One answer a form and tier.
    """
    answers = []
    for label, plain, rotated in (
        ("per head, r = d/2", "per_head_learned_r2", "per_head_rope_r2"),
        ("joint, r = d/2", "joint_learned_r2", "joint_rope_r2"),
    ):
        for tier in found.tiers:
            points = together(found.only(tier), "mha", "mha_rope", plain, rotated)
            if points is None or not (seeds := common_seeds(points)):
                continue
            loss = [[best_loss(p.measured[s]) for s in seeds] for p in points]
            mha = [100 * (b / a - 1) for a, b in zip(loss[0], loss[1], strict=True)]
            mla = [100 * (b / a - 1) for a, b in zip(loss[2], loss[3], strict=True)]
            difference = [b - a for a, b in zip(mha, mla, strict=True)]
            tests = (Evidence("mha", estimate(mha)), Evidence("mla", estimate(mla)), Evidence("", estimate(difference)))
            answers.append((f"{label}, {where(found, points)}", *tests))
    return answers

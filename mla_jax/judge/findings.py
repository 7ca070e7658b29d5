"""What a judged study shows: scores with error bars, and whether the judge can be believed at all."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from mla_jax.judge import controls, pairwise
from mla_jax.judge.statistics import (
    Agreement,
    Interval,
    agreement,
    bootstrap_intervals,
    sign_flip_p,
    spearman,
)
from mla_jax.judge.study import Study

MIN_PARSED = 0.95
SENSITIVE_P = 0.01
MIN_PAIRS = 7  # 2^-7 < SENSITIVE_P: with fewer pairs nothing can be told


@dataclasses.dataclass(frozen=True)
class SourceScore:
    """`intervals`: overall, then each dimension. `refused`: why there is no headline score, "" if there is
    one.
    """

    source: str
    intervals: list[Interval]
    stories: int
    judgements: int
    failed: int
    refused: str


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of `a` minus `b` over the prompts they share. `p`: one-sided for controls, two-sided for runs."""

    a: str
    b: str
    intervals: list[Interval]
    p: float


@dataclasses.dataclass(frozen=True)
class Findings:
    scores: list[SourceScore]
    separations: list[Difference]
    differences: list[Difference]
    agreement: Agreement
    ratings: pairwise.Ratings | None
    win_rates: list[tuple[str, str, Interval]]
    checker: list[tuple[str, float, float]]  # measure, rank correlation over all stories, over the runs' only

    @property
    def missed(self) -> list[Difference]:
        """Controls that the judge does not tell from real stories."""
        return [d for d in self.separations if not d.p < SENSITIVE_P]

    def verdict(self) -> str:
        """What the controls say of the judge, in words."""
        names = {d.b: d.b.removeprefix(controls.PREFIX).replace("_", " ") for d in self.separations}
        most = max((d.intervals[0].n for d in self.separations), default=0)
        if most < MIN_PAIRS:
            return (
                f"The judge is untested: of no control can more than {most} judgements be compared with those of the "
                f"real stories, and at least {MIN_PAIRS} are needed. Do not rely on its scores."
            )
        said = {d.b: f"p = {d.p:.2g}" if d.intervals[0].n >= MIN_PAIRS else "too few pairs" for d in self.separations}
        missed = [f"{names[d.b]} ({said[d.b]})" for d in self.missed]
        if not missed:
            return (
                "The judge is sensitive: it rates real stories above each of the damaged forms "
                f"(p < {SENSITIVE_P:g} for every one)."
            )
        if len(missed) == len(self.separations):
            return (
                "The judge is insensitive: it tells real stories from none of their damaged forms at "
                f"p < {SENSITIVE_P:g}: {', '.join(missed)}. Its scores say nothing about quality."
            )
        seen = [f"{names[d.b]} ({said[d.b]})" for d in self.separations if d not in self.missed]
        return (
            f"The judge is insensitive to {', '.join(missed)}: differences of that kind are invisible in "
            f"its scores. It does see {', '.join(seen)}."
        )


def find(study: Study, resamples: int) -> Findings:
    """All findings of a study; every interval and every p resamples prompts `resamples` times."""
    means = {source: study.by_prompt(source) for source in study.sources}
    real = means[controls.REAL]
    # a damaged form that got no score at all is not separated: p = 1
    width = len(study.columns)
    separations = [
        _difference(controls.REAL, form, real, means[form], width, resamples, 1) for form in controls.DAMAGED
    ]
    differences = [
        _difference(a, b, means[a], means[b], width, resamples, 2) for a, b in itertools.combinations(study.runs, 2)
    ]
    return Findings(
        scores=[_score(study, source, means[source], resamples) for source in study.sources],
        separations=separations,
        differences=differences,
        agreement=_self_agreement(study),
        ratings=pairwise.bradley_terry(study.comparisons, len(study.runs), resamples) if study.comparisons else None,
        win_rates=[
            (study.runs[a], study.runs[b], pairwise.win_rate(study.comparisons, a, b, resamples))
            for a, b in itertools.combinations(range(len(study.runs)), 2)
            if study.comparisons
        ],
        checker=_checker_correlations(study),
    )


def _matrix(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def _score(study: Study, source: str, means: dict[str, np.ndarray], resamples: int) -> SourceScore:
    intervals = bootstrap_intervals(_matrix(list(means.values()), len(study.columns)), resamples)
    intervals = [dataclasses.replace(i, low=max(i.low, 1.0), high=min(i.high, 10.0)) for i in intervals]
    judged, share, overall = study.judged(source), study.parsed_share(source), study.parsed_share()
    refused = ""
    if not judged:
        refused = "nothing judged"
    elif share < MIN_PARSED:
        refused = f"only {share:.1%} of its judgements gave a score ({MIN_PARSED:.0%} needed)"
    elif overall < MIN_PARSED:
        refused = f"only {overall:.1%} of the study's judgements gave a score ({MIN_PARSED:.0%} needed)"
    stories = sum(study.stories[s]["source"] == source for s in study.scores)
    return SourceScore(source, intervals, stories, judged, judged - study.status[source]["ok"], refused)


def _difference(a: str, b: str, mean_a: dict, mean_b: dict, width: int, resamples: int, sides: int) -> Difference:
    shared = [prompt for prompt in mean_a if prompt in mean_b]
    values = _matrix([mean_a[prompt] - mean_b[prompt] for prompt in shared], width)
    p = sign_flip_p(values[:, 0], resamples)
    if sides == 2:
        p = min(1.0, 2 * min(p, sign_flip_p(-values[:, 0], resamples)))
    return Difference(a, b, bootstrap_intervals(values, resamples), p)


def _self_agreement(study: Study) -> Agreement:
    pairs = list(study.repeats.values())
    width = len(study.columns)
    first, second = (_matrix([p[k] for p in pairs], width)[:, 1:] for k in (0, 1))
    return agreement(first, second)


def _checker_correlations(study: Study) -> list[tuple[str, float, float]]:
    ids = [i for i in study.scores if i in study.checker]
    if not ids:
        return []
    is_run = np.array([not study.stories[i]["source"].startswith(controls.PREFIX) for i in ids])
    judge = np.array([study.scores[i][0] for i in ids])
    result = []
    for measure in sorted({m for i in ids for m in study.checker[i]}):
        values = np.array([study.checker[i].get(measure, math.nan) for i in ids], dtype=np.float64)
        good = np.isfinite(values)
        both = good & is_run
        result.append((measure, spearman(values[good], judge[good]), spearman(values[both], judge[both])))
    return result

"""The words and tables of report.md."""

import math
from collections.abc import Sequence
from pathlib import Path

from mla_jax.judge import controls
from mla_jax.judge.findings import MIN_PARSED, Difference, Findings
from mla_jax.judge.rubric import AGE_GROUPS
from mla_jax.judge.statistics import Interval
from mla_jax.judge.study import Study
from mla_jax.markdown import cell, table

_EXTREMES = 5
_STATUS = ("ok", "unparsable", "truncated", "refused", "rejected", "error")


def render(study: Study, findings: Findings, planned: int | None) -> str:
    """report.md of a study; `planned`: judgements of the whole study, None when unknown."""
    parts = [
        f"# Judged by {study.about['settings']['model']}, rubric {study.rubric.id}",
        _headline(study, findings, planned),
        "![scores](scores.png)",
        _dimensions(study, findings),
        _controls(findings),
        _differences(study, findings.differences),
        _pairs(study, findings),
        _agreement(findings),
        _ages(study),
        _checker(study, findings),
        _failures(study),
        *(_extremes(study, run) for run in study.runs),
        _method(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def show(i: Interval, digits: int = 2, sign: bool = False) -> str:
    if not math.isfinite(i.mean):
        return "-"
    mean = f"{i.mean:+.{digits}f}" if sign else f"{i.mean:.{digits}f}"
    return f"{mean} [{number(i.low, digits)}, {number(i.high, digits)}]" if math.isfinite(i.low) else mean


def _headline(study: Study, findings: Findings, planned: int | None) -> str:
    made = sum(study.judged(s) for s in study.status) + study.pair_status.total()
    lines = []
    if planned is not None and made < planned:
        lines.append(f"**Unfinished: {made} of {planned} judgements were made.**\n")
    for score in findings.scores[: len(study.runs)]:
        if score.refused:
            lines.append(f"* **{score.source}**: no headline score: {score.refused}.")
        else:
            i = score.intervals[0]
            rate = score.failed / score.judgements
            lines.append(
                f"* **{score.source}**: {show(i)} of 10 (mean and 95 % interval; n = {i.n} prompts, "
                f"{score.stories} stories; {rate:.1%} of {score.judgements} judgements gave no score)"
            )
    lines.append(f"\n**{findings.verdict()}**")
    return "\n".join(lines)


def _dimensions(study: Study, findings: Findings) -> str:
    rows = []
    for s in findings.scores:
        cells = [show(i) for i in s.intervals]
        if s.refused:
            cells[0] = "refused"
        rate = f"{s.failed / s.judgements:.1%}" if s.judgements else "-"
        rows.append([s.source, *cells, str(s.intervals[0].n), str(s.stories), rate])
    return "## Scores\n\n" + table(["", *study.columns, "prompts", "stories", "without score"], rows)


def _controls(findings: Findings) -> str:
    rows = [
        [
            d.b.removeprefix(controls.PREFIX).replace("_", " "),
            show(d.intervals[0], sign=True),
            str(d.intervals[0].n),
            f"{d.p:.2g}",
            "no" if d in findings.missed else "yes",
        ]
        for d in findings.separations
    ]
    return (
        "## Does the judge see damage?\n\nHeld-out stories, whole minus damaged, paired by story; p by "
        "flipping signs, "
        "one-sided.\n\n" + table(["damage", "whole - damaged", "n", "p", "seen at p < 0.01"], rows)
    )


def _differences(study: Study, differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    rows = [
        [f"{d.a} - {d.b}", *(show(i, sign=True) for i in d.intervals), str(d.intervals[0].n), f"{d.p:.2g}"]
        for d in differences
    ]
    return (
        "## Differences between runs\n\nPaired by prompt; p two-sided, not corrected for the number of "
        "comparisons.\n\n" + table(["", *study.columns, "prompts", "p"], rows)
    )


def _pairs(study: Study, findings: Findings) -> str:
    r = findings.ratings
    if r is None:
        return ""
    rates = [[a, b, show(i), str(i.n)] for a, b, i in findings.win_rates]
    ratings = [[run, show(i, sign=True)] for run, i in zip(study.runs, r.rating, strict=True)]
    lost = study.pair_status.total() - study.pair_status["ok"]
    parsed = study.pair_status["ok"] / study.pair_status.total()
    if parsed < MIN_PARSED:
        return (
            f"## Two at a time\n\nNo ratings: only {parsed:.1%} of the {study.pair_status.total()} comparisons gave a "
            f"verdict ({MIN_PARSED:.0%} needed)."
        )
    return (
        "## Two at a time\n\nEvery pair in both orders; win rate = share of prompts won, a tie counts "
        "half.\n\n"
        + table(["run", "against", "win rate", "prompts"], rates)
        + "\n\nBradley-Terry ratings in logits (mean 0), with ties and an order term:\n\n"
        + table(["run", "rating"], ratings)
        + f"\n\nThe story shown first won {r.first_share:.1%} of the decided comparisons (order bias "
        f"{show(r.order_bias, sign=True)} logits; the ratings are free of it); {r.ties:.1%} of {r.n} were "
        f"ties; {lost} gave no verdict."
    )


def _agreement(findings: Findings) -> str:
    a = findings.agreement
    if not a.n:
        return "## Agreement with itself\n\nNot measured: no story was judged twice."
    return (
        f"## Agreement with itself\n\n{a.n} stories were judged again: {a.equal:.1%} of the grades were "
        f"equal, {a.within_one:.1%} within one point, {a.distance:.2f} points apart on average; rank "
        f"correlation of the overall scores {number(a.rank_correlation)}."
    )


def _ages(study: Study) -> str:
    if not study.rubric.age_group:
        return ""
    rows = []
    for source in study.sources:
        total = study.ages[source].total()
        rows.append([source, *(f"{study.ages[source][g] / total:.0%}" if total else "-" for g in AGE_GROUPS)])
    return "## Guessed age of the writer\n\n" + table(["", *AGE_GROUPS], rows)


def _checker(study: Study, findings: Findings) -> str:
    if not findings.checker:
        return ""
    rows = []
    for measure, everything, runs in findings.checker:
        cells = []
        for source in study.sources:
            values = [
                v[measure]
                for i, v in study.checker.items()
                if i in study.stories and study.stories[i]["source"] == source and measure in v
            ]
            cells.append(number(sum(values) / len(values), 3) if values else "-")
        rows.append([measure, *cells, number(everything), number(runs)])
    header = ["measure", *study.sources, "rank correlation with the judge", "the same, runs only"]
    return "## Beside the machine checker\n\nMeans, and Spearman's rank correlation.\n\n" + table(header, rows)


def _failures(study: Study) -> str:
    rows = [
        [source, *(str(study.status[source][s]) for s in _STATUS), str(study.judged(source))]
        for source in study.sources
    ]
    if study.pair_status:
        counts = (str(study.pair_status[s]) for s in _STATUS)
        rows.append(["pairs", *counts, str(study.pair_status.total())])
    text = (
        f"## Judgements without a score\n\n{study.parsed_share():.1%} of all gave one. None is dropped or "
        "filled in; below "
        f"{MIN_PARSED:.0%} there is no headline score.\n\n" + table(["", *_STATUS, "all"], rows)
    )
    for row in study.examples:
        said = (row.get("reply") or "")[:200]
        text += f"\n\n* {row['status']}: {cell(row['error'])}" + (f" - `{cell(said)}`" if said else "")
    return text


def _extremes(study: Study, run: str) -> str:
    mine = [i for i in study.scores if study.stories[i]["source"] == run]
    mine.sort(key=lambda i: (-study.scores[i][0], i))
    if not mine:
        return ""
    best = mine[:_EXTREMES]
    worst = [i for i in mine[-_EXTREMES:][::-1] if i not in best]
    parts = []
    for title, chosen in (("best", best), ("worst", worst)):
        if chosen:
            parts.append(f"## {run}: {title} {len(chosen)}")
            parts += [_story(study, i) for i in chosen]
    return "\n\n".join(parts)


def _story(study: Study, story_id: str) -> str:
    story = study.stories[story_id]
    quoted = (story["prompt"] + " **|** " + story["text"][len(story["prompt"]) :].strip()).replace("\n", "\n> ")
    grades = ", ".join(
        f"{name} {value:g}" for name, value in zip(study.columns, study.scores[story_id].round(2), strict=True)
    )
    reason = cell(study.reasons.get(story_id, ""))
    return f"> {quoted}\n\n{grades}. {reason}"


def _given_up(study: Study) -> str:
    """What the server was found not to take, in words: a temperature that it never saw is not the judge's."""
    notes = study.about.get("notes") or []
    return f"What was asked otherwise than set: {'; '.join(notes)}. " if notes else ""


def _method(study: Study) -> str:
    s, spent = study.about["settings"], study.spent
    served = ", ".join(Path(name).name for name in sorted(study.served)) or "unknown"
    return (
        "## How\n\n"
        f"Judge {s['model']} at {study.about['base_url']}, temperature {s['judge_temperature']:g} "
        f"(as the server calls it: {served}); rubric "
        f"{study.rubric.id} ({study.rubric.source}; sha256 {study.about['rubric_fingerprint'][:16]}). "
        f"Stories of at most {s['max_new_tokens']} tokens, temperature {s['temperature']:g}, top-k "
        f"{s['top_k']}, seed {s['seed']}, the same for all runs. The judge saw beginning and completion, no "
        f"names of models, in shuffled order. {_given_up(study)}Intervals: studentised bootstrap over prompts. Spent: "
        f"${spent['usd']:.4f}, {spent['tokens_in']:,} tokens in, {spent['tokens_out']:,} out, "
        f"{spent['cached']} replies from the cache.\n\nCommand: "
        f"`{study.about.get('command') or 'not recorded'}`"
    )

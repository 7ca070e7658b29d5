"""The report of a judged study: report.md, rows.jsonl (result rows) and scores.png in the study's folder."""

import importlib.metadata
import math
from pathlib import Path
from typing import Any

from mla_jax import figures
from mla_jax.files import write_text
from mla_jax.judge import controls, markdown
from mla_jax.judge.findings import Findings, find
from mla_jax.judge.statistics import Interval
from mla_jax.judge.store import write_rows
from mla_jax.judge.study import Study, load_study


def write_report(out: Path, resamples: int, planned: int | None = None, command: str = "") -> Path:
    """Reads OUT/judgements.jsonl and writes the report; can be called at any time, also during a study.

    Args:
      planned: judgements that the whole study has; the report says so when there are fewer.

    Returns:
      Path of report.md.

    Raises:
      UserError: `out` holds no study.
    """
    study = load_study(out)
    findings = find(study, resamples)
    _plot(out / "scores.png", study, findings)
    write_rows(out / "rows.jsonl", result_rows(study, findings, command))
    path = out / "report.md"
    write_text(path, markdown.render(study, findings, planned))
    return path


def result_rows(study: Study, findings: Findings, command: str = "") -> list[dict[str, Any]]:
    """Result rows (design.md's contract), one for every run and control, and one for every difference of
    two runs.

    A refused headline has no `overall` metric; the dimensions' figures stay, as they are in the report.
    """
    from mla_jax.rows import result_row  # brings in JAX, which nothing else of the judge needs

    facts = {r["name"]: r for r in study.about["runs"]}
    base = result_row("", "", {}, "", "") | {"command": command or study.about["command"]}
    base["versions"]["openai"] = importlib.metadata.version("openai")
    rows = []
    for score in findings.scores:
        metrics: dict[str, Any] = {
            "stories": score.stories,
            "prompts": score.intervals[0].n,
            "judgements": score.judgements,
            "failure_rate": _number(score.failed / score.judgements if score.judgements else math.nan),
            "refused": score.refused,
            "verdict": findings.verdict(),
        }
        for name, interval in zip(study.columns, score.intervals, strict=True):
            if not (name == study.columns[0] and score.refused):
                metrics |= _metrics(name, interval)
        rows.append(_row(base, score.source, metrics, facts.get(score.source, {})))
    for d in findings.differences:
        metrics = {"prompts": d.intervals[0].n, "p": d.p}
        for name, interval in zip(study.columns, d.intervals, strict=False):
            metrics |= _metrics(name, interval)
        rows.append(_row(base, f"{d.a} - {d.b}", metrics, {}))
    return rows


def _row(base: dict[str, Any], name: str, metrics: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """`device` is that of the sampling, where it is known."""
    keys = ("config_hash", "data_fingerprint", "tokenizer_sha256")
    known = {"device": facts["device"]} if facts.get("device") else {}
    return base | {"name": name, "metrics": metrics} | {key: facts.get(key, "") for key in keys} | known


def _metrics(name: str, interval: Interval) -> dict[str, Any]:
    return {
        name: _number(interval.mean),
        f"{name}_low": _number(interval.low),
        f"{name}_high": _number(interval.high),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return round(value, 6) if math.isfinite(value) else None


def _plot(path: Path, study: Study, findings: Findings) -> None:
    """Overall scores with intervals, runs above controls."""
    shown = [s for s in findings.scores if s.intervals[0].n and not s.refused]
    figure, axes = figures.subplots(figsize=(7, 1.2 + 0.35 * max(len(shown), 1)))
    for y, score in enumerate(reversed(shown)):
        i = score.intervals[0]
        color = "tab:gray" if score.source.startswith(controls.PREFIX) else "tab:blue"
        if math.isfinite(i.low):
            axes.plot([i.low, i.high], [y, y], color=color, lw=2)
        axes.plot([i.mean], [y], "o", color=color)
    axes.set_yticks(range(len(shown)), [s.source for s in reversed(shown)])
    axes.set_xlim(1, 10)
    axes.set_xlabel("score (1-10), mean and 95 % interval")
    axes.set_title(f"{study.about['settings']['model']}, rubric {study.rubric.id}")
    if not shown:
        axes.text(5.5, 0, "no score to show", ha="center")
    temporary = path.with_name("scores.tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)

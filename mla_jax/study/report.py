"""The report of a study, from its rows alone: report.md, results.csv and plots/ in the study's folder."""

from pathlib import Path

from mla_jax.runs import write_text
from mla_jax.study import tables
from mla_jax.study.grid import Study
from mla_jax.study.results import Results, collect
from mla_jax.study.rows import Rows


def write(study: Study, rows: Rows, folder: Path) -> Path:
    """Write report.md (no clock in it: the same rows give the same bytes), time.md and results.csv."""
    found = collect(study, rows)
    write_text(folder / "report.md", markdown(found))
    write_text(folder / "time.md", tables.time_used(found))
    write_text(folder / "results.csv", tables.csv(found))
    return folder / "report.md"


def markdown(found: Results) -> str:
    """The whole text of report.md."""
    parts = [f"# {found.study.title}", tables.about(found)]
    for tier in found.tiers:
        parts += [f"## {tier.capitalize()}", tables.main(found, tier)]
    parts += ["## Story by story", tables.by_story(found)]
    parts += ["## Learning rates", tables.learning_rates(found)]
    parts += ["## Fact questions", tables.facts(found)]
    parts += ["## Loss by position", tables.by_position(found)]
    parts += ["## How many directions the cache uses", tables.effective_ranks(found)]
    parts += ["## Samples", tables.samples(found)]
    return "\n\n".join(part for part in parts if part) + "\n"

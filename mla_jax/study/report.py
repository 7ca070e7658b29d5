"""The report of a study, from its rows alone: report.md, results.csv and plots/ in the study's folder."""

from pathlib import Path

from mla_jax.files import write_text
from mla_jax.study import claim_tables, load_table, plots, results_csv, tables
from mla_jax.study.grid import Study
from mla_jax.study.results import Results, collect
from mla_jax.study.rows import Rows

TIME = "## Time"  # heads the last section
WORDS = """\
* **point, tier**: a model with its settings, trained with some seeds; points of one tier share size, data and steps.
* **n**, or a number in brackets: how many seeds a figure is the mean of.
* **± and [low, high], 95 % interval**: where the mean over all seeds lies, as far as these few can tell; an interval
  made like this holds it in 19 of 20 studies, if seeds scatter like a bell. Where a run may fail as a whole it holds it
  less often: with three seeds, one run in six failing by 5 %, in about 2 of 5.
* **paired**: seed by seed (or story by story) the difference is taken first, and then the mean. Equal seeds see the
  same batches, so what they do to both models cancels out.
* **smallest**: the smallest difference that a study of this size and scatter would show four times out of five. A
  finding of "no difference" is worth no more than this.
* **confirmed, contradicted**: the whole interval lies inside the claim's range, or outside of it. **undecided**: it
  lies on both sides, or there is none. **cannot be as stated**: arithmetic or the paper's own equations rule the
  claim out, and no training could change that. **not judged**: the study is too small to say anything about papers.
* **p, Holm**: how often chance alone would show such a difference, made larger because several were looked at.
* **diverged**: the loss stopped being a number; that is a result."""


def write(study: Study, rows: Rows, folder: Path) -> Path:
    """Write report.md and results.csv: the same rows give the same bytes. Only the last section, time, has a clock in
    it: everything before is the same for the same runs, however often they were stopped."""
    found = collect(study, rows)
    pictures = plots.write(found, folder / "plots")
    write_text(folder / "report.md", markdown(found, pictures))
    write_text(folder / "results.csv", results_csv.text(found))
    return folder / "report.md"


def markdown(found: Results, pictures: list[tuple[str, str]]) -> str:
    """The whole text of report.md. pictures: (file in plots/, caption)."""
    parts = [f"# {found.study.title}", tables.about(found)]
    if found.study.papers:
        parts += ["## What the papers say, and what we find", claim_tables.claims(found)]
    if "A" in found.study.papers:
        parts += ["## Does RoPE rescue MLA, or help MHA just as much?", claim_tables.rope(found)]
    for tier in found.tiers:
        parts += [f"## {tier.capitalize()}", tables.main(found, tier)]
    parts += ["## Story by story", tables.by_story(found)]
    parts += ["## Learning rates", tables.learning_rates(found)]
    parts += ["## Fact questions", tables.facts(found)]
    parts += ["## Loss by position", tables.by_position(found)]
    parts += ["## Experts", load_table.expert_load(found)]
    parts += ["## How many directions the cache uses", tables.effective_ranks(found)]
    parts += ["## Samples", tables.samples(found)]
    parts += ["## Plots", "\n\n".join(f"{caption}\n\n![{caption}](plots/{name})" for name, caption in pictures)]
    parts += ["## Words", WORDS]
    parts += [TIME, tables.time_used(found)]
    return "\n\n".join(_without_empty_sections(parts)) + "\n"


def _without_empty_sections(parts: list[str]) -> list[str]:
    """Drop a heading whose section has nothing to show."""
    kept = []
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        if part and not (part.startswith("## ") and not after):
            kept.append(part)
    return kept

"""study.report, tables, series, plots, readme: figures in the report are those of the rows."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from study_rows import PAPER_SAYS, by_name, claims_study, done, row, rows_of, study

from mla_jax.errors import run_command
from mla_jax.study import commands, load_table, readme, report, series, tables
from mla_jax.study.plan import plan
from mla_jax.study.results import collect
from mla_jax.study.rows import Rows, gather, key_of_row, merge, read

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def test_a_run_that_diverged_is_a_result_and_no_mean() -> None:
    made = study()
    losses = {5e-4: 2.0, 1e-3: 2.0, 2e-3: 1.9, 4e-3: None}
    rows = {}
    for _ in range(2):
        for task in plan(made, Rows(rows)).tasks:
            loss = losses.get(task.learning_rate, 2.0)
            made_row = row(task, loss or 0.0, "done" if loss else "diverged")
            made_row["metrics"]["best_valid_loss"] = loss
            rows[key_of_row(made_row)] = made_row
    found = collect(made, Rows(rows))
    mha = found.find("mha")
    assert len(mha.by_seed) == 3 and mha.any["study"]["learning_rate"] == 2e-3
    assert "diverged" in tables.learning_rates(found) and "**1.9000**" in tables.learning_rates(found)
    assert "Diverged: mha (seed 0, learning rate 0.004)" in tables.about(found)
    report.markdown(found, [])


def test_the_main_table_has_the_rows_figures() -> None:
    made = study(rates=())
    found = collect(made, done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}, noise=0.01)))
    line = next(x for x in tables.main(found, "headline").splitlines() if x.startswith("| per_head_rope_r2"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == "32" and cells[6].startswith("2.1210 ± 0.05") and cells[6].endswith("(3)")
    assert cells[7] == "+5.00 ± 0.00 (3)"
    table = tables.by_story(found)
    assert re.search(r"per_head_rope_r2 \| mha \| 10 \| \+0\.1010 ± 0\.0000 \| 0%", table)


def test_the_main_table_has_no_column_of_which_nothing_was_measured() -> None:
    made = study(rates=())
    rows = done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}))
    found = collect(made, rows)
    heads = {tier: tables.main(found, tier).splitlines()[0] for tier in ("headline", "grid")}
    assert "% against mha" in heads["headline"] and "facts, 050-099" in heads["headline"]
    assert "% against" not in heads["grid"], "its one point is the reference"
    for r in rows.by_key.values():
        if r["name"] != "mha":
            r["facts"] = []
    found = collect(made, rows)
    assert "| bits/byte | best step | facts, 050-099 words ago |" in tables.main(found, "headline").splitlines()[0]
    head, line, *cells = tables.main(found, "grid").splitlines()
    assert "facts" not in head and {text.count("|") for text in (head, line, *cells)} == {head.count("|")}


def test_plots_draw_what_the_rows_say(tmp_path) -> None:
    made = claims_study()
    found = collect(made, done(made, by_name(PAPER_SAYS, noise=0.01)))
    pareto = {line.label: line for line in series.pareto(found, "headline")}
    assert pareto["mha"].x == (64.0,) and pareto["mha"].y[0] == pytest.approx(2.02)
    assert pareto["mha"].low[0] < 2.02 < pareto["mha"].high[0]
    (sweep,) = series.ranks(found)
    assert sweep.x == (2, 4, 8, 16, 32) and sweep.y == pytest.approx(
        [1.01 * PAPER_SAYS[f"per_head_rope_r{int(p)}"] for p in sweep.x]
    )
    curve = {line.label: line for line in series.curves(found, "headline")}["mha"]
    assert curve.x == (5.0, 10.0) and curve.low[1] == pytest.approx(2.0) and curve.high[1] == pytest.approx(2.04)
    position = {line.label: line for line in series.positions(found, "headline")}["mha"]
    assert position.x == (0, 16, 32, 48)
    assert series.facts(found, "headline")[0].x == (0, 20, 50, 100)
    path = report.write(made, done(made, by_name(PAPER_SAYS, noise=0.01)), tmp_path)
    text = path.read_text()
    pictures = re.findall(r"\(plots/(\S+)\)", text)
    assert {"pareto_headline.png", "ranks.png", "facts.png", "positions.png"} <= set(pictures)
    assert all((tmp_path / "plots" / name).stat().st_size > 5000 for name in pictures)
    assert text == (report.write(made, done(made, by_name(PAPER_SAYS, noise=0.01)), tmp_path)).read_text()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(found.rows)


def test_expert_load_has_a_line_a_point_with_experts() -> None:
    made = claims_study()
    assert load_table.expert_load(collect(made, done(made, by_name(PAPER_SAYS)))) == ""
    rows = done(made, by_name(PAPER_SAYS, noise=0.01))
    for r in rows.by_key.values():
        if r["name"] == "mha":
            high = 2.0 + r["study"]["seed"]
            r["experts"] = {"load": [[high, 0.0, 1.0], [0.9, 1.1, 1.0]], "dead": [1, 0]}
        elif r["name"] == "s_mha":
            del r["experts"]  # as in the row of a run that diverged
    *_, line = load_table.expert_load(collect(made, rows)).splitlines()
    cells = "3.00, 2.00 to 4.00 (3) | 0.00, 0.00 to 0.00 (3) | 1, 1 to 1 (3) | 6 |"
    assert line.startswith("| mha | 2.0200 ± 0.0497 (3) | ") and line.endswith(cells)


def test_the_readmes_blocks_come_from_rows_and_keep_the_rest(tmp_path, capsys) -> None:
    made = readme.blocks()
    for words in ("| A1 | r = d/2 saves 45 %", "| B1 |", "| B8 |", "| C1 |", "cannot be as stated", "68.75 %"):
        assert words in made["verdicts"] and words not in made["tables"], words
    page = tmp_path / "README.md"
    for name, text in made.items():
        begin, end = readme.BEGIN.format(name), readme.END.format(name)
        page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
        assert run_command(readme._main, [str(page)]) == 0
        assert page.read_text() == f"before\n{text}\nafter\n"
        page.write_text(f"{end}\n{begin}")
        assert run_command(readme._main, [str(page)]) == 2 and "not in order" in capsys.readouterr().err
    page.write_text("no marks")
    assert run_command(readme._main, [str(page)]) == 2 and "paste a block" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "docs/results/README.md"])
def test_the_readmes_of_the_repository_are_up_to_date(page: str) -> None:
    text = (RESULTS.parents[1] / page).read_text(encoding="utf-8")
    assert readme.replaced(text, readme.blocks()) == text, "run bash launch/reports.sh"


@pytest.mark.parametrize("folder", sorted(RESULTS.glob("study_*")), ids=lambda folder: folder.name)
def test_a_committed_report_is_what_the_committed_rows_give(folder: Path) -> None:
    """Up to its plots. Else: --mode study --config STUDY --report_only, and copy the report."""
    studies = {f"study_{made.name}": made for form in readme.CORPORA for made in readme.declared(form)}
    text = (folder / "report.md").read_text(encoding="utf-8").partition("## Plots")[0]
    found = collect(studies[folder.name], gather(None))
    assert report.markdown(found, [("x.png", "x")]).partition("## Plots")[0] == text, "older than the rows"


def test_a_headline_with_rows_is_in_the_readmes_blocks(monkeypatch) -> None:
    made = claims_study()
    monkeypatch.setattr(readme, "study_names", lambda: ["made_up"])
    monkeypatch.setattr(readme, "load_config_dict", lambda name: name)
    elsewhere = dataclasses.replace(made, points=made.points[:0])
    monkeypatch.setattr(readme, "from_config_dict", lambda name: elsewhere if name.endswith(":files") else made)
    both = readme.blocks(done(made, by_name(PAPER_SAYS, noise=0.01)))
    text = both["tables"]
    assert re.search(r"\| per_head_rope_r2 \| 128 \| 50.0 % \| 2.0261 ± 0.0498 \(3\) \| \+0.30 ± 0.00 \(3\) \|", text)
    assert re.search(
        r"\| A4 \|.* % of loss \| \*\*confirmed\*\* \| size xs at 0.\d+: \+0.30 \[\+0.30, \+0.30\], n=3 \| - \|",
        both["verdicts"],
    )
    assert text.count(made.title) == 1 and "report.md" not in text  # a form without rows has no table, and no page


def test_time_counts_shares_and_projects_the_full_schedule() -> None:
    made = study(rates=(), seeds=(0, 1))
    rows = done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}))
    for r in rows.by_key.values():
        if r["name"] == "mha":  # seed 0 alone, seed 1 beside two others: slower, and a third of the time is its own
            r["metrics"]["tokens_per_s"], r["study"]["sharing"] = (1e6, 1) if r["study"]["seed"] == 0 else (4e5, 3)
        if r["name"] == "s_mha":
            r["study"]["sharing"] = 3
    text = tables.time_used(collect(made, rows))
    assert text.startswith(f"{(60 + 20 + 2 * 60 + 20) / 60:.1f} device minutes in 5 runs")
    assert re.search(r"\| mha \| headline \| cpu x86_64 \| 1,000,000 \| 40 \| 0\.9 \|", text)  # 3.277e9 / 1e6 / 3600
    assert re.search(r"\| s_mha .*\| - \| 20 \| at most 910\.2 \|", text) and "took turns" in text
    whole = report.markdown(collect(made, rows), [])
    assert f"{report.TIME}\n\n{text}" in whole
    words = whole.partition("## Words")[2]
    assert all(f"**{w}" in words for w in ("paired", "smallest", "n**", "undecided", "cannot be as stated", "p, Holm"))


def test_minutes_and_speeds_are_told_apart_by_device() -> None:
    """A study gone on with on another GPU: seed 0 on one, seed 1, shared by two processes, on the other."""
    made = study(rates=(), seeds=(0, 1))
    rows = done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1}))
    for r in rows.by_key.values():
        r["device"] = "NVIDIA H100 80GB HBM3" if r["study"]["seed"] == 0 else "NVIDIA H200"
        if r["study"]["seed"]:
            r["study"]["sharing"], r["metrics"]["tokens_per_s"] = 2, 5e5
    found = collect(made, rows)
    text = tables.time_used(found)
    assert text.startswith(
        "2.0 device minutes in 2 runs on NVIDIA H100 80GB HBM3; 1.0 device minutes in 2 runs on NVIDIA H200, compiling"
    )
    assert "| mha | headline | NVIDIA H100 80GB HBM3 | 1,000 | 60 | 910.2 |" in text
    assert "| mha | headline | NVIDIA H200 | - | 30 | at most 1.8 |" in text
    assert "* Device: NVIDIA H100 80GB HBM3 (2 runs); NVIDIA H200 (2 runs)\n" in report.markdown(found, [])


def test_rows_that_come_back_are_merged(tmp_path) -> None:
    made = study(rates=(), seeds=(0,))
    first, second, *_ = plan(made, rows_of()).tasks
    into, back = tmp_path / "all.jsonl", tmp_path / "back.jsonl"
    into.write_text(json.dumps(row(first, 2.0)) + "\n")
    newer = [row(first, 1.5) | {"time": "2027"}, row(first, 1.0, "failed") | {"time": "2028"}, row(second)]
    back.write_text("".join(json.dumps(r) + "\n" for r in newer))
    assert merge(into, [back]) == 2
    losses = {r["name"]: r["metrics"]["best_valid_loss"] for r in read([into]).by_key.values()}
    assert losses == {"mha": 1.5, "per_head_rope_r2": 2.0}


def test_commands_are_told_apart_by_what_they_trained() -> None:
    base = "python -m mla_jax.main --mode study --config study_paper_a"
    rate = "'--config.tiers.headline.learning_rates=(0.002,)'"
    given = [
        f"{base} --workdir a --max_minutes 4.25 --sharing 7 --rows_only --config.plan_flops=1e15",
        f"{base} --workdir=b --max_minutes=3 --config.points.mha.priority=0 --config.plan_step_s 0.0",
        f"{base} --rows_only {rate} --workdir c",
    ]
    assert commands.told_apart(given) == [(base, 2), (f"{base} {rate}", 1)]
    assert commands.told_apart([f"{base} --max_minutes"]) == [(base, 1)]  # a flag cut off at the end
    assert commands.told_apart([f"{base} --config.points.a-b.priority=0"]) == [(base, 1)]
    assert commands.told_apart([f"{base} --rows_only word"]) == [(f"{base} word", 1)]
    assert commands.told_apart([f"{base} --max_minutes --config.x=1"]) == [(f"{base} --config.x=1", 1)]
    assert commands.told_apart(["it's damaged"]) == [("it's damaged", 1)]

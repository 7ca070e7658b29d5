"""study.results, stats, evidence, verdicts, tables, series, plots: figures in the report are those of the rows."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from study_rows import PER_HEAD, declared, row, study

from mla_jax import accounting
from mla_jax.config_files import load_config_dict
from mla_jax.study import (
    arithmetic,
    claim_tables,
    declare,
    evidence,
    grid,
    readme,
    report,
    series,
    stats,
    tables,
    verdicts,
)
from mla_jax.study.claims import CLAIMS
from mla_jax.study.plan import plan
from mla_jax.study.results import collect, relative
from mla_jax.study.rows import Rows, bench_rows, gather, key_of_row, merge, read_files


def rows_of(*rows: dict) -> Rows:
    return Rows({key_of_row(r): r for r in rows})


def done(made, loss) -> Rows:
    """Rows of all runs of a study; `loss(task)` gives the best loss, None for a run that is missing."""
    rows = rows_of()
    for _ in range(2):  # the second time for the seeds that waited for their learning rate
        tasks = plan(made, rows).tasks
        rows = rows_of(*(row(t, loss(t)) for t in tasks if loss(t) is not None))
    return rows


def by_name(table: dict[str, float], noise: float = 0.0):
    """Losses by point; seeds differ by `noise`, equally for all points."""
    return lambda task: table.get(task.point.name) and table[task.point.name] * (1 + noise * task.seed)


T_TABLE = [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 4, 2.77645), (0.8, 2, 1.06066), (0.8, 9, 0.883404)]


@pytest.mark.parametrize(("p", "df", "t"), T_TABLE)
def test_quantiles_are_those_of_the_tables(p: float, df: int, t: float) -> None:
    assert stats.t_quantile(p, df) == pytest.approx(t, rel=1e-5)


def test_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    found = [stats.estimate(rng.normal(1.0, 0.3, 3)) for _ in range(2000)]
    assert 0.935 < np.mean([e.low <= 1.0 <= e.high for e in found]) < 0.965
    one = stats.estimate([2.0])
    assert one.mean == 2 and math.isnan(one.low) and math.isnan(one.detectable) and stats.estimate([]).n == 0


def test_the_smallest_difference_is_seen_about_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    size = stats.estimate([-0.5, 0.5, 0.0, 0.7, -0.7]).detectable / np.std([-0.5, 0.5, 0.0, 0.7, -0.7], ddof=1)
    found = [stats.estimate(rng.normal(size, 1.0, 5)) for _ in range(2000)]
    assert 0.72 < np.mean([e.low > 0 for e in found]) < 0.92


def test_holm_is_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0] and stats.holm([]) == []


def test_equal_seeds_are_paired() -> None:
    made = study(rates=())
    found = collect(made, done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}, noise=0.2)))
    values = relative(found.find("per_head_rope_r2"), found.find("mha"))
    assert values == pytest.approx([5.0, 5.0, 5.0])  # the seeds' scatter of 20 % is in both and falls out
    assert found.find("mha").over_seeds(lambda r: r["metrics"]["best_valid_loss"]).high > 3


def test_rows_of_other_data_are_left_out_and_counted() -> None:
    made = study(rates=())
    rows = done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}))
    next(r for r in rows.by_key.values() if r["name"] == "s_mha")["data_fingerprint"] = "0" * 64
    found = collect(made, rows)
    assert found.other_data == 1 and found.find("s_mha") is None and found.to_do == 1
    assert "1 rows of the same configs on other data" in tables.about(found)


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


def claims_study_dict(**settings):
    """Every point that paper A's measured claims ask for, at a tiny size."""
    c = declared(rates=(), papers=("A",), **settings)
    for name, config, knobs in (
        ("mha_rope", "mha_rope", {}),
        ("per_head_learned_r2", "mla", {"model.latent": "per_head", "model.position": "learned"}),
        *(
            (f"per_head_rope_r{p}", "mla_rope", PER_HEAD | {"model.kv_lora_rank": rank})
            for p, rank in ((4, 3), (8, 2), (16, 1), (32, 5))
        ),
    ):
        declare.point(c, name, config, "headline", knobs, (0, 1, 2))
    return c


def claims_study(**settings):
    return grid.from_config_dict(claims_study_dict(**settings))


PAPER_SAYS = {
    "mha": 2.0, "mha_rope": 1.98, "per_head_learned_r2": 2.08, "per_head_rope_r2": 2.006, "per_head_rope_r4": 2.088,
    "per_head_rope_r8": 2.206, "per_head_rope_r16": 2.3, "per_head_rope_r32": 2.6, "s_mha": 3.0,
}  # fmt: skip


def verdicts_of(made, rows) -> dict[str, str]:
    return {j.claim.id: j.verdict for j in verdicts.judge(collect(made, rows))}


def test_rows_that_say_what_the_paper_says_confirm_it() -> None:
    made = claims_study()
    found = verdicts_of(made, done(made, by_name(PAPER_SAYS, noise=0.01)))
    assert {found[i] for i in ("A4", "A6", "A8", "A9", "A10")} == {"confirmed"}
    assert found["A5"] == "contradicted"  # the best rank is 0.3 % worse, not 2 % better
    assert found["A7"].startswith("undecided: no rows")


def test_rows_that_say_otherwise_contradict_it() -> None:
    made = claims_study()
    losses = PAPER_SAYS | {"per_head_rope_r2": 1.9, "per_head_learned_r2": 2.0, "per_head_rope_r32": 2.4}
    found = verdicts_of(made, done(made, by_name(losses, noise=0.01)))
    assert {found[i] for i in ("A4", "A6", "A10")} == {"contradicted"}


def test_scatter_one_seed_or_a_small_study_leave_it_open() -> None:
    made = claims_study()

    def scattered(task):
        return PAPER_SAYS[task.point.name] * (1 + 0.05 * (-1) ** (task.seed + len(task.point.name)))

    assert verdicts_of(made, done(made, scattered))["A4"] == "undecided: the interval is too wide"
    one = claims_study(seeds=(0,))
    assert verdicts_of(one, done(one, by_name(PAPER_SAYS)))["A4"] == "undecided: one measurement has no interval"
    small = claims_study(verdicts=False)
    judged = verdicts_of(small, done(small, by_name(PAPER_SAYS)))
    assert judged["A4"].startswith("not judged") and judged["A1"] == arithmetic.CANNOT


def test_the_tier_with_more_seeds_is_the_evidence() -> None:
    """Three seeds of size m, five of size s: the claim is judged by the five; with equal seeds by size m."""
    for seeds, tier in (((0, 1, 2, 3, 4), "s_mha"), ((0, 1, 2), "mha")):
        c = claims_study_dict()
        c.points.s_mha.seeds = seeds
        declare.point(c, "s_per_head_rope_r2", "mla_rope", "grid", PER_HEAD, seeds)
        made = grid.from_config_dict(c)
        rows = done(made, by_name(PAPER_SAYS | {"s_per_head_rope_r2": 3.3}, noise=0.01))
        test = evidence.loss_difference("per_head_rope_r2", "mha")(collect(made, rows))
        assert test.what.endswith(f"against {tier}") and test.found.n == len(seeds)
        assert test.found.mean == pytest.approx(10 if tier == "s_mha" else 0.3)
        judged = next(j for j in verdicts.judge(collect(made, rows)) if j.claim.id == "A4")
        (other,) = judged.elsewhere  # the other size is shown beside it
        assert other[0] == ("headline" if tier == "s_mha" else "grid")
        assert {judged.verdict, other[2]} == {"confirmed", "contradicted"}
        assert re.search(rf"\*\*{judged.verdict}\*\*; {other[0]}: {other[2]}", claim_tables.claims(collect(made, rows)))


def test_paper_bs_claims_are_judged_on_files_by_the_headline_and_open_while_rows_are_missing() -> None:
    made = grid.from_config_dict(load_config_dict("study_paper_b:files"))
    losses = {"mha": 2.0, "mla_rope": 2.01, "moe_mla_rope": 1.86, "moe_mla_rope_flops": 1.9}
    found = collect(made, done(made, by_name(losses, noise=1e-3)))
    judged = {j.claim.id: j for j in verdicts.judge(found)}
    assert judged["B4"].verdict == verdicts.CONFIRMED and judged["B4"].test.what == "moe_mla_rope against mha"
    assert judged["B6"].verdict == verdicts.CONTRADICTED and judged["B6"].test.found.n == 3
    assert judged["B3"].test.found.mean > 0
    text = report.markdown(found, [])
    assert "-7.00 [-7.00, -7.00], n=3" in text and "| moe_mla_rope_flops |" in text
    few = collect(made, done(made, by_name({"mha": 2.0, "moe_mha": 1.9})))
    judged = {j.claim.id: j for j in verdicts.judge(few)}
    assert {judged[name].verdict for name in ("B3", "B4", "B6")} == {f"{verdicts.UNDECIDED}: no rows yet"}
    assert "| moe_mha |" in report.markdown(few, []) and report.markdown(collect(made, rows_of()), [])


def test_the_question_that_neither_paper_asks() -> None:
    made = claims_study()
    rescued = PAPER_SAYS | {"mha_rope": 2.0, "per_head_rope_r2": 1.9, "per_head_learned_r2": 2.1}
    text = claim_tables.rope(collect(made, done(made, by_name(rescued, noise=0.01))))
    assert text.rstrip().endswith("RoPE does more for MLA |") and "-9.52" in text
    alike = PAPER_SAYS | {"mha_rope": 1.9, "per_head_rope_r2": 1.995, "per_head_learned_r2": 2.1}
    (_, mha, mla, difference), *_ = evidence.rope_interaction(collect(made, done(made, by_name(alike))))
    assert mha.found.mean == pytest.approx(-5) and mla.found.mean == pytest.approx(-5)
    assert difference.found.mean == pytest.approx(0, abs=1e-9)


def test_the_share_of_a_references_steps_ends_at_its_best_loss() -> None:
    slow = [(100, 4.0), (200, 3.0)]
    assert evidence.share_to_best([(50, 4.0), (100, 2.0)], slow) == pytest.approx(100 * 75 / 200)
    assert evidence.share_to_best([(50, 2.0)], slow) == 25
    assert evidence.share_to_best([(50, 3.5)], slow) == math.inf


def test_the_best_rank_is_chosen_by_one_seed_and_measured_on_the_others() -> None:
    made = claims_study()

    def lucky(task):  # seed 0 finds r4 far better; the other seeds know nothing of it
        return 1.0 if (task.point.name, task.seed) == ("per_head_rope_r4", 0) else PAPER_SAYS[task.point.name]

    test = evidence.best_difference("per_head_rope_r", "mha")(collect(made, done(made, lucky)))
    assert test.found.n == 2 and test.found.mean == pytest.approx(4.4) and "per_head_rope_r4" in test.what


def test_arithmetic_is_accounting() -> None:
    """The figures that need no training, once by hand."""
    texts = {c.id: c.arithmetic() for c in CLAIMS if c.arithmetic}
    assert "50.0 %" in texts["A1"][0] and "46.9 %" in texts["A1"][0] and texts["A1"][1] == arithmetic.CANNOT
    assert "75.0 %" in texts["A2"][0] and "71.9 %" in texts["A2"][0]
    assert "0.0184" in texts["A3"][0] and texts["A3"][1] == arithmetic.CANNOT
    assert "68.75 %" in texts["B1"][0] and texts["B1"][1] == arithmetic.HOLDS
    assert "61,474,519" in texts["B8"][0] and "3.20 times" in texts["B2"][0]
    assert "1.89 times" in texts["A11"][0] and "2.00 times" in texts["A11"][0]
    assert texts["B5"][1] == arithmetic.CANNOT and "experts of width 32" in texts["B5"][0]
    assert accounting.kv_numbers(arithmetic.model("mla_rope_paper_b:m")) == 320


def test_every_claim_of_the_papers_is_there_once() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    words = " ".join(claim.words for claim in CLAIMS)
    for figure in ("45 %", "68 %", "72 %", "0.3 %", "2 %", "3-5 %", "4.4 %", "d/16", "1.4 times", "3.2 times", "0.8 %",
                   "6.9 %", "42 %", "11.1 %", "48-52 %", "C(62, 6)"):  # fmt: skip
        assert figure in words, figure


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


def test_the_readmes_block_comes_from_rows_and_keeps_the_rest(tmp_path, capsys) -> None:
    rows = gather(None)
    made = readme.block(rows)
    for words in ("| A1 | r = d/2 saves 45 %", "| B1 |", "| B8 |", "| C1 |", "cannot be as stated", "68.75 %"):
        assert words in made, words
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    assert readme._main([str(page)]) == 0
    assert page.read_text() == f"before\n{made}\nafter\n"
    page.write_text("no marks")
    assert readme._main([str(page)]) == 2 and "paste the printed block" in capsys.readouterr().err


def test_the_readme_of_the_repository_is_up_to_date() -> None:
    page = Path(__file__).resolve().parents[1] / "README.md"
    text = page.read_text(encoding="utf-8")
    if readme.BEGIN not in text:
        pytest.skip("README.md has no block of results yet")
    assert readme.replaced(text, readme.block()) == text, "run python -m mla_jax.study.readme README.md"


def test_a_headline_with_rows_is_in_the_readmes_block(monkeypatch) -> None:
    made = claims_study()
    monkeypatch.setattr(readme, "study_names", lambda: ["made_up"])
    monkeypatch.setattr(readme, "load_config_dict", lambda name: None)
    monkeypatch.setattr(readme, "from_config_dict", lambda _: made)
    text = readme.block(done(made, by_name(PAPER_SAYS, noise=0.01)))
    assert re.search(r"\| per_head_rope_r2 \| 128 \| 50.0 % \| 2.0261 ± 0.0498 \(3\) \| \+0.30 ± 0.00 \(3\) \|", text)
    assert re.search(r"\| A4 \|.*\+0.30 \[\+0.30, \+0.30\], n=3.*\| confirmed \|", text)


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
    assert re.search(r"\| s_mha .*\| 20 \| at most 910\.2 \|", text) and "took turns" in text
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
    assert "| mha | headline | NVIDIA H200 | 500,000 | 30 | at most 1.8 |" in text
    assert "* Device: NVIDIA H100 80GB HBM3 (2 runs); NVIDIA H200 (2 runs)\n" in report.markdown(found, [])


def test_rows_that_come_back_are_merged(tmp_path) -> None:
    made = study(rates=(), seeds=(0,))
    first, second, *_ = plan(made, rows_of()).tasks
    into, back = tmp_path / "all.jsonl", tmp_path / "back.jsonl"
    into.write_text(json.dumps(row(first, 2.0)) + "\n")
    newer = [row(first, 1.5) | {"time": "2027"}, row(first, 1.0, "failed") | {"time": "2028"}, row(second)]
    back.write_text("".join(json.dumps(r) + "\n" for r in newer) + '{"cut')
    assert merge(into, [back]) == 2
    losses = {r["name"]: r["metrics"]["best_valid_loss"] for r in read_files([into])}
    assert losses == {"mha": 1.5, "per_head_rope_r2": 2.0}


def bench_row(point: str, batch: int, speed: float, **more) -> dict:
    ms = 1e3 * batch / speed
    m = {"suite": "decode", "point": point, "label": "", "batch": batch, "context": 512, "tokens_per_s": speed}
    m |= {"ms": ms, "ms_low": 0.98 * ms, "ms_high": 1.02 * ms, "repeats": 5}
    return {"name": point, "device": "gpu", "metrics": m | more}


def test_decode_speeds_come_from_benchmark_rows_where_the_cache_is_largest(tmp_path) -> None:
    rows = [bench_row("mla r=d", 1, 100.0), bench_row("mla r=d/2", 1, 100.0)]
    rows += [bench_row("mla r=d", 64, 1000.0), bench_row("mla r=d/2", 64, 1500.0)]
    rows += [bench_row("mla r=d/2", 64, 9.0, label="int8"), bench_row("mla r=d", 64, 9.0, suite="prefill")]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = study(rates=(), seeds=(0,))
    found = collect(made, dataclasses.replace(done(made, by_name(PAPER_SAYS)), bench=bench_rows([path])))
    test = evidence.speed("mla r=d/2", "mla r=d")(found)
    assert test.found.mean == pytest.approx(1.5) and "batch 64" in test.what
    assert (test.found.low, test.found.high, test.found.n) == (
        pytest.approx(1.5 * 0.98 / 1.02),
        pytest.approx(1.5 * 1.02 / 0.98),
        5,
    )
    judged = {j.claim.id: j.verdict for j in verdicts.judge(dataclasses.replace(found, study=claims_study()))}
    assert judged["A11"] == "confirmed"  # the whole range of the timings lies in 1.2 ... 1.6
    longer = bench_row("mla r=d/2", 64, 7.0, context=4096)  # one batch there, two at 512
    drawn = series.speeds(dataclasses.replace(found, bench=[*found.bench, longer]))
    assert {line.label: line.y for line in drawn}["mla r=d/2 @ 512"] == (100.0, 1500.0)
    assert evidence.speed("mla r=d/2", "mha_rope")(found) is None

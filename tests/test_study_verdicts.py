"""study.claims, arithmetic, evidence, verdicts, claim_tables: what rows say of the papers' claims."""

import dataclasses
import json
import math

import pytest
from study_rows import PAPER_SAYS, PER_HEAD, TINY, by_name, claims_study, claims_study_dict, done, rows_of, study

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
    results,
    series,
    tables,
    verdicts,
)
from mla_jax.study.claims import CLAIMS
from mla_jax.study.plan import plan
from mla_jax.study.results import collect
from mla_jax.study.rows import read
from mla_jax.study.stats import Estimate


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

    assert verdicts_of(made, done(made, scattered))["A4"] == "undecided: across the range's border"
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
        first, other = judged.tests  # the other size is shown beside it
        assert first.evidence == test and other.place == ("headline" if tier == "s_mha" else "grid")
        assert {judged.verdict, other.verdict} == {"confirmed", "contradicted"}
        shown = f"**{judged.verdict}**; {other.place}: {other.verdict}"
        assert shown in claim_tables.claims(collect(made, rows))


def test_a_point_that_lacks_a_learning_rate_is_compared_with_nothing() -> None:
    """At half of its rates a variant stood in the report with a p-value, against a reference that had all of them."""
    made = study(papers=("A",))
    whole = by_name({"mha": 2.0, "per_head_rope_r2": 2.1})
    rows = done(made, lambda t: None if (t.point.name, t.learning_rate) == ("mha", 4e-3) else whole(t))
    found = collect(made, rows)
    assert [(p.name, p.tuned) for p in found.points] == [("mha", False), ("per_head_rope_r2", True)]
    assert results.relative(found.find("per_head_rope_r2"), found.find("mha")) == []
    assert evidence.together(found, "mha", "per_head_rope_r2") is None
    assert evidence.loss_difference("per_head_rope_r2", "mha")(found) is None
    assert [p.name for p in found.distinct("headline")] == ["per_head_rope_r2"]
    assert not tables.by_story(found)
    rates = tables.learning_rates(found)
    assert "| mha | 2.0000 | 2.0000 |  |" in rates and "**2.1000**" in rates


def test_the_question_of_rope_is_answered_within_one_tier() -> None:
    """Size m has no MHA with RoPE here: the answer is size s' alone, from its own losses."""
    c = claims_study_dict()
    losses = {"mha": 2.0, "mha_rope": 1.9, "per_head_learned_r2": 2.2, "per_head_rope_r2": 2.0}
    for name, (config, knobs) in {
        "mha_rope": ("mha_rope", {}),
        "per_head_learned_r2": ("mla", {"model.latent": "per_head", "model.position": "learned"}),
        "per_head_rope_r2": ("mla_rope", PER_HEAD),
    }.items():
        declare.point(c, f"s_{name}", config, "grid", knobs, (0, 1, 2))
    c.points.s_mha.seeds = (0, 1, 2)
    made = grid.from_config_dict(c)
    apart = {f"s_{name}": loss + 1 for name, loss in losses.items()}
    rows = done(made, by_name({k: v for k, v in (losses | apart).items() if k != "mha_rope"}))
    ((form, mha, mla, difference),) = evidence.rope_interaction(collect(made, rows))
    assert form.startswith("per head, r = d/2, size xs at 0.0")
    assert mha.found.mean == pytest.approx(100 * (2.9 / 3.0 - 1))
    assert mla.found.mean == pytest.approx(100 * (3.0 / 3.2 - 1))
    assert difference.found.mean == pytest.approx(mla.found.mean - mha.found.mean)


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
    assert evidence.share_to_best([(50, 2.0)], [*slow, (1000, 4.0)]) == 25  # what it does after its best is its own


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
    assert "61,474,519" in texts["B8"][0] and "3.20 times (3.56 in" in texts["B2"][0]
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


def bench_row(point: str, batch: int, speed: float, **more) -> dict:
    ms = 1e3 * batch / speed
    m = {"suite": "decode", "point": point, "label": "", "batch": batch, "context": 512, "tokens_per_s": speed}
    m |= {"ms": ms, "ms_low": 0.98 * ms, "ms_high": 1.02 * ms, "repeats": 5}
    return {"name": point, "device": "gpu", "time": "2026-01-01", "metrics": m | more}


def test_decode_speeds_come_from_benchmark_rows_where_the_cache_is_largest(tmp_path) -> None:
    rows = [bench_row("mla r=d", 1, 100.0), bench_row("mla r=d/2", 1, 100.0)]
    rows += [bench_row("mla r=d", 64, 1000.0), bench_row("mla r=d/2", 64, 1500.0)]
    rows += [bench_row("mla r=d/2", 64, 9.0, label="int8"), bench_row("mla r=d", 64, 9.0, suite="prefill")]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = study(rates=(), seeds=(0,))
    found = collect(made, dataclasses.replace(done(made, by_name(PAPER_SAYS)), bench=read([path]).bench))
    test = evidence.speed("mla r=d/2", "mla r=d")(found)
    assert test.found.mean == pytest.approx(1.5) and "batch 64" in test.what
    assert (test.found.low, test.found.high, test.found.n) == (
        pytest.approx(1.5 * 0.98 / 1.02),
        pytest.approx(1.5 * 1.02 / 0.98),
        5,
    )
    judged = {j.claim.id: j.verdict for j in verdicts.judge(dataclasses.replace(found, study=claims_study()))}
    assert judged["A11"] == "undecided: no rows yet"  # paper A's latents are per head, these are joint
    longer = bench_row("mla r=d/2", 64, 7.0, context=4096)  # one batch there, two at 512
    drawn = series.speeds(dataclasses.replace(found, bench=[*found.bench, longer]))
    assert {line.label: line.y for line in drawn}["mla r=d/2 @ 512"] == (100.0, 1500.0)
    assert evidence.speed("mla r=d/2", "mha_rope")(found) is None


def test_a_speed_on_which_devices_differ_is_undecided_and_each_is_shown() -> None:
    made = claims_study()
    for speed, verdict in ((2000.0, "undecided: devices differ"), (1410.0, "confirmed")):
        rows = [bench_row("per_head r=d", 64, 1000.0), bench_row("per_head r=d/2", 64, 1400.0)]
        later = [bench_row("per_head r=d", 64, 1000.0), bench_row("per_head r=d/2", 64, speed)]
        rows += [row | {"device": "a card", "time": "2026-02-01"} for row in later]
        found = collect(made, dataclasses.replace(done(made, by_name(PAPER_SAYS)), bench=rows))
        judged = next(j for j in verdicts.judge(found) if j.claim.id == "A11")
        assert judged.verdict == verdict and judged.tests[0].place == "a card", "measured last"
        assert judged.tests[1].verdict == "confirmed"
        said, shown = readme._found([judged])
        assert said == f"**{verdict}**" and verdict in claim_tables.claims(found)
        card, gpu = shown.split("<br>")
        assert card.startswith(f"a card: {speed / 1000:.2f} [") and gpu.startswith("gpu: 1.40 [")
        assert card.endswith("], contradicted (faster than claimed)") == (speed == 2000.0)
        assert gpu.endswith(", confirmed") == (speed == 2000.0)  # as the verdict says where they agree


def test_a_claim_contradicted_on_both_sides_says_so_of_each() -> None:
    claim = next(c for c in CLAIMS if c.id == "A5")  # -2.5 to -1.5 % of loss

    def test_at(mean: float, place: str) -> verdicts.Tested:
        found = Estimate(mean, mean - 0.1, mean + 0.1, 3, 0.2)
        return verdicts.Tested(place, evidence.Evidence("a against b", found, place), verdicts.CONTRADICTED)

    tests = (test_at(-5.0, "size s"), test_at(4.0, "size m"))
    said, shown = readme._found([verdicts.Judged(claim, "", tests, verdicts.CONTRADICTED)])
    assert said == "**contradicted (better than claimed)**"
    small, large = shown.split("<br>")
    assert small.endswith("n=3") and large.endswith("n=3, contradicted (worse than claimed)")


def test_the_share_of_steps_is_of_the_model_that_most_seeds_have_trained() -> None:
    c = claims_study_dict()
    for name, seeds in (("a", (0, 1, 2)), ("b", (0, 1))):
        for optimizer in ("adamw", "muon"):
            knobs = {"optim.name": optimizer, "model.d_ff": 64 if name == "a" else 96}
            declare.point(c, f"{name}_{optimizer}", "mha", "headline", knobs, seeds)
    made = grid.from_config_dict(c)
    rows = done(made, lambda task: 2.0 - 0.01 * task.seed)
    steps = {"a_adamw": 100, "a_muon": 60, "b_adamw": 100, "b_muon": 90}
    for task in plan(made, rows).tasks:
        if task.point.name in steps:
            rows.by_key[task.key]["curve"]["eval"] = [(steps[task.point.name], 2.0 - 0.01 * task.seed)]
    test = evidence.share_of_steps("muon", "adamw")(collect(made, rows))
    assert (test.what, test.found.n, test.found.mean) == ("a_muon against a_adamw", 3, pytest.approx(60))


def test_optimizers_are_compared_within_one_tier() -> None:
    c = declare.new("tiers", "t", papers=("C",), reference="x_adamw")
    declare.tier(c, "a", "xs", TINY)
    declare.tier(c, "b", "xs", TINY | {"train.steps": 20})
    declare.point(c, "x_adamw", "mha", "a", {}, (0, 1, 2))
    declare.point(c, "x_muon", "mha", "b", {"optim.name": "muon"}, (0, 1, 2))
    made = grid.from_config_dict(c)
    rows = done(made, lambda task: 2.0 if "adamw" in task.point.name else 1.9)
    assert evidence.share_of_steps("muon", "adamw")(collect(made, rows)) is None
    assert verdicts_of(made, rows) == dict.fromkeys(("C1", "C2"), "undecided: no rows yet")

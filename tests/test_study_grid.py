"""study.grid, study.plan, study.rows: what a study is, which runs it needs and what counts as done."""

import dataclasses
import json

import pytest
from study_rows import declared, row, rows_of, study

from mla_jax import accounting
from mla_jax import config as config_lib
from mla_jax.config_files import load_config_dict, study_names
from mla_jax.errors import UserError
from mla_jax.study import declare, grid, tables
from mla_jax.study.claims import CLAIMS
from mla_jax.study.plan import CostModel, chosen_rate, cost_model, describe, plan
from mla_jax.study.results import collect
from mla_jax.study.rows import gather, key_of


@pytest.mark.parametrize("name", study_names())
def test_every_study_file_makes_a_study_and_its_docstring_tells_the_command(name: str) -> None:
    from mla_jax.config_files import config_dir

    made = grid.from_config_dict(load_config_dict(name))
    assert made.name == name.removeprefix("study_")
    assert len(plan(made, rows_of()).tasks) >= 10
    text = (config_dir() / f"{name}.py").read_text(encoding="utf-8")
    assert f"--mode study --config configs/{name}.py --workdir" in text


def test_points_override_tiers_and_tiers_override_what_is_common() -> None:
    c = declared()
    declare.common(c, {"optim.weight_decay": 0.3, "train.steps": 77, "model.dropout": 0.1})
    declare.point(c, "long", "mha", "grid", {"train.steps": 9, "optim.weight_decay": 0.2})
    made = grid.from_config_dict(c)
    configs = {p.name: made.config(p, 5, 0.25) for p in made.points}
    assert configs["mha"].optim.weight_decay == 0.3 and configs["mha"].train.steps == 10
    assert (configs["long"].train.steps, configs["long"].optim.weight_decay) == (9, 0.2)
    assert (configs["long"].train.seed, configs["long"].optim.learning_rate) == (5, 0.25)


def test_first_seeds_come_first_then_learning_rates_then_other_seeds() -> None:
    made = study()
    tasks = plan(made, rows_of()).tasks
    order = [(t.point.name, t.seed, t.learning_rate) for t in tasks]
    assert order[:2] == [("mha", 0, 2e-3), ("per_head_rope_r2", 0, 2e-3)]
    assert order[2:6] == [(p, 0, r) for p in ("mha", "per_head_rope_r2") for r in (1e-3, 4e-3)]
    assert order[6:] == [("s_mha", 0, None)]
    assert [(p.name, n) for p, n in plan(made, rows_of()).waiting] == [("mha", 2), ("per_head_rope_r2", 2)]


def test_other_seeds_use_the_best_learning_rate_of_the_first() -> None:
    made = study()
    first = [t for t in plan(made, rows_of()).tasks if t.point.name == "mha"]
    losses = {1e-3: 2.0, 2e-3: 1.9, 4e-3: float("inf")}
    rows = [row(t, losses[t.learning_rate]) for t in first]
    rows[-1]["metrics"]["best_valid_loss"] = None  # diverged before its first evaluation
    assert chosen_rate(first, rows_of(*rows[:2])) is None
    assert chosen_rate(first, rows_of(*rows)).learning_rate == 2e-3
    tasks = [t for t in plan(made, rows_of(*rows)).tasks if t.point.name == "mha" and t.seed]
    assert [(t.seed, t.learning_rate) for t in tasks] == [(1, 2e-3), (2, 2e-3)]
    # A run that diverged after good evaluations is not chosen while another did not.
    rows[-1]["metrics"]["best_valid_loss"], rows[-1]["study"]["status"] = 1.5, "diverged"
    assert chosen_rate(first, rows_of(*rows)).learning_rate == 2e-3
    assert list(collect(made, rows_of(*rows)).find("mha").measured) == [0]
    diverged = [r | {"study": r["study"] | {"status": "diverged"}} for r in rows]
    assert chosen_rate(first, rows_of(*diverged)).learning_rate == 4e-3
    # Rows of other data choose nothing.
    assert not [t for t in plan(made, rows_of(*rows), "0" * 64).tasks if t.point.name == "mha" and t.seed]


def test_a_row_counts_as_done_by_its_own_config_whatever_its_name_and_format(tmp_path) -> None:
    made = study()
    task = plan(made, rows_of()).tasks[0]
    old = row(task) | {"name": "renamed"}
    old["config"]["format"] = 1
    del old["config"]["config"]["judge"]  # what format 1 did not have
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "any.json").write_text(json.dumps(old))
    found = gather(tmp_path, with_committed=False)
    assert found.done(task.key)["name"] == "renamed" and not found.unreadable
    assert found.done(task.key, "f" * 64) and not found.done(task.key, "0" * 64)


def test_a_finished_row_wins_over_a_failed_one_and_the_newest_of_equals(tmp_path) -> None:
    task = plan(study(), rows_of()).tasks[0]
    (tmp_path / "rows").mkdir()
    done = row(task, 2.0) | {"time": "2026-01-01"}
    for number, each in enumerate(
        (done, row(task, 3.0, "failed") | {"time": "2026-03-01"}, row(task, 2.5) | {"time": "2026-02-01"})
    ):
        (tmp_path / "rows" / f"{number}.json").write_text(json.dumps(each))
    assert gather(tmp_path, with_committed=False).done(task.key)["metrics"]["best_valid_loss"] == 2.5


def test_the_key_names_what_is_computed_and_not_where() -> None:
    config = plan(study(), rows_of()).tasks[0].config
    same = config_lib.replace(config, **{"data.cache_dir": "/elsewhere", "sample.seed": 3})
    other = config_lib.replace(config, **{"train.seed": 3})
    assert key_of(same) == key_of(config) != key_of(other)


def test_costs_come_from_rows_of_the_same_device_or_from_the_stated_figures() -> None:
    stated = dict(plan_device="cpu x86_64", plan_flops=1e9, plan_overhead_s=7.0, plan_step_s=0.05, plan_experts=3.0)
    made = study(**stated)
    task = plan(made, rows_of()).tasks[0]
    cost = cost_model(made, [row(task, device="another")])
    assert (cost.flops_per_s, cost.overhead_s, cost.measured, cost.experts) == (1e9, 7.0, 0, 3.0)
    flops = 6 * 10 * 4 * 32  # at least 6 per parameter and token, in 10 steps of 4 x 32
    measured = row(task)
    assert cost.step_seconds(task.config) > 10 * 0.05 + flops * measured["study"]["params"]["ffn"] / 1e9
    assert cost.seconds(task.config) == pytest.approx(cost.step_seconds(task.config) + 7)
    assert cost.seconds(task.config, 3) == pytest.approx(3 * cost.step_seconds(task.config) + 7)
    # 10 steps of 128 tokens at 1,000 tokens/s are 1.28 s, of which 10 x 0.05 are the stated time a step.
    measured["study"]["training_flops"] = 7.8e9
    shared = row(task)
    shared["study"]["sharing"] = 3
    with_experts = row(task, experts={"load": [[1.0]]})
    with_experts["study"]["training_flops"] = 1.95e9
    rows = [measured, with_experts, shared, row(task, device="another"), row(task, status="failed")]
    found = cost_model(made, rows)
    assert (found.measured, found.flops_per_s) == (2, pytest.approx(1e10))
    assert found.experts == pytest.approx(4) and found.overhead_s == pytest.approx(60 - 1.28)


def test_stated_figures_are_carried_over_to_a_device_of_a_known_peak() -> None:
    made = study()  # planned for an H100
    rate = {d: cost_model(made, [], d).flops_per_s for d in ("NVIDIA H200", "NVIDIA A100-SXM4-40GB", "cpu x86_64")}
    assert rate["NVIDIA H200"] == made.plan_flops  # the same peak
    assert rate["NVIDIA A100-SXM4-40GB"] == pytest.approx(made.plan_flops * 312 / 989)
    assert rate["cpu x86_64"] == 2e10
    tasks = plan(made, rows_of()).tasks
    rows = rows_of(row(tasks[0], device="NVIDIA H200"), row(tasks[1], device=made.plan_device))
    text = describe(made, plan(made, rows), rows, cost_model(made, rows.by_key.values()))
    assert f"Runs that are done, wherever: 1 on {made.plan_device}; 1 on NVIDIA H200." in text


def test_the_plan_in_words_counts_what_is_left() -> None:
    made = study(plan_flops=1e9, plan_overhead_s=60.0, plan_step_s=0.0)
    first = plan(made, rows_of()).tasks[0]
    rows = rows_of(row(first))
    text = describe(made, plan(made, rows), rows, cost_model(made, []))
    assert "an estimate from" in text and "another device" not in text  # whose device is not known
    assert "another device, gpu:" in describe(made, plan(made, rows), rows, cost_model(made, []), "gpu")
    assert "another" not in describe(made, plan(made, rows), rows, cost_model(made, []), made.plan_device)
    assert text.count("| to do |") == 6 and text.count("| done |") == 1
    assert f"Done are those of data {'f' * 12}: on other data none is." in text
    assert "Done are" not in describe(made, plan(made, rows_of()), rows_of(), cost_model(made, []))
    assert text.count("waits for its learning rate") == 2
    lines = text.splitlines()
    end, last = (number for number, line in enumerate(lines) if "minutes in all" in line)
    assert last == len(lines) - 1 and lines[last] == lines[end]
    total, left = (float(lines[end].split()[i]) for i in (0, 4))
    assert 11 < total < 12 and left == pytest.approx(total - 1, abs=0.15)
    (one, *_, first_sum), (two, runs, _, all_before, shared) = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[end - 3 : end - 1]
    )
    assert (one, two, runs) == ("1", "2", "1") and float(first_sum) < float(shared)
    assert float(all_before) == left and float(shared) == pytest.approx(left / 3, abs=0.1)


def test_studies_share_the_runs_that_they_have_in_common() -> None:
    """A row of one study counts in the others: the same training has the same key."""
    keys = {}
    for name in ("paper_a", "paper_b", "optimizer", "sizes"):
        made = grid.from_config_dict(load_config_dict(f"study_{name}"))
        keys[name] = {task.point.name: task.key for task in plan(made, rows_of()).tasks if task.seed == 0}
    assert keys["paper_a"]["s_mha"] == keys["paper_b"]["s_mha"] == keys["sizes"]["s_mha"]
    assert keys["paper_a"]["s_joint_rope_r2"] == keys["paper_b"]["s_mla_rope"]
    assert keys["paper_a"]["joint_rope_r2"] == keys["paper_b"]["mla_rope"]
    made = grid.from_config_dict(load_config_dict("study_optimizer"))
    first = {t.key for t in plan(made, rows_of()).tasks if t.point.name == "mla_rope_adamw"}
    assert keys["paper_a"]["s_joint_rope_r2"] in first and len(first) == 3


@pytest.mark.parametrize("name", study_names())
def test_every_judged_claim_has_its_points_first(name: str) -> None:
    """With priority 1 alone done, each claim that training can decide has rows of five seeds; at size m of three."""
    study_ = grid.from_config_dict(load_config_dict(name))
    rows = rows_of()
    for _ in range(2):  # seeds wait for their learning rate
        tasks = [t for t in plan(study_, rows).tasks if t.point.priority == 1]
        rows = rows_of(*(row(t, 2.0 + 0.01 * t.seed) for t in tasks))
    found = collect(study_, rows)
    for claim in CLAIMS:
        if claim.paper not in study_.papers or claim.test is None or claim.unit == "times":
            continue
        fewest = {"smoke": 0, "muon": 3}.get(study_.name, 4)
        assert fewest == 0 or claim.test(found).found.n >= fewest, claim.id


@pytest.mark.parametrize("name", [n for n in study_names() if n != "study_smoke"])
def test_the_long_form_is_the_same_study_with_longer_runs(name: str) -> None:
    short, long = (grid.from_config_dict(load_config_dict(name + form)) for form in ("", ":long"))
    assert long.name == f"{short.name}_long" and {p.name for p in long.points} == {p.name for p in short.points}
    model = CostModel("gpu", 3.4e14, 0.004, 2.0, 25.0, 0)
    cost = [sum(model.seconds(t.config) for t in plan(s, rows_of()).tasks) for s in (short, long)]
    assert cost[1] > 1.2 * cost[0]
    with pytest.raises(UserError, match="shrot.*is not one of short, long"):
        load_config_dict(f"{name}:shrot")


@pytest.mark.parametrize("name", ["paper_a", "paper_b"])
def test_on_files_of_stories_the_best_checkpoint_counts_and_both_papers_share_runs(name: str) -> None:
    made = grid.from_config_dict(load_config_dict(f"study_{name}:files"))
    assert made.name == f"{name}_files" and made.title.endswith(", on files of stories")
    assert {tier.fact_stories for tier in made.tiers} == {0}
    for task in plan(made, rows_of()).tasks:
        assert (task.config.model.dropout, task.config.tokenizer.vocab_size) == (0.1, 8192)
        assert task.config.checkpoint.every == 100
    shared = {"mha": "mha", "mha_rope": "mha_rope", "joint_rope_r2" if name == "paper_a" else "mla_rope": "mla_rope"}
    other = grid.from_config_dict(load_config_dict("study_paper_b:files"))
    points = {p.name: p for p in other.points}
    for task in plan(made, rows_of()).tasks:
        if twin := shared.get(task.point.name):
            assert task.key == key_of(other.config(points[twin], task.seed))
    with pytest.raises(UserError, match="flies.*is not one of short, long, files"):
        load_config_dict(f"study_{name}:flies")


def test_both_matched_sets_are_trained_on_files_and_matched_at_their_vocabulary() -> None:
    made = grid.from_config_dict(load_config_dict("study_paper_b:files"))
    assert {p.tier for p in made.points} == {"headline"} and {p.seeds for p in made.points} == {(0, 1, 2)}
    priorities = {p.name: p.priority for p in made.points}
    assert priorities.pop("mha_rope") == 2 and set(priorities.values()) == {1}
    assert set(priorities) == {"mha", "mla_rope", "moe_mha", "moe_mla_rope", "moe_mha_flops", "moe_mla_rope_flops"}
    models = {p.name: dataclasses.replace(made.config(p, 0).model, vocab_size=8192) for p in made.points}
    total = {name: accounting.params(model)["total"] for name, model in models.items()}
    active = {name: accounting.params(model)["active"] for name, model in models.items()}
    for name in ("moe_mha", "moe_mla_rope"):  # the nearest width: one more or less is further off
        assert total[name] == pytest.approx(total["mha"], rel=0.01) and active[name] < 0.55 * active["mha"]
        for step in (-1, 1):
            other = dataclasses.replace(models[name], d_expert=models[name].d_expert + step)
            assert abs(accounting.params(other)["total"] - total["mha"]) > abs(total[name] - total["mha"])
    for name in ("moe_mha_flops", "moe_mla_rope_flops"):  # 8 x 256 hidden units a token, as dense
        assert active[name] == pytest.approx(active["mha"], rel=0.01) and total[name] > 4 * total["mha"]


def test_only_some_points_are_planned_and_reported_when_asked_for() -> None:
    everything = grid.from_config_dict(load_config_dict("study_muon"))
    c = load_config_dict("study_muon")
    c.only = ("mla_rope_muon", "mha_rope_muon")
    some = grid.from_config_dict(c)
    assert {p.name for p in some.points} == set(c.only)
    keys = {task.key for task in plan(some, rows_of()).tasks}
    assert keys < {task.key for task in plan(everything, rows_of()).tasks}  # the same runs: their rows count for all
    assert "`only` asked for: mla_rope_muon, mha_rope_muon" in tables.about(collect(some, gather(None)))
    assert "`only`" not in tables.about(collect(everything, gather(None)))
    c.only = ("mla_rope_muno",)
    with pytest.raises(UserError, match="only has 'mla_rope_muno', which is no point .did you mean mla_rope_muon"):
        grid.from_config_dict(c)


def test_points_that_need_a_newer_version_are_shown_and_skipped() -> None:
    c = declared()
    declare.point(c, "future", "no_such_config", "grid", {"model.no_such_knob": 1}, needs="model.ffn=quantum")
    made = grid.from_config_dict(c)
    found = plan(made, rows_of())
    assert [p.name for p in found.missing] == ["future"] and "future" not in {t.point.name for t in found.tasks}
    assert "needs model.ffn=quantum" in describe(made, found, rows_of(), cost_model(made, []))


BAD = [
    (lambda c: c.points.mha.update(tier="hedline"), "points.mha.tier is 'hedline'"),
    (lambda c: c.points.mha.update(seeds=()), "points.mha.seeds"),
    (lambda c: c.points.mha.update(seeds=(1, 1)), "points.mha.seeds"),
    (lambda c: c.points.mha.update(seeds=(-1,)), "points.mha.seeds"),
    (lambda c: c.points.mha.update(config="mhaa"), "did you mean mha?"),
    (lambda c: c.points.mha.update(learning_rates=(-1.0,)), "optim.learning_rate"),
    (lambda c: c.points.mha.update(learning_rates=(1e-3, 1e-3)), "points.mha.learning_rates is (0.001, 0.001)"),
    (lambda c: c.tiers.headline.update(learning_rates=(2e-3, 1e-3, 2e-3)), "list different ones"),
    (lambda c: c.points.mha.update(needs="moe"), "points.mha.needs"),
    (lambda c: c.update(reference="mah"), "did you mean"),
    (lambda c: c.update(papers=("Z",)), "papers has 'Z'"),
    (lambda c: c.update(name="a/b"), "name is 'a/b'"),
    (lambda c: declare.point(c, "/tmp/elsewhere", "mha", "grid", {}), "points./tmp/elsewhere is '/tmp/elsewhere'"),
    (lambda c: declare.point(c, "a\\b", "mha", "grid", {}), "it names files"),
    (lambda c: declare.point(c, "a\nb", "mha", "grid", {}), "it names files"),
    (lambda c: c.update(plan_flops=0.0), "plan_flops"),
    (lambda c: c.tiers.grid.update(size="xxl"), "xxl"),
    (lambda c: c.tiers.grid.update(lengths=(0,)), "lengths"),
    (lambda c: declare.common(c, {"model.d_modell": 3}), "did you mean model.d_model?"),
    (lambda c: declare.point(c, "x", "mha", "grid", {"model.dropout": 0.2}), "another model.dropout"),
    (lambda c: declare.point(c, "x", "mha", "grid", {"tokenizer.vocab_size": 400}), "another tokenizer"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[says for _, says in BAD])
def test_a_study_that_cannot_be_is_refused_in_a_sentence(spoil, says: str) -> None:
    c = declared()
    spoil(c)
    with pytest.raises(UserError) as caught:
        grid.from_config_dict(c)
    assert says in str(caught.value) and str(caught.value).endswith(".")


def test_an_unknown_or_missing_setting_is_refused() -> None:
    c = declared()
    with c.unlocked():
        c.retries = 3
    with pytest.raises(UserError, match="retries is not a knob"):
        grid.from_config_dict(c)
    c = declared()
    with c.unlocked():
        del c.title
    with pytest.raises(UserError, match="title is missing"):
        grid.from_config_dict(c)
    with pytest.raises(UserError, match="is no study"):
        grid.from_config_dict(load_config_dict("mha"))

"""study.plots: what a reader can tell apart, by the artists drawn and not by the files."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from study_rows import PAPER_SAYS, by_name, claims_study, done, study

from mla_jax.study import plots, series
from mla_jax.study.grid import Study
from mla_jax.study.results import Results, collect
from mla_jax.study.rows import Rows, best_loss
from mla_jax.study.series import Line


def lines_of(count: int, points: int, spread: float = 0.0) -> list[Line]:
    x = tuple(map(float, range(points)))
    return [Line(f"line {n}", x, x, tuple(v - spread for v in x), tuple(v + spread for v in x)) for n in range(count)]


def looks(figure: Any) -> list[tuple]:
    drawn = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    drawn += [bars.lines[0] for bars in figure.axes[0].containers]
    return [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in drawn]


def test_no_two_lines_of_a_plot_look_alike() -> None:
    """Twelve curves in ten colours had two pairs alike."""
    for count, marks in ((12, False), (12, True), (90, False)):
        drawn = looks(plots.draw(lines_of(count, 3), "x", "y", marks=marks))
        assert len(drawn) == len(set(drawn)) == count
    assert all(mark == "None" for _, _, mark in looks(plots.draw(lines_of(12, 3), "x", "y")))
    for spread in (0.0, 0.1):
        points = looks(plots.draw(lines_of(30, 1, spread), "x", "y"))
        assert len(points) == len(set(points)) == 30


def test_only_a_point_with_an_interval_has_an_error_bar() -> None:
    """A series of one batch has none, and its legend showed one."""
    assert not plots.draw(lines_of(2, 1), "x", "y").axes[0].containers
    assert len(plots.draw(lines_of(2, 1, 0.1), "x", "y").axes[0].containers) == 2


def with_other_name(found: Results, name: str, other: str, seeds: int) -> Results:
    """Beside the point `name` one that has the rows of its first seeds alone."""
    p = found.find(name)
    rows = {seed: p.by_seed[seed] for seed in sorted(p.by_seed)[:seeds]}
    again = dataclasses.replace(p, point=dataclasses.replace(p.point, name=other), by_seed=rows)
    return dataclasses.replace(found, points=(again, *found.points))


def test_rows_with_two_names_are_drawn_once() -> None:
    """A sweep's point may be a judged one: their lines lay on each other, and one name was not to be seen."""
    made = study(rates=())
    found = collect(made, done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0}, noise=0.01)))
    found = with_other_name(found, "mha", "again", seeds=1)
    expected = ["mha = again", "per_head_rope_r2"]
    for drawn in (series.pareto, series.curves, series.positions):
        assert [line.label for line in drawn(found, "headline")] == expected
    assert [line.label for line in series.facts(found, "headline")] == [*expected, "blind guess"]
    (mha, _) = series.pareto(found, "headline")
    assert mha.low[0] < mha.y[0], "the point with more seeds is the one drawn"
    assert [p.name for p in found.points[:2]] == ["again", "mha"], "tables have both"
    apart = dataclasses.replace(found, points=(*found.points, dataclasses.replace(found.points[0], tier="grid")))
    assert "again" in [p.label for p in apart.distinct()], "another tier's plots need it"


def recalls(made: Study, loss: dict[str, float]) -> Rows:
    """Runs whose better losses are those of facts recalled: right answers fall with loss, learning rate and seed."""
    rows = done(made, by_name(loss, noise=0.01))
    for row in rows.by_key.values():
        for fact in row["facts"]:
            long_ago = fact["distance"] in ("050-099", "100-", ">=50")
            fact["accuracy"] = 3 - row["metrics"]["best_valid_loss"] if long_ago else 0.99
    return rows


def test_recall_has_every_run_of_every_rate_and_a_correlation() -> None:
    made = study(rates=(1e-3, 2e-3))
    found = collect(made, recalls(made, {"mha": 2.0, "per_head_rope_r2": 2.1}))
    lines = series.recall(found, "headline")
    assert [line.label for line in lines] == ["mha", "per_head_rope_r2"]
    assert [len(line.x) for line in lines] == [4, 4], "three seeds, and the first at another rate"
    assert all(list(line.x) == sorted(line.x) for line in lines)
    assert series.correlation(lines) == pytest.approx(-1.0)
    assert np.isnan(series.correlation(lines[:0]))
    pictures = {name: (caption, figure) for name, caption, figure in plots._figures(found)}
    caption, figure = pictures["recall"]
    assert "8 runs" in caption and "r = -1.00" in caption
    assert [line.get_linestyle() for line in figure.axes[0].get_lines()] == ["None", "None"]


def test_recall_is_of_finished_runs_of_one_training_that_were_asked() -> None:
    """Not of a diverged run, of another tier, or of rows without the question: "r = nan" stood above an empty plot."""
    made = study(rates=())
    rows = recalls(made, {"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0})
    for row in rows.by_key.values():
        if (row["name"], row["study"]["seed"]) == ("mha", 1):
            row["study"]["status"] = "diverged"
        if (row["name"], row["study"]["seed"]) == ("mha", 2):
            row["facts"] = [fact for fact in row["facts"] if fact["distance"] != ">=50"]
    found = collect(made, rows)
    assert [(line.label, len(line.x)) for line in series.recall(found, "headline")] == [
        ("mha", 1),
        ("per_head_rope_r2", 3),
    ]
    for row in rows.by_key.values():
        row["facts"] = []
    assert "recall" not in [name for name, _, _ in plots._figures(collect(made, rows))]


def test_the_band_of_facts_is_what_the_seeds_do() -> None:
    """An interval around the mean of a run that recalls and two that do not reached from below 0 to above 1."""
    made = study(rates=())
    found = collect(made, recalls(made, {"mha": 2.0}))
    mha = series.facts(found, "headline")[0]
    assert (mha.low[0], mha.y[0], mha.high[0]) == pytest.approx((0.99, 0.99, 0.99))
    assert (mha.low[-1], mha.y[-1], mha.high[-1]) == pytest.approx((0.96, 0.98, 1.0))


def test_a_sweep_keeps_the_rank_whose_rows_a_judged_point_has() -> None:
    made = claims_study()
    found = collect(made, done(made, by_name(PAPER_SAYS, noise=0.01)))
    judged = with_other_name(found, "per_head_rope_r4", "judged", seeds=3)
    (before,), (after,) = series.ranks(found), series.ranks(judged)
    assert after == before
    labels = [line.label for line in series.pareto(judged, "headline")]
    assert "per_head_rope, ranks; judged = per_head_rope_r4" in labels


@pytest.mark.parametrize(("load", "low", "high", "shown"), [
    ([[1.0, 1.02, 0.98]], 0.9, 1.1, 0.9),  # the least that is spanned
    ([[0.7, 1.2, 1.1]], 0.7, 1.3, 0.7),
    ([[0.0, 0.0, 3.0]], -1.0, 3.0, 0.0),  # the colours stay symmetric, the bar ends at no load
])  # fmt: skip
def test_colours_of_expert_load_span_the_data(load: list, low: float, high: float, shown: float) -> None:
    figure = plots.heat_maps([("a", np.array(load)), ("b", np.ones((1, 3)))])
    for axis in figure.axes[:2]:
        assert axis.images[0].get_clim() == pytest.approx((low, high))
    bar = figure.axes[2]
    assert bar.get_ylabel() and bar.get_ylim() == pytest.approx((shown, high))


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 9, 24])
def test_layers_of_expert_load_have_labels_that_do_not_overlap(layers: int) -> None:
    figure = plots.heat_maps([(name, np.ones((layers, 62))) for name in "abcdef"])
    figure.draw_without_rendering()
    for axis in figure.axes[:6]:
        boxes = [label.get_window_extent() for label in axis.get_yticklabels()]
        assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_a_wide_bar_does_not_hide_narrow_ones_and_no_band_leaves_what_was_measured() -> None:
    """Student's t put bars of three seeds, one of which had failed, below the lowest loss of any run."""
    narrow = Line("narrow", (288.0,), (1.0,), (0.95,), (1.05,))
    wide = Line("wide", (288.0,), (1.05,), (0.0,), (2.1,))
    axes = plots._pareto([narrow, wide]).axes[0]
    layers = {bars.get_label(): bars.lines[0].get_zorder() for bars in axes.containers}
    assert layers["narrow"] > layers["wide"], "at one x a wide one would hide the other"
    made = study(rates=())
    found = collect(made, done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1}, noise=0.01)))
    losses = [best_loss(row) for row in found.find("mha").measured.values()]
    for lines in (series.pareto(found, "headline"), series.curves(found, "headline")):
        assert (lines[0].low[-1], lines[0].high[-1]) == pytest.approx((min(losses), max(losses)))


def test_ticks_are_at_the_values_drawn_and_their_labels_apart() -> None:
    """Of 256, 288 and 1024 numbers a token only 256 had a tick of its own, beside an unused 512."""
    values = (32.0, 256.0, 288.0, 320.0, 1024.0)
    figure = plots._pareto([Line("a", values, values, values, values)])
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    assert tuple(axis.get_ticklocs()) == values and not len(axis.get_minorticklocs())
    assert [label.get_text().strip() for label in axis.get_ticklabels()] == ["32", "256", "288", "320", "1024"]
    text = [label.get_text() for label in axis.get_ticklabels()]
    assert [word.startswith("\n") for word in text] == [False, False, True, False, False]


def test_a_sweep_without_a_finished_run_has_no_plot() -> None:
    made = claims_study()
    rows = done(made, by_name(PAPER_SAYS))
    for row in rows.by_key.values():
        if row["name"].startswith("per_head_rope"):
            row["study"]["status"], row["metrics"]["best_valid_loss"] = "diverged", None
    found = collect(made, rows)
    assert not series.ranks(found)
    assert "per_head_rope, ranks" not in [line.label for line in series.pareto(found, "headline")]


def with_latents(found: Results, entry: str, widths: dict[str, int]) -> Results:
    """The found points' spectra are those of a latent of these widths, 4 values in the rows."""
    for p in found.points:
        for row in p.by_seed.values():
            spectrum = {"width": widths[p.name], "effective_rank": 2.0, "singular_values": [1.0, 0.5, 0.3, 0.2]}
            row["spectra"] = [spectrum | {"layer": n, "entry": e} for n in (0, 1) for e in ("k_rope", entry)]
    return found


def test_spectra_name_their_cache_entry_and_how_many_values_there_are() -> None:
    made = study(rates=())
    found = collect(made, done(made, by_name({"mha": 2.0, "per_head_rope_r2": 2.1, "s_mha": 3.0})))
    with_latents(found, "v_latent", {"mha": 32, "per_head_rope_r2": 4, "s_mha": 32})
    drawn = {name: (caption, figure.axes[0]) for name, caption, figure in plots._figures(found) if "spectrum" in name}
    assert sorted(drawn) == ["spectrum_mha", "spectrum_per_head_rope_r2", "spectrum_s_mha"]
    caption, axes = drawn["spectrum_mha"]
    assert axes.get_title() == "mha: v_latent in the cache" and axes.get_xlabel() == "direction (first 4 of 32)"
    assert "v_latent" in caption and len(axes.get_lines()) == 2
    assert drawn["spectrum_per_head_rope_r2"][1].get_xlabel() == "direction (all 4)"


def test_spectra_are_those_of_full_and_of_compressed_latents() -> None:
    """Two of each width: paper A's plots had its two full-rank points alone."""
    made = claims_study()
    found = collect(made, done(made, by_name(PAPER_SAYS)))
    narrow = ("per_head_rope_r4", "per_head_rope_r8", "per_head_rope_r32")
    with_latents(found, "c_kv", {p.name: 4 if p.name in narrow else 32 for p in found.points})
    widths = [series.held(p)[0]["width"] for p in series.latent_points(found)]
    assert sorted(widths) == [4, 4, 32, 32]
    with_latents(found, "v", {p.name: 32 for p in found.points})
    assert not series.latent_points(found), "no latent: values are in the effective ranks alone"

"""study.plots: what a reader can tell apart, by the artists drawn and not by the files."""

from typing import Any

from mla_jax.study import plots
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

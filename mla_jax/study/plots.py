"""A study's plots, drawn from `series`: PNG files in plots/."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from mla_jax import figures
from mla_jax.study import series
from mla_jax.study.results import Measured, Results
from mla_jax.study.series import Line
from mla_jax.world.questions import FAR

MANY = 8  # more lines have their legend beside the axes
EVEN = 0.1  # of the mean load: the least that the colours of a heat map span, for noise not to look like a pattern
CLOSE = 0.06  # of an axis: ticks whose labels would touch
BANDS = "bars and bands: range over seeds"
FEW_DECADES = 30.0  # times the lowest: below, a logarithmic axis has labels between its powers of ten
LAYERS = 3  # at most, that a heat map has labels for
MAPS = 9  # of expert load: the matched sets, and what balances them


def write(found: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw what there are rows for; returns (file name, caption)."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, caption, figure in _figures(found):
        figure.savefig(folder / f"{name}.png", dpi=110)
        written.append((f"{name}.png", caption))
    return written


def _figures(found: Results):
    tiers = found.tiers
    yield from _by_tier(found, "pareto", "Loss over KV cache", series.pareto, _pareto)
    yield from _by_tier(found, "curves", "Validation loss", series.curves, _curves)
    if lines := series.ranks(found):
        yield "ranks", f"Rank sweep; {BANDS}", draw(lines, "d / r", "validation loss", log_x=2, marks=True)
    if tiers and (lines := series.effective_ranks(found, tiers[0])):
        figure = draw(lines, "layer", "effective rank / width", marks=True, whole_x=True)
        yield "effective_rank", "Effective rank of the cached latents or values by layer, of the first seed", figure
    for p in series.latent_points(found):
        entry = series.held(p)[0]["entry"]
        caption = f"Singular values of {entry}, the latent of {p.label}, by layer, of the first seed"
        yield f"spectrum_{p.name}", caption, _spectrum(p)
    if tiers and (lines := series.facts(found, tiers[0])):
        figure = draw(lines, "words since the fact was stated", "right answers", marks=True, y_limits=(0, 1))
        yield "facts", f"Fact questions by distance; {BANDS}", figure
    if tiers and not math.isnan(r := series.correlation(lines := series.recall(found, tiers[0]))):
        label = f"right answers, facts stated {FAR} words ago"
        figure = draw(lines, label, "validation loss", marks=True, joined=False)
        runs = sum(len(line.x) for line in lines)
        yield "recall", f"Loss over recall of {runs} runs, whatever their seed and learning rate (r = {r:.2f})", figure
    if tiers and (lines := series.positions(found, tiers[0])):
        figure = draw(lines, "position", "loss", log_y=True)
        length = found.tier(tiers[0])[0].any["config"]["config"]["train"]["seq_len"]
        figure.axes[0].axvline(length, linestyle=":", color="gray")
        yield "positions", f"Loss by position in the window; dotted: the length that was trained; {BANDS}", figure
    if lines := series.sizes(found):
        figure = draw(lines, "parameters without embeddings", "validation loss", log_x=10, marks=True)
        yield "sizes", f"Loss over size; {BANDS}", figure
    if lines := series.speeds(found):
        figure = draw(lines, "batch", "decode tokens/s", log_x=2, log_y=True, marks=True)
        yield "speed", "Decode speed over the batch", figure
    if loads := series.expert_load(found):
        yield "experts", "Expert load at the end of training (1 = even)", heat_maps(loads[:MAPS])


def _by_tier(found: Results, name: str, caption: str, lines_of: Callable, drawn: Callable):
    for tier in found.tiers:
        lines = lines_of(found, tier)
        if len(lines) > 1 or (lines and len(lines[0].x) > 1):
            yield f"{name}_{tier}", f"{caption} ({tier}); {BANDS}", drawn(lines)


def _pareto(lines: list[Line]) -> Any:
    return draw(lines, "KV numbers per token and layer", "validation loss", log_x=2, marks=True)


def _spectrum(p: Measured) -> Any:
    lines, first = series.singular_values(p), series.held(p)[0]
    kept = len(lines[0].x)  # rows have the largest alone
    x_label = f"direction ({f'first {kept} of' if kept < first['width'] else 'all'} {first['width']})"
    title = f"{p.label}: {first['entry']} in the cache"
    return draw(lines, x_label, "singular value / largest", log_y=True, title=title)


def _curves(lines: list[Line]) -> Any:
    """From where the training's first quarter is over, so that what comes late can be told apart."""
    first = max(line.x[-1] for line in lines) / 4
    late = [y for line in lines for x, y in zip(line.x, line.high, strict=True) if x >= first]
    low = min(min(line.low) for line in lines)
    return draw(lines, "step", "validation loss", y_limits=(low - 0.03 * (max(late) - low), max(late)))


def draw(
    lines: list[Line], x_label: str, y_label: str, log_x: int = 0, log_y: bool = False, marks: bool = False,
    title: str = "", whole_x: bool = False, y_limits: tuple[float, float] | None = None, joined: bool = True,
    subplots: Callable = figures.subplots,
) -> Any:  # fmt: skip
    """A figure of lines with their bands; a line of one point is a mark, with an error bar where it has a band.

    log_x: base, 0 = linear; base 2 has its ticks where the points are. whole_x: ticks at whole numbers only.
    y_limits: what of y is shown; None = all. joined: False for points that are in no order. subplots: who makes the
    figure; a notebook gives pyplot's, whose figures it shows.
    """
    figure, axes = subplots(figsize=(8 + 2.5 * (len(lines) > MANY), 5), layout="constrained")
    for number, line in enumerate(lines):
        _draw_line(axes, line, number, marks, joined)
    if log_x:
        axes.set_xscale("log", base=log_x)
        axes.xaxis.set_major_formatter("{x:g}")
    if log_x == 2:
        _ticks(axes, sorted({x for line in lines for x in line.x}))
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high < FEW_DECADES * low else "")
    if whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if y_limits and y_limits[0] < y_limits[1]:
        axes.set_ylim(*y_limits)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.3)
    if len(lines) > MANY:
        figure.legend(loc="outside right upper", fontsize=7, handlelength=3)
    else:
        axes.legend(fontsize=8, handlelength=3)
    return figure


def _ticks(axes: Any, values: list[float]) -> None:
    """Ticks of a logarithmic x at these values; the label of one that is close to the last is a line lower."""
    near, lower = (values[-1] / values[0]) ** CLOSE, False
    labels = [f"{values[0]:g}"]
    for before, value in pairwise(values):
        lower = value / before < near and not lower
        labels.append("\n" * lower + f"{value:g}")
    axes.set_xticks(values, labels)
    axes.set_xticks([], minor=True)


def _draw_line(axes: Any, line: Line, number: int, marks: bool, joined: bool) -> None:
    single, interval = len(line.x) == 1, line.low != line.high
    look = figures.look(number, marks or single) | ({"linestyle": "none"} if single or not joined else {})
    if single and interval:
        error = [[line.y[0] - line.low[0]], [line.high[0] - line.y[0]]]
        above = 2 + 1 / (1 + line.high[0] - line.low[0])  # a narrow interval is seen before a wide one at the same x
        axes.errorbar(line.x, line.y, yerr=error, **look, capsize=3, label=line.label, zorder=above)
        return
    axes.plot(line.x, line.y, **look, markersize=6 if single else 5, label=line.label)
    if interval:
        axes.fill_between(line.x, line.low, line.high, color=look["color"], alpha=0.15, linewidth=0)


def heat_maps(loads: list[tuple[str, Any]]) -> Any:
    """Load of every expert (columns) in every layer (rows), a map a point; white is even, blue is less, red more."""
    reach = max(EVEN, *(float(abs(load - 1).max()) for _, load in loads))
    height = 1.2 + 1.1 * len(loads)
    figure, axes = figures.subplots(len(loads), squeeze=False, figsize=(8, height))
    for (name, load), axis in zip(loads, axes[:, 0], strict=True):
        image = axis.imshow(load, aspect="auto", cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach)
        axis.set_title(name, fontsize=9)
        axis.set(ylabel="layer", yticks=range(0, len(load), -(-len(load) // LAYERS)))
    axes[-1, 0].set_xlabel("expert")
    bar = figure.colorbar(image, ax=list(axes[:, 0]), label="load / mean load of the layer")
    bar.ax.set_ylim(bottom=max(0.0, 1 - reach))  # colours are symmetric; no load is negative
    return figure

"""plots/experts.png: which experts of which layer are used, and how the balance moved over the run."""

from pathlib import Path
from typing import Any

import numpy as np

from mla_jax import figures
from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder


def plot_experts(folder: RunFolder, first_layer: int = 0) -> Path | None:
    """From metrics.jsonl's "experts" rows; None when there is none. first_layer: the model's first with experts.

    Three panels: the load of every expert of every layer at the end, dead ones crossed; largest over mean load of each
    layer over the run; the load of every expert of the layer that is least even at the end, over the run.
    """
    rows = [row for row in read_rows(folder.metrics) if row["kind"] == "experts"]
    if not rows:
        return None
    from matplotlib import cm, colormaps, colors

    load, steps = np.asarray(rows[-1]["load"]), [row["step"] for row in rows]
    largest = np.asarray([row["max_load"] for row in rows])
    layers = [first_layer + index for index in range(len(load))]
    size = (8, 9 + 0.2 * max(0, len(load) - 8))
    figure, (heat, lines, history) = figures.subplots(3, figsize=size)
    _heat_map(heat, load, layers)
    heat.set(ylabel="layer", title=f"{folder.name}: load of the {rows[-1]['steps']} steps up to step {steps[-1]}")
    cmap = colormaps["viridis"].resampled(len(load))  # layers have an order
    for index in range(len(load)):
        lines.plot(steps, largest[:, index], marker=".", color=cmap(index))
    norm = colors.BoundaryNorm(np.arange(len(load) + 1) + first_layer - 0.5, len(load))
    figure.colorbar(cm.ScalarMappable(norm, cmap), ax=lines, label="layer", ticks=layers)
    lines.axhline(1.5, linestyle=":", color="gray")
    lines.set(ylabel="largest over mean load", title="balance of each layer (dotted: 1.5)", yscale="log")
    top = max(2.0, 1.15 * float(largest.max()))
    ticks = [tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 50) if tick <= top]
    lines.set_ylim(0.97, top)
    lines.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    lines.minorticks_off()
    worst = int(largest[-1].argmax())
    _heat_map(history, np.asarray([row["load"][worst] for row in rows]), steps)
    history.set(ylabel="optimizer step", title=f"layer {layers[worst]}, the least even at the end, over the run")
    for axes in (heat, history):
        axes.set_xlabel("expert (crossed: not used)")
    lines.set_xlabel("optimizer step")
    folder.plots.mkdir(exist_ok=True)
    path = folder.plots / "experts.png"
    figure.savefig(path, dpi=120)
    return path


def _heat_map(axes: Any, load: np.ndarray, names: list[int]) -> None:
    """load [rows, E] over the mean: white is even, blue is less, red more; a cross where no token went."""
    from matplotlib.colors import TwoSlopeNorm

    norm = TwoSlopeNorm(1, 0, max(2.0, float(load.max())))
    image = axes.imshow(load, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="load over the mean")
    shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), 12)).round().astype(int))
    axes.set_yticks(shown, [names[index] for index in shown])
    row, expert = np.nonzero(load == 0)
    axes.plot(expert, row, "x", color="gold", markersize=4, linestyle="none")

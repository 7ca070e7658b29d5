"""plots/experts.png: which experts of which layer are used, and how the balance moved over the run."""

from pathlib import Path

import numpy as np

from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder


def plot_experts(folder: RunFolder) -> Path | None:
    """From metrics.jsonl's "experts" rows: a heat map (layer x expert) of the last one, and max/mean load over steps.

    None when there is no such row.
    """
    rows = [row for row in read_rows(folder.metrics) if row["kind"] == "experts"]
    if not rows:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    load = np.asarray(rows[-1]["load"])
    figure, (heat, lines) = plt.subplots(2, 1, figsize=(8, 7), layout="constrained")
    image = heat.imshow(load, aspect="auto", cmap="viridis", vmin=0, vmax=max(2.0, float(load.max())))
    figure.colorbar(image, ax=heat, label="load over the mean")
    title = f"{folder.name}: the {rows[-1]['steps']} steps before step {rows[-1]['step']}"
    heat.set(xlabel="expert", ylabel="layer with experts", title=title, yticks=range(len(load)))
    steps = [row["step"] for row in rows]
    for layer in range(len(load)):
        lines.plot(steps, [row["max_load"][layer] for row in rows], marker=".", label=f"layer {layer}")
    lines.axhline(1.5, linestyle=":", color="gray")
    lines.set(xlabel="optimizer step", ylabel="largest over mean load", title="balance (dotted: 1.5)", ylim=(1, None))
    lines.legend(fontsize=7, ncols=3)
    folder.plots.mkdir(exist_ok=True)
    path = folder.plots / "experts.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path

"""Rows of a benchmark as a Markdown table, with the ratios that need two rows, and as plots."""

from pathlib import Path
from typing import Any

from mla_jax import figures
from mla_jax.bench.points import FULL_RANK, MHA

Row = dict[str, Any]


def key(row: Row) -> tuple:
    """What a row measured: suite, point, label, batch, context."""
    m = row["metrics"]
    return (m["suite"], m["point"], m["label"], m["batch"], m["context"])


def with_ratios(rows: list[Row]) -> list[Row]:
    """Rows with `over_mha` and `over_full_rank`: tokens/s over that point's at the same suite, batch and context.

    Only rows of one device are compared. The reference is the row without a label (the execution form chosen).
    """
    plain = [row for row in rows if row["metrics"].get("tokens_per_s") and not row["metrics"]["xla_flags"]]
    speeds = {(key(row), row["device"]): row["metrics"]["tokens_per_s"] for row in plain}
    found = []
    for row in rows:
        m = dict(row["metrics"])
        for field, reference in (("over_mha", MHA), ("over_full_rank", FULL_RANK)):
            other = speeds.get(((m["suite"], reference, "", m["batch"], m["context"]), row["device"]))
            if other and m.get("tokens_per_s") and m["suite"] in ("decode", "prefill", "train"):
                m[field] = m["tokens_per_s"] / other
        found.append(row | {"metrics": m | _over_peer(m, row["device"], speeds)})
    return found


# Label of our row in the suite peers -> how the labels begin that it is compared with.
_PEERS = {"ours, whole call": "hf ", "ours, steps": "torch "}


def _over_peer(m: dict[str, Any], device: str, speeds: dict[tuple, float]) -> dict[str, float]:
    """over_peer: our tokens/s over the peer's at the same job."""
    begins = _PEERS.get(m["label"])
    if m["suite"] != "peers" or begins is None or not m.get("tokens_per_s"):
        return {}
    for ((suite, point, label, batch, context), where), speed in speeds.items():
        same = (suite, point, batch, context, where) == ("peers", m["point"], m["batch"], m["context"], device)
        if same and label.startswith(begins):
            return {"over_peer": m["tokens_per_s"] / speed}
    return {}


_COLUMNS = (
    ("ms", "ms", "{:.4g}"),
    ("ms_low", "low", "{:.4g}"),
    ("ms_high", "high", "{:.4g}"),
    ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ("cache_bytes_per_token", "cache B/token", "{:,}"),
    ("cache_bytes", "cache bytes", "{:,}"),
    ("peak_bytes", "peak bytes", "{:,}"),
    ("of_copy", "of copy bandwidth", "{:.1%}"),
    ("over_mha", "over MHA", "{:.2f}x"),
    ("over_full_rank", "over r=d", "{:.2f}x"),
    ("over_peer", "over the peer", "{:.2f}x"),
    ("over_forward", "over forward", "{:.2f}x"),
    ("mfu", "MFU", "{:.1%}"),
    ("ran_batch", "largest batch that ran", "{:,}"),
    ("largest_batch", "in closed form", "{:,}"),
    ("relative_error", "relative error", "{:.1e}"),
)


def markdown(rows: list[Row]) -> str:
    """One table a suite, with the columns that its rows have, and what was skipped."""
    parts = []
    rows = with_ratios(rows)
    for suite in dict.fromkeys(row["metrics"]["suite"] for row in rows):
        own = [row for row in rows if row["metrics"]["suite"] == suite]
        columns = [c for c in _COLUMNS if any(row["metrics"].get(c[0]) is not None for row in own)]
        parts.append(f"## {suite}\n")
        parts.append(
            "| point | batch x context | form |" + "".join(f" {title} |" for _, title, _ in columns) + " note |"
        )
        parts.append("|---|---|---|" + "---|" * (len(columns) + 1))
        parts += [_line(row["metrics"], columns) for row in own]
        parts.append("")
    if rows:
        first = rows[0]
        versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("jax", "jaxlib", "flax"))
        parts.append(f"Device: {', '.join(dict.fromkeys(row['device'] for row in rows))}; {versions}.")
        parts.append(f"Commands: {'; '.join(f'`{c}`' for c in dict.fromkeys(row['command'] for row in rows))}.")
    return "\n".join(parts) + "\n"


def _line(m: dict[str, Any], columns: list[tuple[str, str, str]]) -> str:
    form = " ".join(str(m[name]) for name in ("decode_impl", "dtype") if m.get(name))
    cells = [text.format(m[name]) if m.get(name) is not None else "-" for name, _, text in columns]
    label = f" ({m['label']})" if m["label"] else ""
    label += f" `{m['xla_flags']}`" if m["xla_flags"] else ""
    shape = f"{m['batch']} x {m['context']}" if m["batch"] else f"{m['context']}"
    note = m.get("skipped") or m.get("failed") or m.get("note") or ""
    return f"| {m['point']}{label} | {shape} | {form or '-'} | {' | '.join(cells)} | {note} |"


def plots(rows: list[Row], folder: Path) -> list[Path]:
    """tokens_over_batch.png, roofline.png (rate over copy bandwidth by bytes a step) and, where rows of runs carry a
    loss, cache_over_loss.png; only those that have something to show."""
    decode = [r["metrics"] for r in rows if r["metrics"]["suite"] == "decode" and r["metrics"].get("tokens_per_s")]
    plain = [m for m in decode if not m["label"] and not m["xla_flags"]]
    drawn = []

    def figure(name: str, series: dict[str, list[tuple[float, float]]], x: str, y: str, log: bool = True) -> None:
        if not series:
            return
        fig, axes = figures.subplots(figsize=(7, 4.5))
        for number, (label, values) in enumerate(series.items()):
            axes.plot(*zip(*sorted(values), strict=True), **figures.look(number, marks=True), label=label)
        if log:
            axes.set_xscale("log")
        if name == "tokens_over_batch":
            axes.set_yscale("log")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        fig.savefig(folder / f"{name}.png", dpi=120)
        drawn.append(folder / f"{name}.png")

    by_batch: dict[str, list[tuple[float, float]]] = {}
    by_bytes: dict[str, list[tuple[float, float]]] = {}
    by_loss: dict[str, list[tuple[float, float]]] = {}
    for m in plain:
        by_batch.setdefault(f"{m['point']}, {m['context']}", []).append((m["batch"], m["tokens_per_s"]))
        if m.get("of_copy"):
            by_bytes.setdefault(m["point"], []).append((m["step_bytes"], m["of_copy"]))
        if m.get("valid_loss") is not None:
            by_loss[m["point"]] = [(m["cache_bytes_per_token"], m["valid_loss"])]
    figure("tokens_over_batch", by_batch, "batch", "tokens/s")
    figure("roofline", by_bytes, "bytes that a step has to move", "share of the copy bandwidth")
    figure("cache_over_loss", by_loss, "cache bytes per token", "validation loss", log=False)
    return drawn

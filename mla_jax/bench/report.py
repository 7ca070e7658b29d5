"""Rows of a benchmark as a Markdown table, with the ratios that need two rows, and as plots.

    python -m mla_jax.bench.report OUT ROWS.jsonl ... [STUDY.jsonl ...]

makes both again from rows, nothing measured; rows of `--mode study` give the losses of cache_over_loss.png.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mla_jax import figures
from mla_jax.bench.decode import ALL_METHODS
from mla_jax.bench.points import FULL_RANK, MHA
from mla_jax.bench.settings import QUICK_CAVEAT
from mla_jax.errors import UserError, run_command
from mla_jax.files import write_text
from mla_jax.markdown import table
from mla_jax.rows import read_rows

Row = dict[str, Any]
Series = dict[str, list[tuple[float, float]]]  # name -> points
TABLE = "report.md"


def key(row: Row) -> tuple:
    """What a row measured: suite, point, label, batch, context."""
    m = row["metrics"]
    return (m["suite"], m["point"], m["label"], m["batch"], m["context"])


def with_ratios(rows: list[Row]) -> list[Row]:
    """Rows with `over_mha`, `over_full_rank` (tokens/s over those of that point) and `over_peer` (over the peer's).

    Only rows of one suite, model but for attention, shape and device are compared. The reference is a row without a
    label (the execution form chosen).
    """
    plain = [row for row in rows if row["metrics"].get("tokens_per_s") and not row["metrics"].get("xla_flags")]
    found = []
    for row in rows:
        m, ratios = row["metrics"], {}
        if m["suite"] in ("decode", "prefill", "train"):
            for field, reference in (("over_mha", MHA), ("over_full_rank", FULL_RANK)):
                named = [r for r in plain if (r["metrics"]["point"], r["metrics"]["label"]) == (reference, "")]
                ratios[field] = _over(row, named)
        elif m["suite"] == "peers" and (begins := _PEERS.get(m["label"])):
            peers = [r for r in plain if r["metrics"]["label"].startswith(begins)]
            ratios["over_peer"] = _over(row, [r for r in peers if _config(r) == _config(row)])
        found.append(row | {"metrics": m | {field: ratio for field, ratio in ratios.items() if ratio}})
    return found


# Label of our row in the suite peers -> how the labels begin that it is compared with.
_PEERS = {"ours, whole call": "hf ", "ours, steps": "torch "}


def _over(row: Row, others: list[Row]) -> float | None:
    """tokens/s of a row over that of the one of `others` that measured the same: one of its own process before the
    last of them, since files are put together from several (the copy bandwidth is measured once in each)."""
    m = row["metrics"]
    same = [other["metrics"] for other in others if _where(other) == _where(row)]
    near = [other for other in same if other.get("copy_bytes_per_s") == m.get("copy_bytes_per_s")]
    return m["tokens_per_s"] / (near or same)[-1]["tokens_per_s"] if same and m.get("tokens_per_s") else None


def _where(row: Row) -> tuple:
    m = row["metrics"]
    return (m["suite"], m.get("model"), m["batch"], m["context"], row["device"])


def _config(row: Row) -> tuple:
    return (row["metrics"]["point"], row.get("config_hash"))


def names(rows: list[Row]) -> list[str]:
    """What to call each row: its point, with its model, device and config in brackets where the rows have several."""
    sizes, devices = ({row["metrics"].get("model") for row in rows}, {row["device"] for row in rows})
    configs: dict[tuple, set] = {}
    for row in rows:
        configs.setdefault((row["metrics"]["point"], row["metrics"].get("model")), set()).add(_config(row))
    found = []
    for row in rows:
        point, size = row["metrics"]["point"], row["metrics"].get("model")
        parts = [size] if size and len(sizes) > 1 else []
        parts += [row["device"]] if len(devices) > 1 else []
        parts += [str(row.get("config_hash"))] if len(configs[point, size]) > 1 else []
        found.append(f"{point} [{'; '.join(parts)}]" if parts else point)
    return found


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


_ALL_METHODS = (
    f'"(all methods)": tokens are drawn at temperature {ALL_METHODS.temperature} with top-k {ALL_METHODS.top_k}, top-p '
    f"{ALL_METHODS.top_p}, min-p {ALL_METHODS.min_p} and repetition penalty {ALL_METHODS.repetition_penalty} together; "
    "the other rows take the likeliest one."
)


def markdown(rows: list[Row]) -> str:
    """One table a suite, with the columns that its rows have, and what was skipped; first what to hold against them."""
    parts = []
    if quick := sum(bool(row["metrics"].get("quick")) for row in rows):
        parts.append(f"{quick} of {len(rows)} rows are of `--quick`, {QUICK_CAVEAT}.\n")
    called = list(zip(names(rows), with_ratios(rows), strict=True))
    for suite in dict.fromkeys(row["metrics"]["suite"] for row in rows):
        own = [(name, row["metrics"]) for name, row in called if row["metrics"]["suite"] == suite]
        columns = [c for c in _COLUMNS if any(m.get(c[0]) is not None for _, m in own)]
        parts.append(f"## {suite}\n")
        if any(m["label"] == "all methods" for _, m in own):
            parts.append(_ALL_METHODS + "\n")
        head = ("point", "batch x context", "form", *(title for _, title, _ in columns), "note")
        parts.append(table(head, (_cells(name, m, columns) for name, m in own)) + "\n")
    if rows:
        versions = "; ".join(dict.fromkeys(map(_versions, rows)))
        parts.append(f"Device: {', '.join(dict.fromkeys(row['device'] for row in rows))}; {versions}.")
        parts.append(f"Commands: {'; '.join(f'`{c}`' for c in dict.fromkeys(row['command'] for row in rows))}.")
    return "\n".join(parts) + "\n"


def _versions(row: Row) -> str:
    """Of what computed the row: of a peer, its own too."""
    versions = {name: row["versions"][name] for name in ("jax", "jaxlib", "flax")}
    return ", ".join(f"{name} {v}" for name, v in (versions | row["metrics"].get("peer_versions", {})).items())


def _cells(name: str, m: dict[str, Any], columns: list[tuple[str, str, str]]) -> list[str]:
    form = " ".join(str(m[field]) for field in ("decode_impl", "dtype") if m.get(field))
    cells = [text.format(m[field]) if m.get(field) is not None else "-" for field, _, text in columns]
    label = f" ({m['label']})" if m["label"] else ""
    label += f" `{m['xla_flags']}`" if m.get("xla_flags") else ""
    shape = f"{m['batch']} x {m['context']}" if m["batch"] else f"{m['context']}"
    note = m.get("skipped") or m.get("failed") or m.get("note") or ""
    return [f"{name}{label}", shape, form or "-", *cells, note]


def plots(rows: list[Row], folder: Path, trained: Sequence[Row] = ()) -> list[Path]:
    """tokens_over_batch.png, roofline.png (rate over copy bandwidth by bytes a step) and, where rows of runs carry a
    loss or rows of studies are given, cache_over_loss.png; only those that have something to show."""
    decode = [r for r in rows if r["metrics"]["suite"] == "decode" and r["metrics"].get("tokens_per_s")]
    plain = [r for r in decode if not r["metrics"]["label"] and not r["metrics"].get("xla_flags")]
    drawn = []

    def figure(name: str, series: Series, x: str, y: str, log: bool = True) -> None:
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

    by_batch: Series = {}
    by_bytes: Series = {}
    by_loss = losses(trained)
    for name, row in zip(names(plain), plain, strict=True):
        m = row["metrics"]
        by_batch.setdefault(f"{name}, {m['context']}", []).append((m["batch"], m["tokens_per_s"]))
        if m.get("of_copy"):
            by_bytes.setdefault(name, []).append((m["step_bytes"], m["of_copy"]))
        if m.get("valid_loss") is not None:
            by_loss[name] = [(m["cache_bytes_per_token"], m["valid_loss"])]
    figure("tokens_over_batch", by_batch, "batch", "tokens/s")
    figure("roofline", by_bytes, "bytes that a step has to move", "share of the copy bandwidth")
    figure("cache_over_loss", by_loss, "cache bytes per token", "validation loss", log=False)
    return drawn


def losses(trained: Sequence[Row]) -> Series:
    """Rows of `--mode study` -> cache bytes a token and the mean best loss over seeds of each study's models, at the
    learning rate that most seeds were trained with; of equals, the best."""
    seeds: dict[tuple[str, float], list[Row]] = {}
    for row in trained:
        if row["study"]["status"] == "done":
            name = f"{row['study']['name']}: {row['name']}"
            seeds.setdefault((name, row["study"]["learning_rate"]), []).append(row)
    best: dict[str, tuple[int, float, int]] = {}
    for (name, _), found in seeds.items():
        loss = statistics.fmean(row["metrics"]["best_valid_loss"] for row in found)
        entry = (-len(found), loss, found[0]["metrics"]["kv_bytes_per_token"])
        best[name] = min(best.get(name, entry), entry)
    return {name: [(numbers, loss)] for name, (_, loss, numbers) in best.items()}


def write(rows: list[Row], folder: Path, trained: Sequence[Row] = ()) -> Path:
    """The table and the plots of `rows` in `folder`; the table's path."""
    write_text(folder / TABLE, markdown(rows))
    plots(rows, folder, trained)
    return folder / TABLE


def again(out: str, files: Sequence[str]) -> Path:
    """`write` from files of rows, nothing measured. Raises UserError for files without rows, and what cannot be
    written."""
    if missing := [path for path in files if not Path(path).is_file()]:
        raise UserError(f"{missing[0]!r} is no file of rows: give .jsonl files of --mode bench and --mode study.")
    found = [row for path in files for row in read_rows(Path(path)) if isinstance(row.get("metrics"), dict)]
    rows = [row for row in found if "suite" in row["metrics"]]
    if not rows:
        raise UserError(f"no row of --mode bench is in {', '.join(files)}: give its rows.jsonl.")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        return write(rows, Path(out), [row for row in found if "study" in row])
    except OSError as error:
        raise UserError(f"OUT is {out!r}, which cannot be written to ({error.strerror}): choose another.") from None


def main(arguments: Sequence[str]) -> None:
    """The command line. Raises UserError."""
    if len(arguments) < 2:
        raise UserError("it takes a folder and files: python -m mla_jax.bench.report OUT ROWS.jsonl [STUDY.jsonl].")
    print(f"wrote     {again(arguments[0], arguments[1:])}")


if __name__ == "__main__":
    sys.exit(run_command(main))

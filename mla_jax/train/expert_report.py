"""How well runs with experts were balanced, from their metrics.jsonl, as a Markdown table.

python -m mla_jax.train.expert_report runs/moe_bias runs/moe_none --after=500 [--rows balance.jsonl]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mla_jax import markdown, runs
from mla_jax.errors import UserError, run_command
from mla_jax.files import write_text
from mla_jax.rows import read_result, read_rows
from mla_jax.runs import RunFolder


def worst_window(steps: np.ndarray, max_load: np.ndarray, after: int, window: int) -> np.ndarray:
    """steps [n], max_load [n, L_moe] (each the mean over the steps since the row before) -> [L_moe].

    The largest mean of any `window` consecutive steps that begin after step `after`; NaN where there are too few. Rows
    are taken whole: a window is longer where they do not add up to it.
    """
    worst = np.full(max_load.shape[1], np.nan)
    weight = np.diff(np.concatenate([[0], steps]))  # steps that a row stands for
    for last in range(len(steps)):
        first = int(np.searchsorted(steps, steps[last] - window + 1))
        begins = steps[first] - weight[first]
        if begins < after or steps[last] - begins < window:
            continue
        mean = np.average(max_load[first : last + 1], axis=0, weights=weight[first : last + 1])
        worst = np.fmax(worst, mean)
    return worst


def balance(folder: RunFolder, after: int = 500, window: int = 50) -> dict[str, Any]:
    """{"max_load": worst layer's worst window, "max_load_by_layer", "dead", "final_load", "valid_loss", "steps"}.

    max_load is the largest over mean load; dead counts experts without a token over any logged interval after `after`;
    final_load is the worst layer's mean over the last evaluation's interval. Empty without experts, or without an
    evaluation.
    """
    rows = read_rows(folder.metrics)
    logs = [row for row in rows if row["kind"] == "train" and "expert_max_load" in row]
    evals = [row for row in rows if row["kind"] == "eval"]
    intervals = [row for row in rows if row["kind"] == "experts"]
    if not logs or not intervals or not evals:
        return {}
    steps = np.asarray([row["step"] for row in logs])
    by_layer = worst_window(steps, np.asarray([row["expert_max_load"] for row in logs]), after, window)
    return {
        "max_load": float(np.max(by_layer)),
        "max_load_by_layer": np.round(by_layer, 4).tolist(),
        "dead": max((row["expert_dead"] for row in logs if row["step"] > after), default=None),
        "final_load": max(intervals[-1]["max_load"]),
        "valid_loss": min(row["loss"] for row in evals),
        "steps": int(steps[-1]),
    }


def table(folders: list[RunFolder], after: int = 500, window: int = 50) -> str:
    """One line a run, "-" for what a run was too short for. Raises UserError for a folder that is no run."""
    load = f"max/mean load, worst layer and {window} steps after step {after}"
    lines = []
    for folder in folders:
        model = runs.read_config(runs.existing(folder.path)).model
        found = balance(folder, after, window)
        weights = {"aux": model.router_aux_weight, "sequence": model.router_sequence_weight, "z": model.router_z_weight}
        how = [f"bias {model.router_bias_rate:g}"] if model.router_bias_rate > 0 else []
        how += [f"{name} {weight:g}" for name, weight in weights.items() if weight]
        if not found:
            why = "not evaluated yet" if model.n_moe_layers else "no experts"
            lines.append((folder.name, why, *["-"] * 4))
            continue
        shown = "-" if np.isnan(found["max_load"]) else f"{found['max_load']:.3f}"
        dead = "-" if found["dead"] is None else found["dead"]
        loss = f"{found['valid_loss']:.4f}"
        lines.append((folder.name, ", ".join(how) or "none", shown, dead, loss, found["steps"]))
    return markdown.table(("run", "balance", load, "dead experts", "best validation loss", "steps"), lines)


def row_of(folder: RunFolder, after: int = 500, window: int = 50) -> dict[str, Any] | None:
    """The result row of a finished run with its balance as metrics, "balance NAME"; None where either is missing."""
    found, result = balance(folder, after, window), read_result(folder.result)
    return result | {"name": f"balance {folder.name}", "metrics": found} if found and result else None


def main(arguments: Sequence[str]) -> None:
    """The command line. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m mla_jax.train.expert_report", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--after", type=int, default=500, help="the step from which on the balance counts")
    parser.add_argument("--window", type=int, default=50, help="steps that a mean is taken over")
    parser.add_argument("--rows", type=Path, help="a .jsonl file that the finished runs' rows are written to")
    args = parser.parse_args(arguments)
    folders = [RunFolder(Path(name)) for name in args.runs]
    if args.window < 1:
        raise UserError(f"--window is {args.window}; a mean needs one step at least: give 1 or more.")
    print(table(folders, args.after, args.window))
    if not args.rows:
        return
    made = [found for folder in folders if (found := row_of(folder, args.after, args.window))]
    if not made:
        raise UserError("no run with experts is finished, so there are no rows: leave out --rows for the table.")
    try:
        write_text(args.rows, "".join(json.dumps(one) + "\n" for one in made))
    except OSError as error:
        raise UserError(f"--rows is {args.rows}, which cannot be written ({error.strerror}): choose another.") from None


if __name__ == "__main__":
    sys.exit(run_command(main))

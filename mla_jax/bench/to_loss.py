"""Steps, tokens and seconds to a validation loss: Muon beside AdamW, and our recipes beside nanoGPT's in torch.

    python -m mla_jax.bench.to_loss study_muon:files ROWS.jsonl ... [TORCH.jsonl ...]

ROWS are of `--mode study` (the study's rows in the repository count too), TORCH of `bench.peers.torch_run`. Where a
curve reaches a loss is read linearly between evaluations. Seconds are steps times the run's own median time of a step:
compiling, evaluating and saving do not count, on either side; what the first step took stands beside them. A run that
shared its device with others has steps to a loss and no seconds ("shared"); one on another device than torch's is left
out of that table.
"""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mla_jax.config_files import load_config_dict
from mla_jax.errors import UserError, run_command
from mla_jax.markdown import table
from mla_jax.rows import read_rows
from mla_jax.study import rows as study_rows
from mla_jax.study.curves import Curve, lowest, steps_to
from mla_jax.study.grid import from_config_dict
from mla_jax.study.results import Measured, Results, collect

SHARE = 0.6  # of its steps at which AdamW's curve gives the first of the two losses


def targets(curve: Curve) -> dict[str, tuple[float, float]]:
    """{name: (loss, the step at which the curve has it)} of a reference: its loss at SHARE of its steps, its best."""
    last = curve[-1][0]
    step, loss = min(curve, key=lambda pair: abs(pair[0] - SHARE * last))
    best = lowest(curve)
    return {f"its loss at step {step:g}": (loss, float(step)), "its best loss": (best, steps_to(curve, best))}


def optimizers(found: Results, fast: str = "muon", slow: str = "adamw") -> list[tuple[str, ...]]:
    """Lines of the table of steps: each model that both optimizers trained, each of the slow one's losses."""
    lines = []
    for quick in (p for p in found.points if p.name.endswith(f"_{fast}")):
        other = found.find(quick.name.removesuffix(fast) + slow)
        seeds = sorted(quick.measured.keys() & other.measured.keys()) if other else []
        if not seeds:
            continue
        per_seed: dict[str, list[tuple[float, float]]] = {}
        for seed in seeds:
            curve = quick.measured[seed]["curve"]["eval"]
            for name, (loss, step) in targets(other.measured[seed]["curve"]["eval"]).items():
                per_seed.setdefault(name, []).append((steps_to(curve, loss), step))
        tokens = _tokens_per_step(quick.any)
        for name, pairs in per_seed.items():
            a, b = (statistics.fmean(column) for column in zip(*pairs, strict=True))
            shares = [100 * x / y for x, y in pairs]
            each = ", ".join(f"{share:.1f}" for share in shares)
            rates = " / ".join(f"{p.any['study']['learning_rate']:g}" for p in (quick, other))
            steps, millions = f"{a:.0f} / {b:.0f}", f"{a * tokens / 1e6:.1f} / {b * tokens / 1e6:.1f}"
            mean = statistics.fmean(shares)
            lines.append((quick.name.removesuffix(f"_{fast}"), rates, name, steps, millions, f"{mean:.1f} %", each))
    return lines


def seconds(found: Results, peers: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lines of the table of seconds to the losses of torch's best run on the study's data; [] without one."""
    peers = [row for row in peers if row["data_fingerprint"] == found.fingerprint]
    if not peers:
        return []
    peer = min(peers, key=study_rows.best_loss)
    ours = [(p, seed, row) for p in found.points for seed, row in sorted(p.measured.items())]
    lines = []
    for name, (loss, step) in targets(peer["curve"]["eval"]).items():
        wall = step * peer["tokens_per_step"] / peer["metrics"]["tokens_per_s"]
        first = peer["metrics"]["first_step_s"]
        lines.append(
            (f"**{peer['name']}**", "", f"{name}: {loss:.4f}", f"{step:.0f}", f"{wall:.1f}", "1", f"{first:.0f}")
        )
        for p, seed, row in ours:
            if row["device"] != peer["device"]:
                continue
            steps = steps_to(row["curve"]["eval"], loss)
            if row["study"].get("sharing", 1) > 1:  # its speed is not its own
                lines.append((*_who(p, seed), f"{loss:.4f}", _number(steps, 0), "shared", "-", "shared"))
                continue
            took = steps * _tokens_per_step(row) / row["metrics"]["tokens_per_s"]
            lines.append((*_who(p, seed), f"{loss:.4f}", _number(steps, 0), _number(took, 1), _number(took / wall, 3),
                          _first(row)))  # fmt: skip
    return lines


def report(study: str, files: Sequence[Path]) -> str:
    """Both tables as Markdown. Raises UserError where there is nothing to say."""
    if missing := [str(path) for path in files if not path.is_file()]:
        raise UserError(f"{missing[0]!r} is no file of rows: give .jsonl files of a study and of torch_run.")
    declared = from_config_dict(load_config_dict(study))
    found = collect(declared, study_rows.read([*study_rows.committed_files(), *files]))
    peers = [row for path in files for row in read_rows(path) if "tokens_per_step" in row]
    if not found.points:
        raise UserError(f"no row of {study} among them: run launch/gpu_muon.sh first.")
    parts = [f"**{declared.title}** ({'; '.join(found.devices)}; data {found.fingerprint[:12]})"]
    if lines := optimizers(found):
        names = (
            "model",
            "learning rates",
            "to AdamW's",
            "steps, Muon / AdamW",
            "million tokens",
            "share",
            "by seed (%)",
        )
        parts.append(table(names, lines))
    if lines := seconds(found, peers):
        names = ("run", "learning rate", "to torch's", "steps", "seconds", "over torch", "first step (s)")
        parts.append(table(names, lines))
    parts.append(f"{found.to_do} runs of the study are not done." if found.to_do else "All runs of the study are done.")
    return "\n\n".join(parts)


def _who(p: Measured, seed: int) -> tuple[str, str]:
    return f"{p.name}, seed {seed}", f"{p.any['study']['learning_rate']:g}"


def _tokens_per_step(row: dict[str, Any]) -> int:
    train = row["config"]["config"]["train"]
    return train["batch_size"] * train["seq_len"]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "never"


def _first(row: dict[str, Any]) -> str:
    """Seconds to the first step's end without imports and the device, which torch's leave out too. The data are in it,
    since the step compiles beside them: where they are cached (torch's are by then) they take less than a second."""
    parts = row["metrics"].get("startup_s") or {}
    took = sum(parts.get(phase, 0) for phase in ("data", "state", "batch", "compile", "first step"))
    return f"{took:.0f}" if parts else "-"


def main(arguments: Sequence[str]) -> None:
    """The command line. Raises UserError."""
    if len(arguments) < 2:
        raise UserError("it takes a study and files of rows: python -m mla_jax.bench.to_loss study_muon ROWS.jsonl ...")
    print(report(arguments[0], [Path(path) for path in arguments[1:]]))


if __name__ == "__main__":
    sys.exit(run_command(main))

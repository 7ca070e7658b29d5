"""The result row: one JSON object that carries a figure together with what is needed to believe and repeat it."""

import contextlib
import datetime
import functools
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mla_jax import devices, markdown
from mla_jax.errors import UserError, run_command
from mla_jax.files import lines_of, numbered, parsed


def result_row(
    name: str, config_hash: str, metrics: dict[str, Any], data_fingerprint: str, tokenizer_sha256: str
) -> dict[str, Any]:
    """A row of the contract in docs/architecture.md; device, versions, command and time are filled in here."""
    return {
        "name": name,
        "config_hash": config_hash,
        "metrics": metrics,
        "device": devices.device_name(),
        "versions": devices.versions(),
        "data_fingerprint": data_fingerprint,
        "tokenizer_sha256": tokenizer_sha256,
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _program() -> list[str]:
    """How this program is started, without the path of this machine."""
    name = Path(sys.argv[0]).name
    return ["python", "-m", "mla_jax.main"] if name == "main.py" else [name]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line, on a line of its own after one that a killed process left unfinished."""
    cut = False
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
    with path.open("ab") as file:
        file.write(b"\n" * cut + json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file that a process appends to. A damaged line is left out, with a warning.

    Not so the last one where it has no line end: its writer was killed in the midst of it, which is how runs may end,
    and goes on from before it (a training at its checkpoint, a benchmark with that measurement).
    """
    lines = lines_of(path) if path.is_file() else []
    rows = []
    for number, row in numbered(lines):
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            warn_once(f"{path}, line {number}, is no JSON object and is left out.")
    return rows


@functools.cache
def warn_once(text: str) -> None:
    """Files of rows are read again and again: say what is wrong with one of them a single time."""
    logging.warning("%s", text)


def table(rows: list[dict[str, Any]]) -> str:
    """Training rows as a Markdown table."""
    head = ("run", "parameters", "KV bytes/token", "best loss", "bits/byte", "at step", "tokens/s", "MFU", "device")
    lines = []
    for row in rows:
        m = row["metrics"]
        sizes = f"{m['params']:,}", f"{m['kv_bytes_per_token']:,}"
        losses = f"{m['best_valid_loss']:.4f}", f"{m['best_bits_per_byte']:.4f}", f"{m['best_step']} of {m['step']}"
        speeds = f"{m['tokens_per_s']:,.0f}", f"{m['mfu']:.1%}" if "mfu" in m else "-"
        lines.append((row["name"], *sizes, *losses, *speeds, row["device"]))
    return markdown.table(head, lines)


def read_result(path: Path) -> dict[str, Any] | None:
    """The row of a run's result.json; None when there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return parsed(path.read_text(encoding="utf-8"))
    return None


def _main(paths: Sequence[str]) -> None:
    """Print the rows of result.json and .jsonl files as one table. Raises UserError for what is no file."""
    found = []
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise UserError(f"{missing[0]!r} is no file of rows: give result.json or .jsonl files.")
    for path in map(Path, paths):
        found += read_rows(path) if path.suffix == ".jsonl" else filter(None, [read_result(path)])
    print(table(found))


if __name__ == "__main__":
    sys.exit(run_command(_main))

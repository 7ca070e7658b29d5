"""The result row: one JSON object that carries a figure together with what is needed to believe and repeat it."""

import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from mla_jax import devices


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
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file; a last line that a killed process left unfinished is dropped."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows

"""Small files: written whole, held by one process at a time, read line by line as JSON. Imports no JAX."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def locked(path: Path, mode: str = "w") -> IO[str] | None:
    """The file, opened and held until it is closed or this process ends; None while another one holds it.

    Raises OSError where it cannot be opened.
    """
    file = open(path, mode)  # noqa: SIM115 (whoever asked for the lock closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def lines_of(path: Path) -> list[str]:
    """The lines of a text; the last is empty where the text is whole."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def numbered(lines: list[str]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(number, row) of the lines that are not blank; None for one that is no JSON object."""
    return ((number, parsed(line)) for number, line in enumerate(lines, 1) if line.strip())


def parsed(text: str) -> dict[str, Any] | None:
    """A JSON object, None where the text is none."""
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(text)
        return row if isinstance(row, dict) else None
    return None

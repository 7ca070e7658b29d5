"""Checksums: of a file, of plain values, and of a checkpoint's files, since Orbax and TensorStore do not notice a
flipped bit in an array, and the model would only write worse."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "checksums.json"


class Mismatch(Exception):
    """A file is not what was written; the message is the reason, without the folder."""


def of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(content: Any) -> str:
    """SHA-256 (hex) of what JSON can say, whatever the order of its names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """{"size": bytes, "sha256": hex} of a file. Raises OSError."""
    return {"size": path.stat().st_size, "sha256": of_file(path)}


def check_file(path: Path, recorded: dict[str, Any], name: str = "") -> None:
    """Raise Mismatch unless the file is as `describe` recorded it; OSError where it cannot be read.

    name: what the reason calls it; else its own.
    """
    name = name or path.name
    size = path.stat().st_size
    if size != recorded["size"]:
        raise Mismatch(f"{name} has {size:,} bytes instead of {recorded['size']:,}")
    if of_file(path) != recorded["sha256"]:
        raise Mismatch(f"{name} does not have the content that was written")


def seal(folder: Path) -> None:
    """Write size and SHA-256 of every file in `folder`'s sub-folders to checksums.json in it, atomically.

    Files of `folder` itself are left out: Orbax writes the time of the commit there afterwards.
    """
    paths = sorted(p for p in folder.glob("*/**/*") if p.is_file())
    files = {path.relative_to(folder).as_posix(): describe(path) for path in paths}
    temporary = folder / f".{NAME}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(files, file, indent=0)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)


def check(folder: Path, part: str = "") -> None:
    """Raise Mismatch unless every sealed file (of the sub-folder `part`) is there with its size and content.

    A folder without checksums.json passes: an older mla_jax wrote it, or a kill fell between the save and the seal.
    """
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))
        recorded = {name: {key: entry[key] for key in ("size", "sha256")} for name, entry in files.items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise Mismatch(f"{NAME} is damaged") from None
    for name, entry in recorded.items():
        if part and not name.startswith(f"{part}/"):
            continue
        try:
            check_file(folder / name, entry, name)
        except OSError as error:
            raise Mismatch(f"{name} cannot be read ({error.strerror})") from None

"""Checksums of a folder's files: Orbax and TensorStore do not notice a flipped bit in an array, and the model would
only write worse."""

import hashlib
import json
import os
from pathlib import Path

NAME = "checksums.json"


class Mismatch(Exception):
    """A file is not what was sealed; the message is the reason, without the folder."""


def seal(folder: Path) -> None:
    """Write size and SHA-256 of every file in `folder`'s sub-folders to checksums.json in it, atomically.

    Files of `folder` itself are left out: Orbax writes the time of the commit there afterwards.
    """
    files = {}
    for path in sorted(p for p in folder.glob("*/**/*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
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
        recorded = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise Mismatch(f"{NAME} is damaged") from None
    for name, (size, digest) in recorded.items():
        if part and not name.startswith(f"{part}/"):
            continue
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise Mismatch(f"{name} has {found:,} bytes instead of {size:,}")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise Mismatch(f"{name} does not have the content that was written")
        except OSError as error:
            raise Mismatch(f"{name} cannot be read ({error.strerror})") from None

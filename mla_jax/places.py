"""May a folder that was named be written? Each rule once, for runs, studies and exports; nothing is written here."""

import os
from pathlib import Path

from mla_jax.errors import UserError


def names_in(path: Path, flag: str) -> list[str]:
    """What the folder at `path` holds, sorted; nothing where there is none yet.

    Raises UserError, naming the `flag` that gave it, where it or what it would be in is no folder, or is closed.
    """
    try:
        inside = next((p for p in path.absolute().parents if p.is_file()), None)
        if inside or (not path.is_dir() and (path.exists() or path.is_symlink())):
            raise UserError(f"{flag} is {str(path)!r}, but {str(inside or path)!r} is no folder: give another path.")
        return sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise UserError(
            f"{flag} is {str(path)!r}, which cannot be used ({error.strerror}): give another folder."
        ) from None


def check_for_checkpoints(path: Path, flag: str) -> None:
    """Raise UserError where the full path is a pattern: Orbax gathers a checkpoint's parts with glob(), so it would
    save one without its arrays, and not notice."""
    try:
        full = str(path.resolve())
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise UserError(f"{flag} is {str(path)!r}, which cannot be used ({error}): give another folder.") from None
    if wild := set("*?[") & set(full):
        raise UserError(
            f"{flag} is {str(path)!r}, whose full path has {' '.join(sorted(wild))} in it, which checkpoints cannot be "
            "saved under: give a path without * ? [."
        )


def writable(path: Path, flag: str, beside: bool = False) -> Path:
    """Of `path` (where it is not written `beside` itself) and its parents the innermost folder that is there.

    Raises UserError unless it may be written.
    """
    parent = next(p for p in [path] * (not beside) + [*path.absolute().parents] if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise UserError(f"{flag} is {str(path)!r}, but {str(parent)!r} cannot be written to: choose another folder.")
    return parent

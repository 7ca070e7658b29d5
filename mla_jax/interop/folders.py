"""Where an export or an imported run may be written, and how: built beside its place and renamed into it."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mla_jax.errors import UserError


def check_place(path: Path, flag: str, replaceable: Callable[[Path], bool] = lambda _: False) -> None:
    """Raise UserError unless `path` is new, empty, or a folder that `replaceable` knows as ours; writes nothing."""
    shown = f"{flag} is {str(path)!r}"
    try:
        place = path.absolute()
        inside = next((p for p in place.parents if p.is_file()), None)
        if inside or (not path.is_dir() and (path.exists() or path.is_symlink())):
            raise UserError(f"{shown}, but {str(inside or path)!r} is no folder: give another path.")
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise UserError(f"{shown}, which cannot be used ({error.strerror}): give another folder.") from None
    if found and not replaceable(path):
        raise UserError(
            f"{shown}, which holds other files ({', '.join(found[:3])}) that would be lost: give a new or empty folder."
        )
    parent = next(p for p in place.parents if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise UserError(f"{shown}, but {str(parent)!r} cannot be written to: choose another folder.")


@contextlib.contextmanager
def built_aside(path: Path, flag: str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` when the block ends without an error, and else is gone."""
    path = path.resolve()
    temporary, old = (path.parent / f".{path.name}.{kind}-{uuid.uuid4().hex[:8]}" for kind in ("building", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.is_dir():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.replace(old, path)
            raise
    except OSError as error:
        raise UserError(
            f"{flag} is {str(path)!r}, which cannot be written ({error.strerror}): make room, or give another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

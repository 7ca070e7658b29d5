"""Where an export or an imported run may be written, and how: built beside its place and renamed into it."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mla_jax import places
from mla_jax.errors import UserError


def check_place(path: Path, flag: str, replaceable: Callable[[Path], bool] = lambda _: False) -> None:
    """Raise UserError unless `path` is new, empty, or a folder that `replaceable` knows as ours; writes nothing."""
    found = places.names_in(path, flag)
    if found and not replaceable(path):
        raise UserError(
            f"{flag} is {str(path)!r}, which holds other files ({', '.join(found[:3])}) that would be lost: give a new "
            "or empty folder."
        )
    places.writable(path, flag, beside=True)


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

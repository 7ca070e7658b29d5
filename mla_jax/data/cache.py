"""Folders that are complete or absent: built aside, published by one rename, checked when opened."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from mla_jax.checksums import Mismatch
from mla_jax.errors import UserError
from mla_jax.files import locked

_TEMPORARY = ".building-"
_LOCK = ".lock"
_LEFTOVER_SECONDS = 24 * 3600
META = "meta.json"
T = TypeVar("T")


def find_or_build(
    root: Path,
    kind: str,
    key: str,
    load: Callable[[Path, dict[str, Any]], T],
    build: Callable[[Path], dict[str, Any]],
) -> tuple[T, bool]:
    """(load(folder, meta), was it there?) for the entry root/kind/key, built unless it is there and whole.

    `build` fills a folder and returns the meta data; `load` raises Mismatch (or FileNotFoundError) for a folder that is
    not what was built: it is then logged and built anew. Several processes may do this at once: the first to
    finish wins. Raises UserError when the cache cannot be written.
    """
    folder = root / kind / key
    with _disk_errors(root):
        try:
            return _load(folder, load), True
        except Mismatch as error:
            if folder.exists():
                logging.warning("The cached %s is damaged (%s): preparing it again.", folder, error)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clean_leftovers(folder.parent)
        temporary = _aside(folder.parent)
        with _at_work(temporary):
            temporary.mkdir()
            meta = build(temporary)
            with (temporary / META).open("w", encoding="utf-8") as file:
                json.dump(meta, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            _publish(temporary, folder, load)
        return _load(folder, load), False


def _load(folder: Path, load: Callable[[Path, dict[str, Any]], T]) -> T:
    """Raises Mismatch unless the entry is there and whole."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Mismatch(f"{META} is missing") from None
    except ValueError:
        raise Mismatch(f"{META} is not JSON") from None
    try:
        return load(folder, meta)
    except FileNotFoundError as error:
        raise Mismatch(f"{Path(error.filename).name} is missing") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise Mismatch(f"{META} lacks what this version writes") from error


def _publish(temporary: Path, folder: Path, load: Callable[[Path, dict[str, Any]], T]) -> None:
    """Rename into place; a whole entry that another process published meanwhile stays, a damaged one goes."""
    for _ in range(5):
        try:
            os.replace(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        with contextlib.suppress(Mismatch):
            _load(folder, load)
            return
        damaged = _aside(folder.parent)
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it first
            os.replace(folder, damaged)
            _remove(damaged)
    raise UserError(f"The cache entry '{folder}' cannot be replaced: delete it and start again.")


@contextlib.contextmanager
def _at_work(temporary: Path) -> Iterator[None]:
    """Hold a lock, which dies with this process, beside the folder that is being filled; both are gone at the end."""
    lock, unlocked = (temporary.with_name(temporary.name + ending) for ending in (_LOCK, ".new"))
    with unlocked.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.replace(unlocked, lock)  # under this name it has been held from the beginning
        try:
            yield
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _clean_leftovers(parent: Path) -> None:
    """Remove what killed preparations left: their lock is free, or they are a day old (file systems without locks)."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS
            if old or (path.name.endswith(_LOCK) and _is_free(path)):
                _remove(path.with_name(path.name.removesuffix(_LOCK)))
                _remove(path)


def _is_free(lock: Path) -> bool:
    file = locked(lock, "r")
    if file:
        file.close()
    return file is not None


def _aside(parent: Path) -> Path:
    """A new name for a folder at work (mkdtemp would close it to other users of a shared cache)."""
    return parent / f"{_TEMPORARY}{uuid.uuid4().hex}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            rule, remedy = (
                "the disk is full",
                "free some space, or set MLA_JAX_CACHE (or --config.data.cache_dir) to a folder on another disk",
            )
        else:
            rule, remedy = (
                f"it cannot be used ({error.strerror})",
                "set MLA_JAX_CACHE (or --config.data.cache_dir) to a folder of yours",
            )
        raise UserError(f"The cache folder is '{root}'; {rule}: {remedy}.") from error

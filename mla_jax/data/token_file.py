"""A part of the corpus as token ids on disk: written once as a stream, read through a memory map.

Layout of the stream: [sep story0 sep story1 ... sep story_{n-1} sep]. A separator opens its story; the last
one closes the stream.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mla_jax.data.tokenizer import Tokenizer

# Raise it whenever the same stories and tokenizer would give other files.
TOKENS_VERSION = 1
_BATCH_BYTES = 4 * 2**20
_SUFFIXES = ("tokens", "story_starts", "story_bytes")


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """One split. All arrays are read-only memory maps.

    tokens: uint16 or uint32 [n_tokens], the stream. story_starts: int64 [n_stories + 1], where each story's
    separator stands in it, and last where the closing one stands. story_bytes: int64 [n_stories], UTF-8
    bytes of each story's text (separators count none). separator_id: the token between stories.
    """

    tokens: np.ndarray
    story_starts: np.ndarray
    story_bytes: np.ndarray
    separator_id: int

    @property
    def n_stories(self) -> int:
        return len(self.story_bytes)

    @property
    def n_bytes(self) -> int:
        return int(self.story_bytes.sum())


def write(
    folder: Path,
    split: str,
    stories: Iterable[str],
    tokenizer: Tokenizer,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Tokenize `stories` into `folder`, holding a few MiB of them at a time; returns what `read` needs.

    `progress(n_stories)` is called after each batch with the number of stories in it.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    position, n_stories = 0, 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_Hashed(folder / f"{split}.{name}")) for name in _SUFFIXES}
        for texts, sizes in _batches(stories):
            ids = tokenizer.encode_batch(texts)
            lengths = np.fromiter(map(len, ids), np.int64, len(ids)) + 1
            starts = position + np.cumsum(lengths) - lengths
            total = int(lengths.sum())
            stream = itertools.chain.from_iterable(itertools.chain((tokenizer.separator_id,), story) for story in ids)
            files["tokens"].write(np.fromiter(stream, dtype, total))
            files["story_starts"].write(starts.astype("<i8"))
            files["story_bytes"].write(np.asarray(sizes, "<i8"))
            position += total
            n_stories += len(texts)
            if progress:
                progress(len(texts))
        files["tokens"].write(np.asarray([tokenizer.separator_id], dtype))
        files["story_starts"].write(np.asarray([position], "<i8"))
    return {
        "dtype": dtype.str,
        "n_tokens": position + 1,
        "n_stories": n_stories,
        "files": {file.path.name: file.summary() for file in files.values()},
    }


def read(folder: Path, split: str, meta: dict[str, Any], separator_id: int) -> TokenFile:
    """Map what `write` wrote. Raises DamagedError unless every file has the recorded size and hash."""
    for name, recorded in meta["files"].items():
        check_file(folder / name, recorded)
    shapes = {
        "tokens": (meta["dtype"], meta["n_tokens"]),
        "story_starts": ("<i8", meta["n_stories"] + 1),
        "story_bytes": ("<i8", meta["n_stories"]),
    }
    arrays = {
        name: np.memmap(folder / f"{split}.{name}", dtype=dtype, mode="r", shape=(length,))
        for name, (dtype, length) in shapes.items()
    }
    return TokenFile(**arrays, separator_id=separator_id)


class DamagedError(Exception):
    """A cached file is not what was written."""


def check_file(path: Path, recorded: dict[str, Any]) -> None:
    """Raise DamagedError unless `path` has the recorded {"size", "sha256"}."""
    try:
        size = path.stat().st_size
        if size != recorded["size"]:
            raise DamagedError(f"{path.name} has {size:,} bytes instead of {recorded['size']:,}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != recorded["sha256"]:
                raise DamagedError(f"{path.name} does not have the content that was written")
    except FileNotFoundError:
        raise DamagedError(f"{path.name} is missing") from None


def _batches(stories: Iterable[str]) -> Iterator[tuple[list[str], list[int]]]:
    """(texts, their UTF-8 sizes) of about _BATCH_BYTES each."""
    texts: list[str] = []
    sizes: list[int] = []
    total = 0
    for text in stories:
        size = len(text.encode("utf-8"))
        texts.append(text)
        sizes.append(size)
        total += size
        if total >= _BATCH_BYTES:
            yield texts, sizes
            texts, sizes, total = [], [], 0
    if texts:
        yield texts, sizes


class _Hashed:
    """A file being written, with its size and hash; synced to the disk before a rename publishes it."""

    def __init__(self, path: Path):
        self.path, self._size, self._hash = path, 0, hashlib.sha256()

    def __enter__(self) -> "_Hashed":
        self._file = self.path.open("wb")
        return self

    def __exit__(self, *error: Any) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, array: np.ndarray) -> None:
        data = array.tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def summary(self) -> dict[str, Any]:
        return {"size": self._size, "sha256": self._hash.hexdigest()}

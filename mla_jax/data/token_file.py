"""A part of the corpus as token ids on disk: written once as a stream, read through a memory map.

Layout of the stream: [sep story0 sep story1 ... sep story_{n-1} sep]. A separator opens its story; the last
one closes the stream.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mla_jax import checksums
from mla_jax.data.tokenizer import Tokenizer, cpus

# Raise it whenever the same stories and tokenizer would give other files.
TOKENS_VERSION = 1
_BATCH_CHARACTERS = 2**20
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
    rows: Iterable[tuple[str, str]],
    splits: Iterable[str],
    tokenizer: Tokenizer,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Tokenize (split, story) rows into `folder`; returns what `read` needs, by split.

    The calling thread reads and writes, one thread a CPU encodes; two batches of a MiB or so a thread are in memory.
    `progress(n_stories)` is called after each batch with the number of stories in it.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    with contextlib.ExitStack() as stack:
        parts = {split: _Part(folder, split, dtype, stack) for split in splits}
        encode = functools.partial(_encode, tokenizer=tokenizer, dtype=dtype)
        for encoded in _in_order(encode, _batches(rows), stack.enter_context(ThreadPoolExecutor(cpus()))):
            for split, block in encoded.items():
                parts[split].add(*block)
            if progress:
                progress(sum(len(sizes) for _, _, sizes in encoded.values()))
        return {split: part.close(tokenizer.separator_id) for split, part in parts.items()}


def read(folder: Path, split: str, meta: dict[str, Any], separator_id: int) -> TokenFile:
    """Map what `write` wrote.

    Raises checksums.Mismatch unless every file has the recorded size and hash, FileNotFoundError where one is missing.
    """
    for name, recorded in meta["files"].items():
        checksums.check_file(folder / name, recorded)
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


def _batches(rows: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Rows in lists of about _BATCH_CHARACTERS each."""
    batch: list[tuple[str, str]] = []
    total = 0
    for row in rows:
        batch.append(row)
        total += len(row[1])
        if total >= _BATCH_CHARACTERS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _in_order(function: Callable, items: Iterable, pool: ThreadPoolExecutor) -> Iterator:
    """`map` on the pool, in order, with no more than two items a thread under way."""
    under_way: collections.deque[Future] = collections.deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) >= 2 * cpus():
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _encode(
    batch: list[tuple[str, str]], tokenizer: Tokenizer, dtype: np.dtype
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """{split: (its piece of the stream, tokens of each story with its separator, UTF-8 bytes of each story)}"""
    separator = np.asarray([tokenizer.separator_id], np.int32)
    encoded = {}
    for split in dict.fromkeys(split for split, _ in batch):
        texts = [text for part, text in batch if part == split]
        ids = tokenizer.encode_arrays(texts)
        stream = np.concatenate([piece for story in ids for piece in (separator, story)]).astype(dtype)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids)) + 1
        sizes = np.fromiter((len(text.encode("utf-8")) for text in texts), np.int64, len(texts))
        encoded[split] = stream, lengths, sizes
    return encoded


class _Part:
    """The files of one split, being written."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, stack: contextlib.ExitStack):
        self._files = {name: stack.enter_context(_Hashed(folder / f"{split}.{name}")) for name in _SUFFIXES}
        self._dtype, self._position, self._n_stories = dtype, 0, 0

    def add(self, stream: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> None:
        starts = self._position + np.cumsum(lengths) - lengths
        self._files["tokens"].write(stream)
        self._files["story_starts"].write(starts.astype("<i8"))
        self._files["story_bytes"].write(sizes.astype("<i8"))
        self._position += len(stream)
        self._n_stories += len(sizes)

    def close(self, separator_id: int) -> dict[str, Any]:
        """Write the closing separator; returns the part's meta data."""
        self._files["tokens"].write(np.asarray([separator_id], self._dtype))
        self._files["story_starts"].write(np.asarray([self._position], "<i8"))
        return {
            "dtype": self._dtype.str,
            "n_tokens": self._position + 1,
            "n_stories": self._n_stories,
            "files": {file.path.name: file.summary() for file in self._files.values()},
        }


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

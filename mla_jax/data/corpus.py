"""A corpus: stories in a training and a validation part, with a fingerprint of all that shapes them."""

import abc
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mla_jax import checksums
from mla_jax.cache_root import cache_root
from mla_jax.config import Config
from mla_jax.data.readers import Count, Source
from mla_jax.data.sources import Found, find

SPLITS = ("train", "valid")
# Raise it whenever the same sources would give other stories: caches are keyed by the fingerprint.
CORPUS_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over the whole corpus found: stories per split."""

    stories: dict[str, int]
    replaced: int  # stories whose invalid UTF-8 was replaced


class Corpus(abc.ABC):
    """Stories by split. `name` is for people, `fingerprint` (sha256, hex) for caches and result rows."""

    splits: tuple[str, ...] = SPLITS
    name: str
    fingerprint: str

    @abc.abstractmethod
    def rows(self, count: Count | None = None) -> Iterator[tuple[str, str]]:
        """Stream every (split, story text)."""

    def stories(self, split: str) -> Iterator[str]:
        """Stream the texts of one split, "train" or "valid", always in the same order."""
        return (text for part, text in self.rows() if part == split)

    def survey(self, advance: Callable[[], None] = lambda: None) -> Survey:
        """Read everything once, calling `advance` after each story.

        Raises UserError for any unreadable story and for a part without stories.
        """
        stories, count = dict.fromkeys(self.splits, 0), Count()
        for split, _ in self.rows(count):
            stories[split] += 1
            advance()
        self.check_parts(stories)
        return Survey(stories, count.replaced)

    def check_parts(self, stories: dict[str, int]) -> None:  # noqa: B027 (a generated part is never empty)
        """Raise UserError when a part has no stories."""

    def check_unchanged(self) -> None:  # noqa: B027 (most sources cannot change)
        """Raise UserError when a source has changed since the fingerprint was taken."""


class FileCorpus(Corpus):
    """Files: a training and a validation part; one part, split by the hash of each story; or one to evaluate on."""

    def __init__(self, parts: dict[str, Found], valid_fraction: float):
        """parts: {"train", "valid"}, {"train"} (its own held-out files, or a split by hash), or {"valid"} alone."""
        self._named = {split: found.named for split, found in parts.items()}
        self.files = {split: found.files if split == "train" else found.held_out for split, found in parts.items()}
        if "valid" not in parts and parts["train"].valid:
            self.files["valid"] = parts["train"].valid
            self._named["valid"] = self._named["train"]
        self._by_hash = "valid" not in self.files
        self.splits = SPLITS if "train" in self.files else ("valid",)
        self.name = ", ".join(map(_name, parts.values()))
        self._threshold = int(valid_fraction * 2**64)
        self._stats = {source: _stat(source) for sources in self.files.values() for source in sources}
        like = next(iter(self._named.values()))
        self.fingerprint = _fingerprint(
            files=self._each(_sha256_file),
            formats=self._each(lambda source: source.reader.__name__),
            gzip=[source.path.suffix.lower() == ".gz" for sources in self.files.values() for source in sources],
            valid_fraction=valid_fraction if self._by_hash else None,
            invalid_utf8=like.invalid_utf8,
            **({"text_field": like.text_field} if like.text_field else {}),
        )

    def rows(self, count: Count | None = None) -> Iterator[tuple[str, str]]:
        for split in self.files:
            for text in self._texts(split, count):
                yield self._split_of(text) if self._by_hash else split, text

    def stories(self, split: str) -> Iterator[str]:
        return super().stories(split) if self._by_hash else self._texts(split)

    def check_parts(self, stories: dict[str, int]) -> None:
        if not any(stories.values()):
            named = next(iter(self._named.values()))
            raise named.fail("it holds no stories, only separators and blanks", "give it at least one story")
        empty = next((split for split in self.splits if not stories[split]), None)
        if empty is None:
            return
        if not self._by_hash:
            raise self._named[empty].fail("it holds no stories, only separators and blanks", "give it some stories")
        if sum(stories.values()) == 1:
            raise self._named["train"].fail(
                "it holds one story, of which no validation part can be held out (in plain text a line <|endoftext|> "
                "ends a story, and nothing else does: no blank line, no chapter)",
                "put such lines between its stories, or give a text to validate on with --config.data.valid_path",
            )
        part = "validation" if empty == "valid" else "training"
        raise self._named["train"].fail(
            f"none of its {sum(stories.values()):,} stories falls into the {part} part",
            "give more stories (separated by <|endoftext|> lines), another --config.data.valid_fraction, "
            "or a file of their own with --config.data.valid_path",
        )

    def check_unchanged(self) -> None:
        for source, stat in self._stats.items():
            if _stat(source) != stat:
                raise source.fail("the file changed while it was read", "start again when it is complete")

    def _texts(self, split: str, count: Count | None = None) -> Iterator[str]:
        for source in self.files[split]:
            yield from source.stories(count)

    def _each(self, function: Callable[[Source], str]) -> dict[str, str | list[str]]:
        """{split: what `function` says of its file, or of each of its files}"""
        said = {split: [function(source) for source in sources] for split, sources in self.files.items()}
        # One file stands for itself, as it always did: runs are held to the fingerprint that they began with.
        return {split: values[0] if len(values) == 1 else values for split, values in said.items()}

    def _split_of(self, text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return "valid" if int.from_bytes(digest[:8], "big") < self._threshold else "train"


_KEPT_CHARACTERS = 40_000_000  # a tokenizer learns from 32 MB unless told


class WorldCorpus(Corpus):
    """The embedded story world: generated, never stored. The first stories are kept for a second reader."""

    def __init__(self, stories: int, valid_stories: int, seed: int):
        from mla_jax.world import WORLD_VERSION

        self.name = f"{stories:,} embedded stories (seed {seed})"
        self._counts, self._seed = {"train": stories, "valid": valid_stories}, seed
        self.fingerprint = _fingerprint(world=WORLD_VERSION, counts=self._counts, seed=seed)
        self._kept: dict[str, list[str]] = {split: [] for split in SPLITS}
        self._room = _KEPT_CHARACTERS

    def rows(self, count: Count | None = None) -> Iterator[tuple[str, str]]:
        for split in SPLITS:
            for text in self.stories(split):
                yield split, text

    def stories(self, split: str) -> Iterator[str]:
        from mla_jax.world import stories

        kept = self._kept[split]
        known = kept[:]
        yield from known
        start = len(known)
        for index, row in enumerate(stories(self._counts[split] - start, self._seed, split=split, start=start), start):
            if index == len(kept) and self._room > 0:
                kept.append(row["text"])
                self._room -= len(row["text"])
            yield row["text"]

    def survey(self, advance: Callable[[], None] = lambda: None) -> Survey:
        return Survey(self._counts, replaced=0)  # config.validate saw to it that there are some


def open_corpus(config: Config, quiet: bool = True) -> Corpus:
    """The corpus that `config.data` names; nothing but bytes for the fingerprint has been read yet.

    Raises UserError for a path that leads to no readable file of stories (sources.find).
    """
    data = config.data
    if not data.path:
        return WorldCorpus(data.stories, data.valid_stories, data.seed)
    root = cache_root(data.cache_dir)
    parts = {}
    for split, field, path in (("train", "data.path", data.path), ("valid", "data.valid_path", data.valid_path)):
        if path:
            parts[split] = find(path, Source(Path(path), field, data.invalid_utf8, data.text_field), root, quiet)
    return FileCorpus(parts, data.valid_fraction)


def open_to_evaluate(path: str, config: Config, quiet: bool = True) -> Corpus:
    """Everything at `path` as one validation part, read as `config.data` says. Raises UserError as `open_corpus`."""
    like = Source(Path(path), "--data.path", config.data.invalid_utf8, config.data.text_field, trains=False)
    return FileCorpus({"valid": find(path, like, cache_root(config.data.cache_dir), quiet)}, config.data.valid_fraction)


def _name(found: Found) -> str:
    files = len(found.files) + len(found.valid)
    return str(found.named.path) + (f" ({files:,} files)" if files > 1 and not found.valid else "")


def _fingerprint(**content: Any) -> str:
    content["corpus_version"] = CORPUS_VERSION
    return checksums.of_json(content)


def _stat(source: Source) -> tuple[int, int]:
    try:
        stat = source.path.stat()
    except OSError:
        return (-1, -1)
    return stat.st_size, stat.st_mtime_ns


def _sha256_file(source: Source) -> str:
    try:
        return checksums.of_file(source.path)
    except OSError as error:
        raise source.fail(f"it cannot be read ({error.strerror})", "check the disk and the permissions") from None

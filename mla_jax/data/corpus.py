"""A corpus: stories in a training and a validation part, with a fingerprint of all that shapes them."""

import abc
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mla_jax.config import Config
from mla_jax.data.readers import Count, Source

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

    name: str
    fingerprint: str

    @abc.abstractmethod
    def rows(self, count: Count | None = None) -> Iterator[tuple[str, str]]:
        """Stream every (split, story text)."""

    def stories(self, split: str) -> Iterator[str]:
        """Stream the texts of one split, "train" or "valid", always in the same order."""
        return (text for part, text in self.rows() if part == split)

    def survey(self) -> Survey:
        """Read everything once. Raises UserError for any unreadable story and for a part without stories."""
        stories, count = dict.fromkeys(SPLITS, 0), Count()
        for split, _ in self.rows(count):
            stories[split] += 1
        self.check_parts(stories)
        return Survey(stories, count.replaced)

    def check_parts(self, stories: dict[str, int]) -> None:  # noqa: B027 (a generated part is never empty)
        """Raise UserError when a part has no stories."""

    def check_unchanged(self) -> None:  # noqa: B027 (most sources cannot change)
        """Raise UserError when a source has changed since the fingerprint was taken."""


class FileCorpus(Corpus):
    """One file, split by the hash of each story's text, or a training and a validation file."""

    def __init__(self, train: Source, valid: Source | None, valid_fraction: float):
        self.sources = {"train": train} if valid is None else {"train": train, "valid": valid}
        for source in self.sources.values():
            source.check()
        self.name = ", ".join(str(source.path) for source in self.sources.values())
        self._threshold = int(valid_fraction * 2**64)
        self._stats = {split: _stat(source) for split, source in self.sources.items()}
        self.fingerprint = _fingerprint(
            files={split: _sha256_file(source) for split, source in self.sources.items()},
            formats={split: source.reader.__name__ for split, source in self.sources.items()},
            gzip=[source.path.suffix.lower() == ".gz" for source in self.sources.values()],
            valid_fraction=valid_fraction if valid is None else None,
            invalid_utf8=train.invalid_utf8,
        )

    def rows(self, count: Count | None = None) -> Iterator[tuple[str, str]]:
        for split, source in self.sources.items():
            for text in source.stories(count):
                yield self._split_of(text) if len(self.sources) == 1 else split, text

    def stories(self, split: str) -> Iterator[str]:
        if len(self.sources) == 1:
            return super().stories(split)
        return self.sources[split].stories()

    def check_parts(self, stories: dict[str, int]) -> None:
        train = self.sources["train"]
        if not any(stories.values()):
            raise train.fail("it holds no stories, only separators and blanks", "give it at least one story")
        if len(self.sources) == 2:
            for split, source in self.sources.items():
                if not stories[split]:
                    raise source.fail("it holds no stories, only separators and blanks", "give it some stories")
            return
        part = "validation" if not stories["valid"] else "training"
        if not all(stories.values()):
            raise train.fail(
                f"none of its {sum(stories.values()):,} stories falls into the {part} part",
                "give more stories (separated by <|endoftext|> lines), another --config.data.valid_fraction, "
                "or a file of their own with --config.data.valid_path",
            )

    def check_unchanged(self) -> None:
        for split, source in self.sources.items():
            if _stat(source) != self._stats[split]:
                raise source.fail("the file changed while it was read", "start again when it is complete")

    def _split_of(self, text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return "valid" if int.from_bytes(digest[:8], "big") < self._threshold else "train"


class WorldCorpus(Corpus):
    """The embedded story world: generated, never stored."""

    def __init__(self, stories: int, valid_stories: int, seed: int):
        from mla_jax.world import WORLD_VERSION

        self.name = f"{stories:,} embedded stories (seed {seed})"
        self._counts, self._seed = {"train": stories, "valid": valid_stories}, seed
        self.fingerprint = _fingerprint(world=WORLD_VERSION, counts=self._counts, seed=seed)

    def rows(self, count: Count | None = None) -> Iterator[tuple[str, str]]:
        for split in SPLITS:
            for text in self.stories(split):
                yield split, text

    def stories(self, split: str) -> Iterator[str]:
        from mla_jax.world import stories

        return (row["text"] for row in stories(self._counts[split], self._seed, split=split))

    def survey(self) -> Survey:
        return Survey(self._counts, replaced=0)  # config.validate saw to it that there are some


def open_corpus(config: Config) -> Corpus:
    """The corpus that `config.data` names; nothing but bytes for the fingerprint has been read yet.

    Raises UserError for a file that is missing, a directory, empty or not readable.
    """
    data = config.data
    if not data.path:
        return WorldCorpus(data.stories, data.valid_stories, data.seed)
    train = Source(_path(data.path), "data.path", data.invalid_utf8)
    valid = Source(_path(data.valid_path), "data.valid_path", data.invalid_utf8) if data.valid_path else None
    return FileCorpus(train, valid, data.valid_fraction)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _fingerprint(**content: Any) -> str:
    content["corpus_version"] = CORPUS_VERSION
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stat(source: Source) -> tuple[int, int]:
    try:
        stat = source.path.stat()
    except OSError:
        return (-1, -1)
    return stat.st_size, stat.st_mtime_ns


def _sha256_file(source: Source) -> str:
    try:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise source.fail(f"it cannot be read ({error.strerror})", "check the disk and the permissions") from None

"""From a config to a tokenizer and memory-mapped token files, found in the cache or made there."""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from mla_jax import checksums
from mla_jax.cache_root import cache_root
from mla_jax.config import Config
from mla_jax.data import statistics, token_file
from mla_jax.data.cache import find_or_build
from mla_jax.data.corpus import Corpus, Survey, open_corpus, open_to_evaluate
from mla_jax.data.progress import Progress, say
from mla_jax.data.token_file import TOKENS_VERSION, TokenFile
from mla_jax.data.tokenizer import TOKENIZER_VERSION, Tokenizer, train_tokenizer
from mla_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What training and evaluation read.

    fingerprint: sha256 (hex) over corpus and tokenizer, for result rows. stats: `statistics.describe` of each split,
    and where the time went ("seconds" in all, "phases"), for people.
    """

    tokenizer: Tokenizer
    train: TokenFile
    valid: TokenFile
    fingerprint: str
    stats: dict[str, Any]


def prepare(
    config: Config,
    tokenizer: Tokenizer | None = None,
    quiet: bool = False,
    on_build: Callable[[], None] = lambda: None,
) -> Prepared:
    """Find or make the tokenizer (unless given) and the token files of `config.data`.

    Everything unreadable in the sources raises UserError before anything is written. Preparing a corpus a
    second time is a lookup: entries are keyed by content, checked by size and hash, and made again when
    damaged. Unless `quiet`, progress goes to stderr. on_build is called once the sources are known to be readable and
    something has to be made of them.
    """
    start, phases = time.monotonic(), Phases()
    if tokenizer is None and config.tokenizer.path:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    with phases("fingerprint"):
        corpus = open_corpus(config, quiet)
    root = cache_root(config.data.cache_dir)
    surveyed = _Once(corpus, quiet, phases, on_build)
    if tokenizer is None:
        tokenizer = _tokenizer(config, corpus, root, surveyed, quiet)
    fingerprint, parts, meta, cached = _tokens(corpus, tokenizer, root, surveyed, quiet, config)
    stats: dict[str, Any] = {split: statistics.describe(part) for split, part in parts.items()}
    stats |= {"replaced_utf8": meta["replaced_utf8"], "corpus": corpus.name, "vocab_size": tokenizer.vocab_size}
    stats["vocab_ceiling"] = config.tokenizer.vocab_size
    stats |= {"from_cache": cached, "seconds": round(time.monotonic() - start, 3), "phases": phases.rounded()}
    return Prepared(tokenizer, parts["train"], parts["valid"], fingerprint, stats)


def prepare_file(path: str, config: Config, tokenizer: Tokenizer, quiet: bool = True) -> tuple[TokenFile, str]:
    """(token file, fingerprint) of everything at `path`, to evaluate on: it may be shorter than a window.

    config: that of the run whose tokenizer is given; its rules for reading apply. Raises UserError as `prepare`.
    """
    corpus = open_to_evaluate(path, config, quiet)
    root = cache_root(config.data.cache_dir)
    fingerprint, parts, *_ = _tokens(corpus, tokenizer, root, _Once(corpus, quiet, Phases()), quiet)
    return parts["valid"], fingerprint


class Phases(dict[str, float]):
    """Seconds by phase: `with phases("reading"): ...`."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.monotonic() - start

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.items()}


class _Once:
    """The corpus' survey, made when it is first asked for: a cached corpus is never read again."""

    def __init__(self, corpus: Corpus, quiet: bool, phases: Phases, on_read: Callable[[], None] = lambda: None):
        self._corpus, self._quiet, self._survey, self.phases, self._on_read = corpus, quiet, None, phases, on_read

    def __call__(self) -> Survey:
        if self._survey is None:
            with self.phases("reading"), Progress("Reading", None, self._quiet) as progress:
                self._survey = self._corpus.survey(progress.advance)
            if self._survey.replaced:
                logging.warning(
                    "%s: %s stories held invalid UTF-8, replaced by U+FFFD.",
                    self._corpus.name,
                    f"{self._survey.replaced:,}",
                )
            self._on_read()
        return self._survey


def _tokenizer(config: Config, corpus: Corpus, root: Path, surveyed: _Once, quiet: bool) -> Tokenizer:
    knobs = config.tokenizer

    def build(folder: Path) -> dict[str, Any]:
        if not quiet:
            say(f"Learning at most {knobs.vocab_size:,} pieces from {corpus.name}.")
        with surveyed.phases("learning"):
            model = train_tokenizer(_first_bytes(corpus.stories("train"), knobs.train_bytes), knobs.vocab_size)
        corpus.check_unchanged()
        (folder / "tokenizer.model").write_bytes(model)
        return {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}

    def load(folder: Path, meta: dict[str, Any]) -> Tokenizer:
        checksums.check_file(folder / "tokenizer.model", meta)
        return Tokenizer.load(folder / "tokenizer.model")

    key = checksums.of_json(
        {
            "corpus": corpus.fingerprint,
            "vocab_size": knobs.vocab_size,
            "train_bytes": knobs.train_bytes,
            "version": TOKENIZER_VERSION,
        }
    )
    if not (root / "tokenizers" / key).exists():
        surveyed()  # outside of the cache's own error handling, and before it makes a folder
    return find_or_build(root, "tokenizers", key, load, build)[0]


def _tokens(
    corpus: Corpus,
    tokenizer: Tokenizer,
    root: Path,
    surveyed: _Once,
    quiet: bool,
    to_train: Config | None = None,
) -> tuple[str, dict[str, TokenFile], dict[str, Any], bool]:
    """(fingerprint, token file by split, meta data, were they there?)

    to_train: the config for which the training part must hold a window.
    """
    fingerprint = checksums.of_json(
        {"corpus": corpus.fingerprint, "tokenizer": tokenizer.sha256, "version": TOKENS_VERSION}
    )

    def build(folder: Path) -> dict[str, Any]:
        survey = surveyed()
        meta: dict[str, Any] = {"corpus": corpus.fingerprint, "tokenizer": tokenizer.sha256}
        total = sum(survey.stories.values())
        with surveyed.phases("tokenizing"), Progress("Tokenizing", total, quiet) as progress:
            meta["parts"] = token_file.write(folder, corpus.rows(), corpus.splits, tokenizer, progress.advance)
        corpus.check_unchanged()
        if to_train:
            _check_window(to_train, corpus, meta["parts"]["train"]["n_tokens"])
        meta["replaced_utf8"] = survey.replaced
        return meta

    def load(folder: Path, meta: dict[str, Any]) -> tuple[dict[str, TokenFile], dict[str, Any]]:
        if (meta["corpus"], meta["tokenizer"]) != (corpus.fingerprint, tokenizer.sha256):
            raise checksums.Mismatch("it was made from other data")
        parts = {
            split: token_file.read(folder, split, meta["parts"][split], tokenizer.separator_id)
            for split in corpus.splits
        }
        return parts, {"replaced_utf8": meta["replaced_utf8"]}

    if not (root / "tokens" / fingerprint).exists():
        surveyed()
    (parts, meta), cached = find_or_build(root, "tokens", fingerprint, load, build)
    if to_train:
        _check_window(to_train, corpus, len(parts["train"].tokens))
    return fingerprint, parts, meta, cached


def _check_window(config: Config, corpus: Corpus, n_tokens: int) -> None:
    needed = config.train.seq_len + 1
    if n_tokens < needed:
        raise UserError(
            f"train.seq_len is {config.train.seq_len}; the training part of {corpus.name} has {n_tokens:,} "
            f"tokens and one window needs {needed:,}: lower --config.train.seq_len or give more stories."
        )


def _first_bytes(stories: Iterator[str], limit: int) -> Iterator[str]:
    """Stories up to `limit` UTF-8 bytes; at least one."""
    total = 0
    for text in stories:
        total += len(text.encode("utf-8"))
        if total > limit and total > len(text.encode("utf-8")):
            return
        yield text

"""From a config to a tokenizer and memory-mapped token files, found in the cache or made there."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from mla_jax.config import Config
from mla_jax.data import token_file
from mla_jax.data.cache import cache_dir, find_or_build
from mla_jax.data.corpus import SPLITS, Corpus, open_corpus
from mla_jax.data.progress import Progress
from mla_jax.data.token_file import TOKENS_VERSION, TokenFile
from mla_jax.data.tokenizer import TOKENIZER_VERSION, Tokenizer, train_tokenizer
from mla_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What training and evaluation read.

    fingerprint: sha256 (hex) over corpus and tokenizer, for result rows. stats: counts per split, for people.
    """

    tokenizer: Tokenizer
    train: TokenFile
    valid: TokenFile
    fingerprint: str
    stats: dict[str, Any]


def prepare(config: Config, tokenizer: Tokenizer | None = None, quiet: bool = False, to_train: bool = True) -> Prepared:
    """Find or make the tokenizer (unless given) and the token files of `config.data`.

    `to_train`: the training part must hold a window of `train.seq_len`; evaluation alone takes less.

    Everything unreadable in the sources raises UserError before anything is written. Preparing a corpus a
    second time is a lookup: entries are keyed by content, checked by size and hash, and made again when
    damaged.
    """
    start = time.monotonic()
    if tokenizer is None and config.tokenizer.path:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    corpus = open_corpus(config)
    root = cache_dir(config.data.cache_dir)
    surveyed = _Once(corpus)
    if tokenizer is None:
        tokenizer = _tokenizer(config, corpus, root, surveyed, quiet)
    fingerprint = _key(corpus=corpus.fingerprint, tokenizer=tokenizer.sha256, version=TOKENS_VERSION)
    (parts, stats), cached = _tokens(config, corpus, tokenizer, root, fingerprint, surveyed, quiet, to_train)
    if not quiet:
        for split in SPLITS:
            logging.info("%s part: %s", split, ", ".join(f"{k} {v:,}" for k, v in stats[split].items()))
    stats |= {"corpus": corpus.name, "vocab_size": tokenizer.vocab_size, "from_cache": cached}
    stats["seconds"] = round(time.monotonic() - start, 3)
    return Prepared(tokenizer, parts["train"], parts["valid"], fingerprint, stats)


class _Once:
    """The corpus' survey, made when it is first asked for: a cached corpus is never read again."""

    def __init__(self, corpus: Corpus):
        self._corpus, self._survey = corpus, None

    def __call__(self):
        if self._survey is None:
            self._survey = self._corpus.survey()
            if self._survey.replaced:
                logging.warning(
                    "%s: %s stories held invalid UTF-8, replaced by U+FFFD.",
                    self._corpus.name,
                    f"{self._survey.replaced:,}",
                )
        return self._survey


def _tokenizer(config: Config, corpus: Corpus, root: Path, surveyed: _Once, quiet: bool) -> Tokenizer:
    knobs = config.tokenizer

    def build(folder: Path) -> dict[str, Any]:
        if not quiet:
            logging.info("Learning at most %d pieces from %s.", knobs.vocab_size, corpus.name)
        model = train_tokenizer(_first_bytes(corpus.stories("train"), knobs.train_bytes), knobs.vocab_size)
        corpus.check_unchanged()
        (folder / "tokenizer.model").write_bytes(model)
        return {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}

    def load(folder: Path, meta: dict[str, Any]) -> Tokenizer:
        token_file.check_file(folder / "tokenizer.model", meta)
        return Tokenizer.load(folder / "tokenizer.model")

    key = _key(
        corpus=corpus.fingerprint,
        vocab_size=knobs.vocab_size,
        train_bytes=knobs.train_bytes,
        version=TOKENIZER_VERSION,
    )
    if not (root / "tokenizers" / key).exists():
        surveyed()  # outside of the cache's own error handling, and before it makes a folder
    return find_or_build(root, "tokenizers", key, load, build)[0]


def _tokens(
    config: Config,
    corpus: Corpus,
    tokenizer: Tokenizer,
    root: Path,
    key: str,
    surveyed: _Once,
    quiet: bool,
    to_train: bool,
) -> tuple[tuple[dict[str, TokenFile], dict[str, Any]], bool]:
    def build(folder: Path) -> dict[str, Any]:
        survey = surveyed()
        meta: dict[str, Any] = {"corpus": corpus.fingerprint, "tokenizer": tokenizer.sha256, "parts": {}}
        with Progress("Tokenizing", sum(survey.stories.values()), quiet) as progress:
            for split in SPLITS:
                meta["parts"][split] = token_file.write(
                    folder, split, corpus.stories(split), tokenizer, progress.advance
                )
        corpus.check_unchanged()
        if to_train:
            _check_window(config, corpus, meta["parts"]["train"]["n_tokens"])
        meta["replaced_utf8"] = survey.replaced
        return meta

    def load(folder: Path, meta: dict[str, Any]) -> tuple[dict[str, TokenFile], dict[str, Any]]:
        if (meta["corpus"], meta["tokenizer"]) != (corpus.fingerprint, tokenizer.sha256):
            raise token_file.DamagedError("it was made from other data")
        parts = {
            split: token_file.read(folder, split, meta["parts"][split], tokenizer.separator_id) for split in SPLITS
        }
        stats: dict[str, Any] = {split: _describe(part) for split, part in parts.items()}
        return parts, stats | {"replaced_utf8": meta["replaced_utf8"]}

    if not (root / "tokens" / key).exists():
        surveyed()
    found, cached = find_or_build(root, "tokens", key, load, build)
    if to_train:
        _check_window(config, corpus, len(found[0]["train"].tokens))
    return found, cached


def _check_window(config: Config, corpus: Corpus, n_tokens: int) -> None:
    needed = config.train.seq_len + 1
    if n_tokens < needed:
        raise UserError(
            f"train.seq_len is {config.train.seq_len}; the training part of {corpus.name} has {n_tokens:,} "
            f"tokens and one window needs {needed:,}: lower --config.train.seq_len or give more stories."
        )


def _describe(part: TokenFile) -> dict[str, int]:
    return {"stories": part.n_stories, "bytes": part.n_bytes, "tokens": len(part.tokens)}


def _first_bytes(stories: Iterator[str], limit: int) -> Iterator[str]:
    """Stories up to `limit` UTF-8 bytes; at least one."""
    total = 0
    for text in stories:
        total += len(text.encode("utf-8"))
        if total > limit and total > len(text.encode("utf-8")):
            return
        yield text


def _key(**content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""Hugging Face data sets: streamed once into the cache as JSON lines, and read from there like any other file."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mla_jax import checksums
from mla_jax.data import cache
from mla_jax.data.progress import Progress, say
from mla_jax.data.readers import READERS, Source
from mla_jax.errors import UserError, brief

# Raise it whenever the same data set would give another copy.
_VERSION = 1
PREFIX = "hf:"
_VALID_NAMES = ("validation", "valid", "val", "dev")
_LOCAL = "download it where there is a network and name the file or folder (text, gzip, JSON lines or parquet)"


def looks_like_a_name(path: str) -> bool:
    """Whether a path that does not exist may be meant as owner/name or owner/name:config."""
    owner, slash, name = path.partition("/")
    plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", path)
    endings = (*READERS, ".gz", ".csv", ".tsv")
    return bool(plain) and not name.lower().endswith(endings) and not Path(owner).exists()


def local_copy(name: str, source: Source, root: Path, quiet: bool = False) -> dict[str, Path]:
    """{"train": file, "valid": file}, JSON lines in the cache at `root`; "valid" only where the data set has one.

    name: owner/name or owner/name:config. `source` gives the field for messages and the story column. A copy that is
    there is used without asking the network. Raises UserError.
    """

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?", name):
        raise source.fail("that is no name of a Hugging Face data set", "write hf:owner/name or hf:owner/name:config")

    def build(folder: Path) -> dict[str, Any]:
        splits = _splits(_load(name, source), source)
        if not quiet:
            say(f"Copying {name} from Hugging Face to {root / 'datasets'}.")
        parts = {}
        for split, rows in splits.items():
            path = folder / f"{split}.jsonl"
            with path.open("w", encoding="utf-8") as file, Progress(f"Copying {split}", None, quiet) as progress:
                for text in _texts(rows, source):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    progress.advance()
            parts[split] = checksums.describe(path)
        return {"name": name, "parts": parts}

    def load(folder: Path, meta: dict[str, Any]) -> dict[str, Path]:
        if meta["name"] != name:
            raise checksums.Mismatch("it is of another data set")
        for split, recorded in meta["parts"].items():
            checksums.check_file(folder / f"{split}.jsonl", recorded)
        return {split: folder / f"{split}.jsonl" for split in meta["parts"]}

    key = checksums.of_json([name, source.text_field, _VERSION])
    return cache.find_or_build(root, "datasets", key, load, build)[0]


def _load(name: str, source: Source) -> dict[str, Any]:
    """The data set's splits as streams. Raises UserError, telling what to do without a network or the package."""
    try:
        import datasets
    except ImportError:
        raise source.fail(
            "there is no such file or folder, and reading it as a Hugging Face data set needs the package datasets",
            f"pip install '.[data]' in the checkout, or {_LOCAL}",
        ) from None
    repository, _, config = name.partition(":")
    with _hub_errors(source):
        return dict(datasets.load_dataset(repository, config or None, streaming=True))


@contextlib.contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # datasets, huggingface_hub, fsspec and their transports raise many types
        reason = brief(error, 300).rstrip(".")
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "DatasetNotFoundError" in kinds:
            rule, remedy = "Hugging Face has no data set of that name that you may read", "check owner/name"
        elif kinds & {"ConnectionError", "TimeoutError", "HTTPError"}:
            rule = f"there is no such file or folder, and Hugging Face cannot be reached ({reason})"
            remedy = "check the network"
        else:
            rule, remedy = f"Hugging Face's data set cannot be read ({reason})", "check owner/name:config"
        raise source.fail(rule, f"{remedy}, or {_LOCAL}") from error


def _splits(found: dict[str, Any], source: Source) -> dict[str, Any]:
    """Its train part (or its only one) and its validation part, where there is one."""
    train = found.get("train") or (next(iter(found.values())) if len(found) == 1 else None)
    if train is None:
        raise source.fail(
            f"the data set has no split named train (it has {', '.join(found) or 'none'})",
            f"choose another, or {_LOCAL}",
        )
    valid = next((found[name] for name in _VALID_NAMES if name in found and found[name] is not train), None)
    return {"train": train} | ({} if valid is None else {"valid": valid})


def _texts(rows: Any, source: Source) -> Iterator[str]:
    """The stories of one split; nulls are none. The first row decides which column they are in."""
    column = None
    stream = iter(rows)
    while True:
        with _hub_errors(source):
            row = next(stream, None)
        if row is None:
            return
        if column is None:
            column = next((name for name in source.text_fields if isinstance(row.get(name), str)), None)
            if column is None:
                raise source.fail(
                    f"the data set has no column {' or '.join(map(repr, source.text_fields))} of text (its columns: "
                    f"{', '.join(map(str, row))[:200]})",
                    f"choose another{source.or_set('data.text_field to the name of the column')}",
                )
        if isinstance(row[column], str):
            yield row[column]

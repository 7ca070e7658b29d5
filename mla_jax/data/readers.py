"""Story files, one reader per file ending: every reader streams stories and holds one of them at a time."""

import dataclasses
import functools
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mla_jax.errors import UserError

SEPARATOR = "<|endoftext|>"
MAX_STORY_BYTES = 16 * 2**20
_BLOCK = 2**20
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass
class Count:
    """What a reader had to repair on its way through a file."""

    replaced: int = 0  # stories with invalid UTF-8 whose bytes became U+FFFD


@dataclasses.dataclass(frozen=True)
class Source:
    """One readable file of stories. `field` is the knob that named it, for messages."""

    path: Path
    field: str
    invalid_utf8: str  # refuse | replace

    @property
    def reader(self) -> Callable[["Source", IO[bytes], Count], Iterator[str]]:
        return READERS.get(_ending(self.path), read_text)

    def fail(self, rule: str, remedy: str) -> UserError:
        return UserError(f"{self.field} is '{self.path}'; {rule}: {remedy}.")

    def check(self) -> None:
        """Raise UserError unless the path is a readable file that is not empty."""
        try:
            if self.path.is_dir():
                raise self.fail("that is a directory", "name one file of stories in it")
            if not self.path.exists():
                raise self.fail("there is no such file", "check the path")
            if not self.path.is_file():
                raise self.fail("that is no regular file", "save the stories to a file first")
            with self.path.open("rb") as file:
                if not file.read(1):
                    raise self.fail("the file is empty", "give it at least one story")
        except OSError as error:
            raise self.fail(f"it cannot be read ({error.strerror})", "check the path and its permissions") from None

    def stories(self, count: Count | None = None) -> Iterator[str]:
        """Stream the cleaned stories (`clean`), empty ones left out; UserError for anything unreadable."""
        try:
            with self.path.open("rb") as raw:
                file = gzip.GzipFile(fileobj=raw) if self.path.suffix.lower() == ".gz" else raw
                for text in self.reader(self, file, count or Count()):
                    if story := clean(text):
                        yield story
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self.fail(f"its gzip data is damaged or cut short ({error})", "copy the file again") from None
        except OSError as error:
            raise self.fail(f"it cannot be read ({error.strerror})", "check the disk and the permissions") from None

    def decode(self, data: bytes, where: str, count: Count) -> str:
        """Bytes of one story or line -> text. `where` names them in the message."""
        self.refuse_binary(data, where)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.invalid_utf8 == "refuse":
                raise self.invalid(f"{where} is not valid UTF-8 (byte {error.start + 1} of it)") from None
        count.replaced += 1
        return data.decode("utf-8", errors="replace")

    def invalid(self, rule: str) -> UserError:
        return self.fail(rule, "convert the file to UTF-8 or set --config.data.invalid_utf8=replace")

    def refuse_binary(self, data: bytes, where: str) -> None:
        if b"\0" in data:
            raise self.fail(f"{where} holds a NUL byte, so it is no UTF-8 text", "convert the file to UTF-8 text")

    def too_long(self, data: bytes, where: str, remedy: str) -> UserError:
        self.refuse_binary(data, where)
        return self.fail(f"{where} is longer than {MAX_STORY_BYTES // 2**20} MiB", remedy)


def clean(text: str) -> str:
    """The one definition of a story's text: LF line ends, no newlines around it; "" for only blanks."""
    text = text.replace("\r\n", "\n").strip("\n")
    return text if text.strip() else ""


def read_text(source: Source, file: IO[bytes], count: Count) -> Iterator[str]:
    """Stories between `<|endoftext|>` marks (on lines of their own in the published TinyStories files)."""
    separator = SEPARATOR.encode()
    remedy = f"separate stories by {SEPARATOR} lines"
    number, rest = 1, b""
    first = file.read(_BLOCK).removeprefix(_BOM)
    for block in itertools.chain([first], iter(functools.partial(file.read, _BLOCK), b"")):
        *whole, rest = (rest + block).split(separator)
        for data in whole:
            if len(data) > MAX_STORY_BYTES:
                raise source.too_long(data, f"story {number}", remedy)
            yield source.decode(data, f"story {number}", count)
            number += 1
        if len(rest) > MAX_STORY_BYTES:
            raise source.too_long(rest, f"story {number}", remedy)
    yield source.decode(rest, f"story {number}", count)


def read_jsonl(source: Source, file: IO[bytes], count: Count) -> Iterator[str]:
    """The "text" of each story row: one JSON object a line; blank lines are skipped."""
    for number, line in enumerate(iter(functools.partial(file.readline, MAX_STORY_BYTES + 1), b""), start=1):
        where = f"line {number}"
        if len(line) > MAX_STORY_BYTES:
            raise source.too_long(line, where, "write one story row a line")
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.isspace() or not line:
            continue
        line_text = source.decode(line, where, count)
        try:
            row = json.loads(line_text)
        except (ValueError, RecursionError):
            raise source.fail(f"{where} is not JSON", 'write one object like {"text": "..."} a line') from None
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise source.fail(f'{where} is no object with a "text"', 'write {"text": "..."}')
        yield _without_surrogates(source, text, where, count)


def _without_surrogates(source: Source, text: str, where: str, count: Count) -> str:
    """JSON can escape half a surrogate pair, which no UTF-8 text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        if source.invalid_utf8 == "refuse":
            raise source.invalid(f"{where} escapes half a surrogate pair") from None
        count.replaced += 1
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    return text


def _ending(path: Path) -> str:
    """The file ending that chooses the reader, `.gz` taken off."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


# Any other ending is read as text.
READERS = {".txt": read_text, ".jsonl": read_jsonl, ".ndjson": read_jsonl}

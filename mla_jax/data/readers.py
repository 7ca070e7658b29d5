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

from mla_jax.data.parquet import read_parquet
from mla_jax.errors import UserError

SEPARATOR = "<|endoftext|>"
MAX_STORY_BYTES = 16 * 2**20
_BLOCK = 2**20
_BOM = b"\xef\xbb\xbf"
# Where a row's story is, when data.text_field does not say: the first of these that it has.
TEXT_FIELDS = ("text", "story", "content")
# How files begin that no ending may pass off as text, and what to do about them.
_MAGIC = {
    b"\x1f\x8b\x08": ("gzip", "let its name end in .gz"),
    b"PAR1": ("parquet", "let its name end in .parquet"),
    b"PK\x03\x04": ("zip", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "unpack it first"),
    b"BZh91AY&SY": ("bzip2", "unpack it first"),
    b"\xfd7zXZ\0": ("xz", "unpack it first"),
}


@dataclasses.dataclass
class Count:
    """What a reader had to repair on its way through a file."""

    replaced: int = 0  # stories with invalid UTF-8 whose bytes became U+FFFD


@dataclasses.dataclass(frozen=True)
class Source:
    """One readable file of stories. `field` is the knob or flag that named it, for messages."""

    path: Path
    field: str
    invalid_utf8: str  # refuse | replace
    text_field: str = ""  # the field or column that holds the story; "" = the first of TEXT_FIELDS
    trains: bool = True  # whether knobs can be set, or the config is that of a finished run

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Fields or columns to look for the story in, in order."""
        return (self.text_field,) if self.text_field else TEXT_FIELDS

    @property
    def reader(self) -> Callable[["Source", IO[bytes], Count], Iterator[str]]:
        return READERS.get(_ending(self.path), read_text)

    def fail(self, rule: str, remedy: str) -> UserError:
        return UserError(f"{self.field} is '{self.path}'; {rule}: {remedy}.")

    def or_set(self, knob: str) -> str:
        """The part of a remedy that only training has."""
        return f", or set --config.{knob}" if self.trains else ""

    def check(self) -> None:
        """Raise UserError unless the path is a readable file that is not empty and is what its ending says."""
        try:
            if not self.path.exists():
                raise self.fail("there is no such file", "check the path")
            if not self.path.is_file():
                raise self.fail("that is no regular file", "save the stories to a file first")
            with self.path.open("rb") as file:
                start = file.read(10)
                if not start:
                    raise self.fail("the file is empty", "give it at least one story")
                if self.path.suffix.lower() not in (".gz", ".parquet"):
                    for magic, (kind, remedy) in _MAGIC.items():
                        if start.startswith(magic):
                            raise self.fail(f"its content is {kind} data, which its name does not say", remedy)
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

    def decode_row(self, data: bytes, where: str, count: Count) -> str:
        """`decode`, for rows whose length nothing else bounds."""
        if len(data) > MAX_STORY_BYTES:
            raise self.too_long(data, where, "keep one story in a row")
        return self.decode(data, where, count)

    def invalid(self, rule: str) -> UserError:
        return self.fail(rule, f"convert the file to UTF-8{self.or_set('data.invalid_utf8=replace')}")

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
    """The text of each story row: one JSON object a line; blank lines are skipped."""
    wanted = f'a "{source.text_fields[0]}"'
    example = f'write {{"{source.text_fields[0]}": "..."}}{source.or_set("data.text_field")}'
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
        fields = source.text_fields if isinstance(row, dict) else ()
        text = next((row[name] for name in fields if isinstance(row.get(name), str)), None)
        if text is None:
            raise source.fail(f"{where} is no object with {wanted}", example)
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
READERS = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_jsonl,
    ".parquet": read_parquet,
}

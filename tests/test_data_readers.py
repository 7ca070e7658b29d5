"""mla_jax.data.readers: text and JSON lines, plain and gzip, streamed; bad files give a sentence."""

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from mla_jax.data import readers
from mla_jax.data.readers import Count, Source
from mla_jax.errors import UserError

STORIES = ["One day.\nA fox came.", "Zo\u00eb \u2581 \U0001f98a", " leading and trailing "]


def source(path: Path, content: bytes, invalid_utf8: str = "refuse") -> Source:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return Source(path, "data.path", invalid_utf8)


def as_text(stories: list[str], line_end: str = "\n") -> bytes:
    return "".join(f"{s}\n<|endoftext|>\n" for s in stories).replace("\n", line_end).encode()


def as_jsonl(stories: list[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": s}) + "\n" for i, s in enumerate(stories)).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.txt", as_text(STORIES)),
        ("s.txt", as_text(STORIES, "\r\n")),
        ("s.txt", b"\xef\xbb\xbf" + as_text(STORIES)),
        ("s.txt", as_text(STORIES).removesuffix(b"<|endoftext|>\n")),
        ("s.txt", b"<|endoftext|>\n" + as_text(["", " \n\t", *STORIES, "\n\n"])),
        ("s.txt", "<|endoftext|>".join(STORIES).encode()),
        ("s.unknown_ending", as_text(STORIES)),
        ("s.txt.gz", as_text(STORIES)),
        ("s.gz", as_text(STORIES)),
        ("s.jsonl", as_jsonl(STORIES)),
        ("S.JSONL", b"\xef\xbb\xbf" + as_jsonl(STORIES).replace(b"\n", b"\r\n\r\n")),
        ("s.ndjson", as_jsonl(STORIES).rstrip()),
        ("s.jsonl.gz", as_jsonl([*STORIES, "\n"])),
    ],
)
def test_every_form_gives_the_same_stories(tmp_path: Path, name: str, content: bytes) -> None:
    assert list(source(tmp_path / name, content).stories()) == STORIES


@pytest.mark.parametrize("block", [1, 2, 7, 13, 64])
def test_stories_do_not_depend_on_where_blocks_end(tmp_path: Path, monkeypatch, block: int) -> None:
    monkeypatch.setattr(readers, "_BLOCK", block)
    assert list(source(tmp_path / "s.txt", as_text(STORIES, "\r\n")).stories()) == STORIES


def test_a_literal_separator_stays_in_a_json_story(tmp_path: Path) -> None:
    text = "the mark <|endoftext|> ends a text"
    assert list(source(tmp_path / "s.jsonl", as_jsonl([text])).stories()) == [text]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("s.txt", b"caf\xe9\n<|endoftext|>\nfine", ["caf\ufffd", "fine"]),
        ("s.jsonl", b'{"text": "caf\xe9"}\n{"text": "fine"}', ["caf\ufffd", "fine"]),
        (
            "s.jsonl",
            b'{"text": "half \\ud83e pair"}\n{"text": "\\ud83e\\udd8a"}',
            ["half \ufffd pair", "\U0001f98a"],
        ),
    ],
)
def test_invalid_utf8_is_refused_or_replaced_and_counted(tmp_path: Path, name, content, expected) -> None:
    with pytest.raises(UserError, match=r"data\.path is '.*(story|line) 1 .*invalid_utf8=replace\.$"):
        list(source(tmp_path / name, content).stories())
    count = Count()
    assert list(source(tmp_path / name, content, "replace").stories(count)) == expected
    assert count.replaced == 1


ROW = b'{"text": "a"}\n'
BAD = {
    "NUL": ("s.txt", b"one\n<|endoftext|>\nt\0wo", "story 2 holds a NUL byte"),
    "UTF-16": ("s.txt", "a story".encode("utf-16"), "story 1 holds a NUL byte"),
    "long story": ("s.txt", b"a\n<|endoftext|>\n" + b"x" * 2000, "story 2 is longer than"),
    "long story, separated": ("s.txt", b"x" * 1500 + b"<|endoftext|>" + b"y" * 10, "story 1 is longer than"),
    "long binary": ("s.txt", b"\0" * 2000, "story 1 holds a NUL byte"),
    "long line": ("s.jsonl", ROW + b'{"text": "' + b"x" * 2000 + b'"}', "line 2 is longer than"),
    "no JSON": ("s.jsonl", ROW + b"\nonce upon a time\n", "line 3 is not JSON"),
    "cut JSON": ("s.jsonl", ROW + b'{"text": "b', "line 2 is not JSON"),
    "huge number": ("s.jsonl", b'{"text": ' + b"1" * 900 + b"}", 'line 1 is no object with a "text"'),
    "deep JSON": ("s.jsonl", b"[" * 900, "line 1 is not JSON"),
    "array": ("s.jsonl", ROW * 3 + b'["a"]', 'line 4 is no object with a "text"'),
    "no text": ("s.jsonl", b'{"tale": "a"}', 'line 1 is no object with a "text"'),
    "text is null": ("s.jsonl", b'{"text": null}', 'line 1 is no object with a "text"'),
    "NUL in JSON": ("s.jsonl", b'{"text": "\0"}', "line 1 holds a NUL byte"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_gives_one_sentence(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(readers, "MAX_STORY_BYTES", 1000)
    monkeypatch.setattr(readers, "_BLOCK", 1100)
    file, content, says = BAD[name]
    with pytest.raises(UserError) as error:
        list(source(tmp_path / file, content).stories())
    message = str(error.value)
    assert says in message and message.startswith(f"data.path is '{tmp_path / file}'; ")
    assert "\n" not in message and message.endswith(".")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:30] + b"\0" * 40 + b[70:], lambda b: b"no gzip"]
)
def test_damaged_gzip_is_refused(tmp_path: Path, damage) -> None:
    packed = gzip.compress(as_text([f"story {i * i * 7919}" for i in range(500)]))
    (tmp_path / "s.txt.gz").write_bytes(damage(packed))
    with pytest.raises(UserError, match="gzip data is damaged or cut short"):
        list(Source(tmp_path / "s.txt.gz", "data.path", "refuse").stories())


def test_a_read_error_is_a_sentence(tmp_path: Path, monkeypatch) -> None:
    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    bad = source(tmp_path / "s.txt", b"a story")
    monkeypatch.setattr(Path, "open", lambda *_, **__: Failing())
    for action in (bad.check, lambda: list(bad.stories())):
        with pytest.raises(UserError, match=r"it cannot be read \(Input/output error\)"):
            action()


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """48 MB of stories pass through a few MB; a line that never ends costs no more than the longest story."""
    story = ("word " * 200).encode()
    (tmp_path / "s.txt").write_bytes((story + b"<|endoftext|>") * 48_000)
    (tmp_path / "one_line.jsonl").write_bytes(b'{"text": "' + story * 48_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in Source(tmp_path / "s.txt", "data.path", "refuse").stories()) == 48_000
        assert tracemalloc.get_traced_memory()[1] < 8e6
        tracemalloc.reset_peak()
        with pytest.raises(UserError, match="line 1 is longer than 16 MiB"):
            list(Source(tmp_path / "one_line.jsonl", "data.path", "refuse").stories())
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()

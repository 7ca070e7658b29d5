"""Files of a judged study: rows appended one by one, repaired after a crash, and replies that are paid for
only once.

OUT/judge.json          settings and runs (what a continued study must agree with)
OUT/stories.jsonl       every story, before anything is judged
OUT/judgements.jsonl    one row for every judgement, with or without a usable reply; ids are unique
OUT/retried.jsonl       rows of judgements that got no answer and were asked again in a later run
OUT/damaged.txt         what was left of a line cut by a crash
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mla_jax.errors import UserError
from mla_jax.files import locked, parsed, write_text


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file, one at a time; nothing for a missing file. Lines that hold no JSON object
    are skipped: `JudgementFile` has set them aside before."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            row = _row(line)
            if row is not None:
                yield row


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _row(line: str) -> dict[str, Any] | None:
    row = parsed(line)
    return row if row and "id" in row else None


class JudgementFile:
    """`judgements.jsonl`, open for one process at a time.

    Opening repairs it: a line cut in the middle goes to damaged.txt (its judgement is asked again), rows
    without an answer (status "error") to retried.jsonl, a second row of the same id is dropped.

    Attributes:
      done: ids of the rows that stand.
      spent_usd: what they cost.
      notes: what was repaired, in words.
    """

    def __init__(self, folder: Path):
        self.path = folder / "judgements.jsonl"
        self.done: set[str] = set()
        self.spent_usd = 0.0
        self.notes: list[str] = []
        self._lock = locked(folder / ".lock")
        if self._lock is None:
            raise UserError(f"another process is judging in {folder}: wait for it, or choose another output folder.")
        if self.path.exists():
            self._repair()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row at once: after this returns, `kill -9` does not lose it. Raises KeyError for an
        id twice.
        """
        if row["id"] in self.done:
            raise KeyError(f"judgement {row['id']} is there already")
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        while line:
            line = line[os.write(self._fd, line) :]
        self.done.add(row["id"])
        self.spent_usd += row.get("cost_usd") or 0.0

    def close(self) -> None:
        os.close(self._fd)
        self._lock.close()

    def __enter__(self) -> "JudgementFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repair(self) -> None:
        good, failed, damaged = [], [], []
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                row = _row(line)
                if row is None or "status" not in row or not line.endswith("\n") or row["id"] in self.done:
                    damaged.append(line)
                elif row.get("status") == "error":
                    failed.append(line)
                else:
                    self.done.add(row["id"])
                    self.spent_usd += row.get("cost_usd") or 0.0
                    good.append(line)
        if not failed and not damaged:
            return
        # first the copies, then the one atomic step: a crash in between costs a copy twice, never a row
        for name, lines in (("retried.jsonl", failed), ("damaged.txt", damaged)):
            if lines:
                with open(self.path.with_name(name), "a", encoding="utf-8") as file:
                    file.writelines(line if line.endswith("\n") else line + "\n" for line in lines)
        write_text(self.path, "".join(good))
        if failed:
            self.notes.append(f"{len(failed)} judgements got no answer last time and are asked again (retried.jsonl)")
        if damaged:
            self.notes.append(f"{len(damaged)} damaged lines were set aside in damaged.txt and are asked again")


class ReplyCache:
    """Replies by hash of (judge model, rubric version, story): SQLite, safe for several processes at once.

    A folder that cannot be written means no cache (`note` says so), never a failed run.
    """

    def __init__(self, folder: Path):
        self.note = ""
        path = folder / "replies.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # kill -9 loses nothing without fsync; only a power cut might, and then a reply is asked for again
            self._db: sqlite3.Connection | None = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")
            self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            self._db, self.note = None, f"no reply cache: {path} cannot be used ({error})"

    def get(self, key: str) -> dict[str, Any] | None:
        if self._db is None:
            return None
        try:
            found = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            reply = json.loads(found[0]) if found else None
        except (sqlite3.Error, ValueError):  # a damaged cache costs a request, not the study
            return None
        return reply if isinstance(reply, dict) else None

    def put(self, key: str, reply: dict[str, Any]) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

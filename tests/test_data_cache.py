"""mla_jax.data.cache: an entry is whole or absent, whoever kills, damages, overtakes or fills up the disk."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from test_data_prepare import STORIES, cache_files, make_config, same

from mla_jax.config import Config, dumps
from mla_jax.data import cache, token_file
from mla_jax.data.prepare import prepare
from mla_jax.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "s.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    return make_config(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "tokens cut short": ("tokens/*/train.tokens", truncate),
    "tokens changed": ("tokens/*/valid.tokens", flip),
    "starts missing": ("tokens/*/train.story_starts", Path.unlink),
    "meta missing": ("tokens/*/meta.json", Path.unlink),
    "meta cut short": ("tokens/*/meta.json", truncate),
    "meta of another version": ("tokens/*/meta.json", lambda p: p.write_text("{}")),
    "meta is a list": ("tokens/*/meta.json", lambda p: p.write_text("[]")),
    "meta of other data": (
        "tokens/*/meta.json",
        lambda p: p.write_text(p.read_text().replace('s": "', 's": "0')),
    ),
    "tokenizer cut short": ("tokenizers/*/tokenizer.model", truncate),
    "tokenizer changed": ("tokenizers/*/tokenizer.model", flip),
    "tokenizer missing": ("tokenizers/*/tokenizer.model", Path.unlink),
    "a file for a folder": ("tokens/*", lambda p: (shutil.rmtree(p), p.write_text("?"))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_entries_are_logged_and_made_again(name: str, config: Config, tmp_path: Path, monkeypatch) -> None:
    first = prepare(config, quiet=True)
    files = cache_files(tmp_path)
    # The maps' files are about to be damaged.
    copy = [part.tokens.copy() for part in (first.train, first.valid)]
    pattern, damage = DAMAGE[name]
    (path,) = (tmp_path / "cache").glob(pattern)
    damage(path)
    logged = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: logged.append(text % args))
    again = prepare(config, quiet=True)
    assert len(logged) == 1 and "is damaged" in logged[0] and "preparing it again" in logged[0]
    assert all(np.array_equal(a, b.tokens) for a, b in zip(copy, (again.train, again.valid), strict=True))
    assert cache_files(tmp_path) == files
    logged.clear()
    assert prepare(config, quiet=True).stats["from_cache"] and not logged


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_interrupted_preparation_leaves_nothing_and_is_redone(config, tmp_path, monkeypatch, error) -> None:
    real = token_file.write

    def interrupted(*arguments):
        real(*arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(token_file, "write", interrupted)
        with pytest.raises(type(error)):
            prepare(config, quiet=True)
    assert not list((tmp_path / "cache" / "tokens").iterdir())
    assert not prepare(config, quiet=True).stats["from_cache"]


def test_a_killed_preparation_is_redone_and_its_leftovers_go(config: Config, tmp_path: Path) -> None:
    """kill -9 when the parts are written and before they are published: no cleanup of our own can run."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from mla_jax.config import loads
from mla_jax.data import prepare, token_file
real = token_file.write
def write(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
token_file.write = write
prepare.prepare(loads(sys.stdin.read()))
"""
    done = subprocess.run([sys.executable, "-c", script], input=dumps(config), text=True, timeout=60)
    assert done.returncode == -9
    tokens = tmp_path / "cache" / "tokens"
    (leftover,) = (path for path in tokens.iterdir() if path.is_dir())
    assert (leftover / "train.tokens").stat().st_size > 0
    at_work, unlocked = tokens / ".building-x", tokens / ".building-y"  # another process's; a file system without locks
    unlocked.mkdir()
    with cache._at_work(at_work):
        at_work.mkdir()
        assert not prepare(config, quiet=True).stats["from_cache"]
        assert not leftover.exists() and at_work.exists() and unlocked.exists()
    assert not at_work.exists()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(unlocked, (two_days_ago, two_days_ago))
    (tmp_path / "s.txt").write_text("\n<|endoftext|>\n".join(STORIES[:200]))
    prepare(config, quiet=True)
    assert not [path for path in tokens.iterdir() if path.name.startswith(".")] and len(list(tokens.iterdir())) == 2


def test_of_two_preparations_at_once_the_first_to_finish_wins(config: Config, tmp_path: Path, monkeypatch) -> None:
    real, others = token_file.write, []

    def overtaken(*arguments):
        if not others:
            others.append(None)  # only the outer one is overtaken
            others[0] = prepare(config, quiet=True)
        return real(*arguments)

    monkeypatch.setattr(token_file, "write", overtaken)
    outer = prepare(config, quiet=True)
    assert same(outer, others[0])
    (entry,) = (tmp_path / "cache" / "tokens").iterdir()
    assert os.path.samefile(outer.train.tokens.filename, entry / "train.tokens")


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "the disk is full: free some space"), (errno.EROFS, "it cannot be used")],
)
def test_a_disk_that_takes_no_more_is_a_sentence(config, tmp_path, monkeypatch, code: int, says: str) -> None:
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(token_file._Hashed, "write", fail)
    with pytest.raises(UserError, match=rf"^The cache folder is '.*cache'; {says}.*data\.cache_dir"):
        prepare(config, quiet=True)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_a_cache_folder_that_is_a_file_is_a_sentence(config: Config, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="The cache folder is"):
        prepare(config, quiet=True)

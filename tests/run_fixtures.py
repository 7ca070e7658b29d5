"""A plugin (`pytest_plugins = ["run_fixtures"]`): a cache, a corpus and one trained run for the whole session.

A plugin and not an import, which would train the run once a module. Workers of pytest-xdist share what is here.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_tools import call, listing, train_flags, write_stories


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of the session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run_cache(session_folder: Path) -> Path:
    """MLA_JAX_CACHE of the session: tokenizers, tokens and compiled programs."""
    return session_folder / "cache"


@pytest.fixture
def run_env(run_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The session's cache for runs inside this process."""
    monkeypatch.setenv("MLA_JAX_CACHE", str(run_cache))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return run_cache


@pytest.fixture(scope="session")
def trained_run(session_folder: Path, run_cache: Path) -> Iterator[Path]:
    """A run folder with checkpoints 5 and 10, made by the command line. Not to be changed: copy it."""
    workdir, stories = session_folder / "shared_run", session_folder / "stories.txt"
    with (session_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first worker trains, the others wait
        if not (workdir / "report.md").exists():
            call(*train_flags(write_stories(stories), workdir), cache=run_cache)
    before = listing(workdir)
    yield workdir
    assert listing(workdir) == before, "a test changed the run"


@pytest.fixture(scope="session")
def stories_file(session_folder: Path, trained_run: Path) -> Path:
    """The stories that `trained_run` was trained on."""
    return session_folder / "stories.txt"

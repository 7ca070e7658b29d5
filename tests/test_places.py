"""May a folder that was named be written: each rule, in the sentence of the one who asks."""

import os
from pathlib import Path

import pytest

from mla_jax import places
from mla_jax.errors import UserError


def test_what_a_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    (tmp_path / "a").mkdir()
    assert places.names_in(tmp_path, "--out") == ["a", "b"]
    assert places.names_in(tmp_path / "a" / "new", "--out") == []


@pytest.mark.parametrize("name", ["file", "file/run", "dangling"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"^--out is '.*{name}', but '.*' is no folder: give another path\.$"):
        places.names_in(tmp_path / name, "--out")


def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used .*too long.*: give another folder"):
        places.names_in(tmp_path / ("x" * 300), "--out")


def test_a_pattern_is_no_place_for_checkpoints(tmp_path: Path) -> None:
    places.check_for_checkpoints(tmp_path, "--out")
    with pytest.raises(UserError, match=r"--out is .* has \* \? in it, .* without \* \? \[\.$"):
        places.check_for_checkpoints(tmp_path / "a?" / "b*", "--out")


def test_the_innermost_folder_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.writable(tmp_path / "a" / "b", "--out") == tmp_path == places.writable(tmp_path, "--out")
    assert places.writable(tmp_path, "--out", beside=True) == tmp_path.parent
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written to: choose another folder"):
        places.writable(tmp_path / "a", "--out")

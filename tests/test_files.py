"""Small files: held by one process at a time, read as JSON lines."""

import subprocess
import sys
from pathlib import Path

from mla_jax import files


def test_a_file_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked(path):
        assert files.locked(path) is None and files.locked(path, "a+") is None
    files.locked(path).close()


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[2]\n\xff{"b"')
    assert list(files.numbered(files.lines_of(path))) == [(1, {"a": 1}), (3, None), (4, None)]
    assert files.parsed("[" * 100_000) is None


def test_it_imports_no_jax() -> None:
    script = "import sys, mla_jax.files; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

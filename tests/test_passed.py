"""mla_jax.kernels.passed: a self-check that passed is remembered, for the same device, libraries and sources alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from test_backend import A100, CPU, H100

from mla_jax.kernels import passed, probe, train_probe


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A compilation cache, and a GPU."""
    monkeypatch.setattr(jax, "local_devices", lambda: [H100])
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    yield tmp_path / "jax" / "mla_jax_checks"
    jax.config.update("jax_compilation_cache_dir", before)


class Check:
    """Counts how often it is run; says what it is given."""

    def __init__(self, *says: str):
        self.says, self.runs = says, 0

    def __call__(self) -> str:
        self.runs += 1
        return self.says[min(self.runs, len(self.says)) - 1]


def test_what_passed_is_not_run_again(cache: Path) -> None:
    check = Check("")
    assert [passed.once("a", check) for _ in range(3)] == ["", "", ""] and check.runs == 1
    other = Check("")
    passed.once("b", other)
    assert other.runs == 1, "each check has a note of its own"
    notes = [json.loads(path.read_text()) for path in sorted(cache.iterdir())]
    assert [note["check"] for note in notes] == ["a", "b"] and "H100" in notes[0]["device"]


def test_a_failure_is_tried_again(cache: Path) -> None:
    check = Check("out of memory", "")
    assert [passed.once("a", check) for _ in range(3)] == ["out of memory", "", ""] and check.runs == 2


@pytest.mark.parametrize("what", ["device", "driver", "flags", "libraries", "plugin", "precision", "sources"])
def test_whatever_it_depends_on_makes_it_run_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    check = Check("")
    for name in passed.SOURCES:
        (tmp_path / "package" / name).mkdir(parents=True)
    monkeypatch.setattr(passed, "PACKAGE", tmp_path / "package")
    passed.once("a", check)
    if what == "device":
        monkeypatch.setattr(jax, "local_devices", lambda: [A100])
    elif what == "driver":
        (tmp_path / "version").write_text("580.1")
        monkeypatch.setattr(passed, "DRIVER", tmp_path / "version")
    elif what == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")
    elif what == "libraries":
        monkeypatch.setattr(jax, "__version__", "0.0.1")
    elif what == "plugin":
        monkeypatch.setattr(passed, "_library", lambda installed: f"nvidia-cudnn-{installed.version}")
    elif what == "precision":
        monkeypatch.setattr(type(jax.config), "jax_default_matmul_precision", "tensorfloat32", raising=False)
    else:
        (tmp_path / "package" / "kernels" / "norm.py").write_text("x = 1")
    passed.once("a", check)
    assert check.runs == 2


def test_a_cache_that_cannot_be_read_or_is_switched_off_keeps_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Check("")
    jax.config.update("jax_compilation_cache_dir", str(cache.parent / ("x" * 300)))  # is_file raises
    passed.once("a", check), passed.once("a", check)
    jax.config.update("jax_compilation_cache_dir", str(cache.parent))
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        passed.once("a", check), passed.once("a", check)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert check.runs == 4 and not cache.exists()


def test_nothing_is_noted_for_cpus_without_a_cache_or_where_it_cannot_be_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Check("")
    cache.parent.mkdir()
    cache.write_text("a file, where the folder would be")
    passed.once("a", check), passed.once("a", check)
    jax.config.update("jax_compilation_cache_dir", None)
    passed.once("a", check), passed.once("a", check)
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    passed.once("a", check), passed.once("a", check)
    jax.config.update("jax_compilation_cache_dir", str(cache.parent))
    monkeypatch.setattr(jax, "local_devices", lambda: [CPU])
    cache.unlink()
    passed.once("a", check), passed.once("a", check)
    assert check.runs == 8 and not cache.exists()


@pytest.mark.parametrize("module", [probe, train_probe])
def test_both_self_checks_are_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    check = Check("")
    monkeypatch.setattr(module, "_try", check)
    for _ in range(2):  # as two processes would
        module.obstacle.cache_clear()
        assert module.obstacle() == ""
    module.obstacle.cache_clear()
    assert check.runs == 1 and len(list(cache.iterdir())) == 1

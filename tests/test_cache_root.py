"""mla_jax.cache_root: one rule for all that is cached, and everything that is cached under it."""

from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mla_jax import compile_cache
from mla_jax.cache_root import cache_root


@pytest.mark.parametrize(
    ("configured", "variables", "expected"),
    [
        ("", {}, "HOME/.cache/mla_jax"),
        ("", {"XDG_CACHE_HOME": "/x"}, "/x/mla_jax"),
        ("", {"XDG_CACHE_HOME": "~/x"}, "HOME/x/mla_jax"),
        ("", {"XDG_CACHE_HOME": "/x", "MLA_JAX_CACHE": "~/m"}, "HOME/m"),
        ("~/c", {"XDG_CACHE_HOME": "/x", "MLA_JAX_CACHE": "/m"}, "HOME/c"),
        ("", {"XDG_CACHE_HOME": "", "MLA_JAX_CACHE": ""}, "HOME/.cache/mla_jax"),
    ],
)
def test_the_first_that_is_given_wins(configured, variables, expected, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "MLA_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root(configured) == Path(expected.replace("HOME", str(tmp_path)))


def test_compiled_programs_are_kept_there_unless_the_user_chose(tmp_path: Path, monkeypatch) -> None:
    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    compile_cache.enable()
    assert "jax_compilation_cache_dir" not in chosen
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compile_cache.enable()
    assert chosen["jax_compilation_cache_dir"] == str(tmp_path / "jax")


def test_a_second_start_compiles_no_small_program_either(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folder, least = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        compile_cache.enable()
        compilation_cache.reset_cache()  # it holds on to the place that it found first
        jax.jit(lambda x: x + 1)(1)
        assert any((tmp_path / "jax").iterdir())
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
        compilation_cache.reset_cache()

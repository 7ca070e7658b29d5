"""mla_jax.cache_root: one rule for all that is cached, and everything that is cached under it."""

from pathlib import Path

import jax
import pytest

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
    assert not chosen
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compile_cache.enable()
    assert chosen["jax_compilation_cache_dir"] == str(tmp_path / "jax")

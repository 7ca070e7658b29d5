"""JAX's persistent compilation cache, in the user's cache folder: a second start of the same model compiles nothing."""

import os
from pathlib import Path

import jax


def enable() -> None:
    """Switch it on unless the user chose a place, or none, through JAX_COMPILATION_CACHE_DIR."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = (
        os.environ.get("MLA_JAX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mla_jax"
    )
    jax.config.update("jax_compilation_cache_dir", str(Path(root) / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

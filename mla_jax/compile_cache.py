"""JAX's persistent compilation cache, in the user's cache folder: a second start of the same model compiles nothing."""

import os

import jax

from mla_jax.cache_root import cache_root


def enable() -> None:
    """Switch it on unless the user chose a place, or none, through JAX_COMPILATION_CACHE_DIR.

    A kernel's text names source lines that called it, and a compiled program is found by its kernels' texts: without
    lines it is found whoever called first in a process (kernels/kernel_call.py), and after lines have moved.
    """
    jax.config.update("jax_traceback_in_locations_limit", 0)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_root() / "jax"))
    # Small programs too: fresh weights and an optimizer's state are a dozen, each quickly compiled, but at every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

"""Where everything that can be made again is kept: token files, compiled programs, judges' replies."""

import os
from pathlib import Path


def cache_root(configured: str = "") -> Path:
    """`configured`, else $MLA_JAX_CACHE, else $XDG_CACHE_HOME/mla_jax, else ~/.cache/mla_jax; `~` is the home folder.

    Subfolders: tokenizers, tokens, datasets (data.cache), jax (compile_cache), judge (judge.store).
    """
    chosen = configured or os.environ.get("MLA_JAX_CACHE")
    return Path(os.path.expanduser(chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mla_jax")))

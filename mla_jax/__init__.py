"""mla_jax: small language models with a compressed KV cache, in JAX/Flax.

The public API, loaded when first used: load_config, train, load_run, Sampler, evaluate, kv_bytes;
UserError, which is what they raise where something is wrong with what they were given.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_config": "mla_jax.config_files",
    "train": "mla_jax.train.loop",
    "load_run": "mla_jax.runs",
    "Sampler": "mla_jax.sample.sampler",
    "evaluate": "mla_jax.eval_mode",
    "kv_bytes": "mla_jax.accounting",
    "UserError": "mla_jax.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("mla_jax.train")  # a package that can be called
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mla_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

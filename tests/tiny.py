"""Tiny models for tests: configs, the grid of variants, weights that hide nothing, and quick compilation."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.model.backend import Backend
from mla_jax.model.transformer import Transformer

NAMED = ("mha", "mha_rope", "gqa", "mla", "mla_rope", "mla_rope_paper_b", "mla_per_head")
SIZES = ("xs", "s", "m", "l", "xl")
REFERENCE = Backend("float32", "xla", "the plain twin that tests compare against")

_SMALL = {
    "model.n_layers": 2,
    "model.d_model": 32,
    "model.n_heads": 4,
    "model.vocab_size": 40,
    "model.max_len": 16,
    "model.d_ff": 24,
    "train.seq_len": 16,
    "sample.max_new_tokens": 8,
}


def tiny_config(name: str = "mla_rope", **overrides: Any) -> Config:
    """A named config at width 32 with 4 heads and 2 layers; `overrides` are dotted knobs."""
    values = dict(_SMALL)
    if name == "mla_rope_paper_b":
        values["model.qk_rope_head_dim"] = 8  # the config file takes it from its own, larger width
    return load_config(name, **(values | overrides))


def _grid() -> dict[str, dict[str, Any]]:
    """Points of design.md's grid. All widths of a latent point differ, so that no mix-up of two of them fits."""
    positions = {
        "none": {"position": "none"},
        "learned": {"position": "learned"},
        "decoupled": {"position": "rope", "rope_placement": "decoupled", "qk_rope_head_dim": 4},
        "decompressed": {"position": "rope", "rope_placement": "decompressed"},
    }
    mha, gqa, mqa = {"attention": "mha"}, {"attention": "gqa", "n_kv_heads": 2}, {"attention": "gqa", "n_kv_heads": 1}
    rope = {"position": "rope"}
    widths = {"attention": "mla", "qk_nope_head_dim": 10, "v_head_dim": 6}
    joint = widths | {"latent": "joint", "kv_lora_rank": 12}
    per_head = widths | {"latent": "per_head", "kv_lora_rank": 5}
    points = {f"{name}-{p}": kind | {"position": p} for name, kind in (("mha", mha), ("gqa", gqa)) for p in _PLAIN}
    points |= {
        f"{name}-{p}-norm_{norm}": kind | positions[p] | {"latent_norm": norm}
        for name, kind in (("joint", joint), ("per_head", per_head))
        for p in positions
        for norm in ("rms", "none")
    }
    points |= {
        f"joint-{p}-q_lora-norm_{norm}": joint | positions[p] | {"q_lora_rank": 14, "latent_norm": norm}
        for p, norm in (("decoupled", "rms"), ("decoupled", "none"), ("learned", "rms"))
    }
    points |= {
        "mqa-rope": mqa | rope,
        "mha-rope-head_dim": mha | rope | {"head_dim": 6},
        "mha-rope-qk_norm": mha | rope | {"qk_norm": True},
        "gqa-learned-qk_norm": gqa | {"position": "learned", "qk_norm": True},
        "joint-learned-qk_norm": joint | positions["learned"] | {"qk_norm": True},
        "joint-decoupled-qk_norm": joint | positions["decoupled"] | {"qk_norm": True},
        "joint-decompressed-qk_norm": joint | positions["decompressed"] | {"qk_norm": True},
        "per_head-decoupled-qk_norm": per_head | positions["decoupled"] | {"qk_norm": True},
        "mha-learned-gpt": mha | {"position": "learned", "block": "gpt"},
        "gqa-rope-gpt": gqa | rope | {"block": "gpt"},
        "joint-decoupled-gpt": joint | positions["decoupled"] | {"block": "gpt", "q_lora_rank": 14},
        "joint-learned-gpt-qk_norm": joint | positions["learned"] | {"block": "gpt", "qk_norm": True},
        "per_head-decoupled-gpt": per_head | positions["decoupled"] | {"block": "gpt"},
    }
    return points


_PLAIN = ("none", "learned", "rope")
GRID = _grid()

# Points that repeat what others show: the expensive tests of the grid leave them to `launch/test.sh --full`.
_REPEATS = {"gqa-none", "gqa-learned", "joint-none-norm_none", "joint-learned-norm_none", "per_head-none-norm_rms"}
_REPEATS |= {"per_head-learned-norm_rms", "joint-decoupled-q_lora-norm_none", "joint-learned-q_lora-norm_rms"}
_REPEATS |= {"joint-learned-gpt-qk_norm", "mha-rope-head_dim", "joint-none-norm_rms", "per_head-none-norm_none"}
SLOW_GRID = [pytest.param(point, marks=pytest.mark.slow) if point in _REPEATS else point for point in GRID]


def grid_config(point: str, **overrides: Any) -> Config:
    """The tiny config of a point of GRID."""
    values = {f"model.{key}": value for key, value in GRID[point].items()}
    return load_config("base", **(_SMALL | values | overrides))


def reference_model(config: Config) -> Transformer:
    """The model in float32 on plain XLA attention."""
    return Transformer(config.model, REFERENCE)


@functools.lru_cache(maxsize=256)
def abstract_params(model: Transformer) -> Any:
    """Shapes and dtypes of the parameters, computing nothing."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]


def random_params(model: Transformer, seed: int = 0) -> Any:
    """Weights that hide nothing: attention far from uniform, gains away from 1 and biases away from 0.

    Activations stay of size 1, so that float32 rounding stays below 1e-5. Drawn by numpy: compiling `model.init`
    takes seconds.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: Any) -> jax.Array:
        name = path[-1].key
        noise = rng.standard_normal(leaf.shape)
        values = 1 + 0.2 * noise if name.endswith("gain") else 0.2 * noise
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def random_tokens(config: Config, rows: int, length: int, seed: int = 0) -> jax.Array:
    """[rows, length] int32, all below the vocabulary's size."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.model.vocab_size, (rows, length)), jnp.int32)


# Without XLA's costly optimisations: tests run once and compile often.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick_jit(function: Callable) -> Callable:
    """jax.jit that compiles in half the time."""
    return jax.jit(function, compiler_options=QUICK)


def quick(jitted: Any, *arguments: Any) -> Any:
    """A function that the code has jitted itself, compiled as by `quick_jit` for arguments of these shapes."""
    return jitted.lower(*arguments).compile(compiler_options=QUICK)

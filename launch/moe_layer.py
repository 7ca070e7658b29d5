"""Times the routed part of one layer of experts (route, sort, gather, products, combine), forward and backward.

    python launch/moe_layer.py --out rows.jsonl --tokens 65536 --d_model 512 --d_expert 512 --impl grouped:tokamax

--impl: masked_dense, gathered, grouped:xla, grouped:tokamax, grouped:pallas, reference, dense (one feed-forward of the
width top_k x d_expert: the same arithmetic without routing); may be repeated. One row is appended for each, with what
went wrong where something did. The rows carry the median of REPEATS timed calls after one that warms up.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_jax import rows
from mla_jax.config import ModelConfig
from mla_jax.config_files import load_config
from mla_jax.model import moe_paths
from mla_jax.model.backend import Backend, choose
from mla_jax.model.experts import Experts
from mla_jax.model.functions import activation
from mla_jax.model.moe import route

REPEATS = 20
IMPLS = ["reference", "masked_dense", "gathered", "grouped:xla", "grouped:tokamax", "grouped:pallas", "dense"]


def config_of(args: argparse.Namespace) -> ModelConfig:
    return load_config(
        "moe_mla_rope",
        **{
            "model.d_model": args.d_model,
            "model.d_expert": args.d_expert,
            "model.n_routed_experts": args.experts,
            "model.n_shared_experts": 0,
            "model.top_k": args.top_k,
            "model.block": args.block,
            "model.dtype": args.dtype,
        },
    ).model


def inputs(cfg: ModelConfig, n_tokens: int, dtype: Any) -> tuple[Any, ...]:
    """x, router logits (uneven as in training: loads differ by a few tens of percent), experts, cotangent."""
    keys = jax.random.split(jax.random.key(0), 7)
    e, d, f = cfg.n_routed_experts, cfg.d_model, cfg.d_expert
    gate = jax.random.normal(keys[4], (e, d, f), dtype) * d**-0.5 if cfg.block == "default" else None
    experts = Experts(
        gate,
        jax.random.normal(keys[2], (e, d, f), dtype) * d**-0.5,
        jax.random.normal(keys[3], (e, f, d), dtype) * f**-0.5,
    )
    logits = jax.random.normal(keys[1], (n_tokens, e)) + 0.1 * jax.random.normal(keys[5], (e,))
    x, cotangent = (jax.random.normal(key, (n_tokens, d), dtype) for key in (keys[0], keys[6]))
    return x, logits, experts, cotangent


def function(cfg: ModelConfig, impl: str, backend: Backend) -> Any:
    """(x, logits, experts, cotangent) -> output and gradients."""
    name, _, grouped_impl = impl.partition(":")

    def dense(x: jax.Array, logits: jax.Array, experts: Experts) -> jax.Array:
        first = [None if w is None else jnp.concatenate(list(w[: cfg.top_k]), axis=1) for w in experts[:2]]
        hidden = activation(None if first[0] is None else x @ first[0], x @ first[1])
        return hidden @ experts.w_down[: cfg.top_k].reshape(-1, cfg.d_model)

    def routed(x: jax.Array, logits: jax.Array, experts: Experts) -> jax.Array:
        idx, weight, _ = route(logits, jnp.zeros(cfg.n_routed_experts), cfg)
        chosen = Backend(backend.dtype, "xla", grouped_impl=grouped_impl or "xla", train_impl=backend.train_impl)
        return moe_paths.PATHS[name](x, idx, weight, experts, chosen)

    def loss(x: Any, logits: Any, experts: Any, cotangent: Any) -> tuple[jax.Array, jax.Array]:
        y = (dense if name == "dense" else routed)(x, logits, experts)
        return jnp.sum(y.astype(jnp.float32) * cotangent.astype(jnp.float32)), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def measure(cfg: ModelConfig, impl: str, n_tokens: int) -> dict[str, Any]:
    """ms_forward_backward, ms_forward, compile_s, temp_mib, and the difference from grouped:xla, or `error`."""
    backend = choose(cfg)
    arguments = inputs(cfg, n_tokens, backend.jnp_dtype)
    both = function(cfg, impl, backend)
    began = time.perf_counter()
    compiled = both.lower(*arguments).compile()
    metrics: dict[str, Any] = {"compile_s": time.perf_counter() - began}
    memory = compiled.memory_analysis()
    metrics["temp_mib"] = memory.temp_size_in_bytes / 2**20 if memory else None
    metrics["ms_forward_backward"] = median_ms(compiled, arguments)
    forward = jax.jit(lambda *a: both(*a)[0][1])  # gradients are dead code there
    metrics["ms_forward"] = median_ms(forward, arguments)
    if impl not in ("dense", "grouped:xla"):
        (_, y), gradients = compiled(*arguments)
        (_, wanted), wanted_gradients = function(cfg, "grouped:xla", backend)(*arguments)
        metrics["largest_difference"] = float(jnp.abs(y - wanted).max() / jnp.abs(wanted).max())
        pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True)
        metrics["largest_gradient_difference"] = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)
    return metrics


def median_ms(run: Any, arguments: tuple) -> float:
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--d_expert", type=int, default=512)
    parser.add_argument("--experts", type=int, default=62)
    parser.add_argument("--top_k", type=int, default=6)
    parser.add_argument("--block", choices=["default", "gpt"], default="gpt")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--impl", action="append", required=True, choices=IMPLS)
    args = parser.parse_args()
    cfg = config_of(args)
    shape = {name: getattr(args, name) for name in ("tokens", "d_model", "d_expert", "experts", "top_k", "block")}
    for impl in args.impl:
        try:
            metrics = measure(cfg, impl, args.tokens)
        except Exception as error:  # out of memory, a kernel that does not compile: the others are still worth having
            metrics = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
        row = rows.result_row(f"moe_layer {impl}", "-", shape | metrics, "-", "-")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        rows.append_row(args.out, row)
        figures = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in metrics.items()}
        print(f"{impl} {shape} {figures}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    main()

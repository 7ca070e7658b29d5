"""QK-clip (Kimi K2, arXiv 2507.20534, section 2.1): heads whose attention logits grow too large get smaller weights.

After an optimizer step, a head whose largest logit was S > tau has the product of its query and key scaled by tau / S.
Muon's full-rank updates let logits grow, and more so where the key is a product of factors (MLA). The largest logit is
that of the first row of each microbatch, the one that the step computes besides fused attention.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.config import ModelConfig


def clip_queries_and_keys(params: Any, logit_max: jax.Array, tau: float, cfg: ModelConfig) -> Any:
    """params with w_q (or w_uq), w_k (or w_uk) and their biases scaled per head; logit_max [L, H] float32.

    MHA and GQA: keys by sqrt(tau / S) of the group's worst head, queries by what is left. MLA: the part without
    rotation half each; of the rotary part the query alone, as its key belongs to all heads.
    """
    share = jnp.minimum(1.0, tau / jnp.maximum(logit_max, tau))  # [L, H]
    params = dict(params)
    for i in range(cfg.n_layers):
        layer = dict(params[f"layer_{i}"])
        layer["attention"] = _clip_layer(layer["attention"], share[i], cfg)
        params[f"layer_{i}"] = layer
    return params


def _clip_layer(attention: Any, share: jax.Array, cfg: ModelConfig) -> Any:
    if cfg.attention == "mla":
        key = jnp.sqrt(share)
        nope = jnp.broadcast_to(key[:, None], (cfg.n_heads, cfg.qk_nope_head_dim))
        rope = jnp.broadcast_to(share[:, None], (cfg.n_heads, cfg.qk_rope_head_dim))
        query = jnp.concatenate([nope, rope], axis=-1)
        uk_axis = 1 if cfg.latent == "joint" else 0  # [C, H, N], [H, r, N]
        scales = {"w_q": query[None], "w_uq": query[None], "b_q": query}
        scales["w_uk"] = jnp.expand_dims(key, [axis for axis in range(3) if axis != uk_axis])
    else:
        worst = jnp.min(share.reshape(cfg.n_kv_heads, -1), axis=-1)
        key = jnp.sqrt(worst)
        query = share / jnp.repeat(key, cfg.n_heads // cfg.n_kv_heads)
        scales = {"w_q": query[None, :, None], "b_q": query[:, None], "w_k": key[None, :, None], "b_k": key[:, None]}
    return {name: leaf * scales[name] if name in scales else leaf for name, leaf in attention.items()}

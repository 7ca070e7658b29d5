"""Experts in place of the feed-forward of configs/mla.py: joint latent attention, a learned position table.

    python -m mla_jax.main --config configs/moe_mla.py --workdir runs/moe_mla --config.data.path=TinyStories-train.txt

KV cache: 256 numbers a token and layer at size m (C): 25 % of MHA.
An expert is about an eighth of the dense feed-forward wide (d/3 rounded to 16; SwiGLU), so that the 8 that a token
meets are about as much arithmetic as the dense layer. Cost and result: not measured yet (launch/gpu_moe.sh).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "mla"
    m.position = "learned"
    m.ffn = "moe"
    m.n_routed_experts = 62
    m.n_shared_experts = 2
    m.top_k = 6
    m.d_expert = round(m.d_model / 3 / 16) * 16
    return c

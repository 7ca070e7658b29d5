"""Grouped-query attention with RoPE, 2 key/value heads (`model.n_kv_heads=1` is MQA).

    python -m mla_jax.main --config configs/gqa.py --workdir runs/gqa --config.data.path=TinyStories-train.txt

KV cache: 256 numbers a token and layer at size m (2 G Dh): 25 % of MHA.
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "gqa"
    m.n_kv_heads = 2
    m.position = "rope"
    return c

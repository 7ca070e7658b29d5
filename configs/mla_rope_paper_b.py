"""As mla_rope with a rotary key as wide as a head: the cache of paper B's "68 %".

    python -m mla_jax.main --config configs/mla_rope_paper_b.py --workdir runs/mla_rope_paper_b

KV cache: 320 numbers a token and layer at size m (C + R): 31.25 % of MHA.
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "mla"
    m.position = "rope"
    m.qk_rope_head_dim = m.d_model // m.n_heads
    return c

"""Multi-head attention with RoPE: the control that paper A lacks.

    python -m mla_jax.main --config configs/mha_rope.py --workdir runs/mha_rope --config.data.path=TinyStories-train.txt

KV cache: 1,024 numbers a token and layer at size m (2 H Dh): 100 %.
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "mha"
    m.position = "rope"
    return c

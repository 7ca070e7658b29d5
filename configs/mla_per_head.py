"""Paper A's equations: a latent for K and one for V in every head, rotated after expansion.

    python -m mla_jax.main --config configs/mla_per_head.py --workdir runs/mla_per_head

KV cache: 512 numbers a token and layer at size m (2 H r): 50 % of MHA.
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "mla"
    m.latent = "per_head"
    m.position = "rope"
    m.rope_placement = "decompressed"
    return c

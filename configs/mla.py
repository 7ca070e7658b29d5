"""Multi-head latent attention, joint latent, learned positions: no RoPE.

    python -m mla_jax.main --config configs/mla.py --workdir runs/mla --config.data.path=TinyStories-train.txt

KV cache: 256 numbers a token and layer at size m (C): 25 % of MHA.
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "mla"
    m.position = "learned"
    return c

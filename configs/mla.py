"""Multi-head latent attention, joint latent, learned positions: no RoPE.

    python -m mla_jax.main --config configs/mla.py --workdir runs/mla --config.data.path=TinyStories-train.txt

KV cache: 256 numbers a token and layer at size m (C): 25 % of MHA.
Cost and result: 1,000 steps of 128 x 512 take about a minute on an H100 (block=gpt, dropout 0.1); best validation loss
1.861 at step 800 on the 20k-story TinyStories subset, one seed (docs/results/tinystories_gpu.md).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "mla"
    m.position = "learned"
    return c

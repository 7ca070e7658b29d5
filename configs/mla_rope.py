"""Multi-head latent attention with decoupled RoPE, DeepSeek's form: the headline variant.

    python -m mla_jax.main --config configs/mla_rope.py --workdir runs/mla_rope --config.data.path=TinyStories-train.txt

KV cache: 288 numbers a token and layer at size m (C + R): 28.1 % of MHA, 3.56 times smaller.
Cost and result: 1,000 steps of 128 x 512 take about a minute on an H100 (block=gpt, dropout 0.1); best validation loss
1.845 at step 750 on the 20k-story TinyStories subset, one seed (docs/results/tinystories_gpu.md).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config(size: str = "m") -> ConfigDict:
    c = base_config(size)
    m = c.model
    m.attention = "mla"
    m.position = "rope"
    return c

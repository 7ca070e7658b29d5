"""MoE-MLA-RoPE whose 8 active experts are one dense tanh-GELU layer of width 4d: paper B's FLOP-matched model.

    python -m mla_jax.main --config configs/moe_mla_rope_flop_matched.py --workdir runs/moe_flop \
        --config.data.path=TinyStories-train.txt

The dense control is mla_rope with --config.model.block=gpt: the same products for a token, but for the router's (d x 62
a layer, 0.7 % of the training FLOPs at size m with 8,192 rows and 512 tokens). d_expert = d/2: 256 at size m.
A step takes 1.43 to 1.45 times the dense one's on an H200 (docs/results/moe_gpu.md).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import load_config_dict


def get_config(size: str = "m") -> ConfigDict:
    c = load_config_dict(f"moe_mla_rope:{size}")
    c.model.block = "gpt"
    c.model.d_expert = c.model.d_model // 2
    return c

"""Paper B's model, MoE-MLA-RoPE: 2 shared and 62 routed micro-experts, top-6, balanced by a selection bias.

    python -m mla_jax.main --config configs/moe_mla_rope.py --workdir runs/moe_mla_rope \
        --config.data.path=TinyStories-train.txt

KV cache: 288 numbers a token and layer at size m (C + R): 28.1 % of MHA.
Experts are about an eighth of the dense feed-forward wide (config_files.expert_config).
Cost and result: not measured yet (launch/gpu_moe.sh).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import expert_config


def get_config(size: str = "m") -> ConfigDict:
    return expert_config(f"mla_rope:{size}")

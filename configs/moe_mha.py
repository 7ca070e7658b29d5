"""Experts in place of the feed-forward of configs/mha.py: multi-head attention, a learned position table.

    python -m mla_jax.main --config configs/moe_mha.py --workdir runs/moe_mha --config.data.path=TinyStories-train.txt

KV cache: 1,024 numbers a token and layer at size m (2 H Dh): 100 %.
Experts are about an eighth of the dense feed-forward wide (config_files.expert_config).
Cost and result: not measured yet (launch/gpu_moe.sh).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import expert_config


def get_config(size: str = "m") -> ConfigDict:
    return expert_config(f"mha:{size}")

"""Experts in place of the feed-forward of configs/mla.py: joint latent attention, a learned position table.

    python -m mla_jax.main --config configs/moe_mla.py --workdir runs/moe_mla --config.data.path=TinyStories-train.txt

KV cache: 256 numbers a token and layer at size m (C): 25 % of MHA.
Experts are about an eighth of the dense feed-forward wide (config_files.expert_config).
Cost and result: not measured with these experts. With tanh-GELU ones of width 34 (block=gpt) at size s the best
validation loss is 0.7913 ± 0.0085 after 800 steps of 64 x 256 on the embedded stories, 3 seeds, where dense MLA has
0.7807 ± 0.0123 and MHA 0.7605 ± 0.0063 (docs/results/study_paper_b/report.md).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import expert_config


def get_config(size: str = "m") -> ConfigDict:
    return expert_config(f"mla:{size}")

"""Experts in place of the feed-forward of configs/mha.py: multi-head attention, a learned position table.

    python -m mla_jax.main --config configs/moe_mha.py --workdir runs/moe_mha --config.data.path=TinyStories-train.txt

KV cache: 1,024 numbers a token and layer at size m (2 H Dh): 100 %.
Experts are about an eighth of the dense feed-forward wide (config_files.expert_config).
Cost and result: not measured with these experts. With tanh-GELU ones (block=gpt) the best validation loss is
1.8383 ± 0.0084 at width 256 and 1.8895 ± 0.0166 at width 32 after 1,000 steps of 64 x 512 on the 20k-story TinyStories
subset, 3 seeds, where dense MHA has 1.8710 ± 0.0049 (docs/results/study_paper_b_files/report.md).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import expert_config


def get_config(size: str = "m") -> ConfigDict:
    return expert_config(f"mha:{size}")

"""Paper B's model, MoE-MLA-RoPE: 2 shared and 62 routed micro-experts, top-6, balanced by a selection bias.

    python -m mla_jax.main --config configs/moe_mla_rope.py --workdir runs/moe_mla_rope \
        --config.data.path=TinyStories-train.txt

KV cache: 288 numbers a token and layer at size m (C + R): 28.1 % of MHA.
Experts are about an eighth of the dense feed-forward wide (config_files.expert_config).
Cost and result: not measured with these experts. With tanh-GELU ones of width 256 (block=gpt) a step takes 1.43 times
the dense one's on an H200 (docs/results/moe_gpu.md). After 1,000 steps of 64 x 512 on the 20k-story TinyStories subset,
3 seeds, the best validation loss is 1.7801 ± 0.0240 with them and 1.7974 ± 0.0237 with ones of width 32, where dense
MLA+RoPE has 1.8083 ± 0.0061 and MHA 1.8710 ± 0.0049 (docs/results/study_paper_b_files/report.md).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import expert_config


def get_config(size: str = "m") -> ConfigDict:
    return expert_config(f"mla_rope:{size}")

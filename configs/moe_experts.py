"""Paper B's expert grid at size m: N experts in all, 8 of width 256 active; the argument is N: 8, 16, 32, 64 or 128.

    python -m mla_jax.main --config configs/moe_experts.py:16 --workdir runs/experts_16

2 experts are shared, N - 2 routed, top-6. N = 8 is the dense control: the same 8 experts as one tanh-GELU layer of
width 2,048. All have the same active products but for the router.
Cost and result: 16, 32 and 128 are not measured. On an H200 a step of N = 64 takes 57.6 ms where N = 8 takes 40.2
(128 x 512 tokens, docs/results/moe_gpu.md); after 1,000 steps of 64 x 512 with dropout 0.1 on the 20k-story TinyStories
subset, 3 seeds, the best validation loss is 1.7801 ± 0.0240 with N = 64 and 1.8083 ± 0.0061 with N = 8
(`moe_mla_rope_flops` and `mla_rope` in docs/results/study_paper_b_files/report.md).
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config, load_config_dict

COUNTS = (8, 16, 32, 64, 128)


def get_config(n_experts: str = "64") -> ConfigDict:
    if n_experts not in map(str, COUNTS):
        raise ValueError(f"{n_experts!r} is not one of {', '.join(map(str, COUNTS))}: write e.g. moe_experts.py:16")
    if n_experts == "8":
        c = base_config("m")  # mla with decoupled RoPE
        c.model.block = "gpt"
        c.model.d_ff = 8 * 256
        return c
    c = load_config_dict("moe_mla_rope_flop_matched:m")
    c.model.n_routed_experts = int(n_experts) - 2
    return c

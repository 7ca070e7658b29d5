"""Every stage of a study at toy size: 13 runs, 3 to 5 minutes on two CPU cores. Its figures judge no paper.

python -m mla_jax.main --mode study --config configs/study_smoke.py --workdir studies/smoke
"""

from ml_collections import ConfigDict

from mla_jax.study import declare


def get_config() -> ConfigDict:
    c = declare.new(
        "smoke",
        "Smoke study: toy models on embedded stories",
        papers=("A", "B"),
        verdicts=False,
        plan_device="cpu x86_64",
        plan_flops=1.5e10,
        plan_overhead_s=20.0,
    )
    toy = {
        "model.n_layers": 2,
        "model.d_model": 64,
        "model.n_heads": 4,
        "model.max_len": 128,
        "tokenizer.vocab_size": 512,
        "data.stories": 3000,
        "data.valid_stories": 60,
        "train.steps": 120,
        "train.batch_size": 16,
        "train.seq_len": 64,
        "train.log_every": 10,
        "train.eval_every": 40,
        "train.tensorboard": False,
        "optim.learning_rate": 4e-3,
        "sample.num_samples": 1,
        "sample.max_new_tokens": 48,
    }
    measured = dict(lengths=(1, 2, 4), fact_stories=20, stories=2)
    declare.tier(c, "headline", "xs", toy, learning_rates=(4e-3,), **measured)
    declare.tier(c, "grid", "xs", toy | {"train.steps": 60, "train.eval_every": 30}, lengths=(1, 2), fact_stories=20)
    learned = {"model.position": "learned", "model.latent": "per_head"}
    per_head = {"model.position": "rope", "model.latent": "per_head", "model.rope_placement": "decompressed"}
    both = (0, 1)
    declare.point(c, "mha", "mha", "headline", {}, both, 1, learning_rates=(2e-3, 4e-3))
    declare.point(c, "mha_rope", "mha_rope", "headline", {}, both, 1)
    declare.point(c, "per_head_learned_r2", "mla", "headline", learned, both, 1)
    declare.point(c, "per_head_rope_r2", "mla_rope", "headline", per_head, both, 1)
    for part in (4, 8, 16):
        knobs = per_head | {"model.kv_lora_rank": 16 // part}
        declare.point(c, f"s_per_head_rope_r{part}", "mla_rope", "grid", knobs, priority=2)
    experts = {"ffn": "moe", "n_routed_experts": 6, "n_shared_experts": 2, "top_k": 2, "d_expert": 24}
    experts = {f"model.{name}": value for name, value in experts.items()}
    declare.point(c, "moe_mla_rope", "mla_rope", "grid", experts, priority=3)
    return c

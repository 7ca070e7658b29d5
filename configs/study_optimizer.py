"""Paper C (arXiv 2509.24406): Muon against AdamW, each at its best learning rate, on MHA, MLA+RoPE and experts.

    python -m mla_jax.main --mode study --config configs/study_optimizer.py --workdir studies/optimizer

Headline: size s, 1,000 steps of 64 x 512, 3 learning rates an optimizer on seed 0, 3 seeds. What is judged: the share
of AdamW's steps after which Muon has AdamW's final loss, and the final losses.
"""

from ml_collections import ConfigDict

from mla_jax.study import declare

RATES = {"adamw": (5e-4, 1e-3, 2e-3), "muon": (5e-4, 1e-3, 2e-3)}  # Muon's update is scaled to AdamW's size
EXPERTS = {
    "model.ffn": "moe",
    "model.n_routed_experts": 14,
    "model.n_shared_experts": 2,
    "model.top_k": 6,
    "model.d_expert": 128,
}
MODELS = {"mha": ("mha", {}, ""), "mla_rope": ("mla_rope", {}, "")}
MODELS |= {"moe_mla_rope": ("mla_rope", EXPERTS, "model.ffn=moe")}


def get_config() -> ConfigDict:
    c = declare.new("optimizer", "Muon against AdamW", papers=("C",), reference="mha_adamw")
    declare.common(c, {"model.block": "gpt", "tokenizer.vocab_size": 2048, "train.tensorboard": False})
    training = {"train.steps": 1000, "train.batch_size": 64, "train.seq_len": 512, "train.eval_every": 50}
    declare.tier(c, "headline", "s", training, fact_stories=200)
    for model, (config, knobs, needs) in MODELS.items():
        for optimizer, rates in RATES.items():
            needed = needs or ("optim.name=muon" if optimizer == "muon" else "")
            more = knobs | {"optim.name": optimizer}
            name = f"{model}_{optimizer}"
            priority = 1 if model == "mla_rope" else 2
            declare.point(c, name, config, "headline", more, (0, 1, 2), priority, needed, learning_rates=rates)
    return c

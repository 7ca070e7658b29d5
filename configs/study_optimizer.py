"""Paper C (arXiv 2509.24406): Muon against AdamW, each at its best learning rate, on MHA, MLA+RoPE and experts.

    python -m mla_jax.main --mode study --config configs/study_optimizer.py --workdir studies/optimizer

Size s, 800 steps of 64 x 256 (`study_optimizer:long`: 1,500), 3 learning rates an optimizer on seed 0, then the best:
5 seeds of MLA+RoPE (priority 1), 3 of experts (2) and MHA (3). What is judged: the share of AdamW's steps after which
Muon has AdamW's final loss, and the final losses.
"""

from ml_collections import ConfigDict

from mla_jax.study import declare, scale

RATES = {"adamw": (1e-3, 2e-3, 4e-3), "muon": (1e-3, 2e-3, 4e-3)}  # Muon's update is scaled to AdamW's size
EXPERTS = {
    "model.ffn": "moe",
    "model.n_routed_experts": 14,
    "model.n_shared_experts": 2,
    "model.top_k": 6,
    "model.d_expert": 128,
}
MODELS = {  # (config, knobs, needs, seeds, priority)
    "mla_rope": ("mla_rope", {}, "", (0, 1, 2, 3, 4), 1),
    "moe_mla_rope": ("mla_rope", EXPERTS, "model.ffn=moe", (0, 1, 2), 2),
    "mha": ("mha", {}, "", (0, 1, 2), 3),
}


def get_config(form: str = "short") -> ConfigDict:
    c = scale.new("optimizer", "Muon against AdamW", form, papers=("C",), reference="mla_rope_adamw")
    scale.grid(c, form, "headline")
    for model, (config, knobs, needs, seeds, priority) in MODELS.items():
        for optimizer, rates in RATES.items():
            needed = needs or ("optim.name=muon" if optimizer == "muon" else "")
            more = knobs | {"optim.name": optimizer}
            name = f"{model}_{optimizer}"
            declare.point(c, name, config, "headline", more, seeds, priority, needed, learning_rates=rates)
    return c

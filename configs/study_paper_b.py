"""Paper B (arXiv 2508.01261): experts with latent attention; parameter- and FLOP-matched sets, compression, balancing.

    python -m mla_jax.main --mode study --config configs/study_paper_b.py --workdir studies/b

Headline: the parameter-matched set and what FLOP-matching needs, size m, 1,000 steps of 128 x 512, 3 seeds. Grids: size
xs, 64 x 256: compression {1, 1/2, 1/4, 1/8} x dense and 8, 16, 62 experts, and balancing on, off, auxiliary.
"""

import dataclasses

from ml_collections import ConfigDict

from mla_jax import accounting
from mla_jax.config_files import load_config
from mla_jax.study import declare

VOCABULARY = 2048  # pieces of the embedded stories' tokenizer
FINE = {"model.ffn": "moe", "model.n_routed_experts": 62, "model.n_shared_experts": 2, "model.top_k": 6}
ATTENTION = {
    "mha": ("mha", {}),
    "mla": ("mla", {}),
    "mla_rope": ("mla_rope", {}),
    "mha_rope": ("mha_rope", {}),
}
NEEDS = "model.ffn=moe"


def get_config() -> ConfigDict:
    c = declare.new("paper_b", "Paper B: experts, latents and RoPE", papers=("B",))
    shared = {
        "model.block": "gpt",
        "tokenizer.vocab_size": VOCABULARY,
        "train.tensorboard": False,
        "optim.learning_rate": 1e-3,
    }
    headline = {"train.steps": 1000, "train.batch_size": 128, "train.seq_len": 512, "train.eval_every": 100}
    grid = {"train.steps": 1500, "train.batch_size": 64, "train.seq_len": 256, "train.eval_every": 250}
    declare.common(c, shared)
    declare.tier(c, "headline", "m", headline, learning_rates=(5e-4, 1e-3, 2e-3), lengths=(1, 2, 4), fact_stories=200)
    declare.tier(c, "grid", "xs", grid, fact_stories=200)
    _headline(c)
    _grid(c)
    return c


def _experts(config: str, size: str, routed: int = 62, shared: int = 2, top_k: int = 6) -> dict:
    """Knobs of experts of the width that brings the model's total nearest to that of vanilla MHA of this size."""
    base = {"model.block": "gpt", "model.vocab_size": VOCABULARY, "tokenizer.vocab_size": VOCABULARY}
    target = accounting.params(load_config(f"mha:{size}", **base).model)["total"]
    knobs = FINE | {"model.n_routed_experts": routed, "model.n_shared_experts": shared, "model.top_k": top_k}
    model = load_config(f"{config}:{size}", **(base | knobs | {"model.d_expert": 8})).model

    def miss(width: int) -> int:
        return abs(accounting.params(dataclasses.replace(model, d_expert=width))["total"] - target)

    return knobs | {"model.d_expert": min(range(1, 4 * model.d_model + 1), key=miss)}


def _headline(c: ConfigDict) -> None:
    seeds = (0, 1, 2)
    for name in ("mha", "mla_rope", "mha_rope"):
        config, knobs = ATTENTION[name]
        declare.point(c, name, config, "headline", knobs, seeds, priority=1)
    for name in ("mha", "mla", "mla_rope"):
        config, _ = ATTENTION[name]
        knobs = _experts(config, "m")
        declare.point(c, f"moe_{name}", config, "headline", knobs, seeds, priority=1, needs=NEEDS)
    # Equal work a token: 8 active experts of width 256 are the dense layer of 4 x 512.
    for name in ("mha", "mla_rope"):
        config, _ = ATTENTION[name]
        knobs = FINE | {"model.d_expert": 256}
        declare.point(c, f"moe_{name}_flops", config, "headline", knobs, seeds, priority=1, needs=NEEDS)


def _grid(c: ConfigDict) -> None:
    width = 256  # of size xs
    for part in (1, 2, 4, 8):
        rank = {"model.kv_lora_rank": width // part}
        judged = part == 2
        declare.point(c, f"s_mla_rope_r{part}", "mla_rope", "grid", rank, (0, 1, 2) if judged else (0,), 2)
        for routed, shared, top_k in ((6, 2, 2), (14, 2, 6), (62, 2, 6)):
            knobs = rank | _experts("mla_rope", "xs", routed, shared, top_k)
            seeds = (0, 1, 2) if judged and routed == 62 else (0,)
            name = f"s_moe{routed}_mla_rope_r{part}"
            declare.point(c, name, "mla_rope", "grid", knobs, seeds, 2 if judged else 3, needs=NEEDS)
    declare.point(c, "s_mha", "mha", "grid", {}, (0, 1, 2), 2)
    balance = {
        "no_balance": {"model.router_bias_rate": 0.0},
        "aux": {"model.router_bias_rate": 0.0, "model.router_aux_weight": 0.01},
        "sequence_aux": {"model.router_bias_rate": 0.0, "model.router_sequence_weight": 0.01},
        "softmax": {"model.router_score": "softmax"},
    }
    for name, knobs in balance.items():
        knobs = _experts("mla_rope", "xs") | {"model.kv_lora_rank": width // 2} | knobs
        declare.point(c, f"s_moe62_mla_rope_r2_{name}", "mla_rope", "grid", knobs, (0, 1, 2), 3, needs=NEEDS)
    for routed in (126, 30):
        knobs = _experts("mla_rope", "xs", routed) | {"model.kv_lora_rank": width // 2}
        declare.point(c, f"s_moe{routed}_mla_rope_r2", "mla_rope", "grid", knobs, (0,), 4, needs=NEEDS)

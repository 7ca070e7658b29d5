"""Paper B (arXiv 2508.01261): experts with latent attention; parameter- and FLOP-matched sets, compression, balancing.

    python -m mla_jax.main --mode study --config configs/study_paper_b.py --workdir studies/b

Priority 1, grid: what the claims are judged by (size s, 800 steps of 64 x 256, learning rate 1e-3, 5 seeds; MHA and
MLA+RoPE are paper A's rows). 2: the rest of the matched sets. 3, headline: the judged ones at size m (1,000 steps of
64 x 512, each at the best of four learning rates, 3 seeds; dense models have 5, paper A's rows). 4: experts without
latents or without RoPE at size m; balancing on, off, auxiliary. 5: compression {1, 1/2, 1/4, 1/8} x dense and 8, 16,
64, 128 experts.
`study_paper_b:long`: 1,000 steps of 128 x 512, grids of 1,500. `study_paper_b:files`, with
--config.common.data.path=TRAIN.txt (and .valid_path): the matched sets alone, at size m, on a small file of real
stories (dropout 0.1: several epochs); MHA with RoPE is its priority 2.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mla_jax import accounting
from mla_jax.config_files import load_config
from mla_jax.study import declare, scale

EXPERTS = {"model.ffn": "moe", "model.n_shared_experts": 2}
NEEDS = "model.ffn=moe"
WIDTH = 512  # of sizes s and m
SEEDS, FEWER, ONE = (0, 1, 2, 3, 4), (0, 1, 2), (0,)


def get_config(form: str = "short") -> ConfigDict:
    c = scale.new("paper_b", "Paper B: experts, latents and RoPE", form, files=("files",), papers=("B",))
    scale.headline(c, form)
    if form in scale.FILES:
        _on_files(c, scale.vocabulary(form))
        return c
    scale.grid(c, form)
    for tier, prefix, size, seeds, priorities in (
        ("grid", "s_", "s", SEEDS, (1, 2)),
        ("headline", "", "m", FEWER, (3, 4)),
    ):
        for name, (config, knobs) in _matched(size, scale.VOCABULARY).items():
            judged = name in ("mha", "mla_rope", "moe_mla_rope", "moe_mla_rope_flops")
            dense = tier == "headline" and not _needs(name)  # paper A's rows, which have five
            times = SEEDS if dense else seeds if judged else FEWER
            priority = priorities[0 if judged else 1]
            declare.point(c, f"{prefix}{name}", config, tier, knobs, times, priority, _needs(name))
    _balance(c)
    _compression(c)
    return c


def _on_files(c: ConfigDict, vocabulary: int) -> None:
    """Both matched sets at size m, without the models that have latents and no RoPE."""
    for name, (config, knobs) in _matched("m", vocabulary).items():
        if name not in ("mla", "moe_mla"):
            priority = 2 if name == "mha_rope" else 1
            declare.point(c, name, config, "headline", knobs, FEWER, priority, _needs(name))


def _needs(name: str) -> str:
    return NEEDS if name.startswith("moe") else ""


def _matched(size: str, vocabulary: int) -> dict[str, tuple[str, dict]]:
    """The papers' sets: as many parameters as vanilla MHA; or as much work a token (8 x 256 hidden units, as dense)."""
    flops = EXPERTS | {"model.n_routed_experts": 62, "model.top_k": 6, "model.d_expert": 256}
    points: dict[str, tuple[str, dict]] = {name: (name, {}) for name in ("mha", "mha_rope", "mla", "mla_rope")}
    points |= {f"moe_{name}": (name, _experts(name, size, vocabulary)) for name in ("mha", "mla", "mla_rope")}
    return points | {f"moe_{name}_flops": (name, flops) for name in ("mha", "mla_rope")}


def _experts(
    config: str, size: str, vocabulary: int = scale.VOCABULARY, routed: int = 62, top_k: int = 6
) -> dict[str, Any]:
    """Knobs of experts of the width that brings the model's total nearest to that of vanilla MHA of this size, both
    with an embedding of so many rows."""
    base = {"model.block": "gpt", "model.vocab_size": vocabulary, "tokenizer.vocab_size": vocabulary}
    target = accounting.params(load_config(f"mha:{size}", **base).model)["total"]
    knobs = EXPERTS | {"model.n_routed_experts": routed, "model.top_k": top_k}
    model = load_config(f"{config}:{size}", **(base | knobs | {"model.d_expert": 8})).model

    def miss(width: int) -> int:
        return abs(accounting.params(dataclasses.replace(model, d_expert=width))["total"] - target)

    return knobs | {"model.d_expert": min(range(1, 4 * model.d_model + 1), key=miss)}


def _balance(c: ConfigDict) -> None:
    balance = {
        "no_balance": {"model.router_bias_rate": 0.0},
        "aux": {"model.router_bias_rate": 0.0, "model.router_aux_weight": 0.01},
        "sequence_aux": {"model.router_bias_rate": 0.0, "model.router_sequence_weight": 0.01},
        "softmax": {"model.router_score": "softmax"},
    }
    for name, knobs in balance.items():
        seeds = FEWER if name in ("no_balance", "aux") else ONE
        knobs = _experts("mla_rope", "s") | knobs
        declare.point(c, f"s_moe_mla_rope_{name}", "mla_rope", "grid", knobs, seeds, 4, NEEDS)


def _compression(c: ConfigDict) -> None:
    """Rank x number of experts, all of vanilla MHA's size; 1/2 with none and 62 are the judged points' own rows."""
    experts = {"mla_rope": {}} | {
        f"moe{n}_mla_rope": _experts("mla_rope", "s", routed=n, top_k=min(n, 6)) for n in (14, 62)
    }
    experts |= {"moe6_mla_rope": _experts("mla_rope", "s", routed=6, top_k=2)}
    for name, knobs in experts.items():
        for part in (1, 2, 4, 8):
            rank = {"model.kv_lora_rank": WIDTH // part}
            needs = NEEDS if knobs else ""
            declare.point(c, f"s_{name}_r{part}", "mla_rope", "grid", knobs | rank, ONE, 5, needs)
    for routed in (30, 126):
        declare.point(
            c, f"s_moe{routed}_mla_rope_r2", "mla_rope", "grid", _experts("mla_rope", "s", routed=routed), ONE, 5, NEEDS
        )

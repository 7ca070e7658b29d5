"""The ladder xs ... xl of both papers: does what holds at size m hold at the others, and what do they cost?

    python -m mla_jax.main --mode study --config configs/study_sizes.py --workdir studies/sizes

MHA, MHA+RoPE, MLA+RoPE (joint, r = d/2) and paper A's per-head form at every size: 800 steps of 64 x 256, one learning
rate a size (wider ones take a smaller one), one seed (`study_sizes:long`: 1,500 steps, three at xs and m). Size s is
paper A's grid. Where its runs have the device to themselves, rows give the time of the full schedule.
"""

from ml_collections import ConfigDict

from mla_jax.study import declare, scale

RATES = {"xs": 2e-3, "s": 1e-3, "m": 1e-3, "l": 7e-4, "xl": 5e-4}
PRIORITY = {"m": 1, "s": 1, "l": 2, "xs": 2, "xl": 3}
PER_HEAD = {"model.latent": "per_head", "model.position": "rope", "model.rope_placement": "decompressed"}
POINTS = {"mha": ("mha", {}), "mha_rope": ("mha_rope", {}), "joint_rope_r2": ("mla_rope", {})}
POINTS |= {"per_head_rope_r2": ("mla_rope", PER_HEAD)}


def get_config(form: str = "short") -> ConfigDict:
    c = scale.new("sizes", "The ladder of sizes", form, papers=(), reference="mha")
    for size, rate in RATES.items():
        scale.grid(c, form, f"size_{size}", size, **{"optim.learning_rate": rate})
        for name, (config, more) in POINTS.items():
            seeds = (0, 1, 2) if form == "long" and size in ("xs", "m") else (0,)
            declare.point(c, f"{size}_{name}", config, f"size_{size}", more, seeds, PRIORITY[size])
    return c

"""The ladder xs ... xl of both papers: does what holds at size m hold at the others?

    python -m mla_jax.main --mode study --config configs/study_sizes.py --workdir studies/sizes

MHA, MHA+RoPE, MLA+RoPE (joint, r = d/2) and paper A's per-head form at every size: 500 steps of 64 x 256, one learning
rate a size (wider ones take a smaller one), one seed; three at the ends of the ladder that time allows.
"""

from ml_collections import ConfigDict

from mla_jax.study import declare

RATES = {"xs": 2e-3, "s": 1e-3, "m": 1e-3, "l": 7e-4, "xl": 5e-4}
PER_HEAD = {"model.latent": "per_head", "model.position": "rope", "model.rope_placement": "decompressed"}
POINTS = {"mha": ("mha", {}), "mha_rope": ("mha_rope", {}), "joint_rope_r2": ("mla_rope", {})}
POINTS |= {"per_head_rope_r2": ("mla_rope", PER_HEAD)}


def get_config() -> ConfigDict:
    c = declare.new("sizes", "The ladder of sizes", papers=(), reference="mha")
    declare.common(c, {"model.block": "gpt", "tokenizer.vocab_size": 2048, "train.tensorboard": False})
    training = {"train.steps": 500, "train.batch_size": 64, "train.seq_len": 256, "train.eval_every": 100}
    for number, (size, rate) in enumerate(RATES.items()):
        knobs = training | {"optim.learning_rate": rate, "model.max_len": 512}
        declare.tier(c, f"size_{size}", size, knobs, fact_stories=200)
        for name, (config, more) in POINTS.items():
            seeds = (0, 1, 2) if size in ("xs", "m") else (0,)
            declare.point(c, f"{size}_{name}", config, f"size_{size}", more, seeds, priority=1 + number)
    return c

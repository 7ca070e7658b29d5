"""Paper A (arXiv 2506.09342): MHA, MLA and MLA+RoPE over ranks, with the controls that the paper lacks.

    python -m mla_jax.main --mode study --config configs/study_paper_a.py --workdir studies/a

Priority 1, grid: every claim (size s, 800 steps of 64 x 256, learning rate 1e-3, 5 seeds). 2, headline: the claims at
r = d/2 and the question of RoPE again at size m (1,000 steps of 64 x 512, each variant at the best of four learning
rates, 5 seeds). 3: controls. 4: other learning rates of size s. 5: ranks of the other forms. `study_paper_a:long`:
1,000 steps of 128 x 512, grids of 1,500 steps. `study_paper_a:files` (or `:files_long`), with
--config.common.data.path=TRAIN.txt (and .valid_path): the same on a small file of real stories (dropout 0.1: several
epochs; `:files` at one learning rate). --dry_run prints the minutes.
"""

from ml_collections import ConfigDict

from mla_jax.study import declare, scale

LEARNED = {"model.latent": "per_head", "model.position": "learned"}  # paper A's equations without RoPE
ROTATED = {"model.latent": "per_head", "model.position": "rope", "model.rope_placement": "decompressed"}
DECOUPLED = {"model.latent": "per_head", "model.position": "rope", "model.rope_placement": "decoupled"}
JOINT = {"model.latent": "joint", "model.position": "rope"}
JOINT_LEARNED = {"model.latent": "joint", "model.position": "learned"}
NAIVE = {"model.init": "naive"}
HEAD_DIM, WIDTH = 64, 512  # of sizes s and m
PARTS = (1, 2, 4, 8, 16, 32)  # r = d / part
SEEDS, FEWER, ONE = (0, 1, 2, 3, 4), (0, 1, 2), (0,)


def get_config(form: str = "short") -> ConfigDict:
    title = "Paper A: latent attention in small language models"
    c = scale.new("paper_a", title, form, files=("files", "files_long"), papers=("A",))
    scale.headline(c, form)
    scale.grid(c, form)
    scale.rates(c, form)
    _judged(c)
    _headline(c)
    _controls(c)
    _learning_rates(c)
    _ranks(c)
    return c


def _rank(knobs: dict, rank: int) -> dict:
    return knobs | {"model.kv_lora_rank": rank}


# Point without its tier's prefix: (config, knobs).
VARIANTS = {
    "mha": ("mha", {}),
    "mha_rope": ("mha_rope", {}),
    "per_head_learned_r2": ("mla", _rank(LEARNED, HEAD_DIM // 2)),
    "per_head_rope_r2": ("mla_rope", _rank(ROTATED, HEAD_DIM // 2)),
    "joint_learned_r2": ("mla", _rank(JOINT_LEARNED, WIDTH // 2)),
    "joint_rope_r2": ("mla_rope", _rank(JOINT, WIDTH // 2)),
}


def _judged(c: ConfigDict) -> None:
    """What tests the claims (mla_jax/study/claims.py) and the question of RoPE at size s."""
    points = VARIANTS | {f"per_head_rope_r{part}": ("mla_rope", _rank(ROTATED, HEAD_DIM // part)) for part in PARTS}
    points["per_head_learned_r1"] = ("mla", _rank(LEARNED, HEAD_DIM))
    for name, (config, knobs) in points.items():
        declare.point(c, f"s_{name}", config, "grid", knobs, SEEDS, 1)


def _headline(c: ConfigDict) -> None:
    for name, (config, knobs) in VARIANTS.items():
        declare.point(c, name, config, "headline", knobs, SEEDS, 2)
    # Equal cache: 256 numbers a token and layer.
    declare.point(c, "gqa2", "gqa", "headline", {"model.n_kv_heads": 2}, FEWER, 5)
    declare.point(c, "joint_rope_224", "mla_rope", "headline", _rank(JOINT, 224), FEWER, 5)


def _controls(c: ConfigDict) -> None:
    """What the paper lacks: full rank in one latent, naive starts, equal cache bytes, the norm, the other placement."""

    def control(name: str, config: str, knobs: dict, seeds: tuple[int, ...] = FEWER, priority: int = 3) -> None:
        declare.point(c, f"s_{name}", config, "grid", knobs, seeds, priority)

    control("per_head_learned_r1_naive", "mla", _rank(LEARNED, HEAD_DIM) | NAIVE)
    for part in (2, 16):
        control(f"per_head_rope_r{part}_naive", "mla_rope", _rank(ROTATED, HEAD_DIM // part) | NAIVE)
    control("joint_learned_r1", "mla", _rank(JOINT_LEARNED, WIDTH))
    control("joint_rope_r1", "mla_rope", _rank(JOINT, WIDTH))
    control("per_head_decoupled_r2", "mla_rope", _rank(DECOUPLED, HEAD_DIM // 2))
    for groups, rank in ((2, 224), (1, 96), (4, 480)):  # docs/architecture.md: equal cache numbers with rope 32
        seeds = FEWER if groups == 2 else ONE
        control(f"gqa{groups}", "gqa", {"model.n_kv_heads": groups}, seeds)
        control(f"joint_rope_{rank}", "mla_rope", _rank(JOINT, rank), seeds)
    control("per_head_rope_r2_norm", "mla_rope", _rank(ROTATED, HEAD_DIM // 2) | {"model.latent_norm": "rms"})
    control("joint_rope_r2_no_norm", "mla_rope", _rank(JOINT, WIDTH // 2) | {"model.latent_norm": "none"})
    rotated = JOINT | {"model.rope_placement": "decompressed"}
    control("joint_decompressed_r2", "mla_rope", _rank(rotated, WIDTH // 2), ONE, 5)


def _learning_rates(c: ConfigDict) -> None:
    """The judged families of size s at three, the smallest of which is the grid's own run."""
    for name in ("mha", "mha_rope", "per_head_learned_r2", "per_head_rope_r2", "joint_rope_r2"):
        config, knobs = VARIANTS[name]
        declare.point(c, f"lr_{name}", config, "rates", knobs, ONE, 4)


def _ranks(c: ConfigDict) -> None:
    """The rank sweep of the forms that no claim is about, once."""
    forms = {"per_head_learned": (LEARNED, HEAD_DIM), "per_head_decoupled": (DECOUPLED, HEAD_DIM)}
    forms |= {"joint_rope": (JOINT, WIDTH), "joint_learned": (JOINT_LEARNED, WIDTH)}
    for form, (knobs, full) in forms.items():
        config = "mla" if form.endswith("learned") else "mla_rope"
        for part in PARTS:
            if f"s_{form}_r{part}" not in c.points:
                declare.point(c, f"s_{form}_r{part}", config, "grid", _rank(knobs, full // part), ONE, 5)

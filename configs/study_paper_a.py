"""Paper A (arXiv 2506.09342): MHA, MLA and MLA+RoPE over ranks, with the controls that the paper lacks.

    python -m mla_jax.main --mode study --config configs/study_paper_a.py --workdir studies/a

Headline: 8 variants of size m, 1,000 steps of 128 x 512, 3 learning rates on seed 0, 3 seeds. Grids: size s, 64 x 256.
On the embedded stories; `configs/study_paper_a.py:files` with --config.common.data.path=TRAIN.txt (and .valid_path) is
the same on a small file of real stories (dropout 0.1: several epochs). --dry_run prints the minutes.
"""

from ml_collections import ConfigDict

from mla_jax.study import declare

LEARNED = {"model.latent": "per_head", "model.position": "learned"}  # paper A's equations without RoPE
ROTATED = {"model.latent": "per_head", "model.position": "rope", "model.rope_placement": "decompressed"}
DECOUPLED = {"model.latent": "per_head", "model.position": "rope", "model.rope_placement": "decoupled"}
JOINT = {"model.latent": "joint", "model.position": "rope"}
HEAD_DIM, WIDTH = 64, 512  # of sizes s and m
PARTS = (1, 2, 4, 8, 16, 32)  # r = d / part


def get_config(corpus: str = "world") -> ConfigDict:
    files = {"world": False, "files": True}[corpus]
    c = declare.new(
        "paper_a_files" if files else "paper_a",
        "Paper A: latent attention in small language models" + (", on files of stories" if files else ""),
        papers=("A",),
    )
    shared = {
        "model.block": "gpt",
        "model.dropout": 0.1 if files else 0.0,
        "tokenizer.vocab_size": 8192 if files else 2048,
        "train.tensorboard": False,
        "optim.learning_rate": 1e-3,
    }
    headline = {"train.steps": 1000, "train.batch_size": 128, "train.seq_len": 512, "train.eval_every": 100}
    grid = {"train.steps": 1500, "train.batch_size": 64, "train.seq_len": 256, "train.eval_every": 250}
    facts = 0 if files else 200
    declare.common(c, shared)
    rates = (5e-4, 1e-3, 2e-3)
    declare.tier(c, "headline", "m", headline, learning_rates=rates, lengths=(1, 2, 4), fact_stories=facts)
    declare.tier(c, "grid", "s", grid, fact_stories=facts)
    _headline(c)
    _ranks(c)
    _controls(c)
    return c


def _rank(knobs: dict, rank: int) -> dict:
    return knobs | {"model.kv_lora_rank": rank}


def _headline(c: ConfigDict) -> None:
    seeds = (0, 1, 2)
    points = {
        "mha": ("mha", {}),
        "mha_rope": ("mha_rope", {}),
        "per_head_learned_r2": ("mla", _rank(LEARNED, HEAD_DIM // 2)),
        "per_head_rope_r2": ("mla_rope", _rank(ROTATED, HEAD_DIM // 2)),
        "per_head_rope_r4": ("mla_rope", _rank(ROTATED, HEAD_DIM // 4)),
        "joint_rope_r2": ("mla_rope", _rank(JOINT, WIDTH // 2)),
        "joint_rope_r224": ("mla_rope", _rank(JOINT, 224)),  # 256 numbers: as GQA with 2 groups
        "gqa2": ("gqa", {"model.n_kv_heads": 2}),
    }
    for name, (config, knobs) in points.items():
        declare.point(c, name, config, "headline", knobs, seeds, priority=1)


def _ranks(c: ConfigDict) -> None:
    """The papers' rank sweep in every form; three seeds where the cliff is judged."""
    forms = {"per_head_rope": ROTATED, "per_head_learned": LEARNED, "per_head_decoupled": DECOUPLED}
    joint = {"joint_rope": JOINT, "joint_learned": {"model.latent": "joint", "model.position": "learned"}}
    for form, knobs in (forms | joint).items():
        for part in PARTS:
            rank = (WIDTH if form.startswith("joint") else HEAD_DIM) // part
            config = "mla" if form.endswith("learned") else "mla_rope"
            judged = form == "per_head_rope" or (form == "per_head_learned" and part == 1)
            seeds, priority = ((0, 1, 2), 2) if judged else ((0,), 3)
            declare.point(c, f"s_{form}_r{part}", config, "grid", _rank(knobs, rank), seeds, priority)


def _controls(c: ConfigDict) -> None:
    """What the paper lacks: MHA with RoPE, equal cache bytes, naive initialisation, the latent norm."""
    declare.point(c, "s_mha", "mha", "grid", {}, (0, 1, 2), 2)
    declare.point(c, "s_mha_rope", "mha_rope", "grid", {}, (0, 1, 2), 2)
    for groups, rank in ((1, 96), (2, 224), (4, 480)):  # docs/architecture.md: equal cache numbers with rope 32
        declare.point(c, f"s_gqa{groups}", "gqa", "grid", {"model.n_kv_heads": groups}, (0, 1, 2), 3)
        declare.point(c, f"s_joint_rope_{rank}", "mla_rope", "grid", _rank(JOINT, rank), (0, 1, 2), 3)
    for part in PARTS:
        naive = _rank(ROTATED, HEAD_DIM // part) | {"model.init": "naive"}
        declare.point(c, f"s_per_head_rope_r{part}_naive", "mla_rope", "grid", naive, (0,), 4)
    naive = _rank(LEARNED, HEAD_DIM) | {"model.init": "naive"}
    declare.point(c, "s_per_head_learned_r1_naive", "mla", "grid", naive, (0, 1, 2), 3)
    for part in (1, 2, 8):
        norm = _rank(ROTATED, HEAD_DIM // part) | {"model.latent_norm": "rms"}
        declare.point(c, f"s_per_head_rope_r{part}_norm", "mla_rope", "grid", norm, (0,), 5)
        plain = _rank(JOINT, WIDTH // part) | {"model.latent_norm": "none"}
        declare.point(c, f"s_joint_rope_r{part}_no_norm", "mla_rope", "grid", plain, (0,), 5)
    rotated = _rank({"model.latent": "joint", "model.position": "rope", "model.rope_placement": "decompressed"}, 256)
    declare.point(c, "s_joint_decompressed_r2", "mla_rope", "grid", rotated, (0,), 5)

"""MoE-MLA-RoPE with as many parameters in total as the vanilla transformer of the same size: paper B's other model.

    python -m mla_jax.main --config configs/moe_mla_rope_param_matched.py --workdir runs/moe_param \
        --config.data.path=TinyStories-train.txt

The vanilla transformer is multi-head attention with a tanh-GELU layer of width 4d: 53.97M at size m with 50,000
embedding rows, 32.57M with 8,192 (norms and biases included). Experts have a width that tiles and meshes divide, the
multiple of 16 nearest to what they would have in all layers (32 at size m); the first layer is dense, as DeepSeek's,
and its width takes up the rest, so that the totals agree within 0.02 % whatever the vocabulary: the embeddings are
alike on both sides. Experts in every layer, the papers' words, come no nearer than -0.55 % (width 31, 8,192 rows),
since a unit of their width is 0.59M: --config.model.first_k_dense=0 --config.model.d_expert=31. All experts together
are 4 d wide, so a masked dense layer computes them: a step takes 1.08 times the dense one's on an H200
(docs/results/moe_gpu.md).
"""

from ml_collections import ConfigDict

from mla_jax import accounting
from mla_jax.config import from_config_dict
from mla_jax.config_files import load_config, load_config_dict
from mla_jax.sizing import match_total_params

ROWS = 8192  # any number gives the same widths
TILE = 16


def get_config(size: str = "m") -> ConfigDict:
    c = load_config_dict(f"moe_mla_rope:{size}")
    c.model.block = "gpt"
    # mha_rope, not mha: the papers' counts leave out the position table.
    vanilla = load_config(f"mha_rope:{size}", **{"model.block": "gpt", "model.vocab_size": ROWS})
    total = accounting.params(vanilla.model)["total"]
    c.model.vocab_size = ROWS
    width = match_total_params(from_config_dict(c), total).width
    c.model.d_expert = max(TILE, round(width / TILE) * TILE)
    c.model.first_k_dense = 1
    c.model.d_ff = match_total_params(from_config_dict(c), total, TILE, "model.d_ff").width
    c.model.vocab_size = 0
    return c

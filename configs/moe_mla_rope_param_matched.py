"""MoE-MLA-RoPE with as many parameters in total as the vanilla transformer of the same size: paper B's other model.

    python -m mla_jax.main --config configs/moe_mla_rope_param_matched.py --workdir runs/moe_param \
        --config.data.path=TinyStories-train.txt

The vanilla transformer is multi-head attention with a tanh-GELU layer of width 4d: 53.97M at size m with 50,000
embedding rows, 32.57M with 8,192 (norms and biases included). The width of an expert follows from
`sizing.match_total_params`, whatever the vocabulary: the embeddings are alike on both sides. It is 31 at size m: 53.79M
(-0.33 %) and 32.39M (-0.55 %), since one unit of width more is another 0.59M. All experts together are 3.75 d wide, so
a masked dense layer computes them. Cost and result: not measured yet (launch/gpu_moe.sh).
"""

from ml_collections import ConfigDict

from mla_jax import accounting
from mla_jax.config import from_config_dict
from mla_jax.config_files import load_config, load_config_dict
from mla_jax.sizing import match_total_params

ROWS = 8192  # any number gives the same width


def get_config(size: str = "m") -> ConfigDict:
    c = load_config_dict(f"moe_mla_rope:{size}")
    c.model.block = "gpt"
    # mha_rope, not mha: the papers' counts leave out the position table.
    vanilla = load_config(f"mha_rope:{size}", **{"model.block": "gpt", "model.vocab_size": ROWS})
    c.model.vocab_size = ROWS
    c.model.d_expert = match_total_params(from_config_dict(c), accounting.params(vanilla.model)["total"]).width
    c.model.vocab_size = 0
    return c

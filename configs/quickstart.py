"""A small MLA+RoPE model on embedded stories, made for two CPU cores and a few minutes: launch/quickstart.sh.

python -m mla_jax.main --config configs/quickstart.py --workdir runs/quickstart
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config() -> ConfigDict:
    c = base_config("xs")
    m = c.model
    m.n_layers = 4
    m.d_model = 96
    m.n_heads = 4
    m.max_len = 320
    c.tokenizer.vocab_size = 1024
    c.data.stories = 12000
    c.data.valid_stories = 150
    t = c.train
    t.steps = 400
    t.batch_size = 32
    t.seq_len = 128
    t.eval_every = 100
    c.optim.learning_rate = 4e-3
    c.sample.num_samples = 3
    c.sample.max_new_tokens = 220
    return c

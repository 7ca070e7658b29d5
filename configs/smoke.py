"""Tiny MLA+RoPE: every stage once (prepare, train, evaluate, save, sample), 60 s or less on two CPU cores.

python -m mla_jax.main --config configs/smoke.py --workdir runs/smoke
"""

from ml_collections import ConfigDict

from mla_jax.config_files import base_config


def get_config() -> ConfigDict:
    c = base_config("xs")
    m = c.model
    m.n_layers = 2
    m.d_model = 32
    m.n_heads = 2
    m.max_len = 96
    c.tokenizer.vocab_size = 512
    c.data.stories = 300
    c.data.valid_stories = 30
    t = c.train
    t.steps = 20
    t.batch_size = 8
    t.microbatches = 2
    t.seq_len = 64
    t.log_every = 5
    t.eval_every = 10
    c.sample.num_samples = 1
    c.sample.max_new_tokens = 48
    return c

"""A study config (for --config): one point, one run of seconds."""

from ml_collections import ConfigDict

from mla_jax.study import declare


def get_config() -> ConfigDict:
    c = declare.new("tiny", "A tiny study", verdicts=False, reference="per_head_rope_r2")
    knobs = {
        "model.n_layers": 1,
        "model.d_model": 16,
        "model.n_heads": 2,
        "model.max_len": 64,
        "tokenizer.vocab_size": 320,
        "data.stories": 60,
        "data.valid_stories": 6,
        "train.steps": 8,
        "train.batch_size": 4,
        "train.seq_len": 32,
        "train.log_every": 1,
        "train.eval_every": 4,
        "train.tensorboard": False,
        "sample.max_new_tokens": 8,
    }
    declare.tier(c, "headline", "xs", knobs, lengths=(1, 2), fact_stories=2, stories=1)
    per_head = {"model.position": "rope", "model.latent": "per_head", "model.rope_placement": "decompressed"}
    declare.point(c, "per_head_rope_r2", "mla_rope", "headline", per_head)
    return c

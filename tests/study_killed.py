"""A study config (for --config): two points, two seeds, long enough to be killed in the middle."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from mla_jax.study import declare


def get_config() -> ConfigDict:
    spec = importlib.util.spec_from_file_location("study_tiny", Path(__file__).with_name("study_tiny.py"))
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    c = tiny.get_config()
    c.name, c.reference = "killed", "mha"
    with c.unlocked():
        del c.points["per_head_rope_r2"]
    longer = {"train.steps": 60, "train.eval_every": 10}
    declare.point(c, "mha", "mha", "headline", longer, seeds=(0, 1))
    declare.point(c, "joint_rope_r2", "mla_rope", "headline", longer, seeds=(0, 1))
    return c

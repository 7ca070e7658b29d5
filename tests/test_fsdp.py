"""FSDP hands over matrices rounded to the dtype they are multiplied in (train/fsdp.py): that must change nothing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import QUICK, REFERENCE, random_params, tiny_config

from mla_jax.model.moe import initial_router_bias
from mla_jax.model.transformer import Transformer
from mla_jax.train import fsdp
from mla_jax.train.step import _make_loss_sum

SIZE = {"model.vocab_size": 320, "tokenizer.vocab_size": 317, "model.n_layers": 1}
KERNELS = SIZE | {"train.seq_len": 128, "model.max_len": 128, "model.d_model": 128}  # what the kernels take
GPT = {"model.block": "gpt"}
MOE = {"model.ffn": "moe", "model.n_routed_experts": 4, "model.n_shared_experts": 1, "model.top_k": 2}
MOE |= {"model.d_expert": 8, "model.d_ff": 24}


@pytest.mark.parametrize(
    ("name", "impl", "knobs"),
    [
        *((name, "pallas", KERNELS | GPT) for name in ("mha", "gqa", "mla_rope", "mla_per_head")),
        ("mla_rope", "pallas", KERNELS | MOE | {"model.moe_impl": "masked_dense"}),
        ("mla_rope", "xla", SIZE | MOE | {"model.moe_impl": "grouped", "model.q_lora_rank": 16}),
        ("mha", "xla", SIZE | GPT),
    ],
)
def test_every_matrix_is_rounded_before_its_first_use(name: str, impl: str, knobs: dict[str, Any]) -> None:
    """A use of the float32 values would have other losses and gradients on an fsdp mesh than on one device."""
    config = tiny_config(name, **knobs)
    model = Transformer(config.model, dataclasses.replace(REFERENCE, dtype="bfloat16", train_impl=impl, interpret=True))
    params, rows = random_params(model), (4, config.train.seq_len + 1)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 317, rows), jnp.int32)
    batch, bias = {"tokens": tokens, "segment_ids": jnp.ones(rows, jnp.int32)}, initial_router_bias(config.model)
    loss = _make_loss_sum(model, config)
    step = jax.jit(jax.value_and_grad(lambda p: loss(p, bias, batch, jax.random.key(0))[0]), compiler_options=QUICK)

    def rounded(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.bfloat16).astype(jnp.float32) if fsdp.multiplied(path[-1].key) else leaf

    value, gradients = step(params)
    again, others = step(jax.tree_util.tree_map_with_path(rounded, params))
    assert value == again
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(others), strict=True):
        assert np.array_equal(a, b), jax.tree_util.keystr(path)

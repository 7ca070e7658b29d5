"""Decode on packed weights against the modules' own decode: every variant that packs, few rows and many."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import abstract_params, quick_jit, random_params, random_tokens, tiny_config

from mla_jax.bench.decode import nbytes
from mla_jax.config_files import load_config
from mla_jax.kernels import row_linear
from mla_jax.model import decode_attention, packed_decode, serving
from mla_jax.model.backend import Backend
from mla_jax.model.cache import init_cache
from mla_jax.model.moe import initial_router_bias
from mla_jax.model.transformer import Transformer, variables_of

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
PLAIN = Backend("float32", "xla")
FAST = dataclasses.replace(PLAIN, decode_impl="pallas", interpret=True)

# Widths of 32 are turned and cut as views in the kernel, where they divide the latent's; others beforehand.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "joint, views": ("mla_rope", {"kv_lora_rank": 32, "qk_rope_head_dim": 32, "n_layers": 2}),
    "joint, slices": ("mla_rope", {"kv_lora_rank": 24, "qk_rope_head_dim": 4}),
    "joint, slices of whole blocks": ("mla_rope", {"d_model": 64, "kv_lora_rank": 48, "qk_rope_head_dim": 32}),
    "joint, no norm": ("mla_rope", {"kv_lora_rank": 32, "qk_rope_head_dim": 32, "latent_norm": "none"}),
    "joint, learned": ("mla", {"kv_lora_rank": 16}),
    "joint, gpt": ("mla_rope", {"kv_lora_rank": 32, "qk_rope_head_dim": 32, "block": "gpt"}),
    "mha, turned in the kernel": ("mha_rope", {"head_dim": 32}),
    "mha, turned before": ("mha_rope", {}),
    "mha, gpt": ("mha", {"block": "gpt"}),
    "gqa": ("gqa", {"n_kv_heads": 2, "head_dim": 32}),
    "experts": (
        "moe_mla_rope",
        {"kv_lora_rank": 32, "qk_rope_head_dim": 32, "n_layers": 2, "first_k_dense": 1},
    ),
    "experts, gpt": (
        "moe_mla_rope",
        {"kv_lora_rank": 32, "qk_rope_head_dim": 32, "n_layers": 3, "first_k_dense": 1, "block": "gpt"}
        | {"router_score": "softmax", "n_shared_experts": 0},
    ),
    "experts, by their module": ("moe_mla_rope", {"kv_lora_rank": 32, "qk_rope_head_dim": 32, "moe_impl": "grouped"}),
}
OFTEN = (
    ("joint, views", 2),
    ("joint, views", row_linear.MAX_ROWS + 1),
    ("joint, slices of whole blocks", 2),
    ("joint, gpt", 2),
    ("mha, turned in the kernel", 2),
    ("experts", 2),
)


def decode_twice(
    variant: str, backend: Backend, rows: int, packed: bool, dtype: Any = jnp.float32
) -> tuple[jax.Array, Any]:
    """Two steps after a ragged prefill -> their logits [2, rows, vocab], cache. One program of a step serves both.

    dtype: of the cache.
    """
    name, knobs = VARIANTS[variant]
    config = tiny_config(name, **{f"model.{key}": value for key, value in ({"n_layers": 1} | knobs).items()})
    model = Transformer(config.model, backend)
    bias = initial_router_bias(config.model)
    if bias is not None:  # as after training: zeros would not tell one layer's from another's
        bias = bias + 0.2 * np.random.default_rng(1).standard_normal(bias.shape).astype(np.float32)
    variables = variables_of(random_params(model), bias)
    if packed:
        assert serving.packs(config.model, backend)
        variables = serving.serving_variables(config.model, variables, backend)
    tokens = random_tokens(config, rows, 9)
    lengths = jnp.asarray([1 + 4 * i % 9 for i in range(rows)], jnp.int32)

    def run(variables: Any) -> tuple[jax.Array, Any]:
        store = init_cache(config.model, rows, 13, dtype)
        _, store = model.apply(variables, tokens, lengths, store, method="prefill")

        def step(carry: tuple, token: jax.Array) -> tuple[tuple, jax.Array]:
            start, store = carry
            logits, store = model.apply(variables, token[:, None], start, store, method="decode")
            return (start + 1, store), logits[:, 0]

        (_, store), logits = jax.lax.scan(step, (lengths, store), tokens[:, :2].T)
        return logits, store

    return quick_jit(run)(variables)


@pytest.mark.parametrize(
    ("variant", "rows"),
    [
        (v, rows) if (v, rows) in OFTEN else pytest.param(v, rows, marks=pytest.mark.slow)
        for v in VARIANTS
        for rows in (2, row_linear.MAX_ROWS + 1)
    ],
)
def test_packed_decode_is_the_modules_decode(variant: str, rows: int) -> None:
    with jax.default_matmul_precision("highest"):
        fast, plain = decode_twice(variant, FAST, rows, True), decode_twice(variant, PLAIN, rows, False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), fast, plain)


@pytest.mark.parametrize("variant", ["joint, views", "joint, slices", "joint, no norm", "joint, learned", "experts"])
def test_packed_decode_over_int8_latents_is_the_modules(variant: str) -> None:
    """The same numbers in the cache, but for roundings of halves, and the same logits."""
    with jax.default_matmul_precision("highest"):
        fast = decode_twice(variant, FAST, 2, True, jnp.int8)
        plain = decode_twice(variant, PLAIN, 2, False, jnp.int8)
    logits, stores = zip(fast, plain, strict=True)
    np.testing.assert_allclose(*logits, atol=2e-3)
    assert float(jnp.max(jnp.abs(logits[1] - decode_twice(variant, PLAIN, 2, False)[0]))) > 1e-4  # int8 is seen
    for ours, theirs in zip(*stores, strict=True):
        steps = np.asarray(ours.c_kv, np.int32) - np.asarray(theirs.c_kv)
        assert np.abs(steps).max() <= 1 and (steps != 0).mean() < 1e-3
        np.testing.assert_allclose(ours.scale, theirs.scale, rtol=1e-5)
        if ours.k_rope is not None:
            np.testing.assert_allclose(*(np.asarray(s.k_rope, np.float32) for s in (ours, theirs)), rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("mla_per_head", {"model.position": "learned"}),
        ("mla_rope", {"model.qk_norm": True}),
        ("mla_rope", {"model.q_lora_rank": 16}),
        ("mla_rope", {"model.rope_placement": "decompressed"}),
    ],
)
def test_what_has_no_packed_form_keeps_its_modules(name: str, knobs: dict) -> None:
    cfg = tiny_config(name, **knobs).model
    assert not serving.packs(cfg, FAST)
    assert serving.packs(tiny_config().model, FAST)
    assert not serving.packs(tiny_config().model, dataclasses.replace(FAST, mesh=jax.sharding.AbstractMesh((), ())))
    variables = variables_of(random_params(Transformer(cfg, PLAIN)))
    assert serving.COLLECTION not in serving.serving_variables(cfg, variables, FAST)


def test_only_what_is_multiplied_is_converted() -> None:
    """Gains, the router with its bias and the position table stay float32, which is what the model computes with."""
    cfg = tiny_config("moe_mla_rope", **{"model.position": "learned", "model.qk_rope_head_dim": 0}).model
    backend = dataclasses.replace(FAST, dtype="bfloat16")
    variables = variables_of(abstract_params(Transformer(cfg, PLAIN)), jax.eval_shape(lambda: initial_router_bias(cfg)))
    served = jax.eval_shape(lambda v: serving.serving_variables(cfg, v, backend), variables)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(served)}
    kept = {name for name, leaf in named.items() if leaf.dtype == jnp.float32}
    assert all(("gain" in name) or ("router" in name) or ("position" in name) for name in kept)
    assert all(named[name].dtype == jnp.float32 for name in named if "gain" in name or "router" in name)
    assert "['params']['position_embedding']" in kept and "['router']['bias']" in kept
    assert named["['params']['embedding']"].dtype == jnp.bfloat16


def test_absorbing_loses_no_precision() -> None:
    """Queries in the latent space, bfloat16: the absorbed matrix is nearer to the truth than its two factors."""
    cfg = tiny_config("mla").model
    params, backend = random_params(Transformer(cfg, PLAIN)), dataclasses.replace(FAST, dtype="bfloat16")
    gain, attention = params["layer_0"]["attention_norm"]["gain"], params["layer_0"]["attention"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, cfg.d_model)), jnp.bfloat16)

    def latents(x: jax.Array, dtype: Any) -> jax.Array:
        q = jnp.einsum("bd,dhn->bhn", (x * gain).astype(dtype), attention["w_q"].astype(dtype))
        return jnp.einsum("bhn,chn->bhc", q, attention["w_uk"].astype(dtype)).reshape(len(x), -1)

    packed = x @ serving.pack(cfg, params, backend).layers[0].w_in.w[: cfg.n_heads * cfg.kv_lora_rank].T
    with jax.default_matmul_precision("highest"):
        exact = latents(x.astype(jnp.float32), jnp.float32)
    ours, modules = (float(jnp.linalg.norm(a - exact)) for a in (packed, latents(x, jnp.bfloat16)))
    assert 0 < ours < modules < 0.02 * float(jnp.linalg.norm(exact))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["joint, views", "joint, gpt", "joint, learned", "mha, turned in the kernel"])
@pytest.mark.parametrize("rows", [2, row_linear.MAX_ROWS + 1])
def test_a_step_in_bfloat16_is_no_further_from_float32_than_the_modules(variant: str, rows: int) -> None:
    plain = decode_twice(variant, PLAIN, rows, False)[0]
    by_modules = decode_twice(variant, dataclasses.replace(PLAIN, dtype="bfloat16"), rows, False)[0]
    packed = decode_twice(variant, dataclasses.replace(FAST, dtype="bfloat16"), rows, True)[0]
    assert float(jnp.linalg.norm(packed - plain)) <= 1.1 * float(jnp.linalg.norm(by_modules - plain))


def test_what_a_step_reads_is_the_packed_weights_and_the_tables() -> None:
    cfg = tiny_config("mla").model
    variables = variables_of(random_params(Transformer(cfg, PLAIN)))
    served = serving.serving_variables(cfg, variables, FAST)
    read = serving.read_at_decode(served)
    assert any(leaf is served["params"]["embedding"] for leaf in jax.tree.leaves(read))
    assert len(jax.tree.leaves(read)) == len(jax.tree.leaves(served["serving"])) + 2
    assert serving.read_at_decode(variables) is variables


def test_of_experts_a_step_reads_one_form() -> None:
    cfg = tiny_config("moe_mla_rope").model
    variables = variables_of(random_params(Transformer(cfg, PLAIN)), initial_router_bias(cfg))
    served = serving.serving_variables(cfg, variables, FAST)
    few, many = (jax.tree.leaves(serving.read_at_decode(served, rows)) for rows in (8, 9))
    for layer in ("layer_0", "layer_1"):
        ours = served["params"][layer]["ffn"]["w_up"]
        assert any(leaf is ours for leaf in many) and not any(leaf is ours for leaf in few)
    packed = served["serving"]["weights"].layers[1].experts.up
    assert any(leaf is packed for leaf in few) and not any(leaf is packed for leaf in many)


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("mha_rope:m", (65, 58, 66)),
        ("mla_rope:m", (66, 84, 92)),
        ("mla_rope:xl", (319, 648, 665)),
        ("moe_mla_rope_flop_matched:m", (331, 349, 357)),
    ],
)
def test_what_packing_takes_is_what_the_docs_say(name: str, megabytes: tuple[int, ...]) -> None:
    """Weights, packed ones beside them, what a step reads of both: docs/how-to/benchmark.md."""
    cfg = load_config(name, **{"model.vocab_size": 8192, "tokenizer.vocab_size": 8192}).model
    backend, params = Backend("bfloat16", "xla", decode_impl="pallas"), abstract_params(Transformer(cfg, PLAIN))
    served = jax.eval_shape(lambda p: serving.serving_variables(cfg, {"params": p}, backend), params)
    parts = (served["params"], served[serving.COLLECTION], serving.read_at_decode(served))
    assert tuple(round(nbytes(part) / 1e6) for part in parts) == megabytes
    plain, packed, read = (f"{number} MB" for number in megabytes)
    text = (Path(__file__).parents[1] / "docs" / "how-to" / "benchmark.md").read_text()
    assert f"| `{name}` | {plain} | {packed} | {plain}, {read} |" in text


@pytest.mark.parametrize(
    ("name", "rows", "dtype", "launches"),
    [
        ("mla_rope:m", 1, jnp.bfloat16, 11),
        ("mla_rope:m", 1, jnp.int8, 11),
        ("mha_rope:m", 1, jnp.bfloat16, 11),
        ("mla_rope:m", 64, jnp.bfloat16, 4),
        ("moe_mla_rope_flop_matched:m", 1, jnp.bfloat16, 13),
    ],
)
def test_a_step_lowers_for_a_gpu_with_five_launches_a_layer(name: str, rows: int, dtype: Any, launches: int) -> None:
    """Two layers and the logits; above MAX_ROWS the products are XLA's, and one more launch joins the splits.

    Experts take one more than a dense layer: the router's. (Of an int8 entry XLA makes and writes what it takes.)
    """
    cfg = load_config(name, **{"model.n_layers": 2, "model.vocab_size": 512, "tokenizer.vocab_size": 512}).model
    backend = Backend("bfloat16", "cudnn", decode_impl="pallas")
    model = Transformer(cfg, backend)
    params = abstract_params(Transformer(cfg, PLAIN))
    bias = jax.eval_shape(lambda: initial_router_bias(cfg))
    given = variables_of(params, bias)
    variables = jax.eval_shape(lambda v: serving.serving_variables(cfg, v, backend), given)
    store = jax.eval_shape(lambda: init_cache(cfg, rows, 512, dtype))
    tokens, start = jax.ShapeDtypeStruct((rows, 1), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    text = lower_for_h100(lambda v, t, s, c: model.apply(v, t, s, c, method="decode"), variables, tokens, start, store)
    assert text.count(TRITON_CALL) == launches


def test_which_caches_the_kernels_addresses_reach() -> None:
    """The lowering turns to 64-bit addresses above 2^32 bytes: only single bytes can be too many for 32 bits before."""
    cfg = load_config("mla_rope:m", **{"model.n_layers": 1, "model.max_len": 4096}).model
    for rows in (2047, 2048, 3000):  # 2,048 rows of 4,096 positions and 256 numbers are 2^31 elements
        store = jax.eval_shape(lambda rows=rows: init_cache(cfg, rows, 4096, jnp.bfloat16))
        assert packed_decode.applies(FAST, 1, store) and decode_attention.applies(FAST, 1, store[0])
    for rows, fits in ((2048, True), (2049, False), (4097, True)):
        store = jax.eval_shape(lambda rows=rows: init_cache(cfg, rows, 4096, jnp.int8))
        assert decode_attention.applies(FAST, 1, store[0]) == fits
        assert packed_decode.applies(FAST, 1, store) == fits
        assert not packed_decode.applies(dataclasses.replace(FAST, decode_impl="cudnn"), 1, store)


def test_many_rows_of_heads_go_to_cudnn_unless_told_otherwise() -> None:
    cfg = load_config("mha_rope:m").model
    backend = Backend("bfloat16", "cudnn", decode_impl="pallas")

    def impl(rows: int, cfg: Any = cfg, backend: Backend = backend, cache_dtype: Any = jnp.bfloat16) -> str:
        return packed_decode.heads_impl(cfg, backend, rows, cache_dtype)

    assert [impl(rows) for rows in (1, 64, 511, 512)] == [*["pallas"] * 3, "cudnn"]
    assert impl(1024, cfg=load_config("mha_rope:m", **{"model.decode_impl": "pallas"}).model) == "pallas"
    assert impl(1024, backend=Backend("bfloat16", "xla", decode_impl="pallas")) == "pallas"


def test_no_cache_is_converted_whole_at_every_step() -> None:
    """512 rows of float32 heads (`sample.cache_dtype=float32`): the kernel reads them as they are, cuDNN cannot."""
    cfg = load_config("mha_rope:m", **{"model.n_layers": 1, "model.vocab_size": 512, "tokenizer.vocab_size": 512}).model
    backend = Backend("bfloat16", "cudnn", decode_impl="pallas")
    params = abstract_params(Transformer(cfg, PLAIN))
    variables = jax.eval_shape(lambda p: serving.serving_variables(cfg, {"params": p}, backend), params)
    store = jax.eval_shape(lambda: init_cache(cfg, 512, 512, jnp.float32))
    tokens, start = jax.ShapeDtypeStruct((512, 1), jnp.int32), jax.ShapeDtypeStruct((512,), jnp.int32)
    decode = functools.partial(Transformer(cfg, backend).apply, method="decode")
    text = lower_for_h100(decode, variables, tokens, start, store)
    assert TRITON_CALL in text and "512x512x8x64xbf16" not in text

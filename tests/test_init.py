"""Initialisation: the product of two factors has the variance of the matrix it replaces; naive factors do not."""

import functools
import math
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import REFERENCE, quick_jit, reference_model, tiny_config

from mla_jax.config import ModelConfig, replace
from mla_jax.model.attention import Where
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer, attention_module
from mla_jax.restore import abstract_params
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state

WIDTH, HEADS, HEAD_DIM, STD = 256, 4, 64, 0.02


def config_of(name: str, **knobs: Any) -> Any:
    base = {"model.d_model": WIDTH, "model.n_heads": HEADS, "model.n_layers": 6}
    return tiny_config(name, **(base | {f"model.{key}": value for key, value in knobs.items()}))


def fresh(model: ModelConfig) -> dict[str, jax.Array]:
    """Fresh weights of one attention layer."""
    module = attention_module(model)(model, REFERENCE)
    return quick_jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, model.d_model)), Where())["params"]


def products(params: dict[str, jax.Array], latent: str) -> list[np.ndarray]:
    """The effective key and value matrices [D, H, Dh]."""
    if latent == "joint":
        return [np.einsum("dc,chk->dhk", params["w_dkv"], params[up]) for up in ("w_uk", "w_uv")]
    return [np.einsum("dhr,hrk->dhk", params[d], params[u]) for d, u in (("w_dk", "w_uk"), ("w_dv", "w_uv"))]


@pytest.mark.parametrize("rank", [2, 64])
@pytest.mark.parametrize("latent", ["joint", "per_head"])
def test_product_matched_factors_have_the_std_of_the_matrix_they_replace(latent: str, rank: int) -> None:
    model = config_of("mla", latent=latent, kv_lora_rank=rank, latent_norm="none").model
    for product in products(fresh(model), latent):
        assert product.std() == pytest.approx(STD, rel=0.12 if rank == 2 else 0.03)


@pytest.mark.parametrize(("rank", "paper"), [(64, 0.003), (2, 0.0005)])
def test_naive_factors_are_far_too_small(rank: int, paper: float) -> None:
    """papers.md: a product of two 0.02 matrices has std 0.003 at r=64 and 0.0005 at r=2 (0.02^2 sqrt(r))."""
    model = config_of("mla", latent="per_head", kv_lora_rank=rank, latent_norm="none", init="naive").model
    for product in products(fresh(model), "per_head"):
        assert product.std() == pytest.approx(STD**2 * math.sqrt(rank), rel=0.12)
        assert product.std() == pytest.approx(paper, rel=0.3)


@pytest.mark.parametrize("rank", [16, 128])
@pytest.mark.parametrize("latent", ["joint", "per_head"])
def test_behind_a_norm_keys_and_values_start_as_large_as_mhas(latent: str, rank: int) -> None:
    """The norm undoes the first factor's scale: what counts is the std of the pair's output on unit-RMS input."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 256, WIDTH)), jnp.float32)
    model = config_of("mla", latent=latent, kv_lora_rank=rank, latent_norm="rms").model
    module = attention_module(model)(model, REFERENCE)
    params = fresh(model)

    def keys_and_values(module: Any, x: jax.Array) -> Any:
        return module.expand(module.latents(*module._project(x, Where())[1:]))

    for out in module.apply({"params": params}, x, method=keys_and_values):
        assert float(out.std()) == pytest.approx(STD * math.sqrt(WIDTH), rel=0.06)


def queries(module: Any, x: jax.Array) -> jax.Array:
    return module._queries(module._project(x, Where())[0], Where())[0]


@pytest.mark.parametrize("norm", ["rms", "none"])
def test_compressed_queries_start_as_large_as_plain_ones(norm: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 256, WIDTH)), jnp.float32)
    sizes = []
    for rank in (0, 48):
        model = config_of("mla", q_lora_rank=rank, latent_norm=norm).model
        module = attention_module(model)(model, REFERENCE)
        q = module.apply({"params": fresh(model)}, x, method=queries)
        sizes.append(float(q.std()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.06)


@pytest.fixture(scope="module")
def whole() -> tuple[Any, Any]:
    config = config_of("mla_rope", vocab_size=512, n_layers=2, d_ff=128, block="gpt", d_model=128, position="learned")
    return config, init_params(reference_model(config), 0)


def test_std_of_every_other_parameter(whole: tuple[Any, Any]) -> None:
    config, params = whole
    residual = STD / math.sqrt(2 * config.model.n_layers)
    expected = {"embedding": STD, "position_embedding": STD, "w_q": STD, "w_in": STD, "w_o": residual}
    expected["w_out"] = residual
    checked = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name.endswith("gain"):
            np.testing.assert_array_equal(leaf, 1.0)
        elif name.startswith("b_") or name == "bias":
            np.testing.assert_array_equal(leaf, 0.0)
        elif name in expected:
            assert float(leaf.std()) == pytest.approx(expected[name], rel=0.06), path
            assert abs(float(leaf.mean())) < 0.06 * expected[name] + 3 * expected[name] / math.sqrt(leaf.size)
            checked.add(name)
        else:
            assert name in ("w_dkv", "w_uk", "w_uv"), name
    assert checked == set(expected)


def test_weights_are_a_function_of_the_seed_and_layers_differ(whole: tuple[Any, Any]) -> None:
    config, params = whole
    jax.tree.map(np.testing.assert_array_equal, params, init_params(reference_model(config), 0))
    first, second, other = (
        tree["attention"]["w_q"]
        for tree in (params["layer_0"], params["layer_1"], init_params(reference_model(config), 1)["layer_0"])
    )
    for different in (second, other):
        assert float(jnp.abs(first - different).max()) > STD


def test_an_arrays_values_do_not_depend_on_what_other_arrays_there_are(whole: tuple[Any, Any]) -> None:
    """Sound comparisons: variants that differ in one place start from the same weights elsewhere."""
    config, params = whole
    longer = init_params(reference_model(replace(config, **{"model.n_layers": 3})), 0)
    np.testing.assert_array_equal(longer["embedding"], params["embedding"])
    for name in ("w_q", "w_dkv"):
        np.testing.assert_array_equal(longer["layer_1"]["attention"][name], params["layer_1"]["attention"][name])


@pytest.mark.parametrize("name", ["mha", "mla_rope", "moe_mla_rope"])
def test_arrays_drawn_one_by_one_have_the_shapes_and_constants_of_flax_init(name: str) -> None:
    model = reference_model(tiny_config(name))
    ours = init_params(model, 0)
    flax = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    for path, leaf in jax.tree_util.tree_leaves_with_path(flax):
        mine = functools.reduce(lambda tree, key: tree[key.key], path, ours)
        assert mine.shape == leaf.shape and mine.dtype == leaf.dtype
        if float(leaf.std()) == 0:
            np.testing.assert_array_equal(mine, leaf)
        else:
            assert float(mine.std()) == pytest.approx(float(leaf.std()), rel=0.25), path
            assert float(jnp.abs(mine - leaf).max()) > 0


def test_all_who_ask_for_a_models_shapes_have_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start asks twice: for the training step, and for fresh weights."""
    model = reference_model(tiny_config("mla_rope", **{"model.vocab_size": 333}))  # of no other test
    traced = mock.Mock(side_effect=Transformer.init)
    monkeypatch.setattr(Transformer, "init", lambda *arguments: traced(*arguments))
    state = abstract_state(model, make_optimizer(tiny_config("mla_rope").optim))
    params = init_params(Transformer(model.cfg, model.backend), 0)
    assert traced.call_count == 1
    for shapes in (state.params, abstract_params(model)):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
    shapes.clear()
    assert abstract_params(model) and traced.call_count == 1

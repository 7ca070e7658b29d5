"""Unmeasured forms of the training step compute the same function, and are off unless asked for."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quick_jit, random_params, random_tokens, reference_model, tiny_config

from mla_jax.errors import UserError
from mla_jax.model import attention, backend, candidates, layers
from mla_jax.model.backend import REFERENCE
from mla_jax.model.transformer import Transformer
from mla_jax.train.loss import cross_entropy_reference


def value_and_gradient(config: Any, backend: Any) -> Any:
    model, tokens = Transformer(config.model, backend), random_tokens(config, 8, 16)

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply({"params": params}, tokens)
        return jnp.mean(cross_entropy_reference(logits, tokens, config.model.vocab_size))

    return quick_jit(jax.value_and_grad(loss))(random_params(reference_model(config)))


_OTHER_WIDTHS = {f"model.{name}": size for name, size in (("qk_nope_head_dim", 10), ("v_head_dim", 20))}
_OTHER_WIDTHS |= {"model.qk_rope_head_dim": 6, "model.kv_lora_rank": 12}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("mla_products", {}),
        ("lean_gelu", {"model.block": "gpt"}),
        ("gelu_kernel", {"model.block": "gpt"}),
        ("joined_products", {}),
        ("joined_products", {"model.attention": "mha"}),
        pytest.param("joined_products", {"model.latent": "per_head"}, marks=pytest.mark.slow),
        pytest.param("joined_products", {"model.q_lora_rank": 16}, marks=pytest.mark.slow),
        ("norm_kernel", {"model.block": "gpt"}),
        ("rope_kernel", {}),
        ("rope_kernel", {"model.attention": "mha"}),
        ("rope_kernel", {"model.attention": "gqa", "model.n_kv_heads": 2, "model.head_dim": 6}),
        pytest.param("rope_kernel", _OTHER_WIDTHS, marks=pytest.mark.slow),
        pytest.param("rope_kernel", _OTHER_WIDTHS | {"model.latent_norm": "none"}, marks=pytest.mark.slow),
        pytest.param("rope_kernel", {"model.scan_layers": True}, marks=pytest.mark.slow),
        pytest.param("rope_kernel", {"model.qk_norm": True}, marks=pytest.mark.slow),
        ("norm_kernel", {"model.block": "default"}),
        pytest.param("mla_products", {"model.v_head_dim": 20, "model.qk_rope_head_dim": 2}, marks=pytest.mark.slow),
        pytest.param("mla_products", {"model.qk_norm": True}, marks=pytest.mark.slow),
        pytest.param("mla_products", {"model.scan_layers": True}, marks=pytest.mark.slow),
    ],
)
def test_a_candidate_changes_neither_values_nor_gradients(name: str, knobs: dict[str, Any]) -> None:
    config = tiny_config("mla_rope", **{"model.n_layers": 1, **knobs})
    plain = value_and_gradient(config, REFERENCE)
    other = dataclasses.replace(REFERENCE, candidates=(name,))
    found = value_and_gradient(config, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, plain)
    programs = [program(config, backend) for backend in (REFERENCE, other)]
    assert (programs[0] == programs[1]) == bool(knobs.get("model.qk_norm"))  # it does something, where it can


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_rows_with_positions_of_their_own_do_not_go_through_the_rope_kernel(attention: str) -> None:
    """Documents kept apart have a table of angles for every row."""
    model = tiny_config("mla_rope", **{"model.attention": attention}).model
    other = dataclasses.replace(REFERENCE, candidates=("rope_kernel",))
    x = jnp.zeros((8, 16, 32))
    assert layers.rotates_in_one_pass(x, None, model, other)
    assert not layers.rotates_in_one_pass(x, jnp.zeros((8, 16), jnp.int32), model, other)
    assert not layers.rotates_in_one_pass(x[:, :15], None, model, other)
    assert not layers.rotates_in_one_pass(x, None, model, REFERENCE)


def program(config: Any, backend: Any) -> str:
    model, tokens = Transformer(config.model, backend), random_tokens(config, 8, 16)
    params = random_params(reference_model(config))
    return str(jax.make_jaxpr(lambda p: model.apply({"params": p}, tokens)[0])(params))


@pytest.mark.parametrize("names", [(), ("attn_pad128",), ("attn_cudnn_mla",), ("attn_tokamax",)])
def test_attention_of_a_candidate_gets_what_it_needs(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """The kernels themselves replaced by plain attention: padding, cutting and the choice are what is tested."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, 8, 3, 24)), jnp.float32) for _ in range(2))
    v = jnp.asarray(rng.standard_normal((2, 8, 3, 16)), jnp.float32)
    where, widths = attention.Where(), []

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, scale: float, **_: Any) -> jax.Array:
        widths.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return attention.attend_reference(q, k, v, attention.causal_mask(where, 8), scale)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(attention, "_attend_cudnn_unequal", kernel)
    monkeypatch.setattr(attention, "_attend_tokamax", kernel)
    chosen = backend.Backend("float32", "cudnn", candidates=names)
    out = attention.attend(q, k, v, where, 0.3, chosen)
    plain = attention.attend(q, k, v, where, 0.3, REFERENCE)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
    expected = {(): (24, 24, 24), ("attn_pad128",): (128, 128, 128)}
    assert widths == [expected.get(names, (24, 24, 16))]


def test_they_are_off_unless_the_environment_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("mla_rope").model
    monkeypatch.delenv(candidates.VARIABLE, raising=False)
    assert backend.choose(config).candidates == ()
    monkeypatch.setenv(candidates.VARIABLE, "mla_products, attn_pad128")
    chosen = backend.choose(config)
    assert chosen.candidates == ("attn_pad128", "mla_products")
    assert "attn_pad128" in chosen.reason
    monkeypatch.setenv(candidates.VARIABLE, "warp_drive")
    with pytest.raises(UserError, match=r"MLA_JAX_CANDIDATES has 'warp_drive'.*attn_pad128"):
        backend.choose(config)


@pytest.mark.parametrize(("tensor", "joins"), [(1, True), (2, False)])
def test_products_are_not_joined_where_heads_are_split_over_devices(tensor: int, joins: bool) -> None:
    mesh = jax.sharding.AbstractMesh((1, 1, 1, tensor), ("data", "fsdp", "expert", "tensor"))
    other = dataclasses.replace(REFERENCE, candidates=("joined_products",), mesh=mesh)
    assert layers.joins_products(other) == joins
    assert not layers.joins_products(dataclasses.replace(other, candidates=()))


@pytest.mark.parametrize("joined", [0, 2, 3])
def test_products_of_one_input_and_their_gradients_are_those_of_single_ones(joined: int) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    weights = [jnp.asarray(rng.standard_normal((8, *shape)), jnp.float32) for shape in ((2, 3), (4,), (2, 2))]

    def together(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
        return [jnp.sin(y) for y in layers.products(x, weights, jnp.float32, joined)]

    def single(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
        return [jnp.sin(x @ w.reshape(8, -1)) for w in weights]

    expected, pull_expected = jax.vjp(single, x, weights)
    found, pull = jax.vjp(together, x, weights)
    pairs = (found, expected), (pull(expected), pull_expected(expected))
    for one, other in pairs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)

"""Kernels of the training step compute what the plain forms do, and are chosen where the device can have them."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import REFERENCE, quick_jit, random_params, random_tokens, reference_model, tiny_config

from mla_jax.errors import UserError
from mla_jax.kernels import norm
from mla_jax.model import attention, backend, one_pass, products, rotary
from mla_jax.model.moe import initial_router_bias
from mla_jax.model.transformer import Transformer, variables_of
from mla_jax.train.loss import cross_entropy_reference


def value_and_gradient(config: Any, backend: Any) -> Any:
    """With a key for dropout, which does nothing where the rate is 0."""
    model, tokens = Transformer(config.model, backend), random_tokens(config, 8, 16)

    def loss(params: Any) -> jax.Array:
        variables = variables_of(params, initial_router_bias(config.model))
        logits, _ = model.apply(variables, tokens, None, jax.random.key(0))
        return jnp.mean(cross_entropy_reference(logits, tokens, config.model.vocab_size))

    return quick_jit(jax.value_and_grad(loss))(random_params(reference_model(config)))


_OTHER_WIDTHS = {f"model.{name}": size for name, size in (("qk_nope_head_dim", 10), ("v_head_dim", 20))}
_OTHER_WIDTHS |= {"model.qk_rope_head_dim": 6, "model.kv_lora_rank": 12}


_MASKED = {"model.ffn": "moe", "model.n_routed_experts": 6, "model.top_k": 2, "model.d_expert": 7}
_MASKED |= {"model.n_shared_experts": 2, "model.moe_impl": "masked_dense"}
KERNELS = dataclasses.replace(REFERENCE, train_impl="pallas", interpret=True)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"model.attention": "mha"},
        {"model.attention": "gqa", "model.n_kv_heads": 2, "model.head_dim": 6},
        {"model.block": "gpt", "model.attention": "mha"},
        {"model.block": "gpt", "model.attention": "mha", "model.position": "learned"},
        {"model.block": "gpt", "model.attention": "gqa", "model.n_kv_heads": 2, "model.position": "learned"},
        {"model.block": "gpt", "model.attention": "mha", "model.position": "learned", "model.qk_norm": True},
        {"model.block": "gpt", "model.attention": "mha", "model.position": "learned", "model.dropout": 0.3},
        pytest.param({"model.block": "gpt", **_MASKED}, marks=pytest.mark.slow),
        pytest.param(_MASKED, marks=pytest.mark.slow),
        pytest.param({"model.block": "gpt"}, marks=pytest.mark.slow),
        pytest.param({"model.latent": "per_head"}, marks=pytest.mark.slow),
        pytest.param({"model.q_lora_rank": 16}, marks=pytest.mark.slow),
        pytest.param(_OTHER_WIDTHS, marks=pytest.mark.slow),
        pytest.param(_OTHER_WIDTHS | {"model.latent_norm": "none"}, marks=pytest.mark.slow),
        pytest.param({"model.scan_layers": True}, marks=pytest.mark.slow),
        pytest.param({"model.qk_norm": True}, marks=pytest.mark.slow),
    ],
)
def test_kernels_change_neither_values_nor_gradients(knobs: dict[str, Any]) -> None:
    config = tiny_config("mla_rope", **{"model.n_layers": 1, **knobs})
    plain, found = (value_and_gradient(config, backend) for backend in (REFERENCE, KERNELS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, plain)


def test_biases_have_their_gradients_from_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that of keys none at all, instead of a sum over all rows that is zero but for rounding."""
    config = tiny_config("mha", **{"model.block": "gpt", "model.position": "learned", "model.n_layers": 1})
    kernel, given = norm.norm_with_stream, []

    def recorded(x: jax.Array, gain: jax.Array, bias: Any, stream_bias: Any, *more: Any) -> tuple:
        given.append(stream_bias is not None)
        return kernel(x, gain, bias, stream_bias, *more)

    monkeypatch.setattr(norm, "norm_with_stream", recorded)
    found, plain = (value_and_gradient(config, backend)[1]["layer_0"] for backend in (KERNELS, REFERENCE))
    assert len(given) >= 2 and all(given)
    assert not jnp.any(found["attention"]["b_k"]) and jnp.any(plain["attention"]["b_k"])
    for part, name in (("attention", "b_q"), ("attention", "b_v"), ("attention", "b_o"), ("ffn", "b_out")):
        assert jnp.any(found[part][name])


@pytest.mark.parametrize(
    ("knobs", "names"),
    [
        ({}, {"norm", "rotate_in_place", "rotate_heads"}),
        ({"model.attention": "mha"}, {"norm", "rotate_heads"}),
        ({"model.block": "gpt"}, {"norm", "bias_gelu", "rotate_in_place", "rotate_heads"}),
        ({"model.block": "gpt", "model.position": "learned"}, {"norm", "bias_gelu"}),
        ({"model.qk_norm": True}, {"norm"}),
        (_MASKED, {"norm", "rotate_in_place", "rotate_heads", "masked_hidden"}),
        ({"model.block": "gpt", **_MASKED}, {"norm", "rotate_in_place", "rotate_heads", "masked_hidden"}),
        ({"model.rope_placement": "decompressed"}, {"norm"}),
    ],
)
def test_each_kernel_is_there_where_it_applies(knobs: dict[str, Any], names: set[str]) -> None:
    config = tiny_config("mla_rope", **{"model.n_layers": 1, **knobs})
    kernels = "norm|rotate_in_place|rotate_heads|bias_gelu|masked_hidden"
    found = set(re.findall(rf"name=({kernels})\b", program(config, KERNELS)))
    assert found == names
    assert "pallas_call" not in program(config, REFERENCE)


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_rows_with_positions_of_their_own_do_not_go_through_the_rope_kernel(attention: str) -> None:
    """Documents kept apart have a table of angles for every row."""
    model = tiny_config("mla_rope", **{"model.attention": attention}).model
    x = jnp.zeros((8, 16, 32))
    assert rotary.rotates_in_one_pass(x, None, model, KERNELS)
    assert not rotary.rotates_in_one_pass(x, jnp.zeros((8, 16), jnp.int32), model, KERNELS)
    assert not rotary.rotates_in_one_pass(x[:, :15], None, model, KERNELS)
    assert not rotary.rotates_in_one_pass(x, None, model, REFERENCE)


def program(config: Any, backend: Any) -> str:
    model, tokens = Transformer(config.model, backend), random_tokens(config, 8, 16)
    params = random_params(reference_model(config))
    return str(
        jax.make_jaxpr(lambda p: model.apply(variables_of(p, initial_router_bias(config.model)), tokens)[0])(params)
    )


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize(("width", "value_width"), [(24, 16), (20, 16), (24, 20), (16, 24), (16, 16)])
def test_attention_gets_v_as_wide_as_it_takes_it(
    monkeypatch: pytest.MonkeyPatch, width: int, value_width: int, unequal: bool
) -> None:
    """cuDNN itself replaced by plain attention: padding, cutting and the choice are what is tested."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, 8, 3, width)), jnp.float32) for _ in range(2))
    v = jnp.asarray(rng.standard_normal((2, 8, 3, value_width)), jnp.float32)
    where, widths = attention.Where(), []

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, scale: float, **_: Any) -> jax.Array:
        widths.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return attention.attend_reference(q, k, v, attention.causal_mask(where, 8), scale)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(attention, "_attend_cudnn_unequal", kernel)
    monkeypatch.setattr(attention, "takes_unequal_heads", lambda: unequal)
    out = attention.attend(q, k, v, where, 0.3, backend.Backend("float32", "cudnn"))
    plain = attention.attend(q, k, v, where, 0.3, REFERENCE)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
    wide = max(width, value_width)
    assert widths == [(24, 24, 16) if unequal and (width, value_width) == (24, 16) else (wide, wide, wide)]


def test_without_a_gpu_v_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.cudnn import fused_attention_stablehlo as fused

    def nothing() -> int:
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused, "check_cudnn_version", nothing)
    assert not attention.takes_unequal_heads.__wrapped__()


@pytest.mark.parametrize(
    ("wish", "dtype", "capability", "expected"),
    [
        ("auto", "bfloat16", "9.0", "pallas"),
        ("auto", "bfloat16", "7.5", "xla"),
        ("auto", "float32", "9.0", "xla"),
        ("pallas", "float32", "9.0", "pallas"),
        ("xla", "bfloat16", "9.0", "xla"),
    ],
)
def test_the_device_decides_unless_the_config_does(wish: str, dtype: str, capability: str, expected: str) -> None:
    device = SimpleNamespace(platform="gpu", device_kind="GPU", compute_capability=capability)
    model = tiny_config("mla_rope", **{"model.train_impl": wish, "model.dtype": dtype}).model
    assert backend.choose(model, device).train_impl == expected


def test_a_run_is_read_where_its_kernels_are_not() -> None:
    wishes = {"model.train_impl": "pallas", "model.attention_impl": "cudnn", "model.decode_impl": "xla"}
    model = backend.anywhere(tiny_config("mla_rope", **wishes).model)
    assert (model.train_impl, model.attention_impl, model.decode_impl) == ("auto", "auto", "xla")
    assert backend.choose(model, jax.devices("cpu")[0]).train_impl == "xla"


def test_kernels_that_the_device_cannot_have_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.train_impl is 'pallas'.*sm80.*use auto"):
        backend.choose(tiny_config("mla_rope", **{"model.train_impl": "pallas"}).model, jax.devices("cpu")[0])


@pytest.mark.parametrize(("shape", "taken"), [((2, 1, 1, 1), True), ((1, 1, 1, 2), False), ((3, 1, 1, 1), False)])
def test_on_a_mesh_rows_decide(shape: tuple[int, ...], taken: bool) -> None:
    """Each device takes rows of its own; where heads or hidden units are split, or rows do not divide, XLA does it."""
    mesh = jax.sharding.AbstractMesh(shape, ("data", "fsdp", "expert", "tensor"))
    other = dataclasses.replace(KERNELS, mesh=mesh)
    assert one_pass.in_one_pass((8, 16, 32), other, lambda own: own == (4, 16, 32)) == taken


def test_products_of_one_input_and_their_gradients_are_those_of_single_ones() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    weights = [jnp.asarray(rng.standard_normal((8, *shape)), jnp.float32) for shape in ((2, 3), (4,), (2, 2))]

    def together(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
        return [jnp.sin(y) for y in products.of_one_input(x, weights, jnp.float32)]

    def single(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
        return [jnp.sin(x @ w.reshape(8, -1)) for w in weights]

    expected, pull_expected = jax.vjp(single, x, weights)
    found, pull = jax.vjp(together, x, weights)
    pairs = (found, expected), (pull(expected), pull_expected(expected))
    for one, other in pairs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="compiled kernels need a GPU: launch/gpu_speed.sh OUT tests")
@pytest.mark.parametrize("knobs", [{}, {"model.attention": "mha"}, {"model.block": "gpt"}, _MASKED])
def test_compiled_kernels_change_neither_values_nor_gradients(knobs: dict[str, Any]) -> None:
    config = tiny_config("mla_rope", **{"model.n_layers": 1, **knobs})
    compiled = dataclasses.replace(KERNELS, interpret=False, platform="gpu")
    with jax.default_matmul_precision("highest"):
        plain, found = (value_and_gradient(config, backend) for backend in (REFERENCE, compiled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain)

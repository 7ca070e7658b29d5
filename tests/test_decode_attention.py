"""model.decode_impl: the choice, its refusals, and each fast path against the plain one inside the whole model."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from test_backend import A100, AMD, CPU, H100, T4, TPU
from tiny import abstract_params, quick_jit, random_params, random_tokens, tiny_config

from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.kernels import flash_program, kernel_call, probe
from mla_jax.kernels.operands import Operands
from mla_jax.model.backend import Backend, choose
from mla_jax.model.cache import init_cache
from mla_jax.model.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

DECOMPRESSED = {"model.rope_placement": "decompressed"}
CHOICES = [
    (H100, "mla_rope", {}, "pallas"),
    (A100, "mha", {}, "pallas"),
    (H100, "mla_per_head", {}, "xla"),  # its RoPE is applied to the expanded key
    (H100, "mla_per_head", {"model.position": "learned"}, "pallas"),
    (H100, "mla_rope", DECOMPRESSED, "xla"),
    (H100, "mla_rope", {"model.qk_norm": True}, "xla"),
    (H100, "mha_rope", {"model.decode_impl": "cudnn"}, "cudnn"),
    (H100, "mla_per_head", {"model.decode_impl": "cudnn", "model.position": "learned"}, "cudnn"),
    (H100, "mla_rope", {"model.decode_impl": "xla"}, "xla"),
    (H100, "mla_rope", {"model.dtype": "float32"}, "xla"),
    (T4, "mla_rope", {}, "xla"),
    (AMD, "mla_rope", {}, "xla"),
    (CPU, "mla_rope", {}, "xla"),
    (TPU, "mla_rope", {}, "xla"),
]


@pytest.mark.parametrize(("device", "name", "knobs", "expected"), CHOICES)
def test_the_choice_follows_the_device_and_the_variant(device: Any, name: str, knobs: dict, expected: str) -> None:
    backend = choose(load_config(name, **knobs).model, device)
    assert backend.decode_impl == expected
    assert backend.decode_reason  # for the start-up report


@pytest.mark.parametrize(
    ("device", "name", "knobs", "says"),
    [
        (CPU, "mla_rope", {"model.decode_impl": "pallas"}, "cpu:cpu has no decode kernel"),
        (T4, "mha", {"model.decode_impl": "cudnn"}, "Tesla T4 has no decode kernel"),
        (H100, "mla_rope", {"model.decode_impl": "cudnn"}, "no attention over one shared latent"),
        (H100, "mla_rope", {"model.decode_impl": "pallas"} | DECOMPRESSED, "expands its cache"),
        (H100, "mha", {"model.decode_impl": "cudnn", "model.head_dim": 60}, "not 60"),
        (H100, "mha", {"model.decode_impl": "pallas", "model.dtype": "float32"}, "model.dtype is float32"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_sentence(device: Any, name: str, knobs: dict, says: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(load_config(name, **knobs).model, device)
    message = str(caught.value)
    assert message.startswith(f"model.decode_impl is {knobs['model.decode_impl']!r}; ")
    assert says in message
    assert message.endswith(": use auto or xla.")


@pytest.mark.parametrize("name", list(probe.CHECKS))
def test_the_self_checks_pass_where_kernels_are_plain_jax(name: str) -> None:
    assert probe.CHECKS[name](interpret=True) <= probe._TOLERANCE


def test_a_self_check_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe.row_linear
    monkeypatch.setattr(probe, "row_linear", lambda *a, **k: 1.1 * real(*a, **k))
    assert probe.CHECKS["row_linear"](interpret=True) > probe._TOLERANCE


@pytest.mark.parametrize("place", ["nothing", "uniform", "temperature", "top_k", "top_p", "min_p"])
def test_the_self_check_of_the_draw_sees_whatever_is_wrong(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Numbers and weights that are off by a little, one cut that is not made, and a kernel that writes nothing."""
    real = probe.row_draw
    off = {"uniform": lambda u: 0.99 * u, "temperature": lambda t: 1.05 * t, "top_k": lambda k: 0 * k + 100}
    off |= {"top_p": jnp.ones_like, "min_p": jnp.zeros_like}
    names = ("logits", "uniform", "temperature", "top_k", "top_p", "min_p")

    def wrong(*operands: Any) -> jax.Array:
        if place == "nothing":
            return jnp.zeros(operands[0].shape[0], jnp.int32)
        changed = [off[name](x) if name == place else x for name, x in zip(names, operands, strict=False)]
        return real(*changed, *operands[len(names) :])

    monkeypatch.setattr(probe, "row_draw", wrong)
    assert probe.CHECKS["row_draw"](interpret=True) == float("inf")


@pytest.fixture
def own_kernels() -> Iterator[None]:
    """Neither kernels of other tests, nor this test's for others."""
    kernel_call.forget()
    yield
    kernel_call.forget()


def test_a_self_check_sees_values_and_scales_that_are_not_read(
    monkeypatch: pytest.MonkeyPatch, own_kernels: None
) -> None:
    """Joint latents in bfloat16, which were all that was tried, have neither."""
    real = probe.flash_decode

    def values_are_keys(operands: Operands, *rest: Any) -> Any:
        return real(operands if operands.v is None else operands.replace(v=operands.k), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(probe, "flash_decode", values_are_keys)
        assert probe.CHECKS["head_decode"](interpret=True) > probe._TOLERANCE

    def no_joint_scale(operands: Operands, *rest: Any) -> Any:
        return real(operands.replace(k_scale=None) if operands.v is None else operands, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(probe, "flash_decode", no_joint_scale)
        assert probe.CHECKS["head_decode"](interpret=True) > probe._TOLERANCE

    def no_scales(ref: Any, row: Any, here: Any, valid: jax.Array) -> Any:
        return None if ref is None else 0.01 * valid

    kernel_call.forget()
    monkeypatch.setattr(flash_program, "_load_scale", no_scales)
    assert probe.CHECKS["head_decode"](interpret=True) > probe._TOLERANCE


def test_no_number_is_an_error_of_a_self_check() -> None:
    assert max(0.0, probe._error(jnp.asarray([0.0, jnp.nan]), jnp.zeros(2))) == float("inf")


def test_the_self_check_of_heads_lowers_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[jax.Array] = []
    monkeypatch.setattr(probe, "_error", lambda array, _: found.append(array) or 0.0)
    program = lower_for_h100(lambda: (probe.CHECKS["head_decode"](), found))
    assert program.count(TRITON_CALL) == 3


def test_a_kernel_that_fails_its_self_check_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """This CPU cannot run the kernel at all, which is one way of failing."""
    monkeypatch.setattr(jax, "devices", lambda: [H100])
    assert "does not run here" in probe.obstacle()
    backend = choose(load_config("mla_rope").model)
    assert (backend.decode_impl, backend.attention_impl) == ("xla", "cudnn")
    assert "does not run here" in backend.decode_reason
    with pytest.raises(
        UserError, match=r"model\.decode_impl is 'pallas'; the Pallas kernel latent_decode does not run here"
    ):
        choose(load_config("mla_rope", **{"model.decode_impl": "pallas"}).model)


VARIANTS = {
    "joint_rope": ("mla_rope", {}),
    "gqa": ("gqa", {"model.n_kv_heads": 2}),
    "per_head_rope": ("mla_per_head", {"model.position": "rope", "model.rope_placement": "decoupled"}),
    "joint": ("mla", {}),
    "per_head": ("mla_per_head", {"model.position": "learned"}),
    "mha": ("mha", {}),
}
_OFTEN = ("joint_rope", "gqa")
PLAIN = Backend("float32", "xla")


def decode_twice(name: str, knobs: dict, backend: Backend, dtype: Any = jnp.float32) -> tuple[jax.Array, Any]:
    """Two steps after a ragged prefill -> logits of the second [3, vocab], cache."""
    config = tiny_config(name, **({"model.n_layers": 1} | knobs))
    model = Transformer(config.model, backend)
    params, tokens = random_params(model), random_tokens(config, 3, 9)
    lengths = jnp.asarray([1, 5, 9], jnp.int32)

    def run(params: Any) -> tuple[jax.Array, Any]:
        store = init_cache(config.model, 3, 13, dtype)
        _, store = model.apply({"params": params}, tokens, lengths, store, method="prefill")
        _, store = model.apply({"params": params}, tokens[:, :1], lengths, store, method="decode")
        logits, store = model.apply({"params": params}, tokens[:, 1:2], lengths + 1, store, method="decode")
        return logits[:, 0], store

    return quick_jit(run)(params)


@pytest.mark.parametrize("variant", [v if v in _OFTEN else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS])
def test_decode_by_the_kernels_is_decode_by_plain_xla(variant: str) -> None:
    name, knobs = VARIANTS[variant]
    fast = decode_twice(name, knobs, dataclasses.replace(PLAIN, decode_impl="pallas", interpret=True))
    plain = decode_twice(name, knobs, PLAIN)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), fast, plain)


@pytest.mark.parametrize("variant", ["joint_rope", pytest.param("per_head_rope", marks=pytest.mark.slow)])
def test_the_kernels_read_an_int8_cache_as_plain_xla_does(variant: str) -> None:
    name, knobs = VARIANTS[variant]
    fast = decode_twice(name, knobs, dataclasses.replace(PLAIN, decode_impl="pallas", interpret=True), jnp.int8)
    plain = decode_twice(name, knobs, PLAIN, jnp.int8)
    np.testing.assert_allclose(fast[0], plain[0], atol=1e-5, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, fast[1], plain[1])


@pytest.mark.parametrize("variant", ["gqa", pytest.param("per_head", marks=pytest.mark.slow)])
def test_decode_by_cudnn_is_decode_by_plain_xla(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's own call with its XLA implementation in place of cuDNN: lengths, groups and scale are ours."""
    original, calls = jax.nn.dot_product_attention, []

    def without_cudnn(*arguments: Any, implementation: str, **rest: Any) -> Any:
        calls.append(implementation)
        return original(*arguments, implementation="xla", **rest)

    name, knobs = VARIANTS[variant]
    plain = decode_twice(name, knobs, PLAIN)
    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    fast = decode_twice(name, knobs, dataclasses.replace(PLAIN, decode_impl="cudnn"))
    assert calls == ["cudnn"] * 2  # prefill of 9 tokens went the plain way
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), fast, plain)


def decode_step(name: str, knobs: dict, backend: Backend, batch: int, capacity: int) -> tuple[Any, tuple]:
    """A decode step of a named config at full size, and its abstract arguments."""
    model_config = load_config(name, **({"model.vocab_size": 512, "model.n_layers": 2} | knobs)).model
    model = Transformer(model_config, backend)
    store = jax.eval_shape(lambda: init_cache(model_config, batch, capacity, backend.jnp_dtype))
    tokens, start = jax.ShapeDtypeStruct((batch, 1), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.int32)

    def step(params: Any, tokens: Any, start: Any, store: Any) -> Any:
        return model.apply({"params": params}, tokens, start, store, method="decode")

    return step, (abstract_params(Transformer(model_config, PLAIN)), tokens, start, store)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_decode_step_lowers_for_gpus_and_tpus(variant: str) -> None:
    name, knobs = VARIANTS[variant]
    backend = Backend("bfloat16", "cudnn", decode_impl="pallas")
    step, arguments = decode_step(name, knobs, backend, 16, 512)
    # One kernel for both layers: XLA calls the function that holds it twice.
    assert 1 <= lower_for_h100(step, *arguments).count(TRITON_CALL) <= 2
    step, arguments = decode_step(name, knobs, Backend("bfloat16", "xla"), 16, 512)
    text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert TRITON_CALL not in text and "dot_general" in text

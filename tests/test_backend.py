"""The choice of dtype and attention, with every capability faked, and cuDNN's call with cuDNN itself replaced."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quick_jit

from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.model.attention import Where, attend, attend_reference, causal_mask
from mla_jax.model.backend import SUMS_SIDE_BY_SIDE, Backend, choose


def gpu(capability: str, kind: str = "NVIDIA") -> Any:
    return SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)


H100, A100, T4 = gpu("9.0", "NVIDIA H100 80GB HBM3"), gpu("8.0", "NVIDIA A100"), gpu("7.5", "Tesla T4")
BLACKWELL, AMD = gpu("12.0", "NVIDIA RTX 5090"), gpu("gfx942", "AMD Instinct MI300X")
CPU, TPU = (SimpleNamespace(platform=name, device_kind=name) for name in ("cpu", "tpu"))

CHOICES = [
    (H100, {}, ("bfloat16", "cudnn")),
    (A100, {}, ("bfloat16", "cudnn")),
    (BLACKWELL, {}, ("bfloat16", "cudnn")),
    (T4, {}, ("float32", "xla")),
    (T4, {"model.dtype": "bfloat16"}, ("bfloat16", "xla")),
    (AMD, {}, ("float32", "xla")),
    (CPU, {}, ("float32", "xla")),
    (CPU, {"model.dtype": "bfloat16"}, ("bfloat16", "xla")),
    (TPU, {}, ("bfloat16", "xla")),
    (H100, {"model.attention_impl": "xla"}, ("bfloat16", "xla")),
    (H100, {"model.attention_impl": "cudnn"}, ("bfloat16", "cudnn")),
    (H100, {"model.dtype": "float32"}, ("float32", "xla")),
    (H100, {"model.qk_nope_head_dim": 60}, ("bfloat16", "xla")),  # 92 with the rotary part: no multiple of 8
    (H100, {"model.qk_nope_head_dim": 112}, ("bfloat16", "xla")),  # 144: too wide
    (H100, {"model.qk_nope_head_dim": 96}, ("bfloat16", "cudnn")),  # 128
    (H100, {"model.v_head_dim": 100}, ("bfloat16", "xla")),  # q and k would be padded to it
    (H100, {"model.v_head_dim": 136}, ("bfloat16", "xla")),
    (H100, {"model.v_head_dim": 36}, ("bfloat16", "cudnn")),  # v is padded to q and k
]


@pytest.mark.parametrize(("device", "knobs", "expected"), CHOICES)
def test_the_choice_follows_the_device(device: Any, knobs: dict[str, Any], expected: tuple[str, str]) -> None:
    backend = choose(load_config("mla_rope", **knobs).model, device)
    assert (backend.dtype, backend.attention_impl) == expected
    assert backend.reason  # for the log


@pytest.mark.parametrize(
    ("device", "knobs", "says"),
    [
        (T4, {}, "gpu:Tesla T4 has no fused cuDNN attention"),
        (CPU, {}, "cpu:cpu has no fused cuDNN attention"),
        (TPU, {}, "tpu:tpu has no fused cuDNN attention"),
        (AMD, {}, "AMD Instinct MI300X has no fused cuDNN attention"),
        (H100, {"model.dtype": "float32"}, "model.dtype is float32"),
        (H100, {"model.qk_nope_head_dim": 60}, "not 92"),
        (H100, {"model.v_head_dim": 136}, "not 136"),
    ],
)
def test_cudnn_where_it_cannot_be_is_refused_with_a_sentence(device: Any, knobs: dict[str, Any], says: str) -> None:
    model = load_config("mla_rope", **({"model.attention_impl": "cudnn"} | knobs)).model
    with pytest.raises(UserError) as caught:
        choose(model, device)
    message = str(caught.value)
    assert message.startswith("model.attention_impl is 'cudnn'; ")
    assert says in message
    assert message.endswith(": use auto or xla.")


def test_without_a_device_the_first_one_is_asked() -> None:
    model = load_config("mla_rope").model
    assert choose(model) == choose(model, jax.devices()[0])


def test_a_backend_is_what_it_does_not_why() -> None:
    """Two backends of one effect share compiled programs."""
    assert Backend("float32", "xla", "a") == Backend("float32", "xla", "b")
    assert hash(Backend("float32", "xla", "a")) == hash(Backend("float32", "xla", "b"))


# q/k width, v width, heads, groups, with segments
CASES = [
    (8, 8, 4, 4, False),
    (12, 8, 4, 4, False),  # mla_rope: v is padded
    (8, 12, 4, 4, False),  # q and k are padded
    (8, 8, 4, 2, False),
    (8, 8, 4, 1, True),
    (12, 8, 4, 4, True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_cudnn_path_computes_what_the_plain_one_does(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's own call, with its XLA implementation in place of cuDNN: padding, mask, groups and scale are ours."""
    width, value_width, heads, groups, segmented = case
    calls = []
    original = jax.nn.dot_product_attention

    def without_cudnn(q: Any, k: Any, v: Any, *, implementation: str, **rest: Any) -> Any:
        calls.append((implementation, q.shape[-1], k.shape[-1], v.shape[-1], rest["is_causal"], rest["mask"]))
        return original(q, k, v, implementation="xla", **rest)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    rng = np.random.default_rng(0)
    shapes = [(2, 16, heads, width), (2, 16, groups, width), (2, 16, groups, value_width)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    segments = jnp.asarray([[1] * 5 + [2] * 11, [1] * 16]) if segmented else None
    where = Where(segment_ids=segments)

    def loss(function: Any) -> Any:
        total = jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.sin(function(q, k, v))), argnums=(0, 1, 2))
        return quick_jit(total)(q, k, v)

    fused = loss(lambda q, k, v: attend(q, k, v, where, 0.37, Backend("float32", "cudnn")))
    plain = loss(lambda q, k, v: attend_reference(q, k, v, causal_mask(where, 16), 0.37))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), fused, plain)
    out = jax.eval_shape(lambda: attend(q, k, v, where, 0.37, Backend("float32", "cudnn")))
    assert out.shape == (2, 16, heads, value_width)
    implementation, *widths, is_causal, mask = calls[0]
    assert implementation == "cudnn"
    assert set(widths) == {max(width, value_width)}
    assert is_causal
    assert (mask is not None) == segmented  # a mask costs: only where causal order does not say it all


def test_lengths_that_cudnn_does_not_take_run_on_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("cuDNN was called")

    monkeypatch.setattr(jax.nn, "dot_product_attention", absent)
    q = jnp.ones((1, 13, 2, 8))
    assert attend(q, q, q, Where(), 1.0, Backend("float32", "cudnn")).shape == (1, 13, 2, 8)
    with pytest.raises(AssertionError, match="cuDNN was called"):
        attend(q[:, :8], q[:, :8], q[:, :8], Where(), 1.0, Backend("float32", "cudnn"))


@pytest.mark.skipif(jax.devices()[0].platform != "gpu", reason="needs a GPU with cuDNN attention")
@pytest.mark.parametrize("knobs", [(64, 64, 8), (96, 64, 8), (64, 64, 2)], ids=str)
def test_real_cudnn_agrees_with_the_plain_path(knobs: tuple[int, int, int]) -> None:
    width, value_width, groups = knobs
    rng = np.random.default_rng(0)
    shapes = [(2, 128, 8, width), (2, 128, groups, width), (2, 128, groups, value_width)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes)
    fused = attend(q, k, v, Where(), width**-0.5, Backend("bfloat16", "cudnn")).astype(jnp.float32)
    exact = attend_reference(*(a.astype(jnp.float32) for a in (q, k, v)), causal_mask(Where(), 128), width**-0.5)
    np.testing.assert_allclose(fused, exact, atol=0.03)


def test_sums_go_side_by_side_where_only_data_is_split() -> None:
    """What was timed (docs/scaling.md). XLA must know the option: an unknown one is an error."""
    axes = ("data", "fsdp", "expert", "tensor")

    def options(*sizes: int, platform: str = "gpu") -> dict[str, Any]:
        mesh = jax.sharding.AbstractMesh(sizes, axes) if sizes else None
        return Backend("bfloat16", "cudnn", platform=platform, mesh=mesh).compiler_options or {}

    assert options(2, 1, 1, 1) == options() | SUMS_SIDE_BY_SIDE
    assert options(1, 2, 1, 1) == options(2, 1, 1, 2) == options(1, 1, 2, 1) == options()
    assert options(2, 1, 1, 1, platform="tpu") == {}
    jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=options(2, 1, 1, 1))

"""What each attention variant means, pinned by what it must equal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import GRID, REFERENCE, grid_config, quick_jit, random_params, reference_model, tiny_config

from mla_jax import accounting
from mla_jax.config import ModelConfig, replace
from mla_jax.model import functions
from mla_jax.model.attention import Where, attend_reference, causal_mask, visible
from mla_jax.model.cache import init_cache
from mla_jax.model.transformer import attention_module

LENGTH = 12
X = jnp.asarray(np.random.default_rng(1).standard_normal((2, LENGTH, 32)), jnp.float32)


def weights_of(config: Any, seed: int = 0) -> dict[str, jax.Array]:
    """Random weights of the attention of one layer."""
    return random_params(reference_model(config), seed)["layer_0"]["attention"]


def run(config: Any, params: dict[str, jax.Array], x: jax.Array = X) -> np.ndarray:
    module = attention_module(config.model)(config.model, REFERENCE)
    return np.asarray(quick_jit(lambda params, x: module.apply({"params": params}, x, Where())[0])(params, x))


def run_cached(config: Any, params: dict[str, jax.Array], prompt: int = 5) -> tuple[np.ndarray, Any]:
    """Outputs of the positions after the prompt, decoded in one chunk, and the cache."""
    module = attention_module(config.model)(config.model, REFERENCE)

    def both(params: Any, x: jax.Array) -> Any:
        store = init_cache(config.model, x.shape[0], LENGTH, jnp.float32)[0]
        store = module.apply({"params": params}, x[:, :prompt], Where(), store, method="prefill")[1]
        return module.apply({"params": params}, x[:, prompt:], jnp.full((2,), prompt), store, method="decode")

    out, store = quick_jit(both)(params, X)
    return np.asarray(out), store


def equal(a: Any, b: Any, tolerance: float = 1e-6) -> None:
    assert np.abs(np.asarray(b)).max() > 0.3  # something is compared
    np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-6)


def mha(position: str) -> tuple[Any, dict[str, jax.Array]]:
    config = tiny_config("mha", **{"model.position": position})
    return config, weights_of(config)


@pytest.mark.parametrize(("position", "placement"), [("none", "none"), ("learned", "none"), ("rope", "decompressed")])
def test_per_head_at_full_rank_with_identity_up_projections_is_mha(position: str, placement: str) -> None:
    """Rotated after expansion it is MHA with RoPE: the same function class, as papers.md says of paper A's r = d_k."""
    plain, weights = mha(position)
    config = tiny_config(
        "mla_per_head",
        **{"model.position": position, "model.kv_lora_rank": plain.model.head_dim, "model.rope_placement": placement},
    )
    assert config.model.latent_norm == "none"
    identity = jnp.broadcast_to(jnp.eye(8), (4, 8, 8))
    params = {
        "w_q": weights["w_q"],
        "w_dk": weights["w_k"],
        "w_dv": weights["w_v"],
        "w_uk": identity,
        "w_uv": identity,
        "w_o": weights["w_o"],
    }
    expected = run(plain, weights)
    equal(run(config, params), expected)
    equal(run_cached(config, params)[0], expected[:, 5:])
    assert accounting.kv_numbers(config.model) == accounting.kv_numbers(plain.model)  # full rank saves nothing


@pytest.mark.parametrize(("position", "placement"), [("none", "none"), ("learned", "none"), ("rope", "decompressed")])
def test_joint_at_full_rank_with_an_identity_down_projection_is_mha_on_half_the_cache(
    position: str, placement: str
) -> None:
    plain, weights = mha(position)
    knobs = {"model.position": position, "model.rope_placement": placement}
    config = tiny_config("mla", **(knobs | {"model.kv_lora_rank": 32, "model.latent_norm": "none"}))
    params = {
        "w_q": weights["w_q"],
        "w_dkv": jnp.eye(32),
        "w_uk": weights["w_k"],
        "w_uv": weights["w_v"],
        "w_o": weights["w_o"],
    }
    expected, (decoded, store) = run(plain, weights), run_cached(config, params)
    equal(run(config, params), expected)
    equal(decoded, expected[:, 5:], 1e-5)  # absorbed: other products, other rounding
    equal(store.c_kv, X)
    assert 2 * accounting.kv_numbers(config.model) == accounting.kv_numbers(plain.model)


def test_decoupled_rope_with_a_zero_rotary_key_is_mha_without_positions_but_for_the_scale() -> None:
    plain, weights = mha("none")
    config = tiny_config("mla_rope", **{"model.kv_lora_rank": 32, "model.latent_norm": "none"})
    rotary = config.model.qk_rope_head_dim
    stretch = (config.model.qk_head_dim / plain.model.head_dim) ** 0.5  # the score scale counts the rotary part
    params = {
        "w_q": jnp.concatenate([weights["w_q"] * stretch, jnp.ones((32, 4, rotary))], axis=-1),
        "w_kr": jnp.zeros((32, rotary)),
        "w_dkv": jnp.eye(32),
        "w_uk": weights["w_k"],
        "w_uv": weights["w_v"],
        "w_o": weights["w_o"],
    }
    equal(run(config, params), run(plain, weights))


def test_the_compressed_query_is_the_product_of_its_factors() -> None:
    base = {"model.latent_norm": "none"}
    whole, factored = tiny_config("mla_rope", **base), tiny_config("mla_rope", **(base | {"model.q_lora_rank": 14}))
    params = weights_of(factored)
    product = jnp.einsum("dc,chk->dhk", params["w_dq"], params["w_uq"])
    same = {name: value for name, value in params.items() if name not in ("w_dq", "w_uq")} | {"w_q": product}
    equal(run(factored, params), run(whole, same), 1e-5)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_gqa_with_a_group_for_every_head_is_mha(position: str) -> None:
    plain, weights = mha(position)
    config = tiny_config("gqa", **{"model.n_kv_heads": 4, "model.position": position})
    np.testing.assert_array_equal(run(config, weights), run(plain, weights))


@pytest.mark.parametrize("groups", [1, 2])
def test_gqa_is_mha_whose_heads_share_keys_and_values(groups: int) -> None:
    """Neighbouring heads share: head h reads group h // (H/G). One group is MQA."""
    config = tiny_config("gqa", **{"model.n_kv_heads": groups})
    params = weights_of(config)
    shared = {name: jnp.repeat(params[name], 4 // groups, axis=1) for name in ("w_k", "w_v")}
    plain = tiny_config("mha", **{"model.position": "rope"})
    equal(run(config, params), run(plain, params | shared))
    equal(run_cached(config, params)[0], run_cached(plain, params | shared)[0])
    assert 4 // groups * accounting.kv_numbers(config.model) == accounting.kv_numbers(plain.model)


def test_attention_is_the_equation() -> None:
    """softmax(q k^T scale) v, causally, by loops in float64."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 5, heads, width)) for heads, width in ((4, 6), (2, 6), (2, 3)))
    expected = np.zeros((2, 5, 4, 3))
    for b, h, t in np.ndindex(2, 4, 5):
        scores = np.array([q[b, t, h] @ k[b, s, h // 2] * 0.3 for s in range(t + 1)])
        weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        expected[b, t, h] = weights @ v[b, : t + 1, h // 2]
    arrays = [jnp.asarray(a, jnp.float32) for a in (q, k, v)]
    equal(attend_reference(*arrays, causal_mask(Where(), 5), 0.3), expected)


def test_masks() -> None:
    where = Where(segment_ids=jnp.asarray([[1, 1, 2, 2]]))
    np.testing.assert_array_equal(
        causal_mask(where, 4)[0].astype(int), [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    )
    seen = np.asarray(visible(jnp.asarray([0, 3]), 2, 5)).astype(int)
    np.testing.assert_array_equal(seen, [[[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]])
    assert np.isfinite(functions.MASKED)


# -- RoPE ------------------------------------------------------------------------------------------------------------


def rotate(x: np.ndarray, position: int, theta: float = 10_000.0) -> np.ndarray:
    cos, sin = functions.rope_angles(jnp.asarray([position]), x.shape[-1], theta)
    return np.asarray(functions.apply_rope(jnp.asarray(x, jnp.float32)[None, None, None], cos, sin))[0, 0, 0]


def test_rope_is_relative() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 16))
    products = [rotate(q, 3 + shift) @ rotate(k, 1 + shift) for shift in (0, 1, 10, 400)]
    np.testing.assert_allclose(products, products[0], atol=1e-4)
    assert abs(rotate(q, 4) @ rotate(k, 1) - products[0]) > 0.01


def test_rope_rotates_half_split_pairs() -> None:
    """Pair (i, i + R/2) turns by position x theta^(-2i/R), as in Hugging Face's Llama; not (2i, 2i + 1)."""
    x, width, position, theta = np.random.default_rng(0).standard_normal(8), 8, 5, 100.0
    pairs = (x[:4] + 1j * x[4:]) * np.exp(1j * position * theta ** (-2 * np.arange(4) / width))
    np.testing.assert_allclose(rotate(x, position, theta), np.concatenate([pairs.real, pairs.imag]), atol=1e-5)
    np.testing.assert_allclose(rotate(x, 0), x, atol=1e-6)
    one = rotate(np.eye(8)[0], 1, theta)
    assert set(np.flatnonzero(one)) == {0, 4}


def test_rope_positions_may_differ_by_row() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 1, 4)), jnp.float32)
    positions = jnp.asarray([[0, 1, 2], [7, 8, 9]])
    rotated = functions.apply_rope(x, *functions.rope_angles(positions, 4, 10_000.0))
    for row, column in np.ndindex(2, 3):
        alone = rotate(np.asarray(x[row, column, 0]), int(positions[row, column]))
        np.testing.assert_allclose(rotated[row, column, 0], alone, atol=1e-6)


def test_rope_far_away_keeps_its_precision_in_bfloat16() -> None:
    """Angles are computed in float32 whatever the dtype of the rows."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 1, 8)), jnp.bfloat16)
    angles = functions.rope_angles(jnp.asarray([4001]), 8, 10_000.0)
    half, full = functions.apply_rope(x, *angles), functions.apply_rope(x.astype(jnp.float32), *angles)
    assert half.dtype == jnp.bfloat16
    assert {a.dtype for a in angles} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(half.astype(jnp.float32), full, rtol=2**-8)


# -- QK-norm ---------------------------------------------------------------------------------------------------------

QK_NORM = ["mha-rope", "gqa-rope", "joint-decoupled-norm_none", "joint-decompressed-norm_none"]
QK_NORM += ["per_head-learned-norm_none"]


@pytest.mark.parametrize("point", QK_NORM)
def test_qk_norm_takes_the_scale_of_queries_and_keys_away(point: str) -> None:
    """Without it, the same change of scale changes what is attended to."""
    factor = 20.0
    scaled_names = ("w_q", "w_k", "w_kr", "w_uk")
    for qk_norm in (True, False):
        config = replace(grid_config(point), **{"model.qk_norm": qk_norm})
        params = weights_of(config)
        scaled = {name: value * factor if name in scaled_names else value for name, value in params.items()}
        difference = np.abs(run(config, params) - run(config, scaled)).max()
        assert difference < 1e-4 if qk_norm else difference > 0.1


EVERY_KIND = ["mha-rope-qk_norm", "gqa-rope-gpt", "joint-decoupled-qk_norm", "joint-decoupled-gpt"]
EVERY_KIND += ["joint-decoupled-q_lora-norm_rms", "per_head-decoupled-qk_norm", "per_head-decoupled-norm_rms"]


@pytest.mark.parametrize("point", EVERY_KIND)
def test_every_parameter_has_a_say(point: str) -> None:
    """A gain or a bias that is forgotten in all execution forms alike would pass every comparison between them."""
    config = grid_config(point)
    module = attention_module(config.model)(config.model, REFERENCE)
    params = weights_of(config)
    output = quick_jit(lambda params: module.apply({"params": params}, X, Where())[0])
    before = output(params)
    for name, value in params.items():
        # One entry alone: to scale or shift all of them may be what a norm or softmax takes away again.
        changed = output(params | {name: value.at[(0,) * value.ndim].add(1.0)})
        assert float(jnp.abs(changed - before).max()) > 1e-4, name


# -- the two execution forms -----------------------------------------------------------------------------------------

ABSORBED = [point for point in GRID if grid_config(point).model.absorbed]


def test_which_points_absorb() -> None:
    """design.md's table: every latent variant, but where RoPE or a norm acts on the expanded key."""
    latent = [point for point in GRID if point.startswith(("joint", "per_head"))]
    expected = [point for point in latent if "decompressed" not in point and "qk_norm" not in point]
    assert expected == ABSORBED
    assert len(expected) >= 15


@pytest.mark.parametrize("point", ABSORBED)
def test_absorbed_decode_equals_decode_that_expands_again(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = grid_config(point)
    params = weights_of(config)
    absorbed, store = run_cached(config, params)
    monkeypatch.setattr(ModelConfig, "absorbed", property(lambda self: False))
    expanded, same_store = run_cached(config, params)
    equal(absorbed, expanded, 1e-5)
    jax.tree.map(np.testing.assert_array_equal, store, same_store)


@pytest.mark.parametrize("point", ["joint-decoupled-norm_rms", "per_head-decoupled-norm_none"])
def test_absorbed_decode_never_makes_keys_or_values_of_the_whole_cache(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = grid_config(point)
    module = attention_module(config.model)(config.model, REFERENCE)
    store = init_cache(config.model, 2, LENGTH, jnp.float32)[0]
    expanded = {(2, LENGTH, 4, config.model.qk_nope_head_dim), (2, LENGTH, 4, config.model.v_head_dim)}

    def shapes() -> set[tuple[int, ...]]:
        jaxpr = jax.make_jaxpr(
            lambda params: module.apply({"params": params}, X[:, :1], jnp.zeros(2, int), store, method="decode")
        )(weights_of(config))
        return {variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars}

    assert not expanded & shapes()
    monkeypatch.setattr(ModelConfig, "absorbed", property(lambda self: False))
    assert expanded <= shapes()  # the form that expands is told apart by the same look


def test_the_joint_cache_holds_the_latent_after_its_norm_and_the_key_after_its_rotation() -> None:
    """DeepSeek's form: what a kernel, or another library, may rely on."""
    config = grid_config("joint-decoupled-norm_rms")
    params = weights_of(config)
    store = run_cached(config, params)[1]
    latent = np.asarray(X) @ np.asarray(params["w_dkv"])
    latent /= np.sqrt(np.mean(latent**2, axis=-1, keepdims=True) + 1e-6)
    equal(store.c_kv, latent * np.asarray(params["latent_gain"]), 1e-5)
    key = np.asarray(X) @ np.asarray(params["w_kr"])
    rotated = [[rotate(key[b, s], s) for s in range(LENGTH)] for b in range(2)]
    equal(store.k_rope, rotated, 1e-5)

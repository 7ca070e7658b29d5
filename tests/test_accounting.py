"""The closed forms, held to the real arrays, to XLA's own count and to the papers' figures."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GRID, NAMED, SIZES, abstract_params, grid_config, quick_jit, reference_model, tiny_config

from mla_jax import accounting
from mla_jax.config import ModelConfig, replace
from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.model.cache import init_cache


def real_parts(params: Any) -> dict[str, int]:
    """Parameters of a real tree, counted by the name of the module or array that they are in."""
    parts = dict.fromkeys(("embedding", "position", "attention", "ffn", "norms"), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names == ["embedding"]:
            part = "embedding"
        elif names == ["position_embedding"]:
            part = "position"
        elif "attention" in names:
            part = "attention"
        elif "ffn" in names:
            part = "ffn"
        else:
            assert names[-2].endswith("norm"), names
            part = "norms"
        parts[part] += math.prod(leaf.shape)
    return parts


def check_parameters(config: Any) -> None:
    closed = accounting.params(config.model)
    real = real_parts(abstract_params(reference_model(config)))
    assert {part: closed[part] for part in real} == real
    assert closed["total"] == sum(real.values())
    assert closed["non_embedding"] == sum(real.values()) - real["embedding"]


@pytest.mark.parametrize("block", ["default", "gpt"])
@pytest.mark.parametrize("name", NAMED)
def test_parameters_of_the_named_configs(name: str, block: str) -> None:
    """The other sizes: test_model.py, with their shapes."""
    check_parameters(load_config(f"{name}:xs", **{"model.vocab_size": 50_000, "model.block": block}))


@pytest.mark.parametrize("point", GRID)
def test_parameters_of_the_grid(point: str) -> None:
    check_parameters(grid_config(point))


@settings(max_examples=20)
@given(st.data())
def test_parameters_of_random_points(data: st.DataObject) -> None:
    attention = data.draw(st.sampled_from(["mha", "gqa", "mla"]))
    position = data.draw(st.sampled_from(["none", "learned", "rope"]))
    width = st.integers(1, 9)
    knobs: dict[str, Any] = {
        "model.n_layers": data.draw(st.integers(1, 3)),
        "model.head_dim": 2 * data.draw(width),
        "model.attention": attention,
        "model.position": position,
        "model.qk_norm": data.draw(st.booleans()),
        "model.block": data.draw(st.sampled_from(["default", "gpt"])),
        "model.d_ff": data.draw(st.integers(1, 70)),
        "model.vocab_size": data.draw(st.integers(1, 90)),
    }
    if attention == "gqa":
        knobs["model.n_kv_heads"] = data.draw(st.sampled_from([1, 2, 4]))
    if attention == "mla":
        placement = data.draw(st.sampled_from(["decoupled", "decompressed"]))
        latent = data.draw(st.sampled_from(["joint", "per_head"]))
        knobs |= {
            "model.latent": latent,
            "model.rope_placement": placement,
            "model.latent_norm": data.draw(st.sampled_from(["auto", "rms", "none"])),
            "model.kv_lora_rank": data.draw(width),
            "model.q_lora_rank": data.draw(width) if latent == "joint" and data.draw(st.booleans()) else 0,
            "model.qk_nope_head_dim": 2 * data.draw(width),
            "model.v_head_dim": data.draw(width),
            "model.qk_rope_head_dim": 2 * data.draw(width) if (position, placement) == ("rope", "decoupled") else 0,
        }
    check_parameters(tiny_config("base", **knobs))


EXPERTS = {"model.ffn": "moe", "model.n_routed_experts": 7, "model.n_shared_experts": 3, "model.top_k": 2}
EXPERTS |= {"model.d_expert": 10, "model.first_k_dense": 1, "model.n_layers": 3}


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize(("block", "matrices"), [("default", 3), ("gpt", 2)])
def test_parameters_and_flops_of_experts(block: str, matrices: int, shared: int) -> None:
    """Of the real tree; and by hand: width 32, 2 of 3 layers with 7 routed experts of width 10, a token meets 2."""
    config = tiny_config("mla_rope", **EXPERTS | {"model.block": block, "model.n_shared_experts": shared})
    check_parameters(config)
    one, router = matrices * 32 * 10, 32 * 7
    assert accounting.moe_matrices(config.model) == (7 + shared) * one + router
    assert accounting.moe_matrices(config.model, active=True) == (2 + shared) * one + router
    parts = accounting.params(config.model)
    assert parts["total"] - parts["active"] == 2 * 5 * one
    dense = tiny_config("mla_rope", **{"model.n_layers": 3, "model.block": block})
    assert accounting.params(dense.model)["active"] == accounting.params(dense.model)["total"]
    saved = accounting.ffn_matrices(dense.model) - ((2 + shared) * one + router)
    flops = [accounting.flops_per_token(c.model, 16) for c in (dense, config)]
    assert flops[0] - flops[1] == 6 * 2 * saved


# Size: what papers.md gives or derives for MHA with 50,000 rows, in millions, and the positions
# that are counted with it. Its count is 12 d^2 a layer, a feed-forward of 4 d; norms explain the last 0.02 %.
LADDER = {"xs": (17.52, 0), "m": (53.92, 0), "xl": (202.72, 512)}


@pytest.mark.parametrize("size", LADDER)
def test_the_ladder_of_the_papers_comes_out(size: str) -> None:
    paper, positions = LADDER[size]
    model = load_config(f"mha:{size}", **{"model.vocab_size": 50_000, "model.block": "gpt"}).model
    matrices = accounting.attention_matrices(model) + accounting.ffn_matrices(model)
    assert matrices == 12 * model.d_model**2
    total = 50_000 * model.d_model + positions * model.d_model + model.n_layers * matrices
    assert total == pytest.approx(paper * 1e6, rel=2e-4)
    # The models themselves, norms and biases included, in either block, lie within 0.5 % of it.
    for block in ("gpt", "default"):
        whole = load_config(f"mha:{size}", **{"model.vocab_size": 50_000, "model.block": block}).model
        parts = accounting.params(whole)
        ours = parts["total"] - (0 if positions else parts["position"])
        assert ours == pytest.approx(paper * 1e6, rel=5e-3)


def test_the_headline_model_is_the_papers_30m_without_its_embedding() -> None:
    model = load_config("mha_rope:m", **{"model.vocab_size": 50_000, "model.block": "gpt"}).model
    assert accounting.params(model)["non_embedding"] == pytest.approx(28.3e6, rel=3e-3)


def test_the_table_of_the_ladder() -> None:
    """Totals of the default block at 50,000 rows, position table included; docs/results/parameters.md."""
    totals = {
        name: [accounting.params(load_config(f"{name}:{size}", **{"model.vocab_size": 50_000}).model) for size in SIZES]
        for name in ("mha", "mha_rope", "mla", "mla_rope", "mla_per_head")
    }
    assert {name: [round(row["total"] / 1e6, 2) for row in rows] for name, rows in totals.items()} == {
        "mha": [17.60, 44.84, 54.33, 123.75, 202.35],
        "mha_rope": [17.47, 44.58, 54.07, 123.35, 201.83],
        "mla": [17.41, 44.06, 53.15, 120.21, 196.07],
        "mla_rope": [17.50, 44.68, 54.22, 123.65, 202.23],
        "mla_per_head": [17.13, 43.20, 52.00, 116.87, 190.03],
    }


def test_the_headline_point_has_1_6_percent_more_attention_parameters_than_mha() -> None:
    mla, mha = (accounting.attention_matrices(load_config(name).model) for name in ("mla_rope", "mha"))
    assert mha == 4 * 512**2
    assert round(100 * (mla / mha - 1), 1) == 1.6


# Name at size m: numbers a token and layer, share of MHA's cache saved in percent (design.md, papers.md).
CACHES = {
    "mha": (1024, 0.0),
    "mha_rope": (1024, 0.0),
    "gqa": (256, 75.0),
    "mla": (256, 75.0),
    "mla_rope": (288, 71.875),
    "mla_rope_paper_b": (320, 68.75),
    "mla_per_head": (512, 50.0),
}


@pytest.mark.parametrize("name", NAMED)
def test_cache_sizes_of_the_headline_table(name: str) -> None:
    model = load_config(name).model
    numbers, saved = CACHES[name]
    assert accounting.kv_numbers(model) == numbers
    assert accounting.kv_bytes(model) == numbers * 9 * 2
    assert accounting.mha_kv_bytes(model) == 1024 * 9 * 2
    assert 100 * (1 - accounting.kv_bytes(model) / accounting.mha_kv_bytes(model)) == saved
    assert f"{numbers:,} numbers a token and layer" in _docstring(name)


def test_the_headline_ratio() -> None:
    model = load_config("mla_rope").model
    assert round(accounting.mha_kv_bytes(model) / accounting.kv_bytes(model), 2) == 3.56


@pytest.mark.parametrize("knobs", [(96, "gqa", 1), (224, "gqa", 2), (480, "gqa", 4)], ids=lambda k: f"r{k[0]}")
def test_the_equal_cache_pairs(knobs: tuple[int, str, int]) -> None:
    rank, attention, groups = knobs
    latent = load_config("mla_rope", **{"model.kv_lora_rank": rank}).model
    plain = load_config("mha_rope", **{"model.attention": attention, "model.n_kv_heads": groups}).model
    assert accounting.kv_numbers(latent) == accounting.kv_numbers(plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("size", SIZES)
def test_kv_bytes_are_those_of_the_real_cache(name: str, size: str, dtype: str) -> None:
    check_cache_bytes(load_config(f"{name}:{size}").model, dtype)


@pytest.mark.parametrize("point", GRID)
def test_kv_bytes_of_the_grid(point: str) -> None:
    check_cache_bytes(grid_config(point).model, "float32")


@pytest.mark.parametrize("point", [point for point in GRID if point.startswith(("joint", "per_head"))])
def test_kv_bytes_of_int8_latents_count_their_scales(point: str) -> None:
    check_cache_bytes(grid_config(point).model, "int8")


def test_int8_is_for_latents() -> None:
    """Size m, mla_rope: 256 + 2 x 32 + 4 bytes a token and layer, against 576 in bfloat16."""
    assert accounting.kv_bytes(load_config("mla_rope:m").model, "int8") == 9 * 324
    for refused in (lambda m: accounting.kv_bytes(m, "int8"), lambda m: init_cache(m, 1, 8, jnp.int8)):
        with pytest.raises(UserError, match="'int8', which holds latents, and model.attention is 'mha'"):
            refused(tiny_config("mha").model)


def check_cache_bytes(model: ModelConfig, dtype: str) -> None:
    batch, length = 3, 7
    arrays = jax.tree.leaves(jax.eval_shape(lambda: init_cache(model, batch, length, jnp.dtype(dtype))))
    real = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
    assert real == batch * length * accounting.kv_bytes(model, dtype)


def test_a_real_cache_is_allocated_as_promised() -> None:
    """Not its shapes alone: the arrays themselves."""
    model = tiny_config("mla_rope").model
    assert sum(np.asarray(a).nbytes for a in jax.tree.leaves(init_cache(model, 2, 16, jnp.float32))) == (
        2 * 16 * accounting.kv_bytes(model, "float32")
    )


FLOPS = ("mha", "gqa", "mla_rope", "mla_rope_paper_b", "mla_per_head")
FLOP_KNOBS = {
    "model.n_layers": 2,
    "model.d_model": 256,
    "model.n_heads": 4,
    "model.max_len": 128,
    "model.d_ff": 640,
    "model.vocab_size": 512,
    "train.seq_len": 128,
}


def flops_config(name: str, **knobs: Any) -> Any:
    return tiny_config(name, **(FLOP_KNOBS | knobs))


@pytest.mark.parametrize("name", FLOPS)
def test_flops_of_the_forward_pass_agree_with_xla(name: str) -> None:
    """XLA also counts norms, softmax, rotations and activations: up to 5 % more at this width, never less."""
    config = flops_config(name)
    model = reference_model(config)
    tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    forward = quick_jit(lambda params, tokens: model.apply({"params": params}, tokens)[0])
    counted = forward.lower(abstract_params(model), tokens).compile().cost_analysis()["flops"]
    closed = accounting.flops_per_token(config.model, 128) / 3 * 128
    assert 1.0 <= counted / closed <= 1.05


@pytest.mark.parametrize("knobs", [{}, {"model.q_lora_rank": 96}, {"model.block": "gpt"}], ids=["", "q_lora", "gpt"])
def test_flops_of_the_forward_pass_are_exact_in_the_matrix_products(knobs: dict[str, Any]) -> None:
    config = flops_config("mla_rope", **knobs)
    model = reference_model(config)
    tokens = jnp.zeros((1, 128), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda params: model.apply({"params": params}, tokens)[0])(abstract_params(model))
    # A pass computes one more [T, T] score matrix a layer for its largest logit, which XLA drops when nobody asks.
    unused = config.model.n_layers * 2 * config.model.n_heads * config.model.qk_head_dim * 128 * 128
    assert dot_flops(jaxpr.jaxpr) - unused == accounting.flops_per_token(config.model, 128) // 3 * 128


def dot_flops(jaxpr: Any) -> int:
    """2 x multiply-adds of every dot_general in a jaxpr, inner ones included."""
    total = 0
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                total += dot_flops(inner.jaxpr)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    return total


def test_a_training_step_is_three_forward_passes() -> None:
    config = flops_config("mla_rope")
    model = reference_model(config)
    tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)

    def loss(params: Any, tokens: Any) -> Any:
        return jnp.mean(model.apply({"params": params}, tokens)[0] ** 2)

    counted = quick_jit(jax.grad(loss)).lower(abstract_params(model), tokens).compile().cost_analysis()["flops"]
    assert 1.0 <= counted / (accounting.flops_per_token(config.model, 128) * 128) <= 1.06


def test_flops_grow_with_the_context_by_attention_alone() -> None:
    model = replace(load_config("mha"), **{"model.vocab_size": 8192}).model
    per_position = accounting.flops_per_token(model, 513) - accounting.flops_per_token(model, 512)
    assert per_position == 6 * 9 * 2 * 512  # scores and values: 2 products of width d a layer
    # Chinchilla's 6 N D with attention left out, the output matrix counted as a matrix.
    assert accounting.flops_per_token(model, 0) == 6 * (9 * (4 * 512**2 + 3 * 512 * 1376) + 8192 * 512)


def _docstring(name: str) -> str:
    from mla_jax.config_files import config_dir

    return (config_dir() / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_a_cache_type_that_nothing_is_stored_in_is_refused(dtype: str) -> None:
    with pytest.raises(UserError, match=f"dtype is '{dtype}'; it must be one of int8, bfloat16, float32"):
        accounting.kv_bytes(load_config("mla_rope:xs").model, dtype)

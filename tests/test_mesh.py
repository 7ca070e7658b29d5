"""mla_jax.mesh: the table covers every parameter, and every mesh computes what one device computes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import GRID, abstract_params, grid_config, reference_model, tiny_config

from mla_jax import config_files
from mla_jax import mesh as mesh_lib
from mla_jax.config import Config, MeshConfig, ModelConfig, replace
from mla_jax.errors import UserError
from mla_jax.train.optim import make_optimizer

TESTS = Path(__file__).resolve().parent


def simulated(part: str, devices: int = 8) -> dict[str, dict[str, float]]:
    """What `mesh_driver.py PART` prints, with simulated devices."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(TESTS / "mesh_driver.py"), part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict[str, dict[str, float]], cases: int, meshes: int) -> None:
    assert len(found["steps"]) == cases and max(found["steps"].values()) < 1e-5, found["steps"]
    assert len(found["restored"]) == meshes and all(found["restored"].values()), found["restored"]


def test_a_mesh_computes_what_one_device_computes_and_its_checkpoint_fits_others() -> None:
    found = simulated("fast")
    check(found, 3, 3)
    assert set(found["gathered"].values()) == {1.0}, found["gathered"]  # once, before anything is made of it
    assert len(found["dtypes"]) > 15 and all(found["dtypes"].values()), found["dtypes"]
    kernels = found["kernels"]
    assert kernels["inside"] >= 9 and kernels["loss inside"] == 1 and kernels["outside"] == 0, kernels


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_every_mesh_computes_what_one_device_computes_and_its_checkpoints_fit_others() -> None:
    check(simulated("slow"), 15, 3)


class FakeDevice:
    """Enough of a device for a mesh that computes nothing."""

    process_index, platform, device_kind, slice_index = 0, "cpu", "fake", 0

    def __init__(self, number: int):
        self.id = number


def devices(count: int) -> list[Any]:
    return [FakeDevice(i) for i in range(count)]


def abstract_mesh(*sizes: int) -> Any:
    return jax.sharding.AbstractMesh(sizes, mesh_lib.AXES)


@pytest.mark.parametrize("point", GRID)
def test_every_parameter_has_one_row_and_divides(point: str) -> None:
    config = grid_config(point)
    params = abstract_params(reference_model(config))
    specs = mesh_lib.param_specs(config.model, params)
    for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)),
        strict=True,
    ):
        matrix = path[-1].key.startswith("w_") or path[-1].key.endswith("embedding")
        assert not matrix or "fsdp" in spec, f"FSDP would hold all of {path} everywhere"
        assert len(spec) == leaf.ndim


def named(name: str) -> Config:
    return replace(config_files.load_config(name), **{"model.vocab_size": 8192, "model.n_layers": 2})


@pytest.mark.parametrize("name", config_files.names())
def test_named_configs_are_covered(name: str) -> None:
    mesh_lib.param_specs(named(name).model, abstract_params(reference_model(named(name))))


def rows_used(cfg: ModelConfig, params: Any) -> set[int]:
    """The numbers of the rows of TABLE that some parameter matches."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {row for path, leaf in leaves for row in mesh_lib._matches(mesh_lib._canonical(cfg, path), leaf)}


def test_no_row_of_the_table_is_unused() -> None:
    used: set[int] = set()
    for config in [*map(grid_config, GRID), *map(named, config_files.names())]:
        used |= rows_used(config.model, abstract_params(reference_model(config)))
    assert [row for i, row in enumerate(mesh_lib.TABLE) if i not in used] == []


def test_an_unknown_parameter_is_an_error() -> None:
    config = tiny_config("mha")
    params = {"layer_0": {"attention": {"w_new": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}}
    with pytest.raises(ValueError, match="w_new .* matches 0 rows"):
        mesh_lib.param_specs(config.model, params)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_is_split_like_its_parameters(optimizer: str) -> None:
    config = tiny_config("mla_rope", **{"optim.name": optimizer, "optim.ema_decay": 0.9})
    params = abstract_params(reference_model(config))
    state = jax.eval_shape(make_optimizer(config.optim).init, params)
    where = mesh_lib.state_shardings(abstract_mesh(2, 2, 1, 2), config.model, params, state)
    pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(where), strict=True))
    large = [(leaf, place) for leaf, place in pairs if leaf.ndim > 1]
    wanted = {"adamw": 3, "muon": 2}[optimizer] * sum(leaf.ndim > 1 for leaf in jax.tree.leaves(params))
    assert len(large) >= wanted and all("fsdp" in place.spec for _, place in large)
    assert all(place.spec == P() for leaf, place in pairs if leaf.ndim == 0)


def test_fsdp_splits_the_first_dimension_where_nothing_else_does_and_it_divides() -> None:
    experts = {"model.ffn": "moe", "model.n_routed_experts": 3, "model.top_k": 2, "model.d_expert": 8}
    config = tiny_config("mla_rope", **experts)

    def places(*mesh: int) -> dict[str, P]:
        specs = mesh_lib.param_specs(config.model, abstract_params(reference_model(config)), abstract_mesh(*mesh))
        layer = specs["layer_0"]
        return {"out": layer["attention"]["w_o"], "experts": layer["ffn"]["w_down"], "table": specs["embedding"]}

    assert places(1, 1, 1, 1) == {"out": P("tensor", None, "fsdp"), "experts": P("expert", "tensor", "fsdp"),
                                  "table": P(None, "fsdp")}  # fmt: skip
    assert places(1, 2, 1, 1) == {"out": P("fsdp", None, None), "experts": P("expert", "tensor", "fsdp"),
                                  "table": P("fsdp", None)}  # 2 do not divide 3 experts  # fmt: skip
    assert places(1, 3, 1, 1)["experts"] == P("fsdp", "tensor", None)
    assert places(1, 2, 1, 2)["out"] == P("tensor", None, "fsdp")


def test_a_large_leaf_that_is_like_no_parameter_is_an_error() -> None:
    config = tiny_config("mha")
    params = abstract_params(reference_model(config))
    strange = {"buffer": jax.ShapeDtypeStruct((2000, 2000), jnp.float32)}
    with pytest.raises(ValueError, match="buffer.* is like no parameter"):
        mesh_lib.state_shardings(abstract_mesh(2, 2, 1, 2), config.model, params, strange)


@pytest.mark.parametrize(
    "sizes, count, shape",
    [((0, 1, 1, 1), 8, (8, 1, 1, 1)), ((0, 2, 1, 2), 8, (2, 2, 1, 2)), ((2, 1, 1, 2), 8, (2, 1, 1, 2))],
)
def test_mesh_shapes(sizes: tuple, count: int, shape: tuple) -> None:
    mesh = mesh_lib.make_mesh(MeshConfig(*sizes), devices(count))
    assert tuple(mesh.shape.values()) == shape and tuple(mesh.shape) == mesh_lib.AXES


@pytest.mark.parametrize("sizes, count", [((0, 1, 1, 1), 1), ((1, 1, 1, 1), 8), ((1, 1, 1, 1), 1)])
def test_one_device_has_no_mesh(sizes: tuple, count: int) -> None:
    assert mesh_lib.make_mesh(MeshConfig(*sizes), devices(count)) is None


@pytest.mark.parametrize(
    "sizes, count, message",
    [
        ((4, 1, 1, 1), 2, r"takes 4 devices; there are 2: lower"),
        ((0, 2, 1, 1), 1, r"takes 2 devices; there are 1: lower"),
        ((3, 1, 1, 1), 8, r"takes 3 devices; there are 8, and the mesh must divide them"),
        ((0, 3, 1, 1), 8, r"takes 6 devices; there are 8, and the mesh must divide them"),
    ],
)
def test_meshes_that_do_not_fit_the_devices(sizes: tuple, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mesh_lib.make_mesh(MeshConfig(*sizes), devices(count))


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"mesh.tensor": 3}, r"^mesh\.tensor is 3; it splits model\.n_heads \(4\)"),
        ({"mesh.tensor": 4, "model.d_ff": 30}, r"^mesh\.tensor is 4; it splits model\.d_ff \(30\)"),
        ({"mesh.fsdp": 3, "train.batch_size": 12}, r"^mesh\.fsdp is 3; it splits model\.d_model \(32\)"),
        ({"mesh.fsdp": 4, "model.kv_lora_rank": 6}, r"^mesh\.fsdp is 4; it splits model\.kv_lora_rank \(6\)"),
        ({"mesh.data": 3}, r"^train\.batch_size is 64; mesh data x fsdp x expert splits it into 3"),
        ({"mesh.data": 2, "eval.batch_size": 3}, r"^eval\.batch_size is 3;"),
        ({"mesh.data": 4, "train.microbatches": 32}, r"^train\.microbatches is 32; .* = 2 rows into 4 parts"),
        ({"mesh.expert": 2}, r"^mesh\.expert is 2; model\.ffn is dense"),
        ({"mesh.fsdp": 0}, r"^mesh\.fsdp is 0; it must be at least 1"),
        ({"mesh.data": -2}, r"^mesh\.data is -2; it must be at least 0"),
    ],
)
def test_meshes_that_do_not_fit_the_config(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config("mla_rope", **knobs)


def test_key_value_heads_must_divide_too() -> None:
    with pytest.raises(UserError, match=r"model\.n_kv_heads \(2\)"):
        tiny_config("gqa", **{"model.n_kv_heads": 2, "mesh.tensor": 4})


def test_batches_that_do_not_divide_among_the_devices_there_are() -> None:
    config = tiny_config("mha", **{"train.batch_size": 12, "eval.batch_size": 8})
    mesh_lib.check_batches(config, None)
    mesh_lib.check_batches(config, abstract_mesh(2, 2, 1, 2))
    with pytest.raises(UserError, match=r"^train\.batch_size makes 12 rows; .* = 8 x 1 x 1 .* multiple of 8"):
        mesh_lib.check_batches(config, abstract_mesh(8, 1, 1, 1))
    config = replace(config, **{"train.microbatches": 6})
    with pytest.raises(UserError, match="2 rows a microbatch"):
        mesh_lib.check_batches(config, abstract_mesh(4, 1, 1, 1))


def test_without_a_mesh_nothing_is_touched() -> None:
    x = jnp.ones((2, 3))
    assert mesh_lib.constrain(x, None, mesh_lib.BATCH) is x and mesh_lib.gather(x, None) is x
    batch = {"tokens": np.ones((2, 3))}
    assert mesh_lib.batch_placer(None, 2)(batch) is batch and mesh_lib.process_part(None, 8) == (0, 1)
    text = jax.jit(lambda x: mesh_lib.constrain_rows(x, None) * 2).lower(x).as_text()
    assert not re.search("sharding|mhlo.num_partitions = [^1]", text)

"""What tests/test_mesh.py runs in a process of its own, with 8 simulated devices: python mesh_driver.py PART

Prints one JSON object: {"steps": {case: largest difference}, "restored": {case: 1 or 0}}.
Simulated devices must be asked for before JAX starts.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tiny import QUICK, REFERENCE, abstract_params, random_params, tiny_config

from mla_jax import collectives
from mla_jax import mesh as mesh_lib
from mla_jax.config import Config
from mla_jax.model.transformer import Transformer
from mla_jax.runs import RunFolder
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.fsdp import gathered
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state, init_state
from mla_jax.train.step import make_eval_step, make_param_norm, make_train_step

ROWS, STEPS = 8, 5
KNOBS = {
    "model.n_layers": 1,
    "model.vocab_size": 320,
    "tokenizer.vocab_size": 317,
    "train.batch_size": ROWS,
    "eval.batch_size": ROWS,
    "train.steps": 100,
    "train.seq_len": 16,
    "optim.warmup_steps": 0,
    # Far below most gradients (1e-3), far above their rounding. With 1e-8, Adam's first step makes a unit step of a
    # gradient that cancels, rounding and all: one of -3.6e-8 in float64, -4.1e-8 on one device, came out 2e-5 apart.
    "optim.eps": 1e-5,
}
Shape = tuple[int, int, int, int]
SHAPES = ((8, 1, 1, 1), (1, 8, 1, 1), (4, 2, 1, 1), (2, 2, 1, 2), (1, 2, 1, 4), (2, 1, 1, 1))
MOE = {"model.ffn": "moe", "model.n_routed_experts": 4, "model.n_shared_experts": 1, "model.top_k": 2}
MOE |= {"model.d_expert": 8, "model.d_ff": 24}
KERNELS = {"model.train_impl": "pallas"}
MASKED = KERNELS | MOE | {"model.moe_impl": "masked_dense"}
FAST = (
    ("mla_rope", (1, 2, 2, 2), MOE | {"model.moe_impl": "grouped"}),
    ("mla_rope", (1, 2, 1, 1), MASKED),
    ("mla_per_head", (2, 2, 1, 2), {}),  # XLA errs here if two axes split a dimension of w_uk (mesh._fsdp_first)
)
GATHERED = (("mla_rope", {}), ("mla_rope", MOE | {"model.moe_impl": "grouped"}), ("mha", {"model.block": "gpt"}))
SLOW = (
    ("mla_rope", (1, 2, 1, 1), KERNELS),
    ("mla_rope", (1, 1, 2, 2), MASKED | {"model.block": "gpt"}),
    ("mla_rope", (2, 2, 2, 1), MOE | {"model.moe_impl": "grouped"}),
    ("mla_rope", (1, 2, 2, 2), MOE | {"model.moe_impl": "masked_dense", "train.microbatches": 2}),
    (
        "mla_rope",
        (2, 1, 4, 1),
        MOE | {"model.moe_impl": "grouped", "model.block": "gpt", "model.router_aux_weight": 0.01},
    ),
    ("mha", (2, 4, 1, 1), MOE | {"model.first_k_dense": 1, "model.n_layers": 2}),
    *(("mla_rope", shape, {}) for shape in SHAPES),
    ("mha", (2, 2, 1, 2), {"model.block": "gpt", "model.dropout": 0.1, "train.microbatches": 2}),
    ("gqa", (2, 2, 1, 2), {"model.scan_layers": True, "model.n_layers": 2, "data.document_mask": True}),
    ("mla_rope", (2, 4, 1, 1), {"optim.name": "muon", "optim.ema_decay": 0.9, "model.q_lora_rank": 16}),
)


def config_of(name: str, shape: Shape, knobs: dict[str, Any]) -> Config:
    return tiny_config(
        name,
        **(KNOBS | dict(zip(("mesh.data", "mesh.fsdp", "mesh.expert", "mesh.tensor"), shape, strict=True)) | knobs),
    )


def batches(config: Config) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (ROWS, config.train.seq_len + 1)
    return [
        {
            "tokens": rng.integers(0, 317, shape).astype(np.int32),
            "segment_ids": np.cumsum(rng.random(shape) < 0.1, axis=1).astype(np.int32) + 1,
        }
        for _ in range(STEPS)
    ]


def trajectory(name: str, shape: Shape, knobs: dict[str, Any]) -> tuple[list[Any], Any]:
    """(metrics and losses of STEPS steps, the state after them as numpy)."""
    config = config_of(name, shape, knobs)
    mesh = mesh_lib.make_mesh(config.mesh)
    impl = "pallas" if config.model.train_impl == "pallas" else "xla"
    backend = dataclasses.replace(REFERENCE, mesh=mesh, train_impl=impl, interpret=True)
    model, optimizer = Transformer(config.model, backend), make_optimizer(config.optim)
    params = random_params(Transformer(config.model, REFERENCE))
    if mesh is not None:
        params = mesh_lib.spread(params, mesh_lib.state_shardings(mesh, config.model, params, params))
    state = init_state(model, optimizer, params)
    place = mesh_lib.batch_placer(mesh, ROWS)
    step, rows, param_norm = None, [], make_param_norm(model)
    for batch in map(place, batches(config)):
        step = step or make_train_step(model, optimizer, config).lower(state, batch).compile(compiler_options=QUICK)
        before = jax.tree.map(lambda a: a.sharding, state)
        state, metrics = step(state, batch)
        assert jax.tree.map(lambda a: a.sharding, state) == before
        rows.append([float(metrics[key]) for key in ("loss", "grad_norm")])
        rows[-1].append(float(param_norm(state.params)))
    nll = make_eval_step(model, config)(state.variables, batch)
    return [np.array(rows), np.asarray(nll)], jax.tree.map(np.asarray, state)


def kernels_on(shape: Shape) -> dict[str, float]:
    """How many kernels the train step of a mesh has inside shard_map and outside.

    In interpret mode XLA splits a kernel like any other program; on a GPU it cannot, and would gather all rows first.
    """
    config = config_of("mla_rope", shape, {"model.block": "gpt", "train.seq_len": 128, "model.max_len": 128})
    mesh = mesh_lib.make_mesh(config.mesh)
    model = Transformer(config.model, dataclasses.replace(REFERENCE, mesh=mesh, train_impl="pallas", interpret=True))
    optimizer = make_optimizer(config.optim)
    rows = jax.ShapeDtypeStruct((ROWS, config.train.seq_len + 1), np.int32)
    step, state = make_train_step(model, optimizer, config), abstract_state(model, optimizer)
    found = {"inside": 0.0, "outside": 0.0, "loss inside": 0.0}

    def look(jaxpr: Any, place: str) -> None:
        for equation in jaxpr.eqns:
            inside = "inside" if equation.primitive.name == "shard_map" else place
            if equation.primitive.name == "pallas_call":
                found[place] += 1
                found["loss inside"] += place == "inside" and "cross_entropy" in str(equation.params["name"])
                continue
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    look(inner, inside)

    look(step.trace(state, {"tokens": rows, "segment_ids": rows}).jaxpr.jaxpr, "outside")
    return found


def gathered_on(name: str, knobs: dict[str, Any]) -> float:
    """How many operations of a train step with fsdp 2 move parameters, for each parameter that is split."""
    config = config_of(name, (1, 2, 1, 1), knobs)
    mesh = mesh_lib.make_mesh(config.mesh)
    model = Transformer(config.model, dataclasses.replace(REFERENCE, mesh=mesh))
    optimizer = make_optimizer(config.optim)
    state = abstract_state(model, optimizer)
    rows = jax.ShapeDtypeStruct((ROWS, config.train.seq_len + 1), np.int32, sharding=mesh_lib.batch_sharding(mesh))
    lowered = make_train_step(model, optimizer, config).lower(state, {"tokens": rows, "segment_ids": rows})
    program = collectives.parse(lowered.compile(compiler_options=QUICK).as_text())
    split = sum("fsdp" in leaf.sharding.spec for leaf in jax.tree.leaves(state.params))
    return sum(op.kind in ("all-gather", "all-to-all", "collective-permute") for op in program) / split


def dtypes_gathered() -> dict[str, float]:
    """1 for each parameter that `gathered` hands over in the dtype it should, with a float32 gradient."""
    config = config_of("mla_rope", (1, 2, 1, 1), MOE | {"model.block": "gpt", "model.position": "learned"})
    mesh = mesh_lib.make_mesh(config.mesh)
    params = abstract_params(Transformer(config.model, REFERENCE))

    def total(tree: Any) -> Any:
        whole = gathered(tree, mesh, config.model, np.dtype("bfloat16"))
        return sum(leaf.astype(np.float32).sum() for leaf in jax.tree.leaves(whole)), whole

    gradients, whole = jax.eval_shape(jax.grad(total, has_aux=True), params)
    found = {}
    for (path, leaf), gradient in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(gradients), strict=True
    ):
        name = path[-1].key
        wanted = "bfloat16" if name.startswith("w_") and name != "w_router" else "float32"
        found[jax.tree_util.keystr(path)] = float(leaf.dtype == wanted and gradient.dtype == "float32")
    return found


def largest_difference(a: Any, b: Any) -> float:
    """Absolute where numbers are below 1, else relative."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return max(float((np.abs(x - y) / np.maximum(1, np.abs(x))).max()) for x, y in pairs)


def compare(cases: tuple) -> dict[str, float]:
    """The largest difference to one device, of losses, norms and the state's numbers."""
    references, found = {}, {}
    for name, shape, knobs in cases:
        key = f"{name} {knobs}"
        if key not in references:
            references[key] = trajectory(name, (1, 1, 1, 1), knobs)
        found[f"{key} {shape}"] = largest_difference(references[key], trajectory(name, shape, knobs))
    return found


def restored(saved_on: Shape, shapes: tuple[Shape, ...]) -> dict[str, float]:
    """1 for each mesh on which a checkpoint of `saved_on` is restored bit for bit, else 0."""
    knobs = MOE if saved_on[2] > 1 else {}
    optimizer, found = make_optimizer(config_of("mla_rope", saved_on, knobs).optim), {}

    def model_on(shape: Shape) -> Transformer:
        config = config_of("mla_rope", shape, knobs)
        return Transformer(config.model, dataclasses.replace(REFERENCE, mesh=mesh_lib.make_mesh(config.mesh)))

    config, model = config_of("mla_rope", saved_on, knobs), model_on(saved_on)
    params = random_params(Transformer(config.model, REFERENCE))
    where = mesh_lib.state_shardings(model.backend.mesh, config.model, params, params)
    state = init_state(model, optimizer, mesh_lib.spread(params, where))
    data = iter(grain.MapDataset.range(100).to_iter_dataset())
    for _ in range(7):
        next(data)
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(RunFolder(Path(folder)), config.checkpoint, config) as checkpoints:
            checkpoints.save(state, data, None)
        for shape in shapes:
            elsewhere = iter(grain.MapDataset.range(100).to_iter_dataset())
            abstract = abstract_state(model_on(shape), optimizer)
            with Checkpoints(RunFolder(Path(folder)), config.checkpoint, config) as checkpoints:
                again = checkpoints.restore(abstract, elsewhere)
            pairs = zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True)
            same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs) and next(elsewhere) == 7
            placed = jax.tree.map(lambda a: a.sharding, again) == jax.tree.map(lambda a: a.sharding, abstract)
            found[f"{saved_on} on {shape}"] = float(same and placed)
    return found


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    if sys.argv[1] == "fast":
        eight = restored((1, 4, 2, 1), ((1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 2)))
        found = {"steps": compare(FAST), "restored": eight, "kernels": kernels_on((2, 2, 1, 1))}
        found["dtypes"] = dtypes_gathered()
        found["gathered"] = {f"{name} {knobs}": gathered_on(name, knobs) for name, knobs in GATHERED}
        print(json.dumps(found))
    else:
        eight = restored((8, 1, 1, 1), ((1, 1, 1, 1), (1, 2, 1, 1))) | restored((2, 2, 1, 2), ((1, 1, 1, 4),))
        print(json.dumps({"steps": compare(SLOW), "restored": eight}))

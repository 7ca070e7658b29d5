"""Many devices: one mesh (data, fsdp, expert, tensor) and the one table of which parameter is split along which axis.

*data* repeats the model; *fsdp* also splits parameters, gradients and optimizer state; *expert* splits the experts of
a mixture; *tensor* splits heads and hidden units. The rows of a batch are split along the first three together. XLA's
partitioner (GSPMD, Xu et al. 2021) derives the rest and the communication from these placements. With one device there
is no mesh (None), and every program is the one that it would be without this module.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mla_jax.config import Config, MeshConfig, ModelConfig
from mla_jax.errors import UserError

AXES = ("data", "fsdp", "expert", "tensor")
BATCH = ("data", "fsdp", "expert")  # what splits the rows of a batch

_ANY = r"(heads|joint|per_head)"
# Path of a parameter -> the mesh axis of each of its dimensions (`_fsdp_first` may move one). `layer_3` is written
# `layer`, and `attention` is the kind of attention: heads (mha, gqa), joint or per_head, whose matrices of one name
# differ in shape.
TABLE: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding", (None, "fsdp")),
    (r"position_embedding", (None, "fsdp")),
    (r"(layer/(attention|ffn)_|final_)norm/(gain|bias)", (None,)),
    (rf"layer/{_ANY}/w_q", ("fsdp", "tensor", None)),  # [D, H, N + R]
    (r"layer/heads/w_[kv]", ("fsdp", "tensor", None)),  # [D, G, K]
    (rf"layer/{_ANY}/w_o", ("tensor", None, "fsdp")),  # [H, V, D]
    (rf"layer/{_ANY}/b_[qkv]", ("tensor", None)),  # [H, K]
    (rf"layer/{_ANY}/b_o", (None,)),
    (rf"layer/{_ANY}/[a-z_]*gain", (None,)),
    (r"layer/joint/w_dq", ("fsdp", None)),  # [D, C]
    (r"layer/joint/w_uq", ("fsdp", "tensor", None)),  # [C, H, N + R]
    (r"layer/(joint|per_head)/w_kr", ("fsdp", None)),  # [D, R]
    (r"layer/joint/w_dkv", ("fsdp", None)),  # [D, C]
    (r"layer/joint/w_u[kv]", ("fsdp", "tensor", None)),  # [C, H, N]
    (r"layer/per_head/w_d[kv]", ("fsdp", "tensor", None)),  # [D, H, C]
    (r"layer/per_head/w_u[kv]", ("tensor", "fsdp", None)),  # [H, C, N]
    (r"layer/ffn(/shared)?/w_(gate|up|in)", ("fsdp", "tensor")),  # [D, F]
    (r"layer/ffn(/shared)?/w_(down|out)", ("tensor", "fsdp")),  # [F, D]
    (r"layer/ffn(/shared)?/b_in", ("tensor",)),
    (r"layer/ffn(/shared)?/b_out", (None,)),
    (r"layer/ffn/w_router", ("fsdp", None)),  # [D, E]
    (r"layer/ffn/w_(gate|up)", ("expert", "fsdp", "tensor")),  # [E, D, F]
    (r"layer/ffn/w_down", ("expert", "tensor", "fsdp")),  # [E, F, D]
)


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh of `config.mesh` over all devices of all processes; None where that is one device.

    data = 0 means all the devices that the other axes leave. One process may use fewer devices than it has, if their
    number divides; several must use all of theirs. Raises UserError for sizes that do not fit.
    """
    devices = list(devices if devices is not None else jax.devices())
    count, others = len(devices), cfg.fsdp * cfg.expert * cfg.tensor
    sizes = (cfg.data or max(1, count // others), cfg.fsdp, cfg.expert, cfg.tensor)
    size, shown = math.prod(sizes), " x ".join(map(str, sizes))
    if size > count:
        raise UserError(
            f"mesh is {shown} (data x fsdp x expert x tensor), which takes {size} devices; there are {count}: lower "
            "--config.mesh.data, fsdp, expert or tensor, or start on more devices."
        )
    if count % size or (not cfg.data and size != count) or (size != count and jax.process_count() > 1):
        raise UserError(
            f"mesh is {shown} (data x fsdp x expert x tensor), which takes {size} devices; there are {count}, and the "
            "mesh must divide them"
            + (" (all of them, with several processes)" if jax.process_count() > 1 else "")
            + ": change --config.mesh.data, fsdp, expert or tensor."
        )
    if size == 1:
        return None
    # Auto: the partitioner chooses the sharding of what is not constrained (make_mesh's own default is Explicit).
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:size])


def describe(mesh: Mesh | None) -> str:
    """E.g. "8 devices: data 4 x fsdp 2, 2 processes"; "" for one device."""
    if mesh is None:
        return ""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} devices: {axes}{processes}"


def batch_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def splits(mesh: Mesh | None, axis: str) -> bool:
    """Whether `axis` has more than one device."""
    return mesh is not None and mesh.shape[axis] > 1


def check_batches(config: Config, mesh: Mesh | None) -> None:
    """Raise UserError unless the rows of (micro)batches divide among the devices that split them."""
    if mesh is None:
        return
    shards, shape = batch_shards(mesh), " x ".join(str(mesh.shape[axis]) for axis in BATCH)
    for field, rows, what in (
        ("train.batch_size", config.train.batch_size, ""),
        ("train.batch_size", config.train.batch_size // config.train.microbatches, " a microbatch"),
        ("eval.batch_size", config.eval.batch_size, ""),
    ):
        if rows % shards:
            raise UserError(
                f"{field} makes {rows} rows{what}; mesh data x fsdp x expert = {shape} splits them into {shards} equal "
                f"parts: make it a multiple of {shards}, or set --config.mesh.data to use fewer devices."
            )


def param_specs(cfg: ModelConfig, params: Any, mesh: Mesh | None = None) -> Any:
    """A PartitionSpec for every parameter, by TABLE; with `fsdp` moved to the front where `mesh` allows it.

    Raises ValueError for a parameter that no row, or more than one, names.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _spec(cfg, path, leaf, mesh), params)


def state_shardings(mesh: Mesh, cfg: ModelConfig, params: Any, state: Any) -> Any:
    """A NamedSharding for every leaf of a state that holds trees shaped like `params` (moments, averages).

    A leaf whose path ends with a parameter's path, and that has its shape, is placed like it; small others (counts,
    the router bias) are held by every device. Raises ValueError for a large leaf that resembles no parameter.
    """
    specs = {
        tuple(map(str, path)): (leaf.shape, _spec(cfg, path, leaf, mesh))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(map(str, path))
        for start in range(len(names)):
            shape, spec = specs.get(names[start:], (None, None))
            if shape == leaf.shape:
                return NamedSharding(mesh, spec)
        if math.prod(leaf.shape) > 2**20:
            raise ValueError(
                f"state {jax.tree_util.keystr(path)} {leaf.shape} is like no parameter: say where it belongs."
            )
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(place, state)


def constrain(x: jax.Array, mesh: Mesh | None, *axes: Any) -> jax.Array:
    """x, its dimensions split along these axes (None or left out = whole); x itself without a mesh.

    What does not divide, like the single row that initialisation runs on, is left to XLA.
    """
    if mesh is None:
        return x
    for length, axis in zip(x.shape, axes, strict=False):
        if axis and length % math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis)):
            return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))


def own_shape(shape: tuple[int, ...], mesh: Mesh | None) -> tuple[int, ...] | None:
    """What a device holds of an array [B, ...] whose rows are split; None where they do not divide."""
    shards = 1 if mesh is None else batch_shards(mesh)
    return None if shape[0] % shards else (shape[0] // shards, *shape[1:])


def by_rows(function: Callable[..., Any], mesh: Mesh | None, rows: Sequence[Any], whole: Sequence[Any] = ()) -> Any:
    """function(*rows, *whole) on each device's own rows of arrays [B, ...], with all of `whole`; so are its results.

    What XLA's partitioner cannot split itself: kernels. The gradients of `whole` are summed over the devices.
    """
    if mesh is None:
        return function(*rows, *whole)
    specs = (*(P(BATCH) for _ in rows), *(P() for _ in whole))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(BATCH), check_vma=False)(*rows, *whole)


def constrain_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """x [B, ...] with its rows split as a batch's are, whatever the parameters it came from."""
    return constrain(x, mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def process_part(mesh: Mesh | None, batch_size: int) -> tuple[int, int]:
    """(index, count): this process reads block `index` of `count` equal blocks of a batch's rows.

    A block may hold rows that others read too (tensor parallelism across processes); (0, 1) is the whole batch.
    """
    if mesh is None:
        return 0, 1
    rows = [
        index[0].indices(batch_size)
        for index in batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    ]
    low, high = min(row[0] for row in rows), max(row[1] for row in rows)
    count, rest = divmod(batch_size, high - low)
    return (0, 1) if rest or low % (high - low) else (low // (high - low), count)


def batch_placer(mesh: Mesh | None, batch_size: int) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    """A function that puts a process' rows of a batch onto its devices, as global arrays [batch_size, ...].

    It takes all rows, or the block of `process_part`. Without a mesh it returns what it is given.
    """
    if mesh is None:
        return lambda batch: batch
    sharding = batch_sharding(mesh)
    part, count = process_part(mesh, batch_size)

    def place(array: np.ndarray) -> jax.Array:
        first = 0 if len(array) == batch_size else part * (batch_size // count)

        def rows(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return array[start - first : stop - first]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, rows)

    return lambda batch: {name: place(array) for name, array in batch.items()}


def spread(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, placed by `shardings`."""

    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree, shardings)


def gather(tree: Any, mesh: Mesh | None) -> Any:
    """The whole of a sharded tree on this process' first device; every process must call it."""
    if mesh is None:
        return tree
    whole = jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)
    device = jax.local_devices()[0]
    return jax.tree.map(lambda a: jax.device_put(a.addressable_data(0), device), whole)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [B, ...] whose rows are a batch's."""
    return NamedSharding(mesh, P(BATCH))


def _canonical(cfg: ModelConfig, path: tuple) -> str:
    kind = cfg.latent if cfg.attention == "mla" else "heads"
    names = [re.sub(r"^layer_\d+$", "layer", key.key) for key in path]
    return "/".join(kind if name == "attention" else name for name in names)


def _matches(name: str, leaf: Any) -> list[int]:
    return [i for i, (row, axes) in enumerate(TABLE) if re.fullmatch(row, name) and len(axes) == len(leaf.shape)]


def _spec(cfg: ModelConfig, path: tuple, leaf: Any, mesh: Mesh | None) -> P:
    name = _canonical(cfg, path)
    found = _matches(name, leaf)
    if len(found) != 1:
        raise ValueError(f"parameter {name} {leaf.shape} matches {len(found)} rows of mesh.TABLE: it needs one.")
    return P(*_fsdp_first(TABLE[found[0]][1], leaf.shape, mesh))


def _fsdp_first(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | None) -> tuple[str | None, ...]:
    """axes, with `fsdp` moved to the first dimension where nothing else splits that and its length allows it.

    What is gathered along the first dimension arrives in one piece. Along another one XLA keeps gradients and moments
    transposed: 125 copies a step at size xl, 292 with experts (docs/scaling.md). Never two axes on one dimension: XLA
    then left out the sum over `data` of such a gradient on 2 x 2 x 1 x 2 devices (jax 0.10.2, tests/test_mesh.py).
    """
    if not splits(mesh, "fsdp") or "fsdp" not in axes[1:] or (axes[0] and splits(mesh, axes[0])):
        return axes
    if shape[0] % mesh.shape["fsdp"]:
        return axes
    return ("fsdp", *(None if axis == "fsdp" else axis for axis in axes[1:]))

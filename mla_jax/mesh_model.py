"""Predicted step time and memory on many devices, from the compiled program and assumed links: docs/scaling.md.

    python -m mla_jax.mesh_model --config mla_rope:xl --rows 32 --mesh 2x1x1x1 --mesh 1x2x1x1 --step_ms MEASURED

Nothing here is measured but what --step_ms says. The train step is partitioned for simulated devices on a CPU, and the
collective operations are read from the result. Layers are alike, so it is compiled with few of them and continued.
"""

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from mla_jax import accounting, collectives
from mla_jax import mesh as mesh_lib
from mla_jax.bench import synthetic
from mla_jax.collectives import Collective, Links
from mla_jax.config import Config, replace
from mla_jax.config_files import load_config
from mla_jax.errors import UserError, run_command
from mla_jax.model.backend import Backend
from mla_jax.model.transformer import Transformer
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state
from mla_jax.train.step import make_train_step

BACKWARD = 2 / 3  # share of a step's arithmetic that gradients can be sent under


@dataclasses.dataclass(frozen=True)
class Prediction:
    """For one device. sent: bytes by kind of operation; state_bytes: parameters and optimizer, exact; times in s.

    temporary_bytes: of the CPU's program, whose plain attention stores all logits: an upper bound for a GPU's.
    serial: nothing is sent while computing; overlapped: all that fits under the backward pass is.
    """

    devices: int
    sent: dict[str, float]
    communication: float
    compute: float
    state_bytes: int
    temporary_bytes: float

    @property
    def serial(self) -> float:
        return self.compute + self.communication

    @property
    def overlapped(self) -> float:
        return self.compute + max(0.0, self.communication - BACKWARD * self.compute)


def predict(config: Config, rows: int, links: Links, compute: float) -> Prediction:
    """`rows` sequences on each device that has rows of its own; `compute` seconds a step takes without communication.

    config.mesh must be explicit (data > 0), and JAX must have that many devices.
    """
    mesh = config.mesh
    config = replace(
        config, **{"train.batch_size": rows * mesh.data * mesh.fsdp * mesh.expert, "train.microbatches": 1}
    )
    config = replace(config, **{"eval.batch_size": config.train.batch_size})
    first = config.model.first_k_dense + 1
    (few, few_bytes), (more, more_bytes) = _compiled(config, first), _compiled(config, first + 1)
    rest = config.model.n_layers - first

    def whole(one: float, two: float) -> float:
        return one + rest * (two - one)

    def sent(found: list[Collective], kind: str) -> float:
        return sum(c.wire_bytes() for c in found if c.kind == kind)

    by_kind = {kind: whole(sent(few, kind), sent(more, kind)) for kind in collectives.KINDS}
    return Prediction(
        mesh.data * mesh.fsdp * mesh.expert * mesh.tensor,
        {kind: size for kind, size in by_kind.items() if size},
        whole(collectives.seconds(few, links), collectives.seconds(more, links)),
        compute,
        state_bytes(config),
        whole(few_bytes, more_bytes),
    )


def state_bytes(config: Config) -> int:
    """Bytes of the train state on one device: a sum over the shards, exact."""
    state = abstract_state(_model(config), make_optimizer(config.optim))
    return sum(
        jnp.dtype(leaf.dtype).itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(state)
    )


def _model(config: Config) -> Transformer:
    return Transformer(config.model, Backend("bfloat16", "xla", mesh=mesh_lib.make_mesh(config.mesh)))


def _compiled(config: Config, n_layers: int) -> tuple[list[Collective], int]:
    """(collective operations, bytes of temporaries) of the train step of so many layers."""
    config = replace(config, **{"model.n_layers": n_layers})
    model, optimizer = _model(config), make_optimizer(config.optim)
    state = abstract_state(model, optimizer)
    shape = (config.train.batch_size, config.train.seq_len + 1)
    place = mesh_lib.batch_sharding(model.backend.mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place) for name in ("tokens", "segment_ids")}
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partition.*", "xla_dump_hlo_as_text": True}
        options |= {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        compiled = make_train_step(model, optimizer, config).lower(state, batch).compile(compiler_options=options)
        texts = [p for p in sorted(Path(folder).glob("*after_spmd-partitioning*")) if "train_step" in p.name]
        found = collectives.parse(texts[-1].read_text())
    return found, compiled.memory_analysis().temp_size_in_bytes


def table(predictions: dict[str, Prediction], links: Links) -> str:
    """Markdown, a row a mesh: what a device sends and holds, and the bounds of the step's time and efficiency."""
    lines = [
        f"Links: {links.inside / 1e9:g} GB/s inside a host of {links.devices_per_host}, {links.between / 1e9:g} GB/s "
        f"per device between hosts, {1e6 * links.latency:g} us latency, efficiency {links.efficiency:g}.",
        "",
        "| mesh | devices | sent by a device, MB | communication, ms | step, ms (all overlapped ... nothing) | "
        "efficiency | state, MB | temporaries, MB (bound) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, p in predictions.items():
        sent = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in p.sent.items()) or "none"
        lines.append(
            f"| {name} | {p.devices} | {sent} | {1e3 * p.communication:.2f} | {1e3 * p.overlapped:.1f} ... "
            f"{1e3 * p.serial:.1f} | {p.compute / p.overlapped:.1%} ... {p.compute / p.serial:.1%} | "
            f"{p.state_bytes / 1e6:.1f} | {p.temporary_bytes / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """The command line: see --help. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="mla_rope:xl", help="a named config or a file")
    parser.add_argument("--vocab_size", type=int, default=8192, help="embedding rows")
    parser.add_argument("--rows", type=int, default=32, help="sequences per device")
    parser.add_argument("--mesh", action="append", required=True, help="data x fsdp x expert x tensor, e.g. 8x1x1x1")
    parser.add_argument("--devices_per_host", type=int, default=8)
    parser.add_argument("--inside_gb_s", type=float, default=450.0, help="per device and direction (NVLink 4: 450)")
    parser.add_argument("--between_gb_s", type=float, default=50.0, help="per device (400 Gb/s InfiniBand: 50)")
    parser.add_argument("--latency_us", type=float, default=10.0)
    parser.add_argument("--efficiency", type=float, default=0.7, help="share of the links' rate that is reached")
    parser.add_argument("--step_ms", type=float, help="measured step of one device; default: from FLOPs and --mfu")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="of one device (H100, bfloat16: 989)")
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed where --step_ms is not given")
    print(_report(parser.parse_args(arguments)))


def _report(values: argparse.Namespace) -> str:
    shapes = {text: _shape(text) for text in values.mesh}
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(math.prod(shape) for shape in shapes.values()))
    links = Links(
        values.devices_per_host,
        values.inside_gb_s * 1e9,
        values.between_gb_s * 1e9,
        values.latency_us * 1e-6,
        values.efficiency,
    )
    knobs = synthetic.vocabulary(values.vocab_size)
    predictions = {}
    for text, (data, fsdp, expert, tensor) in shapes.items():
        sizes = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.expert": expert, "mesh.tensor": tensor}
        rows = values.rows * data * fsdp * expert
        config = load_config(values.config, **(knobs | sizes | {"train.batch_size": rows, "eval.batch_size": rows}))
        tokens = values.rows * config.train.seq_len
        flops = accounting.flops_per_token(config.model, config.train.seq_len) * tokens / tensor
        compute = values.step_ms / 1e3 / tensor if values.step_ms else flops / (values.peak_tflops * 1e12 * values.mfu)
        predictions[text] = predict(config, values.rows, links, compute)
    source = f"{values.step_ms} ms, given" if values.step_ms else f"{values.mfu:.0%} of {values.peak_tflops:g} TFLOP/s"
    head = (
        f"{values.config}, {values.rows} x {config.train.seq_len} tokens a device, vocabulary {values.vocab_size:,}; "
    )
    return f"{head}computing: {source}. **Predicted, not measured.**\n\n{table(predictions, links)}"


def _shape(text: str) -> tuple[int, int, int, int]:
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--mesh is {text!r}; it must be data x fsdp x expert x tensor, each 1 or more: e.g. 4x2x1x1.")
    return tuple(map(int, parts))


if __name__ == "__main__":
    sys.exit(run_command(main))

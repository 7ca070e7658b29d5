"""Training steps side by side in one process: variants of a config on one fixed batch, timed in turns.

    python -m mla_jax.bench.train_step --config mha:m --knob model.block=gpt --vocab 8192 --batch 128 --length 512 \
        --variant "" --variant model.train_impl=xla --variant optim.name=muon --out rows.jsonl

A variant is KNOB=VALUE pairs, separated by blanks, on top of --config and --knob; "" changes nothing; xla_NAME=VALUE is
an option of XLA for this one program. Variants take turns, so that a clock that drifts meets them all alike. A row is
written as soon as a variant is compiled (what it takes and how much memory) and again when it is timed.
--trace DIR also writes a jax.profiler trace of the first variant, its HLO, and the table of `bench.profile`.
"""

import argparse
import ast
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import optax

from mla_jax import accounting, compile_cache, devices, markdown
from mla_jax import mesh as mesh_lib
from mla_jax.bench import profile, synthetic
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.errors import UserError, brief, run_command
from mla_jax.model import backend as backend_lib
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer
from mla_jax.rows import append_row, result_row
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import TrainState, abstract_state, init_state
from mla_jax.train.step import make_train_step

TRACED_STEPS = 10


def parse_knobs(pairs: list[str]) -> dict[str, Any]:
    """KNOB=VALUE texts. Raises UserError for what is not of that form."""
    knobs = {}
    for pair in pairs:
        knob, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"{pair!r} changes nothing: write KNOB=VALUE, e.g. optim.name=muon.")
        try:
            knobs[knob] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            knobs[knob] = text
    return knobs


class Variant:
    """One compiled train step with its state. Costs as much device memory as a run of it."""

    def __init__(self, name: str, config: Config, options: dict[str, Any] | None = None):
        """options: XLA's, beside those that training always sets."""
        self.name, self.config = name, config
        backend = backend_lib.choose(config.model)
        self.backend = dataclasses.replace(backend, mesh=mesh_lib.make_mesh(config.mesh))
        mesh_lib.check_batches(config, self.backend.mesh)
        self.model, self.optimizer = Transformer(config.model, self.backend), make_optimizer(config.optim)
        place = mesh_lib.batch_placer(self.backend.mesh, config.train.batch_size)
        self.batch = place(synthetic.fixed_batch(config))
        began = time.perf_counter()
        step = make_train_step(self.model, self.optimizer, config)
        lowered = step.lower(abstract_state(self.model, self.optimizer), self.batch)
        self.program = lowered.compile(compiler_options=(self.backend.compiler_options or {}) | (options or {}))
        self.compile_s = time.perf_counter() - began
        self.state: TrainState = init_state(self.model, self.optimizer, init_params(self.model, 0))
        self.seconds: list[float] = []
        self.loss = float("nan")
        self.run(3)  # warm-up

    def run(self, steps: int) -> None:
        """Time `steps` steps."""
        jax.block_until_ready(self.state)
        began = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.program(self.state, self.batch)
        self.loss = float(metrics["loss"])
        self.seconds.append((time.perf_counter() - began) / steps)

    def optimizer_ms(self, steps: int) -> float:
        """Milliseconds of clipping and update alone, on the parameters as gradients."""

        @jax.jit
        def updates(params: Any, opt_state: Any) -> tuple[Any, Any]:
            changes, opt_state = self.optimizer.update(params, opt_state, params)
            return optax.apply_updates(params, changes), opt_state

        params, opt_state = updates(self.state.params, self.state.opt_state)
        jax.block_until_ready(params)
        began = time.perf_counter()
        for _ in range(steps):
            params, opt_state = updates(params, opt_state)
        jax.block_until_ready(params)
        return 1e3 * (time.perf_counter() - began) / steps

    def memory(self) -> dict[str, int]:
        """Bytes that XLA says the program takes: arguments (state and batch) and temporaries."""
        sizes = self.program.memory_analysis()
        return {"argument_bytes": sizes.argument_size_in_bytes, "temp_bytes": sizes.temp_size_in_bytes}

    def metrics(self) -> dict[str, Any]:
        """What is known so far."""
        values: dict[str, Any] = {"backend": str(self.backend), "compile_s": self.compile_s, **self.memory()}
        timed = self.seconds[1:]
        if not timed:
            return values
        median, train = statistics.median(timed), self.config.train
        rate = train.batch_size * train.seq_len / median
        values |= {"step_ms": 1e3 * median, "step_ms_low": 1e3 * min(timed), "step_ms_high": 1e3 * max(timed)}
        values |= {"repeats": len(timed), "tokens_per_s": rate, "loss": self.loss}
        flops = rate * accounting.flops_per_token(self.config.model, train.seq_len)
        if mfu := devices.mfu(flops, self.backend.mesh.size if self.backend.mesh else 1):
            values["mfu"] = mfu
        return values


def main(argv: list[str]) -> None:
    args = _arguments(argv)
    compile_cache.enable()
    base = parse_knobs(args.knob)
    size = synthetic.knobs(args.vocab, args.batch, args.length)
    variants = []
    for text in args.variant or [""]:
        knobs = base | parse_knobs(text.split())
        options = {name: knobs.pop(name) for name in list(knobs) if name.startswith("xla_")}
        config = load_config(args.config, **(size | knobs))
        name = " ".join([args.name or args.config, *text.split()])
        try:
            variants.append(Variant(name, config, options))
        except Exception as error:  # one that the device cannot have must not cost the others their turn
            print(f"{name}: not measured ({type(error).__name__}: {brief(error)})", flush=True)
            continue
        _append(args.out, variants[-1], {})
    if not variants:
        raise UserError(
            "no step was measured: each variant failed, as said above; change --config, --knob or --variant."
        )
    for _ in range(args.repeats):
        for variant in variants:
            variant.run(args.steps)
    for variant in variants:
        _append(args.out, variant, {"optimizer_ms": variant.optimizer_ms(args.steps)} if args.optimizer else {})
    print(table(variants), flush=True)
    if args.trace:
        trace(variants[0], args.trace)
        print(profile.report(args.trace, TRACED_STEPS), flush=True)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="mla_rope:m", help="a named config, with its size")
    parser.add_argument("--knob", action="append", default=[], help="KNOB=VALUE of every variant; may be repeated")
    parser.add_argument("--variant", action="append", default=[], help="KNOB=VALUE pairs of one variant")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20, help="in one timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each variant")
    parser.add_argument("--optimizer", action="store_true", help="also time clipping and update alone")
    parser.add_argument("--trace", type=Path, help="folder for a profile of the first variant")
    parser.add_argument("--name", default="", help="of the rows; default: the config")
    parser.add_argument("--out", type=Path, required=True, help="rows.jsonl, appended to")
    return parser.parse_args(argv)


def _append(path: Path, variant: Variant, more: dict[str, Any]) -> None:
    metrics = variant.metrics() | more
    append_row(path, result_row(variant.name, variant.config.hash, metrics, "random tokens", "none"))


def table(variants: list[Variant]) -> str:
    """Markdown: absolute numbers, and each against the first."""
    rows = []
    for variant in variants:
        m = variant.metrics()
        ratio = variants[0].metrics()["step_ms"] / m["step_ms"]
        times = f"{m['step_ms']:.2f}", f"{m['step_ms_low']:.2f} - {m['step_ms_high']:.2f}"
        speeds = f"{m['tokens_per_s']:,.0f}", f"{ratio:.3f}x"
        rows.append((variant.name, *times, *speeds, f"{m['temp_bytes'] / 2**30:.2f} GiB"))
    head = ("step", "ms", "lowest - highest", "tokens/s", "over the first", "temporaries")
    return markdown.table(head, rows)


def trace(variant: Variant, folder: Path) -> None:
    """A jax.profiler trace of TRACED_STEPS steps, and the compiled program's text (names of scopes) beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / profile.PROGRAM).write_text(variant.program.as_text(), encoding="utf-8")
    jax.block_until_ready(variant.state)
    with jax.profiler.trace(str(folder)):
        variant.run(TRACED_STEPS)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Times training steps and decode of one named config with random weights and tokens, and their memory.

    python launch/moe_step.py --out rows.jsonl --config moe_mla_rope_flop_matched --set model.block=gpt

One process a config, because peak memory is the process'. A row is appended for training and one for each decode batch.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_jax import accounting, rows
from mla_jax.bench import decode as bench_decode
from mla_jax.bench.points import Point
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.model import backend, moe_choice, serving
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import init_state
from mla_jax.train.step import make_train_step

STEPS, DECODE_STEPS = 20, 64


def value_of(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"True": True, "False": False}.get(text, text)


def peak_mib() -> float | None:
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**20 if stats else None


def train(config: Config, model: Transformer) -> dict[str, Any]:
    """ms_per_step (median), tokens_per_s, compile_s and memory: of the state, of temporaries, and the peak."""
    optimizer = make_optimizer(config.optim)
    state = init_state(model, optimizer, init_params(model, 0))
    state_mib = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    shape = (config.train.batch_size, config.train.seq_len + 1)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, config.tokenizer.vocab_size)
    batch = {"tokens": tokens, "segment_ids": jnp.ones(shape, jnp.int32)}
    began = time.perf_counter()
    step = make_train_step(model, optimizer, config).lower(state, batch).compile()
    compile_s = time.perf_counter() - began
    memory = step.memory_analysis()
    times = []
    for index in range(STEPS + 3):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        if index >= 3:
            times.append(time.perf_counter() - began)
    seconds = float(np.median(times))
    return {
        "ms_per_step": 1e3 * seconds,
        "tokens_per_s": config.train.batch_size * config.train.seq_len / seconds,
        "compile_s": compile_s,
        "state_mib": state_mib,
        "temp_mib": memory.temp_size_in_bytes / 2**20 if memory else None,
        "peak_mib": peak_mib(),
        "loss": float(metrics["loss"]),
    }


def decode(name: str, config: Config, batch: int) -> dict[str, Any]:
    """us_per_step: one greedy token for each of `batch` rows at the end of a full cache, by the sampler's own loop.

    All rows hold the same token, which would choose the same experts: random weights and caches that differ by row
    make them differ after the first layer's attention.
    """
    found = bench_decode.run(Point(name, config), batch, config.model.max_len, DECODE_STEPS, 5)
    return {"batch": batch, "us_per_step": 1e3 * found.pop("ms")} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--name", default="")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--decode", type=int, action="append", default=[], metavar="BATCH")
    parser.add_argument("--no_train", action="store_true")
    args = parser.parse_args()
    knobs = {"model.vocab_size": 8192, "tokenizer.vocab_size": 8192, "train.batch_size": 128, "train.seq_len": 512}
    config = load_config(args.config, **(knobs | {k: value_of(v) for k, _, v in (s.partition("=") for s in args.set)}))
    model = Transformer(config.model, backend.choose(config.model))
    parts = accounting.params(config.model)
    about = {
        "config": args.config,
        "knobs": args.set,
        "params": parts["total"],
        "active": parts["active"],
        "flops_per_token": accounting.flops_per_token(config.model, config.train.seq_len),
    }
    jobs = [] if args.no_train else [("train", lambda: train(config, model))]
    jobs += [
        (f"decode {batch}", lambda batch=batch: decode(args.name or args.config, config, batch))
        for batch in args.decode
    ]
    for job, run in jobs:
        tokens = config.train.batch_size // config.train.microbatches * config.train.seq_len
        if config.model.n_moe_layers:
            n_tokens = tokens if job == "train" else int(job.split()[1])
            impl = moe_choice.choose(config.model, n_tokens, model.backend).impl
            if job != "train" and serving.experts_by_kernels(config.model, model.backend, n_tokens):
                impl = "row_experts"
            about |= {"impl": impl, "grouped_impl": model.backend.grouped_impl}
        try:
            metrics = run()
        except Exception as error:  # a row that says why is worth more than none
            metrics = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
        row = rows.result_row(f"{job} {args.name or args.config}", config.hash, about | metrics, "-", "-")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        rows.append_row(args.out, row)
        print(row["name"], {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in metrics.items()}, flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"moe_step.py: {error}", file=sys.stderr)
        sys.exit(2)

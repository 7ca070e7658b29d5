"""The largest training batch per size, from what XLA says a compiled step takes: nothing is run.

    python -m mla_jax.bench.largest_batch --sizes s,m,l,xl --remat none,dots,full --memory_gb 80 --out rows.jsonl

One step is compiled per row, at --batch sequences. Parameters, gradients and optimizer state do not grow with the
batch; all else is taken to grow in proportion, so that the estimate errs on the safe side. --run then trains one step
at the largest estimate of each row, in turn, and says whether it fitted.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax

from mla_jax import compile_cache, markdown
from mla_jax.bench import synthetic
from mla_jax.config import Config, replace
from mla_jax.config_files import load_config
from mla_jax.errors import out_of_memory, run_command
from mla_jax.model import backend as backend_lib
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer
from mla_jax.rows import append_row, result_row
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state, init_state
from mla_jax.train.step import make_train_step

SHARE = 0.92  # of the memory: what fragmentation and the libraries' work space leave, a guess


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of a compiled step: fixed_bytes whatever the batch, sequence_bytes for each sequence of it."""

    fixed_bytes: int
    sequence_bytes: float

    def largest(self, memory_bytes: float) -> int:
        """Sequences that fit in `memory_bytes`, 0 when not one does."""
        return max(0, int((memory_bytes * SHARE - self.fixed_bytes) // self.sequence_bytes))


def estimate(config: Config) -> Estimate:
    """Compile the step of `config` for the present device and read its memory."""
    model, optimizer = Transformer(config.model, backend_lib.choose(config.model)), make_optimizer(config.optim)
    state = abstract_state(model, optimizer)
    batch = jax.eval_shape(lambda: synthetic.fixed_batch(config))
    sizes = make_train_step(model, optimizer, config).lower(state, batch).compile().memory_analysis()
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    gradient_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    grows = sizes.argument_size_in_bytes - state_bytes + sizes.temp_size_in_bytes - gradient_bytes
    rows = config.train.batch_size
    # Where temporaries are hardly more than the gradients, blame them all on the sequences.
    return Estimate(state_bytes + gradient_bytes, max(grows, sizes.temp_size_in_bytes / 2) / rows)


def fits(config: Config, batch: int) -> bool:
    """Whether one step of `batch` sequences runs on the present device."""
    config = replace(config, **{"train.batch_size": batch})
    model, optimizer = Transformer(config.model, backend_lib.choose(config.model)), make_optimizer(config.optim)
    try:
        state = init_state(model, optimizer, init_params(model, 0))
        jax.block_until_ready(make_train_step(model, optimizer, config)(state, synthetic.fixed_batch(config)))
    except RuntimeError as error:
        if out_of_memory(error) is None:
            raise
        return False
    return True


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="mla_rope", help="a named config that takes a size")
    parser.add_argument("--sizes", default="s,m,l,xl")
    parser.add_argument("--remat", default="none,dots,full")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="sequences of the step that is compiled")
    parser.add_argument("--loss_chunks", type=int, default=1)
    parser.add_argument("--memory_gb", type=float, default=80.0, help="10^9 bytes")
    parser.add_argument("--run", action="store_true", help="also train a step at the estimate")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    compile_cache.enable()
    print(markdown.table(("size", "remat", "fixed GiB", "MiB a sequence", "largest batch", "ran"), ()), flush=True)
    knobs = synthetic.knobs(args.vocab, args.batch, args.length) | {"train.loss_chunks": args.loss_chunks}
    for size in args.sizes.split(","):
        for remat in args.remat.split(","):
            config = load_config(f"{args.config}:{size}", **(knobs | {"train.remat": remat}))
            found = estimate(config)
            largest = found.largest(args.memory_gb * 1e9)
            ran = fits(config, largest) if args.run and largest else None
            metrics = dataclasses.asdict(found) | {"largest_batch": largest, "ran": ran, "memory_gb": args.memory_gb}
            name = f"largest_batch_{args.config}_{size}_{remat}_{args.loss_chunks}"
            append_row(args.out, result_row(name, config.hash, metrics, "random tokens", "none"))
            sizes = f"{found.fixed_bytes / 2**30:.2f}", f"{found.sequence_bytes / 2**20:.1f}", f"{largest:,}"
            print(markdown.line((size, remat, *sizes, "-" if ran is None else ran)), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Block sizes of the decode kernels, measured inside whole decode steps.

    python launch/decode_tuning.py --out rows.jsonl [--max_minutes 5] [--only NAME ...] [--trace FOLDER]

Alone, a kernel of a few microseconds cannot be timed: what it costs depends on its neighbours in the CUDA graph. So
each choice of blocks is timed in steps of a model with 3 layers and 512 pieces, compiled anew: blocks are constants of
the program. Winners belong into mla_jax/kernels/{blocks,row_linear,row_experts}.py. --trace: first
profiles of whole size-m steps, by kernel.
"""

import argparse
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from mla_jax.bench import decode, profile
from mla_jax.bench.points import Point
from mla_jax.config_files import load_config
from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels import row_experts, row_linear
from mla_jax.kernels.operands import Blocks
from mla_jax.kernels.row_linear import RowBlocks
from mla_jax.rows import append_row, result_row

JOINT = {"model.kv_lora_rank": 256, "model.qk_rope_head_dim": 32}  # r = d/2


def flash(*choices: tuple) -> list[dict[str, Any]]:
    return [{}] + [{"flash": Blocks(*choice)} for choice in choices]


def experts(**choices: list[tuple]) -> list[dict[str, Any]]:
    """The table, then each choice for one launch with the table's for the others."""
    table = row_experts.choose_blocks(256)
    tried = [(launch, RowBlocks(*choice)) for launch, listed in choices.items() for choice in listed]
    return [{}] + [{"experts": dataclasses.replace(table, **{launch: blocks})} for launch, blocks in tried]


EXPERTS = experts(
    router=[(2, 1), (4, 1), (2, 4), (4, 4)],
    up=[(1, 1), (2, 1), (8, 1), (4, 2), (8, 2), (4, 4), (16, 4)],
    down=[(2, 1), (4, 1), (2, 2), (4, 2), (4, 4), (8, 4)],
)
ROWS = [{"rows": RowBlocks(c, w)} for c, w in [(1, 1), (2, 1), *itertools.product((2, 4, 8), (2, 4, 8))]]
# name -> config, batch, context, knobs of the model, what to try ({} = what the tables choose)
SWEEPS: dict[str, tuple[str, int, int, dict, list[dict[str, Any]]]] = {
    "mla_1": (
        "mla_rope",
        1,
        512,
        {},
        flash(
            (64, 4, 4, 3), (32, 4, 4, 5), (32, 8, 4, 3), (32, 16, 2, 2), (64, 8, 4, 2), (64, 2, 4, 5), (128, 4, 8, 2)
        ),
    ),
    "mha_1": ("mha_rope", 1, 512, {}, flash((128, 4, 8, 2), (128, 4, 4, 2), (64, 8, 4, 2), (128, 2, 8, 2))),
    "moe_1": ("moe_mla_rope_flop_matched", 1, 512, {}, EXPERTS),
    "moe_1_modules": ("moe_mla_rope_flop_matched", 1, 512, {"moe_impl": "gathered"}, [{}]),
    "moe_8": ("moe_mla_rope_flop_matched", 8, 512, {}, EXPERTS),
    "moe_8_modules": ("moe_mla_rope_flop_matched", 8, 512, {"moe_impl": "gathered"}, [{}]),
    "mla_1_rows": ("mla_rope", 1, 512, {}, ROWS),
    "mla_1_join": (
        "mla_rope",
        1,
        512,
        {},
        [{}] + [{"join": RowBlocks(*c)} for c in ((4, 8), (8, 4), (8, 8), (2, 4), (16, 8))],
    ),
    "mha_1_join": ("mha_rope", 1, 512, {}, [{}] + [{"join": RowBlocks(*c)} for c in ((4, 8), (8, 4), (8, 8), (2, 4))]),
    "mla_64_flash": (
        "mla_rope",
        64,
        4096,
        {},
        flash(*((64, s, 4, 3) for s in (2, 4, 8)), (64, 2, 8, 3), (64, 2, 4, 4), (128, 2, 8, 3), (32, 4, 4, 4)),
    ),
    "mla_1024_flash": (
        "mla_rope",
        1024,
        512,
        {},
        flash((64, 1, 4, 2), (64, 1, 4, 2, True), (32, 1, 2, 3), (64, 1, 2, 2, True)),
    ),
    "mha_64": ("mha_rope", 64, 4096, {}, flash((64, 1, 4, 2), (64, 1, 4, 3), (128, 1, 4, 3), (64, 2, 4, 2))),
    "mha_64_cudnn": ("mha_rope", 64, 4096, {"decode_impl": "cudnn"}, [{}]),
    "mha_1024": ("mha_rope", 1024, 512, {}, flash((128, 1, 8, 3), (64, 1, 4, 2), (64, 1, 4, 3))),
    "mha_1024_cudnn": ("mha_rope", 1024, 512, {"decode_impl": "cudnn"}, [{}]),
}


def point(name: str, layers: int, vocab: int) -> Point:
    knobs = JOINT if name == "mla_rope" else {}
    sizes = {"model.n_layers": layers, "model.vocab_size": vocab, "tokenizer.vocab_size": vocab}
    return Point(name, load_config(f"{name}:m", **(knobs | sizes)))


def measure(name: str, batch: int, context: int, knobs: dict, choice: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a step with a choice of blocks."""
    real_flash, real_rows, real_experts = blocks_lib.choose, row_linear.choose_blocks, row_experts.choose_blocks
    real_product = row_linear.row_linear
    jax.clear_caches()

    def product(x: Any, *arguments: Any, **keywords: Any) -> jax.Array:  # those that join splits apart from the others
        return real_product(x, *arguments, **keywords, blocks=choice.get("join") if isinstance(x, tuple) else None)

    with (
        mock.patch.object(blocks_lib, "choose", lambda *a: choice.get("flash") or real_flash(*a)),
        mock.patch.object(row_linear, "choose_blocks", lambda n: choice.get("rows") or real_rows(n)),
        mock.patch.object(row_linear, "row_linear", product),
        mock.patch.object(row_experts, "choose_blocks", lambda f: choice.get("experts") or real_experts(f)),
    ):
        return decode.run(point(name, 3, 512), batch, context, 64, 25, **knobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max_minutes", type=float, default=5.0)
    parser.add_argument("--only", nargs="*", default=list(SWEEPS))
    parser.add_argument("--trace", type=Path, help="folder for profiles of size-m steps")
    given = parser.parse_args()
    begun = time.monotonic()
    if given.trace:
        for config, (batch, context) in itertools.product(
            ("mla_rope", "mha_rope"), ((1, 512), (64, 4096), (1024, 512))
        ):
            trace(config, batch, context, given.trace / f"{config}_{batch}x{context}")
    for name in given.only:
        config, batch, context, knobs, choices = SWEEPS[name]
        for choice in choices:
            if time.monotonic() - begun > 60 * given.max_minutes:
                print("time is up")
                return
            label = " ".join(f"{key} {value}" for key, value in choice.items()) or "table"
            try:
                found = measure(config, batch, context, knobs, choice)
            except Exception as error:  # too much shared memory for the device: a result too
                print(f"{name:15s} {label:60s} {' '.join(str(error).split())[:90]}", flush=True)
                continue
            print(f"{name:15s} {label:60s} {found['ms'] * 1e3:9.1f} us", flush=True)
            append_row(given.out, result_row(name, "", {"choice": label} | found, "random tokens", "none"))


def trace(config: str, batch: int, context: int, folder: Path) -> None:
    """A profile of 64 steps of size m, compilation and warm-up apart."""
    whole = point(config, 9, 8192)
    decode.run(whole, batch, context, 64, 1)
    with jax.profiler.trace(str(folder)):
        found = decode.run(whole, batch, context, 64, 1)
    print(f"{config:15s} {f'size m, {batch} x {context}, traced':60s} {found['ms'] * 1e3:9.1f} us", flush=True)
    # Two warm-up calls and the timed one.
    print(profile.report(folder, 3 * 64, 14), flush=True)


if __name__ == "__main__":
    main()

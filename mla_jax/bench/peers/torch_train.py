"""Training speed of the torch peer: torch.compile, bfloat16 autocast, fused AdamW, fused attention; one fixed batch.

    python -m mla_jax.bench.peers.torch_train --size m --vocab 8192 --batch 128 --out rows.jsonl

Run it in the same session and on the same GPU as `python -m mla_jax.bench.train_step`, one after the other.
"""

import argparse
import datetime
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from mla_jax.bench import synthetic
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.errors import UserError, run_command
from mla_jax.rows import append_row


def peer_config(size: str, vocab: int, batch: int, length: int) -> Config:
    """The architecture that both sides train: MHA, learned positions, `block=gpt`, no dropout."""
    return load_config(f"mha:{size}", **(synthetic.knobs(vocab, batch, length) | {"model.block": "gpt"}))


def measure(config: Config, steps: int, repeats: int, compile_model: bool) -> dict[str, Any]:
    """Metrics of training on one batch of random tokens: the median over `repeats` of `steps` steps each.

    tokens_per_s, step_ms, spread (largest over smallest step_ms, less 1), first_step_s, peak_bytes (0 on a CPU).
    Raises UserError without torch.
    """
    torch = import_torch()
    from mla_jax.bench.peers import torch_gpt

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch_gpt.Gpt(config.model).to(device)
    optimizer = torch_gpt.adamw(model, config, fused=device == "cuda")
    run = torch.compile(model) if compile_model else model
    size = (config.train.batch_size, config.train.seq_len + 1)
    tokens = torch.randint(0, config.model.vocab_size, size, device=device)

    def one_step() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            return torch_gpt.step(run, optimizer, tokens, config.optim.learning_rate, config.optim.clip_norm)

    began = time.perf_counter()
    loss = float(one_step())
    first = time.perf_counter() - began
    for _ in range(3):
        one_step()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(steps):
            loss = one_step()
        float(loss)  # waits for the device
        times.append((time.perf_counter() - began) / steps)
    median = statistics.median(times)
    return {
        "tokens_per_s": config.train.batch_size * config.train.seq_len / median,
        "step_ms": 1e3 * median,
        "spread": max(times) / min(times) - 1,
        "first_step_s": first,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
        "loss": float(loss),
        "params": sum(p.numel() for p in model.parameters()),
    }


def import_torch() -> Any:
    """The module. Raises UserError without it."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "the torch peer needs torch, which is not installed: pip install '.[hf]' in the checkout."
        ) from None
    return torch


def torch_row(name: str, config: Config, metrics: dict[str, Any], module: str, argv: list[str]) -> dict[str, Any]:
    """A result row: rows.result_row would start JAX on the GPU, which takes most of its memory."""
    torch = import_torch()
    return {
        "name": name,
        "config_hash": config.hash,
        "metrics": metrics,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "data_fingerprint": "random tokens",
        "tokenizer_sha256": "none",
        "command": shlex.join(["python", "-m", f"mla_jax.bench.peers.{module}", *argv]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="m")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    config = peer_config(args.size, args.vocab, args.batch, args.length)
    metrics = measure(config, args.steps, args.repeats, not args.no_compile)
    row = torch_row(f"torch_{args.size}_{args.vocab}", config, metrics, "torch_train", argv)
    append_row(args.out, row)
    print(f"{row['name']}: {metrics['step_ms']:.2f} ms a step, {metrics['tokens_per_s']:,.0f} tokens/s")


if __name__ == "__main__":
    sys.exit(run_command(main))

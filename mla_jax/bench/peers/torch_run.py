"""nanoGPT's recipe in torch on the data of a study: validation losses over training, for the seconds to a loss.

    python -m mla_jax.bench.peers.torch_run study_muon:files --knob data.path=TRAIN.txt --out rows.jsonl

The recipe: the GPT-2 architecture (torch_gpt), no dropout, AdamW (0.9, 0.95) with weight decay 0.1 on matrices, warm-up
and cosine to a tenth, clipping at 1, torch.compile, bfloat16 autocast. Size, steps, batch and data are those of the
study's headline tier: it reads the tokens, batches and validation windows that our runs read, in the same order. Rows
that OUT has already are not made again: call it until all are there.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mla_jax.bench.peers.torch_train import import_torch, torch_row
from mla_jax.bench.train_step import parse_knobs
from mla_jax.config import Config, replace
from mla_jax.config_files import load_config, load_config_dict
from mla_jax.data.pipeline import train_iterator
from mla_jax.data.prepare import Prepared, prepare
from mla_jax.errors import UserError, run_command
from mla_jax.evaluation import evaluate
from mla_jax.rows import append_row, read_rows
from mla_jax.study.grid import from_config_dict
from mla_jax.train.optim import schedule
from mla_jax.train.setup import with_vocabulary

RECIPE = {"model.block": "gpt", "optim.weight_decay": 0.1, "optim.beta2": 0.95, "optim.clip_norm": 1.0}


def run(config: Config, prepared: Prepared, compile_model: bool) -> dict[str, Any]:
    """{"metrics", "curve"} of one training run; `config` has its vocabulary.

    metrics: best_valid_loss, best_step, tokens_per_s (median over the stretches between evaluations, which do not
    count), first_step_s (with compiling), params. curve: {"eval": [(step, loss), ...]}, nats per token.
    """
    torch = import_torch()
    from mla_jax.bench.peers import torch_gpt

    train, rate = config.train, schedule(config.optim)
    rates = [float(rate(step)) for step in range(train.steps)]
    torch.manual_seed(train.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch_gpt.Gpt(config.model).to(device)
    optimizer = torch_gpt.adamw(model, config, fused=device == "cuda")
    compiled = torch.compile(model) if compile_model else model
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")
    data = train_iterator(prepared, config)

    def put(tokens: np.ndarray) -> Any:
        return torch.from_numpy(tokens).long().to(device, non_blocking=True)

    @torch.no_grad()
    def losses(_: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
        tokens = put(batch["tokens"])
        with autocast:
            return model.losses(tokens[:, :-1], tokens[:, 1:]).float().cpu().numpy()

    evaluations, speeds, first_step_s, began, stretch = [], [], 0.0, time.perf_counter(), 0
    for done in range(1, train.steps + 1):
        tokens = put(next(data)["tokens"])
        with autocast:
            loss = torch_gpt.step(compiled, optimizer, tokens, rates[done - 1], config.optim.clip_norm)
        stretch += 1
        if done == 1:
            float(loss)
            first_step_s, began, stretch = time.perf_counter() - began, time.perf_counter(), 0
        if done % train.eval_every == 0 or done == train.steps:
            float(loss)  # waits for the device
            speeds.append(stretch * train.batch_size * train.seq_len / (time.perf_counter() - began))
            found = evaluate(losses, None, prepared.valid, train.seq_len, train.batch_size).loss
            evaluations.append((done, round(found, 5)))
            began, stretch = time.perf_counter(), 0
    best = min(evaluations, key=lambda pair: pair[1])
    metrics = {"best_valid_loss": best[1], "best_step": best[0], "tokens_per_s": float(np.median(speeds))}
    metrics |= {"first_step_s": first_step_s, "params": sum(p.numel() for p in model.parameters())}
    return {"metrics": metrics, "curve": {"eval": evaluations}}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="the study whose headline tier is trained: e.g. study_muon:files")
    parser.add_argument("--rates", default="6e-4,1e-3,2e-3,4e-3", help="learning rates, a run each")
    parser.add_argument("--knob", action="append", default=[], help="KNOB=VALUE, e.g. data.path=TRAIN.txt")
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--max_minutes", type=float, default=float("inf"), help="no run starts that would take longer")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    import_torch()
    jax.config.update("jax_platforms", "cpu")  # the GPU is torch's
    until, last = time.monotonic() + 60 * args.max_minutes, 0.0
    study = from_config_dict(load_config_dict(args.study))
    tier = next((tier for tier in study.tiers if tier.name == "headline"), None)
    if tier is None:
        raise UserError(f"study {study.name} has no headline tier: use one that has, e.g. study_muon.")
    knobs = dict(study.knobs) | dict(tier.knobs) | RECIPE | parse_knobs(args.knob)
    config = load_config(f"mha:{tier.size}", **knobs)
    prepared = prepare(config)
    config = with_vocabulary(config, prepared.tokenizer.vocab_size)
    for rate in args.rates.split(","):
        tuned = with_rate(config, rate)
        name = f"torch_{tier.size}_{tuned.optim.learning_rate:g}_s{tuned.train.seed}"
        if is_done(args.out, name, tuned, prepared.fingerprint):
            print(f"{name} is done")
            continue
        if time.monotonic() + last > until:
            print("the time limit: the same command goes on")
            return
        began = time.monotonic()
        found = run(tuned, prepared, not args.no_compile)
        last = time.monotonic() - began
        row = torch_row(name, tuned, found["metrics"], "torch_run", argv)
        row |= {"data_fingerprint": prepared.fingerprint, "tokenizer_sha256": prepared.tokenizer.sha256}
        append_row(args.out, row | {"curve": found["curve"], "tokens_per_step": tokens_per_step(tuned)})
        m = found["metrics"]
        print(f"{name}: validation loss {m['best_valid_loss']:.4f}, {m['tokens_per_s']:,.0f} tokens/s, {last:.0f} s")


def with_rate(config: Config, text: str) -> Config:
    try:
        return replace(config, **{"optim.learning_rate": float(text)})
    except ValueError:
        raise UserError(f"--rates has {text!r}; it must be numbers with commas between: e.g. 6e-4,1e-3.") from None


def is_done(out: Path, name: str, config: Config, fingerprint: str) -> bool:
    wanted = (name, config.hash, fingerprint)
    return any((r["name"], r["config_hash"], r["data_fingerprint"]) == wanted for r in read_rows(out))


def tokens_per_step(config: Config) -> int:
    return config.train.batch_size * config.train.seq_len


if __name__ == "__main__":
    sys.exit(run_command(main))

"""What a run leaves behind at its end: plot, samples, result.json, report.md, and a summary on the terminal."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from mla_jax import accounting, figures
from mla_jax.config import Config
from mla_jax.files import write_text
from mla_jax.model import backend as backend_lib
from mla_jax.model.backend import Backend
from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder
from mla_jax.sample.sampler import Sampler, sample_settings
from mla_jax.terminal import say
from mla_jax.train.expert_plot import plot_experts
from mla_jax.train.setup import Setup


def plot_loss(folder: RunFolder, baselines: dict[str, float]) -> Path:
    """plots/loss.png from metrics.jsonl: training and validation loss over steps, with the unigram baseline."""
    rows = read_rows(folder.metrics)
    figure, axes = figures.subplots(figsize=(7, 4.5))
    for kind, style in (("train", {"alpha": 0.6}), ("eval", {"marker": "o"})):
        points = [(row["step"], row["loss"]) for row in rows if row["kind"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), label={"train": "training", "eval": "validation"}[kind], **style)
    axes.axhline(baselines["unigram"], linestyle=":", color="gray", label="unigram baseline")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=folder.name)
    axes.legend()
    folder.plots.mkdir(exist_ok=True)
    path = folder.plots / "loss.png"
    figure.savefig(path, dpi=120)
    return path


def leave_behind(
    setup: Setup, variables: Any, row: dict[str, Any], console: rich.console.Console, samples: bool = True
) -> None:
    """Samples, plot and report of a finished run, by one device. variables: the weights, whole; row: as `finish`."""
    drawn = _samples(setup, variables) if samples else []
    finish(setup.folder, setup.config, row, setup.baselines, drawn, console)


def _samples(setup: Setup, variables: Any) -> list[tuple[str, str]]:
    """(prompt, completion) pairs by the config's `sample` settings."""
    config, tokenizer, sample = setup.config, setup.prepared.tokenizer, setup.config.sample
    model = setup.model.clone(backend=_to_decode(setup.backend, config))
    prompts = [prompt for prompt in sample.prompts for _ in range(sample.num_samples)]
    prompts = prompts or setup.openings[: sample.num_samples]
    settings = sample_settings(sample) | {"max_new_tokens": None}  # the config's, or what fits behind a long prompt
    completions = Sampler(model, variables, tokenizer, config).generate(prompts, **settings)
    return list(zip(prompts, completions, strict=True))


def _to_decode(backend: Backend, config: Config) -> Backend:
    """Of one device, its decode kernels tried now where training left that for later."""
    backend = dataclasses.replace(backend, mesh=None)
    if backend.decode_reason != backend_lib.LATER:
        return backend
    chosen = backend_lib.choose(config.model)
    return dataclasses.replace(backend, decode_impl=chosen.decode_impl, decode_reason=chosen.decode_reason)


def finish(
    folder: RunFolder,
    config: Config,
    row: dict[str, Any],
    baselines: dict[str, float],
    samples: list[tuple[str, str]],
    console: rich.console.Console,
) -> None:
    """Write samples.txt, plots/loss.png, result.json and report.md, and print the same to the console.

    row: a result row whose metrics have valid_loss, bits_per_byte, best_valid_loss, best_step, tokens_per_s.
    samples: (prompt, completion) pairs, or none.
    """
    plot = plot_loss(folder, baselines)
    expert_plot = plot_experts(folder, config.model.first_k_dense) if config.model.ffn == "moe" else None
    if samples:
        write_text(folder.samples, "\n\n".join(f"{prompt}|{completion}" for prompt, completion in samples) + "\n")
    write_text(folder.result, json.dumps(row, indent=1))
    facts = _facts(config, row["metrics"], baselines)
    write_text(folder.report, _report(folder, row, facts, expert_plot, samples))
    _print(console, folder, facts, plot, samples)


def _report(
    folder: RunFolder,
    row: dict[str, Any],
    facts: list[tuple[str, str]],
    expert_plot: Path | None,
    samples: list[tuple[str, str]],
) -> str:
    """The text of report.md; arguments as in `finish`."""
    lines = [
        f"# {folder.name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
        f"Device {row['device']}; `{row['command']}`",
        "",
        "![loss](plots/loss.png)",
        "",
    ]
    if expert_plot:
        lines += [f"![experts](plots/{expert_plot.name})", ""]
    if samples:
        lines += ["## Samples", "", "The prompt ends at `|`.", ""]
        lines += [f"> {prompt}|{text}\n" for prompt, text in samples]
    return "\n".join(lines)


def _print(
    console: rich.console.Console,
    folder: RunFolder,
    facts: list[tuple[str, str]],
    plot: Path,
    samples: list[tuple[str, str]],
) -> None:
    """The same for the terminal, and what to do next."""
    table = rich.table.Table(title=f"{folder.path}", show_header=False, title_justify="left")
    for name, value in facts:
        table.add_row(name, value)
    console.print(table, highlight=False)
    for i, (prompt, text) in enumerate(samples, 1):
        say(console, f"\nsample {i}{' (| is where the prompt ends)' if i == 1 else ''}: {prompt}|{text}")
    say(
        console,
        f"\nrun folder  {folder.path}\nloss plot   {plot}\nreport      {folder.report}\n"
        f'next        {_python()} -m mla_jax.main --mode sample --workdir {folder.path} --prompt "Once upon a time"',
    )


def _python() -> str:
    """The interpreter of this run, as one would type it here."""
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative


def _facts(config: Config, metrics: dict[str, float], baselines: dict[str, float]) -> list[tuple[str, str]]:
    kv, mha = accounting.kv_bytes(config.model), accounting.mha_kv_bytes(config.model)
    return [
        ("validation loss", f"{metrics['valid_loss']:.4f} nats per token"),
        ("  best", f"{metrics['best_valid_loss']:.4f} at step {metrics['best_step']}"),
        ("  uniform baseline", f"{baselines['uniform']:.4f}"),
        ("  unigram baseline", f"{baselines['unigram']:.4f}"),
        ("bits per byte", f"{metrics['bits_per_byte']:.4f}"),
        ("KV cache", f"{kv:,} bytes per token in bfloat16 (MHA: {mha:,}; {1 - kv / mha:.1%} saved)"),
        ("parameters", f"{accounting.params(config.model)['total']:,}"),
        ("training speed", f"{metrics['tokens_per_s']:,.0f} tokens/s"),
    ]

"""What a run says before its first step: device, differences from base, parameters, FLOPs and KV bytes."""

import contextlib

import rich.console
import rich.table

from mla_jax import accounting, devices, mesh, terminal
from mla_jax.config import Config, replace
from mla_jax.config_files import load_config, load_config_dict
from mla_jax.data import statistics
from mla_jax.errors import UserError
from mla_jax.kernels.row_linear import MAX_ROWS
from mla_jax.model import moe_choice
from mla_jax.model.backend import LATER, Backend
from mla_jax.model.serving import packs_experts
from mla_jax.train.resume import differences, flatten


def print_startup(console: rich.console.Console, config: Config, backend: Backend, stats: dict) -> None:
    """Print the report to the console."""

    def say(text: str) -> None:
        terminal.say(console, text)

    model = config.model
    say(f"device    {devices.device_name()}: {backend.attention_impl} attention in {backend.dtype} ({backend.reason})")
    train_reason = f" ({backend.train_reason})" if backend.train_reason else ""
    say(f"kernels   {backend.train_impl} for norms, GELU, RoPE and loss{train_reason}")
    decode_reason = "" if backend.decode_reason == backend.reason else f" ({backend.decode_reason})"
    say("decode    " + (LATER if backend.decode_reason == LATER else f"{backend.decode_impl}{decode_reason}"))
    if backend.mesh is not None:
        say(f"mesh      {mesh.describe(backend.mesh)}")
    say(f"config    {config.hash}; unlike base: {', '.join(chosen(config)) or 'nothing'}")
    train, valid = stats["train"], stats["valid"]
    say(
        f"data      {stats['corpus']}: {train['stories']:,} stories, {train['tokens']:,} tokens to train on; "
        f"{valid['stories']:,} stories held out; {stats['vocab_size']:,} pieces"
    )
    for line in statistics.lines(train):
        say(f"          {line}")
    parts = accounting.params(model)
    table = rich.table.Table("parameters", "", "share", box=None, pad_edge=False)
    active = ("active",) if model.n_moe_layers else ()
    for name in ("embedding", "position", "attention", "ffn", "norms", "total", *active):
        table.add_row(name, f"{parts[name]:>12,}", f"{parts[name] / parts['total']:>6.1%}")
    console.print(table, highlight=False)
    if model.n_moe_layers:
        for what, n_tokens in _token_counts(config).items():
            choice = moe_choice.choose(model, n_tokens, backend)
            grouped = f" ({backend.grouped_impl})" if choice.impl == "grouped" else ""
            line = f"{choice.impl}{grouped} in {what}, {n_tokens:,} tokens at a time: {choice.reason}"
            kernels = what != "training" and n_tokens <= MAX_ROWS and backend.platform == "gpu"
            if kernels and packs_experts(model):
                line = f"three kernels a layer in {what} where decode goes by Pallas; else {line}"
            say(f"experts   {line}")
    saved = 1 - accounting.kv_bytes(model) / accounting.mha_kv_bytes(model)
    say(
        f"per token {accounting.flops_per_token(model, config.train.seq_len):,} training FLOPs; "
        f"{accounting.kv_bytes(model):,} bytes of KV cache in bfloat16 (MHA {accounting.mha_kv_bytes(model):,}: "
        f"{saved:.1%} saved)"
    )


def _token_counts(config: Config) -> dict[str, int]:
    train = config.train
    tokens = train.batch_size // train.microbatches * train.seq_len
    return {"training": tokens, "decode of one sequence": 1, "decode of 128": 128}


_EMBEDDED = ("data.stories", "data.valid_stories", "data.seed")


def chosen(config: Config) -> list[str]:
    """ "knob=value" for what differs from configs/base.py by choice: values that follow from others are left out, and
    those of the embedded stories where a file is read instead."""
    raw = load_config_dict("base").to_dict()
    lines = []
    for name, _, value in differences(load_config("base"), config):
        if config.data.path and name in _EMBEDDED:
            continue
        section, _, field = name.rpartition(".")
        default = raw[section][field] if section else raw[field]
        with contextlib.suppress(UserError):
            if flatten(replace(config, **{name: default}))[name] == value:
                continue  # derived: base's own setting gives the same here
        lines.append(f"{name}={value!r}")
    return lines

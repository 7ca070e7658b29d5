"""What may change between the start of a run and its resumption, and what starting from other weights needs."""

import shlex
from typing import Any

import jax

from mla_jax import config_derive
from mla_jax.config import Config
from mla_jax.config_files import base_config
from mla_jax.errors import UserError
from mla_jax.typed import build

# Prefixes of knobs that may change: they alter speed, schedule, reporting or what is kept, not what the weights,
# the optimizer state and the data order mean.
_FREE = (
    "model.dtype",
    "model.attention_impl",
    "model.train_impl",
    "model.decode_impl",
    "model.scan_layers",
    "model.moe_impl",
    "model.grouped_impl",
    "model.router_bias_rate",
    "model.router_bias_rule",
    "model.router_aux_weight",
    "model.router_sequence_weight",
    "model.router_z_weight",
    "model.dropout",
    "model.init",
    "data.path",  # the content is held to its fingerprint instead
    "data.valid_path",
    "data.cache_dir",
    "data.threads",
    "tokenizer.path",
    "tokenizer.train_bytes",
    "train.steps",
    "train.microbatches",
    "train.remat",
    "train.loss_chunks",
    "train.log_every",
    "train.eval_every",
    "train.on_nonfinite",
    "train.bad_loss",
    "train.bad_grad_norm",
    "train.tensorboard",
    "train.profile_steps",
    "mesh.",
    "optim.learning_rate",
    "optim.warmup_steps",
    "optim.decay_steps",
    "optim.final_fraction",
    "optim.schedule",
    "optim.decay_fraction",
    "optim.muon_dtype",
    "optim.qk_clip",
    "optim.adamw_fraction",
    "optim.weight_decay",
    "optim.clip_norm",
    "eval.",
    "checkpoint.",
    "sample.",
    "judge.",
    "bench.",
    "init_from",
)


def flatten(config: Config) -> dict[str, Any]:
    """{"model.d_model": 512, ...}"""
    flat = {}
    for section, values in config.to_dict().items():
        if isinstance(values, dict):
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            flat[section] = values
    return flat


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """(knob, old value, new value) wherever they differ."""
    before, after = flatten(old), flatten(new)
    return [(name, before[name], after[name]) for name in after if before[name] != after[name]]


def check_resumable(saved: Config, wanted: Config, workdir: str) -> list[str]:
    """The allowed changes, as lines for the log. Raises UserError naming every change that is not allowed.

    Those that follow from others (latent widths from model.attention, say) are counted, and the first two named.
    """
    changed = differences(saved, wanted)
    refused = [c for c in changed if not c[0].startswith(_FREE)]
    if refused:
        causes = _causes(saved, wanted, [name for name, _, _ in refused])
        named = [c for c in refused if c[0] in causes]
        listed = ", ".join(f"{name} (was {old!r}, now {new!r})" for name, old, new in named)
        rest = [name for name, _, _ in refused if name not in causes]
        if rest:
            others = ", ".join(rest[:2]) + (f" and {len(rest) - 2} more" if len(rest) > 2 else "")
            listed += f", from which {others} follow{'s' if len(rest) == 1 else ''}"
        flags = " ".join(shlex.quote(f"--config.{name}={old}") for name, old, _ in named)
        remedy = f"give {flags} as before" if len(named) <= _FLAGS_SHOWN else "give the old values"
        raise UserError(
            f"--workdir is {workdir!r}, whose checkpoint cannot be resumed with another {listed}: "
            f"{remedy}, or use another --workdir."
        )
    return [f"{name}: {old!r} -> {new!r}" for name, old, new in changed]


_FLAGS_SHOWN = 4  # more of them are another config, not a forgotten flag


def _causes(saved: Config, wanted: Config, refused: list[str]) -> list[str]:
    """Those of the differing knobs `refused` that make the others what they are, in both configs, left at defaults."""
    base = base_config()
    derived = [name for name in refused if name in config_derive.DERIVED]
    defaults = {name: base.model[name.removeprefix("model.")] for name in derived}

    def make_the_rest(causes: list[str]) -> bool:
        for config in (saved, wanted):
            values = flatten(config)
            content = wanted.to_dict()
            for name in refused:
                section, _, field = name.rpartition(".")
                content[section][field] = values[name] if name in causes else defaults[name]
            made = flatten(config_derive.resolve(build(Config, content, prefix="")))
            if any(made[name] != values[name] for name in refused):
                return False
        return True

    causes = list(refused)
    for name in reversed(derived):  # widths before the forms that they belong to, as configs/base.py has them
        fewer = [cause for cause in causes if cause != name]
        if make_the_rest(fewer):
            causes = fewer
    return causes


def check_steps(wanted: Config, done: int, finished: bool) -> None:
    """Raise UserError when a run that is not `finished` has more steps `done` than wanted.

    It would be reported as finished with weights from the middle of another schedule.
    """
    if wanted.train.steps < done and not finished:
        raise UserError(
            f"train.steps is {wanted.train.steps}, but this run stands at step {done} and is not finished: give at "
            f"least {done}, start a new --workdir, or sample from it as it is."
        )


def check_vocabulary(wanted: Config, data: dict[str, Any], pieces: int) -> None:
    """Raise UserError when `tokenizer.vocab_size` is not what the run began with; `data` is the run's data.json."""
    if _asked_for(wanted, data, pieces):
        return
    raise UserError(
        f"tokenizer.vocab_size is {wanted.tokenizer.vocab_size}, but the tokenizer of this run was learned with "
        f"{data.get('stats', {}).get('vocab_ceiling') or pieces} and its weights are bound to it: give the old value, "
        "or start a new --workdir."
    )


def other_vocabulary(wanted: Config, data: dict[str, Any], pieces: int) -> str:
    """What to say, if anything, when a run starts from weights whose tokenizer has another size than `wanted`.

    No error: the default of tokenizer.vocab_size (8192 for files) need not be that of the run whose weights are taken.
    """
    if _asked_for(wanted, data, pieces):
        return ""
    return (
        f"tokenizer.vocab_size is {wanted.tokenizer.vocab_size} and has no effect: the weights of "
        f"init_from={wanted.init_from} are bound to their own tokenizer, of {pieces} pieces."
    )


def _asked_for(wanted: Config, data: dict[str, Any], pieces: int) -> bool:
    """Whether `tokenizer.vocab_size` is what the tokenizer of a run was learned with, or has.

    The config holds the pieces that were learned, which may be fewer than were asked for: data.json has the ceiling.
    """
    asked, given = data.get("stats", {}).get("vocab_ceiling"), wanted.tokenizer.vocab_size
    return given in (pieces, asked) or (asked is None and given > pieces)


def check_same_shapes(source: str, found: Any, wanted: Any) -> None:
    """Raise UserError, naming the differences, unless two parameter trees have the same names and shapes."""

    def named(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}

    have, want = named(found), named(wanted)
    wrong = [
        f"{name} {have.get(name, 'absent')} instead of {want.get(name, 'absent')}"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if wrong:
        listed = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise UserError(
            f"init_from is {source!r}, whose weights do not fit this model ({listed}): use the same --config.model."
        )

"""Flags of the command line and their dispatch to the modes. Every refusal is a UserError."""

import sys
from typing import Any

import rich.console
from absl import flags, logging
from ml_collections import config_flags

from mla_jax import config_files
from mla_jax.config import Config, from_config_dict, suggest
from mla_jax.errors import UserError

MODES = ("train", "eval", "sample")


def run(argv: list[str]) -> int:
    """Parse, check and dispatch; returns the exit code."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    values = _parse(argv)
    mode = values["mode"].value
    if mode == "train":
        return _train(values)
    _only_for_train(values, argv, mode)
    return _evaluate(values) if mode == "eval" else _sample(values)


def define_flags() -> flags.FlagValues:
    """A fresh set of flags (absl's global one would remember an earlier command line)."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str, **more: Any) -> None:
        kind(name, default, text, flag_values=values, **more)

    config_flags.DEFINE_config_file("config", None, "a config file or the bare name of one", flag_values=values)
    define(flags.DEFINE_multi_string, "workdir", [], "the run folder; eval takes several")
    flags.DEFINE_enum("mode", "train", MODES, "what to do", flag_values=values)
    define(flags.DEFINE_multi_string, "prompt", [], "sample: how a story begins; may be repeated")
    define(flags.DEFINE_integer, "num_samples", None, "sample: stories per prompt")
    define(flags.DEFINE_integer, "max_new_tokens", None, "sample: at most so many tokens after the prompt")
    define(flags.DEFINE_float, "temperature", None, "sample: 0 is greedy")
    define(flags.DEFINE_integer, "top_k", None, "sample: draw from the k likeliest tokens; 0 = from all")
    define(flags.DEFINE_integer, "seed", None, "sample: seed of the first row")
    define(flags.DEFINE_integer, "step", None, "sample, eval: the checkpoint to read (default: the best)")
    define(flags.DEFINE_string, "data.path", None, "eval: a file of stories instead of the held-out part")
    define(flags.DEFINE_boolean, "help", False, "show this help")
    return values


def _parse(argv: list[str]) -> flags.FlagValues:
    values = define_flags()
    if any(a in ("--help", "-help", "-h", "--h", "-?") for a in argv[1:]):
        print(f"{__import__('mla_jax.main').main.__doc__}\n{values.get_help()}")
        raise SystemExit(0)
    argv = _named_config(argv)
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UserError(_flag_sentence(error, values)) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"the command line cannot be read: {text[:300]}.") from None
    if len(rest) > 1:
        raise UserError(f"the argument {rest[1]!r} belongs to no flag: write --flag=value, with quotes around spaces.")
    return values


def _flag_sentence(error: flags.Error, values: flags.FlagValues) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        known = [name for name in values if name != "help"]
        return f"--{error.flagname} is not a flag{suggest(error.flagname, known)}: --help lists them."
    return " ".join(str(error).split()).removesuffix(".").replace("flag --", "--") + "."


def _named_config(argv: list[str]) -> list[str]:
    """argv with `--config NAME` as `--config=PATH`, and every --config.KNOB known to exist."""
    argv, location = list(argv), None
    for i, argument in enumerate(argv):
        if argument in ("--config", "-config"):
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                raise UserError(
                    "--config has no value: give a config file or one of " + ", ".join(config_files.names()) + "."
                )
            location = argv[i + 1]
            path, argument_of_file = config_files.find(location)
            argv[i : i + 2] = [f"--config={path}" + ("" if argument_of_file is None else f":{argument_of_file}")]
            break
        if argument.startswith(("--config=", "-config=")):
            location = argument.split("=", 1)[1]
            path, argument_of_file = config_files.find(location)
            argv[i] = f"--config={path}" + ("" if argument_of_file is None else f":{argument_of_file}")
            break
    overrides = [a for a in argv if a.startswith("--config.")]
    if location is None:
        if overrides:
            raise UserError(
                f"{overrides[0]} changes a config, but there is no --config: add one, e.g. --config mla_rope."
            )
        return argv
    config = config_files.load_config_dict(location)  # also proves that it runs: absl would only load it lazily
    for i, argument in enumerate(argv):
        if argument.startswith("--config."):
            knob, equals, _ = argument.removeprefix("--config.").partition("=")
            config_files.check_knob(config, knob)
            if not equals and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
                raise UserError(f"{argument} has no value: write {argument}=VALUE.")
    return argv


def _train(values: flags.FlagValues) -> int:
    if values["config"].value is None:
        raise UserError("--config is missing: give a file or one of " + ", ".join(config_files.names()) + ".")
    config: Config = from_config_dict(values["config"].value)
    workdir = _one_workdir(values)
    for name in (
        "prompt",
        "num_samples",
        "max_new_tokens",
        "temperature",
        "top_k",
        "seed",
        "step",
        "data.path",
    ):
        if values[name].present:
            raise UserError(f"--{name} is for --mode sample or eval: for training set --config.{_TRAIN_KNOBS[name]}.")
    from mla_jax import compile_cache
    from mla_jax.train.loop import NonFiniteLoss, train

    compile_cache.enable()
    try:
        train(config, workdir)
    except NonFiniteLoss as error:
        print(f"mla_jax: {error}", file=sys.stderr)
        return 3
    return 0


_TRAIN_KNOBS = {
    "prompt": "sample.prompts",
    "num_samples": "sample.num_samples",
    "max_new_tokens": "sample.max_new_tokens",
    "temperature": "sample.temperature",
    "top_k": "sample.top_k",
    "seed": "train.seed",
    "step": "train.steps",
    "data.path": "data.path",
}


def _evaluate(values: flags.FlagValues) -> int:
    workdirs = values["workdir"].value
    if not workdirs:
        raise UserError("--workdir is missing: give the folder of a trained run.")
    from mla_jax import compile_cache, eval_mode

    compile_cache.enable()
    eval_mode.run(workdirs, values["data.path"].value, values["step"].value, rich.console.Console())
    return 0


def _sample(values: flags.FlagValues) -> int:
    workdir = _one_workdir(values)
    from mla_jax import compile_cache
    from mla_jax.sample import sample_mode

    compile_cache.enable()
    names = ("num_samples", "max_new_tokens", "temperature", "top_k", "seed")
    given = {name: values[name].value for name in names if values[name].value is not None}
    if values["prompt"].present:
        given["prompts"] = tuple(values["prompt"].value)
    sample_mode.run(workdir, given, values["step"].value, rich.console.Console())
    return 0


def _only_for_train(values: flags.FlagValues, argv: list[str], mode: str) -> None:
    if values["config"].value is not None:
        raise UserError(f"--config is for training; --mode {mode} reads the run folder's own config: leave it out.")


def _one_workdir(values: flags.FlagValues) -> str:
    workdirs = values["workdir"].value
    if len(workdirs) != 1 or not workdirs[0]:
        raise UserError(
            f"--workdir is given {len(workdirs)} times or empty; this mode needs it once: e.g. --workdir runs/x."
        )
    return workdirs[0]

"""The command line read by the table of flags (`cli_table`): every refusal is a UserError."""

import re
from typing import Any

from absl import flags

from mla_jax import cli_help, config_files
from mla_jax.cli_table import CONFIG, FLAGS, MODES
from mla_jax.errors import UserError
from mla_jax.typed import suggest

_ALL = {"config": CONFIG, **FLAGS}


def define_flags(argv: list[str]) -> flags.FlagValues:
    """A fresh set of flags for this argv (absl's global one would remember an earlier command line)."""
    values = flags.FlagValues()
    # sys_argv: it defines a flag for each --config.KNOB that it finds there, and would look into sys.argv.
    CONFIG.define("config", CONFIG.default, CONFIG.about, flag_values=values, sys_argv=argv)
    flags.DEFINE_enum("mode", "train", list(MODES), "what to do", flag_values=values)
    for name, flag in FLAGS.items():
        flag.define(name, flag.default, flag.about, flag_values=values)
    flags.DEFINE_boolean("help", False, "show this help", flag_values=values)
    return values


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line (argv[0] is the program). Raises UserError, or SystemExit(0) after --help."""
    asks = ("--help", "-help", "-h", "--h", "-?")
    if any(a in asks for a in argv[1:]):
        print(_help([a for a in argv if a not in asks]))
        raise SystemExit(0)
    values = flags.FlagValues()
    try:
        argv = _named_config(values.read_flags_from_files(argv, force_gnu=True))
        values = define_flags(argv)
        rest = values(argv)
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(_flag_sentence(error, values)) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"the command line cannot be read: {text[:300]}.") from None
    if len(rest) > 1:
        raise UserError(f"the argument {rest[1]!r} belongs to no flag: write --flag=value, with quotes around spaces.")
    return values


def _help(argv: list[str]) -> str:
    """Every knob of the --config given, or every flag of the --mode given, or what a newcomer wants to know first.

    Raises UserError where --config or --mode is given and the line could not be run: its help would be of another line.
    """
    named = {a.lstrip("-").partition("=")[0].partition(".")[0] for a in argv[1:] if a.startswith("-")}
    asks_for_names = argv[-1] in ("--config", "--mode")  # `--mode --help`: which are there?
    if asks_for_names or not named & {"config", "mode"}:
        return cli_help.overview(MODES, {mode: [f"--{name}" for name in flags_of(mode)] for mode in MODES})
    values = parse(argv)
    config, mode = values["config"].value, values["mode"].value
    if config is not None and "points" in config:
        mode = "study"
    elif config is not None:
        return cli_help.knobs_page(config)
    about = {f"--{name}": (_ALL[name].about, values[name].default) for name in flags_of(mode)}
    return cli_help.mode_page(mode, MODES[mode], about)


def _knob_of_that_name(name: str) -> str:
    """' (did you mean --config.train.steps?)' for "steps", '' where no knob is called so. Training's comes first."""
    knobs = config_files.knobs(config_files.load_config_dict("base"))
    found = [knob for knob in knobs if knob.rpartition(".")[2] == name]
    chosen = min(found, key=lambda knob: not knob.startswith("train."), default="")
    return f" (did you mean --config.{chosen}?)" if chosen else ""


def flags_of(mode: str) -> list[str]:
    """Names of the flags that a mode takes."""
    return [name for name, flag in _ALL.items() if mode in flag.modes]


def _flag_sentence(error: flags.Error, values: flags.FlagValues) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        if "." in error.flagname:
            return f"--{error.flagname} is not a flag: knobs of the config are set by --config.SECTION.KNOB=VALUE."
        near = suggest(error.flagname, values)
        if "mode" not in values or values["mode"].value == "train":
            near = _knob_of_that_name(error.flagname) or near
        return f"--{error.flagname} is not a flag{near}: --help lists them."
    text = " ".join(str(error).split()).removesuffix(".").removeprefix("ERROR:: ").replace("flag --", "--")
    flag, _, reason = text.partition(": ")
    name, equals, value = flag.partition("=")
    for words, rule in _RULES.items():
        if equals and words in reason:
            if choices := re.search(r"<(.*)>", reason):
                rule = f"be one of {choices[1].replace('|', ', ')}"
            what, shown, example = rule.partition("e.g. ")
            if shown:
                example = _usual(name) or example
            return f"{name} is {value!r}; it must {what}{shown}{example}."
    return f"{text}."


def _usual(flag: str) -> Any:
    """What configs/base.py has for the knob of --config.KNOB, also where it is a study's; None for other flags."""
    section, _, knob = flag.rpartition(".")
    base = config_files.load_config_dict("base")
    return base.get(section.rpartition(".")[2], {}).get(knob)


# How absl or Python refuse a flag's value, and what we say; what configs/base.py has stands in an example's place.
_RULES = {
    "could not convert string to float": "be a number: e.g. 0.5",
    "invalid literal for int()": "be a whole number: e.g. 5",
    "Non-boolean argument": "be true or false",
    "value should be one of <": "",
}


def _named_config(argv: list[str]) -> list[str]:
    """argv with `--config NAME` as `--config=PATH`, and every --config.KNOB known to exist."""
    argv = [f"-{a}" if a.startswith(("-config=", "-config.")) or a == "-config" else a for a in argv]
    locations = [i for i, a in enumerate(argv) if a == "--config" or a.startswith("--config=")]
    overrides = [i for i, a in enumerate(argv) if a.startswith("--config.")]
    if len(locations) > 1:
        raise UserError(f"--config is given {len(locations)} times: give it once.")
    if not locations:
        if overrides:
            raise UserError(
                f"{argv[overrides[0]]} changes a config, but there is no --config: for training add one, e.g. "
                "--config mla_rope; the other modes have flags of their own, which --help lists."
            )
        return argv
    location = _value(argv, locations[0], "give a config file or one of " + ", ".join(config_files.names()))
    config = config_files.load_config_dict(location)  # also proves that it runs: absl would only load it lazily
    for i in overrides:
        config_files.check_knob(config, argv[i].removeprefix("--config.").partition("=")[0])
        _value(argv, i, f"write {argv[i]}=VALUE")
    path, argument = config_files.find(location)
    joined = "=" in argv[locations[0]]
    argv[locations[0] : locations[0] + (1 if joined else 2)] = [
        f"--config={path}" + ("" if argument is None else f":{argument}")
    ]
    return argv


def _value(argv: list[str], index: int, remedy: str) -> str:
    """The value of the flag at `index`, as --flag=value or --flag value. Raises UserError when there is none."""
    name, equals, value = argv[index].partition("=")
    if equals:
        return value
    if index + 1 == len(argv) or argv[index + 1].startswith("--"):
        raise UserError(f"{name} has no value: {remedy}.")
    return argv[index + 1]


def check_mode(values: flags.FlagValues, mode: str) -> None:
    """Raise UserError for a flag that the mode would ignore."""
    if mode not in CONFIG.modes and values["config"].value is not None:
        raise UserError(
            f"--config is for training, studies and bench; --mode {mode} reads the run folder's own: leave it out."
        )
    for name, flag in FLAGS.items():
        if values[name].present and mode not in flag.modes:
            remedy = f"for training set --config.{flag.knob}" if mode == "train" and flag.knob else "leave it out"
            raise UserError(f"--{name} is for --mode {' or '.join(flag.modes)}, and this is {mode}: {remedy}.")

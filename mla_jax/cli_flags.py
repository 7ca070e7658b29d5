"""The flags of the command line: what there is, how it is read, which mode takes which. Refusals are UserErrors."""

import re
from typing import Any

from absl import flags
from ml_collections import config_flags

from mla_jax import cli_help, config_files
from mla_jax.errors import UserError
from mla_jax.typed import suggest

MODES = {  # what each does
    "train": "train a model by a config into a run folder; the same command goes on with an unfinished run",
    "eval": "losses of runs on held-out stories or a file, side by side",
    "sample": "write stories with a trained run",
    "export": "a run as a Hugging Face folder",
    "bench": "speed and memory of decoding and training",
    "study": "many runs by one study file, and their report",
    "judge": "have an LLM grade the stories of runs",
}


def define_flags(argv: list[str]) -> flags.FlagValues:
    """A fresh set of flags for this argv (absl's global one would remember an earlier command line)."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str, **more: Any) -> None:
        kind(name, default, text, flag_values=values, **more)

    text = "train, study, bench: a config file or the bare name of one; --config.KNOB=VALUE changes a knob of it"
    # sys_argv: it defines a flag for each --config.KNOB that it finds there, and would look into sys.argv.
    config_flags.DEFINE_config_file("config", None, text, flag_values=values, sys_argv=argv)
    define(flags.DEFINE_multi_string, "workdir", [], "the run folder; eval, judge and bench take several")
    flags.DEFINE_enum("mode", "train", list(MODES), "what to do", flag_values=values)
    define(flags.DEFINE_multi_string, "prompt", [], "sample: how a story begins; may be repeated")
    define(flags.DEFINE_integer, "num_samples", None, "sample: stories per prompt")
    define(flags.DEFINE_integer, "max_new_tokens", None, "sample, judge: at most so many tokens after the prompt")
    define(flags.DEFINE_float, "temperature", None, "sample, judge: 0 is greedy")
    define(flags.DEFINE_integer, "top_k", None, "sample, judge: draw from the k likeliest tokens; 0 = from all")
    define(flags.DEFINE_float, "top_p", None, "sample: draw from the likeliest tokens that hold this share; 1 = all")
    define(flags.DEFINE_float, "min_p", None, "sample: drop tokens below this share of the likeliest one; 0 = none")
    define(flags.DEFINE_float, "repetition_penalty", None, "sample: make tokens used before less likely; 1 = no")
    define(flags.DEFINE_multi_string, "stop", [], "sample: end a story before this string; may be repeated")
    define(flags.DEFINE_boolean, "stream", False, "sample: write stories as they come, one after the other")
    text = "sample, eval: type of the KV cache: auto, bfloat16, float32 or int8 (eval: read the text through it)"
    define(flags.DEFINE_string, "cache_dtype", None, text)
    define(flags.DEFINE_integer, "seed", None, "sample, judge: seed of the first row")
    define(
        flags.DEFINE_integer, "step", None, "sample, eval, judge, export: the checkpoint to read (default: the best)"
    )
    define(flags.DEFINE_string, "coordinator_address", None, "train, several processes: HOST:PORT of process 0")
    define(flags.DEFINE_integer, "num_processes", None, "train, several processes: how many; 1 = this one alone")
    define(flags.DEFINE_integer, "process_id", None, "train, several processes: this one's number, from 0")
    define(flags.DEFINE_integer, "init_timeout_s", 300, "train, several processes: how long to wait for the others")
    define(flags.DEFINE_string, "data.path", None, "eval: a file of stories instead of the held-out part")
    define(flags.DEFINE_boolean, "trace_experts", False, "sample: also write which experts each token went to")
    define(flags.DEFINE_integer, "fact_stories", 0, "eval: put the fact questions of so many embedded stories too")
    define(flags.DEFINE_string, "base_url", None, "judge: an OpenAI-compatible endpoint ending in /v1")
    define(flags.DEFINE_string, "judge_model", None, "judge: the judging model, by the endpoint's name")
    define(flags.DEFINE_string, "rubric", None, "judge: paper_a, paper_b or tinystories")
    define(flags.DEFINE_integer, "num_prompts", None, "judge: beginnings that each run completes")
    define(flags.DEFINE_boolean, "pairwise", None, "judge: also compare every two runs, in both orders")
    define(flags.DEFINE_float, "budget_usd", None, "judge: stop before spending more")
    define(flags.DEFINE_float, "price_in", None, "judge: US dollars per million tokens read")
    define(flags.DEFINE_float, "price_out", None, "judge: US dollars per million tokens written")
    define(flags.DEFINE_multi_string, "judge_knob", [], "judge: NAME=VALUE of any other knob of the judge section")
    define(flags.DEFINE_boolean, "yes", None, "judge: do not ask before spending")
    define(flags.DEFINE_string, "out", None, "export, bench: the folder to make; judge: of the study")
    define(flags.DEFINE_string, "dtype", None, "export: float32 (default) or bfloat16 weights")
    define(flags.DEFINE_boolean, "dry_run", False, "study: print the runs and their minutes, do nothing")
    define(flags.DEFINE_float, "max_minutes", None, "study, bench: stop cleanly after so many minutes")
    define(flags.DEFINE_boolean, "report_only", False, "study: write the report of the rows that there are")
    define(flags.DEFINE_integer, "sharing", 1, "study: so many processes like this one take turns on its device")
    define(flags.DEFINE_multi_string, "suite", [], "bench: kernels, decode, prefill, memory, train or peers; several")
    define(flags.DEFINE_boolean, "quick", False, "bench: tiny models and shapes, to see that it runs")
    define(flags.DEFINE_multi_string, "point", [], "bench: only the points of the grid so named; may be repeated")
    define(flags.DEFINE_string, "only", None, "bench: only measurements whose label has this in it; plain = no label")
    define(flags.DEFINE_string, "size", None, "bench: size of the built-in grid")
    define(flags.DEFINE_multi_integer, "batch", [], "bench: rows that decode together; may be repeated")
    define(flags.DEFINE_multi_integer, "context", [], "bench: positions of the cache; may be repeated")
    define(flags.DEFINE_boolean, "help", False, "show this help")
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
    # absl adds a line to the text of a flag that may be repeated; ours say so where it matters
    about = {f"--{name}": (values[name].help.partition(";\n")[0], values[name].default) for name in flags_of(mode)}
    return cli_help.mode_page(mode, MODES[mode], about)


def flags_of(mode: str) -> list[str]:
    """Names of the flags that a mode takes."""
    config = ["config"] if mode in _CONFIG_MODES else []
    return [*config, "workdir", *(name for name, (modes, _) in _FLAGS_OF_MODES.items() if mode in modes)]


def _flag_sentence(error: flags.Error, values: flags.FlagValues) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        if "." in error.flagname:
            return f"--{error.flagname} is not a flag: knobs of the config are set by --config.SECTION.KNOB=VALUE."
        known = [name for name in values if name != "help"]
        return f"--{error.flagname} is not a flag{suggest(error.flagname, known)}: --help lists them."
    text = " ".join(str(error).split()).removesuffix(".").removeprefix("ERROR:: ").replace("flag --", "--")
    flag, _, reason = text.partition(": ")
    name, equals, value = flag.partition("=")
    for words, rule in _RULES.items():
        if equals and words in reason:
            if choices := re.search(r"<(.*)>", reason):
                rule = f"be one of {choices[1].replace('|', ', ')}"
            return f"{name} is {value!r}; it must {rule}."
    return f"{text}."


# How absl or Python refuse a flag's value, and what we say.
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


_CONFIG_MODES = ("train", "study", "bench")  # the others read the run folder's own config

# Flags that not every mode reads: the modes that do, and the knob that training has in their place.
_FLAGS_OF_MODES = {
    "prompt": (("sample",), "sample.prompts"),
    "num_samples": (("sample",), "sample.num_samples"),
    "max_new_tokens": (("sample", "judge"), "sample.max_new_tokens"),
    "temperature": (("sample", "judge"), "sample.temperature"),
    "top_k": (("sample", "judge"), "sample.top_k"),
    "top_p": (("sample",), "sample.top_p"),
    "min_p": (("sample",), "sample.min_p"),
    "repetition_penalty": (("sample",), "sample.repetition_penalty"),
    "stop": (("sample",), "sample.stop"),
    "stream": (("sample",), ""),
    "cache_dtype": (("sample", "eval"), "sample.cache_dtype"),
    "seed": (("sample", "judge"), "train.seed"),
    "step": (("sample", "eval", "judge", "export"), "train.steps"),
    "coordinator_address": (("train",), ""),
    "num_processes": (("train",), ""),
    "process_id": (("train",), ""),
    "init_timeout_s": (("train",), ""),
    "base_url": (("judge",), ""),
    "judge_model": (("judge",), ""),
    "rubric": (("judge",), ""),
    "num_prompts": (("judge",), ""),
    "pairwise": (("judge",), ""),
    "budget_usd": (("judge",), ""),
    "price_in": (("judge",), ""),
    "price_out": (("judge",), ""),
    "yes": (("judge",), ""),
    "judge_knob": (("judge",), ""),
    "out": (("judge", "bench", "export"), ""),
    "dtype": (("export",), "model.dtype"),
    "suite": (("bench",), ""),
    "quick": (("bench",), ""),
    "point": (("bench",), ""),
    "only": (("bench",), ""),
    "size": (("bench",), ""),
    "batch": (("bench",), "train.batch_size"),
    "context": (("bench",), "model.max_len"),
    "data.path": (("eval",), "data.path"),
    "fact_stories": (("eval",), "data.stories"),
    "dry_run": (("study",), ""),
    "max_minutes": (("study", "bench"), ""),
    "report_only": (("study",), ""),
    "sharing": (("study",), ""),
    "trace_experts": (("sample",), ""),
}


def check_mode(values: flags.FlagValues, mode: str) -> None:
    """Raise UserError for a flag that the mode would ignore."""
    if mode not in _CONFIG_MODES and values["config"].value is not None:
        raise UserError(
            f"--config is for training, studies and bench; --mode {mode} reads the run folder's own: leave it out."
        )
    for name, (modes, knob) in _FLAGS_OF_MODES.items():
        if values[name].present and mode not in modes:
            remedy = f"for training set --config.{knob}" if mode == "train" and knob else "leave it out"
            raise UserError(f"--{name} is for --mode {' or '.join(modes)}, and this is {mode}: {remedy}.")

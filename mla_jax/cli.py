"""From a command line to its mode: which settings each of them is given. Every refusal is a UserError."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import rich.console
from absl import flags, logging

from mla_jax import cli_table, config_files
from mla_jax.cli_flags import check_mode, parse
from mla_jax.config import Config, from_config_dict
from mla_jax.errors import UserError


def run(argv: list[str]) -> int:
    """Parse, check and dispatch; returns the exit code."""
    flags.FLAGS.mark_as_parsed()  # absl's own, which are not ours: else its first warning says that they are missing
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    values = parse(argv)
    mode = values["mode"].value
    check_mode(values, mode)
    if mode == "train":
        return _train(values)
    modes = {"eval": _evaluate, "sample": _sample, "judge": _judge, "bench": _bench, "study": _study, "export": _export}
    return modes[mode](values)


def _train(values: flags.FlagValues) -> int:
    if values["config"].value is None:
        raise UserError("--config is missing: give a file or one of " + ", ".join(config_files.names()) + ".")
    if "points" in values["config"].value:
        raise UserError("--config is a study, and this is train: add --mode study, or name one of its configs.")
    config: Config = from_config_dict(values["config"].value)
    workdir = _one_workdir(values)
    from mla_jax import compile_cache, launchers
    from mla_jax.train.loop import NonFiniteLoss, train

    compile_cache.enable()
    names = ("coordinator_address", "num_processes", "process_id", "init_timeout_s")
    launch = launchers.launch_from(*(values[name].value for name in names))
    with _interrupt_exits(), launchers.joined(launch):
        try:
            train(config, workdir)
        except NonFiniteLoss as error:  # in all processes alike: they end together
            print(f"mla_jax: {error}", file=sys.stderr)
            return 3
    return 0


@contextlib.contextmanager
def _interrupt_exits() -> Iterator[None]:
    """Ctrl-C before (and after) the training loop, which has a handler of its own, ends the process at once.

    A KeyboardInterrupt would be lost where Python ignores exceptions, in a garbage collector's callback of JAX say,
    and the training would go on. Nothing is being written then that is not written atomically.
    """

    def leave(number: int, frame: Any) -> None:
        os.write(2, b"\nmla_jax: interrupted; nothing was left half-written.\n")
        os._exit(130)

    try:
        previous = signal.signal(signal.SIGINT, leave)
    except ValueError:  # not the main thread: Python allows no handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _evaluate(values: flags.FlagValues) -> int:
    workdirs = values["workdir"].value
    if not workdirs:
        raise UserError("--workdir is missing: give the folder of a trained run.")
    if values["data.path"].value == "":
        raise UserError("--data.path is empty: give a file of stories, or leave the flag out for the held-out part.")
    from mla_jax import compile_cache, eval_mode

    compile_cache.enable()
    eval_mode.run(
        workdirs,
        values["data.path"].value,
        values["step"].value,
        values["fact_stories"].value,
        rich.console.Console(),
        values["cache_dtype"].value,
    )
    return 0


def _sample(values: flags.FlagValues) -> int:
    workdir = _one_workdir(values)
    from mla_jax import compile_cache
    from mla_jax.sample import sample_mode

    compile_cache.enable()
    names = ("num_samples", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    given = {name: values[name].value for name in (*names, "cache_dtype") if values[name].value is not None}
    if values["prompt"].present:
        given["prompts"] = tuple(values["prompt"].value)
    if values["stop"].present:
        given["stop"] = tuple(values["stop"].value)
    stream, trace_experts = values["stream"].value, values["trace_experts"].value
    sample_mode.run(workdir, given, values["step"].value, rich.console.Console(), trace_experts, stream)
    return 0


def _judge(values: flags.FlagValues) -> int:
    workdirs = values["workdir"].value
    if not workdirs:
        raise UserError("--workdir is missing: give the folder of a trained run, or several.")
    from mla_jax import compile_cache
    from mla_jax.judge import judge_mode
    from mla_jax.judge.settings import knobs

    compile_cache.enable()
    given = knobs(values["judge_knob"].value)
    given |= _given(values, "judge")
    judge_mode.run(workdirs, given, values["out"].value, values["step"].value, rich.console.Console())
    return 0


def _study(values: flags.FlagValues) -> int:
    from mla_jax.study import grid, study_mode

    if values["config"].value is None:
        raise UserError(
            "--config is missing: give a study file or one of " + ", ".join(config_files.study_names()) + "."
        )
    study = grid.from_config_dict(values["config"].value)
    max_minutes, workdirs = values["max_minutes"].value, values["workdir"].value
    if max_minutes is not None and not max_minutes > 0:
        raise UserError(f"--max_minutes is {max_minutes}; it must be above 0: leave it out for no limit.")
    if values["sharing"].value < 1:
        raise UserError(
            f"--sharing is {values['sharing'].value}; it must be 1 or more: leave it out for a device alone."
        )
    given = [name for name in ("dry_run", "report_only", "rows_only") if values[name].value]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} are given together: choose one.")
    if values["dry_run"].value:
        study_mode.dry_run(study, _one_workdir(values) if workdirs else None, rich.console.Console())
        return 0
    workdir = _one_workdir(values)
    if values["report_only"].value:
        study_mode.report_only(study, workdir, rich.console.Console())
        return 0
    from mla_jax import compile_cache

    compile_cache.enable()
    sharing, rows_only = values["sharing"].value, values["rows_only"].value
    return study_mode.run(study, workdir, max_minutes, rich.console.Console(), sharing, rows_only)


def _export(values: flags.FlagValues) -> int:
    workdir = _one_workdir(values)
    from mla_jax.interop import export_mode

    names = ("out", "step", "dtype")
    export_mode.run(workdir, *(values[name].value for name in names), rich.console.Console())
    return 0


def _bench(values: flags.FlagValues) -> int:
    from mla_jax import compile_cache
    from mla_jax.bench import bench_mode

    compile_cache.enable()
    config = None if values["config"].value is None else from_config_dict(values["config"].value)
    given = _given(values, "bench")
    given = {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
    if "batches" in given:
        given["peer_batches"] = given["batches"]
    bench_mode.run(
        values["suite"].value or ["decode"],
        config,
        values["workdir"].value,
        given,
        values["quick"].value,
        values["out"].value,
        bench_mode.Choice(values["point"].value, values["only"].value),
        rich.console.Console(),
    )
    return 0


def _given(values: flags.FlagValues, section: str) -> dict[str, Any]:
    """Fields of the config's section `bench` or `judge` that flags set."""
    return {field: values[name].value for name, field in cli_table.settings(section).items() if values[name].present}


# Mode -> what its one --workdir is.
_FOLDERS = {
    "train": "the folder to train in, e.g. --workdir runs/mla_rope",
    "study": "the folder of the study, e.g. --workdir studies/a",
    "sample": "the folder of a trained run, e.g. --workdir runs/mla_rope",
    "export": "the folder of a trained run, e.g. --workdir runs/mla_rope",
}


def _one_workdir(values: flags.FlagValues) -> str:
    workdirs = values["workdir"].value
    if len(workdirs) > 1:
        raise UserError(f"--workdir is given {len(workdirs)} times; this mode takes it once: give one folder.")
    if not workdirs or not workdirs[0]:
        raise UserError(f"--workdir is missing or empty: give {_FOLDERS[values['mode'].value]}.")
    return workdirs[0]

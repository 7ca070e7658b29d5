"""`--mode judge`: stories of one or several runs, graded by an LLM behind an OpenAI-compatible endpoint."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console

from mla_jax import runs
from mla_jax.judge.folders import judge_run_folders
from mla_jax.judge.machine import score_stories
from mla_jax.terminal import say


def run(
    workdirs: Sequence[str], given: dict[str, Any], out: str | None, step: int | None, console: rich.console.Console
) -> Path:
    """Sample, judge and report. `given` overrides fields of the first run's `config.judge`; returns report.md's path.

    The machine checker's scores stand beside the judge's; it knows facts where the runs learned the embedded stories.
    """
    configs = [runs.read_config(runs.existing(workdir)) for workdir in workdirs]
    own = configs[0].judge
    if "num_prompts" in given and "builtin_prompts" not in given:  # fewer prompts, in the same proportion
        share = own.builtin_prompts / max(own.num_prompts, 1)
        given = given | {"builtin_prompts": min(own.builtin_prompts, int(share * max(given["num_prompts"], 0)))}
    settings = dataclasses.replace(own, **given)
    of_world = all(not config.data.path for config in configs)
    report = judge_run_folders(
        workdirs,
        settings,
        Path(out) if out else None,
        step,
        command=shlex.join(["mla-jax", *sys.argv[1:]]),
        checker=functools.partial(score_stories, of_world=of_world),
    )
    say(console, f"report      {report}")
    return report

"""`--mode study`: a whole study in one folder, as far as time allows, and its report."""

import json
from pathlib import Path

import rich.console

from mla_jax import devices, places
from mla_jax.data import sources
from mla_jax.data.corpus import open_corpus
from mla_jax.errors import UserError
from mla_jax.files import write_text
from mla_jax.study import report
from mla_jax.study.grid import Study
from mla_jax.study.plan import cost_model, describe, plan
from mla_jax.study.results import collect
from mla_jax.study.rows import gather
from mla_jax.terminal import say


def dry_run(study: Study, workdir: str | None, console: rich.console.Console) -> None:
    """Print the plan: every run, its minutes on the study's device, and whether a row of it is there.

    Raises UserError for files of stories that are not there, and for a folder that the study could not be done in.
    Nothing is downloaded.
    """
    rows = gather(None if workdir is None else _checked(study, workdir))
    cost, made = cost_model(study, rows.by_key.values()), plan(study, rows)
    for task in made.tasks[:1]:  # the data of all
        if not any(map(sources.on_hub, (task.config.data.path, task.config.data.valid_path))):
            open_corpus(task.config)
    text = describe(study, made, rows, cost, devices.device_name())
    say(console, text)


def report_only(study: Study, workdir: str, console: rich.console.Console) -> None:
    """Write the report from rows alone (of the folder and of docs/results/rows). Raises UserError without any."""
    folder = _checked(study, workdir)
    rows = gather(folder)
    if not collect(study, rows).rows:
        unreadable = " that can be used (the others are named above)" if rows.unreadable else ""
        raise UserError(
            f"--workdir is {workdir!r}, but neither there nor in docs/results/rows are rows of study {study.name}"
            f"{unreadable}: leave out --report_only to train them."
        )
    _claim(study, folder)
    path = report.write(study, rows, folder)
    say(console, f"report      {path}")


def run(
    study: Study,
    workdir: str,
    max_minutes: float | None,
    console: rich.console.Console,
    sharing: int = 1,
    rows_only: bool = False,
) -> int:
    """Do what is missing, then write the report. Exit code 0 when stopped or complete, 1 when a run failed.

    sharing: how many processes take turns on this one's device. rows_only: leave the report out; of several processes
    each would write the same one, while others still evaluate.
    """
    from mla_jax.study.runner import Runner

    folder = _checked(study, workdir)
    runner = Runner(study, folder, float("inf") if max_minutes is None else max_minutes, console, sharing)
    runner.prepare()
    _claim(study, folder)
    outcome = runner.run()
    rows = gather(folder)
    lines = [f"{outcome.done} runs done, {outcome.left} to go"]
    if outcome.stopped:
        lines[0] += f"; stopped by {outcome.stopped}. The same command goes on."
    lines += [f"FAILED {name}: {error} (logs/{name}.txt)" for name, error in outcome.failed.items()]
    if not rows_only and collect(study, rows).rows:
        lines.append(f"report      {report.write(study, rows, folder)}")
    for line in lines:
        say(console, line)
    return 1 if outcome.failed else 0


def _checked(study: Study, workdir: str) -> Path:
    """The study's folder, which need not exist yet. Raises UserError for one that belongs to something else."""
    folder, about = Path(workdir), Path(workdir) / "study.json"
    names = places.names_in(folder, "--workdir")
    places.check_for_checkpoints(folder, "--workdir")
    if any(not name.startswith(".") for name in names):
        try:
            name = json.loads(about.read_text(encoding="utf-8"))["study"] if about.is_file() else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "strerror", None) or "study.json in it is damaged"
            raise UserError(
                f"--workdir is {workdir!r}, which cannot be used ({reason}): give another folder."
            ) from None
        if name != study.name:
            other = f"the study {name}" if name else "something else than a study"
            raise UserError(f"--workdir is {workdir!r}, which holds {other}: give a new or empty folder.")
    places.writable(folder, "--workdir")
    return folder


def _claim(study: Study, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "study.json", json.dumps({"study": study.name}) + "\n")

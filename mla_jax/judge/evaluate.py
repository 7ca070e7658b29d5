"""A judged study from end to end: sample, save, estimate, judge, report."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_jax.cache_root import cache_root
from mla_jax.errors import UserError
from mla_jax.judge import controls, judging, store, study_folder, tasks
from mla_jax.judge.client import JudgeClient, resolve_key
from mla_jax.judge.progress import JudgeProgress, say
from mla_jax.judge.report import write_report
from mla_jax.judge.settings import JudgeSettings, validate
from mla_jax.judge.study_folder import RunToJudge

# stories -> one {measure: number} each, e.g. of the machine checker
Checker = Callable[[list[str]], list[dict[str, float]]]


def run(
    settings: JudgeSettings,
    runs: Sequence[RunToJudge],
    out: Path,
    command: str = "",
    checker: Checker | None = None,
    confirm: Callable[[str], bool] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """Judges `runs` into the folder `out`, or goes on where an earlier call stopped.

    Args:
      command: the command line, for the report and the result rows; default: this process's.
      checker: scores that need no LLM, reported beside the judge's.
      confirm: asked with the estimate before anything is spent, unless `settings.yes`; default: a question
        on the terminal.

    Returns:
      Path of the report (report.md). It is written also when the budget ran out, and says so.

    Raises:
      UserError: bad settings, no or a wrong key, unreachable server, unknown model, a folder of another
        study. Before the first sample is drawn nothing is written; afterwards everything so far is kept.
    """
    validate(settings)
    command = _without_secrets(command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), settings)
    study_folder.check_names(runs)
    study = study_folder.identity(settings, runs)
    study_folder.check_same(out, study)
    client = None
    if not (out / "stories.jsonl").exists():
        held_out = study_folder.shared_held_out(runs)
        control_rows = controls.build_controls(held_out, settings.num_controls, settings.seed)
        client = _connect(settings, environment)
        study_folder.check_place(out)
        study_folder.save_stories(out, study | {"notes": client.notes}, runs, held_out, control_rows, settings, command)
    stories = study_folder.read_stories(out)
    if checker is not None and not (out / "checker.jsonl").exists():
        _run_checker(out / "checker.jsonl", stories, checker)
    plan = tasks.plan(stories, settings)
    with store.JudgementFile(out) as file:
        todo = [task for task in plan if task.id not in file.done]
        say(file.notes)
        if todo:
            client = client or _connect(settings, environment)
            _judge(stories, todo, settings, client, file, len(plan), confirm)
        return write_report(out, resamples=settings.resamples, planned=len(plan), command=command)


def _without_secrets(command: str, s: JudgeSettings) -> str:
    """The command line with the endpoint's address as it may be shown: it is written to disk."""
    for shown in (s.base_url, shlex.quote(s.base_url)):
        command = command.replace(shown, s.public_url()) if shown.strip("'") else command
    return command


def _connect(s: JudgeSettings, environment: Mapping[str, str]) -> JudgeClient:
    """A client whose key, address and model have been tried; UserError when they are no good."""
    key = resolve_key(s, dict(environment))
    probe = JudgeClient(s, key)

    async def check() -> None:
        try:
            await probe.check()
        finally:
            await probe.aclose()

    judging.run_async(check())
    return JudgeClient(s, key, like=probe)


def _judge(
    stories: list[dict[str, Any]],
    todo: list[tasks.Task],
    s: JudgeSettings,
    client: JudgeClient,
    file: store.JudgementFile,
    planned: int,
    confirm: Callable[[str], bool] | None,
) -> None:
    said = len(client.notes)
    cache = store.ReplyCache(Path(s.cache_dir).expanduser() if s.cache_dir else cache_root() / "judge")
    try:
        say([cache.note, *client.notes])
        _confirm(judging.estimate(stories, todo, s, cache).sentence(s), s, confirm)
        with JudgeProgress(len(todo), file.spent_usd) as progress:
            ended = judging.judge(stories, todo, s, client, file, cache, progress.row)
        if ended == "budget":
            say(
                [
                    f"stopped at the budget: {len(file.done)} of {planned} judgements made, "
                    f"judge.budget_usd is {s.budget_usd:g}; the same command with a larger one continues."
                ]
            )
    except KeyboardInterrupt:
        say([f"stopped: {len(file.done)} of {planned} judgements are kept; the same command continues."])
        raise
    finally:
        say(client.notes[said:])
        cache.close()


def _run_checker(path: Path, stories: list[dict[str, Any]], checker: Checker) -> None:
    scores = checker([story["text"] for story in stories])
    rows = [{"id": st["id"], "scores": sc} for st, sc in zip(stories, scores, strict=True)]
    store.write_rows(path, rows)


def _confirm(question: str, s: JudgeSettings, confirm: Callable[[str], bool] | None) -> None:
    say([question])
    if s.yes:
        return
    if confirm is None:
        if not sys.stdin.isatty():
            raise UserError(
                "nobody can be asked whether to go on (no terminal): add --yes to judge without a question."
            )
        go = input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    else:
        go = confirm(question)
    if not go:
        raise UserError("not judged, as you said; the stories are saved, and the same command continues.")

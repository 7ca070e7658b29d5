"""A judged study from end to end: sample, save, estimate, judge, report."""

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_jax.cache_root import cache_root
from mla_jax.errors import UserError
from mla_jax.judge import controls, judging, store, tasks
from mla_jax.judge.client import JudgeClient, resolve_key
from mla_jax.judge.progress import JudgeProgress
from mla_jax.judge.prompts import build_prompts
from mla_jax.judge.report import write_report
from mla_jax.judge.rubric import get_rubric
from mla_jax.judge.settings import JudgeSettings, validate

FORMAT = 1
# prompts -> completions (without the prompt): Sampler.generate with keywords max_new_tokens, temperature,
# top_k, seed
Generate = Callable[..., list[str]]
# stories -> one {measure: number} each, e.g. of the machine checker
Checker = Callable[[list[str]], list[dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class RunToJudge:
    """One run folder, opened. `facts` of it go into the result rows and tell whether a continued study is
    the same.
    """

    name: str
    generate: Generate
    held_out: Sequence[str]
    config_hash: str = ""
    data_fingerprint: str = ""
    tokenizer_sha256: str = ""
    device: str = ""
    step: int = -1

    def facts(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("generate", "held_out")
        }


def shared_held_out(runs: Sequence[RunToJudge]) -> list[str]:
    """Stories that every run held out: a story in the training data of one of them would favour it."""
    common = set(runs[0].held_out).intersection(*(run.held_out for run in runs[1:]))
    return [story for story in dict.fromkeys(runs[0].held_out) if story in common]


def collect_samples(runs: Sequence[RunToJudge], prompts: Sequence[str], s: JudgeSettings) -> list[dict[str, Any]]:
    """Story rows: `stories_per_prompt` completions of every prompt by every run, same seeds and settings
    for all.

    Raises:
      UserError: a sampler that returns another number of stories than it got prompts.
    """
    rows = []
    for run in runs:
        for index in range(s.stories_per_prompt):
            completions = run.generate(
                list(prompts),
                max_new_tokens=s.max_new_tokens,
                temperature=s.temperature,
                top_k=s.top_k,
                # the sampler draws row i with seed + i: no two stories of a run share their noise
                seed=s.seed + index * len(prompts),
            )
            if len(completions) != len(prompts):
                raise UserError(
                    f"the sampler of run {run.name!r} gave {len(completions)} stories for {len(prompts)} "
                    "prompts: every prompt needs exactly one."
                )
            rows += [
                controls.story_row(run.name, prompt, completion, index)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
    return rows


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
    _check_names(runs)
    study = _study(settings, runs)
    _check_same_study(out, study)
    client = None
    if not (out / "stories.jsonl").exists():
        held_out = shared_held_out(runs)
        control_rows = controls.build_controls(held_out, settings.num_controls, settings.seed)
        client = _connect(settings, environment)
        _make(out)
        _save_stories(out, study | {"notes": client.notes}, runs, held_out, control_rows, settings, command)
    stories = _read_stories(out)
    if checker is not None and not (out / "checker.jsonl").exists():
        _run_checker(out / "checker.jsonl", stories, checker)
    plan = tasks.plan(stories, settings)
    with store.JudgementFile(out) as file:
        todo = [task for task in plan if task.id not in file.done]
        _say(file.notes)
        if todo:
            client = client or _connect(settings, environment)
            _judge(stories, todo, settings, client, file, len(plan), confirm)
        return write_report(out, resamples=settings.resamples, planned=len(plan), command=command)


def _without_secrets(command: str, s: JudgeSettings) -> str:
    """The command line with the endpoint's address as it may be shown: it is written to disk."""
    for shown in (s.base_url, shlex.quote(s.base_url)):
        command = command.replace(shown, s.public_url()) if shown.strip("'") else command
    return command


def _make(out: Path) -> None:
    """Make the study's folder before anything is sampled for it. Raises UserError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out is {str(out)!r}, which cannot be made ({error.strerror}): give another folder."
        ) from None


def _read_stories(out: Path) -> list[dict[str, Any]]:
    """The study's stories. Raises UserError when some that were saved are gone."""
    stories = list(store.read_rows(out / "stories.jsonl"))
    saved = json.loads((out / "judge.json").read_text()).get("stories", len(stories))
    if len(stories) != saved:
        raise UserError(
            f"{out / 'stories.jsonl'} has {len(stories)} of the {saved} stories that were saved: copy the folder "
            "again, or choose another output folder."
        )
    return stories


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
        _say([cache.note, *client.notes])
        _confirm(judging.estimate(stories, todo, s, cache).sentence(s), s, confirm)
        with JudgeProgress(len(todo), file.spent_usd) as progress:
            ended = judging.judge(stories, todo, s, client, file, cache, progress.row)
        if ended == "budget":
            _say(
                [
                    f"stopped at the budget: {len(file.done)} of {planned} judgements made, "
                    f"judge.budget_usd is {s.budget_usd:g}; the same command with a larger one continues."
                ]
            )
    except KeyboardInterrupt:
        _say([f"stopped: {len(file.done)} of {planned} judgements are kept; the same command continues."])
        raise
    finally:
        _say(client.notes[said:])
        cache.close()


def _study(s: JudgeSettings, runs: Sequence[RunToJudge]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "settings": s.study(),
        "rubric_fingerprint": get_rubric(s.rubric).fingerprint(),
        "runs": [run.facts() for run in runs],
    }


def _check_names(runs: Sequence[RunToJudge]) -> None:
    names = [run.name for run in runs]
    if not names:
        raise UserError("no run to judge: give --workdir, once or several times.")
    for name in names:
        if names.count(name) > 1 or name.startswith(controls.PREFIX):
            raise UserError(f"the run name {name!r} is taken twice or reserved: rename its folder.")


def _check_same_study(out: Path, study: dict[str, Any]) -> None:
    path = out / "judge.json"
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text())
        differences = _differences(old, study)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: remove the folder or choose another output folder.") from None
    if differences:
        raise UserError(
            f"{out} holds another study ({'; '.join(differences[:4])}): choose another output folder, or "
            "remove it to judge anew."
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = [
        f"judge.{k} was {old['settings'].get(k)!r} and is {v!r}"
        for k, v in new["settings"].items()
        if old["settings"].get(k) != v
    ]
    for key in ("format", "rubric_fingerprint"):
        if old[key] != new[key]:
            found.append(f"{key} was {old[key]!r} and is {new[key]!r}")
    before = {r["name"]: r for r in old["runs"]}
    after = {r["name"]: r for r in new["runs"]}
    if list(before) != list(after):
        found.append(f"its runs were {', '.join(before)} and are {', '.join(after)}")
    else:
        found += [
            f"{k} of run {name} was {before[name].get(k)!r} and is {v!r}"
            for name, facts in after.items()
            for k, v in facts.items()
            if before[name].get(k) != v and k != "device"
        ]
    return found


def _save_stories(
    out: Path,
    study: dict[str, Any],
    runs: Sequence[RunToJudge],
    held_out: list[str],
    control_rows: list[dict[str, Any]],
    s: JudgeSettings,
    command: str,
) -> None:
    """Samples the runs and saves every story, before anything is judged."""
    prompts = build_prompts(held_out, s.num_prompts, s.builtin_prompts, s.seed)
    if len(prompts) < s.num_prompts:
        _say([f"only {len(prompts)} of {s.num_prompts} prompts: held-out stories and openings ran out."])
    stories = collect_samples(runs, prompts, s) + control_rows
    about = study | {
        "stories": len(stories),
        "base_url": s.public_url(),
        "command": command,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    store.write_atomically(out / "judge.json", json.dumps(about, indent=1))
    store.write_rows(out / "stories.jsonl", stories)


def _run_checker(path: Path, stories: list[dict[str, Any]], checker: Checker) -> None:
    scores = checker([story["text"] for story in stories])
    rows = [{"id": st["id"], "scores": sc} for st, sc in zip(stories, scores, strict=True)]
    store.write_rows(path, rows)


def _confirm(question: str, s: JudgeSettings, confirm: Callable[[str], bool] | None) -> None:
    _say([question])
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


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        if line:
            print(f"judge: {line}", file=sys.stderr, flush=True)

"""The folder of a judged study: which study it is (judge.json) and its stories, saved before any of them is judged."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mla_jax import places
from mla_jax.errors import UserError
from mla_jax.files import write_text
from mla_jax.judge import controls, store
from mla_jax.judge.progress import say
from mla_jax.judge.prompts import build_prompts
from mla_jax.judge.rubric import get_rubric
from mla_jax.judge.settings import JudgeSettings

FORMAT = 1
# prompts -> completions (without the prompt): Sampler.generate with keywords max_new_tokens, temperature,
# top_k, seed
Generate = Callable[..., list[str]]


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
                # the sampler draws row i with seed + i: no two stories of a run share their random numbers
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


def check_place(out: Path) -> None:
    """Raise UserError where the study's folder could not be made or written: before anything is sampled for it."""
    places.names_in(out, "--out")
    places.writable(out, "--out")


def read_stories(out: Path) -> list[dict[str, Any]]:
    """The study's stories. Raises UserError when some that were saved are gone."""
    stories = list(store.read_rows(out / "stories.jsonl"))
    saved = json.loads((out / "judge.json").read_text()).get("stories", len(stories))
    if len(stories) != saved:
        raise UserError(
            f"{out / 'stories.jsonl'} has {len(stories)} of the {saved} stories that were saved: copy the folder "
            "again, or choose another output folder."
        )
    return stories


def identity(s: JudgeSettings, runs: Sequence[RunToJudge]) -> dict[str, Any]:
    """What makes two calls the same study: its settings, rubric and runs. Written to judge.json."""
    return {
        "format": FORMAT,
        "settings": s.study(),
        "rubric_fingerprint": get_rubric(s.rubric).fingerprint(),
        "runs": [run.facts() for run in runs],
    }


def check_names(runs: Sequence[RunToJudge]) -> None:
    """Raise UserError where there is no run, or two of one name."""
    names = [run.name for run in runs]
    if not names:
        raise UserError("no run to judge: give --workdir, once or several times.")
    for name in names:
        if names.count(name) > 1 or name.startswith(controls.PREFIX):
            raise UserError(f"the run name {name!r} is taken twice or reserved: rename its folder.")


def check_same(out: Path, study: dict[str, Any]) -> None:
    """Raise UserError where the folder `out` holds another study than the `identity` given."""
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


def save_stories(
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
        say([f"only {len(prompts)} of {s.num_prompts} prompts: held-out stories and openings ran out."])
    stories = collect_samples(runs, prompts, s) + control_rows
    about = study | {
        "stories": len(stories),
        "base_url": s.public_url(),
        "command": command,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "judge.json", json.dumps(about, indent=1))
    store.write_rows(out / "stories.jsonl", stories)

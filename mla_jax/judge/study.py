"""A judged study in memory: judgement rows brought into arrays, by run and prompt."""

import dataclasses
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mla_jax.errors import UserError
from mla_jax.judge import controls
from mla_jax.judge.pairwise import Comparison
from mla_jax.judge.rubric import RUBRICS, Rubric
from mla_jax.judge.store import read_rows
from mla_jax.judge.tasks import prompt_id

OVERALL = "overall"


@dataclasses.dataclass
class Study:
    """What a report is made of.

    Attributes:
      about: judge.json.
      stories: story id -> story row.
      scores: story id -> grades [1 + dimensions], the overall mean first, averaged over repeats.
      repeats: grades of every judgement of a repeated story, in the order of repeats [[1 + dimensions], ...].
      status: source -> how many judgements of its stories ended ok, unparsable, truncated, refused,
      rejected, error. comparisons: pairwise verdicts; run numbers follow `runs`.
      served: the name that the server itself gave to the judge -> judgements.
      examples: a few rows without a score, for the eye.
    """

    about: dict[str, Any]
    rubric: Rubric
    stories: dict[str, dict[str, Any]]
    scores: dict[str, np.ndarray]
    reasons: dict[str, str]
    repeats: dict[str, list[np.ndarray]]
    status: dict[str, Counter]
    pair_status: Counter
    comparisons: list[Comparison]
    ages: dict[str, Counter]
    spent: Counter
    served: Counter
    examples: list[dict[str, Any]]
    checker: dict[str, dict[str, float]]

    @property
    def runs(self) -> list[str]:
        return [r["name"] for r in self.about["runs"]]

    @property
    def columns(self) -> tuple[str, ...]:
        return (OVERALL, *self.rubric.names)

    @property
    def sources(self) -> list[str]:
        """Runs, then controls from the ceiling to the floor."""
        return [*self.runs, controls.REAL, *controls.DAMAGED]

    def judged(self, source: str) -> int:
        return sum(self.status[source].values())

    def parsed_share(self, source: str | None = None) -> float:
        """Judgements with a score over all that were made, of one source or of the whole study; nan if
        none were.
        """
        counts = self.status[source] if source else sum(self.status.values(), Counter())
        total = sum(counts.values())
        return counts["ok"] / total if total else float("nan")

    def by_prompt(self, source: str) -> dict[str, np.ndarray]:
        """prompt id -> mean grades [1 + dimensions] over the source's stories on it."""
        groups: dict[str, list[np.ndarray]] = defaultdict(list)
        for story_id, grades in self.scores.items():
            story = self.stories[story_id]
            if story["source"] == source:
                groups[prompt_id(story["prompt"])].append(grades)
        return {prompt: np.mean(grades, axis=0) for prompt, grades in sorted(groups.items())}


def load_study(out: Path) -> Study:
    """Reads a study's folder, rows one at a time.

    Raises:
      UserError: no study there, or one whose rubric this version does not know.
    """
    path = out / "judge.json"
    if not path.exists() or not (out / "stories.jsonl").exists():
        raise UserError(f"{out} holds no judged study (judge.json and stories.jsonl are missing): judge first.")
    about = json.loads(path.read_text())
    rubric = RUBRICS[about["settings"]["rubric"]]
    stories = {row["id"]: row for row in read_rows(out / "stories.jsonl")}
    study = Study(
        about=about,
        rubric=rubric,
        stories=stories,
        scores={},
        reasons={},
        repeats=defaultdict(list),
        status=defaultdict(Counter),
        pair_status=Counter(),
        comparisons=[],
        ages=defaultdict(Counter),
        spent=Counter(),
        served=Counter(),
        examples=[],
        checker={row["id"]: row["scores"] for row in read_rows(out / "checker.jsonl")},
    )
    numbers = {name: i for i, name in enumerate(study.runs)}
    grades: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
    seen: set[str] = set()
    for row in read_rows(out / "judgements.jsonl"):
        if row["id"] in seen or row["story"] not in stories:
            continue
        seen.add(row["id"])
        _count(study, row)
        if row["kind"] == "pair":
            if row["status"] == "ok":
                first, second = numbers[row["source"]], numbers[row["other_source"]]
                study.comparisons.append(Comparison(first, second, row["prompt_id"], row["winner"]))
        elif row["status"] == "ok":
            values = np.array([row["scores"][name] for name in rubric.names])
            grades[row["story"]].append((row["repeat"], np.concatenate([[values.mean()], values])))
            study.reasons.setdefault(row["story"], row["reason"])
            if "age_group" in row:
                study.ages[row["source"]][row["age_group"]] += 1
    for story, found in grades.items():
        found.sort(key=lambda item: item[0])
        study.scores[story] = np.mean([g for _, g in found], axis=0)
        if len(found) > 1:
            study.repeats[story] = [g for _, g in found]
    return study


def _count(study: Study, row: dict[str, Any]) -> None:
    if row["kind"] == "pair":
        study.pair_status[row["status"]] += 1
    else:
        study.status[row["source"]][row["status"]] += 1
    study.spent["usd"] += row["cost_usd"]
    if not row["cached"]:
        study.spent["tokens_in"] += row["tokens_in"]
        study.spent["tokens_out"] += row["tokens_out"]
    study.spent["cached"] += row["cached"]
    if row.get("served_model"):
        study.served[row["served_model"]] += 1
    if row["status"] != "ok" and len(study.examples) < 5:
        study.examples.append(row)

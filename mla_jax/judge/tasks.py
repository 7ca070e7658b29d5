"""Which judgements a study consists of, and how one of them becomes a row."""

import dataclasses
import hashlib
import itertools
import json
import time
from collections import defaultdict
from typing import Any

import numpy as np

from mla_jax.judge import controls
from mla_jax.judge.client import Answer, estimate_tokens
from mla_jax.judge.rubric import ReplyError, Rubric, messages, parse_reply
from mla_jax.judge.settings import JudgeSettings

# A judgement with a reason of 30 words; measured replies are counted as they come.
EXPECTED_REPLY_TOKENS = 80


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One judgement to be made: of `first` (a story row's index), or of `first` against `second`."""

    id: str
    first: int
    second: int | None = None
    repeat: int = 0


def plan(stories: list[dict[str, Any]], s: JudgeSettings) -> list[Task]:
    """All judgements of a study, in an order shuffled by `seed`.

    Shuffled, so that a server that gets slower, stricter or changes its model during a study, or a study
    that stops half-way, does not do so to one run more than to another.
    """
    tasks = []
    for index, story in enumerate(stories):
        repeated = int(story["id"][:8], 16) / 2**32 < s.repeat_share
        for repeat in range(s.repeats if repeated else 1):
            tasks.append(Task(f"{story['id']}.{repeat}", index, None, repeat))
    if s.pairwise:
        tasks += _pairs(stories)
    order = np.random.default_rng(s.seed).permutation(len(tasks))
    return [tasks[i] for i in order]


def _pairs(stories: list[dict[str, Any]]) -> list[Task]:
    """Every two runs' stories on the same prompt, in both orders."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, story in enumerate(stories):
        if not story["source"].startswith(controls.PREFIX):
            groups[story["prompt"], story["index"]].append(index)
    return [
        Task(f"{stories[a]['id']}-{stories[b]['id']}", a, b)
        for group in groups.values()
        for a, b in itertools.permutations(group, 2)
    ]


def task_messages(task: Task, stories: list[dict[str, Any]], rubric: Rubric) -> list[dict[str, str]]:
    first = stories[task.first]
    second = None if task.second is None else _completion(stories[task.second])
    return messages(rubric, first["prompt"], _completion(first), second)


def _completion(story: dict[str, Any]) -> str:
    return story["text"][len(story["prompt"]) :].strip()


def cache_key(task: Task, asked: list[dict[str, str]], s: JudgeSettings, rubric: Rubric) -> str:
    """sha256 of judge model, rubric and story, and of what else changes a reply."""
    parts = [s.model, rubric.id, rubric.fingerprint(), s.judge_temperature, s.max_reply_tokens, task.repeat]
    parts += [s.seed] if s.seed else []  # it is sent along; replies of before it counted had the default, 0
    return hashlib.sha256(json.dumps([parts, asked]).encode()).hexdigest()


def estimate(asked: list[dict[str, str]], rubric: Rubric) -> int:
    """Tokens that a request sends, about: text, schema and the chat template's own."""
    return sum(estimate_tokens(m["content"]) + 4 for m in asked) + estimate_tokens(json.dumps(rubric.schema()))


def price(tokens_in: int, tokens_out: int, s: JudgeSettings) -> float:
    """US dollars."""
    return (tokens_in * s.price_in + tokens_out * s.price_out) / 1e6


def base_row(task: Task, stories: list[dict[str, Any]], s: JudgeSettings, rubric: Rubric) -> dict[str, Any]:
    """The part of a judgement row that is known before asking."""
    first = stories[task.first]
    row = {
        "id": task.id,
        "kind": "score" if task.second is None else "pair",
        "story": first["id"],
        "source": first["source"],
        "prompt_id": prompt_id(first["prompt"]),
        "repeat": task.repeat,
        "model": s.model,
        "rubric": rubric.id,
    }
    if task.second is not None:
        row |= {"other": stories[task.second]["id"], "other_source": stories[task.second]["source"]}
    return row


def prompt_id(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def answered_row(row: dict[str, Any], answer: Answer, cached: bool, s: JudgeSettings, rubric: Rubric) -> dict:
    """A row whose reply came: status ok, refused, truncated or unparsable. All but ok keep the reply's
    text.
    """
    row = row | {
        "served_model": answer.served_model,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "tokens_counted": answer.counted,
        "cost_usd": 0.0 if cached else price(answer.tokens_in, answer.tokens_out, s),
        "attempts": 0 if cached else answer.attempts,
        "seconds": round(answer.seconds, 3),
        "cached": cached,
        "time": _now(),
    }
    if answer.refusal or answer.finish == "content_filter":
        return row | {"status": "refused", "error": answer.refusal or "content filter", "reply": answer.text}
    if answer.finish == "length" and not answer.text.rstrip().endswith(("}", "```")):
        # an object from the middle of it would be a draft, not the judgement
        return row | {"status": "truncated", "error": "the reply is cut short", "reply": answer.text}
    try:
        parsed = parse_reply(answer.text, rubric, pairwise=row["kind"] == "pair")
    except ReplyError as error:
        status = "truncated" if answer.finish == "length" else "unparsable"
        return row | {"status": status, "error": str(error), "reply": answer.text}
    return row | {"status": "ok", **parsed}


def failed_row(row: dict[str, Any], status: str, kind: str, message: str, attempts: int) -> dict[str, Any]:
    """A row without a reply: status "error" (asked again when the study continues) or "rejected" (never)."""
    spent = {"tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0, "cached": False, "time": _now()}
    return row | spent | {"status": status, "error_kind": kind, "error": message, "attempts": attempts}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

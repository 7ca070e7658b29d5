"""What the judge's tests share: settings, little stories, runs that write them."""

import asyncio
import contextvars
import json
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fault_server import SLOW, fault

from mla_jax.judge import client
from mla_jax.judge.evaluate import run
from mla_jax.judge.settings import JudgeSettings
from mla_jax.judge.study_folder import RunToJudge

KEY = "sk-do-not-write-me-4711"
ENVIRONMENT = {"OPENAI_API_KEY": KEY}
TINYSTORIES = Path(__file__).parents[1] / "../shared/data/tinystories/valid.txt"

_NAMES = ("Lily", "Tom", "Mia", "Ben", "Sue", "Max")
_THINGS = ("ball", "kite", "boat", "cake", "drum", "hat", "key", "map", "bell", "cup")
_PLACES = ("park", "garden", "house", "forest", "shop", "school", "farm", "beach")


def settings(url: str = "http://127.0.0.1:9/v1", **changes) -> JudgeSettings:
    values = dict(
        base_url=url,
        model="judge-1",
        rubric="paper_a",
        num_prompts=10,
        builtin_prompts=4,
        stories_per_prompt=1,
        max_new_tokens=60,
        temperature=0.8,
        top_k=0,
        seed=0,
        num_controls=8,
        repeats=2,
        repeat_share=0.1,
        pairwise=False,
        judge_temperature=0.0,
        max_reply_tokens=300,
        concurrency=8,
        timeout_s=5.0,
        max_retries=4,
        give_up_after=20,
        budget_usd=100.0,
        price_in=1.0,
        price_out=2.0,
        yes=True,
        cache_dir="",
        resamples=400,
    )
    assert not changes.keys() - values.keys()
    return JudgeSettings(**(values | changes))


def make_stories(n: int, seed: int = 0) -> list[str]:
    """`n` distinct stories of eight sentences about two children, told apart by their first sentence."""
    rng = np.random.default_rng(seed)
    stories = []
    for i in range(n):
        a, b = rng.choice(_NAMES, 2, replace=False)
        thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
        stories.append(
            f"One day, {a} found {thing} number {i} in the {place}. It was red and very old. "
            f'"Look at this {thing}," said {a} to her friend {b}. They wanted to play with it all day.\n'
            f"But then {b} lost the {thing} behind the big tree. After a while {a} began to cry. "
            f"So {b} went back to the {place} and looked for it. In the end {a} and {b} were happy again."
        )
    return stories


def make_run(name: str, held_out: list[str], words: int = 40, seed: int = 0) -> RunToJudge:
    """A run whose model writes the first `words` words of some other story."""
    texts = make_stories(50, seed + 1000)

    def generate(prompts, *, max_new_tokens, temperature, top_k, seed):
        # independent of the process, unlike hash()
        rng = np.random.default_rng([seed, *name.encode()])
        return [" ".join(texts[i].split()[:words]) for i in rng.integers(0, len(texts), len(prompts))]

    return RunToJudge(name, generate, held_out, config_hash="c" + name, data_fingerprint="d", step=100)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


STORIES = make_stories(200)


def study(server, out, runs=None, environment=ENVIRONMENT, confirm=None, checker=None, **changes):
    """A study of `runs` (default: one) judged by `server`, into `out`; path of its report."""
    runs = runs or [make_run("a", STORIES)]
    chosen = settings(server.url, **changes)
    return run(
        chosen, runs, out, command="main --mode judge", checker=checker, confirm=confirm, environment=environment
    )


def give_up_slow_replies_at_once(fault_rate: float, replace: Callable = setattr) -> None:
    """The client waits a second for a reply that the server holds back, and its whole `timeout_s` for all others.

    So slow faults cost little time and `timeout_s` may be what the busiest machine needs for a good reply. Only the
    first attempt is short: the fault is over by the second.
    """
    slow = contextvars.ContextVar("slow", default=False)  # a worker is a task, and has a context of its own
    ask = client.JudgeClient.ask

    def noted(self, messages, *rest, **more):
        slow.set(fault(messages[-1]["content"], fault_rate) in SLOW)
        return ask(self, messages, *rest, **more)

    def timeout(seconds: float) -> asyncio.Timeout:
        first = slow.get()
        slow.set(False)
        return asyncio.timeout(1.0 if first else seconds)

    replace(client.JudgeClient, "ask", noted)
    replace(client, "asyncio", types.SimpleNamespace(timeout=timeout, sleep=asyncio.sleep))


def judged(out):
    return rows(out / "judgements.jsonl")

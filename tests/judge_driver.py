"""A judged study in a process of its own, for tests that kill it: python judge_driver.py URL OUT CACHE
PROMPTS FAULT_RATE
"""

import sys
from pathlib import Path

from judge_helpers import give_up_slow_replies_at_once, make_run, make_stories, settings

from mla_jax.judge import client
from mla_jax.judge.evaluate import run

if __name__ == "__main__":
    client.backoff = lambda attempt: 0.01
    url, out, cache, prompts, fault_rate = sys.argv[1:]
    give_up_slow_replies_at_once(float(fault_rate))
    stories = make_stories(300)
    chosen = settings(
        url,
        num_prompts=int(prompts),
        builtin_prompts=40,
        num_controls=20,
        cache_dir=cache,
        timeout_s=60.0,
        pairwise=True,
    )
    run(chosen, [make_run("a", stories), make_run("b", stories)], Path(out))

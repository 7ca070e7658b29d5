"""Does the world tell models apart? A 5-gram's answers, samples ranked by the checker, and one table of it all.

    python -m mla_jax.world_trial ngram OUT [--stories 300] [--train 100000]     no model needed, no accelerator used
    python -m mla_jax.world_trial rank OUT RUN [--steps 0 100 500 2000] [--samples 300]
    python -m mla_jax.world_trial table OUT RUN      after `--mode eval --fact_stories` on RUN; exit code 1 if it fails

`launch/gpu_world.sh` runs all of them. OUT gets ngram.json, ranks.json, stories_step*.jsonl and world.md.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mla_jax import markdown
from mla_jax.errors import UserError, run_command
from mla_jax.facts import CUT_WORDS
from mla_jax.files import write_text
from mla_jax.judge.checker import Verdict, check_many, summarize
from mla_jax.model.initial import init_params
from mla_jax.rows import result_row
from mla_jax.runs import Run, RunFolder, load_run, read_data
from mla_jax.sample.sampler import Sampler
from mla_jax.world import questions, stories
from mla_jax.world.ngram import NGram

LEAD = 0.20  # by so much must the model lead the 5-gram and its own short-sighted self
_FAR = ("all", questions.FAR)  # the row of `questions.score` that the lead is measured in


def ngram_answers(n_stories: int, n_train: int, seed: int) -> dict[str, Any]:
    """A 5-gram fitted on `n_train` training stories, asked as `facts.ask` asks a model: rows of `questions.score`."""
    model = NGram().fit(row["text"] for row in stories(n_train, seed))
    probes = list(questions.probes(stories(n_stories, seed, "valid")))
    return {"questions": questions.score(probes, model.answer), "stories": n_stories, "train": n_train}


def rank(workdir: str, steps: Sequence[int], n_samples: int, max_new_tokens: int) -> Iterator[tuple[dict, list[dict]]]:
    """Sample `n_samples` stories at each checkpoint of `workdir` (step 0: the untrained weights) and score them with
    the checker. Yields (result row, story rows) per step.
    """
    for step in steps:
        run = load_run(workdir, step) if step else _untrained(load_run(workdir))
        texts = _sample(run, n_samples, max_new_tokens)
        verdicts = check_many(texts, processes=min(8, os.cpu_count() or 1))
        scores = [verdict.score for verdict in verdicts]
        metrics = {"step": step, "samples": n_samples, **summarize(verdicts), "standard_error": _standard_error(scores)}
        fingerprint = read_data(run.folder)["fingerprint"]
        row = result_row(f"{run.folder.name}@{step}", run.config.hash, metrics, fingerprint, run.tokenizer.sha256)
        yield row, [_story(run, step, i, *pair) for i, pair in enumerate(zip(texts, verdicts, strict=True))]


def _untrained(run: Run) -> Run:
    """The run at step 0: the weights that its seed began with."""
    return dataclasses.replace(run, params=init_params(run.model, run.config.train.seed), step=0)


def _sample(run: Run, n_samples: int, max_new_tokens: int) -> list[str]:
    return Sampler.from_run(run).generate([""] * n_samples, max_new_tokens, temperature=1.0, top_k=0, seed=0)


def _story(run: Run, step: int, index: int, text: str, verdict: Verdict) -> dict[str, Any]:
    metrics = verdict.metrics()
    return {"id": f"{run.folder.name}-{step}-{index}", "text": text, "facts": None, "source": "model"} | metrics


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def far(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row over all kinds of questions 50 words and more away. Raises UserError when none was asked."""
    found = [row for row in rows if (row["kind"], row["distance"]) == _FAR]
    if not found:
        raise UserError(
            f"no fact question is {questions.FAR_WORDS} words away: ask about more stories with --fact_stories."
        )
    return found[0]


def table(facts: dict[str, Any], ngram: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """(Markdown, whether the model leads by LEAD and the steps are ranked in order)."""
    whole, cut = (far(facts["metrics"][name]) for name in ("questions", f"questions_{CUT_WORDS}_words"))
    short = far(ngram["questions"])
    lead = whole["accuracy"] - max(cut["accuracy"], short["accuracy"])
    scores = [row["metrics"]["score"] for row in sorted(ranks, key=lambda row: row["metrics"]["step"])]
    in_order = all(a < b for a, b in zip(scores, scores[1:], strict=False))
    verdict = "as asked" if lead >= LEAD else f"less than the {LEAD:.0%} asked for"
    parts = [
        f"# A model on the story world: {facts['name']}, step {facts['metrics']['step']}, {facts['device']}",
        "Fact questions 50 words and more away:",
        _answers(facts, ngram),
        f"The model leads the better of both by {lead:.1%}: {verdict}.",
        "Samples (temperature 1, all tokens), scored by the checker:",
        _scores(ranks),
        f"The steps are {'' if in_order else 'not '}ranked in order.",
    ]
    return "\n\n".join(parts) + "\n", lead >= LEAD and in_order


def _answers(facts: dict[str, Any], ngram: dict[str, Any]) -> str:
    head = (
        "kind",
        "n",
        "model",
        f"the same, seeing {CUT_WORDS} words",
        f"5-gram ({ngram['train']:,} stories)",
        "chance",
    )
    asked = (facts["metrics"][name] for name in ("questions", f"questions_{CUT_WORDS}_words"))
    rows = []
    for a, b, c in zip(*asked, ngram["questions"], strict=True):
        if a["distance"] == questions.FAR:
            figures = (a["accuracy"], b["accuracy"], c["accuracy"], a["chance"])
            rows.append((a["kind"], a["n"], *(f"{value:.3f}" for value in figures)))
    return markdown.table(head, rows)


def _scores(ranks: Sequence[dict[str, Any]]) -> str:
    head = ("step", "stories", "score", "well-formed", "unparsed", "contradicting", "goals reached", "repetition")
    rows = []
    for m in (row["metrics"] for row in ranks):
        shares = (m[name] for name in ("well_formed", "unparsed", "contradicting", "resolved", "repetition"))
        score = f"{m['score']:.3f} +- {m['standard_error']:.3f}"
        rows.append((f"{m['step']:,}", m["samples"], score, *(f"{share:.3f}" for share in shares)))
    return markdown.table(head, rows)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ngram", "rank", "table"))
    parser.add_argument("out", type=Path)
    parser.add_argument("run", nargs="?", default="", help="the run folder")
    parser.add_argument("--stories", type=int, default=300, help="ngram: held-out stories asked about")
    parser.add_argument("--train", type=int, default=100_000, help="ngram: stories it is fitted on")
    parser.add_argument("--seed", type=int, default=0, help="ngram: the world's seed")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 500, 2000], help="rank: of the checkpoints")
    parser.add_argument("--samples", type=int, default=300, help="rank: stories a step")
    parser.add_argument("--max_new_tokens", type=int, default=400, help="rank: of a story")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "ngram":
        answers = ngram_answers(given.stories, given.train, given.seed)
        write_text(given.out / "ngram.json", json.dumps(answers, indent=1))
        return 0
    if given.what == "rank":
        rows = []
        for row, story_rows in rank(given.run, given.steps, given.samples, given.max_new_tokens):
            rows.append(row)
            lines = "".join(json.dumps(story, ensure_ascii=False) + "\n" for story in story_rows)
            write_text(given.out / f"stories_step{row['metrics']['step']}.jsonl", lines)
        write_text(given.out / "ranks.json", json.dumps(rows, indent=1))
        return 0
    paths = (RunFolder(Path(given.run)).eval / "facts.json", given.out / "ngram.json", given.out / "ranks.json")
    text, good = table(*(json.loads(path.read_text(encoding="utf-8")) for path in paths))
    write_text(given.out / "world.md", text)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(run_command(main))

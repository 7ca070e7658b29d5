"""Fact questions put to a trained model: does it know who owns the ball, which colour it was, where they went?

The questions and their scoring are `world.questions`; this is the model's answer to them.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.table

from mla_jax.data import progress
from mla_jax.errors import UserError
from mla_jax.files import write_text
from mla_jax.rows import result_row
from mla_jax.runs import Run, read_data
from mla_jax.train.step import make_eval_step
from mla_jax.world import questions, stories
from mla_jax.world.questions import Probe

CUT_WORDS = 20  # the context left to the short-sighted control
_WIDTH = 64  # sequences are padded to it times a power of two: each width is compiled, seconds on a GPU
_BATCH = 128


def _unheard(n: int) -> None:
    """Nobody is told how far it is."""


def logprob_fn(
    run: Run, advance: Callable[[int], None] = _unheard
) -> Callable[[Sequence[Probe]], Iterator[list[float]]]:
    """A `LogProbFn` for `questions.score`: nats of every candidate as the model's continuation of its prefix.

    A prefix too long for `model.max_len` loses its beginning. advance: is told how many more candidates are done.
    """
    eval_step = make_eval_step(run.model, run.config)
    limit = run.config.model.max_len

    def sequence(prefix: list[int], candidate: list[int]) -> list[int]:
        return (prefix + candidate)[-(limit + 1) :]

    def answer(probes: Sequence[Probe]) -> Iterator[list[float]]:
        encode = run.tokenizer.encode
        # Pieces never cross the space that a candidate begins with, so the parts encode as the whole does.
        tails = [[encode(candidate) for candidate in probe.candidates] for probe in probes]
        heads = [[run.tokenizer.separator_id, *encode(probe.prefix)] for probe in probes]
        rows = [(sequence(head, tail), len(tail)) for head, group in zip(heads, tails, strict=True) for tail in group]
        scores = iter(_sum_tails(eval_step, run.variables, rows, run.tokenizer.separator_id, limit, advance))
        for group in tails:
            yield list(itertools.islice(scores, len(group)))

    return answer


def _sum_tails(
    eval_step: Callable,
    variables: Any,
    rows: list[tuple[list[int], int]],
    padding: int,
    limit: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Log-probability of the last `tail` tokens of each row (tokens, tail), in order; float64 [len(rows)]."""
    scores = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for begin in range(0, len(order), _BATCH):
        chosen = order[begin : begin + _BATCH]
        longest = max(len(rows[i][0]) for i in chosen) - 1
        width = min(_WIDTH << ((longest - 1) // _WIDTH).bit_length(), limit)
        tokens = np.full((_BATCH, width + 1), padding, np.int32)
        segments = np.zeros_like(tokens)
        for slot, i in enumerate(chosen):
            ids, _ = rows[i]
            tokens[slot, : len(ids)] = ids
            segments[slot, : len(ids)] = 1
        nll = np.asarray(eval_step(variables, {"tokens": tokens, "segment_ids": segments}))
        for slot, i in enumerate(chosen):
            ids, tail = rows[i]
            scores[i] = -nll[slot, len(ids) - 1 - tail : len(ids) - 1].sum(dtype=np.float64)
        advance(len(chosen))
    return scores


def check_embedded(run: Run) -> None:
    """Raise UserError unless the run was trained on the embedded stories, which carry facts."""
    if run.config.data.path:
        raise UserError(
            f"--fact_stories is for runs on the embedded stories; {run.folder.path} was trained on a file, whose "
            "stories carry no facts: leave it out."
        )


def ask(run: Run, n_stories: int, console: rich.console.Console) -> dict[str, Any]:
    """Put the questions of `n_stories` held-out stories to the model, with its whole context and with 20 words of it.

    Says on stderr what it begins, with a bar on a terminal; prints a table, writes eval/facts.json into the run folder
    and returns its row. Raises UserError for a run that was not trained on the embedded stories.
    """
    check_embedded(run)
    data = run.config.data
    probes = list(questions.probes(stories(n_stories, data.seed, "valid")))
    answers = 2 * sum(len(probe.candidates) for probe in probes)
    progress.say(f"Asking {run.folder.name} {len(probes):,} fact questions twice: {answers:,} answers to score")
    with progress.Progress("Asking", answers, quiet=not sys.stderr.isatty(), unit="answers") as bar:
        answer = logprob_fn(run, bar.advance)
        whole = questions.score(probes, answer)
        short = questions.score([questions.cut_context(probe, CUT_WORDS) for probe in probes], answer)
    table = rich.table.Table("question", "words ago", "n", "accuracy", f"seeing only {CUT_WORDS} words", "chance")
    for row, cut in zip(whole, short, strict=True):
        if row["kind"] != "all" and row["distance"] != questions.FAR:
            continue  # the file has them all
        figures = [f"{value:.3f}" for value in (row["accuracy"], cut["accuracy"], row["chance"])]
        table.add_row(row["kind"], row["distance"], str(row["n"]), *figures)
    console.print(f"fact questions of {n_stories} held-out stories, {run.folder.name}", highlight=False, markup=False)
    console.print(table, highlight=False)
    metrics = {"questions": whole, f"questions_{CUT_WORDS}_words": short, "step": run.step, "stories": n_stories}
    fingerprint = read_data(run.folder)["fingerprint"]
    row = result_row(run.folder.name, run.config.hash, metrics, fingerprint, run.tokenizer.sha256)
    run.folder.eval.mkdir(exist_ok=True)
    write_text(run.folder.eval / "facts.json", json.dumps(row, indent=1))
    return row

"""Fact questions put to a trained model: does it know who owns the ball, which colour it was, where they went?

The questions and their scoring are `world.questions`; this is the model's answer to them.
"""

import bisect
import functools
import itertools
import json
import sys
from collections import Counter
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
_NARROWEST = 64  # sequences are padded to it times a power of two: each width is compiled, seconds on a GPU
_RECALLS = 0.1  # above what the last words or guessing give: less is no recall to speak of
_FEW = 8  # batches: fewer are not worth a width of their own and take the next one
_SMALLEST_BATCH = 32


def _unheard(n: int) -> None:
    """Nobody is told how far it is."""


def logprob_fn(
    run: Run, advance: Callable[[int], None] = _unheard, eval_step: Callable[..., Any] | None = None
) -> Callable[[Sequence[Probe]], Iterator[list[float]]]:
    """A `LogProbFn` for `questions.score`: nats of every candidate as the model's continuation of its prefix.

    A prefix too long for `model.max_len` loses its beginning. advance: is told how many more candidates are done.
    eval_step: the run's own (`make_eval_step`), where it has evaluated already: batches are of evaluation's size, so
    that those of the training length find their program compiled.
    """
    eval_step = eval_step or make_eval_step(run.model, run.config)
    limit = run.config.model.max_len
    size = max(_SMALLEST_BATCH, run.config.eval.batch_size)

    def sequence(prefix: list[int], candidate: list[int]) -> list[int]:
        return (prefix + candidate)[-(limit + 1) :]

    def answer(probes: Sequence[Probe]) -> Iterator[list[float]]:
        encode = functools.cache(run.tokenizer.encode)  # candidates come again and again
        # Pieces never cross the space that a candidate begins with, so the parts encode as the whole does.
        tails = [[encode(candidate) for candidate in probe.candidates] for probe in probes]
        heads = [[run.tokenizer.separator_id, *encode(probe.prefix)] for probe in probes]
        rows = [(sequence(head, tail), len(tail)) for head, group in zip(heads, tails, strict=True) for tail in group]
        scores = iter(_sum_tails(eval_step, run.variables, rows, run.tokenizer.separator_id, limit, size, advance))
        for group in tails:
            yield list(itertools.islice(scores, len(group)))

    return answer


def _sum_tails(
    eval_step: Callable,
    variables: Any,
    rows: list[tuple[list[int], int]],
    padding: int,
    limit: int,
    size: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Log-probability of the last `tail` tokens of each row (tokens, tail), in order; float64 [len(rows)].

    Rows go by length, in batches of `size`, padded to one of `_widths`.
    """
    scores = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
    widths = _widths([len(rows[chosen[-1]][0]) - 1 for chosen in batches], limit)
    for chosen, width in zip(batches, widths, strict=True):
        tokens = np.full((size, width + 1), padding, np.int32)
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


def _widths(longest: Sequence[int], limit: int) -> list[int]:
    """What each batch is padded to. longest: of each batch, rising.

    _NARROWEST times a power of two, at most `limit`; a width of fewer than _FEW batches is left to the next one.
    """
    fitting = [min(_NARROWEST << ((length - 1) // _NARROWEST).bit_length(), limit) for length in longest]
    counted = Counter(fitting)
    for width, wider in itertools.pairwise(sorted(counted)):
        if counted[width] < _FEW:
            counted[wider] += counted.pop(width)
    kept = sorted(counted)
    return [kept[bisect.bisect_left(kept, width)] for width in fitting]


def _verdict(whole: Sequence[dict[str, Any]], short: Sequence[dict[str, Any]]) -> str:
    """What the table says: whether facts stated long ago are recalled, which the last words alone would not give."""
    far = [(row, cut) for row, cut in zip(whole, short, strict=True) if row["kind"] == "all"]
    row, cut = next((pair for pair in far if pair[0]["distance"] == questions.FAR), (None, None))
    if row is None or not row["n"]:
        return f"No fact was stated {questions.FAR} words before its question: ask about more stories."
    without = max(cut["accuracy"], row["chance"])
    text = f"Recalled from {questions.FAR} words before: {row['accuracy']:.0%} of {row['n']} answers"
    text += f" ({without:.0%} from the last {CUT_WORDS} words alone, or by guessing)"
    if not row["accuracy"] >= without + _RECALLS:
        return f"{text}: this model has not learned to recall yet (docs/world.md)."
    return f"{text}."


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
    console.print(_verdict(whole, short), highlight=False)
    metrics = {"questions": whole, f"questions_{CUT_WORDS}_words": short, "step": run.step, "stories": n_stories}
    fingerprint = read_data(run.folder)["fingerprint"]
    row = result_row(run.folder.name, run.config.hash, metrics, fingerprint, run.tokenizer.sha256)
    run.folder.eval.mkdir(exist_ok=True)
    write_text(run.folder.eval / "facts.json", json.dumps(row, indent=1))
    return row

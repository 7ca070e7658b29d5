"""`--mode eval`: the loss of trained runs on their held-out stories, or on any file."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from mla_jax import config as config_lib
from mla_jax import facts, runs
from mla_jax.config import Config
from mla_jax.data.prepare import prepare, prepare_file
from mla_jax.data.token_file import TokenFile
from mla_jax.errors import UserError
from mla_jax.evaluation import EvalResult
from mla_jax.evaluation import evaluate as evaluate_tokens
from mla_jax.files import write_text
from mla_jax.rows import result_row
from mla_jax.runs import Run
from mla_jax.sample.scoring import make_cached_eval_step
from mla_jax.terminal import say
from mla_jax.train.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """row: the result row; result: every token's loss; stories: one row a story; path: where both were written."""

    row: dict[str, Any]
    result: EvalResult
    stories: list[dict[str, Any]]
    path: Path


def evaluate(
    run: Run | str | os.PathLike,
    data_path: str | os.PathLike | None = None,
    step: int | None = None,
    cache_dtype: str | None = None,
) -> Evaluation:
    """Evaluate a run on its own held-out stories (equal to the evaluation in training), or on a whole file.

    With a `cache_dtype` (auto, bfloat16, float32, int8) the text is read through a KV cache of that type, as sampling
    reads it: what int8 latents cost, for one.

    Writes eval/NAME.json and eval/NAME_stories.jsonl into the run folder. Raises UserError when the run or the
    data cannot be read, or the run's data is not there any more.
    """
    run = run if isinstance(run, Run) else runs.load_run(run, step)
    config, data_path = run.config, None if data_path is None else os.fspath(data_path)
    if os.environ.get("MLA_JAX_CACHE"):  # the folder that training was told of may be another machine's
        config = config_lib.replace(config, **{"data.cache_dir": ""})
    through_cache = cache_dtype is not None
    make = functools.partial(make_cached_eval_step, cache_dtype=cache_dtype) if through_cache else make_eval_step
    eval_step = make(run.model, config)
    tokens, fingerprint = _tokens(run, config, data_path)
    result = evaluate_tokens(eval_step, run.variables, tokens, config.train.seq_len, config.eval.batch_size)
    stories = result.by_story(tokens)
    metrics = {
        "valid_loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": len(result.nll),
        "step": run.step,
        "loss_by_position": [round(x, 5) if np.isfinite(x) else None for x in result.by_position().tolist()],
    }
    if through_cache:
        metrics["cache_dtype"] = cache_dtype
    row = result_row(run.folder.name, config.hash, metrics, fingerprint, run.tokenizer.sha256)
    name = "valid" if not data_path else f"{Path(data_path).stem}-{_short(data_path)}"
    name += f"_cache_{cache_dtype}" if through_cache else ""
    path = run.folder.eval / f"{name}.json"
    _write(path, row, stories)
    return Evaluation(row, result, stories, path)


def _write(path: Path, row: dict[str, Any], stories: list[dict[str, Any]]) -> None:
    """NAME.json and NAME_stories.jsonl beside it. Raises UserError when they cannot be written."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(row, indent=1))
        lines = "".join(json.dumps(story) + "\n" for story in stories)
        write_text(path.with_name(f"{path.stem}_stories.jsonl"), lines)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written to ({error.strerror}): make room, or copy the run folder elsewhere."
        ) from None


def _tokens(run: Run, config: Config, data_path: str | None) -> tuple[TokenFile, str]:
    """What to evaluate on, and its fingerprint. Raises UserError when the run's own data is not there any more."""
    if data_path:
        return prepare_file(data_path, config, run.tokenizer, quiet=False)
    prepared = prepare(config, run.tokenizer)
    fingerprint = runs.read_data(run.folder)["fingerprint"]
    if prepared.fingerprint != fingerprint:
        raise UserError(
            f"{run.folder.path} was trained on data with the fingerprint {fingerprint[:12]}, but its data.path holds "
            f"{prepared.fingerprint[:12]} now: name the file to evaluate with --data.path."
        )
    return prepared.valid, fingerprint


def run(
    workdirs: Sequence[str],
    data_path: str | None,
    step: int | None,
    fact_stories: int,
    console: rich.console.Console,
    cache_dtype: str | None = None,
) -> None:
    """Evaluate each run folder; print a table, each run's loss by position and, if asked, its fact questions."""
    if fact_stories < 0:
        raise UserError(f"--fact_stories is {fact_stories}; it must be 0 (none) or more: e.g. 50.")
    loaded = [runs.load_run(workdir, step) for workdir in workdirs]
    _check(loaded, fact_stories, cache_dtype)
    for each in loaded:
        if not each.finished:
            say(console, each.origin, style="dim")
    evaluations = [evaluate(each, data_path, cache_dtype=cache_dtype) for each in loaded]
    console.print(_table(evaluations, cache_dtype), highlight=False)
    if len({evaluation.row["tokenizer_sha256"] for evaluation in evaluations}) > 1:
        say(console, "The tokenizers differ: compare bits per byte, not losses.")
    for evaluation in evaluations:
        say(console, f"{evaluation.row['name']}: loss by position {_by_position(evaluation.result)}")
        say(console, f"written to {evaluation.path} and {evaluation.path.stem}_stories.jsonl")
    for each in loaded if fact_stories else []:
        facts.ask(each, fact_stories, console)


def _check(loaded: list[Run], fact_stories: int, cache_dtype: str | None) -> None:
    """Raise UserError for what one of the runs cannot be asked, before anything is written."""
    for each in loaded if fact_stories else []:
        facts.check_embedded(each)
    for each in loaded if cache_dtype is not None else []:
        make_cached_eval_step(each.model, each.config, cache_dtype)


def _table(evaluations: list[Evaluation], cache_dtype: str | None) -> rich.table.Table:
    """One row a run."""
    table = rich.table.Table("run", "step", "loss", "perplexity", "bits per byte", "tokens", "tokenizer")
    if cache_dtype is not None:
        table.title = f"read through a KV cache in {cache_dtype}"
    for evaluation in evaluations:
        m = evaluation.row["metrics"]
        table.add_row(
            rich.markup.escape(evaluation.row["name"]),
            str(m["step"]),
            f"{m['valid_loss']:.4f}",
            f"{m['perplexity']:.3f}",
            f"{m['bits_per_byte']:.4f}",
            f"{m['tokens']:,}",
            evaluation.row["tokenizer_sha256"][:8],
        )
    return table


def _by_position(result: EvalResult) -> str:
    """Mean losses of ranges of positions that grow twofold, e.g. "0-7: 3.912  8-15: 3.401"."""
    losses = result.by_position()
    edges = [0, *(1 << i for i in range(3, 20) if 1 << i < len(losses)), len(losses)]
    ranges = [(a, b) for a, b in itertools.pairwise(edges) if np.isfinite(losses[a:b]).any()]
    return "  ".join(f"{a}-{b - 1}: {np.nanmean(losses[a:b]):.3f}" for a, b in ranges)


def _short(path: str) -> str:
    return hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:8]

"""What a finished run's row says beside its loss: everything that later claims are judged by, measured once."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mla_jax import facts, runs
from mla_jax.config import Config
from mla_jax.data.prepare import Prepared, prepare
from mla_jax.evaluation import EvalResult, evaluate
from mla_jax.rows import read_rows
from mla_jax.runs import Run
from mla_jax.sample.sampler import Sampler, sample_settings
from mla_jax.study.grid import Tier
from mla_jax.study.spectra import cache_spectra
from mla_jax.train.step import make_eval_step
from mla_jax.world import questions, stories

CURVE_POINTS = 200  # training losses kept; evaluations are all kept
POSITION_BINS = 8  # per training length
SPECTRUM_WINDOWS = 8


def measure(folder: Path, tier: Tier) -> dict[str, Any]:
    """The parts of a row that come from the run's best checkpoint. Raises UserError as `runs.load_run` does."""
    seconds: dict[str, float] = {}

    def timed(name: str, part: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        value = part(*arguments)
        seconds[name] = round(time.perf_counter() - began, 2)
        return value

    run = timed("load", runs.load_run, folder)
    prepared = prepare(run.config, run.tokenizer, quiet=True)
    eval_step = make_eval_step(run.model, run.config)
    by_length = timed("eval", _by_length, run, eval_step, prepared, tier.lengths)
    own = by_length[1]
    stored = runs.read_data(run.folder)
    return {
        "curve": curve(run.folder.metrics),
        "by_position": {str(times): binned(result, run.config.train.seq_len) for times, result in by_length.items()},
        "story_losses": [round(row["loss"], 4) for row in own.by_story(prepared.valid)],
        "facts": timed("facts", fact_scores, run, eval_step, tier.fact_stories),
        "spectra": timed("spectra", cache_spectra, run, windows(prepared, run.config.train.seq_len)),
        "experts": expert_load(run.folder.metrics),
        "stories": timed("stories", sampled, run, stored["openings"][: tier.stories]),
        "best_checkpoint": run.step,
        "measure_seconds": seconds,
    }


def curve(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """{"train": [(step, loss), ...], "eval": [...]} from metrics.jsonl, the training losses thinned."""
    rows = read_rows(metrics)
    found: dict[str, list[tuple[int, float]]] = {}
    for kind in ("train", "eval"):
        points = [(row["step"], round(row["loss"], 5)) for row in rows if row["kind"] == kind]
        stride = max(1, -(-len(points) // CURVE_POINTS)) if kind == "train" else 1
        found[kind] = points[stride - 1 :: stride]
    return found


def expert_load(metrics: Path) -> dict[str, Any]:
    """The last "experts" row of metrics.jsonl (load [L_moe][E], max_load, dead, entropy); {} without experts."""
    rows = [row for row in read_rows(metrics) if row["kind"] == "experts"]
    return {name: value for name, value in rows[-1].items() if name not in ("kind", "time")} if rows else {}


def lengths_of(config: Config, lengths: tuple[int, ...]) -> list[int]:
    """The multiples of train.seq_len that the model's positions reach; 1 is always among them.

    A learned table ends at model.max_len; rotary positions and none at all go on.
    """
    limit = config.model.max_len if config.model.position == "learned" else float("inf")
    return sorted({1, *(times for times in lengths if times * config.train.seq_len <= limit)})


def _by_length(
    run: Run, eval_step: Callable[..., Any], prepared: Prepared, lengths: tuple[int, ...]
) -> dict[int, EvalResult]:
    config, found = run.config, {}
    for times in lengths_of(config, lengths):
        batch = max(1, config.eval.batch_size // times)
        found[times] = evaluate(eval_step, run.variables, prepared.valid, times * config.train.seq_len, batch)
    return found


def binned(result: EvalResult, seq_len: int) -> list[tuple[int, float]]:
    """(first position, mean loss) of bins of an eighth of the training length."""
    width = max(1, seq_len // POSITION_BINS)
    means = result.by_position()
    bins = [(start, means[start : start + width]) for start in range(0, len(means), width)]
    return [(start, round(float(np.nanmean(values)), 4)) for start, values in bins if np.isfinite(values).any()]


def fact_scores(run: Run, eval_step: Callable[..., Any], n_stories: int) -> list[dict[str, Any]]:
    """`questions.score` rows, rounded, of held-out embedded stories; [] for other corpora or no stories."""
    if not n_stories or run.config.data.path:
        return []
    scored = questions.score(_probes(n_stories, run.config.data.seed), facts.logprob_fn(run, eval_step=eval_step))
    return [{name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in scored]


@functools.lru_cache(maxsize=2)
def _probes(n_stories: int, seed: int) -> tuple[questions.Probe, ...]:
    return tuple(questions.probes(stories(n_stories, seed, "valid")))


def windows(prepared: Prepared, seq_len: int) -> np.ndarray:
    """The first windows of the validation part, int32 [at most SPECTRUM_WINDOWS, T]."""
    tokens = np.asarray(prepared.valid.tokens[: SPECTRUM_WINDOWS * seq_len], np.int32)
    length = min(seq_len, len(tokens))
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)


def sampled(run: Run, prompts: list[str]) -> list[dict[str, str]]:
    """A completion of each prompt by the run's own sampling settings."""
    # None: the config's number of tokens, or what fits behind a prompt.
    settings = sample_settings(run.config.sample) | {"max_new_tokens": None}
    texts = Sampler.from_run(run).generate(prompts, **settings)
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]

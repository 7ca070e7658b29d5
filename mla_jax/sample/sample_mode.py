"""`--mode sample`: stories from a trained run, on the terminal."""

from collections.abc import Iterable
from typing import Any

import rich.console

from mla_jax import config as config_lib
from mla_jax import runs
from mla_jax.config import Config
from mla_jax.config_bounds import BrokenRule
from mla_jax.errors import UserError
from mla_jax.sample import expert_trace
from mla_jax.sample.sampler import Sampler, sample_settings
from mla_jax.terminal import say


def run(
    workdir: str,
    given: dict[str, Any],
    step: int | None,
    console: rich.console.Console,
    trace_experts: bool = False,
    stream: bool = False,
) -> list[str]:
    """Print num_samples stories per prompt. `given` overrides fields of the run's `config.sample`.

    trace_experts: also write which experts each token went to into the run folder's experts/.
    stream: write the stories one after the other, each as its tokens are drawn.
    """
    trained = runs.load_run(workdir, step)
    if trace_experts:
        expert_trace.check_has_experts(trained)
    config = _with(trained.config, given)
    if step is not None or not trained.finished:
        say(console, trained.origin, style="dim")
    prompts = [prompt for prompt in (config.sample.prompts or ("",)) for _ in range(config.sample.num_samples)]
    sampler = Sampler(trained.model, trained.variables, trained.tokenizer, config)
    settings = sample_settings(config.sample)
    if "max_new_tokens" not in given:  # the run's own number, or what fits
        settings["max_new_tokens"] = None
    first = settings.pop("seed")
    seeds = [(first + row) % 2**32 for row in range(len(prompts))]
    stories: Iterable[Iterable[str]]
    if stream:
        # All are asked for before the first is written: a prompt that is too long is refused at once.
        stories = [sampler.stream(prompt, seed=seed, **settings) for prompt, seed in zip(prompts, seeds, strict=True)]
    else:
        stories = [[text] for text in sampler.generate(prompts, seed=seeds, **settings)]
    completions = []
    for row, (prompt, pieces) in enumerate(zip(prompts, stories, strict=True)):
        say(console, f"--- {row + 1} of {len(prompts)} (seed {seeds[row]})", style="dim")
        completions.append(_write(console, prompt, pieces))
    if trace_experts:
        texts = list(zip(prompts, completions, strict=True))
        _, page = expert_trace.write(trained, expert_trace.trace(trained, texts))
        say(console, f"experts of every token: {page}")
    return completions


def _with(config: Config, given: dict[str, Any]) -> Config:
    """`config` with `given` fields of its `sample` section. Raises UserError with the flags' names."""
    try:
        return config_lib.replace(config, **{f"sample.{name}": value for name, value in given.items()})
    except BrokenRule as error:  # nothing is done about it elsewhere: the model is trained
        flag = f"--{error.field.removeprefix('sample.')}"
        remedy = error.remedy.replace(f"--config.{error.field}", flag)
        raise UserError(f"{flag} is {error.value!r}; {error.rule}: {remedy}.") from None


def _write(console: rich.console.Console, prompt: str, pieces: Iterable[str]) -> str:
    """Print a prompt and what follows it, piece by piece; returns what follows."""
    say(console, prompt, end="")
    completion = ""
    for piece in pieces:
        say(console, piece, end="")
        completion += piece
    say(console, "\n")
    return completion

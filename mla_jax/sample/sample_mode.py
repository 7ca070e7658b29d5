"""`--mode sample`: stories from a trained run, on the terminal."""

from typing import Any

import rich.console

from mla_jax import config as config_lib
from mla_jax import runs
from mla_jax.sample import expert_trace
from mla_jax.sample.sampler import Sampler, sample_settings


def run(
    workdir: str, given: dict[str, Any], step: int | None, console: rich.console.Console, trace_experts: bool = False
) -> list[str]:
    """Print num_samples stories per prompt. `given` overrides fields of the run's `config.sample`.

    trace_experts: also write which experts each token went to into the run folder's experts/.
    """
    trained = runs.load_run(workdir, step)
    if trace_experts:
        expert_trace.check_has_experts(trained)
    config = config_lib.replace(trained.config, **{f"sample.{name}": value for name, value in given.items()})
    cfg = config.sample
    prompts = [prompt for prompt in (cfg.prompts or ("",)) for _ in range(cfg.num_samples)]
    completions = Sampler.from_run(trained).generate(prompts, **sample_settings(cfg))
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1):
        console.print(f"--- {number} of {len(prompts)} (seed {cfg.seed + number - 1})", style="dim", highlight=False)
        console.print(prompt + completion + "\n", highlight=False, markup=False, soft_wrap=True)
    if trace_experts:
        texts = list(zip(prompts, completions, strict=True))
        _, page = expert_trace.write(trained, expert_trace.trace(trained, texts))
        console.print(f"experts of every token: {page}", highlight=False, markup=False, soft_wrap=True)
    return completions

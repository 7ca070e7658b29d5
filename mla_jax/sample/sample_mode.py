"""`--mode sample`: stories from a trained run, on the terminal."""

from typing import Any

import rich.console

from mla_jax import config as config_lib
from mla_jax import runs
from mla_jax.sample.sampler import Sampler, sample_settings


def run(workdir: str, given: dict[str, Any], step: int | None, console: rich.console.Console) -> list[str]:
    """Print num_samples stories per prompt. `given` overrides fields of the run's `config.sample`."""
    trained = runs.load_run(workdir, step)
    config = config_lib.replace(trained.config, **{f"sample.{name}": value for name, value in given.items()})
    cfg = config.sample
    prompts = [prompt for prompt in (cfg.prompts or ("",)) for _ in range(cfg.num_samples)]
    completions = Sampler.from_run(trained).generate(prompts, **sample_settings(cfg))
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1):
        console.print(f"--- {number} of {len(prompts)} (seed {cfg.seed + number - 1})", style="dim", highlight=False)
        console.print(prompt + completion + "\n", highlight=False, markup=False, soft_wrap=True)
    return completions

"""`--mode export`: a trained run as a Hugging Face folder."""

import rich.console

from mla_jax import runs
from mla_jax.errors import UserError
from mla_jax.interop import families, hf
from mla_jax.terminal import say


def run(workdir: str, out: str | None, step: int | None, dtype: str | None, console: rich.console.Console) -> None:
    """Export the best checkpoint (or `step`) of `workdir` to `out`. Raises UserError; nothing is written then."""
    if not out:
        raise UserError("--out is missing or empty: give the folder to export to, e.g. --out exports/mla_rope.")
    families.family(runs.read_config(runs.existing(workdir)).model)  # the reason, before weights are read
    trained = runs.load_run(workdir, step)
    if not trained.finished:
        say(console, trained.origin, style="dim")
    folder = hf.export(trained, out, dtype or "float32")
    architecture = families.family(trained.config.model)
    say(console, f"exported    {folder} (step {trained.step}, {architecture})")
    say(console, f'load it     transformers.AutoModelForCausalLM.from_pretrained("{folder}")')

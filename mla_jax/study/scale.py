"""How long the runs of the studies train, in one place: studies that train the same config share its row.

Two forms: "short" fits all studies into about an hour of one H100, "long" is the one to run where time is no matter.
Three tiers: *headline* (size m), *grid* (size s), *rates* (the grid's training at three learning rates, one seed).
"""

from typing import Any

from ml_collections import ConfigDict

from mla_jax.study import declare

FORMS = ("short", "long")
VOCABULARY = 2048  # pieces of the embedded stories' tokenizer
LEARNING_RATE = 1e-3
RATES = (5e-4, 1e-3, 2e-3)
COMMON = {
    "model.block": "gpt",
    "tokenizer.vocab_size": VOCABULARY,
    "train.tensorboard": False,
    "optim.learning_rate": LEARNING_RATE,
}


def new(name: str, title: str, form: str, **settings: Any) -> ConfigDict:
    """A study in one of FORMS; the long one has another name, so that each has a folder of its own."""
    if form not in FORMS:
        raise ValueError(f"the form {form!r} is not one of {', '.join(FORMS)}: write study_{name} or study_{name}:long")
    long = form == "long"
    c = declare.new(f"{name}_long" if long else name, title + (" (long)" if long else ""), **settings)
    declare.common(c, COMMON)
    return c


def training(steps: int, batch_size: int, seq_len: int, eval_every: int) -> dict[str, Any]:
    """Knobs of a training; one checkpoint, at its end, because without dropout and repetition the last is the best."""
    sizes = {"train.steps": steps, "train.batch_size": batch_size, "train.seq_len": seq_len}
    return sizes | {"train.eval_every": eval_every, "checkpoint.every": steps, "sample.num_samples": 1}


HEADLINE = {"short": training(1000, 64, 512, 100), "long": training(1000, 128, 512, 100)}
GRID = {"short": training(800, 64, 256, 50), "long": training(1500, 64, 256, 50)}


def headline(c: ConfigDict, form: str, fact_stories: int = 200) -> None:
    """Size m; the long form tunes every point's learning rate on seed 0."""
    rates = RATES if form == "long" else ()
    declare.tier(c, "headline", "m", HEADLINE[form], rates, lengths=(1, 2, 4), fact_stories=fact_stories)


def grid(c: ConfigDict, form: str, name: str = "grid", size: str = "s", **knobs: Any) -> None:
    """Size s at one learning rate; no fact questions, which would cost a run more than its steps."""
    declare.tier(c, name, size, GRID[form] | knobs)


def rates(c: ConfigDict, form: str) -> None:
    """The grid's training at RATES: would another learning rate turn a verdict?"""
    declare.tier(c, "rates", "s", GRID[form], RATES)

"""How long the runs of the studies train, in one place: studies that train the same config share its row.

Two forms: "short" fits all studies into an hour and a half of one H100, "long" is for machines with more time.
"files" and "files_long" (of the studies that have them) are the same on a small file of real stories.
Three tiers: *headline* (size m at the best of four learning rates), *grid* (size s, one rate for all), *rates* (the
grid's training at three learning rates, one seed).
"""

from typing import Any

from ml_collections import ConfigDict

from mla_jax.study import declare

FORMS = ("short", "long")
FILES = {"files": "short", "files_long": "long"}  # a form on files of stories: the form whose training it has
VOCABULARY = 2048  # pieces of the embedded stories' tokenizer
FILES_VOCABULARY = 8192  # and of the files'
FILES_CHECKPOINTS = 100  # steps: several epochs of a small file overfit, so the best checkpoint is not the last
LEARNING_RATE = 1e-3
RATES = (5e-4, 1e-3, 2e-3, 4e-3)  # of the headline's seed 0: paper A's variants are best at the last two
GRID_RATES = (1e-3, 2e-3, 4e-3)  # at size s larger ones were better with AdamW (docs/results/study_optimizer)
COMMON = {
    "model.block": "gpt",
    "tokenizer.vocab_size": VOCABULARY,
    "train.tensorboard": False,
    "optim.learning_rate": LEARNING_RATE,
}


def new(name: str, title: str, form: str, files: tuple[str, ...] = (), **settings: Any) -> ConfigDict:
    """A study in one of FORMS, or of those of FILES that it has (`files`); each form has a name and folder of its own.

    A form on files sets what its tiers share: dropout against several epochs, and the files' vocabulary.
    """
    forms = (*FORMS, *files)
    if form not in forms:
        raise ValueError(f"the form {form!r} is not one of {', '.join(forms)}: write e.g. study_{name}:{forms[-1]}")
    title += ", on files of stories" if form in FILES else ""
    title += " (long)" if _length(form) == "long" else ""
    c = declare.new(name if form == "short" else f"{name}_{form}", title, **settings)
    more = {"model.dropout": 0.1, "tokenizer.vocab_size": FILES_VOCABULARY} if form in FILES else {}
    declare.common(c, COMMON | more)
    return c


def vocabulary(form: str) -> int:
    """Pieces of the tokenizer of a form: embedding rows of its models."""
    return FILES_VOCABULARY if form in FILES else VOCABULARY


def _length(form: str) -> str:
    return FILES.get(form, form)


def _training(lengths: dict[str, dict[str, Any]], form: str) -> dict[str, Any]:
    return lengths[_length(form)] | ({"checkpoint.every": FILES_CHECKPOINTS} if form in FILES else {})


def training(steps: int, batch_size: int, seq_len: int, eval_every: int) -> dict[str, Any]:
    """Knobs of a training; one checkpoint, at its end, because without dropout and repetition the last is the best."""
    sizes = {"train.steps": steps, "train.batch_size": batch_size, "train.seq_len": seq_len}
    return sizes | {"train.eval_every": eval_every, "checkpoint.every": steps, "sample.num_samples": 1}


HEADLINE = {"short": training(1000, 64, 512, 100), "long": training(1000, 128, 512, 100)}
GRID = {"short": training(800, 64, 256, 50), "long": training(1500, 64, 256, 50)}


def headline(c: ConfigDict, form: str) -> None:
    """Size m, tuned by RATES on seed 0 but for the short form on files. Fact questions are of embedded stories."""
    rates = () if form in FILES and _length(form) == "short" else RATES
    facts = 0 if form in FILES else 200
    declare.tier(c, "headline", "m", _training(HEADLINE, form), rates, lengths=(1, 2, 4), fact_stories=facts)


def grid(c: ConfigDict, form: str, name: str = "grid", size: str = "s", **knobs: Any) -> None:
    """Size s at one learning rate; no fact questions, which would cost a run more than its steps."""
    declare.tier(c, name, size, _training(GRID, form) | knobs)


def rates(c: ConfigDict, form: str) -> None:
    """The grid's training at GRID_RATES: would another learning rate turn a verdict?"""
    declare.tier(c, "rates", "s", _training(GRID, form), GRID_RATES)

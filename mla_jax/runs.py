"""The run folder: layout, lock, config, tokenizer, weights. Copy it to another machine and it samples.

    config.json · tokenizer.model · data.json · checkpoints/STEP/{model,train,data,metrics} · metrics.jsonl ·
    tensorboard/ · samples.txt · plots/ · report.md · eval/

This module imports no optimizer and no trainer: sample, eval, judge and export read runs through it.
"""

import contextlib
import dataclasses
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from mla_jax import checksums, files
from mla_jax import config as config_lib
from mla_jax.config import Config
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError
from mla_jax.model import backend as backend_lib
from mla_jax.model.transformer import Transformer, variables_of
from mla_jax.restore import another, restore_weights, short_reason
from mla_jax.typed import suggest


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder, and nothing else."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        return self.path / "samples.txt"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def eval(self) -> Path:
        return self.path / "eval"

    def steps(self) -> list[int]:
        """Steps of finished checkpoints, ascending; one being written has another name and is not among them."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(p.name) for p in self.checkpoints.iterdir() if p.is_dir() and p.name.isdigit())

    @property
    def imported(self) -> bool:
        """Whether it was made of a Hugging Face folder: its checkpoints are weights without an optimizer state."""
        checkpoints = [self.checkpoints / str(step) for step in self.steps()]
        return any((p / "model").is_dir() for p in checkpoints) and not any((p / "train").exists() for p in checkpoints)


@contextlib.contextmanager
def lock(folder: RunFolder, mark: str = "") -> Iterator[None]:
    """Hold the run folder for training; the lock dies with its process. Raises UserError when another holds it.

    mark: what other processes of the same run look for, to see that they have the same folder (`check_lock`).
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        handle = files.locked(folder.path / ".lock", "a+")
    except OSError as error:
        raise UserError(
            f"--workdir is {str(folder.path)!r}, which cannot be written to ({error.strerror}): choose another folder."
        ) from None
    if handle is None:
        raise UserError(
            f"--workdir is {str(folder.path)!r}, which another process is training in: "
            "wait for it, stop it, or choose another folder."
        )
    with handle:
        handle.truncate(0)
        handle.write(mark)
        handle.flush()
        yield


def check_lock(folder: RunFolder, mark: str) -> None:
    """Raise UserError unless process 0 of this run holds this very folder."""
    try:
        found = (folder.path / ".lock").read_text()
    except OSError:
        found = ""
    if found != mark:
        raise UserError(
            f"--workdir is {str(folder.path)!r}, which is not the folder that process 0 has under that path: give a "
            "folder that all processes share (a network file system)."
        )


def existing(workdir: str | os.PathLike, field: str = "--workdir") -> RunFolder:
    """The run folder at `workdir`. Raises UserError, naming the `field` that gave it, when there is none."""
    folder = RunFolder(Path(workdir))
    if not os.path.isdir(folder.path):  # Path.is_dir raises for a name that is too long
        raise UserError(
            f"{field} is {str(workdir)!r}, but there is no such folder{_near(folder.path)}: train a run there first."
        )
    if not folder.config.is_file():
        raise UserError(
            f"{field} is {str(workdir)!r}, which has no config.json, so it is no run folder of mla_jax"
            f"{_near(folder.path)}: give the folder that --workdir named in training."
        )
    if is_hugging_face(folder):
        raise UserError(
            f"{field} is {str(workdir)!r}, which is a Hugging Face folder: make a run folder of it first, python -m "
            f"mla_jax.interop.import_hf --hf {shlex.quote(str(workdir))} --workdir NEW."
        )
    return folder


def is_hugging_face(folder: RunFolder) -> bool:
    """Whether config.json is that of a Hugging Face model."""
    try:
        return "architectures" in json.loads(folder.config.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _near(path: Path) -> str:
    """' (did you mean runs/X?)', where a run beside `path` has nearly its name, or ''."""
    beside: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # no such parent, or a name that no file system takes
        beside = [p.name for p in path.parent.iterdir() if os.path.isfile(RunFolder(p).config)]
    parent = str(path)[: -len(path.name)] if path.name else ""  # as it was written: "" for a bare name
    return suggest(path.name, beside, before=parent)


def read_config(folder: RunFolder) -> Config:
    """The run's resolved config. Raises UserError when the file is unreadable or newer than the code."""
    try:
        text = folder.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder.config} cannot be read ({error}): copy the run folder again.") from None
    return config_lib.loads(text, str(folder.config))


def read_data(folder: RunFolder) -> dict[str, Any]:
    """data.json: fingerprint, stats, baselines and held-out openings of the run's data. Raises UserError."""
    try:
        content = json.loads(folder.data.read_text(encoding="utf-8"))
        if not all(isinstance(content[name], str) for name in ("fingerprint", "tokenizer_sha256")):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{folder.data} is missing or damaged: copy the run folder again.") from None
    return content


def read_tokenizer(folder: RunFolder) -> Tokenizer:
    """The run's own tokenizer. Raises UserError when it is missing, damaged or not the one of the training."""
    if not folder.tokenizer.is_file():
        raise UserError(f"{folder.tokenizer} is missing: copy the run folder again.")
    tokenizer = Tokenizer.load(folder.tokenizer, chosen=False)
    if tokenizer.sha256 != read_data(folder)["tokenizer_sha256"]:
        raise UserError(
            f"{folder.tokenizer} is not the tokenizer that the run was trained with: "
            "copy the tokenizer.model that belongs to these weights."
        )
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, ready for use: everything that sampling, evaluation and export need.

    params: float32 pytree; step: the checkpoint's; router_bias: None without experts.
    """

    folder: RunFolder
    config: Config
    tokenizer: Tokenizer
    model: Transformer
    params: Any
    router_bias: jax.Array | None
    step: int

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes: the parameters, and the router bias where there is one."""
        return variables_of(self.params, self.router_bias)

    @property
    def finished(self) -> bool:
        """Whether its training came to its end: of an imported run, which ended elsewhere, nobody here knows."""
        return self.folder.result.exists() or self.folder.imported

    @property
    def origin(self) -> str:
        """Whose weights these are, e.g. "weights of step 200 of 400 of runs/mha, which is not finished"."""
        unfinished = "" if self.finished else ", which is not finished"
        return f"weights of step {self.step} of {self.config.train.steps} of {self.folder.path}{unfinished}"


def load_run(workdir: str | os.PathLike, step: int | None = None, best: bool = True, field: str = "--workdir") -> Run:
    """Load a run folder: the best checkpoint by validation loss (or the newest, or the given step).

    Raises UserError when the folder, its config, its tokenizer or the checkpoint is missing, damaged or newer than
    the code, and when a damaged checkpoint may be the best. Weights are restored to the default device, whatever
    device they were trained on.
    """
    folder = existing(workdir, field)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    step = _choose_step(folder, config, step, best)
    backend = backend_lib.choose(backend_lib.anywhere(config.model))
    impls = (backend.attention_impl, backend.decode_impl)
    logging.info("%s: step %d, %s attention, %s decode in %s.", folder.path, step, *impls, backend.dtype)
    model = Transformer(config.model, backend)
    weights = restore_weights(folder, model, step)
    return Run(folder, config, tokenizer, model, weights["params"], weights.get("router_bias"), step)


def checkpoint_losses(folder: RunFolder) -> dict[int, float]:
    """Validation loss per finished checkpoint, where it was recorded; a damaged one is named and left out."""
    losses, damaged = read_losses(folder)
    for step, reason in damaged.items():
        logging.warning("The validation loss of checkpoint %s/%d is unknown: %s.", folder.checkpoints, step, reason)
    return losses


def read_losses(folder: RunFolder) -> tuple[dict[int, float], dict[int, str]]:
    """Validation loss per finished checkpoint, where it was recorded; of those that lost theirs, the reason."""
    losses, damaged = {}, {}
    for step in folder.steps():
        checkpoint = folder.checkpoints / str(step)
        try:
            checksums.check(checkpoint, "metrics")
            losses[step] = float(json.loads((checkpoint / "metrics" / "metrics").read_bytes())["valid_loss"])
        except FileNotFoundError:  # saved between two evaluations, where anything else is left of it
            empty = not any((checkpoint / name).exists() for name in ("model", checksums.NAME))
            if empty and checkpoint.is_dir():  # else a training has just removed it
                damaged[step] = "it is empty"
        except (checksums.Mismatch, OSError, ValueError, TypeError, KeyError) as error:
            if checkpoint.is_dir():
                damaged[step] = short_reason(error)
    return losses, damaged


def _choose_step(folder: RunFolder, config: Config, step: int | None, best: bool) -> int:
    steps = folder.steps()
    if not steps:
        raise UserError(f"{folder.path} has no finished checkpoint: train it further (the same command resumes).")
    if step is not None:
        if step not in steps:
            raise UserError(
                f"--step is {step}, but {folder.path} has checkpoints {', '.join(map(str, steps))} only: use one."
            )
        return step
    losses, damaged = read_losses(folder) if best else ({}, {})
    if damaged:
        worst = max(damaged)
        raise UserError(
            f"checkpoint {folder.checkpoints / str(worst)} may be the best one, but its validation loss cannot be read "
            f"({damaged[worst]}): {another(folder, worst, config.model)}."
        )
    return min(losses, key=losses.__getitem__) if losses else steps[-1]

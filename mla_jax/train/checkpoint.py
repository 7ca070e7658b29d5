"""Orbax checkpoints of a training run: asynchronous, newest N and best N kept, restored to continue bit for bit.

Items: `model` (params, or their average with `optim.ema_decay`, and the router bias where there is one: a model without
it routes differently), `train` (step and optimizer state), `data` (the input pipeline's place), `config` (the one it
was trained with, for the record: the run folder's config.json is what is read), `metrics` (validation loss, for the
best N).
"""

import contextlib
import itertools
import json
import shutil
from typing import Any

import grain
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from mla_jax import checksums, distributed
from mla_jax.config import CheckpointConfig, Config
from mla_jax.errors import UserError
from mla_jax.restore import check_numbers, check_router_bias, drop_failed_reads, quiet_reads, short_reason
from mla_jax.runs import RunFolder, read_losses
from mla_jax.train.ema import swapped
from mla_jax.train.state import TrainState

_REMOVED = "removed.tmp"  # sub-folder of checkpoints that are not kept any more, on their way to being deleted


class Checkpoints:
    """The checkpoints of one run, for writing. Use as a context manager: leaving it waits for pending saves."""

    def __init__(self, folder: RunFolder, cfg: CheckpointConfig, config: Config | None = None):
        """config: the whole one, stored with each checkpoint for the record. Raises UserError, see below."""
        self._record = config.to_dict() if config else {}
        policies: list[Any] = [checkpoint_managers.LatestN(cfg.keep_latest)]
        if cfg.keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics["valid_loss"],
                    reverse=True,  # BestN keeps the end of the sorted list: smallest loss last
                    n=cfg.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        keep = frozenset(cfg.keep_steps)
        policies.append(_KeepSteps(keep))
        self._folder = folder
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        with distributed.together("losses"):
            self._set_aside_losses()
            self._sweep()  # what a kill left
        self._manager = ocp.CheckpointManager(
            folder.checkpoints.resolve(),
            options=ocp.CheckpointManagerOptions(
                # Not max_to_keep with best_fn: that deletes the newest when it is not among the best.
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=lambda metrics: metrics["valid_loss"],  # without it Orbax does not write metrics
                best_mode="min",
                cleanup_tmp_directories=True,
                # One that is not kept loses its name before its first file: a kill amid its removal would leave a
                # checkpoint that lacks files, and the next start would take it for a damaged one.
                todelete_subdir=_REMOVED,
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.closing(self._manager):
            self.wait()

    @property
    def latest(self) -> int | None:
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of checkpoints that are there or being written."""
        return list(self._manager.all_steps())

    def save(self, state: TrainState, data: grain.DatasetIterator, metrics: dict[str, float] | None) -> None:
        """Begin saving `state`; returns once it is copied off the device. Metrics need "valid_loss", or None."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.wait()  # Orbax would do so, and what the save before has removed can go
        state = swapped(state)
        weights = {"params": state.params}
        if state.router_bias is not None:
            weights["router_bias"] = state.router_bias
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(weights),
            train=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            data=grain.checkpoint.CheckpointSave(data),
            config=ocp.args.JsonSave(self._record),
        )
        logger = logging.get_absl_logger()
        logger.addFilter(_is_news)
        try:
            self._manager.save(step, args=items, metrics=metrics, force=True)
        finally:
            logger.removeFilter(_is_news)

    def wait(self) -> None:
        """Block until every begun save is committed."""
        self._manager.wait_until_finished()
        self._sweep()

    def _sweep(self) -> None:
        """Delete the checkpoints that are not kept any more."""
        if distributed.is_first():
            shutil.rmtree(self._folder.checkpoints / _REMOVED, ignore_errors=True)

    def restore(self, abstract: TrainState, data: grain.DatasetIterator) -> TrainState | None:
        """The newest checkpoint that can be read, with `data` moved to its place; None when there is none at all.

        A damaged checkpoint is named in the log and the one before it taken; its folder becomes STEP.damagedN, so that
        the step can be saved again and nothing reads it. Raises UserError, and moves none, when all are damaged.
        """
        weights = {"params": abstract.params}
        if abstract.router_bias is not None:
            weights["router_bias"] = abstract.router_bias
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore(weights),
            train=ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            try:
                checksums.check(self._folder.checkpoints / str(step))
                if abstract.router_bias is not None:
                    check_router_bias(self._folder.checkpoints / str(step) / "model")
                with quiet_reads():
                    restored = self._manager.restore(step, args=items)
                check_numbers(restored["model"].get("router_bias"))
                data.set_state(self._data_state(step))
                reason = ""
            except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
                reason = short_reason(error)
            if any(reasons := distributed.exchange(f"restore/{step}", reason)):  # damaged for one is damaged for all
                reason = next(filter(None, reasons))
                logging.error("Checkpoint %s/%d cannot be restored (%s).", self._folder.checkpoints, step, reason)
                restored = None
            if restored is None:
                drop_failed_reads()
                continue
            self._move_aside(steps[:number])
            model, train = restored["model"], restored["train"]
            return swapped(TrainState(train["step"], model["params"], train["opt_state"], model.get("router_bias")))
        if steps:
            raise self._none_is_good(steps)
        return None

    def _none_is_good(self, steps: list[int]) -> UserError:
        return UserError(
            f"none of the checkpoints {', '.join(map(str, sorted(steps)))} in {self._folder.checkpoints} can be "
            "restored: copy the run folder again, or move it away to start over."
        )

    def _data_state(self, step: int) -> dict[str, Any]:
        """The input pipeline's place: the same in every process, so that any number of them can go on from it."""
        files = sorted((self._folder.checkpoints / str(step) / "data").glob("process_*.json"))
        if not files:
            raise FileNotFoundError("it does not say where the input pipeline was")
        return json.loads(files[0].read_text(encoding="utf-8"))

    def _seal(self) -> None:
        """Called by Orbax in its own thread when all is written and before the folder gets its final name: a
        checkpoint that counts has its checksums."""
        if not distributed.is_first():
            return
        for folder in self._folder.checkpoints.glob("*.orbax-checkpoint-tmp*"):
            try:
                checksums.seal(folder)
            except OSError as error:  # what a kill left is being swept away, or the disk is full and Orbax will say so
                logging.info("%s has no checksums (%s).", folder, error.strerror)

    def _set_aside_losses(self) -> None:
        """Move checkpoints whose recorded loss is damaged aside: Orbax reads all losses before anything else, and one
        that is no JSON would end it. Raises UserError, and moves none, when no other checkpoint is there."""
        if not distributed.is_first():
            return
        steps, (_, damaged) = self._folder.steps(), read_losses(self._folder)
        for step, reason in damaged.items():
            logging.error("Checkpoint %s/%d cannot be restored (%s).", self._folder.checkpoints, step, reason)
        if damaged and len(damaged) == len(steps):
            raise self._none_is_good(steps)
        for step in damaged:
            self._rename(step)

    def _rename(self, step: int) -> None:
        folder = self._folder.checkpoints / str(step)
        aside = next(p for i in itertools.count(1) if not (p := folder.with_name(f"{step}.damaged{i}")).exists())
        folder.rename(aside)
        logging.warning("Moved the damaged checkpoint %s to %s.", folder, aside.name)

    def _move_aside(self, steps: list[int]) -> None:
        for step in steps if distributed.is_first() else ():
            self._rename(step)
        if steps:
            distributed.exchange("moved aside", "")
            self._manager.reload()


def _is_news(record: Any) -> bool:
    """False for Orbax' warning that a checkpoint has no loss: one between two evaluations has none by design."""
    return "did not provide metrics" not in record.getMessage()


class _KeepSteps:
    """Never delete the listed steps (Orbax' own CustomSteps does not construct in the pinned release)."""

    def __init__(self, steps: frozenset[int]):
        self._steps = steps

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        return [info.step in self._steps for info in checkpoints]

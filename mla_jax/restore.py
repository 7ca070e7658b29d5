"""Weights from a checkpoint: read to one device, whatever they were trained on; one that cannot be read says why, once.

Orbax and TensorStore raise many types for a damaged or missing file, and leave reads behind that complain later.
"""

import contextlib
import gc
import logging as python_logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mla_jax import checksums
from mla_jax.config import ModelConfig
from mla_jax.errors import UserError, brief
from mla_jax.model.initial import param_shapes
from mla_jax.model.moe import initial_router_bias
from mla_jax.model.transformer import Transformer

if TYPE_CHECKING:
    from mla_jax.runs import RunFolder


def restore_weights(folder: "RunFolder", model: Transformer, step: int) -> dict[str, Any]:
    """The `model` item of a checkpoint: {"params": float32 pytree} and, with experts, "router_bias" [L_moe, E].

    Raises UserError when it does not fit.
    """
    path = folder.checkpoints / str(step) / "model"
    abstract = {"params": abstract_params(model)}
    if model.cfg.n_moe_layers:
        bias = jax.eval_shape(lambda: initial_router_bias(model.cfg))
        abstract["router_bias"] = jax.ShapeDtypeStruct(bias.shape, bias.dtype, sharding=_one_device())
    try:
        checksums.check(path.parent, "model")
        if model.cfg.n_moe_layers:
            check_router_bias(path)
        with quiet_reads(), contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
            weights = checkpointer.restore(path.resolve(), abstract)
        check_numbers(weights.get("router_bias"))
        return weights
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged or missing file
        reason = short_reason(error)
    drop_failed_reads()
    remedy = another(folder, step, model.cfg)
    if (path.parent / checksums.NAME).is_file() and _is_whole(path.parent):  # then no other one will fit either
        remedy = "its files are as they were written, so config.json is of another run: copy the run folder again"
    raise UserError(f"checkpoint {path.parent} cannot be restored ({reason}): {remedy}.")


def another(folder: "RunFolder", step: int, cfg: ModelConfig) -> str:
    """What to do instead of reading the checkpoint of `step`, as a clause."""
    others = (folder.checkpoints / str(s) for s in reversed(folder.steps()) if s != step)
    experts = cfg.n_moe_layers > 0
    good = next((path.name for path in others if _is_whole(path) and not (experts and _lacks_bias(path))), None)
    return "copy the run folder again" if good is None else f"the newest good one is {good}, --step={good} reads it"


def check_router_bias(item: Path) -> None:
    """Raise ValueError, a clause, when the checkpoint item `item` holds params without a router bias."""
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:  # a Checkpointer warns of a file not its own
        tree = handler.metadata(item.resolve()).tree
    if "params" in tree and "router_bias" not in tree:
        raise ValueError("it has no router_bias, without which a model with experts routes differently")


def check_numbers(router_bias: jax.Array | None) -> None:
    """Raise ValueError, a clause, for a router bias that is no number somewhere; -inf masks an expert and may stand."""
    if router_bias is not None and bool(jnp.isnan(router_bias).any()):
        raise ValueError("its router_bias is not a number, and would never become one again")


def _is_whole(checkpoint: Path) -> bool:
    try:
        checksums.check(checkpoint, "model")
    except checksums.Mismatch:
        return False
    return (checkpoint / "model").is_dir()


def _lacks_bias(checkpoint: Path) -> bool:
    try:
        check_router_bias(checkpoint / "model")
    except Exception:  # Orbax raises many types for metadata that cannot be read: no good checkpoint either
        return True
    return False


def short_reason(error: Exception) -> str:
    """The first line of Orbax' or TensorStore's error."""
    return brief(error, first_line=True)


@contextlib.contextmanager
def quiet_reads() -> Iterator[None]:
    """Around an Orbax restore: when it fails, the reads that it leaves behind say nothing.

    TensorStore's threads report to the closed event loop at any later time, so that filter stays after a failure.
    """
    previous = sys.unraisablehook

    def without_reads(unraisable: Any) -> None:
        read = getattr(unraisable.object, "__qualname__", "").startswith("_read_array")  # Orbax' coroutine
        if not read and str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    asyncio_logger = python_logging.getLogger("asyncio")
    disabled, asyncio_logger.disabled = (
        asyncio_logger.disabled,
        True,
    )  # other reads may fail while the first is reported
    sys.unraisablehook = without_reads
    try:
        yield
    finally:
        asyncio_logger.disabled = disabled
    sys.unraisablehook = previous


def drop_failed_reads() -> None:
    """Collect, silently, what a failed restore leaves: to be called when its exception is no longer referred to."""
    hook, asyncio_logger = sys.unraisablehook, python_logging.getLogger("asyncio")
    disabled, asyncio_logger.disabled, sys.unraisablehook = asyncio_logger.disabled, True, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # reads that were never begun
            gc.collect()
    finally:
        sys.unraisablehook, asyncio_logger.disabled = hook, disabled


def abstract_params(model: Transformer) -> Any:
    """Shapes and dtypes of the parameters, with the default device's sharding."""
    sharding = _one_device()
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), param_shapes(model))


def _one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

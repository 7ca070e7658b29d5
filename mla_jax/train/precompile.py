"""Compiles the training step while a run is opened: on a GPU tens of seconds, in which data and weights get ready.

The training loop takes the very function that was compiled, so that its first call neither traces nor lowers nor looks
anything up. Where a tokenizer has fewer pieces than asked for, the config is another: it compiles as it would anyway.
"""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mla_jax.config import Config
from mla_jax.model.backend import Backend
from mla_jax.model.transformer import Transformer
from mla_jax.train import step as steps
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state


class Precompiler:
    """Compiles one training step on a thread, from `start` on; `train_step` waits for it.

    restores: whether the first state is read from a folder. Nothing is compiled on a CPU, whose cores the data need, or
    with several processes. The thread is no daemon: Python waits for it, as a process must not end inside the compiler.
    """

    def __init__(self, backend: Backend, restores: bool = False):
        self._backend, self._restores = backend, restores
        self._thread: threading.Thread | None = None
        self._done: tuple[Config, Callable[..., Any]] | None = None

    def start(self, config: Config) -> None:
        """Begin to compile the step of `config`; the first call decides, later ones do nothing."""
        alone = jax.process_count() == 1 and self._backend.mesh is None
        if self._thread is None and alone and self._backend.platform != "cpu":
            self._thread = threading.Thread(target=self._compile, args=(config,), name="precompile")
            self._thread.start()

    def train_step(self, config: Config) -> Callable[..., Any] | None:
        """The compiled step (`steps.make_train_step`); None where that of another config, or none, was compiled."""
        if self._thread is not None:
            self._thread.join()
        return self._done[1] if self._done is not None and self._done[0] == config else None

    def _compile(self, config: Config) -> None:
        try:
            rows = jax.ShapeDtypeStruct((config.train.batch_size, config.train.seq_len + 1), jnp.int32)
            model, optimizer = Transformer(config.model, self._backend), make_optimizer(config.optim)
            train_step = steps.make_train_step(model, optimizer, config)
            state = abstract_state(model, optimizer)
            if not self._restores:  # fresh arrays are bound to no device, and their program names none
                state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
            train_step.lower(state, {"tokens": rows, "segment_ids": rows}, np.uint32(config.train.seed)).compile()
            self._done = config, train_step
        except Exception as error:  # the first step meets it again, where it can be told
            logging.debug("compiling ahead: %s", error)

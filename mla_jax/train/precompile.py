"""Compiles the training step while a run is opened: on a GPU tens of seconds, in which data and weights get ready.

The training loop takes the very function that was compiled, so that its first call neither traces nor lowers nor looks
anything up. Where a tokenizer has fewer pieces than asked for, the config is another: it compiles as it would anyway.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mla_jax import config as config_lib
from mla_jax.config import Config
from mla_jax.model.backend import Backend
from mla_jax.model.transformer import Transformer
from mla_jax.train import step as steps
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state


class Precompiler:
    """`start` begins to compile the training step on a thread, once; `train_step` waits for it.

    pieces: how many the tokenizer of `config` is expected to have. restores: whether the first state is read from a
    folder. `start` does nothing on a CPU, whose cores the data need, and with several processes. An error inside the
    context waits for the thread's end as well: a process must not end inside the compiler.
    """

    def __init__(self, config: Config, backend: Backend, pieces: int, restores: bool = False):
        sizes = {"model.vocab_size": config.model.vocab_size or pieces, "tokenizer.vocab_size": pieces}
        self._expected = config, sizes
        self._backend, self._restores = backend, restores
        self._thread: threading.Thread | None = None
        self._done: tuple[Config, Callable[..., Any]] | None = None

    def __enter__(self) -> "Precompiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._thread is not None:
            self._thread.join()

    def start(self, config: Config | None = None) -> None:
        """config: with the tokenizer's real size, once that is known."""
        alone = jax.process_count() == 1 and self._backend.mesh is None
        if self._thread is None and alone and self._backend.platform != "cpu":
            self._thread = threading.Thread(target=self._compile, args=(config,), name="precompile")
            self._thread.start()

    def train_step(self, config: Config) -> Callable[..., Any] | None:
        """The compiled step of this config (`steps.make_train_step`), or None where there is none."""
        if self._thread is not None:
            self._thread.join()
        return self._done[1] if self._done is not None and self._done[0] == config else None

    def _compile(self, config: Config | None) -> None:
        try:
            if config is None:
                expected, sizes = self._expected
                config = config_lib.replace(expected, **sizes)
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

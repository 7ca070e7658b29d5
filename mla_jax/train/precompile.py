"""Compiles the training step while data are being prepared: on a GPU both take tens of seconds, on other processors.

Only JAX's persistent cache connects the two: the first step finds there what was compiled here. So nothing depends on
it, and a tokenizer with fewer pieces than asked for costs no more than the compilation it would have cost anyway.
"""

import threading
from types import TracebackType

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
    """`start` begins to compile `config`'s training step on a thread; leaving the context waits for its end.

    pieces: how many the tokenizer is expected to have. `start` does nothing on a CPU, whose cores the data need, with
    several processes, and without a persistent cache.
    """

    def __init__(self, config: Config, backend: Backend, pieces: int):
        self._config, self._backend, self._pieces = config, backend, pieces
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Precompiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:  # also after an error: a process must not end inside the compiler
            self._thread.join()

    def start(self) -> None:
        alone = jax.process_count() == 1 and self._backend.mesh is None
        if self._thread is None and alone and self._backend.platform != "cpu" and jax.config.jax_compilation_cache_dir:
            self._thread = threading.Thread(target=self._compile, name="precompile")
            self._thread.start()

    def _compile(self) -> None:
        config, pieces = self._config, self._pieces
        rows = jax.ShapeDtypeStruct((config.train.batch_size, config.train.seq_len + 1), jnp.int32)
        try:
            sizes = {"model.vocab_size": config.model.vocab_size or pieces, "tokenizer.vocab_size": pieces}
            config = config_lib.replace(config, **sizes)
            model, optimizer = Transformer(config.model, self._backend), make_optimizer(config.optim)
            train_step = steps.make_train_step(model, optimizer, config)
            # Without places: those of fresh arrays are not part of the program either.
            state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), abstract_state(model, optimizer))
            batch = {"tokens": rows, "segment_ids": rows}
            train_step.lower(state, batch, np.uint32(config.train.seed)).compile()
        except Exception as error:  # the first step meets it again, where it can be told
            logging.debug("compiling ahead: %s", error)

"""The profiler's trace of a few early steps, in the run folder: `train.profile_steps`."""

from pathlib import Path
from typing import Any

import jax

FIRST = 21  # steps since the start before the trace: they compile and fill buffers


class Trace:
    """Call `at` before each step and `end` after the last. Writes to `folder`; n_steps 0: none."""

    def __init__(self, folder: Path, n_steps: int):
        self._folder, self._n_steps, self._on = folder, n_steps, False

    def at(self, since_start: int, state: Any) -> None:
        """Step number `since_start` of this process (from 1) is about to begin on `state`."""
        if self._n_steps and since_start == FIRST and not self._on:  # on: rolled back amid the trace
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif since_start == FIRST + self._n_steps:
            self.end(state)

    def end(self, state: Any) -> None:
        """Write the trace, if one is being taken: also where a run ends inside it."""
        if self._on:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._on = False

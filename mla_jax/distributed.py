"""Several processes that train one model, and agree. In one that stands alone everything here is a plain call."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mla_jax.errors import UserError

LONGEST_WAIT_S = 6 * 3600  # for a process that still prepares data or samples; a dead one is noticed (peers.py)
_exchanges = itertools.count()  # keys of the coordination service are written once
T = TypeVar("T")


def index() -> int:
    """This process' number, from 0."""
    return jax.process_index()


def count() -> int:
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes logs, config, samples and plots."""
    return jax.process_index() == 0


def exchange(name: str, text: str, timeout_s: int = LONGEST_WAIT_S) -> list[str]:
    """Every process' text, in their order; returns when all have given theirs. All make the same calls in order."""
    if count() == 1:
        return [text]
    service, key = client(), f"mla_jax/{next(_exchanges)}/{name}"
    service.key_value_set(f"{key}/{index()}", text)
    return [service.blocking_key_value_get(f"{key}/{i}", timeout_s * 1000) for i in range(count())]


@contextlib.contextmanager
def together(name: str) -> Iterator[None]:
    """A part that must succeed everywhere: a UserError in one process is raised in all of them."""
    if count() == 1:
        yield
        return
    error = None
    try:
        yield
    except UserError as caught:
        error = caught
    outcomes = exchange(name, str(error) if error else "")
    if error:
        raise error
    for number, outcome in enumerate(outcomes):
        if outcome:
            raise UserError(f"process {number} of {count()}: {outcome}")


def first_then_others(name: str, function: Callable[[], T]) -> T:
    """function(), in process 0 before the others: what it puts into a shared cache they find."""
    with together(f"{name}/first"):
        if is_first():
            result = function()
    with together(f"{name}/others"):
        if not is_first():
            result = function()
    return result


def check_same(name: str, facts: dict[str, Any]) -> None:
    """Raise UserError in every process unless all have the same facts; it names those that differ."""
    given = [json.loads(text) for text in exchange(name, json.dumps(facts, sort_keys=True))]
    for number, other in enumerate(given):
        unlike = [key for key in given[0].keys() | other.keys() if given[0].get(key) != other.get(key)]
        if unlike:
            listed = ", ".join(f"{key} ({given[0].get(key)!r} and {other.get(key)!r})" for key in sorted(unlike)[:5])
            raise UserError(
                f"processes 0 and {number} were started with different {listed}: start all of them with the same "
                "command, code and data."
            )


class Agreement:
    """Whether any process was asked to stop, known to all of them at the same step.

    Each call hands in this process' wish and returns the outcome of the call before: no step waits for it.
    """

    def __init__(self, mesh: Mesh | None):
        self._alone = mesh is None or count() == 1
        self._pending: jax.Array | None = None
        if not self._alone:
            self._sharding = NamedSharding(mesh, P(mesh.axis_names))
            self._size = mesh.size
            self._any = jax.jit(lambda wishes: wishes.max(), out_shardings=NamedSharding(mesh, P()))
            exchange("agreement", "")
            self(False)  # all processes are here now: connections that are slow to open open together

    def __call__(self, wish: bool) -> bool:
        if self._alone:
            return wish
        mine = np.full((1,), wish, np.int32)
        wishes = jax.make_array_from_callback((self._size,), self._sharding, lambda index: mine)
        before, self._pending = self._pending, self._any(wishes)
        return before is not None and bool(before)


def client() -> Any:
    from jax._src import distributed  # no public name for the key-value store; Orbax uses it the same way

    return distributed.global_state.client

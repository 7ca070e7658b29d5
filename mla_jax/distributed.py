"""Several processes that train one model: how they find each other, agree, and end together.

Every process runs the same command. One that stands alone (no flags, no SLURM step, no mpirun, no JAX_* variables)
never touches jax.distributed, and everything here is then a plain call.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mla_jax.errors import UserError

HEARTBEAT_S = 30  # after which a silent process counts as dead, and JAX ends the others
LONGEST_WAIT_S = 6 * 3600  # for a process that still prepares data or samples; a dead one is noticed by its heartbeat
PEER_LOST = 4  # exit code
GRACE_S = 3.0  # process 0 goes last: jaxlib aborts a process whose coordinator is gone before it
_exchanges = itertools.count()  # keys of the coordination service are written once
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process joins the others. method: "explicit", or the launcher that jax.distributed asks the rest of."""

    method: str
    coordinator_address: str = ""
    num_processes: int = 1
    process_id: int = 0
    timeout_s: int = 300


def launch_from(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None, timeout_s: int
) -> Launch | None:
    """What the flags, else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, else the launcher say.

    None: this process stands alone. Raises UserError for a part of the three, or values that cannot be.
    """
    env = os.environ
    address = coordinator_address or env.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number("num_processes", num_processes, env.get("JAX_NUM_PROCESSES"))
    index = _number("process_id", process_id, env.get("JAX_PROCESS_ID"))
    if timeout_s < 1:
        raise UserError(f"--init_timeout_s is {timeout_s}; it must be at least 1: give seconds, e.g. 300.")
    if count == 1:
        return None
    if address or count is not None or index is not None:
        missing = [
            name
            for name, value in (("coordinator_address", address), ("num_processes", count), ("process_id", index))
            if value in ("", None)
        ]
        if missing:
            raise UserError(
                f"--{' and --'.join(missing)} missing: several processes need --coordinator_address HOST:PORT, "
                "--num_processes N and --process_id I (or JAX_COORDINATOR_ADDRESS, ...), or none of them."
            )
        _check_address(address)
        if not 0 <= index < count:
            raise UserError(
                f"--process_id is {index} and --num_processes {count}; processes count from 0: use 0 to {count - 1}."
            )
        return Launch("explicit", address, count, index, timeout_s)
    if _int(env, "SLURM_STEP_NUM_TASKS") > 1 and "SLURM_PROCID" in env:  # a step of srun, not the shell of salloc
        return Launch("slurm", "", _int(env, "SLURM_STEP_NUM_TASKS"), _int(env, "SLURM_PROCID"), timeout_s)
    if _int(env, "OMPI_COMM_WORLD_SIZE") > 1:
        return Launch("ompi", "", _int(env, "OMPI_COMM_WORLD_SIZE"), _int(env, "OMPI_COMM_WORLD_RANK"), timeout_s)
    if len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        return Launch("tpu", "", len(env["TPU_WORKER_HOSTNAMES"].split(",")), _int(env, "TPU_WORKER_ID"), timeout_s)
    return None


def start(launch: Launch | None) -> None:
    """Join the other processes, before anything else asks JAX for devices. Raises UserError when that fails.

    A coordinator that cannot be reached is waited for, `timeout_s` in all.
    """
    if launch is None:
        return
    # Its handler of SIGTERM would replace the one that saves a checkpoint; `Agreement` tells the others.
    jax.config.update("jax_enable_preemption_service", False)
    # Without it JAX aborts the others when one dies, with a stack trace; `_watch` ends them with a sentence.
    jax.config.update("jax_enable_recoverability", True)
    if launch.method == "explicit":
        _reach(launch)
        where = {
            "coordinator_address": launch.coordinator_address,
            "num_processes": launch.num_processes,
            "process_id": launch.process_id,
            "cluster_detection_method": "deactivate",
        }
    else:
        where = {} if launch.method == "tpu" else {"cluster_detection_method": launch.method}
    sentence = (
        f"process {launch.process_id} of {launch.num_processes} could not join the others within {launch.timeout_s} s"
        "{}: start all of them, with one --coordinator_address that all can reach (--init_timeout_s waits longer)."
    )

    def give_up() -> None:
        print(f"mla_jax: {sentence.format('')}", file=sys.stderr, flush=True)
        os._exit(2)

    # jaxlib aborts the process, with a stack trace, when its own time-out is over: ours comes first.
    timer = threading.Timer(launch.timeout_s, give_up)
    timer.start()
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=launch.timeout_s + 60, heartbeat_timeout_seconds=HEARTBEAT_S
        )
        jax.devices()  # exchanges the topology: all take part
    except Exception as error:  # jaxlib raises several types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(sentence.format(f" ({reason})")) from None
    finally:
        timer.cancel()


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
    """`start`, then the run; a process that fails says why at once, and does not wait for the others to end."""
    start(launch)
    if launch is None:
        yield
        return
    with _watch():
        try:
            yield
        except UserError as error:
            print(f"mla_jax: {error}", file=sys.stderr, flush=True)
            leave(2)
            raise
        except Exception:
            traceback.print_exc()
            leave(1)
            raise
    with contextlib.suppress(Exception):
        _client().wait_at_barrier("mla_jax/done", 60_000)  # process 0 serves the others until all are here
    if is_first():
        time.sleep(GRACE_S)
    jax.distributed.shutdown()


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
    client, key = _client(), f"mla_jax/{next(_exchanges)}/{name}"
    client.key_value_set(f"{key}/{index()}", text)
    return [client.blocking_key_value_get(f"{key}/{i}", timeout_s * 1000) for i in range(count())]


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


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """Around work that communicates: an error of the communication ends this process with a sentence and code 4.

    Nothing orderly is left to do then: closing a checkpoint manager would wait for the dead process.
    """
    try:
        yield
    except RuntimeError as error:  # JaxRuntimeError is one
        if count() == 1 or "RESOURCE_EXHAUSTED" in str(error) or not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        _lost((str(error).strip().splitlines() or ["no reason given"])[0][:200])


def _lost(reason: str) -> None:
    print(
        f"mla_jax: process {index()} of {count()} lost another one ({reason}): start all of them again with the same "
        "command; training goes on from the newest checkpoint.",
        file=sys.stderr,
    )
    leave(PEER_LOST)


@contextlib.contextmanager
def _watch() -> Iterator[None]:
    """A thread that ends this process when another one is dead: a collective operation may wait for it for ever.

    The coordination service knows who is alive by heartbeats, which jaxlib sends whatever Python is doing.
    """
    client, everyone, over = _client(), list(range(count())), threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            try:
                alive = client.get_live_nodes(everyone)  # returns when all that are alive have asked
                dead = sorted(set(everyone) - set(alive))
                reason = f"process {dead[0]} sent no heartbeat for {HEARTBEAT_S} s" if dead else ""
            except Exception as error:
                reason = f"process 0 is unreachable: {(str(error).strip().splitlines() or [''])[0][:120]}"
            if reason and not over.is_set():
                _lost(reason)

    threading.Thread(target=look, name="mla_jax peers", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def leave(code: int) -> None:
    """End this process at once, whatever the others do; returns where there are no others."""
    if not jax.distributed.is_initialized() or count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if code != PEER_LOST:  # process 0 serves what the others may still have to read
        with contextlib.suppress(Exception):
            _client().wait_at_barrier("mla_jax/leaving", 5000)
            if is_first():
                time.sleep(GRACE_S)
    os._exit(code)


def _client() -> Any:
    from jax._src import distributed  # no public name for the key-value store; Orbax uses it the same way

    return distributed.global_state.client


def _reach(launch: Launch) -> None:
    """Wait until the coordinator listens: jaxlib ends a process whose coordinator is unreachable without a sentence."""
    if launch.process_id == 0:
        return
    host, port = launch.coordinator_address.rsplit(":", 1)
    until, reason = time.monotonic() + launch.timeout_s, ""
    while time.monotonic() < until:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))
    raise UserError(
        f"--coordinator_address is {launch.coordinator_address!r}, which process {launch.process_id} could not reach "
        f"within {launch.timeout_s} s ({reason}): start process 0 there, or give its address (--init_timeout_s waits "
        "longer)."
    )


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator_address is {address!r}; it must be HOST:PORT of process 0: e.g. 10.0.0.1:9876.")


def _number(name: str, flag: int | None, variable: str | None) -> int | None:
    value = flag if flag is not None else variable
    if value in (None, ""):
        return None
    try:
        number = int(value)
    except ValueError:
        raise UserError(f"JAX_{name.upper()} is {value!r}; it must be a whole number: unset or mend it.") from None
    if number < (1 if name == "num_processes" else 0):
        raise UserError(f"--{name} is {number}; that is too few: give the number of all processes, or leave it out.")
    return number


def _int(env: Any, name: str) -> int:
    return int(env.get(name, "0")) if env.get(name, "0").isdigit() else 0
